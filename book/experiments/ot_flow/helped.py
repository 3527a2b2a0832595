"""What the settings are worth: trainings on the circles with one of them changed at a time."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from ctdl_lib.generative import Flow
from machinery.store import Store

from .densities import PUBLISHED, Settings, gap, held_out, settings, steps_of, untrained
from .densities import SEEDS as REPORTED

DENSITY = "circles"
SEEDS = (0, 1)  # those on which settings are chosen
STEPS, EVERY = 1000, 200
POINTS, SMOKE_POINTS = 2_000, 200

Curves = dict[str, list[dict[str, list[float]]]]  # by settings, the curves of all seeds


def variants() -> dict[str, Settings]:
    """The settings by the name of the change: those of the book with fewer steps, and others."""
    key = settings(DENSITY, steps=STEPS)
    alpha, beta = PUBLISHED[DENSITY]
    return {
        "as chosen": key,
        "lower rate, 0.03": replace(key, lr=0.03),
        "published weights": replace(key, alpha=alpha, beta=beta),
        "larger weight, α = 100": replace(key, alpha=100.0),
        "no average": replace(key, average=None),
        "no clipping": replace(key, max_grad_norm=None),
        "half of the points": replace(key, batch=key.batch // 2),
        "8 steps from the start": replace(key, first=key.rk4),
    }


def curve(key: Settings, seed: int, smoke: bool = False) -> dict[str, list[float]]:
    """The `seconds` of a training and the `gap` of the flow, every 200 steps.

    With an average of the weights, the gap is that of the average at that time.
    """
    flow = untrained(key, seed)
    mean = [p.detach().clone() for p in flow.velocity.parameters()]
    every = 1 if smoke else EVERY
    x = held_out(key.density, SMOKE_POINTS if smoke else POINTS)
    found: dict[str, list[float]] = {"seconds": [], "gap": []}
    pause = 0.0
    for step in steps_of(flow, replace(key, average=None), seed, 2 if smoke else key.steps):
        for a, p in zip(mean, flow.velocity.parameters(), strict=True):
            a.lerp_(p.detach(), 1 - (key.average or 0.0))
        if (step.index + 1) % every == 0:
            found["seconds"].append(step.seconds - pause)
            started = time.monotonic()
            found["gap"].append(gap(_with(flow, key, mean), key.density, seed, x).gap)
            pause += time.monotonic() - started
    return found


def _with(flow: Flow, key: Settings, weights: Sequence[torch.Tensor]) -> Flow:
    """A copy of the flow with other weights."""
    other = untrained(key, 0).requires_grad_(False)
    for p, a in zip(other.velocity.parameters(), weights, strict=True):
        p.copy_(a)
    return other


def helped(store: Store, seeds: Sequence[int] = SEEDS) -> Curves:
    """The curves of every variant."""
    few = 1 if store.run == "smoke" else None
    return _measured(store, "helped", dict(list(variants().items())[:few]), seeds)


STARTED = "2spirals"
SPREAD = "spread over the data, rate 0.03"
STARTS: dict[str, dict[str, Any]] = {  # the library's start has a search of its rate as well
    SPREAD: {"spread": 1.0, "lr": 0.03},
    "as the library draws it, rate 0.03": {"spread": None, "lr": 0.03},
    "as the library draws it, rate 0.05": {"spread": None, "lr": 0.05},
    "as the library draws it, rate 0.1": {"spread": None, "lr": 0.1},
}


def starts(store: Store, seeds: Sequence[int] = REPORTED) -> Curves:
    """The curves of the two spirals by the start of the first layer and the rate."""
    key = settings(STARTED, steps=STEPS, first=6, rk4=10, warmup=50)
    tried = {name: replace(key, **change) for name, change in STARTS.items()}
    return _measured(store, "start", tried, seeds)


def _measured(
    store: Store, stem: str, tried: Mapping[str, Settings], seeds: Sequence[int]
) -> Curves:
    """The curves by the name of their settings, one a seed. Each name is a record of its own."""
    found = {}
    for i, (name, key) in enumerate(tried.items()):

        def compute(key: Settings = key) -> dict[str, Any]:
            return {"rows": [curve(key, seed, store.run == "smoke") for seed in seeds]}

        stored = asdict(key) | {"seeds": list(seeds), "every": EVERY}
        found[name] = store.measure(f"{stem}-{i}", stored, compute).numbers["rows"]
    return found


def last_gaps(curves: list[dict[str, list[float]]]) -> list[float]:
    """The gaps at the end of the curves, one a seed."""
    return [curve["gap"][-1] for curve in curves]


def table(found: Curves) -> str:
    """The gap and the seconds at the end of every training, as a Markdown table."""
    lines = [
        f"| {DENSITY}, {STEPS:,} iterations | gap (nats), by seed | seconds |",
        "|---|---|---:|",
    ]
    for name, curves in found.items():
        gaps = ", ".join(f"{c['gap'][-1]:.3f}" for c in curves)
        seconds = sum(c["seconds"][-1] for c in curves) / len(curves)
        lines.append(f"| {name} | {gaps} | {seconds:.0f} |")
    return "\n".join(lines)
