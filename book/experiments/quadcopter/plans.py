"""The best flights without wind, and the feedback of a second-order expansion along them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.func import hessian, jacrev, vmap

from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials.potential import Time
from ctdl_lib.problems import symbolic
from ctdl_lib.problems.vehicles import Quadcopter
from ctdl_lib.references.transcription import Plan, open_loop, refined, straight
from machinery.store import Store

STEPS = (50, 100, 200)
QUAD = Quadcopter(diffusion=0.2)
CALM = Quadcopter(diffusion=0.0)
SYMBOLS = symbolic.quadcopter(QUAD)
HOVER = torch.tensor([QUAD.gravity, 0.0, 0.0, 0.0], dtype=torch.float64)


def guess(steps: int, start: Tensor = QUAD.start) -> Plan:
    """The straight line at hovering thrust."""
    return straight(start, QUAD.target, HOVER, steps=steps)


@cache
def best(steps: int) -> Plan:
    """The best plan that is known: solved with 50 steps, and refined."""
    if steps == STEPS[0]:
        return open_loop(SYMBOLS, guess(steps))
    coarser = best(steps // 2) if steps in STEPS else best(STEPS[0])
    return open_loop(SYMBOLS, refined(coarser, steps=steps))


@cache
def trapped() -> Plan:
    """The local optimum that IPOPT finds from the straight line with 100 steps."""
    return open_loop(SYMBOLS, guess(100))


def plan_from(start: Tensor, steps: int = 100) -> Plan:
    """The better of two plans from another start: near the best one, and from a straight line."""
    near = best(steps)
    shift = (start - near.x[0]) * torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:, None]
    first = open_loop(SYMBOLS, Plan(near.x + shift, near.u, float("nan"), 0))
    coarse = open_loop(SYMBOLS, guess(STEPS[0], start))
    second = open_loop(SYMBOLS, refined(coarse, steps=steps))
    return min(first, second, key=lambda plan: plan.cost)


@dataclass(frozen=True)
class Expansion:
    """Plans of n flights, and the value function along them to second order.

    States x and slopes p are (steps + 1, n, 12), controls u (steps, n, 4), gains K (steps, n, 4,
    12), and curvatures P (steps + 1, n, 12, 12).
    """

    x: Tensor
    u: Tensor
    K: Tensor
    p: Tensor
    P: Tensor

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.u)

    def linear(self) -> Policy:
        """The policy u_k − K_k (x − x_k)."""

        def policy(t: Time, x: Tensor) -> Tensor:
            k = round(float(t) * self.steps)
            return self.u[k] - (self.K[k] @ (x - self.x[k])[:, :, None])[:, :, 0]

        return policy

    def slope(self, t: Time, x: Tensor) -> Tensor:
        """The gradient p_k + P_k (x − x_k) of the quadratic form at time t."""
        k = round(float(t) * self.steps)
        return self.p[k] + (self.P[k] @ (x - self.x[k])[:, :, None])[:, :, 0]

    def planned(self) -> Policy:
        """The plan itself, whatever the state: the open loop."""
        return lambda t, x: self.u[round(float(t) * self.steps)].expand(len(x), 4)


def expanded(plans: Sequence[Plan]) -> Expansion:
    """The expansion along plans with equal steps: Riccati's recursion, backward in time."""
    x = torch.stack([plan.x for plan in plans], 1)
    u = torch.stack([plan.u for plan in plans], 1)
    h, n = 1 / len(u), x.shape[1]
    eye = torch.eye(12, dtype=x.dtype)
    f = lambda x, u: CALM.drift(0.0, x[None], u[None])[0]  # noqa: E731
    force = lambda x, u, p: p @ f(x, u)  # noqa: E731
    slopes, curves = vmap(jacrev(f, (0, 1))), vmap(hessian(force, (0, 1)))
    P, p = CALM.weight * eye.expand(n, 12, 12), CALM.weight * (x[-1] - CALM.target)
    gains, all_P, all_p = [], [P], [p]
    for at, used in zip(x[:-1].flip(0), u.flip(0), strict=True):
        (fx, fu), second = slopes(at, used), curves(at, used, p)
        a, b = eye + h * fx, h * fu
        cross = b.mT @ P @ a + h * second[1][0]
        K = torch.linalg.solve(2 * h * torch.eye(4, dtype=x.dtype) + b.mT @ P @ b, cross)
        P = a.mT @ P @ a + h * second[0][0] - cross.mT @ K
        p = (a.mT @ p[:, :, None])[:, :, 0]
        gains, all_P, all_p = [*gains, K], [*all_P, P], [*all_p, p]
    K, p, P = (torch.stack(part[::-1]) for part in (gains, all_p, all_P))
    return Expansion(x, u, K, p, P)


@cache
def along(steps: int) -> Expansion:
    """The expansion along the best plan."""
    return expanded([best(steps)])


def kept(store: Store, steps: int = 100) -> dict[str, list]:
    """The states x, controls u and gains K along the best plan, as stored: six digits of each."""
    steps = STEPS[0] if store.run == "smoke" else steps

    def compute() -> dict[str, list]:
        found = along(steps)
        parts = {"x": found.x[:, 0], "u": found.u[:, 0], "K": found.K[:, 0]}
        return {name: [float(f"{v:.6g}") for v in x.flatten()] for name, x in parts.items()}

    return store.measure(f"along-{steps}", {"steps": steps}, compute).numbers
