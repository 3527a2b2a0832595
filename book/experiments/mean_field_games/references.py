"""What learned costs are compared with: the same games on a grid, closed forms, simple rivals."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ctdl_lib.dynamics import integrate
from ctdl_lib.potentials import Potential, ResNetPotential
from ctdl_lib.references import advection
from ctdl_lib.references.grids import Grid
from machinery.store import Store

from .games import (
    EntropicGame,
    Solution,
    crowd_motion,
    gaussian,
    gaussian_solution,
    lone_crowd,
    on_grid,
    ring_to_gaussian,
)
from .training import Learned, costs, double

Levels = Sequence[tuple[float, int]]  # the variance of the noise, and the nodes on an axis

LEVELS: dict[str, Levels] = {
    "ring": ((0.1, 81), (0.05, 121), (0.025, 161)),
    "crowd": ((0.2, 97), (0.1, 121), (0.05, 161)),
    "lone": ((0.4, 81), (0.2, 97), (0.1, 121)),
}
FEW: Levels = ((2.0, 21), (1.0, 25))
BOXES = {"ring": (6.5, 6.5), "crowd": (4.0, 5.5), "lone": (5.5, 4.5)}
TIMES = {"ring": 1, "crowd": 16, "lone": 16}
MAKE = {"ring": ring_to_gaussian, "crowd": crowd_motion}
GAMES = {**MAKE, "lone": lambda d: lone_crowd()}  # those of the plane
STRICT = 250.0  # the weight λ with which the game is nearly optimal transport
SEEN, SIDE, NOISE = (2, 4, 6), 49, 0.4  # eighths of the time, nodes and noise of the picture


def boxed(corner: tuple[float, float], nodes: int) -> Grid:
    """The grid in the box from −`corner` to `corner`."""
    return Grid((-corner[0], -corner[1]), corner, nodes)


def limit(costs: Sequence[float]) -> float:
    """The limit without noise of costs that err by ε², from the last two, with ε halved."""
    a, b = costs[-2:]
    return b + (b - a) / 3


def reference(
    game: EntropicGame, box: tuple[float, float], levels: Levels, steps: int
) -> dict[str, Any]:
    """Cost, transport and terminal cost of a game in the plane for each noise, and the limit."""
    found = {}
    for epsilon, nodes in levels:
        solved = on_grid(game, boxed(box, nodes), epsilon=epsilon, steps=steps)
        found[str(epsilon)] = [solved.cost, solved.transport, solved.terminal]
    return {"costs": found, "limit": limit([cost for cost, *_ in found.values()])}


def grids(store: Store) -> dict[str, dict[str, Any]]:
    """The games of the plane on grids."""
    smoke, found = store.run == "smoke", {}
    for name, make in GAMES.items():
        levels = FEW if smoke else LEVELS[name]
        how = {"box": BOXES[name], "levels": levels, "steps": 2 if smoke else TIMES[name]}
        found[name] = store.measure(f"grid-{name}", how, partial(reference, make(2), **how)).numbers
    return found


def resting(store: Store) -> float:
    """The least cost of one more coordinate in the game of the crowd: N(0, 0.3) to itself."""
    noises, nodes, steps = (0.05, 0.025), 201, 4
    spot = gaussian(torch.zeros(1), 0.3)
    line = EntropicGame(spot, spot, relative_entropy=5.0, entropy=0.01)

    def compute() -> dict[str, float]:
        grid = Grid((-4.0,), (4.0,), nodes)
        return {"limit": limit([on_grid(line, grid, epsilon=e, steps=steps).cost for e in noises])}

    key = {"noises": noises, "nodes": nodes, "steps": steps}
    return store.measure("grid-resting", key, compute).numbers["limit"]


class Least(NamedTuple):
    """The least costs: of games in the plane, and of one more coordinate of the crowds."""

    ring: float
    crowd: float
    lone: float
    resting: float

    def of(self, name: str, d: int) -> float:
        """The least cost of a game in ℝᵈ."""
        return self.ring if name == "ring" else self.crowd + (d - 2) * self.resting

    @property
    def crossing(self) -> float:
        """That of two crowds that labels keep apart: each moves alone, with half of the density."""
        return self.lone + self.resting - 0.01 * math.log(2)

    def excess(self, name: str, d: int, costs: Sequence[float]) -> list[float]:
        """By how many percent costs exceed the least one."""
        return [100 * (cost / self.of(name, d) - 1) for cost in costs]


def least(store: Store) -> Least:
    """The least costs, from grids."""
    found = grids(store)
    plane = {name: solved["limit"] for name, solved in found.items()}
    return Least(**plane, resting=resting(store))


def gaussian_game(d: int) -> EntropicGame:
    """The game from N(−m, 0.3 I) to N(m, 0.6 I) with m = (2, 1, 0, …) and λ = 2.5."""
    m = torch.zeros(d, dtype=torch.float64)
    m[:2] = torch.tensor([2.0, 1.0])
    return EntropicGame(gaussian(-m, 0.3), gaussian(m, 0.6), relative_entropy=2.5)


def gaussian_best(store: Store, d: int, *, seed: int = 0) -> float:
    """The cost of the exact potential at the points by which the learned one is judged."""
    exact, smoke = gaussian_solution(gaussian_game(d)), store.run == "smoke"
    best = partial(costs, exact.potential, gaussian_game, d, seed=seed, smoke=smoke)
    return store.measure(f"gaussian-d{d}-best", {"d": d, "seed": seed}, best).numbers["cost"]


def all_the_way(game: EntropicGame) -> float:
    """The cost of optimal transport between two normal densities: no terminal cost is left."""
    first, last = game.initial, game.target
    moved = (last.means - first.means).square() + (last.std - first.std).square()
    return float(moved.sum()) / 2


def potential_error(phi: Potential, exact: Solution, game: EntropicGame, seed: int = 0) -> float:
    """The mean error of Φ(0, ·) over the crowd, in percent of the deviation of the exact one."""
    generator = torch.Generator().manual_seed(seed + 200)
    x = game.initial.sample(2000, generator, dtype=torch.float64)
    known = exact.potential(0.0, x)
    return 100 * float((phi(0.0, x) - known).abs().mean() / known.std())


def standing(d: int) -> Potential:
    """The potential zero, for which nobody moves."""
    phi = ResNetPotential(d, width=1).double()
    for p in phi.parameters():
        p.data.zero_()
    return phi.requires_grad_(False)


def straight(name: str) -> Potential:
    """The exact potential of a simpler game between normal densities in the plane.

    For the ring this is the game that starts from the normal density with the ring's covariance,
    for a crowd the game without a hill.
    """
    game = GAMES[name](2)
    initial = game.initial
    if name == "ring":
        variance = float((initial.means.square() + initial.std.square()).mean())
        initial = gaussian(torch.zeros(2, dtype=torch.float64), variance)
    simple = EntropicGame(initial, game.target, relative_entropy=game.relative_entropy)
    return gaussian_solution(simple).potential


def rivals(store: Store) -> dict[str, dict[str, float]]:
    """The costs in the plane of a crowd that stands still, and of one that moves simply."""
    smoke = store.run == "smoke"

    def compute() -> dict[str, dict[str, float]]:
        found = {}
        for name, make in GAMES.items():
            for kind, phi in (("standing", standing(2)), ("straight", straight(name))):
                found[f"{name} {kind}"] = costs(phi, make, 2, smoke=smoke)
        return found

    key = {"games": list(GAMES), "d": 2, "spacing": 0.15}
    return store.measure("rivals", key, compute).numbers


# densities --------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A point on its way, and the logarithm of the volume change."""

    x: Tensor
    log_det: Tensor


def density(phi: Potential, game: EntropicGame, t: float, y: Tensor) -> Tensor:
    """ρ(t, y), from the characteristics that end in y at time t."""
    if t == 0:
        return game.log_initial(y).exp()

    def rate(t: float | Tensor, z: Point) -> Point:
        p = phi.derivatives(t, z.x)
        return Point(-p.dx, -p.laplacian)

    start = integrate(rate, Point(y, torch.zeros_like(y[:, 0])), t, 0.0, steps=16)
    return (game.log_initial(start.x) + start.log_det).exp()


def misplaced(phi: Potential, nodes: int) -> float:
    """The mass that finite volumes put elsewhere than characteristics, at t = ½ from the ring."""
    game, grid = ring_to_gaussian(2), boxed(BOXES["ring"], nodes)
    p = grid.points(dtype=torch.float64)
    rho = game.log_initial(p).exp().reshape(grid.shape)
    velocity = lambda t, x: -phi.gradient(t, x).dx  # noqa: E731
    moved = advection.continuity(velocity, rho, grid, 0.0, 0.5, steps=2 * nodes)
    apart = (moved.flatten() - density(phi, game, 0.5, p)).abs().sum()
    return float(apart) * math.prod(grid.spacing) / 2


def assigned(seed: int, n: int) -> float:
    """½W₂² of n samples of the ring and n of its target, by the exact assignment."""
    game = ring_to_gaussian(2)
    x, y = (
        f.sample(n, torch.Generator().manual_seed(100 * seed + k), dtype=torch.float64)
        for k, f in enumerate((game.initial, game.target))
    )
    price = torch.cdist(x, y).square() / 2
    return float(price[linear_sum_assignment(price.numpy())].mean())


def checks(store: Store, model: Learned) -> dict[str, Any]:
    """Second routes: the masses of finite volumes, and the transport between samples."""
    smoke = store.run == "smoke"
    nodes, n = ((11, 15, 21), 50) if smoke else ((41, 81, 121), 1000)

    def compute() -> dict[str, Any]:
        game, phi = ring_to_gaussian(2), double(model)
        strict = EntropicGame(game.initial, game.target, relative_entropy=STRICT)
        hard = on_grid(strict, boxed(BOXES["ring"], 61), epsilon=0.1, steps=1)
        return {
            "misplaced": {str(m): misplaced(phi, m) for m in nodes},
            "assigned": [assigned(s, n) for s in range(5)],
            "strict": hard.transport,
        }

    key = {"nodes": nodes, "samples": n, "lambda": STRICT, "weights": model.weights}
    return store.measure("checks", key, compute).numbers


def pictures(store: Store) -> dict[float, Tensor]:
    """The density of the crowd on a grid with noise, at three times."""
    smoke = store.run == "smoke"
    nodes, epsilon = (21, 2.0) if smoke else (SIDE, NOISE)

    def compute() -> dict[str, Any]:
        solved = on_grid(crowd_motion(2), boxed(BOXES["crowd"], nodes), epsilon=epsilon, steps=8)
        rows = solved.density.clamp(min=1e-9)
        return {str(k / 8): [[float(f"{v:.3g}") for v in r] for r in rows[k]] for k in SEEN}

    key = {"nodes": nodes, "epsilon": epsilon, "steps": 8, "seen": SEEN}
    found: Mapping[str, Any] = store.measure("grid-pictures", key, compute).numbers
    return {float(t): torch.tensor(rows, dtype=torch.float64) for t, rows in found.items()}
