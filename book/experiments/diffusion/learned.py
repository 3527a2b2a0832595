"""What learned scores are worth: their errors, their samples and their likelihoods."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.generative import Flow, ProbabilityFlow
from ctdl_lib.problems.densities import TOYS, Mixture
from machinery.seeds import seeded
from machinery.store import Store

from ..ot_flow import densities
from . import samplers, training
from .laws import (
    DOUBLE,
    GaussianScore,
    MixtureScore,
    in_units_of,
    moments,
    noisy,
    quantiles,
    random_mixture,
)
from .laws import distance as w1
from .race import POINTS, Race, seeds_of, times_of
from .samplers import EULER, HEUN, LINE, Stratified

KNOWN = [name for name, p in TOYS.items() if isinstance(p, Mixture)]
TIMES = 25  # at which a score is judged
DRAWN, DRAWS = 10_000, 4  # samples of a model, compared with as many of the data, four times
SAMPLED_BY, BUDGET = HEUN, 32
HELD_OUT = 2000
COMPARED = (EULER, LINE, HEUN)
SPOILED = {"shifted by 5 %": (0.05, 1.0), "widened by 5 %": (0.0, 1.05)}
GUIDES = (0.0, 0.5, 1.0, 2.0, 4.0)  # 0 ignores the label, 1 is the score of the class
GUIDED_ON = 64

Flows = dict[str, list[Flow]]


def few(store: Store, seed: int = 0) -> list[int]:
    """The seeds of trainings, one in smoke."""
    return [seed + s for s in training.SEEDS[: 1 if store.run == "smoke" else None]]


def flows(store: Store, seed: int = 0, device: str = "cpu") -> Flows:
    """The trained flows of seven densities."""
    return {
        name: [training.fit(store, name, s, device)[0] for s in few(store, seed)] for name in TOYS
    }


def weights_of(store: Store, names: Sequence[str], seed: int = 0) -> list[str | None]:
    """The hashes of stored weights, on which a measurement depends."""
    return [training.fit(store, name, s)[1].weights for name in names for s in few(store, seed)]


def seconds(store: Store, seed: int = 0) -> float:
    """The mean seconds of a training."""
    found = [training.fit(store, name, s)[1].seconds for name in TOYS for s in few(store, seed)]
    return sum(found) / len(found)


# --- the score ----------------------------------------------------------------------------------


def relative_errors(p: Mixture, score: Callable[..., Tensor], points: int = 1000) -> list[float]:
    """The errors E‖S − ∇log p_t‖²/E‖∇log p_t‖² at even times from 0.02 to 1."""
    rows = []
    for k, t in enumerate(torch.linspace(0.02, 1, TIMES).tolist()):
        x = noisy(p, t).sample(points, seeded(0, k), **DOUBLE)
        exact = noisy(p, t).score(x)
        off = score(t, x.float()).double() - exact
        rows.append((off.square().sum() / exact.square().sum()).item())
    return rows


def score_errors(store: Store, found: Flows, seed: int = 0) -> dict[str, list[list[float]]]:
    """The errors of learned scores over time, by density and seed; "linear" has those without net.

    The linear score is that of a Gaussian with the mean and the covariance of the data.
    """
    points = 100 if store.run == "smoke" else 1000
    key = {"points": points, "times": TIMES, "seed": seed, "densities": KNOWN}
    key["weights"] = weights_of(store, KNOWN, seed)

    def compute() -> dict[str, list[list[float]]]:
        rows: dict[str, list[list[float]]] = {"linear": []}
        for name in KNOWN:
            rows[name] = []
            for flow in found[name]:
                p = in_units_of(TOYS[name], flow)  # pyright: ignore[reportArgumentType]
                rows[name].append(relative_errors(p, training.score_of(flow), points))
            rows["linear"].append(relative_errors(p, gaussian_of(p), points))
        return rows

    return store.measure("score-errors", key, compute).numbers


def gaussian_of(p: Mixture) -> GaussianScore:
    """The score of the Gaussian with the moments of a mixture."""
    return GaussianScore(*moments(p))


# --- samples ------------------------------------------------------------------------------------


def drawn(score: Callable[..., Tensor], n: int, times: list[float], name: str, seed: int) -> Tensor:
    """The samples of a score, in single precision."""
    generator = seeded(seed, 6)
    noise = lambda x: torch.randn(x.shape, generator=generator)  # noqa: E731
    return samplers.sample(name, score, noise(torch.empty(n, 2)), times, noise)


def sliced(x: Tensor, y: Tensor) -> float:
    """The sliced Wasserstein distance of two sets of samples."""
    return metrics.sliced_wasserstein(x, y, projections=100, generator=seeded(0, 0))


def spoiled(x: Tensor, shift: float, scale: float) -> Tensor:
    """The samples with a mistake: all moved by a part of the deviation, or spread out."""
    return x.mean(0) + scale * (x - x.mean(0)) + shift * x.std(0)


def compared(
    flow: Flow, name: str, n: int, times: list[float], s: int, draw: int
) -> dict[str, float]:
    """The distances of one draw of everything to one draw of the data."""
    real, more = (TOYS[name].sample(n, seeded(s, 200 + 10 * draw + j)) for j in range(2))
    x = drawn(training.score_of(flow), n, times, SAMPLED_BY, 1000 * draw + s)
    normal = torch.distributions.MultivariateNormal(more.mean(0), more.T.cov())
    z = torch.randn(n, 2, generator=seeded(s, 400 + draw))
    rows = {"samples": flow.data.inverse(x), "real": more}
    rows["Gaussian"] = normal.mean + z @ normal.scale_tril.T
    rows |= {says: spoiled(more, *how) for says, how in SPOILED.items()}
    return {says: sliced(x, real) for says, x in rows.items()}


def samples(store: Store, found: Flows, race: Race, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The distances to data of samples, of other data, of a Gaussian's samples, of spoiled data."""
    smoke, seeds = store.run == "smoke", few(store, seed)
    n, budget, draws = (50, race.budgets[-1], 1) if smoke else (DRAWN, BUDGET, DRAWS)
    kind = race.chosen[SAMPLED_BY][budget]
    last = race.last[SAMPLED_BY][kind][budget]
    key = {
        "samples": n,
        "draws": draws,
        "sampler": SAMPLED_BY,
        "budget": budget,
        "grid": kind,
        "last": last,
    }
    key |= {"seeds": seeds, "spoiled": SPOILED, "weights": weights_of(store, list(TOYS), seed)}
    times = times_of(SAMPLED_BY, kind, budget, last)

    def distances(name: str, k: int, s: int) -> dict[str, float]:
        each = [compared(found[name][k], name, n, times, s, j) for j in range(draws)]
        return {says: fmean(row[says] for row in each) for says in each[0]}

    def compute() -> dict[str, dict[str, list[float]]]:
        tables = {}
        for name in TOYS:
            rows = [distances(name, k, s) for k, s in enumerate(seeds)]
            tables[name] = {says: [row[says] for row in rows] for says in rows[0]}
        return tables

    return store.measure("samples", key, compute).numbers


def budgets(store: Store, found: Flows, race: Race, seed: int = 0) -> dict[str, dict[int, list]]:
    """The distances of samples of the eight Gaussians by three samplers, each on its own grid."""
    smoke, seeds, name = store.run == "smoke", few(store, seed), "8gaussians"
    n, these = (50, race.budgets) if smoke else (DRAWN, [8, 16, 32, 64, 128])
    grids = {
        who: {b: (race.chosen[who][b], race.last[who][race.chosen[who][b]][b]) for b in these}
        for who in COMPARED
    }
    key = {"samples": n, "seeds": seeds, "weights": weights_of(store, [name], seed)}
    key["grids"] = {who: list(rows.values()) for who, rows in grids.items()}
    key["budgets"] = these

    def distance(who: str, b: int, k: int, s: int) -> float:
        real, flow = TOYS[name].sample(n, seeded(s, 200)), found[name][k]
        times = times_of(who, grids[who][b][0], b, grids[who][b][1])
        x = drawn(training.score_of(flow), n, times, who, s)
        return sliced(flow.data.inverse(x), real)

    def compute() -> dict:
        return {
            who: {b: [distance(who, b, k, s) for k, s in enumerate(seeds)] for b in these}
            for who in COMPARED
        }

    numbers = store.measure("learned-budgets", key, compute).numbers
    return {who: {int(b): row for b, row in rows.items()} for who, rows in numbers.items()}


# --- likelihoods --------------------------------------------------------------------------------


def likelihood(store: Store, seed: int = 0) -> dict[str, list[float]]:
    """The mean |log q − log p| of the flow of the exact score, and of a Gaussian's.

    Mixtures have three parts in three dimensions. The Gaussian has their moments.
    """
    smoke, seeds = store.run == "smoke", seeds_of(store, seed)
    n, tol = (5, 1e-3) if smoke else (500, 1e-6)
    key = {"seeds": seeds, "points": n, "tol": tol, "d": 3}

    def off(p: Mixture, score: nn.Module, s: int) -> float:
        velocity = ProbabilityFlow(score, training.SCHEDULE)
        flow = Flow(velocity, 3, solver={"tol": tol}, standardize=False).double()
        x = p.sample(n, seeded(s, 8), **DOUBLE)
        return (flow.log_prob(x) - p.log_prob(x)).abs().mean().item()

    def compute() -> dict[str, list[float]]:
        laws = {s: random_mixture(s, d=3) for s in seeds}
        return {
            "exact": [off(p, MixtureScore(p), s) for s, p in laws.items()],
            "Gaussian": [off(p, gaussian_of(p), s) for s, p in laws.items()],
        }

    return store.measure("likelihood", key, compute).numbers


def gaps(store: Store, found: Flows, seed: int = 0) -> dict[str, list[float]]:
    """How many nats the likelihoods of trained models are off the least, by density and seed."""
    n = 50 if store.run == "smoke" else HELD_OUT
    key = {"points": n, "seed": seed, "weights": weights_of(store, list(TOYS), seed)}

    def gap(flow: Flow, name: str) -> float:
        x = densities.held_out(name, n)
        return (TOYS[name].log_prob(x) - flow.log_prob(x)).mean().item()

    compute = lambda: {name: [gap(f, name) for f in row] for name, row in found.items()}  # noqa: E731
    return store.measure("gaps", key, compute).numbers


# --- one class ----------------------------------------------------------------------------------


def guided(store: Store, seed: int = 0) -> dict[float, list[float]]:
    """The errors W₁ of one class with the exact score S + w (S_class − S), by the weight w.

    The classes are two mixtures of three parts on the line, which overlap.
    """
    smoke, seeds = store.run == "smoke", seeds_of(store, seed)
    points, weights = (64, GUIDES[1:4]) if smoke else (POINTS, GUIDES)
    key = {"weights": weights, "seeds": seeds, "points": points, "budget": GUIDED_ON}
    times = samplers.grid("√t", samplers.SAMPLERS[HEUN].steps(GUIDED_ON), 0.01)

    def error(s: int, w: float) -> float:
        both = random_mixture(s, parts=6)
        one = Mixture(both.weights[:3] / both.weights[:3].sum(), both.means[:3], both.std[:3])
        whole, part = MixtureScore(both), MixtureScore(one)
        score = lambda t, x: whole(t, x) + w * (part(t, x) - whole(t, x))  # noqa: E731
        x = samplers.sample(HEUN, score, Stratified(seeded(s, 0)).start(points), times)
        return w1(x, quantiles(one, points))

    compute = lambda: {str(w): [error(s, w) for s in seeds] for w in weights}  # noqa: E731
    numbers = store.measure("guidance", key, compute).numbers
    return {float(w): row for w, row in numbers.items()}


def classes(store: Store, race: Race, seed: int = 0) -> dict[str, list[float]]:
    """Samples of one class by scores that have seen labels: distances, and shares of that class.

    One value a seed, the mean over two densities with two classes each.
    """
    smoke, seeds = store.run == "smoke", few(store, seed)
    n, budget, draws = (50, race.budgets[-1], 1) if smoke else (DRAWN, BUDGET, DRAWS)
    kind = race.chosen[SAMPLED_BY][budget]
    last = race.last[SAMPLED_BY][kind][budget]
    models = {
        (name, s): training.fit_labelled(store, name, s) for name in training.CLASSES for s in seeds
    }
    key = {
        "samples": n,
        "draws": draws,
        "seeds": seeds,
        "grid": kind,
        "last": last,
        "budget": budget,
    }
    key |= {"settings": training.LABELLED, "classes": training.CLASSES, "sampler": SAMPLED_BY}
    times = times_of(SAMPLED_BY, kind, budget, last)

    def rows(name: str, s: int) -> list[dict[str, float]]:
        laws, model = training.parts(name), models[name, s]
        pairs = [(c, j) for c in range(len(laws)) for j in range(draws)]
        return [class_row(model, laws, c, n, times, 1000 * j + s) for c, j in pairs]

    def compute() -> dict[str, list[float]]:
        found = {s: [row for name in training.CLASSES for row in rows(name, s)] for s in seeds}
        names = next(iter(found.values()))[0]
        return {
            says: [sum(row[says] for row in found[s]) / len(found[s]) for s in seeds]
            for says in names
        }

    return store.measure("classes", key, compute).numbers


def class_row(
    model: training.Labelled, laws: list[Mixture], c: int, n: int, times: list[float], s: int
) -> dict[str, float]:
    """The distances to samples of class c: of ours, of real ones, of all classes together."""
    real, more = (laws[c].sample(n, seeded(s, 300 + j)) for j in range(2))
    x = drawn(model.score(c), n, times, SAMPLED_BY, s) * model.std + model.mean
    both, _ = training.labelled_batch(laws, n, seeded(s, 302))
    row = {"samples": sliced(x, real), "real": sliced(more, real), "all": sliced(both, real)}
    share = lambda x: torch.stack([p.log_prob(x) for p in laws], 1).softmax(1)[:, c].mean().item()  # noqa: E731
    return row | {"share": share(x), "share of real": share(more)}


# --- a perfect score of few points ----------------------------------------------------------------


def copies(store: Store, seed: int = 0) -> dict[str, list[float]]:
    """The median distance of samples to 30 points, by perfect scores of these and of p."""
    smoke, seeds = store.run == "smoke", few(store, seed)
    n, steps = (20, 20) if smoke else (1000, 63)
    key = {"seeds": seeds, "samples": n, "steps": steps, "points": 30}
    times = samplers.grid("√t", steps, 0.003)

    def row(s: int) -> tuple[float, float]:
        p = random_mixture(s, d=2)
        few = p.sample(30, seeded(s, 9), **DOUBLE)
        spots = Mixture(
            torch.full((30,), 1 / 30, **DOUBLE), few, torch.full((30, 2), 1e-4, **DOUBLE)
        )
        noise = torch.randn(n, 2, generator=seeded(s, 10), **DOUBLE)
        ends = (samplers.sample(HEUN, MixtureScore(q), noise, times) for q in (spots, p))
        ours, theirs = (torch.cdist(x, few).amin(1).median().item() for x in ends)
        return ours, theirs

    def compute() -> dict[str, list[float]]:
        ours, theirs = zip(*(row(s) for s in seeds), strict=True)
        return {"points": list(ours), "density": list(theirs)}

    return store.measure("copies", key, compute).numbers
