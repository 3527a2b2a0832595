"""Maps from data to z ~ N(0, I), with the density, samples and mode of the data."""

import abc
import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..dynamics.calculus import Transformed, standard_normal_log_prob


class Standardization(nn.Module):
    """The map (x − mean)/std of each column, and its inverse.

    `fit` computes the mean and the standard deviation of the training data. They are buffers, so
    they are stored and loaded with the weights. With `identity`, they are 0 and 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, d: int, *, identity: bool = False):
        super().__init__()
        self.register_buffer("mean", torch.full((d,), 0.0 if identity else math.nan))
        self.register_buffer("std", torch.full((d,), 1.0 if identity else math.nan))

    def fit(self, x: Float[Tensor, "batch d"], *, name: str = "x") -> "Standardization":
        """The same object, with the mean and the standard deviation of the columns of x.

        Raises:
            ValueError: x has a wrong shape, one row, entries that are not finite, or constant
                columns; the message names the columns.
        """
        _check_shape(x, len(self.mean), name)
        if len(x) < 2:
            raise ValueError(f"{name} has one row, but a deviation needs at least two")
        _refuse(~x.isfinite().all(0), name, "NaN or infinite entries: drop or impute those rows")
        mean, std = x.mean(0), x.std(0)
        # a column that varies only by rounding errors counts as constant
        limit = 1e-6 if x.dtype == torch.float32 else 100 * torch.finfo(x.dtype).eps
        _refuse(std <= limit * x.abs().amax(0), name, "no variation, so no density: drop them")
        self.mean.copy_(mean)
        self.std.copy_(std)
        return self

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
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

    def transform(self, x: Float[Tensor, "batch d"]) -> Transformed:
        """The value z = (x − mean)/std, and log |det ∂z/∂x|."""
        z = self(x)
        return Transformed(z, self.log_det(z))

    def checked(self, x: Tensor) -> Tensor:
        """The same x, after a check.

        Raises:
            ValueError: `fit` was not called, or x is not (batch, d).
        """
        if bool(self.mean.isnan().any()):
            raise ValueError(
                "mean and deviation are unknown: call .standardize(x_train) first, load a state"
                " dictionary, or construct with standardize=False"
            )
        return _check_shape(x, len(self.mean))


class BoxScaling(nn.Module):
    """The map Φ⁻¹((x − low)/(high − low)) of each column from a box to ℝᵈ, and its inverse.

    Φ is the distribution function of N(0, 1). The image of a uniform prior is the reference
    N(0, I), so a context without information needs no transport. All samples lie in the box.

    Raises:
        ValueError: `low` and `high` differ in length, or `low` is not below `high`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]):
        super().__init__()
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"want low < high for each column, got {low=} and {high=}")
        self.register_buffer("low", torch.tensor(low, dtype=torch.get_default_dtype()))
        self.register_buffer("high", torch.tensor(high, dtype=torch.get_default_dtype()))

    def fit(self, x: Float[Tensor, "batch d"], *, name: str = "x") -> "BoxScaling":
        """The same object, after a check that x lies in the box.

        Raises:
            ValueError: x has a wrong shape, or entries that are not finite or outside of the box.
        """
        self.checked(x)
        _refuse(~x.isfinite().all(0), name, "NaN or infinite entries: drop or impute those rows")
        _refuse(~self._inside(x).all(0), name, "entries outside of the box: drop those rows")
        return self

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value Φ⁻¹((x − low)/(high − low)) at x, or at the nearest face if x is outside.

        On a face, where Φ⁻¹ is infinite, it is the value at half the distance to the next number.
        """
        width = self.high - self.low
        # from the nearer face: close to `high`, 1 − Φ(z) has more digits than Φ(z)
        lower = self.checked(x) - self.low <= self.high - x
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

    def transform(self, x: Float[Tensor, "batch d"]) -> Transformed:
        """The value z = Φ⁻¹((x − low)/(high − low)), and log |det ∂z/∂x|, or −∞ if x is outside."""
        z = self(x)
        return Transformed(z, torch.where(self._inside(x).all(1), self.log_det(z), -math.inf))

    def log_det(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value log |det ∂z/∂x| = −log N(z; 0, I) − Σ log(high − low)."""
        return -standard_normal_log_prob(z) - (self.high - self.low).log().sum()

    def checked(self, x: Tensor) -> Tensor:
        """The same x, after a check.

        Raises:
            ValueError: x is not (batch, d).
        """
        return _check_shape(x, len(self.low))

    def rounded(
        self, x: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"]
    ) -> Bool[Tensor, " batch"]:
        """The rows of x = inverse(z) that were rounded to numbers with another image than z."""
        return ((self(x) - z).abs() > 1e-3).any(1)

    def _inside(self, x: Tensor) -> Tensor:
        return (x >= self.low) & (x <= self.high)


def _check_shape(x: Tensor, d: int, name: str = "the tensor") -> Tensor:
    if x.dim() != 2 or x.shape[1] != d:
        raise ValueError(f"{name} must have shape (batch, {d}), got {tuple(x.shape)}")
    return x


def _refuse(columns: Tensor, name: str, fault: str) -> None:
    if bool(columns.any()):
        raise ValueError(f"columns {columns.nonzero().flatten().tolist()} of {name} have {fault}")


class Sample(NamedTuple):
    """Samples, and the log density at each."""

    x: Float[Tensor, "batch d"]
    log_prob: Float[Tensor, " batch"]


# typing.Self cannot be checked at run time
Map = TypeVar("Map", bound="TransportMap")


@runtime_checkable
class Support(Protocol):
    """A set that contains the data, such as the box of a uniform prior."""

    def inside(self, x: Float[Tensor, "batch d"]) -> Bool[Tensor, " batch"]:
        """Where x lies in the set."""
        ...


class Inside(NamedTuple):
    """Samples that lie in a set, and the share `leakage` of draws that do not."""

    x: Float[Tensor, "batch d"]
    leakage: float


class TransportMap(nn.Module, abc.ABC):
    """The density of x, or of x given y, from an invertible map T(x; y) to z ~ N(0, I).

    If T maps the standardized data x̄ = (x − mean)/std,

        log p(x) = log N(z; 0, I) + log |det ∂T/∂x̄| − Σ log std.

    Args of the constructor: the dimensions `d` of x and `context_dim` of y; the `box` (low, high)
    that contains x, if there is one, where `BoxScaling` gives x̄. Without `standardize`, mean 0 and
    deviation 1 replace those of the data.
    """

    seen: Tensor  # the range of each standardized y of the training data

    def __init__(
        self,
        d: int,
        *,
        context_dim: int = 0,
        box: tuple[Sequence[float], Sequence[float]] | None = None,
        standardize: bool = True,
    ):
        super().__init__()
        self.d = d
        scaling = Standardization(d, identity=not standardize) if box is None else BoxScaling(*box)
        self.data: Standardization | BoxScaling = scaling
        if box is not None:
            self.data.checked(torch.zeros(1, d))
        self.conditions = Standardization(context_dim, identity=not (standardize and context_dim))
        self.context: Tensor | None = None
        if context_dim:
            self.register_buffer("seen", torch.tensor([-math.inf, math.inf]).repeat(context_dim, 1))

    def standardize(
        self: Map, x: Float[Tensor, "batch d"], y: Float[Tensor, "batch context"] | None = None
    ) -> Map:
        """The same map, with the means, deviations and ranges of the training data."""
        if (y is None) != (len(self.conditions.mean) == 0):
            fix = ".standardize(x_train, y_train)" if y is None else "no y, or set context_dim="
            raise ValueError(f"y and the context of the map do not match: use {fix}")
        if y is not None:
            if len(y) != len(x):
                raise ValueError(f"want one y for each x, got {len(y)} and {len(x)} rows")
            z = self.conditions.fit(y, name="the context y")(y)
            self.seen.copy_(torch.stack([z.amin(0), z.amax(0)], 1))
        self.data.fit(x)
        return self

    def given(self: Map, y: Float[Tensor, "batch context"]) -> Map:
        """The map of p(x | y), with the same parameters and one y per sample, or one for all.

        If y lies outside of the range of the training data, a warning says how far.

        Raises:
            ValueError: y is not (batch, context) or not finite, or `standardize` was not called.
        """
        if not len(self.conditions.mean):
            raise ValueError("the map has no context: set context_dim= in the constructor")
        context = self.conditions(y)
        _refuse(~y.isfinite().all(0), "the context y", "NaN or infinite entries: drop those rows")
        outside = torch.maximum(self.seen[:, 0] - context, context - self.seen[:, 1])
        rows = (outside > 1e-3).any(1)  # another precision causes smaller differences
        if bool(rows.any()):
            farthest = outside.amax(0)
            warnings.warn(
                f"{int(rows.sum())} of {len(y)} contexts lie outside of what was trained on,"
                f" farthest in column {int(farthest.argmax())}, by {float(farthest.max()):.2g}"
                " standard deviations: do not trust their densities, or train on more data",
                stacklevel=2,
            )
        bound = copy.copy(self)
        bound.context = context
        return bound

    @abc.abstractmethod
    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The reference points z = T(x)."""

    @abc.abstractmethod
    def inverse(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The data x = T⁻¹(z)."""

    @abc.abstractmethod
    def transform(self, x: Float[Tensor, "batch d"]) -> Transformed:
        """The reference points z = T(x), and log |det ∂z/∂x|."""

    @abc.abstractmethod
    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> Sample:
        """The n samples x = T⁻¹(z) with z ~ N(0, I), and log p(x)."""

    def log_prob(self, x: Float[Tensor, "batch d"], **how: Any) -> Float[Tensor, " batch"]:
        """The value log p(x), with the options of `transform`."""
        z, log_det = self.transform(x, **how)
        return standard_normal_log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, **how: Any) -> Float[Tensor, "{n} d"]:
        """The n samples T⁻¹(z), z ~ N(0, I), without gradients, with the options of `inverse`."""
        return self.inverse(self.reference(n, generator), **how)

    def sample_inside(
        self, support: Support, n: int, generator: torch.Generator, *, attempts: int = 100
    ) -> Inside:
        """The first n samples that lie in the `support`, and the share of draws that do not.

        The density restricted to the support is p(x)/(1 − leakage).

        Raises:
            ValueError: fewer than n of attempts·n draws lie inside, or there are several contexts.
        """
        self._check_single(n)
        kept, drawn = [], 0
        while (count := sum(map(len, kept))) < n:
            if drawn >= attempts * n:
                raise ValueError(
                    f"of {drawn} samples, {count} lie in the support: train on data from it, or"
                    " give a context like those of the training data"
                )
            x = self.sample(n, generator)
            kept.append(x[support.inside(x)])
            drawn += n
        x = torch.cat(kept)
        return Inside(x[:n], 1 - len(x) / drawn)

    def mode(self, n: int, generator: torch.Generator, *, steps: int = 100) -> Float[Tensor, " d"]:
        """The point of largest density that L-BFGS finds from the best of n samples.

        For a posterior it is the maximum a posteriori estimate, and for a constant prior also the
        maximum likelihood estimate. In a box, the density is unbounded at a face if the law of x̄ is
        wider than N(0, I). The result is then a point on that face.
        """
        self._check_single(n)
        with torch.no_grad():
            x, log_prob = self.sample_with_log_prob(n, generator)
            z = self.data(x[[int(log_prob.argmax())]])
        z.requires_grad_(True)
        optimizer = torch.optim.LBFGS([z], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            loss = -self.log_prob(self.data.inverse(z)).sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            return loss.detach()

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        return self.data.inverse(z.detach())[0]

    def _check_single(self, n: int) -> None:
        if n < 1 or (self.context is not None and len(self.context) > 1):
            raise ValueError("want n ≥ 1 and one row of context: bind it by .given(y[[i]])")

    def reference(self, n: int, generator: torch.Generator) -> Float[Tensor, "{n} d"]:
        """The n points z ~ N(0, I), on the device of the map."""
        like = next(self.data.buffers())
        z = torch.randn((n, self.d), generator=generator, device=generator.device, dtype=like.dtype)
        return z.to(like)

    def rows(self: Map, rows: Tensor) -> Map:
        """The same map with the contexts of these samples alone."""
        if self.context is None or len(self.context) == 1:
            return self
        bound = copy.copy(self)
        bound.context = self.context[rows]
        return bound

    def context_of(self, n: int) -> Float[Tensor, "{n} context"] | None:
        """The standardized context with n rows, or None if the map has no context.

        Raises:
            ValueError: `given` was not called, or its y has neither one row nor n.
        """
        y, wanted = self.context, len(self.conditions.mean)
        if y is None and wanted:
            raise ValueError(f"the map needs a context ({wanted},): call .given(y) first")
        if y is not None and len(y) not in (1, n):
            raise ValueError(f"the context has {len(y)} rows for {n} samples: give one, or {n}")
        return None if y is None else y.expand(n, -1)
