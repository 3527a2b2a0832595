"""Three tasks of the benchmark sbibm, whose posteriors are known by samples."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctdl_lib import metrics
from machinery.seeds import seeded
from machinery.store import Store

from . import maps, posteriors, references
from .campaigns import seeds as spawned
from .maps import COT, FMPE, NPE, PCP, Key
from .problems import SLCP, GaussianMixture, Task, TwoMoons

TASKS: tuple[Task, ...] = (TwoMoons(), GaussianMixture(), SLCP())
TITLES = {"two_moons": "two moons", "gaussian_mixture": "Gaussian mixture", "slcp": "SLCP"}
SETTINGS: dict[str, Key] = {
    COT: {
        **{"width": 64, "rk4": 6, "batch": 256, "lr": 0.02},
        **{"alpha": 300.0, "beta": 1.0, "steps": 2000},
    },
    PCP: {"width": 64, "batch": 256, "lr": 0.01, "steps": 2000},
    NPE: {"width": 64, "batch": 256, "lr": 0.002, "clip": 5.0, "steps": 2000},
    FMPE: {"width": 100, "batch": 256, "lr": 0.002, "steps": 4000},
}
SIMULATIONS, POINTS = 20_000, 2000

Scores = dict[str, dict[str, list[float]]]


def observations(task: Task) -> list[int]:
    """Which of the ten observations are judged: fewer where this takes longest."""
    return [1, 2] if task.name == "slcp" else [1, 2, 3, 4, 5]


def classified(store: Store, reference: Tensor, x: Tensor, seed: int) -> float:
    """The C2ST in percent: 50 is perfect, 100 is useless. Smoke has a quick classifier."""
    if store.run == "smoke":
        return references.told_apart(reference, x, seed)
    return 100 * metrics.c2st(reference, x, seed=seed)


def told_apart(
    store: Store, task: Task, model: Any, chosen: Sequence[int], points: int, seed: int
) -> Iterator[float]:
    """The C2ST of each observation."""
    for k in chosen:
        reference = task.reference(k)
        bound = model.given(reference.y[None])
        x = posteriors.sample_inside(bound, task.prior, points, seeded(seed, k)).x
        yield classified(store, reference.posterior[:points], x, seed)


def pairs(task: Task, n: int, s: int) -> tuple[Tensor, Tensor]:
    """Parameters from the prior, and what they caused."""
    x = task.prior.sample(n, seeded(s, 0))
    return x, task.simulate(x, spawned(n, s)).y


def two_moons(store: Store, seed: int = 0) -> maps.Fitted:
    """COT-Flow of the two moons, trained as the first of those that are judged."""
    task, s = TwoMoons(), maps.seeds_of(store, seed)[0]
    n = 1000 if store.run == "smoke" else SIMULATIONS
    key = SETTINGS[COT] | {"method": COT, "simulations": SIMULATIONS}
    box = task.prior.low, task.prior.high
    return maps.learned(store, f"{task.name}-{COT}", key, 2, 2, lambda: pairs(task, n, s), s, box)


def judge(store: Store, task: Task, key: Key) -> Key:
    """Train with each seed, and tell samples from those of the reference."""
    limits, rows, smoke = (task.prior.low, task.prior.high), [], store.run == "smoke"
    for s in key["seeds"]:
        x, y = pairs(task, 1000 if smoke else key["simulations"], s)
        model = maps.model_of(key, x.shape[1], y.shape[1], s, limits)
        steps = maps.steps_of(model, key, x, y, s, 3 if smoke else key["steps"])
        list(store.progress(steps, total=key["steps"], desc=f"{task.name} {s}"))
        chosen = [1] if smoke else key["observations"]
        points = 50 if smoke else key["points"]
        frozen = model.requires_grad_(False)
        rows.append(list(told_apart(store, task, frozen, chosen, points, key["seed"])))
    return {"rows": rows}


def scores(store: Store, seed: int = 0) -> Scores:
    """The C2ST of each task and method, the mean over its observations, one a seed."""
    found: Scores = {}
    for task in TASKS:
        found[task.name] = {}
        for name, how in SETTINGS.items():
            key = how | {"method": name, "simulations": SIMULATIONS}
            key |= {"seeds": maps.seeds_of(store, seed), "observations": observations(task)}
            key |= {"points": POINTS, "seed": seed}
            compute = partial(judge, store, task, key)
            record = store.measure(f"c2st-{task.name}-{name}", key, compute)
            rows = record.numbers["rows"]
            found[task.name][name] = [sum(row) / len(row) for row in rows]
    return found


def fitted(x: Tensor, task: Task, n: int, generator: torch.Generator) -> Tensor:
    """Samples of a Gaussian with the moments of x that lie inside of the prior's box."""
    root = torch.linalg.cholesky(x.T.cov())
    drawn = x.mean(0) + torch.randn(40 * n, x.shape[1], generator=generator) @ root.T
    return drawn[task.prior.inside(drawn)][:n]


def controls(store: Store, seed: int = 0) -> dict[str, dict[str, float]]:
    """The C2ST of a Gaussian fitted to the reference, of the prior, and of the reference itself.

    The first is a mean over the observations, the others are those of the first observation.
    """
    smoke = store.run == "smoke"

    def compute() -> Key:
        found = {}
        for task in TASKS:
            rows: dict[str, list[float]] = {"Gaussian": [], "prior": [], "itself": []}
            for k in [1] if smoke else observations(task):
                reference = task.reference(k).posterior
                n = 50 if smoke else POINTS
                laws = {"Gaussian": fitted(reference, task, n, seeded(seed, k))}
                if k == 1:
                    laws["prior"] = task.prior.sample(n, seeded(seed, k))
                    laws["itself"] = reference[n : 2 * n]
                for name, x in laws.items():
                    rows[name].append(classified(store, reference[:n], x, seed))
            found[task.name] = {name: sum(row) / len(row) for name, row in rows.items()}
        return found

    key = {"points": POINTS, "seed": seed}
    key |= {"observations": {task.name: observations(task) for task in TASKS}}
    return store.measure("c2st-controls", key, compute).numbers
