"""Weights that are only +1 or −1, found by successive approximations, and their rivals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.learning import minibatches
from ctdl_lib.problems.classification import Classification, ellipses
from machinery.store import Store

from . import solvers, varpro
from .pontryagin import linear_layer

KINDS = ("MSA", "random", "straight-through", "rounded", "float")
RESTING = 0.6  # of the steps; then signs rest


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


def learn(data: Classification, seed: int, kind: str, key: Settings, steps: int) -> float:
    """The validation accuracy in percent.

    K_in and the readout are real and learn by Adam in all kinds. "random" signs never flip. The
    straight-through estimator keeps a real weight for each sign, and passes the gradient of the
    sign on to it. "float" has real weights. "rounded" has real weights for 60 % of the steps, and
    then their signs, while the ends learn on; so does "MSA", whose signs rest then.
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
    learned = [real] if kind in ("float", "rounded", "straight-through") else []
    for weight in (K_in, W, *learned):
        weight.requires_grad_()

    def signs() -> Tensor:
        return torch.where(real >= 0, 1.0, -1.0)

    functions = {
        "float": lambda y, _: logits(y, real),
        "rounded": lambda y, _: logits(y, real),
        "straight-through": lambda y, _: logits(y, signs() + real - real.detach()),
    }
    batches = minibatches(*data.train, size=key.size, seed=seed)
    train = partial(solvers.binary_msa, batches=batches, lr=key.lr)
    first = round(RESTING * steps) if kind == "rounded" else steps
    share = key.share if kind == "MSA" else 0.0
    B = train(functions.get(kind, logits), [K_in, W, *learned], B, steps=first, share=share)
    if kind == "rounded":
        B = train(logits, [K_in, W], signs(), steps=max(1, steps - first), share=0.0)
    final = {"float": real, "straight-through": signs()}.get(kind, B)
    with torch.no_grad():
        return metrics.accuracy(logits(data.val.y, final), data.val.label)


def accuracies(store: Store, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The accuracies of all seeds by kind, measured once."""
    key = Settings()
    steps = 2 if store.run == "smoke" else key.steps

    def compute() -> dict[str, list[float]]:
        return {kind: [learn(ellipses(s), s, kind, key, steps) for s in seeds] for kind in KINDS}

    settings = asdict(key) | {"kinds": list(KINDS), "seeds": list(seeds), "resting": RESTING}
    return store.measure("bits", settings, compute).numbers
