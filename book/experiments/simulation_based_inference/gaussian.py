"""Learned posteriors of a linear problem, where all laws are normal and the best map is known."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ctdl_lib.generative import transport
from machinery.seeds import seeded
from machinery.store import Store

from . import maps
from .campaigns import seeds as spawned
from .maps import COT, NPE, PCP, Fitted, Key
from .problems import LinearGaussian, hilbert

SETTINGS: dict[str, Key] = {
    COT: {"width": 32, "rk4": 4, "alpha": 100.0, "beta": 1.0, "lr": 0.02, "steps": 4000},
    PCP: {"width": 32, "lr": 0.01, "steps": 2000},
    NPE: {"width": 32, "lr": 0.005, "steps": 2000},
}
SIMULATIONS, BATCH, NEW = 200_000, 512, 5000


class Errors(NamedTuple):
    """What three trainings of each method are wrong by, one number a seed."""

    kl: dict[str, list[float]]
    """KL from the exact posteriors, in nats."""
    map: dict[str, list[float]]
    """Distance from the map of optimal transport, in percent."""
    hjb: list[float]
    """HJB residual of COT-Flow over its transport cost, in percent."""
    margins: float
    """KL of the product of the exact marginals."""


def problem() -> LinearGaussian:
    """The problem y = Ax + 0.1 e with the Hilbert matrix A of 6 rows and 3 columns."""
    return hilbert(6, 3, noise=0.1)


@cache
def _pairs(n: int, s: int) -> tuple[Tensor, Tensor]:
    linear = problem()
    x = linear.prior.sample(n, seeded(s, 0), dtype=torch.get_default_dtype())
    return x, linear.simulate(x, spawned(n, s)).y


def new_pairs(n: int = NEW, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs in double precision that no training has seen."""
    linear = problem()
    x = linear.prior.sample(n, seeded(seed, 0), dtype=torch.float64)
    return x, linear.simulate(x, spawned(n, seed)).y


def fit(store: Store, name: str, s: int) -> Fitted:
    """The map that a method has learned."""
    key = SETTINGS[name] | {"method": name, "batch": BATCH, "simulations": SIMULATIONS}
    n = 1000 if store.run == "smoke" else SIMULATIONS
    return maps.learned(store, f"gaussian-{name}", key, 3, 6, lambda: _pairs(n, s), s)


def optimal(x: Tensor, y: Tensor) -> Tensor:
    """The points Σ^(−1/2)(x − mean) to which optimal transport moves the posteriors."""
    mean, covariance = problem().posterior(y)
    values, basis = torch.linalg.eigh(covariance)
    return (x - mean) @ (basis / values.sqrt()) @ basis.T


def own(model: Any, *pairs: Tensor) -> list[Tensor]:
    """Pairs in the precision of a map."""
    like = next(model.data.buffers())
    return [part.to(like) for part in pairs]


def divergence(model: Any, x: Tensor, y: Tensor) -> float:
    """The mean KL from the exact posterior, by new pairs."""
    exact = problem().posterior_log_prob(x, y).mean().item()
    return exact + maps.mean_nll(model, *own(model, x, y))


def map_error(model: Any, x: Tensor, y: Tensor) -> float:
    """The distance of the learned map from that of optimal transport, in percent of its size."""
    best, (x, y) = optimal(x, y), own(model, x, y)
    with torch.no_grad(), maps.quietly():
        z = model.given(y)(x).double()
    return 100 * float((z - best).norm() / best.norm())


def hjb_residual(model: Any, x: Tensor, y: Tensor) -> float:
    """The mean of ∫|∂ₜΦ − ½‖∇Φ‖²|dt over that of ∫½‖∇Φ‖²dt, in percent."""
    x, y = own(model, x, y)
    with torch.no_grad():
        phi = model.velocity.given(model.conditions(y))
        end = transport(phi, model.data(x), steps=32)
    return 100 * float(end.hjb_residual.mean() / end.transport_cost.mean())


def margins(x: Tensor, y: Tensor) -> float:
    """The mean KL of the product of the exact marginals of each posterior."""
    mean, covariance = problem().posterior(y)
    narrow = MultivariateNormal(mean, covariance.diag().diag())
    exact = problem().posterior_log_prob(x, y)
    return float((exact - narrow.log_prob(x)).mean())


def errors(store: Store, seed: int = 0) -> Errors:
    """The errors of all methods, one a seed."""
    seeds = maps.seeds_of(store, seed)
    fits = {name: [fit(store, name, s) for s in seeds] for name in SETTINGS}
    weights = {name: [fitted.record.weights for fitted in row] for name, row in fits.items()}

    def compute() -> dict[str, Any]:
        x, y = new_pairs(200 if store.run == "smoke" else NEW, seed)
        fine = {name: [maps.by_steps(f.model, 32) for f in row] for name, row in fits.items()}
        return {
            "kl": {name: [divergence(m, x, y) for m in row] for name, row in fine.items()},
            "map": {name: [map_error(m, x, y) for m in row] for name, row in fine.items()},
            "hjb": [hjb_residual(model, x, y) for model in fine[COT]],
            "margins": margins(x, y),
        }

    key = {"pairs": NEW, "steps": 32, "weights": weights, "seed": seed}
    return Errors(**store.measure("gaussian-errors", key, compute).numbers)
