"""Metrics: accuracies, orders of convergence, and distances between samples."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.nn import functional

from .contracts import guard


class Spread(NamedTuple):
    """Mean and standard deviation over repetitions."""

    mean: float
    std: float


def accuracy(logits: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]) -> float:
    """The percentage of samples whose label is that of `predict`.

    Raises:
        ValueError: there is no sample, or not one label for each.
    """
    _check_labels(logits, label)
    if not len(label):
        raise ValueError("an accuracy needs at least one sample, got none")
    return 100 * int((predict(logits) == label).sum()) / len(label)


def cross_entropy(
    logits: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """The mean of −log p(label), where p is the softmax of the logits, or the sigmoid of one.

    Raises:
        ValueError: there is not one label for each sample.
    """
    _check_labels(logits, label)
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], label.to(logits))
    return functional.cross_entropy(logits, label)


def predict(logits: Float[Tensor, "batch classes"]) -> Int[Tensor, " batch"]:
    """The most probable class of each sample; with one logit, class 1 if it is positive."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def spread(values: Sequence[float]) -> Spread:
    """The mean and the standard deviation √(Σ(x − mean)²/(n − 1)) of n ≥ 2 values."""
    if len(values) < 2:
        raise ValueError(f"a spread needs at least two values, got {len(values)}")
    mean = math.fsum(values) / len(values)
    return Spread(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)))


def observed_orders(errors: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The orders log(eₖ/eₖ₊₁)/log(sₖ/sₖ₊₁) of the errors e at consecutive step sizes s."""
    if len(errors) != len(sizes) or not all(0 < number < math.inf for number in (*errors, *sizes)):
        raise ValueError(f"want as many positive errors as sizes, got {errors=} and {sizes=}")
    if any(a == b for a, b in pairwise(sizes)):
        raise ValueError(f"consecutive sizes must differ, got {sizes}")
    pairs = zip(errors[:-1], errors[1:], sizes[:-1], sizes[1:], strict=True)
    return [math.log(e0 / e1) / math.log(s0 / s1) for e0, e1, s0, s1 in pairs]


def mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, bandwidth: float) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of x and y.

    The discrepancy is E k(X, X′) + E k(Y, Y′) − 2E k(X, Y) with the kernel
    k(x, y) = exp(−‖x − y‖²/(2 bandwidth²)). The estimate may be negative. It needs n² + m² + nm
    distances, of which at most four million are in memory at a time.

    Reference: gretton2012kernel, Lemma 6.
    """
    _check_samples(x, y)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distance / bandwidth) ** 2)

    n, m = len(x), len(y)
    # the n pairs of a sample with itself, for which k(x, x) = 1, would cause a bias
    within_x = (_sum_of_pairs(kernel, x, x) - n) / (n * (n - 1))
    within_y = (_sum_of_pairs(kernel, y, y) - m) / (m * (m - 1))
    return within_x + within_y - 2 * _sum_of_pairs(kernel, x, y) / (n * m)


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """The unbiased estimate of the energy distance 2E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖.

    The energy distance is the square of a metric. The estimate may be negative.

    Reference: szekely2013energy.
    """
    _check_samples(x, y)
    n, m = len(x), len(y)
    within_x = _sum_of_pairs(torch.clone, x, x) / (n * (n - 1))
    within_y = _sum_of_pairs(torch.clone, y, y) / (m * (m - 1))
    return 2 * _sum_of_pairs(torch.clone, x, y) / (n * m) - within_x - within_y


def sliced_wasserstein(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    *,
    projections: int,
    generator: torch.Generator,
) -> float:
    """The sliced Wasserstein distance √E[W₂²(θᵀX, θᵀY)] over random unit vectors θ.

    In each of the `projections`, W₂ is computed by sorting. The numbers of samples must be equal.

    Reference: bonneel2015sliced.
    """
    _check_samples(x, y, equal=True)
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    shape, device = (x.shape[1], projections), generator.device
    theta = torch.randn(shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    theta = theta / theta.norm(dim=0)
    apart = (x @ theta).sort(0).values - (y @ theta).sort(0).values
    return math.sqrt(float(apart.square().mean()))


def vendi(x: Float[Tensor, "n d"]) -> float:
    """The Vendi score exp(−Σ λᵢ log λᵢ), where nλᵢ are the eigenvalues of the matrix of cosines.

    Entry (i, j) of that matrix is the cosine of the angle between samples i and j. The score is the
    effective number of directions: 1 for equal samples and n for orthogonal ones.

    Raises:
        ValueError: a sample is zero, so that it has no direction.

    Reference: friedman2023vendi.
    """
    _check_samples(x, x)
    norm = x.double().norm(dim=1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError(f"{int((norm == 0).sum())} samples are zero and have no direction")
    unit = x / norm
    # both products have the same nonzero eigenvalues
    smaller = unit @ unit.T if len(x) <= x.shape[1] else unit.T @ unit
    eigenvalues = torch.linalg.eigvalsh(smaller / len(x)).clamp(min=0)
    return math.exp(-float(torch.special.xlogy(eigenvalues, eigenvalues).sum()))


def c2st(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], *, seed: int, folds: int = 5) -> float:
    """The accuracy of a classifier of x and y on held-out samples: a classifier two-sample test.

    The accuracy is about ½ if the distributions are equal, and 1 if they are separated. The
    definition is that of sbibm: `folds`-fold cross-validation of a network with two hidden layers
    of 10d ReLUs, and inputs that are standardised with the mean and deviation of x. Features that
    are constant in x are centred only. The numbers of samples must be equal.

    No classifier exceeds the Bayes accuracy in expectation, and this one overfits in high
    dimension. For two Gaussians with a Bayes accuracy of 0.618 and n = 1000 it found 0.62 if d = 2,
    but 0.54 if d = 10.

    Reference: lopezpaz2017revisiting.
    """
    _check_samples(x, y, equal=True)
    std, mean = torch.std_mean(x, dim=0)
    scale = torch.where(std > 0, std, 1.0)
    features = ((torch.cat([x, y]) - mean) / scale).detach().cpu().numpy()
    label = torch.arange(2 * len(x)).ge(len(x)).numpy()
    width = 10 * x.shape[1]
    # training stops long before, when the loss no longer decreases
    network = MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    split = KFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(network, features, label, cv=split).mean())


def _check_labels(logits: Tensor, label: Tensor) -> None:
    if label.shape != logits.shape[:1]:
        raise ValueError(
            f"label must have shape {tuple(logits.shape[:1])}, got {tuple(label.shape)}"
        )


def _check_samples(x: Tensor, y: Tensor, *, equal: bool = False) -> None:
    """Refuse fewer than two samples, samples that are not finite, and different dimensions."""
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x must have shape (n, d) and y (m, d), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    for name, samples in (("x", x), ("y", y)):
        if len(samples) < 2:
            raise ValueError(f"{name} must have at least two samples, got {len(samples)}")
        if not samples.isfinite().all():
            bad = int((~samples.isfinite()).any(1).sum())
            raise ValueError(f"{bad} samples of {name} are not finite: drop them and report it")
    if equal and len(x) != len(y):
        raise ValueError(f"sizes must be equal, got {len(x)} and {len(y)}: use fewer of one")


def _sum_of_pairs(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """The sum of function(‖xᵢ − yⱼ‖) over all pairs, with at most four million at a time."""
    rows = max(1, 4_000_000 // len(y))
    # with matrix products the distance of a sample to itself would not be exactly zero
    exact = "donot_use_mm_for_euclid_dist"
    parts = (function(torch.cdist(part, y, compute_mode=exact)) for part in x.split(rows))
    return math.fsum(float(part.sum(dtype=torch.float64)) for part in parts)


guard(__name__)
