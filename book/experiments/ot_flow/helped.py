"""Which changes to the settings help in short runs: each is made alone, and all together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from machinery.store import Store

from .densities import (
    Settings,
    described,
    gap,
    held_out,
    settings,
    steps_of,
    untrained,
)

SEEDS = (0,)  # one of those on which settings are chosen
STEPS = 250
MEASURED = ("plain", "average", "alpha 100", "clipped", "constant rate", "all")
SMOKE_POINTS = 200


@dataclass(frozen=True)
class Ending:
    """How one training ended: its gap above the least NLL, the error of that, and its seconds."""

    gap: float
    standard_error: float
    seconds: float


def changes(name: str) -> dict[str, Settings]:
    """The settings of short runs by name: the chosen ones, and the same with one change or all."""
    key = replace(settings(name), steps=STEPS)
    all_of_them = {"alpha": 100.0, "max_grad_norm": 3.0, "average": 0.99, "rk4": 8}
    return {
        "plain": key,
        "average": replace(key, average=0.99),
        "alpha 100": replace(key, alpha=100.0),
        "clipped": replace(key, max_grad_norm=3.0),
        "constant rate": replace(key, schedule="constant"),
        "twice the batch": replace(key, batch=2 * key.batch),
        "all": replace(key, **all_of_them),
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
    """The endings of short runs without and with changes (see `changes`), one a seed.

    Each variant is a record of its own, so that others can be measured later.
    """
    keys = changes(name)
    record = {v: f"helped-{name}-{v.replace(' ', '-')}" for v in variants}
    return {v: _measured(store, record[v], keys[v], seeds) for v in variants}
