"""Which of the changes to the published settings helped: each is taken back, one at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from machinery.store import Store

from .densities import PUBLISHED, Settings, gap, held_out, plain, settings, steps_of, untrained

SEEDS = (0, 1)  # those on which settings are chosen
DENSITIES = ("circles",)
BUDGETS = (150, 300, 600, 1200)
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
        "published α": replace(key, alpha=PUBLISHED[name][0]),
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


def _measured(
    store: Store, name: str, keys: dict[str, Settings], seeds: Sequence[int]
) -> dict[str, list[Ending]]:
    """The endings of all settings by their names, one a seed, kept in the store."""
    smoke = store.run == "smoke"
    tried = dict(list(keys.items())[:1]) if smoke else keys

    def compute() -> dict[str, Any]:
        return {k: [asdict(ending(key, s, smoke)) for s in seeds] for k, key in tried.items()}

    stored = {"variants": {k: asdict(key) for k, key in keys.items()}, "seeds": list(seeds)}
    numbers = store.measure(name, stored, compute).numbers
    return {k: [Ending(**row) for row in rows] for k, rows in numbers.items()}


def helped(
    store: Store, densities: Sequence[str] = DENSITIES, seeds: Sequence[int] = SEEDS
) -> dict[str, dict[str, list[Ending]]]:
    """The endings for each density with all changes, and with each of them taken back."""
    return {name: _measured(store, f"helped-{name}", changes(name), seeds) for name in densities}


def curve(
    store: Store, name: str = "circles", budgets: Sequence[int] = BUDGETS, seed: int = 0
) -> dict[str, list[Ending]]:
    """The endings of runs of growing length, with the changes ("chosen") and without ("plain").

    Each length is a run of its own, as both the schedule and the average depend on it.
    """
    starts = {"chosen": settings(name), "plain": plain(name, lr=0.05)}
    keys = {f"{k} {n}": replace(key, steps=n) for k, key in starts.items() for n in budgets}
    found = _measured(store, f"curve-{name}", keys, [seed])
    chosen = [rows[0] for key, rows in found.items() if key.startswith("chosen")]
    return {"chosen": chosen, "plain": [r[0] for k, r in found.items() if k.startswith("plain")]}
