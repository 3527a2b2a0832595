"""The value function of the hill by finite differences: the reference, and how far to trust it."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.control import feedback, rollout
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import Potential
from ctdl_lib.problems.control import obstacle, on_grid
from ctdl_lib.references.grids import Grid
from machinery.seeds import seeded
from machinery.store import Store

from .training import DOUBLE

PROBLEM = obstacle()
START, SIDE = (-1.5, -1.5), (-1.5, -0.5)
SIZES, SMALL = (71, 101, 141, 201), (11, 15)  # nodes an axis; in a trial run
NODES, HALF = 61, 3.0  # of the box in which errors are judged
NOISES = (1.0, 0.5, 0.25, 0.0)
PATHS = 10_000
ACROSS = 25  # points of a slice across the diagonal


def value(nodes: int, *, times: int = 20, noise: float = 1.0, half: float = 3.5) -> Potential:
    """The value function on a square of half-width `half`."""
    box = Grid((-half, -half), (half, half), nodes)
    return on_grid(obstacle(noise=noise), box, times=times)


def sizes(store: Store) -> tuple[int, ...]:
    """The numbers of nodes an axis; a trial run has coarse grids."""
    return SMALL if store.run == "smoke" else SIZES


@lru_cache(2)
def reference(nodes: int) -> Potential:
    """The reference, once computed for all that ask."""
    return value(nodes)


def point(x: tuple[float, float]) -> Tensor:
    """The point as a batch of one."""
    return torch.tensor([x], **DOUBLE)


def box() -> Tensor:
    """The nodes of the box, (NODES², 2)."""
    return Grid((-HALF, -HALF), (HALF, HALF), NODES).points(**DOUBLE)


def at_start(store: Store) -> dict[str, float]:
    """The values Φ(0, (−1.5, −1.5)) of four grids."""
    grids = sizes(store)

    def compute() -> dict[str, float]:
        return {str(n): float(value(n)(0.0, point(START))) for n in grids}

    key = {"grids": grids, "times": 20, "cfl": 0.5}
    return store.measure("grids", key, compute).numbers


def by_noise(store: Store) -> dict[str, float]:
    """The values at a start beside the diagonal, by the share of the noise."""
    nodes = sizes(store)[0]

    def compute() -> dict[str, float]:
        found = {str(c): value(nodes, noise=c)(0.0, point(SIDE)) for c in NOISES}
        return {name: float(phi) for name, phi in found.items()}

    key = {"nodes": nodes, "start": [list(SIDE)], "times": 20}
    return store.measure("noise", key, compute).numbers


def plane(store: Store) -> dict[str, Any]:
    """The reference on the box at t = 0, how two other grids differ, and slices for less noise.

    `known` has six digits, which is more than it is worth. `other` has the largest relative
    differences from a finer grid, and from one with the same spacing on a larger square. `slices`
    are values across the diagonal behind the hill, by the share of the noise.
    """
    nodes = sizes(store)[0]
    finer, wide = (15, 14) if store.run == "smoke" else (101, 91)
    s = torch.linspace(-1.5, 1.5, ACROSS, **DOUBLE)
    across = -1.0 + torch.stack([s, -s], 1) / 2**0.5

    def compute() -> dict[str, Any]:
        known = reference(nodes)(0.0, box())
        others = {"finer": value(finer), "wider": value(wide, half=4.5)}
        apart = {k: float((phi(0.0, box()) / known - 1).abs().max()) for k, phi in others.items()}
        slices = {str(c): [rounded(v) for v in value(nodes, noise=c)(0.0, across)] for c in NOISES}
        return {"known": [rounded(v) for v in known], "other": apart, "slices": slices}

    key = {"nodes": nodes, "box": [NODES, HALF], "others": [finer, wide], "slice": s.tolist()[0]}
    return store.measure("plane", key, compute).numbers


def rounded(number: Tensor) -> float:
    """The number with six digits."""
    return float(f"{float(number):.6g}")


def price(policy: Policy, paths: int, steps: int = 200, seed: int = 0) -> tuple[float, float]:
    """The mean cost of a policy from (−1.5, −1.5) on common noise, and its standard error."""
    x, g = point(START).expand(paths, 2), seeded(seed + 98)
    cost = rollout(PROBLEM, policy, x, steps=steps, generator=g).cost
    return float(cost.mean()), float(cost.std() / paths**0.5)


def best_price(store: Store, seed: int = 0) -> dict[str, float]:
    """The cost of the finest grid's feedback, with its standard error as `error`."""
    nodes, paths = sizes(store)[-1], 16 if store.run == "smoke" else PATHS

    def compute() -> dict[str, float]:
        policy = feedback(PROBLEM, value(nodes, times=200))
        return dict(zip(("cost", "error"), price(policy, paths, seed=seed), strict=True))

    return store.measure("best", {"nodes": nodes, "times": 200, "paths": PATHS}, compute).numbers


def straight_price(store: Store, seed: int = 0) -> float:
    """The cost of the feedback that does not know the hill, on the same noise."""
    policy = feedback(PROBLEM, PROBLEM.linear_quadratic.value())
    return price(policy, 16 if store.run == "smoke" else PATHS, seed=seed)[0]
