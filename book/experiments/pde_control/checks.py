"""How exact the solver is: orders in space and time, the gradient, and finer meshes."""

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.control import rollout
from machinery.seeds import seeded

from . import finite_elements
from .learners import STEPS, draw
from .mitigation import SourceMitigation, best_openings
from .networks import Policy

PI = math.pi
SWIRL = (
    lambda x, y: np.sin(PI * x) * np.cos(PI * y),
    lambda x, y: -np.cos(PI * x) * np.sin(PI * y),
)


def wave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The manufactured solution w."""
    return np.cos(PI * x) * np.cos(2 * PI * y)


def balance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What holds the wave still: −0.1 Δw + v·∇w."""
    along = -PI * np.sin(PI * x) * np.cos(2 * PI * y)
    across = -2 * PI * np.cos(PI * x) * np.sin(2 * PI * y)
    carried = SWIRL[0](x, y) * along + SWIRL[1](x, y) * across
    return 0.5 * PI**2 * wave(x, y) + carried


def _matrices(nodes: int) -> tuple[Any, Any, Any, np.ndarray]:
    basis = finite_elements.square(nodes)
    A = finite_elements.advection_diffusion(basis, 0.1, SWIRL)
    return basis, finite_elements.mass(basis), A, wave(*basis.doflocs)


def _distance(M: Any, u: np.ndarray, w: np.ndarray) -> float:
    return math.sqrt((u - w) @ (M @ (u - w)))


def error_in_space(nodes: int) -> float:
    """The L² error of the steady solution of w + Aw = b."""
    basis, M, A, w = _matrices(nodes)
    b = finite_elements.load(basis, lambda x, y: wave(x, y) + balance(x, y))
    solve = finite_elements.LinearSystems([M + A])
    return _distance(M, solve(torch.from_numpy(b)[None])[0].numpy(), w)


def error_in_time(steps: int) -> float:
    """The L² error of the decay e⁻ᵗw of the discrete wave at t = 1."""
    _, M, A, w = _matrices(17)
    step, u = 1 / steps, w
    solve = finite_elements.LinearSystems([M + step * A])
    for k in range(1, steps + 1):
        b = M @ u + step * math.exp(-k * step) * (A @ w - M @ w)
        u = solve(torch.from_numpy(b)[None])[0].numpy()
    return _distance(M, u, math.exp(-1) * w)


def orders() -> dict[str, float]:
    """The observed orders in space and in time, each from its two finest runs."""
    space = [error_in_space(n) for n in (33, 65)]
    clock = [error_in_time(n) for n in (80, 160)]
    return {
        "space": metrics.observed_orders(space, [1 / 32, 1 / 64])[-1],
        "time": metrics.observed_orders(clock, [1 / 80, 1 / 160])[-1],
    }


def opened(a: Tensor) -> Policy:
    """The policy of fixed controls (batch, steps)."""
    steps = a.shape[1]
    return lambda t, x: a[:, round(steps * float(t))].view(-1, 1)


def total_cost(problem: SourceMitigation, a: Tensor) -> Tensor:
    """The cost of fixed controls, summed over the basins."""
    return rollout(problem, opened(a), problem.start, steps=problem.steps).cost.sum()


def gradient_error(seed: int = 0) -> float:
    """The relative error of a slope of the cost, against a central difference.

    The cost is a quadratic in the controls, so the difference has no error but round-off.
    """
    problem = draw(4, seed + 5)
    a, da = torch.rand(2, 4, STEPS, generator=seeded(seed), dtype=torch.float64)
    (slope,) = torch.autograd.grad(total_cost(problem, a.requires_grad_()), a)
    with torch.no_grad():
        central = (total_cost(problem, a + 0.1 * da) - total_cost(problem, a - 0.1 * da)) / 0.2
    return abs(float((slope * da).sum() / central) - 1)


def quasi_newton(problem: SourceMitigation) -> tuple[Tensor, float]:
    """The plan (batch, 25) that L-BFGS finds, and its mean cost."""

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        a = torch.from_numpy(flat).view(-1, STEPS).requires_grad_()
        cost = total_cost(problem, a)
        cost.backward()
        assert a.grad is not None
        return float(cost.detach()), a.grad.numpy().ravel()

    n = STEPS * len(problem.source)
    how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "bounds": [(0, None)] * n}
    found = minimize(both, np.full(n, 0.5), options={"ftol": 1e-10}, **how)
    return torch.from_numpy(found.x).view(-1, STEPS), found.fun / len(problem.source)


def refined(seed: int = 0) -> dict[str, float]:
    """The mean of four least costs on a finer mesh, and with shorter steps."""
    basins, found = draw(4, seed + 77).basins, {}
    for nodes, steps in ((17, 25), (33, 25), (17, 50), (33, 50)):
        problem = SourceMitigation(basins, nodes=nodes, steps=steps)
        found[f"{nodes} nodes, {steps} steps"] = float(best_openings(problem).cost.mean())
    return found
