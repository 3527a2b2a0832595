"""Convolutional networks of 56 layers in three stages, with and without skips."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.learning import cosine, minibatches, train
from ctdl_lib.problems.classification import Samples
from ctdl_lib.problems.datasets import mnist
from machinery.store import Store

from . import landscape

SEEDS = (10, 11, 12, 13, 14)
TRIED = 0  # the seed on which learning rates are chosen
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
SKIPS, NONE, ORTHOGONAL = "with skips", "without skips", "without skips, orthogonal start"
TANH = "without skips or normalisation, tanh, orthogonal start"
LONGER, SHALLOW = "without skips, 4 × the steps", "without skips, 20 layers"
PIXELS = 14  # along a side
SIDE, PICTURES = 21, 256  # of a slice: nodes along a side, and images
# training images kept apart to choose settings, and the others
SPLIT = slice(0, 800), slice(800, None)


@dataclass(frozen=True)
class Settings:
    """The settings of one network and of its training.

    Each of three stages has `blocks` blocks of two layers; with the first and the last layer that
    makes 6·blocks + 2. The stages have `widths` channels.
    """

    blocks: int
    skips: bool
    orthogonal: bool = False
    normalised: bool = True
    widths: tuple[int, int, int] = (8, 16, 32)
    batch: int = 128
    steps: int = 300


KINDS = {
    SKIPS: Settings(9, True),
    NONE: Settings(9, False),
    ORTHOGONAL: Settings(9, False, orthogonal=True),
    TANH: Settings(9, False, orthogonal=True, normalised=False),
    LONGER: Settings(9, False, steps=1200),
    SHALLOW: Settings(3, False),
}
LOWER = {TANH: (3e-4, 1e-3, 3e-3, 1e-2)}  # learning rates where the best one is lower
SLICED = (SKIPS, NONE, LONGER, SHALLOW)


@dataclass(frozen=True)
class Study:
    """The rate that a kind of network chose, and what it reaches, one number a seed.

    `fitted` and `accuracies` are the shares of right labels in percent, of training and of test
    images. `planes` are slices through the loss: the cross-entropy on a grid, row by row.
    """

    rate: float
    fitted: list[float]
    accuracies: list[float]
    planes: list[list[list[float]]]


class Block(nn.Module):
    """The map u ↦ σ(Pu + R(u)), R(u) = B₂K₂σ(B₁K₁u), or u ↦ σ(R(u)) without a skip.

    K₁ and K₂ are convolutions with 3 × 3 pixels, B₁ and B₂ normalise each channel over the batch,
    and σ is the positive part. Without normalisation B₁ and B₂ are the identity, and σ is tanh, for
    which the theory of orthogonal starts is made. P is the identity where u keeps its shape; where
    a stage begins, it is a convolution with one pixel, which takes every second pixel.

    Reference: he2016resnet, section 3.3.
    """

    def __init__(self, inputs: int, outputs: int, skip: bool, normalised: bool):
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.activation = nn.ReLU() if normalised else nn.Tanh()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs) if normalised else nn.Identity(),
            self.activation,
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs) if normalised else nn.Identity(),
        )
        self.skip: nn.Module | None = None
        if skip:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skip = nn.Identity() if stride == 1 else project

    def forward(self, u: Tensor) -> Tensor:
        """The features (batch, channels, n, n) after the block."""
        change = self.layers(u)
        return self.activation(change if self.skip is None else self.skip(u) + change)


def network(key: Settings, seed: int) -> nn.Sequential:
    """The network before its training, from images (batch, 196) to ten logits.

    Convolutions start with entries from N(0, 2/(9·channels)), the usual choice for σ. An orthogonal
    start has an orthogonal matrix in the middle of each filter, and zeros elsewhere.

    Reference: he2016resnet, section 4.2.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = key.widths[0]
        parts: list[nn.Module] = [nn.Unflatten(1, (1, PIXELS, PIXELS))]
        parts.append(nn.Conv2d(1, first, 3, 1, 1, bias=False))
        parts += [nn.BatchNorm2d(first), nn.ReLU()] if key.normalised else [nn.Tanh()]
        for before, width in pairwise((first, *key.widths)):
            for k in range(key.blocks):
                inputs = before if k == 0 else width
                parts.append(Block(inputs, width, key.skips, key.normalised))
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(key.widths[-1], 10)]
        net = nn.Sequential(*parts)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if key.orthogonal:
                    centre = module.kernel_size[0] // 2
                    nn.init.zeros_(module.weight)
                    gain = 2**0.5 if key.normalised else 1.0
                    nn.init.orthogonal_(module.weight[:, :, centre, centre], gain)
    return net


@cache
def _mnist() -> Samples:
    """The 5,000 images of MNIST with 14 × 14 pixels, normalised; reading them takes a second."""
    data = mnist()
    pictures = nn.functional.avg_pool2d(data.image.float().view(-1, 1, 28, 28), 2)
    return Samples(((pictures - pictures.mean()) / pictures.std()).flatten(1), data.label)


def images(seed: int) -> tuple[Samples, Samples]:
    """4,000 images of MNIST for training and 1,000 for testing, split anew for each seed."""
    y, label = _mnist()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    first, last = (Samples(y[rows], label[rows]) for rows in (order[:4000], order[4000:]))
    return first, last


def trained(key: Settings, seed: int, rate: float, data: Samples) -> nn.Sequential:
    """The network after its training by Adam, whose rate falls along a cosine."""

    def loss(net: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"cross-entropy": metrics.cross_entropy(net(batch[0]), batch[1])}

    net = network(key, seed)
    batches = minibatches(*data, size=key.batch, seed=seed)
    for _ in train(net, loss, batches, steps=key.steps, lr=cosine(rate, key.steps)):
        pass
    return net


@torch.no_grad()
def accuracy(net: nn.Module, samples: Samples) -> float:
    """The share of right labels in percent; channels are normalised as in all of the training."""
    net.eval()
    return metrics.accuracy(net(samples.y), samples.label)


def plane(net: nn.Sequential, samples: Samples, seed: int, side: int) -> list[list[float]]:
    """The cross-entropy on the slice θ + a δ₁ + b δ₂ with |a|, |b| ≤ 1.

    The directions δ₁ and δ₂ are random, with the norms of the network's own filters. Channels are
    normalised over the given samples, as in training.
    """
    net = copy.deepcopy(net).train()  # its running means must not see the shifted weights
    generator = torch.Generator().manual_seed(seed)
    pair = [landscape.filter_normalized(net, generator) for _ in range(2)]
    ticks = landscape.grid(-1.0, 1.0, side).float()
    values = landscape.loss_plane(
        net,
        lambda f: metrics.cross_entropy(f(samples.y), samples.label),
        (pair[0], pair[1]),
        ticks,
        ticks,
    )
    return [[float(f"{v:.4g}") for v in row] for row in values.tolist()]


def study(store: Store, kind: str, seeds: Sequence[int]) -> Study:
    """What a kind of network reaches at the rate that is best on training images kept apart."""
    smoke, key = store.run == "smoke", KINDS[kind]
    key = replace(key, blocks=1, steps=2) if smoke else key
    rates = LOWER.get(kind, RATES)
    side, rates = (3, rates[:1]) if smoke else (SIDE, rates)

    def on_images_kept_apart(rate: float) -> float:
        data, _ = images(TRIED)
        kept, rest = (Samples(data.y[rows], data.label[rows]) for rows in SPLIT)
        return accuracy(trained(replace(key, steps=min(key.steps, 300)), TRIED, rate, rest), kept)

    def reached(rate: float, seed: int) -> tuple[float, float, list[list[float]]]:
        data, test = images(seed)
        net = trained(key, seed, rate, data)
        few = Samples(*(part[:PICTURES] for part in data))
        cut = plane(net, few, seed, side) if kind in SLICED else []
        return accuracy(net, data), accuracy(net, test), cut

    def compute() -> dict[str, Any]:
        rate = max(rates, key=on_images_kept_apart)
        columns = zip(*(reached(rate, s) for s in seeds), strict=True)
        return {"rate": rate} | dict(zip(("fitted", "accuracies", "planes"), columns, strict=True))

    stem = "images-" + kind.replace(" × ", "x").replace(", ", "-").replace(" ", "-")
    settings = asdict(key) | {"rates": rates, "seeds": list(seeds), "tried": TRIED, "side": side}
    return Study(**store.measure(stem, settings, compute).numbers)


def studies(store: Store, seeds: Sequence[int]) -> dict[str, Study]:
    """The studies of all kinds."""
    return {kind: study(store, kind, seeds) for kind in KINDS}


def minima(study: Study) -> list[int]:
    """The numbers of interior minima of the slices, one a seed."""
    return [int(landscape.interior_minima(torch.tensor(p)).sum()) for p in study.planes]


def linear(store: Store, seeds: Sequence[int]) -> list[float]:
    """The control: the accuracies of a logistic regression of the pixels."""
    iterations = 2 if store.run == "smoke" else 200

    def score(seed: int) -> float:
        data, test = images(seed)
        # a logistic regression that is stopped has not converged, which a trial run accepts
        with warnings.catch_warnings(action="ignore"):
            model = LogisticRegression(C=0.01, max_iter=iterations)
            model.fit(data.y.numpy(), data.label.numpy())
        return 100 * float(model.score(test.y.numpy(), test.label.numpy()))

    return store.measure(
        "images-linear",
        {"seeds": list(seeds), "C": 0.01},
        lambda: {"accuracies": [score(s) for s in seeds]},
    ).numbers["accuracies"]
