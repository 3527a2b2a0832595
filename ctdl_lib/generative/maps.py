"""Maps from data to a standard normal z, with their density, samples and mode."""

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
    """The map (x − mean)/std, column by column, and its inverse.

    Mean and standard deviation are unknown until `fit` has seen the training data, or a state
    dictionary brings them; they are stored and loaded together with the weights. `identity` leaves
    the data as they are instead.
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
            ValueError: x has a wrong shape, one row, entries that are not finite, or a column that
                does not vary; the message names the columns.
        """
        _check_shape(x, len(self.mean), name)
        if len(x) < 2:
            raise ValueError(f"{name} has one row, but its spread needs at least two")
        _refuse(~x.isfinite().all(0), name, "NaN or infinite entries: drop or impute those rows")
        mean, std = x.mean(0), x.std(0)
        # also what round-off alone makes vary
        limit = 1e-6 if x.dtype == torch.float32 else 100 * torch.finfo(x.dtype).eps
        _refuse(std <= limit * x.abs().amax(0), name, "no variation, and no density: drop them")
        self.mean.copy_(mean)
        self.std.copy_(std)
        return self

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value (x − mean)/std.

        Raises:
            ValueError: `fit` has not been called, or x is not (batch, d).
        """
        return (self.checked(x) - self.mean) / self.std

    def inverse(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value mean + std z."""
        return self.mean + self.std * self.checked(z)

    def log_det(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value −Σ log std, the logarithm of the determinant of the map, for each row."""
        return -self.std.log().sum().expand(len(z))

    def transform(self, x: Float[Tensor, "batch d"]) -> Transformed:
        """The value (x − mean)/std, and the logarithm of the determinant."""
        z = self(x)
        return Transformed(z, self.log_det(z))

    def checked(self, x: Tensor) -> Tensor:
        """The same x.

        Raises:
            ValueError: nothing was fitted, or x is not (batch, d).
        """
        if bool(self.mean.isnan().any()):
            raise ValueError(
                "nothing was trained here: call .standardize(x_train) first, load a state"
                " dictionary, or construct with standardize=False"
            )
        return _check_shape(x, len(self.mean))


class BoxScaling(nn.Module):
    """The map Φ⁻¹((x − low)/(high − low)) of a box to ℝᵈ, column by column, and its inverse.

    Φ is the distribution function of N(0, 1). A uniform prior becomes the reference N(0, I), so a
    context without information needs no transport. No sample leaves the box.

    Raises:
        ValueError: `low` and `high` differ in length, or are not in order.
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
        """The same object: the box is known, but x has to lie in it.

        Raises:
            ValueError: x has a wrong shape, or entries outside of the box or not finite.
        """
        self.checked(x)
        _refuse(~x.isfinite().all(0), name, "NaN or infinite entries: drop or impute those rows")
        _refuse(~self._inside(x).all(0), name, "entries outside of the box: drop those rows")
        return self

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value Φ⁻¹((x − low)/(high − low)); of x outside, that at the nearest face."""
        share = (self.checked(x) - self.low) / (self.high - self.low)
        edge = torch.finfo(x.dtype).eps  # beyond it the inverse would be infinite
        return torch.special.ndtri(share.clamp(edge, 1 - edge))

    def inverse(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value low + (high − low) Φ(z)."""
        x = self.low + (self.high - self.low) * torch.special.ndtr(self.checked(z))
        # rounding may push a point over a face, beyond which there is no density
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def transform(self, x: Float[Tensor, "batch d"]) -> Transformed:
        """The value Φ⁻¹((x − low)/(high − low)), and log |det| of the map; −∞ outside."""
        z = self(x)
        return Transformed(z, torch.where(self._inside(x).all(1), self.log_det(z), -math.inf))

    def log_det(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value −log N(z; 0, I) − Σ log(high − low), at the points whose images are z."""
        return -standard_normal_log_prob(z) - (self.high - self.low).log().sum()

    def checked(self, x: Tensor) -> Tensor:
        """The same x.

        Raises:
            ValueError: x is not (batch, d).
        """
        return _check_shape(x, len(self.low))

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
    """Points and the logarithm of the density at them."""

    x: Float[Tensor, "batch d"]
    log_prob: Float[Tensor, " batch"]


# typing.Self says the same, but cannot be checked at run time
Map = TypeVar("Map", bound="TransportMap")


@runtime_checkable
class Support(Protocol):
    """The set where a density is known to live, such as the box of a uniform prior."""

    def inside(self, x: Float[Tensor, "batch d"]) -> Bool[Tensor, " batch"]:
        """Where x lies in the set."""
        ...


class Inside(NamedTuple):
    """Samples that lie in a set, and the share `leakage` of those drawn that did not."""

    x: Float[Tensor, "batch d"]
    leakage: float


class TransportMap(nn.Module, abc.ABC):
    """The density of x, or of x given y, by an invertible map to z ~ N(0, I) with z = T(x; y).

    With x̄ = (x − mean)/std and the map T of standardized data,

        log p(x) = log N(z; 0, I) + log |det ∂T/∂x̄| − Σ log std.

    Args of the constructor: the dimensions `d` of x and `context_dim` of y; the `box` (low, high)
    that x is known to lie in, if there is one: then x̄ is that of `BoxScaling`. Without
    `standardize`, mean 0 and deviation 1 stand in for those of the data.
    """

    seen: Tensor  # the range of each standardized y that was trained on

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
        """The same map, which has taken mean, deviation and range from the training data."""
        if (y is None) != (len(self.conditions.mean) == 0):
            wanted = "(x_train, y_train)" if y is None else "(x_train), or context_dim="
            raise ValueError(f"the context asks for .standardize{wanted}")
        if y is not None:
            if len(y) != len(x):
                raise ValueError(f"want one y for each x, got {len(y)} and {len(x)} rows")
            z = self.conditions.fit(y, name="the context y")(y)
            self.seen.copy_(torch.stack([z.amin(0), z.amax(0)], 1))
        self.data.fit(x)
        return self

    def given(self: Map, y: Float[Tensor, "batch context"]) -> Map:
        """The map of p(x | y): the same parameters, with a row of y for each sample, or one.

        Where y lies outside of the range of the training data, a warning says how far.

        Raises:
            ValueError: y is not (batch, context), or not finite, or nothing was trained.
        """
        if not len(self.conditions.mean):
            raise ValueError("there is no context here: set context_dim= when constructing")
        context = self.conditions(y)
        _refuse(~y.isfinite().all(0), "the context y", "NaN or infinite entries: drop those rows")
        outside = torch.maximum(self.seen[:, 0] - context, context - self.seen[:, 1])
        rows = (outside > 1e-3).any(1)  # less than that is what another precision rounds
        if bool(rows.any()):
            farthest = outside.amax(0)
            warnings.warn(
                f"{int(rows.sum())} of {len(y)} contexts lie outside of what was trained on,"
                f" farthest in column {int(farthest.argmax())}, by {float(farthest.max()):.2g}"
                " standard deviations: do not trust their density, or train on more",
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
        """The images of n reference points, and log p there."""

    def log_prob(self, x: Float[Tensor, "batch d"], **how: Any) -> Float[Tensor, " batch"]:
        """The value log p(x), with the options of `transform`."""
        z, log_det = self.transform(x, **how)
        return standard_normal_log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, **how: Any) -> Float[Tensor, "{n} d"]:
        """The images of n reference points, with the options of `inverse`, and no gradient."""
        return self.inverse(self.reference(n, generator), **how)

    def sample_inside(
        self, support: Support, n: int, generator: torch.Generator, *, attempts: int = 100
    ) -> Inside:
        """The first n samples that lie in the `support`, and the share that did not.

        The density restricted to the set is the map's density times 1/(1 − leakage).

        Raises:
            ValueError: attempts·n draws did not bring n samples, or there are several contexts.
        """
        self._check_single(n)
        kept, drawn = [], 0
        while (count := sum(map(len, kept))) < n:
            if drawn >= attempts * n:
                raise ValueError(
                    f"of {drawn} samples, {count} lie in the support: the map was not"
                    " trained on data from it, or the context is not like the training data"
                )
            x = self.sample(n, generator)
            kept.append(x[support.inside(x)])
            drawn += n
        x = torch.cat(kept)
        return Inside(x[:n], 1 - len(x) / drawn)

    def mode(self, n: int, generator: torch.Generator, *, steps: int = 100) -> Float[Tensor, " d"]:
        """The point of largest density that L-BFGS finds from the best of n samples.

        Of a posterior it is the maximum a posteriori estimate, and where the prior is constant that
        of maximum likelihood, too. In a box, a density that is wider than the uniform one grows
        without bound towards a face, and a point on the face is returned.
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
        """The n points drawn from N(0, I), on the map's device."""
        like = next(self.data.buffers())
        z = torch.randn((n, self.d), generator=generator, device=generator.device, dtype=like.dtype)
        return z.to(like)

    def context_of(self, n: int) -> Float[Tensor, "{n} context"] | None:
        """The standardized context, a row for each of n samples, or None where there is none.

        Raises:
            ValueError: `given` was not called, or was called with another number of rows.
        """
        y, wanted = self.context, len(self.conditions.mean)
        if y is None and wanted:
            raise ValueError(f"there is a context ({wanted},) here: call .given(y) first")
        if y is not None and len(y) not in (1, n):
            raise ValueError(f"the context has {len(y)} rows for {n} samples: give one, or {n}")
        return None if y is None else y.expand(n, -1)
