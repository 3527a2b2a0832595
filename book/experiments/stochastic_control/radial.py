"""A control problem with a logarithmic terminal cost, and reference values of its costs."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.special import roots_genlaguerre, roots_hermitenorm
from torch import Tensor, nn

from ctdl_lib.networks.embeddings import times_like
from ctdl_lib.potentials.potential import Derivatives, Gradient, Potential, Sigma, Time, along_noise
from ctdl_lib.problems.control import LinearQuadratic, noise_trace


@dataclass(frozen=True, eq=False)
class LogarithmicTarget:
    """The problem dx = 2u dt + σ dW with L = ‖u‖² and G = w log ½(1 + ‖x − target‖²).

    Its Hamilton–Jacobi–Bellman equation is ∂ₜΦ + ½σ²ΔΦ − ‖∇Φ‖² = 0.

    Args of the constructor: the `target` in ℝᵈ; σ (`diffusion`); w (`weight`); T (`horizon`).

    Raises:
        ValueError: σ, w or T is not positive.

    Reference: han2018solving; li2024neural, section 4.2.
    """

    target: Float[Tensor, " d"]
    diffusion: float = math.sqrt(2)
    weight: float = 1.0
    horizon: float = 1.0

    def __post_init__(self):
        if not all(number > 0 for number in (self.diffusion, self.weight, self.horizon)):
            raise ValueError(
                f"diffusion={self.diffusion}, weight={self.weight} and horizon={self.horizon}"
                " must be positive"
            )

    def drift(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The drift 2u."""
        return 2 * u

    def running_cost(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch d"]
    ) -> Float[Tensor, " batch"]:
        """The running cost ‖u‖²."""
        return u.square().sum(-1)

    def terminal_cost(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The terminal cost w log ½(1 + ‖x − target‖²)."""
        return self.weight * torch.log(0.5 + 0.5 * (x - self.target.to(x)).square().sum(-1))

    def optimal_control(
        self, t: Time, x: Float[Tensor, "batch d"], p: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The optimal control −p."""
        return -p

    def linear_quadratic(self) -> LinearQuadratic:
        """The problem with the terminal cost w‖x − target‖², the quadratic part of G at the target.

        The constant −w log 2 of G is left out.
        """
        return LinearQuadratic(
            self.target,
            2 * self.weight,
            diffusion=self.diffusion,
            gain=2.0,
            control_cost=2.0,
            horizon=self.horizon,
        )

    def terminal(self) -> Potential:
        """The terminal cost G as a potential, constant in t."""
        return _Radial(self.target, _Logarithm(self.weight))

    def value(self, *, nodes: int | None = None) -> Potential:
        """The value function Φ = −a log E[(½(1 + R))⁻ᵏ], by quadrature in double precision.

        This is the Hopf–Cole formula with a = ½σ², k = w/a and R = ‖x − target + σ√(T − t) Z‖². The
        integral (1 + R)⁻ᵏ = 1/Γ(k) ∫ sᵏ⁻¹ e^{−s(1 + R)} ds reduces it to one dimension, because
        E[e^{−sR}] = (1 + 2vs)^{−d/2} exp(−s‖x − target‖²/(1 + 2vs)) with v = σ²(T − t).
        """
        return _Radial(self.target, _ColeHopf(self, nodes))


class _Logarithm(nn.Module):
    """The function w log ½(1 + q) of q, and its derivatives ∂ₜ, ∂_q and ∂_q² with ∂ₜ = 0."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, t: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = self.weight / (1 + q)
        value = self.weight * torch.log(0.5 + 0.5 * q)
        return value, torch.zeros_like(q), first, -first / (1 + q)


class _ColeHopf(nn.Module):
    """The value function of (t, q) with q = ‖x − target‖², and its derivatives ∂ₜ, ∂_q, ∂_q²."""

    def __init__(self, problem: LogarithmicTarget, nodes: int | None):
        super().__init__()
        self.a, self.d = 0.5 * problem.diffusion**2, len(problem.target)
        self.k, self.horizon = problem.weight / self.a, problem.horizon
        # for small k the integrand has a support of length 45/k in log s
        self.nodes = nodes or 400 + math.ceil(100 / self.k)

    def _log_weight(self, y: Tensor, v: Tensor, q: Tensor) -> Tensor:
        """The logarithm of the integrand in y = log s."""
        s = y.exp()
        growth = 1 + 2 * v * s
        return self.k * y - s - 0.5 * self.d * growth.log() - s * q / growth

    def forward(self, t: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype, t, q = q.dtype, t.double()[:, None], q.double()[:, None]
        v = 2 * self.a * (self.horizon - t).clamp(min=0)
        # a coarse grid finds where the integrand is not negligible; a fine grid integrates there
        top = math.log(self.k) + 8
        coarse = torch.linspace(-45 / min(self.k, 1.0), top, 1000, device=q.device).double()
        log = self._log_weight(coarse, v, q)
        seen = (log > log.amax(1, keepdim=True) - 45).double()
        low = coarse[seen.argmax(1).sub(1).clamp(min=0)]
        high = coarse[(len(coarse) - seen.flip(1).argmax(1)).clamp(max=len(coarse) - 1)]
        unit = torch.linspace(0, 1, self.nodes, dtype=torch.float64, device=q.device)
        y = low[:, None] + (high - low)[:, None] * unit
        log = self._log_weight(y, v, q)
        step = (high - low) / (self.nodes - 1)
        log_mean = log.logsumexp(1) + step.log() - math.lgamma(self.k) + self.k * math.log(2.0)
        # these are trapezoidal sums, because the integrand vanishes at both ends
        weight, s = log.softmax(1), y.exp()
        growth = 1 + 2 * v * s
        slope = s / growth
        first = (weight * slope).sum(1)
        second = first.square() - (weight * slope.square()).sum(1)
        # the derivative in v of the log integrand is −d s/growth + 2 s² q/growth², and ∂ₜv = −2a
        by_v = (weight * slope * (2 * slope * q - self.d)).sum(1)
        dt = 2 * self.a**2 * by_v
        value, first, second = -self.a * log_mean, self.a * first, self.a * second
        return value.to(dtype), dt.to(dtype), first.to(dtype), second.to(dtype)


class _Radial(Potential):
    """A potential that is a function of t and ‖x − target‖²."""

    target: Tensor

    def __init__(self, target: Tensor, profile: nn.Module):
        super().__init__()
        self.register_buffer("target", target, persistent=False)
        self.profile = profile

    def _at(self, t: Time, x: Tensor) -> tuple[Tensor, ...]:
        z = x - self.target.to(x)
        return z, *self.profile(times_like(t, x), z.square().sum(-1))

    def forward(self, t: Time, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        return self._at(t, x)[1]

    def gradient(self, t: Time, x: Float[Tensor, "batch d"]) -> Gradient:
        """The values Φ, ∂ₜΦ and ∇ₓΦ."""
        z, value, dt, first, _ = self._at(t, x)
        return Gradient(value, dt, 2 * first[:, None] * z)

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d"], sigma: Sigma | None = None
    ) -> Derivatives:
        """The values Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ)."""
        z, value, dt, first, second = self._at(t, x)
        spread = along_noise(z, sigma)
        trace = 2 * first * noise_trace(sigma, x.shape[1]) + 4 * second * spread.square().sum(-1)
        return Derivatives(value, dt, 2 * first[:, None] * z, trace)


def best_cost(
    problem: LogarithmicTarget, r: float, *, steps: int, nodes: int = 1600, points: int = 12
) -> float:
    """The least expected cost from distance r to the target, with one constant control per step.

    It is V₀(r) of `stepwise_values`.

    Raises:
        ValueError: `steps` is below 1, or the target has dimension 1, where the distance alone does
            not determine the state.
    """
    return float(stepwise_values(problem, r, steps=steps, nodes=nodes, points=points)[0](r))


def stepwise_values(
    problem: LogarithmicTarget, r: float, *, steps: int, nodes: int = 1600, points: int = 12
) -> list[CubicSpline]:
    """The value functions V₀, …, V_N of the distance to the target, with N = `steps` steps.

    Dynamic programming computes Vₖ(r) = min_m {(m − r)²/4h + E Vₖ₊₁(‖m e₁ + σ√h Z‖)} with V_N = G.
    The optimal control is radial, and without noise it would lead to the distance m.
    Vₖ is a cubic spline with `nodes` nodes in [0, 4r/3 + 10σ√T]. The expectation is computed by
    Gauss quadrature with `points` points on each of two axes.

    Raises:
        ValueError: `steps` is below 1, or the target has dimension 1, where the distance alone does
            not determine the state.
    """
    d, h = len(problem.target), problem.horizon / max(steps, 1)
    if steps < 1 or d < 2:
        raise ValueError(f"steps={steps} must be at least 1 and the dimension {d} at least 2")
    s = problem.diffusion * math.sqrt(h)
    top = 4 / 3 * r + 10 * problem.diffusion * math.sqrt(problem.horizon)
    radius = np.linspace(0.0, top, nodes)
    along, w_along = roots_hermitenorm(points)
    across, w_across = roots_genlaguerre(points, (d - 1) / 2 - 1)  # half of a χ² of d − 1
    weights = np.outer(w_along / w_along.sum(), w_across / w_across.sum())
    ahead = (radius[:, None] + s * along) ** 2
    reached = np.sqrt(ahead[:, :, None] + 2 * s**2 * across)
    values = [CubicSpline(radius, problem.weight * np.log(0.5 + 0.5 * radius**2))]
    price = (radius[None] - radius[:, None]) ** 2 / (4 * h)
    for _ in range(steps):
        expected = (values[-1](reached) * weights).sum((1, 2))
        values.append(CubicSpline(radius, _parabolic_minimum(price + expected[None])))
    return values[::-1]


def _parabolic_minimum(table: np.ndarray) -> np.ndarray:
    """The minimum of the parabola through the least entry of each row and its two neighbours."""
    at = table.argmin(1).clip(1, table.shape[1] - 2)
    rows = np.arange(len(table))
    left, middle, right = (table[rows, at + k] for k in (-1, 0, 1))
    bend = np.maximum(left - 2 * middle + right, 1e-300)
    return middle - (left - right) ** 2 / (8 * bend)
