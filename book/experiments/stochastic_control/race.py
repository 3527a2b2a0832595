"""The race on the shifted problem: DeepBSDE and FBSNN against own paths, on common states."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.learning import cosine, train
from machinery.store import Store

from . import shifted
from .shifted import BATCH, EVERY, PROBLEM, Curve, D, Recorder, Setting, few, judge
from .solvers import FBSNN, STEPS, DeepBSDE, noise_of

OURS, RAISSI, DEEP = "ours", "FBSNN", "DeepBSDE"
RAISSI_PLAIN, DEEP_PLAIN = "FBSNN, as on the benchmark", "DeepBSDE, as on the benchmark"
RUN_STEPS = shifted.SHORT


@dataclass(frozen=True)
class Rival:
    """A rival's solver, its learning rate, whether that falls, and how many seeds it gets."""

    make: Callable[[int], DeepBSDE | FBSNN]
    name: str
    lr: float
    falls: bool
    how: dict[str, Any]
    seeds: int = 3


def _deep(seed: int, **how: Any) -> DeepBSDE:
    return DeepBSDE(seed, PROBLEM, **how)


def _raissi(seed: int, **how: Any) -> FBSNN:
    return FBSNN(seed, PROBLEM, **how)


DEEP_HOW = {"height": 1000.0, "gain": 0.01, "centred": True}
RAISSI_HOW = {"height": 100.0}
RIVALS = {  # the first two with settings that were chosen on seed 1 of this problem
    RAISSI: Rival(partial(_raissi, **RAISSI_HOW), "race-fbsnn", 0.001, True, RAISSI_HOW),
    DEEP: Rival(partial(_deep, **DEEP_HOW), "race-deepbsde", 0.01, False, DEEP_HOW),
    RAISSI_PLAIN: Rival(_raissi, "race-fbsnn-plain", 0.001, True, {}, seeds=1),
    DEEP_PLAIN: Rival(_deep, "race-deepbsde-plain", 0.01, False, {}, seeds=1),
}


def history(rival: Rival, seed: int, steps: int, *, smoke: bool = False) -> Curve:
    """What the judge says every 50 iterations, and the processor's seconds of training."""
    model, count, steps = rival.make(seed), 8 if smoke else BATCH, 4 if smoke else steps
    judging = judge(16 if smoke else 256)

    def look() -> dict[str, float]:
        model.eval()
        found = judging(model.along, model.policy)
        model.train()
        return found

    def batch(k: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(count, D), noise_of(count, 10_000 * seed + k)

    recorder = Recorder(look, 2 if smoke else EVERY)
    rate = cosine(rival.lr, steps) if rival.falls else rival.lr
    for _ in recorder(train(model, lambda _, b: model.loss(*b), batch, steps=steps, lr=rate)):
        pass
    return recorder.curve


def rivals(store: Store, seed: int = 0) -> dict[str, list[Curve]]:
    """The curves of all rivals, one a seed."""
    found: dict[str, list[Curve]] = {}
    for name, rival in RIVALS.items():
        key = {"lr": rival.lr, "falls": rival.falls, "steps": RUN_STEPS, "batch": BATCH}
        key |= {"times": STEPS, "paths": 256, "every": EVERY} | rival.how
        smoke = store.run == "smoke"
        found[name] = [
            store.measure(
                f"{rival.name}-{s}",
                key | {"seed": s},
                partial(history, rival, s, RUN_STEPS, smoke=smoke),
            ).numbers
            for s in few(store, seed)[: rival.seeds]
        ]
    return found


def ours(store: Store, setting: Setting, seed: int) -> Curve:
    """The curve of a training of ours; it is trained again if its curve was not kept whole."""
    _, record, curve = shifted.fit(store, setting, seed)
    smoke = store.run == "smoke"

    def compute() -> Curve:
        if smoke or len(curve.get("steps", ())) == setting.steps // EVERY:
            return curve
        return shifted.curve_of(setting, seed)

    key = {"weights": record.weights, "paths": 256, "every": EVERY}
    return store.measure(f"{setting.name}-{seed}-curve", key, compute).numbers


def corner_curves(store: Store, seed: int = 0) -> dict[tuple[str, str], list[Curve]]:
    """The curves of the corners of the table, one a seed."""
    return {
        corner: [ours(store, setting, s) for s in few(store, seed)]
        for corner, setting in shifted.CORNERS.items()
    }
