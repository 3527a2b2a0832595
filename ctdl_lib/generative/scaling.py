"""Scalings of data, by mean and deviation or by the box that contains them."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ..dynamics.calculus import Transformed, standard_normal_log_prob
from ..dynamics.deferral import holds

# Data in any real type, which is converted to the type of the map.
Rows = Shaped[Tensor, "batch d"] | Shaped[np.ndarray, "batch d"]


class Standardization(nn.Module):
    """The map (x − mean)/std of each column, and its inverse.

    `fit` computes the mean and the standard deviation of the training data. They are buffers, so
    they are stored and loaded with the weights. With `identity`, they are 0 and 1. Data of another
    type, such as float64, integers or NumPy arrays, are converted to that of the buffers.
    """

    mean: Tensor
    std: Tensor
    keeps_type = False  # floating-point data keep their type, for a map without parameters

    def __init__(self, d: int, *, identity: bool = False):
        super().__init__()
        self.register_buffer("mean", torch.full((d,), 0.0 if identity else math.nan))
        self.register_buffer("std", torch.full((d,), 1.0 if identity else math.nan))

    def fit(self, x: Rows, *, name: str = "x", constant: bool = False) -> "Standardization":
        """The same object, with the mean and the standard deviation of the columns of x.

        A warning names a column whose deviation is that of a few outliers.

        Args:
            constant: keep constant columns and only centre them, for contexts without effect.

        Raises:
            ValueError: x has a wrong shape, one row, entries that are not finite, or constant
                columns; the message names the columns.
        """
        x = rows_of(x, self.mean, name, self.keeps_type)
        if len(x) < 2:
            raise ValueError(f"{name} has one row, but a deviation needs at least two")
        refuse(~x.isfinite(), name, "NaN or infinite entries: drop or impute those rows")
        mean, std = x.mean(0), x.std(0)
        # a column that varies only by rounding errors counts as constant
        limit = 1e-6 if x.dtype == torch.float32 else 100 * torch.finfo(x.dtype).eps
        still = std <= limit * x.abs().amax(0)
        refuse(still & (not constant), name, "no variation, so no density: drop them")
        self.mean.copy_(mean)
        self.std.copy_(torch.where(still, torch.ones_like(std), std))
        _warn_of_outliers(self(x), name)
        return self

    def forward(self, x: Rows) -> Float[Tensor, "batch d"]:
        """The value (x − mean)/std.

        Raises:
            ValueError: `fit` was not called, or x is not (batch, d).
        """
        return (self.checked(x) - self.mean) / self.std

    def inverse(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value mean + std z."""
        return self.mean + self.std * self.checked(z)

    def log_det(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value log |det ∂z/∂x| = −Σ log std for each row."""
        return -self.std.log().sum().expand(len(z))

    def transform(self, x: Rows) -> Transformed:
        """The value z = (x − mean)/std, and log |det ∂z/∂x|."""
        z = self(x)
        return Transformed(z, self.log_det(z))

    def checked(self, x: Tensor | np.ndarray) -> Float[Tensor, "batch d"]:
        """The same x in the type of the buffers, after a check.

        Raises:
            ValueError: `fit` was not called, or x is not (batch, d).
            TypeError: x is not made of real numbers.
        """
        if not holds(~self.mean.isnan()):
            raise ValueError(
                "mean and deviation are unknown: call .standardize(x_train) first, load a state"
                " dictionary, or construct with standardize=False"
            )
        return rows_of(x, self.mean, keeps_type=self.keeps_type)


class BoxScaling(nn.Module):
    """The map Φ⁻¹((x − low)/(high − low)) of each column from a box to ℝᵈ, and its inverse.

    Φ is the distribution function of N(0, 1). The image of a uniform prior is the reference
    N(0, I), so a context without information needs no transport. All samples lie in the box.

    Raises:
        ValueError: `low` and `high` differ in length, or `low` is not below `high`.
    """

    low: Tensor
    high: Tensor
    keeps_type = False

    def __init__(self, low: Sequence[float], high: Sequence[float]):
        super().__init__()
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"want low < high for each column, got {low=} and {high=}")
        self.register_buffer("low", torch.tensor(low, dtype=torch.get_default_dtype()))
        self.register_buffer("high", torch.tensor(high, dtype=torch.get_default_dtype()))

    def fit(self, x: Rows, *, name: str = "x") -> "BoxScaling":
        """The same object, after a check that x lies in the box.

        Raises:
            ValueError: x has a wrong shape, or entries that are not finite or outside of the box.
        """
        x = self.checked(x)
        refuse(~x.isfinite(), name, "NaN or infinite entries: drop or impute those rows")
        refuse(~self._inside(x), name, "entries outside of the box: drop those rows")
        return self

    def forward(self, x: Rows) -> Float[Tensor, "batch d"]:
        """The value Φ⁻¹((x − low)/(high − low)) at x, or at the nearest face if x is outside.

        On a face, where Φ⁻¹ is infinite, it is the value at half the distance to the next number.
        """
        x, width = self.checked(x), self.high - self.low
        # from the nearer face: close to `high`, 1 − Φ(z) has more digits than Φ(z)
        lower = x - self.low <= self.high - x
        share = torch.where(lower, x - self.low, self.high - x) / width
        gap_low = torch.nextafter(self.low, self.high) - self.low
        gap_high = self.high - torch.nextafter(self.high, self.low)
        least = (torch.where(lower, gap_low, gap_high) / (2 * width)).to(x.dtype)
        z = torch.special.ndtri(torch.maximum(share, least.clamp(min=torch.finfo(x.dtype).tiny)))
        return torch.where(lower, z, -z)

    def inverse(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value low + (high − low) Φ(z)."""
        # erfc keeps the digits of a small Φ(−|z|), which torch.special.ndtr loses in float32
        share = 0.5 * (self.high - self.low) * torch.erfc(self.checked(z).abs() / math.sqrt(2))
        x = torch.where(z < 0, self.low + share, self.high - share)
        # rounding may move a point across a face, where the density is zero
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def transform(self, x: Rows) -> Transformed:
        """The value z = Φ⁻¹((x − low)/(high − low)), and log |det ∂z/∂x|, or −∞ if x is outside."""
        x = self.checked(x)
        z = self(x)
        return Transformed(z, torch.where(self._inside(x).all(1), self.log_det(z), -math.inf))

    def log_det(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value log |det ∂z/∂x| = −log N(z; 0, I) − Σ log(high − low)."""
        return -standard_normal_log_prob(z) - (self.high - self.low).log().sum()

    def checked(self, x: Tensor | np.ndarray) -> Float[Tensor, "batch d"]:
        """The same x in the type of the box, after a check.

        Raises:
            ValueError: x is not (batch, d).
            TypeError: x is not made of real numbers.
        """
        return rows_of(x, self.low, keeps_type=self.keeps_type)

    def rounded(
        self, x: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"]
    ) -> Bool[Tensor, " batch"]:
        """The rows of x = inverse(z) that were rounded to numbers with another image than z."""
        return ((self(x) - z).abs() > 1e-3).any(1)

    def _inside(self, x: Tensor) -> Tensor:
        return (x >= self.low) & (x <= self.high)


def rows_of(
    x: Tensor | np.ndarray, like: Tensor, name: str = "the tensor", keeps_type: bool = False
) -> Tensor:
    """The rows x in the dtype and on the device of `like`, which has one entry a column.

    With `keeps_type`, floating-point data keep their dtype.
    """
    try:
        x = torch.as_tensor(x)
    except TypeError as error:
        raise TypeError(f"{name} must be made of real numbers: {error}") from error
    if x.is_complex():
        raise TypeError(f"{name} must be made of real numbers, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] != len(like):
        raise ValueError(f"{name} must have shape (batch, {len(like)}), got {tuple(x.shape)}")
    return x.to(like.device if keeps_type and x.is_floating_point() else like)


def refuse(bad: Tensor, name: str, fault: str) -> None:
    """Refuse data with bad entries (batch, d), or bad columns (d,)."""
    if holds(~bad):
        return
    columns = bad.reshape(-1, bad.shape[-1]).any(0).nonzero().flatten().tolist()
    where = "" if bad.dim() == 1 else f" (first in row {int(bad.any(1).nonzero()[0])})"
    raise ValueError(f"columns {columns} of {name} have {fault}{where}")


def _warn_of_outliers(z: Tensor, name: str) -> None:
    """Warn if outliers leave the middle half of a standardized column almost no deviation."""
    ranked = z.sort(0).values
    middle = ranked[3 * len(z) // 4] - ranked[len(z) // 4]
    for column in ((middle > 0) & (middle < 1e-3)).nonzero()[:, 0].tolist():
        distinct = len(z[:, column].unique())
        warnings.warn(
            f"column {column} of {name} has outliers: half of its {len(z)} entries lie within"
            f" {float(middle[column]):.1e} standard deviations ({distinct} distinct values are"
            " left). Drop them, or take logarithms or ranks",
            stacklevel=4,
        )
