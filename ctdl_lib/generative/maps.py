"""Maps from data to z ~ N(0, I), with the density and samples of the data."""

import abc
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..dynamics.calculus import Transformed, standard_normal_log_prob
from ..dynamics.stepping import normal
from ..potentials.potential import Conditional
from .scaling import BoxScaling, Rows, Standardization, refuse

BLOCK = 16_384  # samples that are computed at a time


class Sample(NamedTuple):
    """Samples, and the log density at each."""

    x: Float[Tensor, "batch d"]
    log_prob: Float[Tensor, " batch"]


# typing.Self cannot be checked at run time
Map = TypeVar("Map", bound="TransportMap")


class TransportMap(Conditional):
    """The density of x, or of x given y, from an invertible map T(x; y) to z ~ N(0, I).

    If T maps the standardized data x̄ = (x − mean)/std,

        log p(x) = log N(z; 0, I) + log |det ∂T/∂x̄| − Σ log std.

    Args of the constructor: the dimensions `d` of x and `context_dim` of y; the `box` (low, high)
    that contains x, if there is one, where `BoxScaling` gives x̄. Without `standardize`, mean 0 and
    deviation 1 replace those of the data. An `encoder` is a network that reads the standardized y
    first, such as `Encoder`; it is trained with the map. What it returns is the context of the
    learned part, whose own context_dim is the number of its outputs.
    """

    seen: Tensor  # the range of each standardized y of the training data

    def __init__(
        self,
        d: int,
        *,
        context_dim: int = 0,
        box: tuple[Sequence[float], Sequence[float]] | None = None,
        standardize: bool = True,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        if encoder is not None and not context_dim:
            raise ValueError("an encoder reads a context: set context_dim= to its number of inputs")
        self.d, self.encoder = d, encoder
        scaling = Standardization(d, identity=not standardize) if box is None else BoxScaling(*box)
        self.data: Standardization | BoxScaling = scaling
        if box is not None:
            self.data.checked(torch.zeros(1, d))
        self.conditions = Standardization(context_dim, identity=not (standardize and context_dim))
        if context_dim:
            self.register_buffer("seen", torch.tensor([-math.inf, math.inf]).repeat(context_dim, 1))

    def adopt(self, learned: nn.Module) -> None:
        """Set the type and device of the scalings to those of the learned part, if it has any."""
        parameter = next(learned.parameters(), None)
        if parameter is None:
            self.data.keeps_type = self.conditions.keeps_type = True
        else:
            self.data.to(parameter)
            self.conditions.to(parameter)

    def standardize(self: Map, x: Rows, y: Tensor | np.ndarray | None = None) -> Map:
        """The same map, with the means, deviations and ranges of the training data."""
        if (y is None) != (len(self.conditions.mean) == 0):
            fix = ".standardize(x_train, y_train)" if y is None else "no y, or set context_dim="
            raise ValueError(f"y and the context of the map do not match: use {fix}")
        if y is not None:
            if len(y) != len(x):
                raise ValueError(f"want one y for each x, got {len(y)} and {len(x)} rows")
            z = self.conditions.fit(y, name="the context y", constant=True)(y)
            self.seen.copy_(torch.stack([z.amin(0), z.amax(0)], 1))
        self.data.fit(x)
        return self

    def given(self: Map, y: Tensor | np.ndarray) -> Map:
        """The map of p(x | y), with the same parameters and one y per sample, or one for all.

        y is (batch, context), or (context,) for a single observation. If it lies outside of the
        range of the training data, a warning says how far.

        Raises:
            ValueError: y has another shape or is not finite, or `standardize` was not called.
        """
        if not len(self.conditions.mean):
            raise ValueError("the map has no context: set context_dim= in the constructor")
        y = torch.as_tensor(y)
        context = self.conditions(y[None] if y.shape == self.conditions.mean.shape else y)
        refuse(~context.isfinite(), "the context y", "NaN or infinite entries: drop those rows")
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
        return self.bind(self.encoded(context))

    def encoded(self, y: Tensor) -> Float[Tensor, "batch context"]:
        """The context of the learned part, from a standardized y."""
        return y if self.encoder is None else self.encoder(y)

    @abc.abstractmethod
    def forward(self, x: Rows) -> Float[Tensor, "batch d"]:
        """The reference points z = T(x)."""

    @abc.abstractmethod
    def inverse(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The data x = T⁻¹(z)."""

    @abc.abstractmethod
    def transform(self, x: Rows) -> Transformed:
        """The reference points z = T(x), and log |det ∂z/∂x|."""

    @abc.abstractmethod
    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> Sample:
        """The n samples x = T⁻¹(z) with z ~ N(0, I), and log p(x)."""

    def log_prob(self, x: Rows, **how: Any) -> Float[Tensor, " batch"]:
        """The value log p(x), with the options of `transform`."""
        z, log_det = self.transform(x, **how)
        return standard_normal_log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator, **how: Any) -> Float[Tensor, "{n} d"]:
        """The n samples T⁻¹(z), z ~ N(0, I), without gradients, with the options of `inverse`.

        They are computed in blocks of 16,384, so the memory does not grow with n otherwise.
        """
        z = self.reference(n, generator)
        blocks = torch.arange(n, device=z.device).split(BLOCK)
        return torch.cat([self.rows(rows).inverse(z[rows], **how) for rows in blocks])

    def reference(self, n: int, generator: torch.Generator) -> Float[Tensor, "{n} d"]:
        """The n points z ~ N(0, I), on the device of the map."""
        like = next(self.data.buffers())
        return normal((n, self.d), generator, like)

    def rows(self: Map, rows: Tensor) -> Map:
        """The same map with the contexts of these samples alone."""
        if self.context is None or len(self.context) == 1:
            return self
        return self.bind(self.context[rows])

    def context_of(self, n: int) -> Float[Tensor, "{n} context"] | None:
        """The context of the learned part with n rows, or None if the map has no context.

        Raises:
            ValueError: `given` was not called, or its y has neither one row nor n.
        """
        y, wanted = self.context, len(self.conditions.mean)
        if y is None and wanted:
            raise ValueError(f"the map needs a context ({wanted},): call .given(y) first")
        if y is not None and len(y) not in (1, n):
            raise ValueError(f"the context has {len(y)} rows for {n} samples: give one, or {n}")
        return None if y is None else y.expand(n, -1)
