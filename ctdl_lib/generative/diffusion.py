"""Diffusion models: noise, the score that undoes it, and samples by an SDE or an ODE.

The noise is N(0, Q) with any covariance Q: I for vectors, an operator for fields. What is learned
is the preconditioned score S = Q∇log p_t, so that Q⁻¹ occurs nowhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..dynamics.integration import IntegrationError
from ..dynamics.stepping import Velocity
from ..networks.embeddings import times_like


@dataclass(frozen=True)
class Schedule:
    """The equation dX = −½β(t)X dt + √β(t) Q^½ dW for 0 ≤ t ≤ 1, with β(t) from `start` to `end`.

    β is linear in t. X(t) given X(0) = x is a(t)x + s(t)η, with η ~ N(0, Q), a = exp(−½∫β) and s² =
    1 − a²: the data fade and the law approaches N(0, Q).

    Raises:
        ValueError: not 0 < start ≤ end.

    Reference: song2021score, appendix C; hagemann2023multilevel.
    """

    start: float = 0.1
    end: float = 20.0

    def __post_init__(self):
        if not 0 < self.start <= self.end:
            raise ValueError(f"want 0 < start ≤ end, got {self.start} and {self.end}")

    def beta(self, t: Any) -> Tensor:
        """The rate β(t)."""
        return self.start + (self.end - self.start) * _checked(t)

    def integral(self, t: Any) -> Tensor:
        """The integral of β from 0 to t."""
        t = _checked(t)
        return t * (self.start + 0.5 * (self.end - self.start) * t)

    def a(self, t: Any) -> Tensor:
        """What is left of the data, a = exp(−½∫β)."""
        return torch.exp(-0.5 * self.integral(t))

    def s(self, t: Any) -> Tensor:
        """The standard deviation s = √(1 − a²) of the noise."""
        return torch.sqrt(-torch.expm1(-self.integral(t)))


def _checked(t: Any) -> Tensor:
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t must lie in [0, 1], got {t.min().item():.6g} to {t.max().item():.6g}")
    return t


def _column(a: Tensor, x: Tensor) -> Tensor:
    """One number a sample, shaped to multiply x (batch, …); a single number as it is."""
    return a.to(x).reshape(-1, *[1] * (x.dim() - 1)) if a.dim() else a


def perturb(
    x: Float[Tensor, "batch ..."],
    eta: Float[Tensor, "batch ..."],
    t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
    schedule: Schedule,
) -> Float[Tensor, "batch ..."]:
    """The noisy data a(t)x + s(t)η."""
    return _column(schedule.a(t), x) * x + _column(schedule.s(t), x) * eta


class Denoiser(nn.Module):
    """The estimate of the noise η in x(t) = a x + s η, made of a network F(t, u):

        η̂(t, x) = (s/r) (x/r) − (a std/r) F(t, x/r),    r² = s² + a² std².

    If data and noise are Gaussian with the same covariance and `std` is the ratio of their
    deviations, η̂ is exact with F = 0. The target of F has about the variance of the noise for all
    t.

    Args of the constructor: the network, the `std` of the data where that of the noise is 1, and
    the schedule.

    Reference: karras2022elucidating, section 5.
    """

    def __init__(self, net: nn.Module, *, std: float, schedule: Schedule | None = None):
        super().__init__()
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.net, self.std, self.schedule = net, std, schedule or Schedule()

    def forward(self, t: Any, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The estimate η̂(t, x)."""
        t = times_like(t, x)
        a, s = self.schedule.a(t), self.schedule.s(t)
        r = torch.sqrt(s**2 + (a * self.std) ** 2)
        u = x / _column(r, x)
        return _column(s / r, x) * u - _column(a * self.std / r, x) * self.net(t, u)


def denoising(
    denoiser: Velocity,
    x: Float[Tensor, "batch ..."],
    eta: Float[Tensor, "batch ..."],
    t: Float[Tensor, " batch"],
    schedule: Schedule,
) -> Float[Tensor, ""]:
    """The mean square of η̂(t, x(t)) − η, x(t) = a x + s η: denoising score matching.

    It is that of s S + η with S = −η̂/s, and least where S = Q∇log p_t, for E[η | x(t)] is
    −s Q∇log p_t whatever Q is. For fields the mean over pixels is the squared norm in L².

    Raises:
        ValueError: t lies outside of [0, 1].

    Reference: vincent2011connection; hagemann2023multilevel.
    """
    return (denoiser(t, perturb(x, eta, t, schedule)) - eta).square().mean()


class Score(nn.Module):
    """The preconditioned score S(t, x) = Q∇log p_t(x) = −η̂(t, x)/s(t) of a denoiser.

    For t < `first`, where s is almost zero, the score at t = `first` is returned.
    """

    def __init__(self, denoiser: nn.Module, schedule: Schedule, *, first: float = 1e-3):
        super().__init__()
        self.denoiser, self.schedule, self.first = denoiser, schedule, first

    def forward(self, t: Any, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The value S(t, x)."""
        t = times_like(t, x).clamp(min=self.first)
        return -self.denoiser(t, x) / _column(self.schedule.s(t), x)


class ProbabilityFlow(nn.Module):
    """The velocity v(t, x) = −½β(t)(x + S(t, x)) whose flow has the densities p_t of the SDE.

    With it a `flows.Flow` has the likelihood and the samples of a diffusion model whose Q is I.
    Outside of [0, 1], where adaptive solvers evaluate it to choose a first step, the nearest end
    counts.

    Reference: song2021score, section 4.3.
    """

    def __init__(self, score: Velocity, schedule: Schedule):
        super().__init__()
        self.score, self.schedule = score, schedule

    def forward(self, t: Any, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The velocity v(t, x)."""
        t = t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)
        return -0.5 * _column(self.schedule.beta(t), x) * (x + self.score(t, x))


class Denoised(NamedTuple):
    """A state of the reverse process at time t."""

    t: float
    x: Float[Tensor, "batch ..."]


Method = Literal["euler-maruyama", "exponential"]
METHODS = get_args(Method)


def reverse_sde(
    score: Velocity,
    noise: Callable[[], Tensor],
    schedule: Schedule,
    *,
    steps: int,
    method: Method = "exponential",
    last: Literal["mean", "noise"] = "mean",
) -> Iterator[Denoised]:
    """The states of dX = −β(½X + S(t, X)) dt + √β Q^½ dW̄, from t = 1 down to 0, one by one.

    Each of the equal steps evaluates S once. "exponential" solves the equation exactly where
    S + X does not change along the step, so that N(0, Q), whose S is −X, stays what it is. The last
    step ends in the mean E[X(0) | X(t)] = (X + s²S)/a, or else in one more sample ("noise").

    Args:
        noise: draws η ~ N(0, Q), the whole batch; the first draw is where the process starts.

    Raises:
        ValueError: an unknown method or fewer than one step.
        IntegrationError: a state is not finite.

    Reference: anderson1982reverse; song2021score, section 3.
    """
    if steps < 1 or method not in METHODS or last not in ("mean", "noise"):
        raise ValueError(
            f'want steps ≥ 1, a method of {METHODS} and last "mean" or "noise", got {steps},'
            f" {method!r} and {last!r}"
        )
    x = noise()
    yield Denoised(1.0, x)
    for k in range(steps):
        t, end = 1 - k / steps, 1 - (k + 1) / steps
        S = score(t, x)
        if k + 1 == steps and last == "mean":
            x = (x + schedule.s(t) ** 2 * S) / schedule.a(t)
        elif method == "euler-maruyama":
            h = schedule.beta(t) / steps
            x = x + h * (0.5 * x + S) + torch.sqrt(h) * noise()
        else:
            passed = schedule.integral(t) - schedule.integral(end)
            keep = torch.exp(-0.5 * passed)
            x = keep * x + 2 * (1 - keep) * (S + x) + torch.sqrt(1 - keep**2) * noise()
        if not x.isfinite().all():
            raise IntegrationError(
                f"the state is not finite at t = {end:.6g}: take more steps, or look at the score"
            )
        yield Denoised(end, x)


@torch.no_grad()
def sample_sde(
    score: Velocity, noise: Callable[[], Tensor], schedule: Schedule, **how: Any
) -> Float[Tensor, "batch ..."]:
    """The samples at which `reverse_sde` ends, with its options."""
    for state in reverse_sde(score, noise, schedule, **how):  # noqa: B007
        pass
    return state.x
