"""OT-Flow and its peers on tabular data: 1,030 mixtures of concrete with nine properties."""

import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
import zuko
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.dynamics import Statistics
from ctdl_lib.generative import Flow, Standardization, flow_matching, ot_flow
from ctdl_lib.learning import cosine, minibatches, train
from ctdl_lib.networks import MLP
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.datasets import concrete
from machinery.store import Record, Store

from .densities import mean_nll, seeded

SEEDS = (10, 11, 12)
PROTOCOL = {"jitter": 0.1, "batch": 206, "zuko": version("zuko"), "bandwidth": 3.0}
MODELS: dict[str, dict[str, Any]] = {
    "OT-Flow": {
        **{"width": 64, "layers": 2, "alpha": 300, "beta": 5, "rk4": 4, "lr": 0.02, "steps": 1200}
    },
    "MAF": {"hidden": [64, 64], "transforms": 3, "lr": 1e-3, "steps": 500},
    "NSF": {"hidden": [64, 64], "transforms": 3, "lr": 1e-3, "steps": 400},
    "CNF": {"hidden": [64, 64], "lr": 3e-3, "steps": 400},
    "flow matching": {"width": 64, "lr": 5e-3, "steps": 16_000, "tol": 1e-4},
}
ZUKO = {"MAF": zuko.flows.MAF, "NSF": zuko.flows.NSF, "CNF": zuko.flows.CNF}


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


def built(name: str, key: dict[str, Any], seed: int, x: Tensor) -> Any:
    """The model `name` before its training, standardized by the rows x."""
    torch.manual_seed(seed)  # zuko draws its weights with torch's own generator
    d = x.shape[1]
    if name == "OT-Flow":
        shape = {part: key[part] for part in ("width", "layers")}
        phi = ResNetPotential(d, **shape, generator=seeded(seed))
        return Flow(phi, d, solver={"steps": 16}).standardize(x)
    if name == "flow matching":
        how = {"width": key["width"], "activation": nn.functional.silu}
        net = MLP(d, **how, generator=seeded(seed))
        return Flow(net, d, solver={"tol": key["tol"]}).standardize(x)
    how = {part: key[part] for part in ("transforms",) if part in key}
    return Peer(ZUKO[name](d, hidden_features=key["hidden"], **how), Standardization(d).fit(x))


def objective(name: str, key: dict[str, Any], model: Any, batch: Any) -> Any:
    """The loss of the model on a batch of rows, reference points and times."""
    (x,), z, t = batch
    if name == "OT-Flow":
        how = {"likelihood": key["alpha"], "hjb": key["beta"], "steps": key["rk4"]}
        return ot_flow(model.velocity, model.data(x), **how)
    if name == "flow matching":
        return flow_matching(model.velocity, model.data(x), z, t)
    return -model.log_prob(x).mean()


def trained(name: str, seed: int, smoke: bool) -> tuple[Any, Any, float]:
    """The trained model, the data of its split, and the seconds of its training."""
    key, data = MODELS[name], concrete(seeded(seed), jitter=PROTOCOL["jitter"])
    model = built(name, key, seed, data.train)
    rows = minibatches(data.train, size=PROTOCOL["batch"], seed=seed)

    def batch(k: int) -> tuple[Any, Tensor, Tensor]:
        g = seeded(seed, k + 1)
        return rows(k), torch.randn(206, 9, generator=g), torch.rand(206, generator=g)

    def loss(model: Any, batch: Any) -> Any:
        return objective(name, key, model, batch)

    n, lr = 3 if smoke else key["steps"], cosine(key["lr"], key["steps"])
    seconds = list(train(model, loss, batch, steps=n, lr=lr))[-1].seconds
    return model.requires_grad_(False), data, seconds


def judged(name: str, seed: int, smoke: bool) -> dict[str, float]:
    """The numbers of one model on one split."""
    model, data, seconds = trained(name, seed, smoke)
    whiten = Standardization(9).fit(data.train)
    test, sample = whiten(data.test), whiten(model.sample(len(data.test), seeded(seed)))
    count = Statistics()
    if isinstance(model, Flow):
        model.sample(10, seeded(seed), statistics=count)
    started = time.perf_counter()
    model.sample(1000, seeded(seed))
    return {
        "train": mean_nll(model, data.train),
        "val": mean_nll(model, data.val),
        "test": mean_nll(model, data.test),
        "mmd": metrics.mmd(test, sample, bandwidth=PROTOCOL["bandwidth"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "evaluations": count.evaluations,
        "seconds": seconds,
        "sampling": time.perf_counter() - started,
    }


def record(store: Store, name: str, seeds: Sequence[int] = SEEDS) -> Record:
    """The record whose "rows" are the numbers of one model, one split a seed."""
    key = PROTOCOL | MODELS[name] | {"model": name, "seeds": list(seeds)}
    smoke = store.run == "smoke"

    def compute() -> dict[str, Any]:
        return {"rows": [judged(name, seed, smoke) for seed in seeds]}

    return store.measure("concrete-" + name.replace(" ", "-"), key, compute)


def records(store: Store, seeds: Sequence[int] = SEEDS) -> dict[str, list[dict[str, float]]]:
    """The rows of every model."""
    return {name: record(store, name, seeds).numbers["rows"] for name in MODELS}


def table_lines(rows: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """The lines of a Markdown table of means over the splits, with times in seconds."""
    yield "| model | test NLL | MMD², 10⁻³ | weights | evaluations | training | 1,000 samples |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, found in rows.items():
        mean = {k: metrics.spread([row[k] for row in found]) for k in found[0]}
        evaluations = f"{mean['evaluations'].mean:.0f}" if mean["evaluations"].mean else "–"
        yield (
            f"| {name} | {mean['test'].mean:.2f} ± {mean['test'].std:.2f}"
            f" | {1e3 * mean['mmd'].mean:.1f} | {mean['parameters'].mean:,.0f} | {evaluations}"
            f" | {mean['seconds'].mean:.0f} | {mean['sampling'].mean:.3f} |"
        )
