"""Mean-field games whose terminal cost is the relative entropy to a target density."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctdl_lib.generative import MeanFieldCost
from ctdl_lib.potentials import AutodiffPotential, Potential
from ctdl_lib.problems.densities import Mixture, ring_of_gaussians
from ctdl_lib.references.grids import Grid

from .sinkhorn import GridSolution, scaled_paths


@dataclass(frozen=True, eq=False)
class EntropicGame:
    """The game with the cost E[∫ ½‖v‖² + Q(x) + η log ρ dt] + λ KL(ρ(1)‖ρ₁) and x(0) ~ ρ₀.

    The obstacle Q(x) = q·p(x₁, x₂) depends on the first two coordinates. All terms with ρ are
    expectations of log ρ, so samples and log-determinants suffice to estimate them.

    Args of the constructor: the densities `initial` ρ₀ and `target` ρ₁ in ℝᵈ; the weights
    `relative_entropy` λ > 0 and `entropy` η ≥ 0; the density p in ℝ² (`obstacle`); q (`height`).

    Raises:
        ValueError: dimensions disagree, a weight is out of its range, or q is given without p.

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
                f" entropy={self.entropy} must not be negative"
            )
        if self.obstacle is not None and (self.obstacle.means.shape[1] != 2 or d < 2):
            raise ValueError(
                f"obstacle must be a density in R², and the game in R^d with d ≥ 2, got"
                f" R^{self.obstacle.means.shape[1]} and R^{d}"
            )
        if self.obstacle is None and self.height != 0:
            raise ValueError(f"height={self.height} without an obstacle: also give its density")

    def log_initial(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value log ρ₀(x)."""
        return self.initial.log_prob(x)

    def potential_energy(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Q(x) = q·p(x₁, x₂), which is zero without an obstacle."""
        if self.obstacle is None:
            return torch.zeros_like(x[:, 0])
        return self.height * self.obstacle.log_prob(x[:, :2]).exp()

    def interaction(
        self, t: float | Tensor, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost Q(x) + η log ρ and its variation Q(x) + η(1 + log ρ)."""
        cost = self.potential_energy(x) + self.entropy * log_density
        return MeanFieldCost(cost, cost + self.entropy)

    def terminal(
        self, x: Float[Tensor, "batch d"], log_density: Float[Tensor, " batch"]
    ) -> MeanFieldCost:
        """The cost λ(log ρ − log ρ₁) and its variation λ(1 + log ρ − log ρ₁)."""
        cost = self.relative_entropy * (log_density - self.target.log_prob(x))
        return MeanFieldCost(cost, cost + self.relative_entropy)


def gaussian(mean: Float[Tensor, " d"], variance: float) -> Mixture:
    """The normal density N(mean, variance·I), as a mixture with one component."""
    std = torch.full_like(mean, math.sqrt(variance))
    return Mixture(torch.ones_like(mean[:1]), mean[None], std[None])


def ring_to_gaussian(d: int) -> EntropicGame:
    """The game without interaction from a ring of 8 Gaussians to N(0, 0.3 I), with λ = 2.5.

    The ring has the radius 4 and its Gaussians the variance 0.3. The laws of the coordinates
    x₃, …, x_d are the same in both densities, so the least cost does not depend on d.

    Reference: ruthotto2020machine.
    """
    target = gaussian(torch.zeros(d, dtype=torch.float64), 0.3)
    return EntropicGame(ring_of_gaussians(d), target, relative_entropy=2.5)


def crowd_motion(d: int, *, entropy: float = 0.01) -> EntropicGame:
    """The game from N(3e₂, 0.3 I) to N(−3e₂, 0.3 I) with an obstacle between them, and λ = 5.

    The obstacle is 50 times the density N(0, diag(1, 0.5)) of the first two coordinates.

    Reference: ruthotto2020machine.
    """
    if d < 2:
        raise ValueError(f"d must be at least 2, because the obstacle is in the plane, got {d}")
    start = torch.zeros(d, dtype=torch.float64)
    start[1] = 3.0
    variance = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    hill = Mixture(variance[0, :1], torch.zeros_like(variance), variance.sqrt())
    return EntropicGame(gaussian(start, 0.3), gaussian(-start, 0.3), 5.0, entropy, hill, 50.0)


def groups(*means: Sequence[float], variance: float = 0.3) -> Mixture:
    """Equally many agents around each of the means: a mixture of normal densities."""
    centres = torch.tensor(means, dtype=torch.float64)
    weights = torch.full_like(centres[:, 0], 1 / len(means))
    return Mixture(weights, centres, torch.full_like(centres, math.sqrt(variance)))


def crossing_crowds(label: float) -> EntropicGame:
    """The game of two crowds that exchange their places at (∓3, 0), with a hill beside their way.

    A density does not say who is who. So a third coordinate is a label, which is `label` for the
    crowd that starts on the left, and −`label` for the other. With the label 0 both densities are
    equal. The hill is 100 times the density N((0, 0.6), diag(0.5, 1)), and λ = 5, η = 0.01.
    """
    left, right = (-3.0, 0.0), (3.0, 0.0)
    initial = groups((*left, label), (*right, -label))
    target = groups((*right, label), (*left, -label))
    return EntropicGame(initial, target, 5.0, 0.01, _hill_beside(), 100.0)


def lone_crowd() -> EntropicGame:
    """The game in the plane of the crowd that starts on the left in `crossing_crowds`."""
    ends = groups((-3.0, 0.0)), groups((3.0, 0.0))
    return EntropicGame(*ends, 5.0, 0.01, _hill_beside(), 100.0)


def _hill_beside() -> Mixture:
    centre = torch.tensor([[0.0, 0.6]], dtype=torch.float64)
    variance = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    return Mixture(torch.ones(1, dtype=torch.float64), centre, variance.sqrt())


class Solution(NamedTuple):
    """The least cost, its two parts, the value function, and the density ρ(1)."""

    cost: float
    transport: float
    terminal: float
    potential: Potential
    end: Mixture


def gaussian_solution(game: EntropicGame) -> Solution:
    """The exact solution of a game between two normal densities without interaction.

    If a coordinate has the initial density N(m₀, s₀²) and the target N(m₁, s₁²), its density at
    t = 1 is N(m, s²) with m(1 + λ/s₁²) = m₀ + λm₁/s₁² and s²(1 + λ/s₁²) − s₀s − λ = 0. The paths
    are straight lines.

    Raises:
        ValueError: a density is a mixture of several Gaussians, or there is an interaction.
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
    """The solution of a game on a grid by `scaled_paths`, in double precision.

    The paths have noise of variance `epsilon`. The grid must contain ρ₀ and the paths up to a
    negligible mass. ρ₀ is normalised on the grid.

    Raises:
        ValueError: the noise of a step is too small for the grid, or more than `max_sweeps` are
            needed.
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
    """The value function with optimal paths m(t) + k(t)(x(0) − m₀), where m and k are linear."""

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
