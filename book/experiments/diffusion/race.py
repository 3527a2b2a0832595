"""Samplers with exact scores on the line, each on grids of its own, and their orders."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ctdl_lib.problems.densities import Mixture
from machinery.seeds import seeded
from machinery.store import Store

from . import samplers
from .laws import DOUBLE, MixtureScore, distance, quantiles, random_mixture
from .samplers import FLOW, GRIDS, HEUN, LINE, MEAN, SAMPLERS, SUM, Stratified

POINTS = 4096
SAMPLES = 100_000  # what a user draws: their distance to the law is the floor
BUDGETS = (8, 16, 32, 64, 128, 256)
LASTS = (0.003, 0.01, 0.03, 0.1, 0.3)
CHOSEN_ON = (0, 1, 2)
SEEDS = (10, 11, 12, 13, 14)  # of the mixtures that are reported
WIDTHS = (0.01, 0.03, 0.1, 0.3)
WIDTH_BUDGET = 32
ORDER_BUDGETS, ORDER_LAST = (32, 64, 128), 0.003

Errors = dict[str, dict[str, dict[int, list[float]]]]  # sampler, grid, budget: one a mixture


def error(p: Mixture, name: str, times: Sequence[float], seed: int, points: int = POINTS) -> float:
    """The distance W₁ between the law that a sampler makes with the exact score and p."""
    noise = Stratified(seeded(seed, 1))
    x = samplers.sample(name, MixtureScore(p), noise.start(points), list(times), noise)
    return distance(x, quantiles(p, points))


@dataclass(frozen=True)
class Race:
    """Errors on the reported mixtures; the last level of each grid was chosen on other ones."""

    last: dict[str, dict[str, dict[int, float]]]  # sampler, grid, budget
    chosen: dict[str, dict[int, str]]  # the best grid of each sampler and budget
    errors: Errors
    floor: list[float]

    def own(self, name: str, budget: int) -> list[float]:
        """The errors of a sampler on its own best grid."""
        return self.errors[name][self.chosen[name][budget]][budget]

    def needed(self, name: str) -> list[float]:
        """The least budget with which a sampler on its own grid comes below the floor, as log₂."""
        found = []
        for k, floor in enumerate(self.floor):
            enough = [n for n in self.budgets if self.own(name, n)[k] < floor]
            found.append(math.log2(enough[0] if enough else 2 * self.budgets[-1]))
        return found

    @property
    def budgets(self) -> list[int]:
        """The budgets of the race."""
        return list(next(iter(self.chosen.values())))


def times_of(name: str, kind: str, budget: int, last: float) -> list[float]:
    """The times of a sampler with a budget of evaluations."""
    return samplers.grid(kind, SAMPLERS[name].steps(budget), last)


def search(store: Store, seed: int = 0) -> Errors:
    """The mean logarithm (base 10) of the errors on three mixtures, one for each last level."""
    smoke = store.run == "smoke"
    budgets, points = (BUDGETS[:2], 64) if smoke else (BUDGETS, POINTS)
    seeds = [seed + s for s in CHOSEN_ON[: 1 if smoke else None]]
    lasts = LASTS[-2:] if smoke else LASTS
    key = {"budgets": budgets, "points": points, "lasts": lasts, "grids": GRIDS, "seeds": seeds}
    key["samplers"] = list(SAMPLERS)
    mixtures = {s: random_mixture(s) for s in seeds}

    def score(name: str, kind: str, budget: int, last: float) -> float:
        times = times_of(name, kind, budget, last)
        found = [error(p, name, times, s, points) for s, p in mixtures.items()]
        return fmean(math.log10(e) for e in found)

    def compute() -> Errors:
        each = {n: {k: {} for k in GRIDS} for n in SAMPLERS}
        for name, kinds in each.items():
            for kind in kinds:
                for n in budgets:
                    kinds[kind][n] = [score(name, kind, n, last) for last in lasts]
        return each

    return _by_budget(store.measure("grid-search", key, compute).numbers)


def race(store: Store, seed: int = 0) -> Race:
    """The errors of all samplers on all grids for mixtures that no choice has seen."""
    smoke, searched = store.run == "smoke", search(store, seed)
    last = {
        name: {
            kind: {n: LASTS[-len(row) :][row.index(min(row))] for n, row in rows.items()}
            for kind, rows in kinds.items()
        }
        for name, kinds in searched.items()
    }
    chosen = {
        name: {n: min(GRIDS, key=lambda k: min(kinds[k][n])) for n in kinds[GRIDS[0]]}
        for name, kinds in searched.items()
    }
    points, count = (64, 200) if smoke else (POINTS, SAMPLES)
    mixtures = {s: random_mixture(s) for s in seeds_of(store, seed)}
    key = {"points": points, "last": _text_keys(last), "seeds": list(mixtures), "drawn": count}

    def errors(name: str, kind: str, n: int) -> list[float]:
        times = times_of(name, kind, n, last[name][kind][n])
        return [error(p, name, times, s, points) for s, p in mixtures.items()]

    def compute() -> dict:
        return {
            "errors": {
                name: {
                    kind: {n: errors(name, kind, n) for n in rows} for kind, rows in kinds.items()
                }
                for name, kinds in last.items()
            },
            "floor": [floor(p, s, count) for s, p in mixtures.items()],
        }

    numbers = store.measure("race", key, compute).numbers
    return Race(last, chosen, _by_budget(numbers["errors"]), numbers["floor"])


def floor(p: Mixture, seed: int, count: int) -> float:
    """The distance of so many exact samples to their law, a mean over three draws."""
    exact = quantiles(p, count)
    draws = (p.sample(count, seeded(seed, 100 + k), **DOUBLE) for k in range(3))
    return fmean(distance(x, exact) for x in draws)


def seeds_of(store: Store, seed: int) -> list[int]:
    """The seeds of the reported mixtures, one in smoke."""
    return [seed + s for s in SEEDS[: 1 if store.run == "smoke" else None]]


def widths(store: Store, found: Race, seed: int = 0) -> dict[str, dict[float, list[float]]]:
    """The errors with 32 evaluations for mixtures whose parts have one width, on own grids."""
    smoke, seeds = store.run == "smoke", seeds_of(store, seed)
    n = found.budgets[-1] if smoke else WIDTH_BUDGET
    points, these = (64, WIDTHS[-2:]) if smoke else (POINTS, WIDTHS)
    names = (samplers.EULER, SUM, MEAN, FLOW, LINE, HEUN)
    grids = {name: found.chosen[name][n] for name in names}
    last = {name: found.last[name][grids[name]][n] for name in names}
    key = {"widths": these, "budget": n, "grids": grids, "last": last, "seeds": seeds}
    key["points"] = points

    def compute() -> dict:
        return {
            name: {
                w: [
                    error(
                        random_mixture(s, width=w),
                        name,
                        times_of(name, grids[name], n, last[name]),
                        s,
                        points,
                    )
                    for s in seeds
                ]
                for w in these
            }
            for name in names
        }

    numbers = store.measure("widths", key, compute).numbers
    return {name: {float(w): row for w, row in rows.items()} for name, rows in numbers.items()}


def orders(store: Store, seed: int = 0) -> dict[str, list[float]]:
    """The slope of log error over log steps for each sampler, steps even in √t, one a mixture."""
    smoke, seeds = store.run == "smoke", seeds_of(store, seed)
    budgets, points = ((8, 16), 64) if smoke else (ORDER_BUDGETS, POINTS)
    key = {"budgets": budgets, "last": ORDER_LAST, "seeds": seeds, "points": points}
    key |= {"samplers": list(SAMPLERS), "grid": "√t"}

    def slope(name: str, s: int) -> float:
        counts = [SAMPLERS[name].steps(n) for n in budgets]
        p = random_mixture(s)
        found = [
            error(p, name, samplers.grid("√t", steps, ORDER_LAST), s, points) for steps in counts
        ]
        return -fitted_slope([math.log(n) for n in counts], [math.log(e) for e in found])

    compute = lambda: {name: [slope(name, s) for s in seeds] for name in SAMPLERS}  # noqa: E731
    return store.measure("orders", key, compute).numbers


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the line of least squares."""
    mean, other = fmean(x), fmean(y)
    over = sum((a - mean) * (b - other) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean) ** 2 for a in x)


def _by_budget(numbers: dict) -> Errors:
    return {
        name: {kind: {int(n): row for n, row in rows.items()} for kind, rows in kinds.items()}
        for name, kinds in numbers.items()
    }


def _text_keys(last: dict) -> dict:
    return {
        name: {kind: list(rows.values()) for kind, rows in kinds.items()}
        for name, kinds in last.items()
    }
