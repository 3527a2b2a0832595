"""Training from a coarse grid to a fine one, and what it saves at equal loss."""

import copy
import math
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.learning import minibatches
from machinery.store import Store

from .comparisons import energy_distance
from .grids import resample
from .judging import denoising_loss, real_fields
from .sampling import samples_of
from .training import COMMON, EVALUATION, LAWS, STD, fno_of, images, seeds_of, steps_of

FINE, PRIOR = 56, "combined"
LADDER: dict[str, Any] = COMMON | {"lr": 5e-3, "check": 100}
PLANS: dict[str, tuple[tuple[int, int], ...]] = {
    "fine only": ((56, 1200),),
    "coarse to fine": ((28, 1200), (56, 400)),
}
SHORTER = {"fine only, as long": ((56, 720),)}
# Not stored yet: three levels, where a step on 112 × 112 pixels costs 16 times one on 28 × 28.
THREE: dict[str, tuple[tuple[int, int], ...]] = {
    "finest only": ((112, 1200),),
    "two levels": ((28, 4800), (112, 600)),
    "three levels": ((28, 4800), (56, 1200), (112, 300)),
}
MOST = 5.0
SHORT, LONGER, BOTH = "fine only, as long", "fine only", "coarse to fine"


def climb(plan: tuple[tuple[int, int], ...], seed: int, small: bool, device: str) -> dict[str, Any]:
    """(CPU seconds, test loss at 56) every hundred steps, and some energy distances."""
    Q, total = LAWS[PRIOR], sum(steps for _, steps in plan)
    model, learned = fno_of(seed, LADDER, STD), images()[0]
    rows = minibatches(learned, size=LADDER["batch"], seed=seed)
    grids = [n for n, steps in plan for _ in range(steps)]

    def draw(k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        (x,) = rows(k)
        return resample(x, grids[k]), Q.sample(len(x), grids[k], generator)

    curve, far, seconds, started = [], [], 0.0, time.process_time()
    steps = 4 if small else total
    how = LADDER | {"steps": steps}
    for step in steps_of(model, draw, how, seed, steps, device=device):
        done = step.index + 1
        if done % LADDER["check"] == 0 or small:
            seconds += time.process_time() - started
            here = copy.deepcopy(model).cpu()  # it is judged on the CPU
            curve.append([seconds, denoising_loss(here, Q, FINE, 0, small)])
            if done % (4 * LADDER["check"]) == 0 or small:
                count = 2 if small else EVALUATION["samples"] // 2
                x = samples_of(here, Q, FINE, seed, count, 2 if small else EVALUATION["steps"])
                real = real_fields(FINE, 0, small).flatten(1) / FINE
                far.append([seconds, energy_distance(x.flatten(1) / FINE, real)])
            started = time.process_time()
    return {"curve": curve, "energy": far}


def climbs(store: Store, seed: int = 0, device: str = "cpu") -> dict[str, list[dict[str, Any]]]:
    """The curves of all plans, one a seed."""
    found: dict[str, Any] = {}
    for name, plans in (("multilevel", PLANS), ("multilevel-equal", SHORTER)):
        found |= _climbed(store, name, plans, seed, device)
    return found


def climbs_on_three(store: Store, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """The curves with three levels, for hours of a core; nothing of it is stored yet."""
    return _climbed(store, "multilevel-three", THREE, seed, device)


def _climbed(store: Store, name: str, plans: Any, seed: int, device: str) -> dict[str, Any]:
    seeds, small = seeds_of(store, seed), store.run == "smoke"
    key = LADDER | EVALUATION | {"levels": plans, "seeds": seeds}

    def compute() -> dict[str, Any]:
        run = partial(climb, small=small, device=device)
        return {k: [run(plan, s) for s in seeds] for k, plan in plans.items()}

    return store.measure(name, key, compute, device=device).numbers


def work_of(plan: tuple[tuple[int, int], ...], finest: int = FINE) -> float:
    """The work of a plan in steps on the finest grid, by the number of pixels."""
    return sum(steps * (n / finest) ** 2 for n, steps in plan)


WORK = {name: work_of(plan) for name, plan in (PLANS | SHORTER).items()}


def last(rows: list[dict[str, Any]], what: str = "curve") -> list[float]:
    """The last loss or energy distance of each seed."""
    return [row[what][-1][1] for row in rows]


def savings(curves: dict[str, list[dict[str, Any]]]) -> list[float]:
    """How many times the work of coarse to fine the fine grid alone needs for its loss, by seed.

    The work is interpolated between two trainings on the fine grid, each to the end of its own
    schedule, with the logarithm of the loss linear in that of the work. Outside of the two the
    line goes on, but no further than `MOST` times their distance.
    """
    ends = (curves[SHORT], curves[LONGER], curves[BOTH])
    short, long = math.log(WORK[SHORT]), math.log(WORK[LONGER])
    found = []
    for a, b, goal in zip(*(map(math.log, last(rows)) for rows in ends), strict=True):
        if a <= b:  # more work on the fine grid has not helped, so nothing can be told
            found.append(1.0)
            continue
        share = min((a - goal) / (a - b), MOST)
        found.append(math.exp(short + share * (long - short)) / WORK[BOTH])
    return found
