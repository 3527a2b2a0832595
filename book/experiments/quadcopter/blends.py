"""Two controls in one: the linear feedback near the plan, and the network far away from it."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import Potential
from ctdl_lib.potentials.potential import Time
from machinery.store import Store

from . import plans
from .flights import Make, fly, linear, network
from .training import UNIT, Fitted

RADII, SHARES = (1.0, 2.0, 4.0), (0.25, 0.5, 0.75)
TRIED, TRIAL_WINDS = 250, 40  # flights that choose, and the seed of their winds
TRIALS = tuple((sigma, steps) for sigma in (0.2, 0.4) for steps in plans.STEPS)
BOUNDS = (30.0, 60.0, 120.0)

Mixed = Callable[[Potential, float, int], Policy]


def blended(phi: Potential, radius: float, steps: int) -> Policy:
    """The controls w u_net + (1 − w) u_lin with w = 1 − exp(−d²/radius²).

    The distance d from the plan is in the units of the network: 0.3 for angles, 1 for all else.
    """
    along, far, near = plans.along(steps), network(phi)(steps), linear(steps)

    def policy(t: Time, x: Tensor) -> Tensor:
        away = (x - along.x[round(float(t) * steps)]) / UNIT.to(x)
        w = 1 - torch.exp(-(away / radius).square().sum(1, keepdim=True))
        return w * far(t, x) + (1 - w) * near(t, x)

    return policy


def shared(phi: Potential, share: float, steps: int) -> Policy:
    """The controls w u_net + (1 − w) u_lin with the same w everywhere."""
    one, other = network(phi)(steps), linear(steps)
    return lambda t, x: share * one(t, x) + (1 - share) * other(t, x)


def averaged(phis: Sequence[Potential]) -> Make:
    """The feedback of the mean of several value functions."""

    def policy(t: Time, x: Tensor) -> Tensor:
        slope = torch.stack([phi.gradient(t, x).dx for phi in phis]).mean(0)
        return plans.QUAD.optimal_control(t, x, slope)

    return lambda steps: policy


def summed(phi: Potential, share: float, steps: int) -> Policy:
    """The feedback of w Φ + (1 − w) V with the quadratic form V along the plan."""
    along = plans.along(steps)

    def policy(t: Time, x: Tensor) -> Tensor:
        p = share * phi.gradient(t, x).dx + (1 - share) * along.slope(t, x)
        return plans.QUAD.optimal_control(t, x, p)

    return policy


def bounded(bound: float, steps: int) -> Policy:
    """The linear feedback whose correction of the plan is at most `bound` long."""
    along, free = plans.along(steps), linear(steps)

    def policy(t: Time, x: Tensor) -> Tensor:
        planned = along.u[round(float(t) * steps)]
        change = free(t, x) - planned
        return planned + change * (bound / change.norm(dim=1, keepdim=True)).clamp(max=1)

    return policy


def chosen(store: Store, fitted: Sequence[Fitted]) -> dict[str, dict[str, float]]:
    """The mean log cost of each candidate, in winds that no reported flight meets."""
    smoke = store.run == "smoke"
    conditions, flights = ((0.2, 50),) if smoke else TRIALS, 4 if smoke else TRIED

    def score(make: Make) -> float:
        """Of costs up to a million: more is a crash, however fast."""
        logs = []
        for sigma, steps in conditions:
            costs = fly(make(steps), sigma, steps, flights, seed=TRIAL_WINDS)
            logs.append(math.log(float(costs.clamp(max=1e6).mean())))
        return round(sum(logs) / len(logs), 5)

    def over(make: Mixed, values: Sequence[float]) -> dict[str, float]:
        """The mean over networks, for each of the values."""
        scores = {v: [score(partial(make, f.phi, v)) for f in fitted] for v in values}
        return {f"{v:g}": sum(row) / len(row) for v, row in scores.items()}

    def compute() -> dict[str, dict[str, float]]:
        return {
            "blend": over(blended, RADII),
            "share": over(shared, SHARES),
            "sum": over(summed, SHARES),
            "bound": {f"{b:g}": score(partial(bounded, b)) for b in BOUNDS},
        }

    key = {"radii": RADII, "shares": SHARES, "bounds": BOUNDS, "flights": TRIED}
    key |= {"winds": TRIAL_WINDS, "weights": [f.record.weights for f in fitted]}
    return store.measure("blends", key, compute).numbers


def best_of(scores: dict[str, float]) -> float:
    """The candidate with the least score."""
    return float(min(scores, key=lambda name: scores[name]))
