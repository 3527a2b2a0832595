"""The trainings of the chapter: the search for settings, and the fits from several seeds."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.control import rollout
from ctdl_lib.learning import Step, cosine, storage, train
from ctdl_lib.potentials import AutodiffPotential
from machinery.store import Record, Store

from .learners import (
    FEW,
    SLICE,
    STEPS,
    Replay,
    draw,
    height_loss,
    learner,
    own_paths,
    replay,
)
from .mitigation import SourceMitigation, best_openings
from .networks import Height, Split, steering

CHAPTER = "15_pde_control"
SEEDS = (10, 11, 12, 13, 14)  # the search for settings used seed 1, later settings seed 0
LATER = (10, 11, 12)  # of trainings that were added later
NAMES = {"hjb": "value function", "policy": "direct policy", "ppo": "PPO", "td3": "TD3"}
SPACES: dict[str, dict[str, Any]] = {
    "hjb": {"batch": [4, 8, 16], "beta": [0.01, 0.1, 1.0], "clip": 0.5},
    "policy": {"batch": [4, 8, 16], "clip": 0.5},
    "ppo": {
        "n_steps": [125, 250, 500],
        "batch_size": [125, 250],
        "n_epochs": [5, 10, 20],
        "gae_lambda": [0.9, 0.95, 1.0],
    },
    "td3": {
        "gradient_steps": [2, 4],
        "batch_size": [64, 128],
        "tau": [0.005, 0.02, 0.05],
        "noise": [0.1, 0.3, 0.5],
        "policy_delay": [2, 4],
    },
}
SHORT, LONG = 32_000, 100_000


@dataclass(frozen=True)
class Exam:
    """Basins that no training sees, and their least costs."""

    problem: SourceMitigation
    best: Tensor


@cache
def exam(seed: int, count: int = 64, nodes: int = 17, box: tuple[Any, ...] = ()) -> Exam:
    """So many random basins with the exact least cost of each."""
    problem = draw(count, seed, nodes, **dict(box))
    return Exam(problem, best_openings(problem).cost)


def final_exam(seed: int = 0, few: bool = False) -> Exam:
    """The basins on which trainings are judged."""
    return exam(seed + 77, 8 if few else 64)


def drilled(seed: int = 0, few: bool = False) -> Exam:
    """The basins on which settings are chosen."""
    return exam(seed + 78, 8 if few else 64)


@torch.no_grad()
def costs(kind: str, model: nn.Module, problem: SourceMitigation) -> Tensor:
    """The cost of a policy in each basin."""
    policy = steering(kind, model, problem)
    return rollout(problem, policy, problem.start.float(), steps=STEPS).cost.double()


def suboptimality(cost: Tensor, best: Tensor) -> float:
    """The mean cost over the mean of the least costs, less one, in percent."""
    return 100 * float(cost.mean() / best.mean() - 1)


def lessons(
    kind: str, seed: int, how: dict[str, Any], exams: int, judge: Exam, *, few: bool = False
) -> tuple[nn.Module, Iterator[Step]]:
    """The model that acts, and its training: an exam after every 4,000 solves."""
    model, spending = learner(kind, seed, how, few=few)
    every = FEW if few else SLICE

    def course() -> Iterator[Step]:
        done, began = 0, time.monotonic()
        for spent in spending:
            while spent >= every * (done + 1) and done < exams:
                mark = suboptimality(costs(kind, model, judge.problem), judge.best)
                yield Step(done, mark, {}, 0.0, seconds=time.monotonic() - began)
                done += 1
            if done == exams:
                return

    return model, course()


# --- the search ---------------------------------------------------------------------------------


def settings(kind: str, seed: int = 0, trials: int = 8) -> Iterator[dict[str, Any]]:
    """So many settings at random."""
    dice = random.Random(f"{kind} {seed}")

    def pick(value: Any) -> Any:
        return dice.choice(value) if isinstance(value, list) else value

    for _ in range(trials):
        lr = float(f"{10 ** dice.uniform(-4, -2):.2g}")
        yield {"lr": lr} | {key: pick(value) for key, value in SPACES[kind].items()}


def trial(
    store: Store, kind: str, name: str, how: dict[str, Any], solves: int, seed: int = 0
) -> list[float]:
    """The exams of one training of the search."""
    few = store.run == "smoke"

    def attempt() -> dict[str, Any]:
        exams, judge = 3 if few else solves // SLICE, drilled(seed, few)
        course = lessons(kind, seed + 1, how, exams, judge, few=few)[1]
        return {"curve": [step.loss for step in course]}

    key = {"how": how, "solves": solves, "seed": seed + 1, "basins": seed + 78}
    return store.measure(name, key, attempt).numbers["curve"]


@dataclass(frozen=True)
class Search:
    """The settings of a method, their exams, the exams of the best three, and the choice."""

    hows: list[dict[str, Any]]
    curves: list[list[float]]
    longer: list[list[float]]
    chosen: dict[str, Any]


def ranked(curves: list[list[float]]) -> list[int]:
    """The numbers of the curves, best first, by the mean of the last four exams."""
    return sorted(range(len(curves)), key=lambda i: sum(curves[i][-4:]))


def search(store: Store, kind: str, seed: int = 0) -> Search:
    """Eight random settings, the best three for longer, and of these the best."""
    hows = list(settings(kind, seed, 2 if store.run == "smoke" else 8))
    names = [f"search-{kind}-{i}" for i in range(len(hows))]
    pairs = list(zip(names, hows, strict=True))
    curves = [trial(store, kind, *pair, SHORT, seed) for pair in pairs]
    finals = ranked(curves)[:3]
    longer = [trial(store, kind, f"{names[i]}-longer", hows[i], LONG, seed) for i in finals]
    return Search(hows, curves, longer, hows[finals[ranked(longer)[0]]])


# --- the fits -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A trained model with its exams, one after every 4,000 solves."""

    name: str
    kind: str
    model: Any
    record: Record

    @property
    def exams(self) -> list[float]:
        """Suboptimality in percent on the basins of the test."""
        return self.record.losses

    def last_four(self, solves: int) -> float:
        """The mean of the last four exams until then."""
        last = self.exams[: solves // SLICE][-4:]
        return sum(last) / len(last)

    def at(self, solves: int) -> float:
        """The exam after so many solves, or the last one of a trial run."""
        return self.exams[: solves // SLICE][-1]


def fit(
    store: Store,
    kind: str,
    seed: int,
    how: dict[str, Any],
    *,
    name: str = "",
    solves: int = LONG,
    base: int = 0,
) -> Fit:
    """The fit of one seed, loaded or trained; `base` is the seed of the chapter."""
    few = store.run == "smoke"
    exams = 3 if few else solves // SLICE
    model, course = lessons(kind, seed, how, exams, final_exam(base, few), few=few)

    def training(_: int, checkpoint: Path | None) -> Iterator[Step]:
        if checkpoint is not None and checkpoint.exists():  # this training has ended before
            kept = storage.load(checkpoint)
            model.load_state_dict(kept["model"])
            yield from (Step(**row) for row in kept["steps"])
            return
        rows = []
        for step in course:
            rows.append(vars(step))
            yield step
        if checkpoint is not None:
            storage.save(checkpoint, {"model": dict(model.state_dict()), "steps": rows})

    key = {"kind": kind, "seed": seed, "steps": solves // SLICE, "every": SLICE, "how": how}
    key |= {"losses": "suboptimality in %", "basins": base + 77}
    name = f"{name or kind}-{seed}"
    record = store.fit(name, model, key, training, dtype=torch.float16)
    return Fit(name, kind, model.requires_grad_(False).eval(), record)


HEIGHT: dict[str, Any] = {"basins": 400, "steps": 1500, "lr": 0.003, "clip": 1.0}


def fit_height(store: Store, f: Fit, seed: int) -> Fit:
    """A value function with a height of its own, fitted afterwards: its feedback stays that of f.

    The height is regressed on what the paths of that feedback had to pay in fresh basins, for a
    tenth of the solves more.
    """
    net, how = Split(), HEIGHT | {"shape": (f.record.weights or "")[:12], "seed": seed}
    net.shape = f.model.net

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        count = 2 if store.run == "smoke" else how["basins"] // 50
        seen = [own_paths(net, draw(50, 10_000 * seed + 9000 + k)) for k in range(count)]
        images, targets = (torch.cat(part) for part in zip(*seen, strict=True))
        sample = partial(_replay, images, targets, 10_000 * seed)
        rates = {"lr": cosine(how["lr"], how["steps"]), "max_grad_norm": how["clip"]}
        return train(net.height, height_loss, sample, steps=steps, checkpoint=file, **rates)

    torch.manual_seed(seed)
    net.height = Height()
    name = f"height-{seed}"
    record = store.fit(name, net.height, how, training, dtype=torch.float16)
    return Fit(name, "split", AutodiffPotential(net.requires_grad_(False).eval()), record)


def _replay(images: Tensor, targets: Tensor, dice: int, k: int) -> Replay:
    return replay(images, targets, dice + k)


def solves_of(kind: str, seed: int, base: int = 0) -> int:
    """How many solves a fit has: PPO has six times as many from three seeds."""
    return 600_000 if kind == "ppo" and seed < base + SEEDS[3] else LONG
