"""A disc in a ring, with and without additional dimensions: what each costs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ctdl_lib import metrics
from ctdl_lib.dynamics import Statistics
from ctdl_lib.learning import minibatches, train
from ctdl_lib.learning.training import Step
from ctdl_lib.networks import MLP
from ctdl_lib.problems.classification import Samples
from machinery.store import Store

from .models import NeuralODE
from .problems import annuli

SEEDS = (10, 11, 12, 13, 14)
EPOCH = 31  # batches
PLAIN, WIDER, ONE, FIVE = "no zeros", "no zeros, wider", "one zero", "five zeros"
KINDS = {PLAIN: (0, 32), WIDER: (0, 37), ONE: (1, 32), FIVE: (5, 32)}


@dataclass(frozen=True)
class Settings:
    """The training: p appended zeros, hidden units, epochs, and Dormand–Prince steps."""

    p: int
    width: int
    epochs: int = 40
    size: int = 64
    lr: float = 1e-3
    tol: float = 1e-3
    every: int = 2  # epochs between records


@dataclass(frozen=True)
class History:
    """Loss on all data, accuracy on fresh points in percent, and evaluations of the velocity.

    One number every other epoch. `stretch` is the largest singular value of ∂x(1)/∂y at the end.
    """

    loss: list[float]
    accuracy: list[float]
    evaluations: list[int]
    stretch: float


def network(key: Settings, seed: int) -> NeuralODE:
    """The network before its training."""
    g = torch.Generator().manual_seed(seed)
    velocity = MLP(2 + key.p, width=key.width, activation=torch.relu, generator=g)
    return NeuralODE(velocity, 2, 1, augment=key.p, solver={"tol": key.tol}, generator=g)


def loss(net: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The smooth ℓ₁ distance from the targets ±1."""
    y, label = batch
    return functional.smooth_l1_loss(net(y)[:, 0], 2.0 * label - 1)


def fresh(seed: int) -> Samples:
    """New points of both classes."""
    return annuli(seed + 5000, inner=2500, outer=7500).train


def fit(store: Store, kind: str, seed: int) -> NeuralODE:
    """The network of one seed, with its weights: loaded, trained or tried out."""
    key, data = Settings(*KINDS[kind]), annuli(seed).train
    net, batches = network(key, seed), minibatches(*data, size=key.size, seed=seed)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        return train(net, loss, batches, steps=steps, lr=key.lr, checkpoint=file)

    name = f"annuli-net-{key.p}-{seed}"
    settings = asdict(key) | {"seed": seed, "steps": EPOCH * key.epochs}
    store.fit(name, net, settings, training)
    return net.requires_grad_(False)


@torch.no_grad()
def stretch(net: NeuralODE, y: Tensor) -> float:
    """The largest singular value of ∂x(1)/∂y at the points y."""
    end = lambda y: net.features(y[None])[0]  # noqa: E731
    J = torch.stack([torch.autograd.functional.jacobian(end, point) for point in y])
    return torch.linalg.matrix_norm(J, ord=2).max().item()


def history(key: Settings, seed: int, points: int = 200) -> History:
    """The training of one network; its stretch is that at some fresh points."""
    net, data, test = network(key, seed), annuli(seed).train, fresh(seed)
    batches = minibatches(*data, size=key.size, seed=seed)
    found = History([], [], [], 0.0)
    for step in train(net, loss, batches, steps=EPOCH * key.epochs, lr=key.lr):
        if (step.index + 1) % (EPOCH * key.every) == 0:
            with torch.no_grad():
                found.loss.append(loss(net, data).item())
                net.features(data.y, statistics=(costs := Statistics()))
                found.accuracy.append(metrics.accuracy(net(test.y), test.label))
            found.evaluations.append(costs.evaluations)
    shuffled = torch.randperm(len(test.y), generator=torch.Generator().manual_seed(seed))
    few = test.y[shuffled[:points]]
    return History(found.loss, found.accuracy, found.evaluations, stretch(net, few))


def histories(store: Store, kind: str, seeds: Sequence[int]) -> list[History]:
    """The trainings of all seeds."""
    key, points = Settings(*KINDS[kind]), 3 if store.run == "smoke" else 200
    tried = replace(key, every=1, epochs=1) if store.run == "smoke" else key
    found = []
    for s in seeds:
        name = f"annuli-{key.p}-{key.width}-{s}"
        compute = partial(lambda s: asdict(history(tried, s, points)), s)
        found.append(store.measure(name, asdict(key) | {"seed": s}, compute))
    return [History(**record.numbers) for record in found]
