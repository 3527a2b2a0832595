"""Metrics: accuracies, orders of convergence, and distances between samples."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from .contracts import guard
from .extras import needed


def accuracy(logits: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]) -> float:
    """The percentage of samples whose label is that of `predict`.

    Raises:
        ValueError: there is no sample, or not one label for each.
    """
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
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], label.to(logits))
    return functional.cross_entropy(logits, label)


def predict(logits: Float[Tensor, "batch classes"]) -> Int[Tensor, " batch"]:
    """The most probable class of each sample; with one logit, class 1 if it is positive."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def observed_orders(errors: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The orders log(eₖ/eₖ₊₁)/log(sₖ/sₖ₊₁) of the errors e at consecutive step sizes s."""
    if len(errors) != len(sizes) or not all(0 < number < math.inf for number in (*errors, *sizes)):
        raise ValueError(f"want as many positive errors as sizes, got {errors=} and {sizes=}")
    if any(a == b for a, b in pairwise(sizes)):
        raise ValueError(f"consecutive sizes must differ, got {sizes}")
    pairs = zip(errors[:-1], errors[1:], sizes[:-1], sizes[1:], strict=True)
    return [math.log(e0 / e1) / math.log(s0 / s1) for e0, e1, s0, s1 in pairs]


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
    check_samples(x, y)
    shape, device = (x.shape[1], projections), generator.device
    theta = torch.randn(shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    theta = theta / theta.norm(dim=0)
    apart = (x @ theta).sort(0).values - (y @ theta).sort(0).values
    return math.sqrt(float(apart.square().mean()))


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
    check_samples(x, y)
    std, mean = torch.std_mean(x, dim=0)
    scale = torch.where(std > 0, std, 1.0)
    features = ((torch.cat([x, y]) - mean) / scale).detach().cpu().numpy()
    neural = needed("sklearn.neural_network", "data")
    selection = needed("sklearn.model_selection", "data")
    label = torch.arange(2 * len(x)).ge(len(x)).numpy()
    width = 10 * x.shape[1]
    # training stops long before, when the loss no longer decreases
    network = neural.MLPClassifier((width, width), max_iter=10_000, random_state=seed)
    split = selection.KFold(folds, shuffle=True, random_state=seed)
    return float(selection.cross_val_score(network, features, label, cv=split).mean())


def check_samples(x: Tensor, y: Tensor) -> None:
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


guard(__name__)
