"""Diffusion models: noise schedules, denoisers, scores, and samples by an SDE or an ODE.

The noise is N(0, Q) with any covariance Q: the identity for vectors, an operator for fields. The
learned function is the preconditioned score S = Q∇log p_t, so Q⁻¹ is never needed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..dynamics.deferral import holds
from ..dynamics.inputs import IntegrationError
from ..dynamics.stepping import Velocity, as_tensor, same_shape
from ..networks.embeddings import Time, times_like


@dataclass(frozen=True)
class Schedule:
    """The equation dX = −½β(t)X dt + √β(t) Q^½ dW, with β linear in t from `start` to `end`.

    Given X(0) = x, X(t) has the law of a(t)x + s(t)η with η ~ N(0, Q), a = exp(−½∫β) and
    s² = 1 − a². From t = 0 to 1 the law of X(t) approaches N(0, Q).

    Raises:
        ValueError: `start` is not positive, or `end` is below `start`.

    Reference: song2021score, appendix C; hagemann2023multilevel.
    """

    start: float = 0.1
    end: float = 20.0

    def __post_init__(self):
        if not 0 < self.start <= self.end:
            raise ValueError(f"want 0 < start ≤ end, got {self.start} and {self.end}")

    def beta(self, t: float | Float[Tensor, "..."]) -> Tensor:
        """The rate β(t)."""
        return self.start + (self.end - self.start) * _checked(t)

    def integral(self, t: float | Float[Tensor, "..."]) -> Tensor:
        """The integral of β from 0 to t."""
        t = _checked(t)
        return t * (self.start + 0.5 * (self.end - self.start) * t)

    def a(self, t: float | Float[Tensor, "..."]) -> Tensor:
        """The factor a = exp(−½∫β) of the data."""
        return torch.exp(-0.5 * self.integral(t))

    def s(self, t: float | Float[Tensor, "..."]) -> Tensor:
        """The standard deviation s = √(1 − a²) of the noise."""
        return torch.sqrt(-torch.expm1(-self.integral(t)))


def _checked(t: Any) -> Tensor:
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
    if not holds((t >= 0) & (t <= 1)):
        raise ValueError(f"t must lie in [0, 1], got {t.min().item():.6g} to {t.max().item():.6g}")
    return t


def _column(a: Tensor, x: Tensor) -> Tensor:
    """The numbers a, one per sample, shaped to multiply x (batch, …); a scalar is unchanged."""
    return a.to(x).reshape(-1, *[1] * (x.dim() - 1)) if a.dim() else a


def perturb(
    x: Float[Tensor, "batch *shape"],
    eta: Float[Tensor, "batch *shape"],
    t: Time,
    schedule: Schedule,
) -> Float[Tensor, "batch *shape"]:
    """The noisy data x(t) = a(t)x + s(t)η."""
    return _column(schedule.a(t), x) * x + _column(schedule.s(t), x) * eta


class Denoiser(nn.Module):
    """The estimate η̂ of the noise η in x(t) = a x + s η, from a network F.

        η̂(t, x) = (s/r) (x/r) − (a std/r) F(t, x/r),    r² = s² + a² std².

    If the data have the law N(0, std² Q), η̂ is exact with F = 0. The target of F has about the
    variance of the noise for all t.

    Args of the constructor: the network F(t, u) (`net`); the standard deviation `std` of the data,
    divided by that of the noise; the `schedule`.

    Reference: karras2022elucidating, section 5.
    """

    def __init__(self, net: nn.Module, *, std: float, schedule: Schedule | None = None):
        super().__init__()
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.net, self.std, self.schedule = net, std, schedule or Schedule()

    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The estimate η̂(t, x)."""
        t = times_like(t, x)
        a, s = self.schedule.a(t), self.schedule.s(t)
        r = torch.sqrt(s**2 + (a * self.std) ** 2)
        u = x / _column(r, x)
        return _column(s / r, x) * u - _column(a * self.std / r, x) * self.net(t, u)


def denoising(
    denoiser: Velocity,
    x: Float[Tensor, "batch *shape"],
    eta: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
    schedule: Schedule,
) -> Float[Tensor, ""]:
    """The loss of denoising score matching, the mean square of η̂(t, x(t)) − η, x(t) = a x + s η.

    Its minimiser is η̂ = E[η | x(t)] = −s Q∇log p_t, for every Q. Then S = −η̂/s is the
    preconditioned score. For fields, the mean over the pixels is the squared norm in L².

    Raises:
        ValueError: a time is not in [0, 1], or η, t or the estimate has another shape than x.

    Reference: vincent2011connection; hagemann2023multilevel.
    """
    estimate = same_shape(denoiser(t, perturb(x, eta, t, schedule)), x.shape, "denoiser(t, x)")
    return (estimate - eta).square().mean()


class Score(nn.Module):
    """The preconditioned score S(t, x) = Q∇log p_t(x) = −η̂(t, x)/s(t) of a denoiser.

    For t < `first`, where s is almost zero, the score at t = `first` is returned.
    """

    def __init__(self, denoiser: nn.Module, schedule: Schedule, *, first: float = 1e-3):
        super().__init__()
        self.denoiser, self.schedule, self.first = denoiser, schedule, first

    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The value S(t, x)."""
        t = times_like(t, x).clamp(min=self.first)
        return -self.denoiser(t, x) / _column(self.schedule.s(t), x)


class ProbabilityFlow(nn.Module):
    """The velocity v(t, x) = −½β(t)(x + S(t, x)), whose flow has the densities p_t of the SDE.

    If Q = I, a `flows.Flow` with this velocity has the likelihood and the samples of the diffusion
    model. To choose their first step, adaptive solvers may evaluate v outside of [0, 1]. There v
    takes its value at the nearest end.

    A law narrower than s(`first`) of the score, .01 by default, comes out too wide. For N(0, .003²)
    and its exact score, log p is .43 nat too small in the mean with first=1e-3, and less than .001
    with first=1e-5.

    Reference: song2021score, section 4.3.
    """

    def __init__(self, score: Velocity, schedule: Schedule):
        super().__init__()
        self.score, self.schedule = score, schedule

    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The velocity v(t, x)."""
        t = t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)
        return -0.5 * _column(self.schedule.beta(t), x) * (x + self.score(t, x))


class Denoised(NamedTuple):
    """The state x of the reverse process at time t."""

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
    """The states of dX = −β(½X + S(t, X)) dt + √β Q^½ dW̄, from t = 1 to t = 0, one by one.

    All steps are equal, and each evaluates S once. The method "exponential" is exact if S + X is
    constant during a step, so it preserves N(0, Q), where S = −X.

    Args:
        noise: a function that draws a batch of η ~ N(0, Q). The first draw is the state at t = 1.
        last: the result of the last step, which is E[X(0) | X(t)] = (X + s²S)/a ("mean") or a
            sample like those of the other steps ("noise").

    Raises:
        ValueError: `method` or `last` is unknown, or `steps` is below 1.
        IntegrationError: a state is not finite.

    Reference: anderson1982reverse; song2021score, section 3.
    """
    if steps < 1 or method not in METHODS or last not in ("mean", "noise"):
        raise ValueError(
            f'want steps ≥ 1, a method of {METHODS} and last "mean" or "noise", got {steps},'
            f" {method!r} and {last!r}"
        )
    x = as_tensor(noise(), "noise()")
    yield Denoised(1.0, x)
    for k in range(steps):
        t, end = 1 - k / steps, 1 - (k + 1) / steps
        S = same_shape(score(t, x), x.shape, "score(t, x)")
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
                f"the state is not finite at t = {end:.6g}: take more steps, or check the score"
            )
        yield Denoised(end, x)


@torch.no_grad()
def sample_sde(
    score: Velocity, noise: Callable[[], Tensor], schedule: Schedule, *, steps: int, **how: Any
) -> Float[Tensor, "batch ..."]:
    """The last state of `reverse_sde`, with its options and without gradients."""
    for state in reverse_sde(score, noise, schedule, steps=steps, **how):  # noqa: B007
        pass
    return state.x
