"""Data sets for supervised classification: three in the plane, and scikit-learn's digits."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Samples(NamedTuple):
    """Features and labels 0, 1, … of the same samples."""

    y: Float[Tensor, "batch features"]
    label: Int[Tensor, " batch"]

    def to(self, device: str | torch.device) -> "Samples":
        """The samples on a device."""
        return Samples(self.y.to(device), self.label.to(device))


@dataclass(frozen=True)
class Classification:
    """Samples to learn from and samples to judge by, of `classes` classes."""

    name: str
    classes: int
    train: Samples
    val: Samples

    def without_val(self, seed: int, *, fraction: float = 0.2) -> "Classification":
        """The problem of the training samples alone, a `fraction` of them kept as new `val`.

        Settings chosen on it have not seen the old `val`, which can then judge them.
        """
        rows = torch.randperm(len(self.train.y), generator=torch.Generator().manual_seed(seed))
        n = round(fraction * len(rows))
        val, train = (Samples(self.train.y[r], self.train.label[r]) for r in (rows[:n], rows[n:]))
        return Classification(self.name, self.classes, train, val)


def ellipses(seed: int, *, train: int = 1000, val: int = 200) -> Classification:
    """The points (r cos φ, 0.4 r sin φ), class 1 where r < 1 and class 0 where 1 < r < 2.

    `train` and `val` count samples of each class; r and φ are uniform.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Samples:
        r = torch.rand(2 * n, generator=generator)
        r[n:] += 1
        angle = 2 * math.pi * torch.rand(2 * n, generator=generator)
        y = torch.stack([r * angle.cos(), 0.4 * r * angle.sin()], 1)
        return Samples(y, (torch.arange(2 * n) < n).long())

    return Classification("ellipses", 2, draw(train), draw(val))


def swiss_roll(nodes: int = 256) -> Classification:
    """Two spirals (r cos φ, r sin φ), φ ∈ [0, 4π], by turns for training and validation.

    The radius of class 1 grows from 0 to 1, that of class 0 from 0.2 to 1.2. They are sampled
    without noise at 2·nodes + 1 angles.
    """
    n = 2 * nodes + 1
    angle = torch.linspace(0, 4 * math.pi, n, dtype=torch.float64)
    spirals = []
    for inner in (0.0, 0.2):
        r = torch.linspace(inner, inner + 1, n, dtype=torch.float64)
        spirals.append(torch.stack([r * angle.cos(), r * angle.sin()], 1))
    y = torch.cat(spirals).float()
    label = torch.cat([torch.ones(n), torch.zeros(n)]).long()
    odd = torch.arange(2 * n) % 2 == 0
    return Classification(
        "swiss roll", 2, Samples(y[odd], label[odd]), Samples(y[~odd], label[~odd])
    )


def peaks(seed: int, *, train: int = 1000, val: int = 400, grid: int = 256) -> Classification:
    """The nodes of a grid on [−3, 3]², in five classes by the level of the function `peaks_of`.

    The levels have equal widths; each class has `train` and `val` samples, drawn from its nodes
    without replacement, so that no validation point has been seen in training.

    Raises:
        ValueError: a class has fewer nodes than samples are asked for.
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
            raise ValueError(f"class {k} has {len(nodes)} nodes, {train + val} wanted: raise grid")
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


def annuli(seed: int, *, inner: int = 500, outer: int = 1500) -> Classification:
    """The points r (cos φ, sin φ), class 1 where 0 < r < ½ and class 0 where 1 < r < 3/2.

    `inner` and `outer` count training samples; a fifth as many validate. r and φ are uniform.

    Reference: dupont2019augmented.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(inside: int, outside: int) -> Samples:
        n = inside + outside
        r = 0.5 * torch.rand(n, generator=generator)
        r[inside:] += 1
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        y = torch.stack([r * angle.cos(), r * angle.sin()], 1)
        return Samples(y, (torch.arange(n) < inside).long())

    return Classification("annuli", 2, draw(inner, outer), draw(inner // 5, outer // 5))


def digits(seed: int, *, fraction: float = 0.2) -> Classification:
    """The 1,797 handwritten digits of 8×8 pixels in [0, 1], a stratified `fraction` kept aside.

    Reference: pedregosa2011scikit (the data ship with scikit-learn; nothing is downloaded).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, label = load_digits(return_X_y=True)
    parts = train_test_split(
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
