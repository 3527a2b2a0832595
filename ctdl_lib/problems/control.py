"""Control problems with the drift b u and quadratic costs, with and without an obstacle."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import guard
from ..control.problem import hamiltonian
from ..networks.embeddings import times_like
from ..potentials.composed import PinnedPotential
from ..potentials.potential import AutodiffPotential, Derivatives, Gradient, Potential, Sigma, Time
from ..references.advection import interpolate
from ..references.finite_differences import hamilton_jacobi
from ..references.grids import Grid


@dataclass(frozen=True, eq=False)
class LinearQuadratic:
    """The problem dx = b u dt + σ dW with L = ½ r‖u‖² and G = ½ m‖x − target‖².

    Args of the constructor: the `target` in ℝᵈ; the number b (`gain`); the weights r
    (`control_cost`) and m (`weight`); σ (`diffusion`), a number or a matrix; T (`horizon`).

    Raises:
        ValueError: a weight or the horizon is not positive, or b is zero.
    """

    target: Float[Tensor, " d"]
    weight: float
    diffusion: Sigma = 0.0
    gain: float = 1.0
    control_cost: float = 1.0
    horizon: float = 1.0

    def __post_init__(self):
        positive = self.weight, self.control_cost, self.horizon, abs(self.gain)
        if not all(number > 0 for number in positive):
            raise ValueError(
                f"weight={self.weight}, control_cost={self.control_cost} and"
                f" horizon={self.horizon} must be positive, and gain={self.gain} must not be zero"
            )

    @property
    def d(self) -> int:
        """The dimension of the states and of the controls."""
        return len(self.target)

    def drift(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The drift b u."""
        return self.gain * u

    def running_cost(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch d"]
    ) -> Float[Tensor, " batch"]:
        """The running cost ½ r‖u‖²."""
        return 0.5 * self.control_cost * u.square().sum(-1)

    def terminal_cost(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The terminal cost ½ m‖x − target‖²."""
        return 0.5 * self.weight * (x - self.target.to(x)).square().sum(-1)

    def optimal_control(
        self, t: Time, x: Float[Tensor, "batch d"], p: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The optimal control −(b/r) p."""
        return -self.gain / self.control_cost * p

    def value(self) -> Potential:
        """The exact value function ½ P(t)‖x − target‖² + κ(t).

        With τ = T − t and k = b²/r, P = 1/(1/m + kτ) and κ = tr(σσᵀ)/(2k) log(1 + kmτ). P solves
        the Riccati equation Ṗ = kP², P(T) = m, and κ satisfies −κ̇ = ½ tr(σσᵀ) P.
        """
        return _Quadratic(self)


class _Quadratic(Potential):
    """The value function of a linear–quadratic problem."""

    def __init__(self, problem: LinearQuadratic):
        super().__init__()
        self.problem, self.k = problem, problem.gain**2 / problem.control_cost

    def _parts(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """The vector z = x − target, P and κ at (t, x), and the number ½ tr(σσᵀ)."""
        left = self.problem.horizon - times_like(t, x)
        P = 1 / (1 / self.problem.weight + self.k * left)
        noise = 0.5 * noise_trace(self.problem.diffusion, x.shape[1])
        kappa = noise / self.k * torch.log1p(self.k * self.problem.weight * left)
        return x - self.problem.target.to(x), P, kappa, noise

    def forward(self, t: Time, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        z, P, kappa, _ = self._parts(t, x)
        return 0.5 * P * z.square().sum(-1) + kappa

    def gradient(self, t: Time, x: Float[Tensor, "batch d"]) -> Gradient:
        """The values Φ, ∂ₜΦ and ∇ₓΦ in closed form."""
        z, P, kappa, noise = self._parts(t, x)
        half = 0.5 * P * z.square().sum(-1)
        return Gradient(half + kappa, self.k * P * half - noise * P, P[:, None] * z)

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d"], sigma: Sigma | None = None
    ) -> Derivatives:
        """The values Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), in closed form."""
        _, P, _, _ = self._parts(t, x)
        return Derivatives(*self.gradient(t, x), P * noise_trace(sigma, x.shape[1]))


def noise_trace(sigma: Sigma | None, d: int) -> float:
    """The number tr(σσᵀ) for a number or matrix σ, and d for None, the identity."""
    if isinstance(sigma, Tensor) and sigma.dim():
        return float(sigma.square().sum())
    return d * float(1.0 if sigma is None else sigma) ** 2


@dataclass(frozen=True, eq=False)
class Obstacle:
    """The problem dx = u dt + σ dW in ℝ² with L = ½‖u‖² + q N(x; 0, s I), G = ½ m‖x − target‖².

    The obstacle q N(x; 0, s I) is added to the running cost of `linear_quadratic`.

    Args of the constructor: the problem `linear_quadratic`; q (`height`); s (`variance`).

    Reference: li2024neural, section 4.1.
    """

    linear_quadratic: LinearQuadratic
    height: float = 50.0
    variance: float = 0.4

    @property
    def diffusion(self) -> Sigma:
        """The matrix σ."""
        return self.linear_quadratic.diffusion

    @property
    def horizon(self) -> float:
        """The final time T."""
        return self.linear_quadratic.horizon

    def hill(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
        """The cost q N(x; 0, s I) of the obstacle."""
        peak = self.height / (2 * math.pi * self.variance)
        return peak * torch.exp(-0.5 / self.variance * x.square().sum(-1))

    def drift(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The drift u."""
        return self.linear_quadratic.drift(t, x, u)

    def running_cost(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch d"]
    ) -> Float[Tensor, " batch"]:
        """The running cost ½‖u‖² + q N(x; 0, s I)."""
        return self.linear_quadratic.running_cost(t, x, u) + self.hill(x)

    def terminal_cost(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The terminal cost ½ m‖x − target‖²."""
        return self.linear_quadratic.terminal_cost(x)

    def optimal_control(
        self, t: Time, x: Float[Tensor, "batch d"], p: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The optimal control −p."""
        return self.linear_quadratic.optimal_control(t, x, p)


def obstacle(*, noise: float = 1.0) -> Obstacle:
    """The published problem, with σ = `noise`·[[0.2, −0.4], [−0.4, 0.2]].

    The weight is m = 100 and the target (1.5, 1.5).

    Reference: li2024neural, section 4.1.
    """
    sigma = noise * torch.tensor([[0.2, -0.4], [-0.4, 0.2]], dtype=torch.float64)
    target = torch.full((2,), 1.5, dtype=torch.float64)
    return Obstacle(LinearQuadratic(target, 100.0, diffusion=sigma if noise else 0.0))


def on_grid(problem: Obstacle, grid: Grid, *, times: int) -> Potential:
    """The value function Φ by finite differences in double precision.

    The solver computes w = Φ − K, where K is the value function without the obstacle; w is zero at
    time T, while K contains the steep terminal cost. w is stored after each of `times` equal time
    steps, and w/(T − t) is interpolated by cubic polynomials in x and linearly in t.
    """
    known, sigma = problem.linear_quadratic.value(), problem.diffusion
    S = torch.as_tensor(sigma, dtype=torch.float64)
    S = S @ S.T if S.dim() == 2 else S**2 * torch.eye(2, dtype=torch.float64)

    points = grid.points(dtype=torch.float64)
    at = lru_cache(1)(lambda t: known.derivatives(t, points, sigma))  # asked for thrice a time

    def rate(t: float, x: Tensor, p: Tensor) -> Tensor:
        K = at(t)
        return hamiltonian(problem, t, x, K.dx + p) + K.dt + 0.5 * K.laplacian

    t = torch.linspace(0.0, problem.horizon, times + 1, dtype=torch.float64)
    w = torch.zeros(grid.shape, dtype=torch.float64)
    fallen = t.flip(0).tolist()
    w = hamilton_jacobi(rate, w, grid, fallen, covariance=S if S.any() else None).flip(0)
    shares = w[:-1] / (problem.horizon - t[:-1]).reshape(-1, 1, 1)
    # at the end w/(T − t) tends to −∂ₜw(T), which is the hill
    end = problem.hill(points).reshape(1, *grid.shape)
    table = AutodiffPotential(_Table(grid, problem.horizon, torch.cat([shares, end])))
    return PinnedPotential(known, table, horizon=problem.horizon)


class _Table(nn.Module):
    """A function of (t, x), interpolated from its values at equal time steps on a grid."""

    values: Tensor

    def __init__(self, grid: Grid, horizon: float, values: Tensor):
        super().__init__()
        self.grid, self.horizon = grid, horizon
        self.register_buffer("values", values)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        s = t * (len(self.values) - 1) / self.horizon
        s = torch.where((s - s.round()).abs() < 1e-6 * len(self.values), s.round(), s)
        k = s.detach().floor().long().clamp(0, len(self.values) - 2)
        result = torch.zeros_like(t)
        for step in k.unique().tolist():
            here = k == step
            ends = self.values[step : step + 2]
            below, above = (interpolate(values, self.grid, x[here]) for values in ends)
            share = s[here] - step
            result[here] = (1 - share) * below + share * above
        return result


guard(__name__)
