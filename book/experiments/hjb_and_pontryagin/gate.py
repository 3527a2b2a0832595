"""Measurements on two agents and a gate: the undisturbed path, shocks, plans, and the kink."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctdl_lib.control import feedback
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import Potential
from ctdl_lib.references.transcription import Plan
from machinery import instruments
from machinery.store import Record, Store

from . import corridor, training
from .corridor import AT, GATE, NAMED, STEPS, SYMBOLS, Filtered
from .training import DOUBLE, seeds_of

SHOCKS, PLANS, SEED = 1000, 32, 7  # shocks of this seed; the first PLANS of them are planned again
SLOW = 5.0  # the rate of a filter that brakes early
ASIDE = 0.5  # by which the control of the kink is moved


class Shocks(NamedTuple):
    """What 1,000 shocks do to one network: collisions, costs in percent, least distance.

    `filter` is what the filter costs more, mean over shocks, and `slow` what a slower one does.
    `gap` is the cost of the filtered feedback over that of new plans, ratio of means, and `median`
    the median of the ratios.
    """

    plain: int
    filtered: int
    nearest: float
    filter: float
    slow: float
    gap: float
    median: float


class Named(NamedTuple):
    """The named shocks, with and without the filter: cost over that of a new plan, and distance."""

    ratio: float
    nearest: float
    filtered_ratio: float
    filtered_nearest: float


def fits(store: Store, seed: int = 0) -> list[tuple[Potential, Record]]:
    """The value functions of the gate, of three seeds."""
    return [
        training.fit(store, "gate", training.gate(), s, training.GATE)
        for s in seeds_of(store, seed, 3)
    ]


def policy_of(phi: Potential) -> Policy:
    """The feedback of a value function."""
    return feedback(GATE, phi)


def as_plan(numbers: dict[str, Any]) -> Plan:
    """The stored plan."""
    x, u = (torch.tensor(numbers[key], **DOUBLE) for key in ("x", "u"))
    return Plan(x, u, numbers["cost"], 0)


def best(store: Store) -> Plan:
    """The best plan of 200 steps, with six digits."""
    finer = 4

    def compute() -> dict[str, Any]:
        plan = corridor.best_plan(finer=finer)
        digits = {"x": plan.x, "u": plan.u}
        return {
            k: [[float(f"{v:.6g}") for v in row] for row in rows] for k, rows in digits.items()
        } | {"cost": plan.cost}

    return as_plan(store.measure("plan", {"steps": 50, "finer": finer}, compute).numbers)


def counts(store: Store) -> tuple[int, int]:
    """How many shocks there are, and for how many there is a new plan."""
    return (8, 1) if store.run == "smoke" else (SHOCKS, PLANS)


def shocked(store: Store, plan: Plan) -> tuple[Tensor, float]:
    """The states after the shocks that all are judged by, and the share that collide at once."""
    return corridor.shocked(plan, counts(store)[0], SEED)


def replanned(store: Store, plan: Plan, policies: list[Policy]) -> list[float]:
    """The costs of new plans after the first shocks, each the best of three guesses.

    The cheapest path of the filtered feedbacks is one of them.
    """
    few = counts(store)[1]

    def compute() -> dict[str, list[float]]:
        x = shocked(store, plan)[0][:few]
        found = [corridor.after(Filtered(policy), x) for policy in policies]
        cheapest = torch.stack([path.cost for path in found]).argmin(0).tolist()
        return {"costs": [replan(x[k], found[i].x[:, k]) for k, i in enumerate(cheapest)]}

    key = {"plans": few, "seed": SEED, "steps": 50, "finer": 2}
    return store.measure("replanned", key, compute).numbers["costs"]


def replan(x: Tensor, path: Tensor | None = None) -> float:
    """The cost of the best plan from the state x after a shock."""
    plan = corridor.planned(corridor.remaining(), x, path=path)
    return corridor.followed(plan, 1 - AT / STEPS)


def judge(
    store: Store, name: str, record: Record, policy: Policy, plan: Plan, costs: list[float]
) -> Shocks:
    """What shocks do to one network, with and without the filter."""
    x, _ = shocked(store, plan)

    def compute() -> dict[str, float]:
        plain, kept, slow = (
            corridor.after(p, x) for p in (policy, Filtered(policy), Filtered(policy, rate=SLOW))
        )
        again, few = torch.tensor(costs, **DOUBLE), kept.cost[: len(costs)]
        more = [100 * float(path.cost.mean() / plain.cost.mean() - 1) for path in (kept, slow)]
        return Shocks(
            int(plain.collides.sum()),
            int(kept.collides.sum()),
            float(kept.nearest.min()),
            more[0],
            more[1],
            100 * float(few.mean() / again.mean() - 1),
            100 * float((few / again).median() - 1),
        )._asdict()

    key = {"weights": record.weights, "shocks": len(x), "seed": SEED, "plans": len(costs)}
    key |= {"rate": corridor.RATE, "margin": corridor.MARGIN, "slow": SLOW}
    return Shocks(**store.measure(f"{name}-shocks", key, compute).numbers)


def named_plans(store: Store, plan: Plan) -> dict[str, float]:
    """The costs of new plans after the two published shocks of the best plan's path."""

    def compute() -> dict[str, float]:
        jumps = {name: torch.tensor(jump, **DOUBLE) for name, jump in NAMED.items()}
        return {name: replan(plan.x[AT] + jump) for name, jump in jumps.items()}

    return store.measure("named", {"shocks": NAMED, "steps": 50, "finer": 2}, compute).numbers


def named(plan: Plan, policies: list[Policy], again: dict[str, float]) -> dict[str, list[Named]]:
    """What the published shocks do to networks, one row a network."""
    table: dict[str, list[Named]] = {}
    for name, jump in NAMED.items():
        x = (plan.x[AT] + torch.tensor(jump, **DOUBLE))[None]
        for policy in policies:
            pair = [corridor.after(p, x) for p in (policy, Filtered(policy))]
            numbers = [(float(o.cost) / again[name], float(o.nearest)) for o in pair]
            table.setdefault(name, []).append(Named(*numbers[0], *numbers[1]))
    return table


def open_loop(
    plan: Plan, x: Tensor, costs: list[float], again: dict[str, float]
) -> dict[str, float]:
    """The cost when the old controls go on after a shock, over that of a new plan.

    For the named shocks, and as a ratio of means for the states x ("shocks").
    """
    jumps = torch.tensor(list(NAMED.values()), **DOUBLE)
    states = torch.cat([plan.x[AT] + jumps, x[: len(costs)]])
    old = corridor.after(continued(plan), states).cost.tolist()
    ratios = {name: old[k] / again[name] for k, name in enumerate(NAMED)}
    return ratios | {"shocks": sum(old[len(NAMED) :]) / sum(costs)}


def continued(plan: Plan) -> Policy:
    """The controls of a plan, whatever the state is."""
    last = len(plan.u) - 1
    return lambda t, x: plan.u[min(int(float(t) * STEPS + 1e-9), last)].expand(len(x), -1)


def kink(store: Store) -> dict[str, float]:
    """How much the costate jumps, relative, where one agent or the other may go first.

    Plans start a little to either side of the start, and of a start where one agent is ahead.
    """
    size = 0.005

    def jump(ahead: float) -> float:
        p = []
        for side in (-size, size):
            shift = torch.tensor([0.0, ahead + side, 0.0, -ahead - side], **DOUBLE)
            p.append(-corridor.planned(SYMBOLS, GATE.start + shift).u[0])
        return float((p[0] - p[1]).norm() / p[0].norm())

    def compute() -> dict[str, float]:
        return {"start": jump(0.0), "aside": jump(ASIDE)}

    return store.measure("kink", {"size": size, "aside": ASIDE}, compute).numbers


def clock(store: Store, policy: Policy, plan: Plan) -> dict[str, float]:
    """The milliseconds of one control, and of one plan."""
    x = GATE.start[None].float()
    rounds = 3 if store.run == "smoke" else 20

    def one() -> Tensor:
        return policy(0.1, x.double())

    def again() -> Plan:
        return corridor.open_loop(SYMBOLS, corridor.refined(plan, steps=50))

    def compute() -> dict[str, float]:
        times = instruments.interleaved_times({"feedback": one, "plan": again}, rounds=rounds)
        return {name: 1000 * seconds for name, seconds in times.items()}

    return store.measure("clock", {"steps": 50, "rounds": 20}, compute).numbers
