"""Posteriors to compare with: sequential Monte Carlo, and simple rivals of equal cost."""

import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.distributions import MultivariateNormal

from machinery.seeds import seeded
from machinery.store import Record, Store

from .campaigns import seeds as spawned
from .campaigns import simulate
from .maps import CHAPTER, Key
from .predators import OBSERVED, PROBLEM, features, pairs
from .smc import geometric, smc_abc

SHARED: Key = {"start": 10.0, "factor": 0.85, "batch": 10_000, "scale": 50_000}
ADAPTED: Key = {"start": 100.0, "factor": 0.8, "particles": 1000, "repeats": 40}
RUNS: dict[str, Key] = {  # the first two end at the published tolerances
    "theta1": {"index": 0, "stop": 0.0898, "particles": 2000},
    "theta2": {"index": 1, "stop": 0.1462, "particles": 2000},
    "theta1-half": {"index": 0, "stop": 0.0449, "particles": 500},
    "theta2-half": {"index": 1, "stop": 0.0731, "particles": 1000},
    "theta1-adapted": ADAPTED | {"index": 0, "stop": 1.0, "after": "theta1-half"},
    "theta2-adapted": ADAPTED | {"index": 1, "stop": 1.15, "after": "theta2-half"},
}
STAGES: list[Key] = [{"draws": 500, "repeats": 100}, {"draws": 1500, "repeats": 200}]
DRAWS = 600_000  # simulations, of which a regression takes the nearest
WIDE = 1.5  # the deviations of proposals, in those of what is known before
PUBLISHED = (17.9, 5.8)  # million simulations, as the slide has them
COUNTED = (4_948_586, 1_583_684)  # the counters at the end of the published runs
NEIGHBOURS = 15
KEPT = 500  # simulations that rejection keeps
LIMIT = 1_000_000_000


class Gap(NamedTuple):
    """How far a posterior is from the reference, the worst of its coordinates."""

    mean: float
    """Difference of the means, in standard deviations of the reference."""
    narrow: float
    """The least error of a standard deviation, in percent."""
    wide: float
    """The largest error of a standard deviation, in percent."""

    @property
    def std(self) -> float:
        """The largest absolute error of a standard deviation, in percent."""
        return max(-self.narrow, self.wide)


def gap(row: Key, reference: Key) -> Gap:
    """The gap between two posteriors, each with its `mean` and its `std`."""
    mean, std = (torch.tensor(row[part], dtype=torch.float64) for part in ("mean", "std"))
    at, scale = (torch.tensor(reference[part], dtype=torch.float64) for part in ("mean", "std"))
    shift, ratio = (mean - at).abs() / scale, 100 * (std / scale - 1)
    return Gap(float(shift.max()), float(ratio.min()), float(ratio.max()))


# sequential Monte Carlo -------------------------------------------------------------------------


def _root(store: Store, key: Key) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """What is done to statistics, and the matrix that weighs them."""
    smoke = store.run == "smoke"
    if "after" not in key:
        scale = pairs(1000 if smoke else key["scale"], key["seed"])[1].std(0)
        return (lambda y: y), (1 / scale).diag()
    before = record(store, key["after"], key["seed"]).numbers["x"]
    x = torch.tensor(before, dtype=torch.float64).repeat(key["repeats"], 1)
    y, completed = PROBLEM.simulate(x, spawned(len(x), key["seed"]))
    covariance = features(y[completed]).double().T.cov()
    return (lambda y: features(y).double()), torch.linalg.cholesky(covariance.inverse())


def _sequential(store: Store, name: str, key: Key) -> Key:
    transformed, root = _root(store, key)
    target = transformed(OBSERVED[[key["index"]]])
    smoke = store.run == "smoke"
    path = store.folder / CHAPTER / f"smc-{name}.checkpoint.safetensors"
    rounds = smc_abc(
        lambda x, words: simulate(PROBLEM.simulate, x, seed=words),
        PROBLEM.prior,
        lambda y: ((transformed(y) - target) @ root).norm(dim=1),
        particles=50 if smoke else key["particles"],
        tolerances=geometric(
            key["start"], key["start"] / 2 if smoke else key["stop"], key["factor"]
        ),
        seed=key["seed"],
        batch=key["batch"],
        max_simulations=LIMIT,
        checkpoint=None if smoke else path,
        identity={"y": target.tolist(), "root": root.tolist()},
    )
    started, found, before = time.monotonic(), [], torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # in which the prior draws
    try:
        for p in rounds:
            row = {"tolerance": p.tolerance, "simulations": p.total_simulations, "ess": p.ess}
            row |= {"aborted": p.aborted, "mean": p.mean().tolist()}
            row |= {"std": p.covariance().diagonal().sqrt().tolist()}
            found.append(row | {"seconds": time.monotonic() - started})
    finally:
        torch.set_default_dtype(before)
    digits = lambda values: np.round(values.numpy(), 5).tolist()  # noqa: E731
    return {"rounds": found, "x": digits(p.x), "weights": digits(p.log_weights)}


@cache
def record(store: Store, name: str, seed: int = 0) -> Record:
    """A run of SMC-ABC: its rounds, and the particles of the last one."""
    own = RUNS[name]
    key = SHARED | {"seed": seed} | own | {"observed": OBSERVED[own["index"]].tolist()}
    return store.measure(f"smc-{name}", key, partial(_sequential, store, name, key))


def records(store: Store, seed: int = 0) -> dict[str, Record]:
    """All runs of SMC-ABC."""
    found = {}
    for name in RUNS:
        found[name] = record(store, name, seed)
    return found


def last(found: Record) -> Key:
    """The last round of a run."""
    return found.numbers["rounds"][-1]


def completed(found: Record) -> int:
    """How many simulations of a run were completed, each counted once."""
    rounds = found.numbers["rounds"]
    return rounds[-1]["simulations"] - sum(row["aborted"] for row in rounds)


def summed(found: Record) -> int:
    """The sum of the counters of all rounds, each of which contains the rounds before it."""
    rounds = found.numbers["rounds"]
    given_up = np.cumsum([row["aborted"] for row in rounds])
    counters = np.array([row["simulations"] for row in rounds]) - given_up
    return int(counters.sum())


def particles(found: Record) -> tuple[Tensor, Tensor]:
    """The particles of the last round, and their weights."""
    x, weights = (torch.tensor(found.numbers[part]).double() for part in ("x", "weights"))
    return x, weights.exp()


def thinned(found: Record, seed: int = 0) -> Tensor:
    """Particles without weights, none of them twice: each stays with probability w/max w.

    A classifier would recognise a particle that is in its training and in its test.
    """
    x, weights = particles(found)
    u = torch.rand(len(x), generator=seeded(seed, 0), dtype=torch.float64)
    return x[u * weights.max() < weights]


def resampled(found: Record, n: int, seed: int = 0) -> Tensor:
    """Particles drawn by weight, for pictures."""
    x, weights = particles(found)
    return x[torch.multinomial(weights, n, replacement=True, generator=seeded(seed, 0))]


def needed(runs: list[Record], reference: Key, wanted: Gap) -> tuple[float, bool]:
    """The simulations after which a run is as near to the reference, in both gaps, as `wanted`.

    It is the least over the runs; if none comes as near, it is the most that a run has made, and
    the second entry is False.
    """
    enough = [
        row["simulations"]
        for run in runs
        for row in run.numbers["rounds"]
        if (at := gap(row, reference)).mean <= wanted.mean and at.std <= wanted.std
    ]
    most = max(last(run)["simulations"] for run in runs)
    return float(min(enough, default=most)), bool(enough)


# a second reference -----------------------------------------------------------------------------


def gaussian_log_likelihood(f: Tensor, completed: Tensor, target: Tensor) -> Tensor:
    """The log density of `target` (m,) by a normal law fitted to features f (n, k, m), for each n.

    It is fitted to the runs that were `completed` (n, k), and their share is a factor, since a run
    that was given up has no statistics. Where fewer than 2m completed, it is −∞. A feature that is
    the same in all runs, as after extinction, gets a tiny variance.

    Reference: wood2010statistical.
    """
    found, tiny = (
        torch.full((len(f),), -math.inf, dtype=f.dtype),
        1e-9 * torch.eye(f.shape[2]).to(f),
    )
    for i, (rows, kept) in enumerate(zip(f, completed, strict=True)):
        if int(kept.sum()) >= 2 * f.shape[2]:
            law = MultivariateNormal(rows[kept].mean(0), rows[kept].T.cov() + tiny)
            found[i] = law.log_prob(target) + kept.double().mean().log()
    return found


class Proposed(NamedTuple):
    """Parameters of a wide normal law inside of the prior's box, and their log density by it."""

    x: Tensor
    log_density: Tensor


def proposed(mean: Tensor, covariance: Tensor, n: int, seed: int) -> Proposed:
    """Draws around a posterior, with `WIDE` times its deviations."""
    law = MultivariateNormal(mean, WIDE**2 * covariance)
    z = torch.randn(4 * n, len(mean), generator=seeded(seed, 6), dtype=torch.float64)
    x = mean + z @ law.scale_tril.T
    x = x[PROBLEM.prior.inside(x)][:n]
    return Proposed(x, law.log_prob(x))


def weighted(x: Tensor, log_weights: Tensor) -> Key:
    """The mean, covariance and effective sample size of weighted parameters."""
    weights = log_weights.softmax(0)
    centre = weights @ x
    spread = (weights[:, None] * (x - centre)).T @ (x - centre)
    return {"mean": centre, "covariance": spread, "ess": float(1 / weights.square().sum())}


def _by_synthetic_likelihood(key: Key, stage: Key, mean: Tensor, covariance: Tensor) -> Key:
    """The moments of proposals, weighted by the synthetic likelihood of each."""
    repeats, target = stage["repeats"], features(OBSERVED[[key["index"]]])[0].double()
    x, log_density = proposed(mean, covariance, stage["draws"], key["seed"])
    words = spawned(len(x) * repeats, key["seed"])
    y, completed = PROBLEM.simulate(x.repeat_interleave(repeats, 0), words)
    f = features(y).double().reshape(len(x), repeats, -1)
    log_w = gaussian_log_likelihood(f, completed.reshape(len(x), repeats), target)
    return weighted(x, log_w - log_density)


def _by_regression(key: Key, draws: int, mean: Tensor, covariance: Tensor) -> Key:
    """The moments of the proposals with the nearest features, moved along a linear regression."""
    x, log_density = proposed(mean, covariance, draws, key["seed"])
    y, completed = PROBLEM.simulate(x, spawned(len(x), [key["seed"], 6]))
    x, log_density, f = x[completed], log_density[completed], features(y[completed]).double()
    root = torch.linalg.cholesky(f.T.cov().inverse())
    target = features(OBSERVED[[key["index"]]]).double()
    both = torch.cat([x, log_density[:, None]], 1)
    near, difference, kernel = rejected(both, f @ root, target @ root, key["kept"])
    x, log_weights = near[:, :-1], kernel.log() - near[:, -1]
    return weighted(adjusted(x, difference, log_weights.softmax(0)), log_weights)


def second_references(store: Store, index: int, seed: int = 0) -> dict[str, Key]:
    """Mean and deviation of the posterior by two methods that are not SMC-ABC.

    - "synthetic likelihood": the features of a parameter have a normal law. Importance sampling in
      two stages proposes near the particles of SMC-ABC, and near what the first stage has found.
    - "regression": rejection ABC with a linear regression, from proposals near the particles.
    """
    found = record(store, f"theta{index + 1}-adapted", seed)
    key: Key = {"wide": WIDE, "stages": STAGES, "index": index, "seed": seed}
    key |= {"draws": DRAWS, "kept": 2000}
    smoke = store.run == "smoke"

    def compute() -> Key:
        first = {
            "mean": torch.tensor(last(found)["mean"]).double(),
            "covariance": covariance(found),
        }
        row: Key = first
        for stage in [{"draws": 20, "repeats": 30}] if smoke else STAGES:
            row = _by_synthetic_likelihood(key, stage, row["mean"], row["covariance"])
        other = _by_regression(key, 500 if smoke else DRAWS, first["mean"], first["covariance"])
        return {
            name: {"mean": r["mean"].tolist(), "std": r["covariance"].diagonal().sqrt().tolist()}
            | {"ess": r["ess"]}
            for name, r in (("synthetic likelihood", row), ("regression", other))
        }

    return store.measure(f"second-theta{index + 1}", key, compute).numbers


# rivals with as many simulations ----------------------------------------------------------------


def rejected(x: Tensor, y: Tensor, target: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `kept` parameters whose features are nearest, their differences and their weights."""
    scale = y.std(0)
    difference = (y - target) / scale
    distance = difference.norm(dim=1)
    nearest = distance.argsort()[: min(kept, len(x))]
    weights = 1 - (distance[nearest] / distance[nearest].max()).square()  # Epanechnikov's kernel
    return x[nearest], difference[nearest], weights.clamp(min=1e-6)


def adjusted(x: Tensor, difference: Tensor, weights: Tensor) -> Tensor:
    """Accepted parameters, moved along a local linear regression on the features.

    It works in coordinates in which the box of the prior is ℝᵈ, so that no point leaves the box.

    Reference: beaumont2002approximate.
    """
    low, high = PROBLEM.low, PROBLEM.high
    u = ((x - low) / (high - low)).clamp(1e-6, 1 - 1e-6).logit()
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), difference], 1)
    root = weights.sqrt()[:, None]
    slope = torch.linalg.lstsq(root * design, root * u, driver="gelsd").solution[1:]
    return low + (high - low) * (u - difference @ slope).sigmoid()


def rejection(n: int, s: int, index: int, kept: int = KEPT, *, adjust: bool = True) -> Tensor:
    """Rejection ABC from the pairs that a network is trained on, with or without the regression."""
    x, y = pairs(n, s)
    target = features(OBSERVED[[index]]).double()
    found = rejected(x, features(y).double(), target, kept)
    weights = found[2]
    moved = adjusted(*found) if adjust else found[0]
    drawn = torch.multinomial(weights, len(weights), replacement=True, generator=seeded(s, 0))
    return moved[drawn]


def moments(x: Tensor) -> Key:
    """The mean and the standard deviation of each coordinate."""
    x = x.double()
    return {"mean": x.mean(0).tolist(), "std": x.std(0).tolist()}


def normal(reference: Key, covariance: Tensor, n: int, seed: int = 0) -> Tensor:
    """Samples of the Gaussian with the moments of the reference, inside of the prior's box."""
    root = torch.linalg.cholesky(covariance)
    z = torch.randn(20 * n, 4, generator=seeded(seed, 0), dtype=torch.float64)
    x = torch.tensor(reference["mean"], dtype=torch.float64) + z @ root.T
    return x[PROBLEM.prior.inside(x)][:n]


def told_apart(reference: Tensor, x: Tensor, seed: int = 0) -> float:
    """The accuracy, in percent, of a classifier of samples of the reference and of another law.

    It votes among the nearest neighbours and is judged on samples that it has not seen. With the
    few hundred particles that are there, a network would learn them by heart.
    """
    n = min(len(reference), len(x))
    std, mean = torch.std_mean(reference, dim=0)
    points = ((torch.cat([reference[:n], x[:n]]) - mean) / std).double().numpy()
    label = np.arange(2 * n) >= n
    voters = KNeighborsClassifier(min(NEIGHBOURS, n // 2))
    split = KFold(5, shuffle=True, random_state=seed)
    return 100 * float(cross_val_score(voters, points, label, cv=split).mean())


def covariance(found: Record) -> Tensor:
    """The weighted covariance of the particles of the last round."""
    x, weights = particles(found)
    centred = x - weights @ x / weights.sum()
    return (weights[:, None] * centred).T @ centred / weights.sum()


def errors_of_reference(found: Record) -> tuple[float, float]:
    """Standard errors by its effective sample size: of a mean (σ), of a deviation (percent)."""
    size = last(found)["ess"]
    return 1 / math.sqrt(size), 100 / math.sqrt(2 * size)


def approaches(found: Record, reference: Key) -> Iterator[tuple[int, Gap]]:
    """The simulations and the gap after each round."""
    for row in found.numbers["rounds"]:
        yield row["simulations"], gap(row, reference)
