"""Pontryagin's principle at trained networks: gaps, kicks, limits of many layers, step sizes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ctdl_lib import metrics
from ctdl_lib.networks import resnets
from ctdl_lib.problems.classification import ellipses
from machinery.store import Store

from . import pontryagin, solvers
from .pontryagin import Field, TrainingProblem, linear_layer, tanh_layer

SEEDS = (20, 21, 22, 23, 24)
SPENT = 4000  # evaluations of J, or of all Hamiltonians, to improve a trained network
Propose = Callable[[TrainingProblem, Tensor, int], tuple[Tensor, int]]
KICKED = 6  # layers; of 1, 3 and 6 the best on seeds 0 to 2
GAIN = 10.0  # W = (0, 0, 10)
FIELDS: dict[str, Field] = {"tanh": tanh_layer, "linear": linear_layer}


def pose(
    field: Field, seed: int, layers: int, horizon: float, alpha: float = 0.1
) -> TrainingProblem:
    """The problem of the chapter: ellipses in ℝ³, a fixed readout, and L = α/2 ‖θ‖²."""
    y, label = ellipses(seed, train=200).train
    u0, target = y.double() @ torch.eye(2, 3, dtype=torch.float64), label.double()
    entropy = functional.binary_cross_entropy_with_logits
    return TrainingProblem(
        field,
        u0,
        horizon / layers,
        lambda u: entropy(GAIN * u[:, 2], target, reduction="none"),
        lambda theta: alpha / 2 * theta.square().sum(),
    )


def noise(seed: int, layers: int, scale: float = 0.5) -> Tensor:
    """Random controls (layers, 3, 4)."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(layers, 3, 4, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Judged:
    """A control: its objective, the gap to the least Hamiltonians found, and all Hamiltonians.

    `spread` is (max H − min H)/max |H|, and `gradient` the largest ‖∂H/∂θₖ‖.
    """

    J: float
    gap: float
    H: list[float]
    spread: float
    gradient: float


def others(theta: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Four further starts for the search of least Hamiltonians."""
    shifted = theta.roll(1, 0), theta.roll(-1, 0)
    return (noise(seed, len(theta), 1.0), noise(seed + 50, len(theta), 2.0), *shifted)


def judge(problem: TrainingProblem, theta: Tensor, seed: int | None = None) -> Judged:
    """What Pontryagin's principle says of a control; without a seed from one start only."""
    starts = () if seed is None else others(theta, seed)
    H, gap, gradient = pontryagin.residual(problem, theta, starts)
    return Judged(
        pontryagin.objective(problem, theta).item(),
        problem.steps(theta).dot(gap).item(),
        H.tolist(),
        ((H.max() - H.min()) / H.abs().max()).item(),
        gradient.max().item(),
    )


class Counter:
    """A problem that counts how often its objective is evaluated."""

    def __init__(self, problem: TrainingProblem):
        self.evaluations = 0

        def counted(u: Tensor) -> Tensor:
            self.evaluations += 1
            return problem.terminal_cost(u)

        self.problem = replace(problem, terminal_cost=counted)


def improve(
    problem: TrainingProblem,
    theta: Tensor,
    seed: int,
    propose: Propose,
    *,
    budget: int,
    iterations: int,
) -> Tensor:
    """The control after rounds that change some layers and train again; kept if J falls.

    `propose` gives the changed control, and how often it has evaluated all Hamiltonians. Rounds go
    on until `budget` evaluations of J or of all Hamiltonians, with gradients, are spent.
    """
    counter, spent, k = Counter(problem), 0, 0
    best, J = theta, pontryagin.objective(problem, theta).item()
    while spent + counter.evaluations < budget:
        trial, cost = propose(counter.problem, best, 1000 * (k + 1) + seed)
        spent, k = spent + cost, k + 1
        trial = solvers.solve(counter.problem, trial, iterations=iterations)
        value = pontryagin.objective(problem, trial).item()
        if value < J:
            best, J = trial, value
    return best


def polished(problem: TrainingProblem, theta: Tensor, seed: int) -> tuple[Tensor, int]:
    """The control whose worst layers are the best minimisers found, from θ and from four starts.

    A layer is replaced if its gap exceeds half of the largest one.
    """
    extremal = pontryagin.costates(problem, theta)
    starts = (theta, *others(theta, seed))
    found = [pontryagin.minimize_hamiltonian(problem, extremal, start) for start in starts]
    H = torch.stack([pontryagin.hamiltonian(problem, extremal, trial.theta) for trial in found])
    best = torch.stack([trial.theta for trial in found])[H.argmin(0), torch.arange(len(theta))]
    gap = pontryagin.hamiltonian(problem, extremal, theta) - H.amin(0)
    worst = (gap > gap.max() / 2)[:, None, None]
    return torch.where(worst, best, theta), sum(trial.evaluations for trial in found)


def kicked(problem: TrainingProblem, theta: Tensor, seed: int) -> tuple[Tensor, int]:
    """The control in which six random layers are replaced, by a neighbour or by noise."""
    generator = torch.Generator().manual_seed(seed)
    trial, random = theta.clone(), noise(seed, len(theta), 1.0)
    for layer in torch.randperm(len(theta), generator=generator)[:KICKED].tolist():
        kind = int(torch.randint(3, (), generator=generator))
        trial[layer] = (theta.roll(1, 0), theta.roll(-1, 0), random)[kind][layer]
    return trial, 0


STAGES = ("untrained", "early", "trained", "polished", "kicked")


def check(
    seed: int, iterations: int, budget: int, further: int, layers: int = 16
) -> dict[str, Judged]:
    """A ResNet at five stages, each judged by Pontryagin's principle.

    "early" is after twenty iterations. The last two begin at "trained", with equal budgets.
    """
    problem = pose(tanh_layer, seed, layers, 5.0)
    start = noise(seed, 1).repeat(layers, 1, 1)
    theta = solvers.solve(problem, start, iterations=iterations)
    how = {"budget": budget, "iterations": further}
    nets = {
        "untrained": start,
        "early": solvers.solve(problem, start, iterations=min(20, iterations)),
        "trained": theta,
        "polished": improve(problem, theta, seed, polished, **how),
        "kicked": improve(problem, theta, seed, kicked, **how),
    }
    return {name: judge(problem, net, seed) for name, net in nets.items()}


def checks(store: Store, seeds: Sequence[int]) -> list[dict[str, Judged]]:
    """The five stages of all seeds, measured once."""
    few = (2, 1, 2, 2) if store.run == "smoke" else (1000, SPENT, 800)

    def compute() -> dict[str, Any]:
        rows = [{k: asdict(v) for k, v in check(s, *few).items()} for s in seeds]
        return {"rows": rows}

    settings = {"layers": 16, "horizon": 5.0, "alpha": 0.1, "iterations": 1000, "budget": SPENT}
    settings |= {"further": 800, "starts": 5, "kicked": KICKED, "early": 20, "seeds": list(seeds)}
    rows = store.measure("principle", settings, compute).numbers["rows"]
    return [{name: Judged(**value) for name, value in row.items()} for row in rows]


# --- many layers --------------------------------------------------------------------------------

GRIDS = (8, 16, 32)


@dataclass(frozen=True)
class Case:
    """A field with its final time, and the weight of the penalty on ∂ₜθ."""

    field: str
    horizon: float
    smooth: float = 0.0


CASES = {
    "tanh": Case("tanh", 5.0),
    "tanh, smooth": Case("tanh", 5.0, 0.01),
    "linear": Case("linear", 1.0),
}


@dataclass(frozen=True)
class Limit:
    """Networks of 8, 16 and 32 layers, and ‖θ − θ′‖ between each and the next one.

    `other` has the spread of H for a smooth control that is not optimal.
    """

    nets: list[Judged]
    change: list[float]
    other: list[float]


def waving(seed: int, layers: int) -> Tensor:
    """A smooth control that is not optimal: fixed weights times 1 + ½ cos(2πt/T).

    For weights that do not change in time H would be constant, whatever they are.
    """
    t = (torch.arange(layers, dtype=torch.float64) + 0.5) / layers
    return noise(seed, 1) * (1 + 0.5 * torch.cos(2 * torch.pi * t))[:, None, None]


def deepen(case: Case, seed: int, iterations: int) -> Limit:
    """The control for more and more layers, each from noise that differs in every layer."""
    field = FIELDS[case.field]
    train = partial(solvers.solve, iterations=iterations, smooth=case.smooth)
    coarse = train(pose(field, seed, 16, case.horizon), noise(seed, 1).repeat(16, 1, 1))
    found, thetas, other = [], [], []
    for N in GRIDS:
        problem = pose(field, seed, N, case.horizon)
        other.append(judge(problem, waving(seed, N)).spread)
        start = resnets.prolongate(coarse, N) + noise(seed + N, N, 0.2)
        thetas.append(train(problem, start))
        found.append(judge(problem, thetas[-1]))
    change = []
    for few, many in pairwise(thetas):
        moved = (resnets.prolongate(few, len(many)) - many).square().sum()
        change.append((moved * case.horizon / len(many)).sqrt().item())
    return Limit(found, change, other)


def limits(store: Store, name: str, seeds: Sequence[int]) -> list[Limit]:
    """The networks of all seeds, measured once."""
    case, iterations = CASES[name], 2 if store.run == "smoke" else 200

    def compute() -> dict[str, Any]:
        return {"rows": [asdict(deepen(case, s, iterations)) for s in seeds]}

    settings = asdict(case) | {"grids": list(GRIDS), "iterations": 200, "seeds": list(seeds)}
    rows = store.measure(f"limit-{name.replace(', ', '-')}", settings, compute).numbers["rows"]
    return [
        Limit([Judged(**net) for net in row["nets"]], row["change"], row["other"]) for row in rows
    ]


def flattening(spreads: Sequence[float]) -> float:
    """The order at which H becomes constant from 16 to 32 layers, by its spreads."""
    return metrics.observed_orders(list(spreads), [1 / N for N in GRIDS])[-1]


# --- step sizes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """Four layers with equal and with learned steps h, both trained from the same first weights.

    `onwards` continues from the network with equal steps and learns the steps as well.
    """

    equal: Judged
    learned: Judged
    onwards: Judged
    h: list[float]


def learn_steps(name: str, seed: int, iterations: int, layers: int = 4) -> Steps:
    """All trainings have as many iterations; `onwards` has them twice."""
    case = CASES[name]
    problem = pose(FIELDS[case.field], seed, layers, case.horizon)
    start = noise(seed, 1).repeat(layers, 1, 1)
    theta = solvers.solve(problem, start, iterations=iterations)
    learned, resized = solvers.solve_with_steps(problem, start, iterations=iterations)
    further, again = solvers.solve_with_steps(problem, theta, iterations=iterations)
    return Steps(
        judge(problem, theta),
        judge(resized, learned),
        judge(again, further),
        again.steps(further).tolist(),
    )


def step_sizes(store: Store, seeds: Sequence[int]) -> dict[str, list[Steps]]:
    """The steps of both fields and all seeds, measured once."""
    iterations, names = 2 if store.run == "smoke" else 800, ("linear", "tanh")

    def compute() -> dict[str, Any]:
        return {name: [asdict(learn_steps(name, s, iterations)) for s in seeds] for name in names}

    settings = {"layers": 4, "iterations": 800, "names": list(names), "seeds": list(seeds)}
    found = store.measure("steps", settings, compute).numbers
    parts = ("equal", "learned", "onwards")
    return {
        name: [Steps(*(Judged(**row[part]) for part in parts), h=row["h"]) for row in rows]
        for name, rows in found.items()
    }
