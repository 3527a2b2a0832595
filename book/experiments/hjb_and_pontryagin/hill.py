"""Round a hill with noise: the trained value functions, their errors, and what each term does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctdl_lib.control import feedback, hjb_residual, rollout
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import Potential
from ctdl_lib.problems.control import Obstacle
from machinery.seeds import seeded
from machinery.store import Record, Store

from . import grids, training
from .training import BOX, DOUBLE, FIRST, HILL, PLAIN, Task, seeds_of

TIMES = {"t00": 0, "t05": 10, "t09": 18}  # of 20 steps
FULL = "cost + hjb"
TERMS = ("hjb", "bsde", "terminal", "terminal_gradient", "initial")


class Judged(NamedTuple):
    """Errors along paths, in percent at three times, and the cost of the feedback."""

    t00: float
    t05: float
    t09: float
    cost: float


class Box(NamedTuple):
    """Errors in percent over the box at t = 0, and at the target."""

    mean: float
    median: float
    max: float
    target: float


def still(t: Any, x: Tensor) -> Tensor:
    """The policy that does nothing: its paths are random walks."""
    return torch.zeros_like(x)


def halved(problem: Obstacle) -> Obstacle:
    """The problem as the published penalty sees it, with half of σσᵀ."""
    known = problem.linear_quadratic
    less = replace(known, diffusion=known.diffusion / math.sqrt(2))
    return replace(problem, linear_quadratic=less)


def contradictory(
    problem: Obstacle,
    phi: Potential,
    x: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    sampler: Policy | None,
    hjb: float,
) -> dict[str, Tensor]:
    """The cost of paths with all of the noise, and a residual with half of it."""
    paths = rollout(problem, feedback(problem, phi), x, steps=steps, generator=generator)
    t, points = paths.t.repeat_interleave(len(x)), paths.x.detach().flatten(0, 1)
    residual = hjb_residual(halved(problem), phi, t, points)
    return {"cost": paths.cost.mean(), "hjb": hjb * residual.abs().mean()}


@dataclass(frozen=True)
class Variant:
    """What is left out of the objective or put in: a task and its settings."""

    task: Task
    how: dict[str, Any]


def variants() -> dict[str, Variant]:
    """The variants, by their words; the first is what the chapter trains."""
    own = training.hill()
    walk, plain = training.hill(sampler=still), training.hill(lq=None)

    def alone(task: Task, **weights: float) -> Variant:
        return Variant(task, HILL | {"weights": weights})

    return {
        FULL: Variant(own, HILL),
        "cost alone": alone(own),
        "hjb alone": alone(own, cost=0.0, hjb=1.0),
        "hjb alone, random walk": alone(walk, cost=0.0, hjb=1.0),
        "cost + bsde": alone(own, bsde=1.0),
        "bsde alone, random walk": alone(walk, cost=0.0, bsde=1.0),
        "all six, plain network": alone(plain, **dict.fromkeys(TERMS, 1.0)),
        "published four, plain": alone(plain, hjb=1.0, bsde=1.0, terminal=1.0),
    }


def fits(store: Store, seed: int = 0) -> list[tuple[Potential, Record]]:
    """The value functions that learn near the starts of the publication."""
    return [training.fit(store, "hill", training.hill(), s, HILL) for s in seeds_of(store, seed)]


def wide_fits(
    store: Store, seed: int = 0, *, name: str = "box", how: dict[str, Any] = BOX
) -> list[tuple[Potential, Record]]:
    """The value functions that also learn from starts all over the box, of four seeds."""
    return [training.fit(store, name, training.hill(), s, how) for s in seeds_of(store, seed, 4)]


def halved_fits(store: Store, seed: int = 0) -> list[tuple[Potential, Record]]:
    """The value functions whose penalty has half of the noise, of two seeds."""
    task = training.hill(objective=contradictory)
    return [training.fit(store, "halved", task, s, HILL) for s in seeds_of(store, seed, 2)]


def starts(count: int, seed: int = 0) -> tuple[Tensor, torch.Generator]:
    """The starts of the test, N((−1.5, −1.5), 0.4² I), and the generator of the noise."""
    g = seeded(seed + 99)
    return -1.5 + 0.4 * torch.randn(count, 2, generator=g, **DOUBLE), g


def percent(phi: Potential, known: Potential, t: float, x: Tensor) -> float:
    """The mean of |Φ/known − 1| in percent."""
    return 100 * float((phi(t, x) / known(t, x) - 1).abs().mean())


def exam(store: Store, phi: Potential, seed: int = 0) -> Judged:
    """The errors along 256 paths of the own feedback, and its cost on common noise."""
    smoke, policy = store.run == "smoke", feedback(grids.PROBLEM, phi)
    known = grids.reference(grids.sizes(store)[0])
    x, g = starts(16 if smoke else 256, seed)
    path = rollout(grids.PROBLEM, policy, x, steps=20, generator=g)
    errors = [percent(phi, known, float(path.t[k]), path.x[k]) for k in TIMES.values()]
    cost, _ = grids.price(policy, 16 if smoke else grids.PATHS, seed=seed)
    return Judged(errors[0], errors[1], errors[2], cost)


def judge(store: Store, name: str, record: Record, phi: Potential, seed: int = 0) -> Judged:
    """The result of the exam, as stored."""
    key = {"weights": record.weights, "grid": grids.sizes(store)[0], "paths": grids.PATHS}
    key |= {"protocol": [256, 0.4, 20]}
    found = store.measure(f"{name}-judged", key, lambda: exam(store, phi, seed)._asdict())
    return Judged(**found.numbers)


def judged(
    store: Store, name: str, found: Sequence[tuple[Potential, Record]], seed: int = 0
) -> list[Judged]:
    """The same for several seeds."""
    seeds = seeds_of(store, seed, len(found))
    return [
        judge(store, f"{name}-{s}", r, phi, seed) for s, (phi, r) in zip(seeds, found, strict=True)
    ]


def over_box(known: Tensor, phi: Potential) -> Box:
    """The errors over the box, of which `known` has the values at t = 0."""
    return box_of(relative(known, phi))


def box_of(errors: Tensor) -> Box:
    """What the errors at the nodes of the box say, in percent."""
    wrong = errors.abs()
    middle = 45 * grids.NODES + 45  # the node (1.5, 1.5)
    numbers = wrong.mean(), wrong.median(), wrong.max(), wrong[middle]
    return Box(*(float(number) for number in numbers))


def committee(known: Tensor, found: Sequence[Potential]) -> Box:
    """The errors of the mean of several value functions."""
    every = torch.stack([phi(0.0, grids.box()) for phi in found])
    return box_of(100 * (every.mean(0) / known - 1))


def relative(known: Tensor, phi: Potential) -> Tensor:
    """The signed errors at the nodes of the box, in percent."""
    return 100 * (phi(0.0, grids.box()) / known - 1)


def at_tests(store: Store, seed: int = 0) -> Tensor:
    """The reference at the 256 starts of the test."""
    nodes, count = grids.sizes(store)[0], 16 if store.run == "smoke" else 256

    def compute() -> dict[str, list[float]]:
        x, _ = starts(count, seed)
        return {"known": [grids.rounded(v) for v in grids.reference(nodes)(0.0, x)]}

    key = {"grid": nodes, "starts": count, "seed": seed}
    return torch.tensor(store.measure("tests", key, compute).numbers["known"], **DOUBLE)


def error_at_tests(known: Tensor, phi: Potential, seed: int = 0) -> float:
    """The mean error at the starts of the test, where the reference is known, in percent."""
    x, _ = starts(len(known), seed)
    return 100 * float((phi(0.0, x) / known - 1).abs().mean())


def ablation(store: Store, seed: int = 0) -> dict[str, list[Judged]]:
    """The errors and costs of the variants, two seeds each."""
    seeds, table = seeds_of(store, seed, 2), {}
    for i, (label, variant) in enumerate(variants().items()):
        name = f"ablation-{i}" if i else "hill"
        found = [training.fit(store, name, variant.task, s, variant.how) for s in seeds]
        table[label] = judged(store, name, found, seed)
    return table


def plain_errors(store: Store, seed: int = 0) -> list[float]:
    """The error of Φ(0, ·) in percent, linear–quadratic problem, network on its own."""
    problem, task = training.plain()
    exact, errors = problem.value(), []
    for s in seeds_of(store, seed):
        phi, _ = training.fit(store, "lqr", task, s, PLAIN)
        x = -3 + torch.randn(2000, 2, generator=seeded(s), **DOUBLE)
        errors.append(percent(phi, exact, 0.0, x))
    return errors


def visited(phi: Potential, how: dict[str, Any], paths: int = 2000) -> Tensor:
    """The states of paths of a feedback from the starts of its training, (times·paths, 2)."""
    x = training.starts(how, paths, seeded(FIRST)).double()
    policy = feedback(grids.PROBLEM, phi)
    path = rollout(grids.PROBLEM, policy, x, steps=20, generator=seeded(FIRST + 1))
    return path.x.flatten(0, 1)
