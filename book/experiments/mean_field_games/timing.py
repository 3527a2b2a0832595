"""What a training step costs as the dimension grows, to be compared with a grid."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ctdl_lib.generative import mean_field
from ctdl_lib.potentials import AutodiffPotential
from machinery import instruments
from machinery.store import Store

from .games import ring_to_gaussian
from .training import DIMENSIONS, Learned

MANY = (2, 10, 100, 1000)
AUTODIFF = (2, 10, 100)
REPETITIONS = 3
WEIGHTS: dict[str, Any] = {"steps": 2, "hjb": 1.5, "terminal_condition": 1.5}

Times = dict[int, list[float]]  # milliseconds, one a repetition, by dimension


def one_step(d: int, batch: int, *, automatic: bool = False) -> Callable[[], None]:
    """A loss and its gradient for the ring in ℝᵈ, by the closed form or by second derivatives."""
    game, model = ring_to_gaussian(d), Learned(d, 16, 1, 0)
    phi = AutodiffPotential(model.phi) if automatic else model.phi
    generator = torch.Generator().manual_seed(0)
    x = game.initial.sample(batch, generator, dtype=torch.float32)

    def step() -> None:
        terms = mean_field(phi, x, game, **WEIGHTS)
        torch.stack(list(terms.values())).sum().backward()

    return step


def measured(store: Store, name: str, key: dict[str, Any], runs: Callable[[], Any]) -> Times:
    """The milliseconds of runs, a repetition each with five rounds by turns."""
    rounds, smoke = 5, store.run == "smoke"

    def compute() -> dict[str, dict[str, float]]:
        found = {}
        for k in range(1 if smoke else REPETITIONS):
            times = instruments.interleaved_times(runs(), rounds=1 if smoke else rounds)
            found[str(k + 1)] = {d: 1000 * seconds for d, seconds in times.items()}
        return found

    rows = store.measure(name, key, compute).numbers.values()
    return {int(d): [row[d] for row in rows] for d in next(iter(rows))}


def step_times(store: Store) -> Times:
    """The milliseconds of a step of 512 points, for the dimensions of the trainings."""
    key = {"dimensions": DIMENSIONS, "width": 16, "batch": 512, "steps": 2, "repetitions": 3}
    return measured(store, "step-times", key, partial(_runs, DIMENSIONS, 512, store))


def many_times(store: Store) -> Times:
    """The milliseconds of a step of 512 points, up to 1,000 dimensions."""
    key = {"dimensions": MANY, "width": 16, "batch": 512, "steps": 2, "repetitions": REPETITIONS}
    return measured(store, "step-times-1000", key, partial(_runs, MANY, 512, store))


def automatic_times(store: Store) -> dict[str, Times]:
    """The milliseconds of a step of 64 points by the closed form, and by second derivatives."""
    key = {"dimensions": AUTODIFF, "width": 16, "batch": 64, "steps": 2}
    key |= {"repetitions": REPETITIONS}
    return {
        name: measured(
            store,
            f"step-times-{name}",
            key | {"automatic": automatic},
            partial(_runs, AUTODIFF, 64, store, automatic=automatic),
        )
        for name, automatic in (("closed", False), ("automatic", True))
    }


def _runs(
    dimensions: Sequence[int], batch: int, store: Store, *, automatic: bool = False
) -> dict[str, Callable[[], None]]:
    size = 8 if store.run == "smoke" else batch
    return {str(d): one_step(d, size, automatic=automatic) for d in dimensions}
