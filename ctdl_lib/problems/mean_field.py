"""Mean-field games with a known start and a relative entropy to pay at the end."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..generative.optimal_transport import MeanFieldCost
from ..potentials.potential import AutodiffPotential, Potential
from ..references.grids import Grid
from ..references.sinkhorn import GridSolution, scaled_paths
from .densities import Mixture, ring_of_gaussians


@dataclass(frozen=True, eq=False)
class EntropicGame:
    """The game E[∫ ½‖v‖² + Q(x) + η log ρ dt] + λ KL(ρ(1)‖ρ₁) of a crowd with x(0) ~ ρ₀.

    Q(x) = q·p(x₁, x₂) is a hill in the plane of the first two coordinates. All terms that depend on
    ρ are expectations of logarithms, so samples and log-determinants are enough to evaluate them.

    Args of the constructor: the densities `initial` ρ₀ and `target` ρ₁ in Rᵈ, the weights
    `relative_entropy` λ > 0 and `entropy` η ≥ 0, the `obstacle` p in R² and its `height` q.

    Raises:
        ValueError: dimensions disagree, or a weight has the wrong sign.

    Reference: ruthotto2020machine.
    """

    initial: Mixture
    target: Mixture
    relative_entropy: float
    entropy: float = 0.0
    obstacle: Mixture | None = None
    height: float = 0.0

    def __post_init__(self):
        d, wanted = self.initial.means.shape[1], self.target.means.shape[1]
        if d != wanted:
            raise ValueError(f"initial is a density in R^{d}, but target in R^{wanted}")
        if not self.relative_entropy > 0 or not self.entropy >= 0:
            raise ValueError(
                f"relative_entropy={self.relative_entropy} must be positive and"
                f" entropy={self.entropy} not negative"
            )
        if self.obstacle is not None and (self.obstacle.means.shape[1] != 2 or d < 2):
            raise ValueError(
                f"obstacle must be a density in R², and the game in R² or above, got"
                f" R^{self.obstacle.means.shape[1]} and R^{d}"
            )
        if self.obstacle is None and self.height != 0:
            raise ValueError(f"height={self.height} without an obstacle: give its density too")

    def log_initial(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value log ρ₀(x)."""
        return self.initial.log_prob(x)

    def potential_energy(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Q(x) = q·p(x₁, x₂), zero without an obstacle."""
        if self.obstacle is None:
            return torch.zeros_like(x[:, 0])
        return self.height * self.obstacle.log_prob(x[:, :2]).exp()

    def interaction(
        self, t: float | Tensor, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost Q(x) + η log ρ, and its variation Q(x) + η(1 + log ρ)."""
        cost = self.potential_energy(x) + self.entropy * log_density
        return MeanFieldCost(cost, cost + self.entropy)

    def terminal(
        self, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost λ(log ρ − log ρ₁), and its variation λ(1 + log ρ − log ρ₁)."""
        cost = self.relative_entropy * (log_density - self.target.log_prob(x))
        return MeanFieldCost(cost, cost + self.relative_entropy)


def gaussian(mean: Float[Tensor, " d"], variance: float) -> Mixture:
    """The normal density N(mean, variance·I), as a mixture of one."""
    std = torch.full_like(mean, math.sqrt(variance))
    return Mixture(torch.ones_like(mean[:1]), mean[None], std[None])


def ring_to_gaussian(d: int) -> EntropicGame:
    """The game of optimal transport from a ring of 8 Gaussians to N(0, 0.3 I), with λ = 2.5.

    The radius is 4, the variance 0.3. The other coordinates agree from the start, and so the least
    cost is the same in every dimension d.

    Reference: ruthotto2020machine.
    """
    target = gaussian(torch.zeros(d, dtype=torch.float64), 0.3)
    return EntropicGame(ring_of_gaussians(d), target, relative_entropy=2.5)


def crowd_motion(d: int, *, entropy: float = 0.01) -> EntropicGame:
    """The game of a crowd that goes from N(3e₂, 0.3 I) to N(−3e₂, 0.3 I) round a hill, with λ = 5.

    The hill is 50 times the density of N(0, diag(1, 0.5)) in the first two coordinates.

    Reference: ruthotto2020machine.
    """
    if d < 2:
        raise ValueError(f"d must be at least 2 for a hill in the plane, got {d}")
    start = torch.zeros(d, dtype=torch.float64)
    start[1] = 3.0
    variance = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    hill = Mixture(variance[0, :1], torch.zeros_like(variance), variance.sqrt())
    return EntropicGame(gaussian(start, 0.3), gaussian(-start, 0.3), 5.0, entropy, hill, 50.0)


class Solution(NamedTuple):
    """The least cost, in total and of its two parts, the value function and the law at t = 1."""

    cost: float
    transport: float
    terminal: float
    potential: Potential
    end: Mixture


def gaussian_solution(game: EntropicGame) -> Solution:
    """The exact solution of a game between two normal densities, without interaction.

    In each coordinate, from N(m₀, s₀²) towards N(m₁, s₁²), the crowd ends as N(m, s²) where
    m(1 + λ/s₁²) = m₀ + λm₁/s₁² and s²(1 + λ/s₁²) − s₀s − λ = 0, and the paths are straight.

    Raises:
        ValueError: a density is no single Gaussian, or there is an interaction.
    """
    if len(game.initial.weights) + len(game.target.weights) > 2:
        raise ValueError("initial and target must have one component each for a closed form")
    if game.entropy or game.height:
        raise ValueError(f"no closed form with entropy={game.entropy} and height={game.height}")
    lam = game.relative_entropy
    m0, s0, m1, s1 = (
        part[0].double()
        for part in (game.initial.means, game.initial.std, game.target.means, game.target.std)
    )
    stiffness = 1 + lam / s1**2
    m = (m0 + lam * m1 / s1**2) / stiffness
    s = (s0 + (s0**2 + 4 * lam * stiffness).sqrt()) / (2 * stiffness)
    moved = 0.5 * ((m - m0).square() + (s - s0).square()).sum()
    end = lam * ((s1 / s).log() + (s**2 + (m - m1) ** 2) / (2 * s1**2) - 0.5).sum()
    constant = lam * (1 + ((s1 / s).log() + (m - m1) ** 2 / (2 * s1**2)).sum())
    value = _StraightPaths(m0, m, s / s0, constant)
    law = Mixture(torch.ones_like(m[:1]), m[None], s[None])
    cost = float(moved + end)
    return Solution(cost, float(moved), float(end), AutodiffPotential(value), law)


def on_grid(
    game: EntropicGame,
    grid: Grid,
    *,
    epsilon: float,
    steps: int,
    tol: float = 1e-5,
    max_sweeps: int = 5000,
) -> GridSolution:
    """The solution of a game with a little noise by `scaled_paths`, in float64.

    The grid must hold what is not negligible of ρ₀ and of the paths; ρ₀ gets the mass 1 on it.

    Raises:
        ValueError: grid, noise and steps do not suit each other, or `max_sweeps` are not enough.
    """
    x = grid.points(dtype=torch.float64)
    rho = game.log_initial(x).exp().reshape(grid.shape)
    return scaled_paths(
        rho / (rho.sum() * math.prod(grid.spacing)),
        game.target.log_prob(x).reshape(grid.shape),
        grid,
        relative_entropy=game.relative_entropy,
        epsilon=epsilon,
        steps=steps,
        hill=game.potential_energy(x).reshape(grid.shape),
        entropy=game.entropy,
        tol=tol,
        max_sweeps=max_sweeps,
    )


class _StraightPaths(nn.Module):
    """The value function whose paths are x(t) = m(t) + k(t)(x(0) − m₀), m and k linear in t."""

    m0: Tensor
    shift: Tensor
    growth: Tensor
    constant: Tensor

    def __init__(self, m0: Tensor, m: Tensor, stretch: Tensor, constant: Tensor):
        super().__init__()
        for name, value in (("m0", m0), ("shift", m - m0), ("growth", stretch - 1)):
            self.register_buffer(name, value)
        self.register_buffer("constant", constant)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        t = t[:, None]
        w = x - self.m0 - t * self.shift
        work = self.shift * (w - 0.5 * (1 - t) * self.shift)
        return self.constant - (work + 0.5 * self.growth * w**2 / (1 + t * self.growth)).sum(-1)
