"""Which of the changes to the published settings helped: each is taken back, one at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ctdl_lib.results import Store

from .densities import (
    PUBLISHED,
    Settings,
    described,
    gap,
    held_out,
    plain,
    settings,
    steps_of,
    untrained,
)

SEEDS = (0,)  # one of those on which settings are chosen
MEASURED = ("chosen", "published alpha", "4 steps", "no average")
BUDGETS = (100, 200, 400, 800)
SMOKE_POINTS = 200


@dataclass(frozen=True)
class Ending:
    """How one training ended: its gap above the least NLL, the error of that, and its seconds."""

    gap: float
    standard_error: float
    seconds: float


def changes(name: str) -> dict[str, Settings]:
    """The chosen settings of a density, and the same with one change taken back, by its name."""
    key = settings(name)
    return {
        "chosen": key,
        "no average": replace(key, average=None),
        "constant rate": replace(key, schedule="constant"),
        "half the batch": replace(key, batch=key.batch // 2),
        "published alpha": replace(key, alpha=PUBLISHED[name][0]),
        "4 steps": replace(key, rk4=4),
        "not clipped": replace(key, max_grad_norm=None),
    }


def ending(key: Settings, seed: int, smoke: bool = False) -> Ending:
    """The end of one training, judged by a fine solve."""
    flow = untrained(key, seed)
    history = list(steps_of(flow, key, seed, 3 if smoke else key.steps))
    flow.requires_grad_(False)
    x = held_out(key.density, *([SMOKE_POINTS] if smoke else []))
    found = gap(flow, key.density, seed, x)
    return Ending(found.gap, found.standard_error, history[-1].seconds)


def _measured(store: Store, name: str, key: Settings, seeds: Sequence[int]) -> list[Ending]:
    """The endings of one setting, one a seed, kept in the store under `name`."""
    smoke = store.run == "smoke"

    def compute() -> dict[str, Any]:
        return {"rows": [asdict(ending(key, seed, smoke)) for seed in seeds]}

    numbers = store.measure(name, described(key) | {"seeds": list(seeds)}, compute).numbers
    return [Ending(**row) for row in numbers["rows"]]


def helped(
    store: Store,
    name: str = "circles",
    variants: Sequence[str] = MEASURED,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, list[Ending]]:
    """The endings with all changes ("chosen"), and with one of them taken back, one a seed.

    Each variant is a record of its own, so that others can be measured later.
    """
    keys = changes(name)
    record = {v: f"helped-{name}-{v.replace(' ', '-')}" for v in variants}
    return {v: _measured(store, record[v], keys[v], seeds) for v in variants}


def curve(
    store: Store, name: str = "circles", budgets: Sequence[int] = BUDGETS, seed: int = 0
) -> dict[str, list[Ending]]:
    """The endings of runs of growing length, with the changes ("chosen") and without ("plain").

    Each length is a run of its own, as both the schedule and the average depend on it.
    """
    starts = {"chosen": settings(name), "plain": plain(name, lr=0.05)}

    def row(kind: str, n: int) -> Ending:
        key = replace(starts[kind], steps=n)
        return _measured(store, f"curve-{name}-{kind}-{n}", key, [seed])[0]

    return {kind: [row(kind, n) for n in budgets] for kind in starts}
