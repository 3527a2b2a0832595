"""Learned posteriors of the stochastic Lotka–Volterra model: data, pilot runs and trainings."""

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from machinery.seeds import seeded
from machinery.store import Store

from . import maps, posteriors, tasks
from .campaigns import seeds as spawned
from .lotka_volterra import THETA, StochasticLotkaVolterra
from .maps import (
    COT,
    COT_LONG,
    COT_READS,
    COT_WIDE,
    FMPE,
    FMPE_LONG,
    FMPE_READS,
    NPE,
    NPE_LONG,
    NPE_READS,
    PCP,
    PCP_LONG,
    PCP_READS,
    Fitted,
    Key,
)
from .problems import BoxUniform

PROBLEM = StochasticLotkaVolterra()
TRUE = torch.tensor(THETA, dtype=torch.float64).log()
OBSERVED = torch.tensor(  # they come with the code of the paper
    [
        [28.887, 9.14, 8.203, 6.873, 0.9988, 0.9790, 0.9668, 0.8959, 0.5278],
        [115.693, 2.347, 5.650, 4.944, 0.9331, 0.8653, 0.7366, 0.5061, -0.3860],
    ],
    dtype=torch.float64,
)
BOX = ((PROBLEM.low,) * 4, (PROBLEM.high,) * 4)
SIZES = (5_000, 20_000, 50_000, 500_000)
LENGTHS: dict[str, dict[int, int]] = {
    COT: dict(zip(SIZES, (1500, 3000, 5000, 8000), strict=True)),
    PCP: dict(zip(SIZES, (1000, 2000, 3000, 5000), strict=True)),
    NPE: dict(zip(SIZES, (1000, 2000, 3000, 5000), strict=True)),
    FMPE: {50_000: 4000},
    COT_LONG: {50_000: 9000},
    COT_WIDE: {50_000: 9000},
    NPE_LONG: {50_000: 6000},
    COT_READS: {50_000: 9000, 500_000: 9000},
    NPE_READS: {50_000: 6000, 500_000: 6000},
    PCP_LONG: {50_000: 8000},
    PCP_READS: {50_000: 8000},
    FMPE_LONG: {50_000: 8000},
    FMPE_READS: {50_000: 8000},
}
RIVALS: dict[str, Key] = {
    PCP: {"width": 64, "batch": 256, "lr": 0.01},
    NPE: {"width": 64, "batch": 256, "lr": 0.002, "clip": 5.0},
    FMPE: {"width": 100, "batch": 256, "lr": 0.002},
}
AVERAGE: Key = {"average": 0.998, "autoclip": 2.0}  # what the trainings with an encoder have, too
WIDE: Key = AVERAGE | {"width": 136}  # 20,963 weights; with an encoder it has 21,115
READS: Key = AVERAGE | {"encoder": {"features": 32, "width": 96}}
SPACE: dict[str, list[Any]] = {
    **{"width": [32, 64], "rk4": [4, 6], "batch": [256, 512], "lr": [0.005, 0.01, 0.02]},
    **{"alpha": [1.0, 3.0], "beta": [-1.0, 1.0]},  # powers of ten, uniform between
}
CHOSEN = ("width", "rk4", "batch", "lr")
WEIGHTS = ("alpha", "beta")
TRIALS = 100
ZOOM: Key = {"simulations": 100_000, "steps": 4000, "drawn": 5000, "tail": 0.001, "margin": 0.25}


def chosen(name: str, n: int) -> str:
    """The way a method is judged with n simulations: with an encoder where that was trained."""
    reads = f"{name}+encoder"
    return reads if n in LENGTHS.get(reads, {}) else name


def features(y: Tensor) -> Tensor:
    """What the networks see: counts as log(1 + ·), correlations as artanh(0.99 ·)."""
    return torch.cat([y[:, :2].log1p(), y[:, 2:4], (0.99 * y[:, 4:]).atanh()], 1).float()


@cache
def pairs(n: int, s: int) -> tuple[Tensor, Tensor]:
    """The pairs of n draws of the prior, without those that were given up."""
    x = PROBLEM.prior.sample(n, seeded(s, 0), dtype=torch.float64)
    y, completed = PROBLEM.simulate(x, spawned(n, s))
    return x[completed], y[completed]


def inside(model: Any, y: Tensor, n: int, seed: int = 0, k: int = 0) -> Tensor:
    """Samples of the posterior of one y that lie in the box of the prior."""
    bound = model.given(features(y[None]))
    return posteriors.sample_inside(bound, PROBLEM.prior, n, seeded(seed, k)).x


def around(x: Tensor) -> BoxUniform:
    """A box around samples, without their tails and with a margin, within that of the prior."""
    low, high = x.quantile(torch.tensor([ZOOM["tail"], 1 - ZOOM["tail"]]), dim=0)
    margin = ZOOM["margin"] * (high - low)
    return BoxUniform(
        tuple((low - margin).clamp(min=PROBLEM.low).tolist()),
        tuple((high + margin).clamp(max=PROBLEM.high).tolist()),
    )


@dataclass(frozen=True)
class Campaign:
    """All trainings of the chapter on this model, with one store and one base seed."""

    store: Store
    seed: int = 0
    loaded: dict[tuple[str, int], list[Fitted]] = field(default_factory=dict, repr=False)

    @property
    def smoke(self) -> bool:
        """Whether this is a trial run."""
        return self.store.run == "smoke"

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds of the trainings."""
        return maps.seeds_of(self.store, self.seed)

    def data(self, n: int, s: int) -> tuple[Tensor, Tensor]:
        """Parameters, and the features of their data, of n draws of the prior."""
        x, y = pairs(100 if self.smoke else n, s)
        return x.float(), features(y)

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Pairs by which methods are compared; no training and no choice has seen them."""
        x, y = self.data(3000, self.seed + 2)
        return (x[:20], y[:20]) if self.smoke else (x, y)

    # the pilot runs -----------------------------------------------------------------------------

    def trial(self, k: int) -> Key:
        """Settings drawn at random, and the NLL of new pairs after one epoch with them."""
        rng = np.random.default_rng([self.seed, k])
        key: Key = {name: rng.choice(SPACE[name]).item() for name in CHOSEN}
        key |= {name: float(f"{10 ** rng.uniform(*SPACE[name]):.3g}") for name in WEIGHTS}
        x, y = self.data(50_000, self.seed)
        key |= {"method": COT, "steps": 3 if self.smoke else len(x) // key["batch"]}
        model = maps.model_of(key, 4, 9, self.seed, BOX)
        *_, last = maps.steps_of(model, key, x, y, self.seed, key["steps"])
        score = maps.mean_nll(model, *self.data(5000, self.seed + 1))
        return key | {"nll": score, "seconds": last.seconds}

    def _search(self) -> Key:
        trials = [(k,) for k in range(1 if self.smoke else TRIALS)]
        return {"trials": tasks.run(self.trial, trials, progress=self.store.progress)}

    @cached_property
    def pilots(self) -> list[Key]:
        """The pilot runs, the best first."""
        key = {"trials": TRIALS, "epochs": 1, "simulations": 50_000, "seed": self.seed}
        record = self.store.measure("pilot", key | {"space": SPACE}, self._search)
        return sorted(record.numbers["trials"], key=lambda row: row["nll"])

    @cached_property
    def methods(self) -> dict[str, Key]:
        """The settings of each method; those of COT-Flow are the best of the pilot runs."""
        best = self.pilots[0]
        found = {COT: {name: best[name] for name in (*CHOSEN, *WEIGHTS)}, **RIVALS}
        rates = {COT: 0.01}  # half of that of the plain training
        for name in (*maps.READERS, *maps.LONG, COT_WIDE):
            base = maps.base_of(name)
            plain = {part: value for part, value in found[base].items() if part != "clip"}
            how = {"encoder": READS, "average": AVERAGE, "wide": WIDE}[name.partition("+")[2]]
            found[name] = plain | {"lr": rates.get(base, plain["lr"])} | how
        return found

    # the trainings ------------------------------------------------------------------------------

    def sizes(self, name: str) -> list[int]:
        """The numbers of simulations that a method was trained with."""
        return list(LENGTHS[name])

    def seeds_at(self, name: str, n: int) -> list[int]:
        """The seeds of a method: one for most rivals with most simulations."""
        return self.seeds[:1] if n == SIZES[-1] and name in (PCP, NPE, NPE_READS) else self.seeds

    def fit(self, name: str, n: int, s: int) -> Fitted:
        """The map that a method has learned from n draws of the prior."""
        how = {"method": maps.base_of(name), "simulations": n, "steps": LENGTHS[name][n]}
        key = self.methods[name] | how
        data = lambda: self.data(n, s)  # noqa: E731
        return maps.learned(self.store, f"{name}-{n}", key, 4, 9, data, s, BOX)

    def fits(self, name: str, n: int) -> list[Fitted]:
        """The maps of all seeds, which are loaded once."""
        if (name, n) not in self.loaded:
            self.loaded[name, n] = [self.fit(name, n, s) for s in self.seeds_at(name, n)]
        return self.loaded[name, n]

    def zoomed(self, index: int, s: int) -> Fitted:
        """COT-Flow trained again, in a box around its own samples for one observation."""
        parent = self.fits(COT, 50_000)[self.seeds.index(s)]
        drawn = 200 if self.smoke else ZOOM["drawn"]
        box = around(inside(parent.model, OBSERVED[index], drawn, self.seed))

        def data() -> tuple[Tensor, Tensor]:
            n = 300 if self.smoke else ZOOM["simulations"]
            x = box.sample(n, seeded(s, 5 + index), dtype=torch.float64)
            y, completed = PROBLEM.simulate(x, spawned(n, [s, 5 + index]))
            return x[completed].float(), features(y[completed])

        own = {"method": COT, "index": index, "parent": parent.record.weights}
        key = self.methods[COT] | own | ZOOM
        name, limits = f"zoom-theta{index + 1}", (box.low, box.high)
        return maps.learned(self.store, name, key, 4, 9, data, s, limits)

    def zooms(self, index: int) -> list[Fitted]:
        """The trainings near one observation, of all seeds."""
        place = ("zoom", index)
        if place not in self.loaded:
            self.loaded[place] = [self.zoomed(index, s) for s in self.seeds]
        return self.loaded[place]
