"""The score as an optimal control: the equation of its value function, and what controls cost."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ctdl_lib.potentials import AutodiffPotential
from ctdl_lib.problems.densities import Mixture
from machinery.claims import ROUND_OFF
from machinery.seeds import seeded
from machinery.store import Store

from . import samplers
from .laws import DOUBLE, SCHEDULE, GaussianScore, MixtureScore, Surprise, moments, random_mixture
from .race import seeds_of

STEPS, PATHS, LAST = 800, 300, 0.03
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
GAUSSIAN = "the control for a Gaussian with the data's moments"

Score = Callable[[float, Tensor], Tensor]


class Paths(NamedTuple):
    """Controlled paths: times, states (times, paths, d), and the excess of their costs."""

    t: list[float]
    x: Tensor
    excess: Tensor


def residuals(p: Mixture, seed: int, points: int = 200) -> tuple[float, float]:
    """The largest residual of the HJB equation over the largest ∂ₜΦ, with noise and without.

    What is below 1e-12 is rounding error, and no machine has that of another.
    """
    t = torch.linspace(0.05, 1, points, **DOUBLE)
    x = 2 * torch.randn(points, p.means.shape[1], generator=seeded(seed, 2), **DOUBLE)
    at = AutodiffPotential(Surprise(p)).derivatives(t, x)
    calm = (x * at.dx).sum(1) - at.dx.square().sum(1)
    beta, d = SCHEDULE.beta(t), p.means.shape[1]
    full, without = (0.5 * beta * right for right in (calm + at.laplacian - d, calm))
    largest = at.dt.abs().max()
    found = [((at.dt - right).abs().max() / largest).item() for right in (full, without)]
    return max(found[0], ROUND_OFF), found[1]


@torch.no_grad()
def controlled(
    p: Mixture, score: Score, x: Tensor, generator: torch.Generator, steps: int = STEPS
) -> Paths:
    """The paths of dY = β(½Y + S)dτ + √β dW for any S, and by how much each costs too much.

    The excess is the cost minus Φ(1, Y(0)) minus the martingale ∫√β ∇Φᵀ dW, whose mean is zero. For
    the best control S = −∇Φ it is zero on each path, but for the error of the steps.
    """
    phi, exact = Surprise(p), MixtureScore(p)
    value = lambda t, x: phi(torch.full((len(x),), t, **DOUBLE), x)  # noqa: E731
    times, states = samplers.grid("√t", steps, LAST), [x]
    excess = -value(1.0, x)
    for t, u in pairwise(times):
        h = samplers.level(t).beta * (t - u)
        S, dx = score(t, x), -exact(t, x)
        dW = math.sqrt(h) * torch.randn(x.shape, generator=generator, **DOUBLE)
        excess += 0.5 * h * (S.square().sum(1) - x.shape[1]) - (dx * dW).sum(1)
        x = x + h * (0.5 * x + S) + dW
        states.append(x)
    return Paths(times, torch.stack(states), excess + value(times[-1], x))


def scaled(p: Mixture, scale: float) -> Score:
    """The best control times a number, as a score."""
    exact = MixtureScore(p)
    return lambda t, x: scale * exact(t, x)


def excess_costs(store: Store, seed: int = 0) -> dict[str, list[float]]:
    """The mean excess of controls, one a mixture in the plane: scaled ones, and the Gaussian's."""
    seeds, smoke = seeds_of(store, seed), store.run == "smoke"
    steps, paths = (10, 20) if smoke else (STEPS, PATHS)
    key = {"steps": steps, "paths": paths, "last": LAST, "scales": SCALES, "seeds": seeds}

    def costs(s: int) -> dict[str, float]:
        p = random_mixture(s, d=2)
        scores = {f"{c:g}": scaled(p, c) for c in SCALES} | {GAUSSIAN: GaussianScore(*moments(p))}
        x = torch.randn(paths, 2, generator=seeded(s, 3), **DOUBLE)
        run = partial(controlled, p, x=x, steps=steps)
        return {
            name: run(S, generator=seeded(s, 4)).excess.mean().item() for name, S in scores.items()
        }

    def compute() -> dict[str, list[float]]:
        found = [costs(s) for s in seeds]
        return {name: [row[name] for row in found] for name in found[0]}

    return store.measure("control", key, compute).numbers


def hjb(store: Store, seed: int = 0) -> list[tuple[float, float]]:
    """The residuals of mixtures in the plane, with noise and without."""
    points = 20 if store.run == "smoke" else 200
    return [residuals(random_mixture(s, d=2), s, points) for s in seeds_of(store, seed)]
