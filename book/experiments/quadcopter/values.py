"""Whether Φ knows what its feedback will pay, at the start and from other starts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.references.transcription import Replanner
from machinery import instruments
from machinery.seeds import seeded
from machinery.store import Store

from . import plans
from .flights import AT, fly, linear, network
from .training import Fitted, starts

PLACES, EACH = 60, 30  # starts, and flights from each of them
SEED = 70


@dataclass(frozen=True)
class Heights:
    """What was expected and what was paid, one a start; costs are means over winds."""

    expected: Tensor
    paid: Tensor

    @property
    def error(self) -> float:
        """The mean relative error of what was expected, in percent."""
        return 100 * float((self.expected / self.paid - 1).abs().mean())

    @property
    def constant(self) -> float:
        """The mean relative error of the best constant, in percent."""
        candidates = torch.linspace(float(self.paid.min()), float(self.paid.max()), 400)
        errors = (candidates[:, None].to(self.paid) / self.paid - 1).abs().mean(1)
        return 100 * float(errors.min())

    @property
    def correlation(self) -> float:
        """The correlation of what was expected and what was paid, over starts."""
        return float(torch.corrcoef(torch.stack([self.expected, self.paid]))[0, 1])


def places(found: Heights) -> Tensor:
    """The starts whose costs were compared."""
    return starts(PLACES, seeded(SEED), dtype=torch.float64)[: len(found.paid)]


def quadratic_value(x: Tensor) -> Tensor:
    """The quadratic form along the best plan at t = 0, with the cost ½σ² Σ h tr P of the wind."""
    (sigma, steps), along = AT, plans.along(AT[1])
    away = x - along.x[0]
    noise = 0.5 * sigma**2 / steps * along.P[1:, 0].diagonal(dim1=1, dim2=2).sum()
    bent = 0.5 * (away * (along.P[0] @ away[:, :, None])[:, :, 0]).sum(1)
    return plans.best(steps).cost + (along.p[0] * away).sum(1) + bent + noise


def heights(store: Store, fitted: Fitted) -> Heights:
    """Φ(0, x) and the mean cost of its feedback from x, for many starts."""
    smoke, (sigma, steps) = store.run == "smoke", AT
    count, each = (3, 2) if smoke else (PLACES, EACH)
    x = starts(PLACES, seeded(SEED), dtype=torch.float64)[:count]

    def compute() -> dict[str, list[float]]:
        policy, n = network(fitted.phi)(steps), 50 if smoke else steps
        costs = fly(policy, sigma, n, count * each, x=x.repeat(each, 1))
        return {"paid": costs.view(each, count).mean(0).round(decimals=1).tolist()}

    key: dict[str, Any] = {"places": PLACES, "each": EACH, "seed": SEED}
    key |= {"weights": fitted.record.weights}
    found = store.measure(f"heights-{fitted.seed}", key, compute).numbers["paid"]
    paid = torch.tensor(found, dtype=torch.float64)
    return Heights(fitted.phi(0.0, x), paid)


def clock(store: Store, fitted: Fitted) -> dict[str, float]:
    """The milliseconds of one control by the network, the linear feedback and a new plan."""
    rounds = 3 if store.run == "smoke" else 50

    def compute() -> dict[str, float]:
        policy, x = network(fitted.phi)(100), plans.QUAD.start[None]
        line, replan = linear(100), Replanner(plans.SYMBOLS, plans.best(100))
        replan(0.0, x)
        plan = replan.plans

        def again() -> None:
            replan.plans = plan
            replan(0.01, x)

        runs = {"network": lambda: policy(0.0, x), "linear": lambda: line(0.0, x), "mpc": again}
        times = instruments.interleaved_times(runs, rounds=rounds)
        return {name: 1000 * seconds for name, seconds in times.items()}

    return store.measure("clock", {"steps": 100, "rounds": 50}, compute).numbers
