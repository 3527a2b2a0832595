"""Deep networks on handwritten digits: with skips, and without them from two starts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.learning import Step, cosine, minibatches, train
from ctdl_lib.networks import resnets
from ctdl_lib.networks.architectures import PLAIN, RESNET
from ctdl_lib.problems.classification import Classification, Samples, digits
from machinery.store import Store

SEEDS = (10, 11, 12, 13, 14)
TRIED = (0, 1)  # the seeds on which learning rates are chosen
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
LAYERS = (4, 16, 64, 256)
DEPTHS = (4, 16, 64, 256, 1024)
RESIDUAL, USUAL, ORTHOGONAL = "ResNet", "plain", "plain, orthogonal start"
KINDS = (RESIDUAL, USUAL, ORTHOGONAL)


@dataclass(frozen=True)
class Settings:
    """The settings of one network: its `kind`, its depth, and how it is trained."""

    kind: str
    layers: int
    width: int = 80
    decay: float = 1e-5
    smooth: float = 1e-3
    batch: int = 128
    steps: int = 300


@dataclass(frozen=True)
class Study:
    """The rate that a network chose, and its accuracies in percent, one a seed."""

    rate: float
    accuracies: list[float]


def network(key: Settings, seed: int) -> resnets.ResNet:
    """The network before its training, with the weights that `seed` draws.

    Plain layers start with entries from N(0, (5/3)²/width), or with orthogonal matrices.

    Raises:
        ValueError: there is no such kind.

    Reference: saxe2014exact.
    """
    if key.kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {key.kind!r}")
    generator = torch.Generator().manual_seed(seed)
    architecture = RESNET if key.kind == RESIDUAL else PLAIN
    net = resnets.ResNet(
        64,
        10,
        width=key.width,
        layers=key.layers,
        architecture=architecture,
        generator=generator,
    )
    if key.kind == ORTHOGONAL:
        for K in net.K.data:
            nn.init.orthogonal_(K, generator=generator)
    return net


def objective(key: Settings, net: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """The cross-entropy with weight decay, and for a ResNet the smoothness of θ(t)."""
    y, label = batch
    terms = {
        "cross-entropy": metrics.cross_entropy(net(y), label),
        "decay": key.decay * resnets.tikhonov(*net.parameters()),
    }
    if key.kind == RESIDUAL:
        change = resnets.time_smoothness(net.K, net.h) + resnets.time_smoothness(net.b, net.h)
        terms["smoothness"] = key.smooth * change
    return terms


def steps_of(
    net: resnets.ResNet,
    data: Classification,
    key: Settings,
    seed: int,
    rate: float,
    steps: int,
    file: Path | None = None,
) -> Iterator[Step]:
    """The steps of a training by Adam, whose rate falls along a cosine."""
    batches = minibatches(*data.train, size=key.batch, seed=seed)
    how: dict[str, Any] = {"steps": steps, "lr": cosine(rate, steps), "checkpoint": file}
    return train(net, partial(objective, key), batches, **how)


@torch.no_grad()
def accuracy(net: nn.Module, samples: Samples) -> float:
    """The share of right labels in percent."""
    return metrics.accuracy(net(samples.y), samples.label)


def _score(key: Settings, data: Classification, seed: int, rate: float, steps: int) -> float:
    """The accuracy on validation data after a training from scratch."""
    net = network(key, seed)
    for _ in steps_of(net, data, key, seed, rate, steps):
        pass
    return accuracy(net, data.val)


def study(store: Store, key: Settings, seeds: Sequence[int]) -> Study:
    """The test accuracies of a network at the rate that is best on training data kept apart."""
    smoke = store.run == "smoke"
    steps, rates = (2, RATES[3:5]) if smoke else (key.steps, RATES)

    def on_data_kept_apart(rate: float) -> float:
        parts = [digits(s).without_val(s) for s in TRIED]
        return fmean(_score(key, d, s, rate, steps) for d, s in zip(parts, TRIED, strict=True))

    def compute() -> dict[str, Any]:
        rate = max(rates, key=on_data_kept_apart)
        accuracies = [_score(key, digits(s), s, rate, steps) for s in seeds]
        return {"rate": rate, "accuracies": accuracies}

    settings = asdict(key) | {"rates": RATES, "tried": TRIED, "seeds": list(seeds)}
    stem = key.kind.replace(", ", "-").replace(" ", "-")
    return Study(**store.measure(f"digits-{stem}-{key.layers}", settings, compute).numbers)


def studies(store: Store, seeds: Sequence[int]) -> dict[tuple[str, int], Study]:
    """The studies of all kinds and depths."""
    layers = LAYERS[:2] if store.run == "smoke" else LAYERS
    return {(kind, n): study(store, Settings(kind, n), seeds) for kind in KINDS for n in layers}


PEERS: dict[str, Any] = {
    "logistic regression": GridSearchCV(
        LogisticRegression(max_iter=10_000), {"C": [0.1, 1.0, 10.0]}, cv=3
    ),
    "support vector machine": GridSearchCV(
        SVC(), {"C": [1, 10, 100], "gamma": [0.1, 0.3, 1]}, cv=3
    ),
    "5 nearest neighbours": KNeighborsClassifier(5),
    "random forest": RandomForestClassifier(300, random_state=0),
}


def peers(store: Store, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The test accuracies of classifiers without layers; theirs are chosen by cross-validation."""
    names = ["5 nearest neighbours"] if store.run == "smoke" else list(PEERS)  # the fastest

    def score(name: str, seed: int) -> float:
        data = digits(seed)
        model = PEERS[name].fit(data.train.y.numpy(), data.train.label.numpy())
        return 100 * float(model.score(data.val.y.numpy(), data.val.label.numpy()))

    def compute() -> dict[str, list[float]]:
        return {name: [score(name, s) for s in seeds] for name in names}

    settings = {"peers": {name: str(model) for name, model in PEERS.items()}, "seeds": list(seeds)}
    return store.measure("digits-peers", settings, compute).numbers


def gradient_ratios(kind: str, seeds: Sequence[int], depths: Sequence[int]) -> list[list[float]]:
    """The gradients ‖∂ℓ/∂u₀‖/‖∂ℓ/∂u_N‖ before the training, by seed and by depth."""
    return [[_ratio(network(Settings(kind, n), s), digits(s).train) for n in depths] for s in seeds]


def _ratio(net: resnets.ResNet, samples: Samples) -> float:
    """The size of the gradient at the first features over that at the last ones."""
    start = (samples.y[:128] @ net.K_in.T).detach().requires_grad_()
    state = (start,)
    for theta in zip(net.K, net.b, strict=True):
        state = net.architecture.scheme.step(net.architecture.field, state, net.h, theta)
    loss = metrics.cross_entropy(state[0] @ net.K_out.T + net.b_out, samples.label[:128])
    first, last = torch.autograd.grad(loss, (start, state[0]))
    return (first.norm() / last.norm()).item()
