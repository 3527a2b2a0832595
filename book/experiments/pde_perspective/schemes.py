"""The transport equation for known fields: orders, diffusion, densities, and what a grid costs."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.dynamics import divergence, integrate
from ctdl_lib.references import advection
from ctdl_lib.references.advection import Grid, characteristics, semi_lagrangian, upwind
from machinery import instruments
from machinery.store import Run, Store

DOUBLE = torch.float64
SIZES = (33, 65, 129, 257)
SCHEMES: dict[str, Callable] = {"semi-Lagrangian": semi_lagrangian, "upwind": upwind}
Field = Callable[[Any, Tensor], Tensor]


def sizes(run: Run) -> tuple[int, ...]:
    """The nodes along a side of the grids; a trial run has two of them."""
    return SIZES[:2] if run == "smoke" else SIZES


def box(nodes: int) -> Grid:
    """The square [−3, 3]²."""
    return Grid((-3.0, -3.0), (3.0, 3.0), nodes)


def spacing(nodes: int) -> float:
    """The spacing of `box`."""
    return 6 / (nodes - 1)


def swirl(t: Any, x: Tensor) -> Tensor:
    """The field (−tanh x₂ cos πt, tanh x₁)."""
    a, b = x.T
    return torch.stack([-b.tanh() * math.cos(math.pi * float(t)), a.tanh()], 1)


def coordinate_errors(scheme: str, nodes: int) -> Tensor:
    """The errors at t = 0 for u(1, x) = x₁ and x₂, at the nodes with |x₁|, |x₂| ≤ 1.5.

    All schemes are linear in u and keep constants, so these give the errors for all Wx + μ. The
    truth are characteristics by 200 steps of RK4.
    """
    grid = box(nodes)
    x = grid.points(dtype=DOUBLE)
    inner = (x.abs() <= 1.5).all(1)
    exact = characteristics(swirl, lambda y: y, x[inner], 1.0, 0.0, steps=200)
    steps = (nodes - 1) // 4 if scheme == "semi-Lagrangian" else 2 * (nodes - 1) // 5
    solve = partial(SCHEMES[scheme], swirl, grid=grid, t0=1.0, t1=0.0, steps=steps)
    columns = [solve(x[:, j].reshape(grid.shape)).flatten()[inner] for j in (0, 1)]
    return torch.stack(columns, 1) - exact


def largest_errors(scheme: str, W: Tensor, sizes: Sequence[int] = SIZES) -> list[list[float]]:
    """The largest errors for each row of W, by the number of nodes."""
    errors = [coordinate_errors(scheme, m) for m in sizes]
    return [[(e @ row).abs().max().item() for e in errors] for row in W]


def orders(scheme: str, seeds: Sequence[int], sizes: Sequence[int] = SIZES) -> list[float]:
    """The observed orders on the two finest grids, for random W, one a seed."""
    draws = [torch.randn(2, generator=torch.Generator().manual_seed(s)).double() for s in seeds]
    spacings = [spacing(m) for m in sizes]
    found = largest_errors(scheme, torch.stack(draws), sizes)
    return [metrics.observed_orders(errors, spacings)[-1] for errors in found]


# --- numerical diffusion ------------------------------------------------------------------------


def spread_of_peak(courant: float, steps: int = 40) -> float:
    """The diffusion that upwind differences add to a peak, over |f|h/2.

    The velocity is constant in one dimension, the time step Δt = νh/|f| with the Courant number ν.
    A diffusion D lets the variance of the peak grow by 2D a unit of time.
    """
    grid, h = Grid((0.0,), (100.0,), 101), 1.0
    x = grid.points(dtype=DOUBLE)[:, 0]
    peak = (x == 20).double()
    time = courant * h * steps
    ones = lambda t, x: torch.ones_like(x)  # noqa: E731
    u = upwind(ones, peak, grid, 0.0, time, steps=steps)
    mean = (u * x).sum() / u.sum()
    variance = (u * (x - mean) ** 2).sum() / u.sum()
    return (variance / (2 * time) / (h / 2)).item()


# --- densities ----------------------------------------------------------------------------------


class Particle(NamedTuple):
    """A point that moves, and the logarithm of the determinant of its flow."""

    x: Tensor
    log_det: Tensor


def carry(f: Field, x: Tensor, T: float, steps: int) -> Particle:
    """The particles at T, with ∫∇·f dt along their paths."""
    rate = lambda t, state: Particle(*divergence(partial(f, t), state.x))  # noqa: E731
    start = Particle(x, x.new_zeros(len(x)))
    return integrate(rate, start, 0.0, T, steps=steps, method="midpoint")


CENTRE, WIDTH = torch.tensor([0.5, 0.25], dtype=DOUBLE), 0.4


def bump(x: Tensor) -> Tensor:
    """A multiple of a normal density."""
    return torch.exp(-(x - CENTRE).square().sum(1) / (2 * WIDTH**2))


def random_layer(seed: int) -> tuple[Field, Tensor]:
    """A field tanh(Ax + b), and 500 points drawn from the density of `bump`."""
    generator = torch.Generator().manual_seed(seed)
    A, b, x = (torch.randn(n, 2, generator=generator, dtype=DOUBLE) for n in (2, 1, 500))
    return lambda t, x: torch.tanh(0.5 * x @ A.T + b), CENTRE + WIDTH * x


def density_error(f: Field, x: Tensor, T: float, grid: Grid, steps: int) -> float:
    """The mean error of finite volumes at carried points, relative to the mean density there."""
    end = carry(f, x, T, 128)
    rho = bump(grid.points(dtype=DOUBLE)).reshape(grid.shape)
    moved = advection.continuity(f, rho, grid, 0.0, T, steps=steps)
    along = bump(x) * (-end.log_det).exp()
    return ((advection.interpolate(moved, grid, end.x) - along).abs().mean() / along.mean()).item()


def density_errors(seed: int, sizes: Sequence[int] = SIZES) -> list[float]:
    """The errors for a random layer, by the number of nodes."""
    f, x = random_layer(seed)
    return [density_error(f, x, 1.0, box(m), m // 2) for m in sizes]


def lost_mass(seed: int, conservative: bool, nodes: int = 65) -> float:
    """The relative change of the mass on a grid, by fluxes or by upwind differences of ρ.

    The latter solve ∂ₜρ + f·∇ρ = 0, the equation of a score and not of a density.
    """
    f, _ = random_layer(seed)
    grid = box(nodes)
    rho = bump(grid.points(dtype=DOUBLE)).reshape(grid.shape)
    solve = advection.continuity if conservative else upwind
    moved = solve(f, rho, grid, 0.0, 1.0, steps=nodes // 2)
    return abs((moved.sum() / rho.sum() - 1).item())


# --- what a grid costs --------------------------------------------------------------------------

DIMENSIONS, NODES, POINTS, STEPS = (1, 2, 3, 4), 21, 1000, 8


class Contest(NamedTuple):
    """Seconds of a grid and of paths for a thousand answers, and their largest errors."""

    grid_time: float
    path_time: float
    grid_error: float
    path_error: float


def contest(d: int, seed: int, rounds: int = 5) -> Contest:
    """A grid of 21 nodes an axis against a thousand paths, for a random field tanh(Ax) in ℝᵈ.

    Both take eight steps of RK4."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, generator=generator, dtype=DOUBLE)
    A = torch.randn(d, d, generator=generator, dtype=DOUBLE)
    W, x = torch.ones(d, dtype=DOUBLE) / math.sqrt(d), 2 * draw(POINTS, d) - 1
    f, last = lambda t, x: torch.tanh(x @ A.T), lambda x: x @ W
    grid = Grid((-2.0,) * d, (2.0,) * d, NODES)
    start = last(grid.points(dtype=DOUBLE)).reshape(grid.shape)

    def on_grid() -> Tensor:
        return semi_lagrangian(f, start, grid, 1.0, 0.0, steps=STEPS, method="rk4")

    def in_paths(steps: int = STEPS) -> Tensor:
        return characteristics(f, last, x, 1.0, 0.0, steps=steps)

    both = {"grid": on_grid, "paths": in_paths}
    times = instruments.interleaved_times(both, rounds=1 if d > 3 else rounds)
    answers = advection.interpolate(on_grid(), grid, x), in_paths()
    grid_error, path_error = ((a - in_paths(100)).abs().max().item() for a in answers)
    return Contest(times["grid"], times["paths"], grid_error, path_error)


def contests(store: Store, seeds: Sequence[int]) -> dict[int, list[Contest]]:
    """The contests of all seeds by dimension, measured once."""
    dimensions = DIMENSIONS[:2] if store.run == "smoke" else DIMENSIONS

    def compute() -> dict[str, Any]:
        return {str(d): [list(contest(d, s)) for s in seeds] for d in dimensions}

    settings = {"dimensions": list(DIMENSIONS), "nodes": NODES, "points": POINTS}
    settings |= {"steps": STEPS, "seeds": list(seeds), "box": 2.0, "method": "rk4"}
    found = store.measure("cost", settings, compute).numbers
    return {int(d): [Contest(*values) for values in rows] for d, rows in found.items()}


def evaluations(d: int) -> tuple[int, int]:
    """The velocities that the grid and the paths evaluate."""
    return 4 * STEPS * NODES**d, 4 * STEPS * POINTS
