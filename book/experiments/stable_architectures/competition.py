"""Eight architectures on two data sets in the plane, each at its best settings."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.learning import Step, cosine, minibatches, train
from ctdl_lib.networks import resnets
from ctdl_lib.networks.architectures import architectures
from ctdl_lib.problems.classification import Classification
from machinery.store import Store

from ..resnets.planar import data_of

SEEDS = (10, 11, 12, 13, 14)
TRIED = (0, 1)  # the seeds on which settings are chosen
GAMMA = 0.1  # the damping of the antisymmetric layers
KINDS = tuple(architectures(GAMMA))
DATA = ("swiss roll", "peaks")
GRID = tuple(product((0.01, 0.05), (5.0, 10.0)))  # learning rates and final times


@dataclass(frozen=True)
class Settings:
    """The settings of one network and its training by Adam."""

    kind: str
    inputs: int
    outputs: int
    width: int
    layers: int
    steps: int
    batch: int | None = None
    scale: float = 0.3
    decay: float = 1e-5
    smooth: float = 1e-4


@dataclass(frozen=True)
class Study:
    """The learning rate and the final time that were chosen, and the accuracies in percent."""

    lr: float
    horizon: float
    accuracies: list[float]


RECIPES: dict[str, dict[str, Any]] = {
    "swiss roll": {"inputs": 2, "outputs": 1, "width": 6, "layers": 32, "steps": 800},
    "peaks": {"inputs": 2, "outputs": 5, "width": 8, "layers": 16, "steps": 300, "batch": 1000},
}


def network(key: Settings, horizon: float, seed: int) -> resnets.ResNet:
    """The network before its training, with the weights that `seed` draws."""
    return resnets.ResNet(
        key.inputs,
        key.outputs,
        width=key.width,
        layers=key.layers,
        horizon=horizon,
        scale=key.scale,
        architecture=architectures(GAMMA)[key.kind],
        generator=torch.Generator().manual_seed(seed),
    )


def objective(key: Settings, net: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """The cross-entropy, the weight decay, and the smoothness of all weights in time."""
    y, label = batch
    change = torch.stack([resnets.time_smoothness(theta, net.h) for theta in net.theta]).sum()
    return {
        "cross-entropy": metrics.cross_entropy(net(y), label),
        "decay": key.decay * resnets.tikhonov(*net.parameters()),
        "smoothness": key.smooth * change,
    }


def steps_of(
    net: resnets.ResNet, data: Classification, key: Settings, seed: int, lr: float, steps: int
) -> Iterator[Step]:
    """The steps of a training, whose rate falls along a cosine."""
    y, label = data.train
    batches = minibatches(y, label, size=key.batch or len(y), seed=seed)
    return train(net, partial(objective, key), batches, steps=steps, lr=cosine(lr, steps))


def trained(
    key: Settings, data: Classification, seed: int, lr: float, horizon: float, steps: int
) -> resnets.ResNet:
    """The network after its training."""
    net = network(key, horizon, seed)
    for _ in steps_of(net, data, key, seed, lr, steps):
        pass
    return net.requires_grad_(False)


def accuracy(net: resnets.ResNet, data: Classification) -> float:
    """The share of right labels in percent, on points that the training has not seen."""
    return metrics.accuracy(net(data.val.y), data.val.label)


def study(
    store: Store,
    name: str,
    kind: str,
    seeds: Sequence[int],
    *,
    layers: int | None = None,
    horizon: float | None = None,
) -> Study:
    """What an architecture reaches at the rate and final time that are best on other seeds.

    `layers` and `horizon` are those of the recipe and of the grid unless they are given.
    """
    smoke, key = store.run == "smoke", Settings(kind, **RECIPES[name])
    key = replace(key, layers=layers or key.layers)
    grid = [(lr, horizon or T) for lr, T in GRID][:: 2 if horizon else 1]
    steps, tried = (2, grid[:1]) if smoke else (key.steps, grid)

    def score(chosen: tuple[float, float], seed: int) -> float:
        data = data_of(name, seed)
        return accuracy(trained(key, data, seed, *chosen, steps), data)

    def compute() -> dict[str, Any]:
        best = max(tried, key=lambda chosen: fmean(score(chosen, s) for s in TRIED))
        accuracies = [score(best, s) for s in seeds]
        return {"lr": best[0], "horizon": best[1], "accuracies": accuracies}

    settings = asdict(key) | {"grid": [list(pair) for pair in grid], "tried": list(TRIED)}
    settings |= {"seeds": list(seeds), "gamma": GAMMA}
    parts = [name, kind, f"{layers} layers" * bool(layers), "short" * bool(horizon)]
    stem = "-".join(filter(None, parts)).replace(" ", "-")
    return Study(**store.measure(stem, settings, compute).numbers)


def studies(store: Store, seeds: Sequence[int]) -> dict[tuple[str, str], Study]:
    """The studies of all data sets and architectures."""
    return {(name, kind): study(store, name, kind, seeds) for name in DATA for kind in KINDS}
