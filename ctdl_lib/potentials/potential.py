"""Scalar potentials Φ(t, x) with their derivatives in t and x."""

import abc
import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap

from ..networks.embeddings import Time, times_like

BLOCK = 1024
Sigma = float | Float[Tensor, ""] | Float[Tensor, "d k"]


class Gradient(NamedTuple):
    """The value Φ, ∂ₜΦ (`dt`) and ∇ₓΦ (`dx`) at each sample."""

    value: Float[Tensor, " batch"]
    dt: Float[Tensor, " batch"]
    dx: Float[Tensor, "batch d ..."]


class Derivatives(NamedTuple):
    """The value Φ and the derivatives in the Hamilton–Jacobi–Bellman equation at each sample.

    `laplacian` is ΔₓΦ, or tr(σσᵀ∇ₓ²Φ) if σ is given.
    """

    value: Float[Tensor, " batch"]
    dt: Float[Tensor, " batch"]
    dx: Float[Tensor, "batch d ..."]
    laplacian: Float[Tensor, " batch"]


Bound = TypeVar("Bound", bound="Conditional")
Known = TypeVar("Known", Gradient, Derivatives, Gradient | Derivatives)


class Conditional(nn.Module, abc.ABC):
    """A module with a `context` that `given` binds, in a copy which shares the parameters.

    Such a copy cannot be moved or converted, because that would change the original as well.
    """

    context: Tensor | None = None

    @abc.abstractmethod
    def given(self: Bound, y: Any) -> Bound:
        """The module with the context y."""

    def bind(self: Bound, context: Tensor | None) -> Bound:
        """The module with this context and the same parameters."""
        bound = copy.copy(self)
        bound.context = context
        return bound

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if self.context is not None:
            raise RuntimeError(
                "a module with a bound context shares its parameters with the original: move or"
                " convert the original, then bind the context again"
            )
        return super()._apply(fn, recurse)


class Potential(Conditional):
    """A scalar function Φ(t, x), or Φ(t, x; y) once a context y is bound by `given`."""

    standardized = False  # True for the potential of a flow that standardizes its data

    @abc.abstractmethod
    def forward(self, t: Time, x: Float[Tensor, "batch d ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""

    @abc.abstractmethod
    def gradient(self, t: Time, x: Float[Tensor, "batch d ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ at (t, x)."""

    @abc.abstractmethod
    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d ..."], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ) for a number or matrix (d, k) σ."""

    def given(self: Bound, y: Float[Tensor, "batch ..."]) -> Bound:
        """The potential Φ(·, ·; y), which shares the parameters and has the context y."""
        return self.bind(y)


class AutodiffPotential(Potential):
    """The potential Φ(t, x; y) = net(t, x) or net(t, x, y), differentiated automatically.

    `net` receives t (batch,), x (batch, …) and, if a context is bound, y (batch, …). It returns
    (batch,) or (batch, 1) and treats the samples independently. A sample may be a vector or a
    field. The Laplacian is exact and costs one forward-over-reverse product per entry of x.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Time, x: Float[Tensor, "batch d ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        return self._value(times_like(t, x), x)

    def _value(self, t: Tensor, x: Tensor) -> Tensor:
        context = () if self.context is None else (self.context,)
        value = self.net(t, x, *context)
        if value.numel() != x.shape[0]:
            raise ValueError(
                f"net must return one value per sample, ({x.shape[0]},) or ({x.shape[0]}, 1), but"
                f" returned {tuple(value.shape)}"
            )
        return value.reshape(x.shape[0])

    def gradient(self, t: Time, x: Float[Tensor, "batch d ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ by one reverse sweep."""
        value, pullback, *_ = vjp(self._value, times_like(t, x), x)
        return Gradient(value, *pullback(torch.ones_like(value)))

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d ..."], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), by second-order differentiation."""
        times = times_like(t, x)
        slope = grad(lambda x: self._value(times, x).sum())

        def second(direction: Tensor) -> Tensor:  # directionᵀ ∇²Φ direction
            e = direction.reshape(x.shape[1:]).expand_as(x)
            hessian_e = jvp(slope, (x,), (e,))[1]
            return (hessian_e * e).flatten(1).sum(-1)

        trace = vmap(second)(_columns(sigma, x)).sum(0)
        return Derivatives(*self.gradient(t, x), trace)


def _columns(sigma: Sigma | None, x: Tensor) -> Tensor:
    """The columns of σ as rows (k, d), where None means σ = I."""
    d = math.prod(x.shape[1:])
    if isinstance(sigma, Tensor) and sigma.dim():
        return sigma.to(x).T
    identity = torch.eye(d, dtype=x.dtype, device=x.device)
    return identity if sigma is None else sigma * identity


def along_noise(p: Tensor, sigma: Sigma | None) -> Tensor:
    """The products pᵀσ of the rows of p, where σ is a number, a matrix or (None) the identity."""
    if sigma is None:
        return p
    is_matrix = isinstance(sigma, Tensor) and sigma.dim() == 2
    return p @ sigma if is_matrix else p * sigma


def derivatives_along(
    potential: Potential, t: Time, x: Float[Tensor, "batch d"], sigma: Float[Tensor, "batch d k"]
) -> Derivatives:
    """The value Φ, ∂ₜΦ, ∇ₓΦ and tr(σσᵀ∇ₓ²Φ) where every sample has a matrix σ of its own.

    The trace is Σₖ σₖᵀ∇ₓ²Φ σₖ over the columns of σ. A column costs one forward derivative of ∇ₓΦ.
    """

    def second(e: Tensor) -> Tensor:  # eᵀ ∇²Φ e
        return (jvp(lambda x: potential.gradient(t, x).dx, (x,), (e,))[1] * e).sum(-1)

    trace = torch.stack([second(e) for e in sigma.unbind(-1)]).sum(0)
    return Derivatives(*potential.gradient(t, x), trace)


def in_blocks(
    evaluate: Callable[[Tensor, Tensor], Known],
    t: Float[Tensor, " points"],
    x: Float[Tensor, "points ..."],
) -> Known:
    """The result of `evaluate(t, x)` at many points, which a CPU evaluates in blocks.

    The features of a block and their derivatives fit into the cache. One evaluation at all points
    took 1.4 times as long.
    """
    size = BLOCK if x.device.type == "cpu" else len(x)
    parts = [evaluate(*pair) for pair in zip(t.split(size), x.split(size), strict=True)]
    return (
        parts[0] if len(parts) == 1 else type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))
    )
