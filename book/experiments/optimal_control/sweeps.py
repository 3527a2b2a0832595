"""Successive approximations against gradient descent, Adam and L-BFGS, at equal work."""

from collections.abc import Callable, Iterator, Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from machinery.store import Store

from . import pontryagin, solvers
from .pontryagin import Sweep, TrainingProblem, objective, tanh_layer
from .principle import noise, pose

TUNED = (0, 1)  # seeds on which settings are chosen
BUDGET = 1440  # propagations: thirty sweeps of the extended method
CHOICES: dict[str, Sequence[float]] = {
    "plain MSA": (1.0,),
    "damped MSA": (0.01, 0.03, 0.1),
    "extended MSA": (1.0, 10.0, 100.0),
    "gradient descent": (0.03, 0.1, 0.3, 1.0),
    "Adam": (0.01, 0.03, 0.1, 0.3),
    "L-BFGS": (1.0,),
}
Curve = list[list[float]]


def curve_of(sweeps: Iterator[Sweep], budget: int) -> Curve:
    """The pairs (propagations so far, J before the sweep).

    A sweep propagates states and costates. An evaluation of all Hamiltonians and their gradients
    costs as much as two propagations, though its layers are independent of each other.
    """
    curve, work = [], 0
    for sweep in sweeps:
        curve.append([work, sweep.loss])
        work += 2 + 2 * sweep.evaluations
        if work >= budget:
            break
    return curve


def first_order(problem: TrainingProblem, theta: Tensor, rate: float | None, budget: int) -> Curve:
    """The pairs (propagations so far, J) of Adam with a constant rate, or of L-BFGS without one."""
    trial, curve = theta.clone().requires_grad_(), []
    optimizer: Any = (
        pontryagin.lbfgs([trial], budget // 2) if rate is None else torch.optim.Adam([trial], rate)
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        J = objective(problem, trial)
        J.backward()
        curve.append([2 * len(curve), J.item()])
        return J

    for _ in range(1 if rate is None else budget // 2):
        optimizer.step(closure)
    return curve[: budget // 2]


def run(method: str, setting: float, seed: int, budget: int) -> Curve:
    """One training of a ResNet of 16 layers."""
    problem, start = pose(tanh_layer, seed, 16, 5.0), noise(seed, 1).repeat(16, 1, 1)
    if method in ("Adam", "L-BFGS"):
        return first_order(problem, start, setting if method == "Adam" else None, budget)
    if method == "gradient descent":
        steps = budget // 2
        sweeps = solvers.gradient_descent(problem, start, sweeps=steps, rate=setting)
        return [[2 * k, sweep.loss] for k, sweep in enumerate(sweeps)]
    rho, damping = (setting, 1.0) if method == "extended MSA" else (0.0, setting)
    sweeps = pontryagin.msa(problem, start, sweeps=budget, rho=rho, damping=damping)
    return curve_of(sweeps, budget)


def lowest(curve: Curve, budget: float = inf) -> float:
    """The least J of a run within a budget of propagations."""
    return min(J for work, J in curve if work <= budget and isfinite(J))


FEW = 30  # sweeps, or gradients, for the comparison that does not count searches
BY_SWEEPS = ("damped MSA", "extended MSA", "gradient descent", "Adam")


def after(curve: Curve, sweeps: int = FEW) -> float:
    """The objective after some sweeps, or the last one known; searches are not counted."""
    return curve[min(sweeps, len(curve) - 1)][1]


def races(store: Store, seeds: Sequence[int]) -> dict[str, Any]:
    """The chosen settings, and the curves of all seeds by method, measured once."""
    budget = 60 if store.run == "smoke" else BUDGET

    def compute() -> dict[str, Any]:
        trials = {
            (method, setting): [run(method, setting, s, budget) for s in TUNED]
            for method, settings in CHOICES.items()
            for setting in settings[: 1 if store.run == "smoke" else None]
            if len(settings) > 1
        }

        def best(method: str, score: Callable[[Curve], float]) -> float:
            scores = {s: sum(map(score, c)) for (m, s), c in trials.items() if m == method}
            return min(scores, key=scores.__getitem__) if scores else CHOICES[method][0]

        chosen = {method: best(method, lowest) for method in CHOICES}
        curves = {m: [run(m, chosen[m], s, budget) for s in seeds] for m in CHOICES}
        few = {method: best(method, after) for method in BY_SWEEPS}
        ends = {
            m: [after(run(m, few[m], s, budget if "MSA" in m else 2 * FEW + 2)) for s in seeds]
            for m in BY_SWEEPS
        }
        return {"chosen": chosen, "curves": curves, "few": few, "ends": ends}

    settings = {"choices": {k: list(v) for k, v in CHOICES.items()}, "budget": BUDGET}
    settings |= {"tuned": list(TUNED), "seeds": list(seeds), "layers": 16, "inner": 20, "few": FEW}
    return store.measure("sweeps", settings, compute).numbers
