"""The costs of all controllers in common winds, and under disturbances that none was told of."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.control import feedback, rollout
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import Potential
from ctdl_lib.references.transcription import Plan, Replanner
from machinery.seeds import seeded
from machinery.store import Store

from . import plans
from .disturbances import Disturbed, sideways
from .training import starts

SIGMAS = (0.0, 0.1, 0.2, 0.4)
CONDITIONS = tuple((sigma, steps) for sigma in SIGMAS for steps in plans.STEPS)
FLIGHTS, MOST = 600, 2000
WINDS = 50  # the seed of the winds; settings of controllers were chosen in winds of seed 40
FINEST = plans.STEPS[-1]
AT = (0.2, 100)  # where disturbances are added
DISTURBANCES = ("none", "gust", "mass", "rotor", "starts")
MPC_FLIGHTS = {50: 64, 100: 128}  # by steps: a new plan takes long
MPC_DISTURBED, OWN_PLANS = 24, 24
MPC_CONDITIONS = tuple(c for c in CONDITIONS if not c[0] or (c[0] > 0.1 and c[1] < FINEST))
MPC_SCENES = ("gust",)
MPC_MEANS = ((0.0, 100), (0.1, 100), (0.2, 50), (0.2, 100), (0.2, 200), (0.4, 100))
FIRST = 64  # flights behind these means

Conditions = tuple[tuple[float, int], ...]
Costs = dict[str, list[float]]  # one a flight, by condition
Make = Callable[[int], Policy]  # the number of steps ↦ a policy


@cache
def gusts(seed: int) -> Tensor:
    """Brownian increments of 200 steps for 2,000 flights, (200, 2000, 12)."""
    drawn = torch.randn(FINEST, MOST, 12, generator=seeded(seed), dtype=torch.float64)
    return drawn / math.sqrt(FINEST)


def wind(steps: int, flights: int, seed: int = WINDS) -> Tensor:
    """The same Brownian paths with fewer steps, (steps, flights, 12)."""
    fine = gusts(seed)[:, :flights]
    return fine.view(steps, FINEST // steps, flights, 12).sum(1)


def fly(
    policy: Policy,
    sigma: float,
    steps: int,
    flights: int = FLIGHTS,
    *,
    problem: Disturbed | None = None,
    x: Tensor | None = None,
    seed: int = WINDS,
) -> Tensor:
    """The cost of each flight; without wind all flights are one."""
    flights = flights if sigma else 1
    problem = problem or Disturbed(sigma)
    x = plans.QUAD.start.expand(flights, 12) if x is None else x[:flights]
    noise: dict[str, Any] = {"dW": wind(steps, flights, seed)} if sigma else {}
    return rollout(problem, policy, x, steps=steps, **noise).cost


def rounded(costs: Tensor) -> list[float]:
    """The costs to the next tenth, far below a standard error, to store them."""
    return costs.round(decimals=1).tolist()


def network(phi: Potential) -> Make:
    """The feedback of a value function, whatever the number of steps."""
    return lambda steps: feedback(plans.QUAD, phi)


def linear(steps: int) -> Policy:
    """The linear feedback along the best plan."""
    return plans.along(steps).linear()


def open_loop(steps: int) -> Policy:
    """The best plan, whatever happens."""
    return plans.along(steps).planned()


def quadratic(steps: int) -> Policy:
    """The feedback of the quadratic form along the best plan."""
    expansion = plans.along(steps)
    return lambda t, x: plans.QUAD.optimal_control(t, x, expansion.slope(t, x))


def conditions_of(store: Store, wanted: Conditions) -> Conditions:
    """The winds and numbers of steps in which MPC flies; in a trial run the cheapest."""
    return ((0.0, 50), (0.2, 50)) if store.run == "smoke" else wanted


def name_of(sigma: float, steps: int) -> str:
    """The name of a condition."""
    return f"{sigma:g} {steps}"


def contest(
    store: Store, name: str, make: Make, conditions: Conditions = CONDITIONS, **key: Any
) -> Costs:
    """The costs of a controller under all conditions, or some of them."""
    key |= {"conditions": [list(c) for c in conditions], "flights": FLIGHTS, "winds": WINDS}
    flights = 4 if store.run == "smoke" else FLIGHTS

    def compute() -> Costs:
        return {name_of(s, n): rounded(fly(make(n), s, n, flights)) for s, n in conditions}

    return store.measure(f"flown-{name}", key, compute).numbers


@cache
def planner(steps: int) -> Replanner:
    """Model predictive control from the start, whose solvers take long to set up."""
    return Replanner(plans.SYMBOLS, plans.best(steps))


def replanned(store: Store) -> Costs:
    """The costs of model predictive control, of fewer flights: the first ones."""
    found: Costs = {}
    for sigma, steps in conditions_of(store, MPC_CONDITIONS):
        if not sigma:  # a new plan from a state of the best plan is the rest of this plan
            found[name_of(sigma, steps)] = [round(plans.best(steps).cost, 1)]
            continue
        flights = 2 if store.run == "smoke" else MPC_FLIGHTS[steps]
        key = {"sigma": sigma, "steps": steps, "flights": MPC_FLIGHTS[steps], "winds": WINDS}

        def compute(sigma: float = sigma, steps: int = steps, flights: int = flights) -> Costs:
            return {"costs": rounded(fly(planner(steps), sigma, steps, flights))}

        name = f"mpc-{sigma:g}-{steps}"
        found[name_of(sigma, steps)] = store.measure(name, key, compute).numbers["costs"]
    return found


def mean_costs_of_mpc(store: Store) -> dict[str, dict[str, float]]:
    """Mean and deviation of the first flights of model predictive control, also with 200 steps."""
    conditions = ((0.2, 50),) if store.run == "smoke" else MPC_MEANS
    flights = 2 if store.run == "smoke" else FIRST

    def compute() -> dict[str, dict[str, float]]:
        found = {}
        for sigma, steps in conditions:
            costs = fly(planner(steps), sigma, steps, flights)
            spread = float(costs.std(correction=0))
            found[f"{sigma} {steps}"] = {"mean": float(costs.mean()), "std": spread}
        return found

    key = {"conditions": [list(c) for c in MPC_MEANS], "flights": FIRST, "gusts": WINDS}
    found = store.measure("mpc", key, compute).numbers
    return {name_of(sigma, steps): found[f"{sigma} {steps}"] for sigma, steps in conditions}


# --- disturbances -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A disturbance: the true quadcopter and the true starts of the flights."""

    problem: Disturbed
    x: Tensor


def scene(name: str, flights: int = FLIGHTS) -> Scene:
    """One of `DISTURBANCES`; the first flights are the same, however many there are."""
    x, sigma = plans.QUAD.start.expand(flights, 12), AT[0]
    if name == "starts":
        drawn = starts(MOST, seeded(WINDS + 10), dtype=torch.float64)
        return Scene(Disturbed(sigma), drawn[:flights])
    how: dict[str, dict[str, Any]] = {
        "none": {},
        "gust": {"gust": sideways(MOST, seeded(WINDS + 11))[:flights]},
        "mass": {"mass": 1.2},
        "rotor": {"loss": 0.15},
    }
    return Scene(Disturbed(sigma, **how[name]), x)


def steps_of(store: Store) -> int:
    """The number of steps of flights with disturbances; in a trial run fewer."""
    return plans.STEPS[0] if store.run == "smoke" else AT[1]


def disturbed_costs(policy: Policy, name: str, steps: int, flights: int) -> Tensor:
    """The costs of flights with a disturbance."""
    at = scene(name, flights)
    return fly(policy, AT[0], steps, flights, problem=at.problem, x=at.x)


def disturbed(store: Store, name: str, make: Make, **key: Any) -> Costs:
    """The costs of a controller with each disturbance."""
    flights, steps = 8 if store.run == "smoke" else FLIGHTS, steps_of(store)

    def compute() -> Costs:
        return {d: rounded(disturbed_costs(make(steps), d, steps, flights)) for d in DISTURBANCES}

    key |= {"disturbances": list(DISTURBANCES), "flights": FLIGHTS, "winds": WINDS}
    return store.measure(f"disturbed-{name}", key, compute).numbers


def own_plans(flights: int, steps: int) -> list[Plan]:
    """A plan from the start of each flight of the scene "starts"."""
    return [plans.plan_from(x, steps) for x in scene("starts", flights).x]


def planned_anew(store: Store) -> list[float]:
    """From other starts: the linear feedback along a plan of its own for each flight."""
    flights, steps = 2 if store.run == "smoke" else OWN_PLANS, steps_of(store)

    def compute() -> Costs:
        along = plans.expanded(own_plans(flights, steps))
        return {"linear": rounded(disturbed_costs(along.linear(), "starts", steps, flights))}

    key = {"flights": OWN_PLANS, "winds": WINDS}
    return store.measure("own-plans", key, compute).numbers["linear"]


def replanned_disturbed(store: Store) -> Costs:
    """The costs of model predictive control with some disturbances, of fewer flights."""
    flights, steps = 2 if store.run == "smoke" else MPC_DISTURBED, steps_of(store)
    found: Costs = {}
    for name in MPC_SCENES:

        def compute(name: str = name) -> Costs:
            return {"costs": rounded(disturbed_costs(planner(steps), name, steps, flights))}

        key = {"disturbance": name, "flights": MPC_DISTURBED, "winds": WINDS}
        found[name] = store.measure(f"mpc-{name}", key, compute).numbers["costs"]
    return found
