"""Discretise, then optimise, or optimise, then discretise: one training, both ways."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctdl_lib.dynamics import IntegrationError, Statistics, integrate
from machinery.store import Store

from .gradients import Contracting, How

SEEDS = (10, 11, 12, 13, 14)
RATES = {"mild": 0.0, "stiff": 10.0}
FIRST_DISCRETE, LOOSE, TIGHT = "15 steps of RK4, through", "adjoint, tol 1e-3", "adjoint, tol 1e-5"
SAME = "dopri5, tol 1e-3, through"
WAYS: dict[str, How] = {
    FIRST_DISCRETE: {"steps": 15},
    SAME: {"tol": 1e-3},
    LOOSE: {"tol": 1e-3, "backprop": "adjoint"},
    TIGHT: {"tol": 1e-5, "backprop": "adjoint"},
}


@dataclass(frozen=True)
class Settings:
    """A velocity tanh(Wx) − cDx is found from where it carries 32 points until T = 3."""

    rate: float
    way: str
    iterations: int = 150
    lr: float = 0.03
    horizon: float = 3.0
    points: int = 32
    tests: int = 200


class Result(NamedTuple):
    """The loss on the data and on fresh points by 400 steps, the evaluations, and lost steps."""

    loss: float
    test: float
    evaluations: int
    lost: int


def duel(key: Settings, seed: int, iterations: int, fine: int = 400) -> Result:
    """One training from W = 0 by Adam; iterations without a gradient change nothing.

    `fine` steps make the data and judge the result.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(n, 8, generator=generator, dtype=torch.float64)  # noqa: E731
    true, x, fresh = Contracting(key.rate, seed + 100), draw(key.points), draw(key.tests)

    def end(f: Contracting, x: Tensor, **how: Any) -> Tensor:
        return integrate(f, x, 0.0, key.horizon, **how)

    with torch.no_grad():
        target, fresh_target = end(true, x, steps=fine), end(true, fresh, steps=fine)
    found = Contracting(key.rate, seed)
    found.W.data.zero_()
    adam, costs, lost = torch.optim.Adam(found.parameters(), lr=key.lr), Statistics(), 0
    for _ in range(iterations):
        adam.zero_grad()
        try:
            path = end(found, x, statistics=costs, max_steps=300, **WAYS[key.way])
            (path - target).square().mean().backward()
        except IntegrationError:
            lost += 1
            continue
        adam.step()
    with torch.no_grad():
        losses = (
            (end(found, x, steps=fine) - target).square().mean().item(),
            (end(found, fresh, steps=fine) - fresh_target).square().mean().item(),
        )
    return Result(*losses, costs.evaluations + costs.backward_evaluations, lost)


def duels(store: Store, seeds: Sequence[int]) -> dict[tuple[str, str], list[Result]]:
    """The results of all seeds by problem and way, measured once."""
    found = {}
    for name, rate in RATES.items():
        for way in WAYS:
            key = Settings(rate, way)
            few = (2, 40) if store.run == "smoke" else (key.iterations,)

            def compute(key: Settings = key, few: tuple[int, ...] = few) -> dict[str, Any]:
                return {"results": [list(duel(key, s, *few)) for s in seeds]}

            short = way.replace(",", "").replace(" ", "-")
            record = store.measure(
                f"duel-{name}-{short}", asdict(key) | {"seeds": list(seeds)}, compute
            )
            found[name, way] = [Result(*values) for values in record.numbers["results"]]
    return found
