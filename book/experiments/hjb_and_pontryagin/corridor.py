"""Two agents and a gate: shocks, collisions, plans, and a filter that keeps the agents apart."""

from typing import NamedTuple

import torch
from torch import Tensor

from ctdl_lib.control import rollout
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials.potential import Time
from ctdl_lib.problems import symbolic
from ctdl_lib.problems.vehicles import Corridor
from ctdl_lib.references.transcription import Plan, PlanError, SymbolicProblem, open_loop, refined
from machinery.seeds import seeded

from .training import DOUBLE

GATE = Corridor()
SYMBOLS = symbolic.corridor(GATE)
AT, STEPS = 20, 200  # the step of the shock, at t = 0.1
SIZE = 3.0  # shocks are uniform in ±SIZE
NAMED = {"minor": (-0.2, -0.7, 0.0, -0.6), "major": (-1.4, -1.0, -5.2, -2.8)}
RATE, MARGIN = 50.0, 0.01  # of the filter, chosen with shocks of seed 1


def contact() -> float:
    """The distance below which the agents collide."""
    return 2 * GATE.radius


class Filtered:
    """The policy nearest to a given one with ḣ ≥ −c h, where h = ‖x₁ − x₂‖² − r².

    It is u + a max(0, −c h − aᵀu)/‖a‖² with the gradient a of h. So h > 0 is kept. The distance r
    is that of contact and a small margin.
    """

    def __init__(self, policy: Policy, rate: float = RATE, margin: float = MARGIN):
        self.policy, self.rate, self.margin = policy, rate, margin

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """The control at (t, x)."""
        u, apart = self.policy(t, x), x[:, :2] - x[:, 2:]
        h = apart.square().sum(1) - (contact() + self.margin) ** 2
        a = 2 * torch.cat([apart, -apart], 1)
        lacking = (-self.rate * h - (a * u).sum(1)).clamp(min=0)
        return u + (lacking / a.square().sum(1).clamp(min=1e-9))[:, None] * a


class Outcome(NamedTuple):
    """Paths after shocks: their states (nodes, shocks, 4), costs, and least distances."""

    x: Tensor
    cost: Tensor
    nearest: Tensor

    @property
    def collides(self) -> Tensor:
        """Whether the agents collide."""
        return self.nearest < contact()


def undisturbed(policy: Policy) -> Outcome:
    """The path from the start."""
    path = rollout(GATE, policy, GATE.start[None], steps=STEPS, method="rk4")
    return _outcome(path.x, path.cost)


def after(policy: Policy, x: Tensor) -> Outcome:
    """The paths from the states x just after a shock at t = 0.1 on."""
    at = AT / STEPS
    rest = Corridor(horizon=1 - at)
    path = rollout(rest, lambda t, x: policy(t + at, x), x, steps=STEPS - AT, method="rk4")
    return _outcome(path.x, path.cost)


def _outcome(x: Tensor, cost: Tensor) -> Outcome:
    nearest = torch.stack([GATE.distance(nodes) for nodes in x]).amin(0)
    return Outcome(x, cost, nearest)


def shocks(count: int, seed: int) -> Tensor:
    """Jumps of the state, uniform in ±3 in each of its four entries."""
    return SIZE * (2 * torch.rand(count, 4, generator=seeded(seed), **DOUBLE) - 1)


def shocked(best: Plan, count: int, seed: int) -> tuple[Tensor, float]:
    """States just after shocks of the best plan's path, and the share of shocks that collide.

    Such a shock moves the agents into each other at once, which no policy can prevent. It is left
    out, and another one is drawn.
    """
    x = best.x[AT] + shocks(2 * count, seed)
    free = GATE.distance(x) >= contact() + MARGIN
    return x[free][:count], 1 - float(free.double().mean())


def planned(
    problem: SymbolicProblem,
    x: Tensor,
    *,
    steps: int = 50,
    finer: int = 2,
    path: Tensor | None = None,
) -> Plan:
    """The best of two plans, one or the other agent first; with a path, of three.

    The third starts from that path, which is a feedback's, so that a plan is rarely worse.

    Raises:
        PlanError: IPOPT finds none.
    """
    share = torch.linspace(0, 1, steps + 1, **DOUBLE)[:, None]
    ways = []
    for a, b in ((0.6, 1.6), (1.6, 0.6)):
        one, other = (x + (GATE.target - x) * share**c for c in (a, b))
        ways.append(torch.cat([one[:, :2], other[:, 2:]], 1))
    if path is not None:
        kept = torch.linspace(0, len(path) - 1, steps + 1).round().long()
        ways.append(path[kept])
    plans = []
    for way in ways:
        rate = way.diff(dim=0) * steps / problem.horizon
        try:
            coarse = open_loop(problem, Plan(way, rate, 0.0, 0))
            plans.append(open_loop(problem, refined(coarse, steps=finer * steps)))
        except PlanError:
            continue
    if not plans:
        raise PlanError("IPOPT found no plan from any guess")
    return min(plans, key=lambda plan: plan.cost)


def remaining() -> SymbolicProblem:
    """The problem from the shock on."""
    return SYMBOLS._replace(horizon=1 - AT / STEPS)


def best_plan(*, finer: int = 4) -> Plan:
    """The best plan from the start, of 50 times `finer` steps."""
    return planned(SYMBOLS, GATE.start, finer=finer)


def followed(plan: Plan, duration: float) -> float:
    """The cost of a plan, integrated as that of a feedback is, and not by Euler's method."""
    problem, n = Corridor(horizon=duration), len(plan.u)

    def policy(t: Time, x: Tensor) -> Tensor:
        k = min(int(float(t) / duration * n + 1e-9), n - 1)
        return plan.u[k].expand(len(x), -1)

    path = rollout(problem, policy, plan.x[:1], steps=n, method="euler_maruyama")
    # controls are constant and paths straight within a step, so Simpson's rule needs no more nodes
    h, x, costs = duration / n, path.x[:, 0], problem.running_cost
    ends = (x[:-1], (x[:-1] + x[1:]) / 2, x[1:])
    left, middle, right = (costs(0.0, at, plan.u) for at in ends)
    return float((h / 6 * (left + 4 * middle + right)).sum() + problem.terminal_cost(x[-1:])[0])
