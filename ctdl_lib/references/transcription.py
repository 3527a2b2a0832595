"""Direct transcription of deterministic control problems with CasADi, solved by IPOPT."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import guard
from ..extras import needed

ca = needed("casadi", "control")

QUIET = {"ipopt.print_level": 0, "print_time": False, "ipopt.sb": "yes"}


Symbol = Any  # casadi.SX, which has no types


class SymbolicProblem(NamedTuple):
    """A deterministic control problem as functions of CasADi symbols x (d, 1) and u (m, 1).

    `constraint` x ↦ c requires c ≥ 0 at all nodes after the first.
    """

    d: int
    m: int
    drift: Callable[[Symbol, Symbol], Symbol]
    running_cost: Callable[[Symbol, Symbol], Symbol]
    terminal_cost: Callable[[Symbol], Symbol]
    constraint: Callable[[Symbol], Symbol] | None = None
    horizon: float = 1.0


class Plan(NamedTuple):
    """The states at the nodes, the control of each step, the cost, and IPOPT's iterations."""

    x: Float[Tensor, "nodes d"]
    u: Float[Tensor, "steps m"]
    cost: float
    iterations: int


class PlanError(ArithmeticError):
    """IPOPT did not find an optimum."""


def straight(
    x0: Float[Tensor, " d"], x1: Float[Tensor, " d"], u: Float[Tensor, " m"], *, steps: int
) -> Plan:
    """A plan with states on the straight line from x₀ to x₁ and a constant control, as a guess."""
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None]
    x0, x1, u = (torch.as_tensor(part, dtype=torch.float64) for part in (x0, x1, u))
    return Plan((1 - share) * x0 + share * x1, u.expand(steps, -1), float("nan"), 0)


def refined(plan: Plan, *, steps: int) -> Plan:
    """The plan with another number of steps, as a guess on a finer grid.

    States are interpolated linearly; controls are constant between the old nodes.
    """
    nodes, middles = (np.linspace(0, 1, n + 1) for n in (len(plan.u), steps))
    x = [np.interp(middles, nodes, column) for column in plan.x.numpy().T]
    held = np.minimum((middles[:-1] * len(plan.u)).astype(int), len(plan.u) - 1)
    return Plan(torch.from_numpy(np.stack(x, 1)), plan.u[held], float("nan"), 0)


def open_loop(
    problem: SymbolicProblem,
    guess: Plan,
    *,
    method: Literal["euler", "rk4"] = "euler",
) -> Plan:
    """The minimiser of Σ h L(xₖ, uₖ) + G(x_N) over controls that are constant on each step.

    The paths start from the first state of the guess. The minimum is local: another guess may lead
    to a smaller one.

    Raises:
        ValueError: `method` is unknown.
        PlanError: IPOPT does not succeed.

    Reference: betts2010practical; andersson2019casadi.
    """
    if method not in ("euler", "rk4"):
        raise ValueError(f'method must be "euler" or "rk4", got {method!r}')
    steps = len(guess.u)
    plan, status = _solve(_transcribed(problem, steps, problem.horizon, method), problem, guess)
    if status != "Solve_Succeeded":
        raise PlanError(f"IPOPT ended with {status}; start from another guess or a coarser grid")
    return plan


class Replanner:
    """Model predictive control: a policy (t, x) ↦ u that solves for a new plan at every step.

    Each sample has its own plan, and the remainder of the last plan is the guess for the next. If
    IPOPT fails, the remainder is used instead, and `failures` is increased.

    Args of the constructor: the `problem`; the `plan` from the common start of all paths, with as
    many steps as the paths.
    """

    def __init__(self, problem: SymbolicProblem, plan: Plan):
        self.problem, self.plan, self.steps = problem, plan, len(plan.u)
        self.solvers: dict[int, Any] = {}
        self.plans: list[Plan] = []
        self.failures = 0

    def __call__(self, t: float | Tensor, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch m"]:
        """The first control of each sample's plan from (t, x) to the final time.

        Raises:
            ValueError: the times of the calls are not those of the steps of the plan.
        """
        k = round(float(t) / self.problem.horizon * self.steps)
        if k == 0:
            self.plans = [self.plan] * len(x)
        elif not self.plans or k >= self.steps or len(self.plans[0].u) != self.steps - k + 1:
            raise ValueError(
                f"t={float(t):.6g} is not the next of {self.steps} steps: start the paths at 0 and"
                " give them as many steps as the plan"
            )
        else:
            self.plans = [self._replan(k, *pair) for pair in zip(x, self.plans, strict=True)]
        return torch.stack([plan.u[0] for plan in self.plans]).to(x)

    def _replan(self, k: int, x: Tensor, last: Plan) -> Plan:
        if k not in self.solvers:
            rest = self.steps - k
            left = self.problem.horizon * rest / self.steps
            self.solvers[k] = _transcribed(self.problem, rest, left, "euler")
        start = torch.cat([x[None].double(), last.x[2:]])
        shifted = Plan(start, last.u[1:], float("nan"), 0)
        plan, status = _solve(self.solvers[k], self.problem, shifted)
        self.failures += status != "Solve_Succeeded"
        return plan if status == "Solve_Succeeded" else shifted


def _transcribed(problem: SymbolicProblem, steps: int, duration: float, method: str) -> Any:
    """The nonlinear programme over all states and controls, with the first state as parameter."""
    h = duration / steps
    X = ca.SX.sym("X", problem.d, steps + 1)  # pyright: ignore
    U = ca.SX.sym("U", problem.m, steps)  # pyright: ignore
    start = ca.SX.sym("start", problem.d)  # pyright: ignore
    cost, defects = problem.terminal_cost(X[:, -1]), [X[:, 0] - start]
    for k in range(steps):
        x, u = X[:, k], U[:, k]
        defects.append(X[:, k + 1] - _step(problem, x, u, h, method))
        cost += h * problem.running_cost(x, u)
    if problem.constraint is not None:
        defects += [problem.constraint(X[:, k]) for k in range(1, steps + 1)]
    unknowns = ca.vertcat(ca.vec(X), ca.vec(U))
    programme = {"x": unknowns, "p": start, "f": cost, "g": ca.vertcat(*defects)}
    return ca.nlpsol("plan", "ipopt", programme, QUIET)


def _step(problem: SymbolicProblem, x: Symbol, u: Symbol, h: float, method: str) -> Symbol:
    k1 = problem.drift(x, u)
    if method == "euler":
        return x + h * k1
    k2 = problem.drift(x + h / 2 * k1, u)
    k3 = problem.drift(x + h / 2 * k2, u)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + problem.drift(x + h * k3, u))


def _solve(solver: Any, problem: SymbolicProblem, guess: Plan) -> tuple[Plan, str]:
    steps, d = len(guess.u), problem.d
    first = np.concatenate([guess.x.numpy().ravel(), guess.u.numpy().ravel()])
    bound = np.zeros(solver.size1_in("lbg"))
    above = bound.copy()
    above[d * (steps + 1) :] = np.inf
    with contextlib.suppress(RuntimeError):  # reported by the status
        solution = solver(x0=first, p=guess.x[0].numpy(), lbg=bound, ubg=above)
        found = torch.from_numpy(np.array(solution["x"]).ravel())
        x, u = found[: d * (steps + 1)].reshape(-1, d), found[d * (steps + 1) :].reshape(steps, -1)
        stats = solver.stats()
        return Plan(x, u, float(solution["f"]), stats["iter_count"]), stats["return_status"]
    return guess, "Error"


guard(__name__)
