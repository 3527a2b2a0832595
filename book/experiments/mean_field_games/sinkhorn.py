"""Mean-field games on a grid, solved by Sinkhorn's iterations for the law of the paths."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.references.grids import Grid


class GridSolution(NamedTuple):
    """The least cost, its parts, the densities ρ(tₖ), and the number of sweeps."""

    cost: float
    transport: float
    interaction: float
    terminal: float
    density: Float[Tensor, "times *shape"]
    sweeps: int


def scaled_paths(
    initial: Float[Tensor, "*shape"],
    log_target: Float[Tensor, "*shape"],
    grid: Grid,
    *,
    relative_entropy: float,
    epsilon: float,
    steps: int,
    hill: Float[Tensor, "*shape"] | None = None,
    entropy: float = 0.0,
    tol: float = 1e-6,
    max_sweeps: int = 5000,
) -> GridSolution:
    """The solution of min E[∫ ½‖v‖² + Q + η log ρ dt] + λ KL(ρ(1)‖ρ₁), up to O(ε² + Δt²).

    The law of the paths is P = Πₖ cₖ(x(tₖ)) R, where R is a Brownian motion of variance ε that
    starts from the Lebesgue measure. Forward and backward sweeps optimise one factor cₖ after
    another, so that P minimises
    ε KL(P‖R) − (ε/2)(∫ρ(0) log ρ(0) + ∫ρ(1) log ρ(1)) + ∫∫(Q + η log ρ)ρ + λ KL.
    The first two terms equal the transport cost plus (ε²/8) E∫‖∇ log ρ‖² dt.

    Args:
        initial: ρ₀ at the nodes, with Σρ₀ times the volume of a cell equal to 1.
        log_target: log ρ₁ at the nodes.
        relative_entropy: the weight λ > ε/2.
        epsilon: the variance ε > 0 of R at t = 1.
        steps: the number of time steps in [0, 1].
        hill: Q at the nodes, zero by default.
        entropy: the weight η ≥ 0.
        tol: the iteration ends when a sweep changes ρ(1) by less than this in L¹.

    Raises:
        ValueError: a weight is out of its range, the standard deviation √(ε/steps) is below 0.8
            spacings, `initial` is not a density, or more than `max_sweeps` are needed.

    Reference: benamou2018entropy; chizat2018scaling.
    """
    _check(initial, grid, relative_entropy, epsilon, entropy, steps)
    problem = _Problem(
        initial.clamp(min=torch.finfo(initial.dtype).tiny).log(),
        log_target,
        torch.zeros_like(initial) if hill is None else hill,
        [_kernel(grid, axis, epsilon / steps, initial) for axis in range(initial.dim())],
        math.prod(grid.spacing),
        relative_entropy,
        epsilon,
        entropy,
        steps,
    )
    f, g = ([torch.zeros_like(initial)] * (steps + 1) for _ in range(2))
    c = [problem.log_initial, *f[1:]]
    end = initial
    for sweep in range(1, max_sweeps + 1):
        problem.forth(c, f, g)
        before, end = end, (c[-1] + f[-1]).exp()
        problem.back(c, f, g)
        if float((end - before).abs().sum()) * problem.cell < tol:
            return problem.solution(c, f, g, sweep)
    raise ValueError(f"max_sweeps={max_sweeps} were not enough for {tol=}: increase one of them")


@dataclass(frozen=True)
class _Problem:
    """The data of a game on a grid, and the updates of the factors c and the messages f and g.

    Each of c, f (forward) and g (backward) is a list of logarithms, one tensor per time. The sum
    c + f + g is the logarithm of the density.
    """

    log_initial: Tensor
    log_target: Tensor
    hill: Tensor
    kernels: list[Tensor]
    cell: float
    lam: float
    epsilon: float
    eta: float
    steps: int

    def forth(self, c: list[Tensor], f: list[Tensor], g: list[Tensor]) -> None:
        for k in range(self.steps):
            f[k + 1] = _blur(c[k] + f[k], self.kernels)
            c[k + 1] = self.factor(k + 1, f[k + 1], g[k + 1])

    def back(self, c: list[Tensor], f: list[Tensor], g: list[Tensor]) -> None:
        for k in range(self.steps, 0, -1):
            g[k - 1] = _blur(c[k] + g[k], self.kernels)
            c[k - 1] = self.factor(k - 1, f[k - 1], g[k - 1])

    def factor(self, k: int, f: Tensor, g: Tensor) -> Tensor:
        """The logarithm of the optimal cₖ for fixed other factors, up to a constant."""
        dt = 1 / self.steps
        if k == 0:
            return self.log_initial - g
        if k < self.steps:
            return -dt * (self.hill + self.eta * (f + g)) / (self.epsilon + self.eta * dt)
        weight = self.lam + (self.eta * dt - self.epsilon) / 2
        wanted = self.lam * self.log_target - dt / 2 * self.hill - weight * f
        return wanted / (self.epsilon + weight)

    def solution(self, c: list[Tensor], f: list[Tensor], g: list[Tensor], n: int) -> GridSolution:
        for k in range(self.steps):  # the backward sweep has changed the factors, so update f
            f[k + 1] = _blur(c[k] + f[k], self.kernels)
        log_rho = torch.stack(c) + torch.stack(f) + torch.stack(g)
        rho = log_rho.exp()

        def mean(part: Tensor) -> Tensor:
            return (rho * part).flatten(1).sum(1) * self.cell

        entropies = mean(log_rho)
        relative = mean(torch.stack(c)).sum()
        moved = self.epsilon * float(relative - (entropies[0] + entropies[-1]) / 2)
        energy = mean(self.hill.expand_as(rho)) + self.eta * entropies
        within = float(torch.trapezoid(energy, dx=1 / self.steps))
        end = self.lam * float(entropies[-1] - mean(self.log_target.expand_as(rho))[-1])
        return GridSolution(moved + within + end, moved, within, end, rho, n)


def _check(initial: Tensor, grid: Grid, lam: float, epsilon: float, eta: float, steps: int) -> None:
    if not epsilon > 0 or not lam > epsilon / 2 or not eta >= 0:
        raise ValueError(
            f"relative_entropy={lam} must exceed epsilon/2, {epsilon=} be positive, entropy={eta}"
            " not negative"
        )
    width, spacing = math.sqrt(epsilon / steps), max(grid.spacing)
    if width < 0.8 * spacing:
        raise ValueError(
            f"the noise of a step has the standard deviation {width:.3g}, too small for the spacing"
            f" {spacing:.3g}: take more nodes, fewer steps or a larger epsilon"
        )
    mass = float(initial.sum()) * math.prod(grid.spacing)
    if initial.shape != grid.shape or not math.isclose(mass, 1, rel_tol=1e-4):
        raise ValueError(
            f"initial must have the shape {grid.shape} and the mass 1, got"
            f" {tuple(initial.shape)} and {mass:.4g}: divide by its sum times the volume of a cell"
        )


def _kernel(grid: Grid, axis: int, variance: float, like: Tensor) -> Tensor:
    low, high = grid.low[axis], grid.high[axis]
    x = torch.linspace(low, high, grid.nodes, dtype=like.dtype, device=like.device)
    scale = grid.spacing[axis] / math.sqrt(2 * math.pi * variance)
    return scale * torch.exp(-(x[:, None] - x).square() / (2 * variance))


def _blur(u: Tensor, kernels: list[Tensor]) -> Tensor:
    """The logarithm of the convolution of exp(u) with the kernels, one per axis."""
    for axis, kernel in enumerate(kernels):
        u = u.movedim(axis, -1)
        top = u.amax(-1, keepdim=True)
        # the clamp avoids log 0; such values are e⁻⁷⁰⁰ times smaller than the largest
        total = ((u - top).exp() @ kernel).clamp(min=torch.finfo(u.dtype).tiny)
        u = (top + total.log()).movedim(-1, axis)
    return u
