"""Successive approximations against gradient descent, Adam and L-BFGS, at equal work."""

from collections.abc import Callable, Iterator, Sequence
from math import inf, isfinite
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.problems.classification import ellipses
from machinery.store import Store

from . import pontryagin, solvers
from .pontryagin import Sweep, TrainingProblem, objective, tanh_layer
from .principle import GAIN, noise, pose

TUNED = (0, 1)  # seeds on which settings are chosen
BUDGET = 1440  # propagations: thirty sweeps of the extended method
CHOICES: dict[str, Sequence[tuple[float, int]]] = {  # settings, and iterations of a search
    "plain MSA": ((1.0, 20),),
    "damped MSA": tuple((d, n) for d in (0.03, 0.1, 0.3) for n in (2, 5, 20)),
    "extended MSA": tuple((rho, n) for rho in (0.3, 1.0, 10.0) for n in (2, 5, 20)),
    "gradient descent": tuple((rate, 0) for rate in (0.01, 0.03, 0.1, 0.3)),
    "Adam": tuple((rate, 0) for rate in (0.03, 0.1, 0.3)),
    "L-BFGS": ((1.0, 0),),
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


def run(method: str, setting: tuple[float, int], seed: int, budget: int) -> Curve:
    """One training of a ResNet of 16 layers."""
    problem, start = pose(tanh_layer, seed, 16, 5.0), noise(seed, 1).repeat(16, 1, 1)
    value = setting[0]
    if method in ("Adam", "L-BFGS"):
        return first_order(problem, start, value if method == "Adam" else None, budget)
    if method == "gradient descent":
        sweeps = solvers.gradient_descent(problem, start, sweeps=budget // 2, rate=value)
        return [[2 * k, sweep.loss] for k, sweep in enumerate(sweeps)]
    return curve_of(approximations(problem, start, method, setting, budget), budget)


def approximations(
    problem: TrainingProblem, start: Tensor, method: str, setting: tuple[float, int], sweeps: int
) -> Iterator[Sweep]:
    """The sweeps of plain, damped or extended MSA."""
    value, inner = setting
    rho, damping = (value, 1.0) if method == "extended MSA" else (0.0, value)
    how = {"rho": rho, "damping": damping, "iterations": inner}
    return pontryagin.msa(problem, start, sweeps=sweeps, **how)  # pyright: ignore[reportArgumentType]


def lowest(curve: Curve, budget: float = inf) -> float:
    """The least J of a run within a budget of propagations."""
    return min(J for work, J in curve if work <= budget and isfinite(J))


FEW = 30  # sweeps, or gradients, for the comparison that does not count searches


def after_sweeps(method: str, setting: tuple[float, int], seed: int, sweeps: int = FEW) -> float:
    """The least objective within some sweeps, or as many gradients; searches are not counted."""
    if "MSA" not in method:
        return lowest(run(method, setting, seed, 2 * sweeps + 2))
    problem, start = pose(tanh_layer, seed, 16, 5.0), noise(seed, 1).repeat(16, 1, 1)
    found = approximations(problem, start, method, setting, sweeps + 1)
    return min(J for sweep in found if isfinite(J := sweep.loss))


def accuracy(method: str, setting: tuple[float, int], seed: int, budget: int) -> float:
    """The validation accuracy in percent after successive approximations within a budget."""
    problem, theta = pose(tanh_layer, seed, 16, 5.0), noise(seed, 1).repeat(16, 1, 1)
    work, least, best = 0, inf, theta
    for sweep in approximations(problem, theta, method, setting, budget):
        if sweep.loss < least:
            least, best = sweep.loss, theta
        theta, work = sweep.theta, work + 2 + 2 * sweep.evaluations
        if work >= budget:
            break
    y, label = ellipses(seed, train=200).val
    u = y.double() @ torch.eye(2, 3, dtype=torch.float64)
    for theta_k in best:
        u = u + problem.h * tanh_layer(u, theta_k)
    return metrics.accuracy(GAIN * u[:, 2:], label)


def linear_accuracy(seed: int) -> float:
    """The control: the same for a logistic regression."""
    data = ellipses(seed, train=200)
    model = LogisticRegression().fit(data.train.y.numpy(), data.train.label.numpy())
    return 100 * float(model.score(data.val.y.numpy(), data.val.label.numpy()))


def races(store: Store, seeds: Sequence[int]) -> dict[str, Any]:
    """The chosen settings, and the curves of all seeds by method, measured once."""
    smoke = store.run == "smoke"
    budget, few = (60, 2) if smoke else (BUDGET, FEW)

    def compute() -> dict[str, Any]:
        def best(method: str, score: Callable[[tuple[float, int], int], float]) -> Any:
            options = CHOICES[method][: 1 if smoke else None]
            if len(options) == 1:
                return options[0]
            return min(options, key=lambda option: sum(score(option, s) for s in TUNED))

        chosen = {m: best(m, lambda o, s, m=m: lowest(run(m, o, s, budget))) for m in CHOICES}
        fewest = {m: best(m, lambda o, s, m=m: after_sweeps(m, o, s, few)) for m in CHOICES}
        return {
            "chosen": chosen,
            "curves": {m: [run(m, chosen[m], s, budget) for s in seeds] for m in CHOICES},
            "few": fewest,
            "ends": {m: [after_sweeps(m, fewest[m], s, few) for s in seeds] for m in CHOICES},
            "accuracies": {
                m: [accuracy(m, chosen[m], s, budget) for s in seeds]
                for m in ("damped MSA", "extended MSA")
            },
        }

    settings = {"choices": {k: [list(o) for o in v] for k, v in CHOICES.items()}}
    settings |= {"budget": BUDGET, "tuned": list(TUNED), "seeds": list(seeds), "few": FEW}
    return store.measure("sweeps", settings, compute).numbers
