"""Are samples digits? A small classifier, distances in its features, and what they can notice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ctdl_lib import metrics
from ctdl_lib.learning import Step, cosine, minibatches, train
from machinery.seeds import seeded
from machinery.store import Store

from . import comparisons
from .grids import Field, resample
from .training import PIXELS, images

FEATURES = 32
CLASSIFYING: dict[str, Any] = {
    **{"steps": 1500, "batch": 64, "lr": 3e-3, "average": 0.99, "features": FEATURES, "shift": 1},
    **{"decay": 0.05},
}
SURE = 0.9  # a classifier is sure of an image if its largest probability is above this
NEIGHBOURS = 5
HALF = 500  # images on each side of a comparison
SPLITS = 5  # of the 1,000 held-out images into two halves


class Classifier(nn.Module):
    """Logits of ten digits from fields of any grid, which are seen on 28 × 28 pixels."""

    def __init__(self, features: int = FEATURES):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Conv2d(32, 32, 3, padding=1)
        self.wide, self.last = nn.Linear(32 * 9, features), nn.Linear(features, 10)

    def features(self, u: Field) -> Float[Tensor, "batch features"]:
        """The activations before the last layer."""
        x = resample(u, PIXELS)[:, None]
        for layer in (self.first, self.second, self.third):
            x = functional.max_pool2d(functional.relu(layer(x)), 2)
        return functional.relu(self.wide(x.flatten(1)))

    def forward(self, u: Field) -> Float[Tensor, "batch 10"]:
        """The logits of the digits."""
        return self.last(self.features(u))


def training_of(
    model: Classifier, how: dict[str, Any], seed: int, device: str = "cpu", data: int = 0
) -> Callable[[int, Path | None], Iterator[Step]]:
    """The training of the classifier on images that are moved by a pixel at random."""
    image, label, _, _ = images(data)
    rows = minibatches(image, label, size=how["batch"], seed=seed)

    def batch(k: int) -> tuple[Tensor, Tensor]:
        x, y = rows(k)
        r = how["shift"]
        i, j = torch.randint(-r, r + 1, (2,), generator=seeded(seed, k)).tolist()
        return x.roll((i, j), (1, 2)).to(device), y.to(device)

    def steps_of(steps: int, checkpoint: Path | None = None) -> Iterator[Step]:
        loss = lambda net, drawn: functional.cross_entropy(net(drawn[0]), drawn[1])  # noqa: E731
        adam = torch.optim.AdamW(
            model.to(device).parameters(), lr=how["lr"], weight_decay=how["decay"]
        )
        options: dict[str, Any] = {"average": how["average"], "checkpoint": checkpoint}
        options |= {"optimizer": adam, "lr": cosine(1.0, how["steps"])}
        yield from train(model, loss, batch, steps=steps, **options)
        model.cpu()

    return steps_of


def classifier(store: Store, seed: int = 0, device: str = "cpu") -> Classifier:
    """The classifier of the images that the generative models have learned from."""
    torch.manual_seed(seed)
    model = Classifier(CLASSIFYING["features"])
    training = training_of(model, CLASSIFYING, seed, device, seed)
    kept: dict[str, Any] = {"device": device, "dtype": torch.float16}
    store.fit("classifier", model, CLASSIFYING | {"seed": seed}, training, **kept)
    return model.cpu().requires_grad_(False)


@torch.no_grad()
def accuracy(net: Classifier, seed: int = 0) -> float:
    """The share of the held-out images whose digit the classifier names, in percent."""
    _, _, held, label = images(seed)
    return metrics.accuracy(net(held), label)


# --- numbers that compare samples with images ---------------------------------------------------


def frechet(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """The Fréchet distance |m − m′|² + tr(C + C′ − 2(C C′)^½) of two normal laws with the moments.

    Reference: heusel2017gans.
    """
    x, y = x.double(), y.double()
    C, D = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(C)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ D @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + C.trace() + D.trace() - 2 * cross)


def neighbourhoods(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], k: int = NEIGHBOURS
) -> tuple[float, float]:
    """The precision and the coverage of samples x of images y.

    The ball of an image reaches to its k-th neighbour among the images. Precision is the share of
    samples in some ball. Coverage is the share of balls that hold a sample.

    Reference: kynkaanniemi2019improved; naeem2020reliable.
    """
    radius = torch.cdist(y, y).kthvalue(min(k + 1, len(y)), dim=1).values
    inside = torch.cdist(x, y) <= radius
    return inside.any(1).double().mean().item(), inside.any(0).double().mean().item()


def nearest(x: Field, learned: Tensor) -> float:
    """The median distance in L² of samples to the nearest of the images that were learned."""
    x = resample(x, PIXELS).flatten(1)
    return float(torch.cdist(x, learned.flatten(1)).amin(1).median() / PIXELS)


@torch.no_grad()
def sure(net: Classifier, x: Field) -> float:
    """The share of samples of which the classifier is sure, in percent."""
    return 100 * float((net(x).softmax(1).amax(1) > SURE).double().mean())


def beyond(x: Field) -> float:
    """The share of the power of x that lies beyond the wave numbers of 28 × 28 pixels, in percent.

    The images have none: on finer grids they are the trigonometric interpolation of 28² pixels.
    """
    if x.shape[-1] <= PIXELS:
        return 0.0
    seen = resample(resample(x, PIXELS), x.shape[-1])
    return 100 * float((x - seen).square().sum() / x.square().sum())


@torch.no_grad()
def quality(net: Classifier, x: Field, real: Tensor, seed: int = 0) -> dict[str, float]:
    """All numbers that compare samples x with as many images."""
    n, learned = x.shape[-1], images(seed)[0]
    u, v = net.features(x), net.features(real)
    precision, coverage = neighbourhoods(u, v)
    flat, flat_real = x.flatten(1), resample(real, n).flatten(1)
    how: dict[str, Any] = {"projections": 500, "generator": seeded(seed, 0)}
    return {
        "frechet": frechet(u, v),
        "sure": sure(net, x),
        "precision": 100 * precision,
        "coverage": 100 * coverage,
        "nearest": nearest(x, learned),
        "sliced": metrics.sliced_wasserstein(flat, flat_real, **how),
        "energy": 1e3 * comparisons.energy_distance(flat / n, flat_real / n),
        "beyond": beyond(x),
    }


# --- what a metric can notice -------------------------------------------------------------------


def split(k: int, seed: int = 0, count: int = HALF) -> tuple[Field, Field]:
    """Two halves of the held-out images, the k-th of several ways to part them."""
    held = images(seed)[2]
    order = torch.randperm(len(held), generator=seeded(seed, 500 + k))
    return held[order[:count]], held[order[count : 2 * count]]


def blurred(x: Field) -> Field:
    """The images after a Gaussian blur whose width is one pixel."""
    k = torch.fft.fftfreq(x.shape[-1], dtype=torch.float64)
    kernel = torch.exp(-2 * (torch.pi * k) ** 2)
    return torch.fft.ifft2(torch.fft.fft2(x) * (kernel[:, None] * kernel)).real.to(x.dtype)


def shifted(x: Field) -> Field:
    """The images moved by three pixels down and to the right."""
    return x.roll((3, 3), (1, 2))


def resampled(x: Field) -> Field:
    """The images seen on 10 × 10 pixels and interpolated again."""
    return resample(resample(x, 10), x.shape[-1])


def spliced(x: Field) -> Field:
    """Half of the images are no digits: the upper half of one above the lower half of another."""
    m, n = len(x) // 2, x.shape[-1]
    mixed = torch.cat([x[:m, : n // 2], x[:m].roll(1, 0)[:, n // 2 :]], 1)
    return torch.cat([mixed, x[m:]])


def repeated(x: Field) -> Field:
    """Fifty of the images, as often as it takes: a model that has lost most of the variety."""
    return x[:50].repeat(-(-len(x) // 50), 1, 1)[: len(x)]


def copied(x: Field) -> Field:
    """Images that were learned: a model that can only copy."""
    learned = images()[0]
    return learned[: len(x)]


WORSE: dict[str, Callable[[Field], Field]] = {
    "blurred": blurred,
    "shifted": shifted,
    "resampled": resampled,
    "spliced": spliced,
    "repeated": repeated,
    "copied": copied,
}
METRICS = ("frechet", "sure", "precision", "coverage", "nearest", "sliced", "energy")


def powers(store: Store, net: Classifier, seed: int = 0) -> dict[str, Any]:
    """The numbers of real images and of worse ones against real images, one a split."""
    small = store.run == "smoke"
    splits, count = (2, 40) if small else (SPLITS, HALF)

    def compute() -> dict[str, Any]:
        found: dict[str, list[dict[str, float]]] = {}
        for k in range(splits):
            a, b = split(k, seed, count)
            for name, change in ({"real": lambda x: x} | WORSE).items():
                found.setdefault(name, []).append(quality(net, change(a), b, seed))
        return found

    settings = CLASSIFYING | {"splits": splits, "count": count, "seed": seed, "sure": SURE}
    settings |= {"neighbours": NEIGHBOURS, "worse": list(WORSE)}
    return store.measure("powers", settings, compute).numbers
