"""OT-Flow and FFJORD on the eight Gaussians, trained until both are equally likely."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.generative import Flow, flow_matching, ot_flow
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.networks import ConcatSquash
from ctdl_lib.problems.densities import TOYS
from machinery import instruments
from machinery.store import Record, Store

from .densities import SEEDS, Settings, mean_nll, seeded, solved, steps_of, untrained
from .steps import bend

DENSITY = "8gaussians"
RACE = {"target": 0.05, "check": 25, "checked": 5000, "seed": 0}
OT_FLOW = {"width": 32, "layers": 2, "batch": 512, "rk4": 4, "lr": 0.1, "steps": 400}
OT_FLOW |= {"density": DENSITY, "alpha": 30, "beta": 1}
FFJORD = {"width": 64, "hidden": 3, "tol": 1e-5, "batch": 512, "lr": 0.03, "steps": 400}
ENTRANTS: dict[str, dict[str, Any]] = {"OT-Flow": OT_FLOW | RACE, "FFJORD": FFJORD | RACE}
LOOSE = (0.1, 0.01, 1e-3, 1e-4)  # tolerances that FFJORD may take to be as close as OT-Flow
SAMPLES = 10_000


@dataclass(frozen=True)
class Finish:
    """A flow at the end of its training, how it was trained, and its gap to the least NLL."""

    flow: Flow
    record: Record
    gap: float
    bend: float

    @property
    def steps(self) -> int:
        """How many steps it took to the goal."""
        return len(self.record.losses)


def checked() -> Tensor:
    """The points on which both are checked while they train."""
    return TOYS[DENSITY].sample(RACE["checked"], seeded(RACE["seed"] + 97))


def until(steps: Iterator[Step], reached: Callable[[], bool]) -> Iterator[Step]:
    """The steps until a check every 25 steps says stop, with a clock that excludes the checks."""
    clock = 0.0
    while True:
        started = time.perf_counter()
        step = next(steps, None)
        clock += time.perf_counter() - started
        if step is None:
            return
        yield replace(step, seconds=clock)
        if (step.index + 1) % RACE["check"] == 0:
            with torch.no_grad():
                if reached():
                    return


def ffjord(seed: int) -> Flow:
    """FFJORD before its training: three layers of width 64, the adjoint, adaptive steps."""
    net = ConcatSquash(2, width=FFJORD["width"], hidden=FFJORD["hidden"], generator=seeded(seed))
    return Flow(net, 2, solver={"tol": FFJORD["tol"], "backprop": "adjoint"}, standardize=False)


def _ffjord_steps(flow: Flow, seed: int, steps: int, file: Path | None) -> Iterator[Step]:
    def batch(k: int) -> Tensor:
        return TOYS[DENSITY].sample(FFJORD["batch"], seeded(seed, k + 1))

    def loss(flow: Any, x: Tensor) -> Tensor:
        return -flow.log_prob(x).mean()

    lr = cosine(FFJORD["lr"], FFJORD["steps"])
    return train(flow, loss, batch, steps=steps, lr=lr, checkpoint=file)


def compete(store: Store, name: str, seed: int) -> Finish:
    """The entrant `name` ("OT-Flow" or "FFJORD") at the goal: 0.05 nats above the least NLL."""
    is_ours = name == "OT-Flow"
    parts = ("density", "alpha", "beta", "rk4", "steps", "batch", "lr", "width", "layers")
    plain: dict[str, Any] = {"max_grad_norm": None, "average": None}
    key = Settings(**{part: OT_FLOW[part] for part in parts}, **plain)
    flow = solved(untrained(key, seed), steps=16) if is_ours else ffjord(seed)
    x = checked()
    least = mean_nll(TOYS[DENSITY], x)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        ours = partial(steps_of, flow, key, seed, steps, file)
        run = ours() if is_ours else _ffjord_steps(flow, seed, steps, file)
        return until(run, lambda: mean_nll(flow, x) <= least + RACE["target"])

    record = store.fit(f"race-{name}-{seed}", flow, ENTRANTS[name] | {"seed": seed}, training)
    flow.requires_grad_(False)
    return Finish(flow, record, mean_nll(flow, x) - least, bend(flow, x))


def race(store: Store, seeds: Sequence[int] = SEEDS) -> dict[str, list[Finish]]:
    """Both entrants at the goal, one a seed."""
    return {name: [compete(store, name, seed) for seed in seeds] for name in ENTRANTS}


def clocks(store: Store, raced: dict[str, list[Finish]], seeds: Sequence[int] = SEEDS) -> Record:
    """The milliseconds of a training step of 512 points and of 10,000 samples, taken by turns.

    FFJORD samples with its own tolerance, and with the loosest one whose samples are as close to
    those of an accurate solve as OT-Flow's are ("as close").
    """
    smoke = store.run == "smoke"
    n = 200 if smoke else SAMPLES
    key = {"entrants": ENTRANTS, "seeds": list(seeds), "points": n, "rounds": 5}

    def compute() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for pair in zip(*raced.values(), strict=True):
            runs = _runs(pair[0].flow, pair[1].flow, n)
            best = instruments.interleaved_times(runs, rounds=1 if smoke else 5)
            for name, seconds in best.items():
                found.setdefault(name, []).append(1e3 * seconds)
        return found

    return store.measure("clocks", key, compute)


def _runs(ours: Flow, theirs: Flow, n: int) -> dict[str, Callable[[], Any]]:
    """What is timed on one pair of trained flows."""
    z = torch.randn(n, 2, generator=seeded(0))
    x = TOYS[DENSITY].sample(min(n, 512), seeded(99))
    t = torch.rand(len(x), generator=seeded(0))

    def error(flow: Flow, **solver: Any) -> float:
        exact = solved(flow, tol=1e-6).inverse(z[:1000])
        return (solved(flow, **solver).inverse(z[:1000]) - exact).norm(dim=1).mean().item()

    def step(velocity: nn.Module, loss: Callable[[Any], Any]) -> None:
        velocity.requires_grad_(True).zero_grad()
        loss(velocity).backward()

    def adaptive(v: nn.Module, **how: Any) -> Tensor:
        return -Flow(v, 2, solver={"tol": 1e-5} | how, standardize=False).log_prob(x).mean()

    wanted = error(ours, steps=4)
    loose = next((tol for tol in LOOSE if error(theirs, tol=tol) <= wanted), 1e-5)
    samplers = {
        "sample OT-Flow": solved(ours, steps=4),
        "sample FFJORD": solved(theirs, tol=1e-5),
        "sample FFJORD, as close": solved(theirs, tol=loose),
    }
    weights = {"likelihood": 30, "hjb": 1}
    steps: dict[str, Callable[[Any], Any]] = {
        "OT-Flow": lambda v: sum(ot_flow(v, x, steps=4, **weights).values()),
        "FFJORD": partial(adaptive, backprop="adjoint"),
        "FFJORD, through": adaptive,
        "flow matching": lambda v: flow_matching(v, x, z[: len(x)], t),
    }
    runs: dict[str, Callable[[], Any]] = {k: partial(f.inverse, z) for k, f in samplers.items()}
    for name, loss in steps.items():
        velocity = (ours if name == "OT-Flow" else theirs).velocity
        runs["train " + name] = partial(step, velocity, loss)
    return runs
