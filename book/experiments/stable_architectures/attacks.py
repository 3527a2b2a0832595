"""Attacks on digits: classifiers at the weight decay that suits each best."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.learning import cosine, minibatches, train
from ctdl_lib.networks.resnets import ResNet, tikhonov
from ctdl_lib.problems.classification import digits
from machinery.store import Store

from . import competition
from .robustness import pgd

SEEDS = (10, 11, 12, 13, 14)
TRIED = (0, 1)  # the seeds on which the decay is chosen
LINEAR = "linear"
KINDS = (LINEAR, "resnet", "antisymmetric", "hamiltonian", "midpoint", "parabolic")
DECAYS = (1e-5, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SIZES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2)  # of the attacks; pixels are in [0, 1]
JUDGED = 0.1  # the size at which classifiers are compared
CLEAN = 95.0  # the accuracy in percent that a classifier must have without attack
STRONG = 0.1  # the decay with which most digits resist attacks of that size
STEPS, RESTARTS = 40, 3


def settings(kind: str, decay: float = DECAYS[0]) -> competition.Settings:
    """The settings of one kind of network with 16 layers and 80 features."""
    return competition.Settings(
        kind, 64, 10, 80, 16, steps=300, batch=128, scale=0.1, decay=decay, smooth=1e-3
    )


def horizon(kind: str) -> float:
    """The final time: parabolic layers are quadratic in their small weights, and need longer."""
    return 4.0 if kind == "parabolic" else 1.0


def trained(kind: str, seed: int, decay: float, steps: int, *, apart: bool = False) -> nn.Module:
    """The classifier after its training; with `apart` without a fifth of the training data."""
    data, key = digits(seed), settings(kind, decay)
    data = data.without_val(seed) if apart else data
    if kind != LINEAR:
        return competition.trained(key, data, seed, 0.003, horizon(kind), steps)
    net = nn.Linear(64, 10)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)

    def loss(net: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        fit = metrics.cross_entropy(net(batch[0]), batch[1])
        return {"cross-entropy": fit, "decay": decay * tikhonov(*net.parameters())}

    batches = minibatches(*data.train, size=128, seed=seed)
    for _ in train(net, loss, batches, steps=steps, lr=cosine(0.03, steps)):
        pass
    return net.requires_grad_(False)


def attacked(net: nn.Module, data: Any, eps: float, seed: int, steps: int = STEPS) -> float:
    """The share of digits in percent that stay right under all attacks of size ε.

    An attack has 40 steps of PGD. One starts at the digit itself, and three at random points of the
    box.
    """
    y, label = data
    right = metrics.predict(net(y)) == label
    if eps:
        generator = torch.Generator().manual_seed(seed)
        for k in range(1 + RESTARTS):
            z = pgd(net, y, label, eps, steps=steps, generator=generator if k else None)
            right &= metrics.predict(net(z)) == label
    return 100 * right.float().mean().item()


def study(store: Store, kind: str, seeds: Sequence[int]) -> dict[str, Any]:
    """The chosen decay, and the accuracies under attack by seed and by size.

    The decay is the largest one with an accuracy of at least 95 % without attack: decay makes any
    classifier robust, and in the end takes its layers away. `scores` are the pairs of accuracies,
    without and under attack, of all decays, on training data kept apart.
    """
    smoke = store.run == "smoke"
    steps, search = (2, 1) if smoke else (settings(kind).steps, STEPS)
    decays, sizes = (DECAYS[:1], SIZES[::5]) if smoke else (DECAYS, SIZES)

    def score(decay: float) -> list[float]:
        found = []
        for seed in TRIED:
            net = trained(kind, seed, decay, steps, apart=True)
            data = digits(seed).without_val(seed).val
            found.append([attacked(net, data, eps, seed, search) for eps in (0.0, JUDGED)])
        return [fmean(column) for column in zip(*found, strict=True)]

    def curve(decay: float, seed: int) -> list[float]:
        net = trained(kind, seed, decay, steps)
        return [attacked(net, digits(seed).val, eps, seed, search) for eps in sizes]

    def compute() -> dict[str, Any]:
        scores = [score(decay) for decay in decays]
        able = [d for d, pair in zip(decays, scores, strict=True) if pair[0] >= CLEAN]
        best = max(able, default=decays[0])
        return {"decay": best, "scores": scores, "curves": [curve(best, s) for s in seeds]}

    key = asdict(settings(kind)) | {"decays": list(DECAYS), "sizes": list(SIZES), "clean": CLEAN}
    key |= {"seeds": list(seeds), "tried": list(TRIED), "pgd": [STEPS, RESTARTS]}
    return store.measure(f"attack-{kind}", key, compute).numbers


def without_layers(store: Store, decays: dict[str, float], seeds: Sequence[int]) -> dict[str, Any]:
    """The share of labels in percent that a network keeps if its layers are left out.

    Each network trains with its decay in `decays` and with one of 0.1, at which most digits resist
    attacks of size 0.1. What is left is the
    linear map K_out K_in y + b_out.
    """
    steps = 2 if store.run == "smoke" else settings(LINEAR).steps

    def kept(kind: str, decay: float, seed: int) -> float:
        net, y = trained(kind, seed, decay, steps), digits(seed).val.y
        assert isinstance(net, ResNet)
        bare = y @ net.K_in.T @ net.K_out.T + net.b_out
        return metrics.accuracy(bare, metrics.predict(net(y)))

    def compute() -> dict[str, Any]:
        return {
            kind: [[kept(kind, decay, s) for s in seeds] for decay in (chosen, STRONG)]
            for kind, chosen in decays.items()
        }

    key = asdict(settings(LINEAR)) | {"decays": decays, "seeds": list(seeds)}
    return store.measure("attack-without-layers", key, compute).numbers


def studies(store: Store, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The studies of all kinds."""
    return {kind: study(store, kind, seeds) for kind in KINDS}
