"""Data sets for supervised classification: sets in the plane, and the digits of scikit-learn."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..contracts import guard
from ..extras import needed


class Samples(NamedTuple):
    """The features and the label 0, 1, … of each sample."""

    y: Float[Tensor, "batch features"]
    label: Int[Tensor, " batch"]

    def to(self, device: str | torch.device) -> "Samples":
        """The samples on the given device."""
        return Samples(self.y.to(device), self.label.to(device))


@dataclass(frozen=True)
class Classification:
    """A data set with `classes` classes, in training samples and validation samples."""

    name: str
    classes: int
    train: Samples
    val: Samples

    def without_val(self, seed: int, *, fraction: float = 0.2) -> "Classification":
        """The data set of the training samples, of which a `fraction` becomes the new `val`.

        Settings chosen with it do not depend on the old `val`, which can then test them.
        """
        rows = torch.randperm(len(self.train.y), generator=torch.Generator().manual_seed(seed))
        n = round(fraction * len(rows))
        val, train = (Samples(self.train.y[r], self.train.label[r]) for r in (rows[:n], rows[n:]))
        return Classification(self.name, self.classes, train, val)


def ellipses(seed: int, *, train: int = 1000, val: int = 200) -> Classification:
    """The points (r cos φ, 0.4 r sin φ) of class 1 for r < 1 and of class 0 for 1 < r < 2.

    r and φ are uniformly distributed. `train` and `val` are the numbers of samples per class.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Samples:
        r = torch.rand(2 * n, generator=generator)
        r[n:] += 1
        angle = 2 * math.pi * torch.rand(2 * n, generator=generator)
        y = torch.stack([r * angle.cos(), 0.4 * r * angle.sin()], 1)
        return Samples(y, (torch.arange(2 * n) < n).long())

    return Classification("ellipses", 2, draw(train), draw(val))


def swiss_roll(seed: int, *, nodes: int = 256, noise: float = 0.02) -> Classification:
    """Two spirals (r cos φ, r sin φ) with N(0, noise²) added to both coordinates.

    φ is uniformly distributed in [0, 4π]. The radius r grows linearly with φ, from 0 to 1 for class
    1 and from 0.2 to 1.2 for class 0. Training and validation have `nodes` points of each class.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Samples:
        share = torch.rand(nodes, generator=generator)
        angle = 4 * math.pi * share
        circle = torch.stack([angle.cos(), angle.sin()], 1)
        y = torch.cat([share[:, None] * circle, (share + 0.2)[:, None] * circle])
        y = y + noise * torch.randn(y.shape, generator=generator)
        return Samples(y, (torch.arange(2 * nodes) < nodes).long())

    return Classification("swiss roll", 2, draw(), draw())


def peaks(seed: int, *, train: int = 1000, val: int = 400, grid: int = 256) -> Classification:
    """The nodes of a grid on [−3, 3]², in five classes by the value of the function `peaks_of`.

    The classes divide the range of the function into five intervals of equal length. Each class has
    `train` and `val` samples, which are drawn from its nodes without replacement, so training and
    validation have no point in common.

    Raises:
        ValueError: a class has fewer than `train` + `val` nodes.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-3, 3, grid, dtype=torch.float64)
    y = torch.cartesian_prod(axis, axis)
    height = peaks_of(y)
    unit = (height - height.min()) / (height.max() - height.min())
    level = (5 * unit).long().clamp(max=4)
    chosen = []
    for k in range(5):
        nodes = torch.nonzero(level == k).flatten()
        if len(nodes) < train + val:
            raise ValueError(f"class {k} has {len(nodes)} of {train + val} nodes: raise grid")
        chosen.append(nodes[torch.randperm(len(nodes), generator=generator)[: train + val]])
    first = torch.cat([nodes[:train] for nodes in chosen])
    last = torch.cat([nodes[train:] for nodes in chosen])
    return Classification(
        "peaks", 5, Samples(y[first].float(), level[first]), Samples(y[last].float(), level[last])
    )


def peaks_of(y: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
    """The function 3(1−a)²e^{−a²−(b+1)²} − 10(a/5−a³−b⁵)e^{−a²−b²} − ⅓e^{−(a+1)²−b²} of (a, b)."""
    a, b = y.unbind(-1)
    return (
        3 * (1 - a) ** 2 * torch.exp(-(a**2) - (b + 1) ** 2)
        - 10 * (a / 5 - a**3 - b**5) * torch.exp(-(a**2) - b**2)
        - torch.exp(-((a + 1) ** 2) - b**2) / 3
    )


def digits(seed: int, *, fraction: float = 0.2) -> Classification:
    """The 1,797 handwritten digits of scikit-learn, 8×8 pixels with values in [0, 1].

    A stratified `fraction` of them is for validation. Nothing is downloaded.

    Reference: pedregosa2011scikit.
    """
    load_digits = needed("sklearn.datasets", "data").load_digits
    split = needed("sklearn.model_selection", "data").train_test_split
    pixels, label = load_digits(return_X_y=True)
    parts = split(
        (pixels / 16).astype(np.float32),
        label,
        test_size=fraction,
        stratify=label,
        random_state=seed,
    )
    y_train, y_val, label_train, label_val = (torch.as_tensor(np.asarray(part)) for part in parts)
    return Classification(
        "digits", 10, Samples(y_train, label_train.long()), Samples(y_val, label_val.long())
    )


guard(__name__)
