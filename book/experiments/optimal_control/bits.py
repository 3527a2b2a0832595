"""Weights that are only +1 or −1, found by successive approximations, and their rivals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.learning import minibatches
from ctdl_lib.problems.classification import Classification, ellipses
from machinery.store import Store

from . import solvers, varpro
from .pontryagin import linear_layer

KINDS = ("MSA", "random", "straight-through", "rounded", "float")


@dataclass(frozen=True)
class Settings:
    """The network, uₖ₊₁ = uₖ + (T/N) Bₖ(tanh uₖ, 1), and its training."""

    width: int = 16
    layers: int = 6
    horizon: float = 0.5
    steps: int = 1000
    share: float = 0.05
    lr: float = 0.01
    size: int = 250


def learn(data: Classification, seed: int, kind: str, key: Settings, steps: int) -> Any:
    """The validation accuracy in percent; for "float" that of its signs as well.

    K_in and the readout are real and learn by Adam in all kinds. "random" signs never flip. The
    straight-through estimator keeps a real weight for each sign, and passes the gradient of the
    sign on to it. "float" has real weights.
    """
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    K_in, W = draw(key.width, 2), 0.1 * draw(1, key.width + 1)
    B = draw(key.layers, key.width, key.width + 1).sign()

    def logits(y: Tensor, B: Tensor) -> Tensor:
        u = y @ K_in.T
        for B_k in B:
            u = u + key.horizon / key.layers * linear_layer(u, B_k)
        return varpro.logits(W, u)

    real = 0.1 * B if kind == "straight-through" else B.clone()
    free, function = [K_in, W], logits
    if kind in ("float", "straight-through"):
        free = [*free, real]
    for weight in free:
        weight.requires_grad_()

    def signs() -> Tensor:
        return torch.where(real >= 0, 1.0, -1.0)

    if kind == "float":
        function = lambda y, _: logits(y, real)  # noqa: E731
    elif kind == "straight-through":
        function = lambda y, _: logits(y, signs() + real - real.detach())  # noqa: E731
    batches = minibatches(*data.train, size=key.size, seed=seed)
    how = {"steps": steps, "lr": key.lr, "share": key.share if kind == "MSA" else 0.0}
    B = solvers.binary_msa(function, free, B, batches, **how)

    def accuracy(B: Tensor) -> float:
        with torch.no_grad():
            return metrics.accuracy(logits(data.val.y, B), data.val.label)

    if kind == "float":
        return accuracy(real), accuracy(signs())
    return accuracy(signs() if kind == "straight-through" else B)


def accuracies(store: Store, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The accuracies of all seeds by kind, measured once."""
    key = Settings()
    steps = 2 if store.run == "smoke" else key.steps

    def compute() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for s in seeds:
            of = partial(learn, ellipses(s), s, key=key, steps=steps)
            for kind in KINDS[:3]:
                found[kind].append(of(kind))
            real, rounded = of("float")
            found["float"].append(real)
            found["rounded"].append(rounded)
        return found

    settings = asdict(key) | {"kinds": list(KINDS), "seeds": list(seeds)}
    return store.measure("bits", settings, compute).numbers
