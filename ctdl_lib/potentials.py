"""Scalar potentials Φ(t, x) that know their own derivatives."""

import abc
import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap

Time = float | int | Tensor
Sigma = float | Float[Tensor, ""] | Float[Tensor, "d k"]


class Gradient(NamedTuple):
    """Φ and its first derivatives: all that samplers and deterministic problems need."""

    value: Float[Tensor, " batch"]
    dt: Float[Tensor, " batch"]
    dx: Float[Tensor, "batch ..."]


class Derivatives(NamedTuple):
    """Φ and the derivatives that the Hamilton–Jacobi–Bellman equation asks for.

    `laplacian` is ΔΦ, or tr(σσᵀ∇²Φ) where a σ was given.
    """

    value: Float[Tensor, " batch"]
    dt: Float[Tensor, " batch"]
    dx: Float[Tensor, "batch ..."]
    laplacian: Float[Tensor, " batch"]


class Potential(nn.Module, abc.ABC):
    """A scalar function Φ(t, x), or Φ(t, x; y) once a context y is bound by `given`."""

    context: Tensor | None = None

    @abc.abstractmethod
    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""

    @abc.abstractmethod
    def gradient(self, t: Time, x: Float[Tensor, "batch ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ at (t, x)."""

    @abc.abstractmethod
    def derivatives(
        self, t: Time, x: Float[Tensor, "batch ..."], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ) for a number or matrix (d, k) σ."""

    def given(self, y: Float[Tensor, "batch context"]) -> "Potential":
        """The potential Φ(·, ·; y): the same parameters with the context bound."""
        bound = copy.copy(self)
        bound.context = y
        return bound


def times_like(t: Time, x: Tensor) -> Float[Tensor, " batch"]:
    """The time t as one value a sample, from a number, a 0-dim tensor or a tensor (batch,)."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[0])


class AutodiffPotential(Potential):
    """The potential Φ(t, x; y) = net(t, x) or net(t, x, y), differentiated automatically.

    `net` is any network, on vectors or fields: it receives t (batch,), x (batch, …) and, once
    bound, y (batch, …); it returns (batch,) or (batch, 1) and treats samples independently. The
    Laplacian is exact and costs one forward-over-reverse product for each entry of x.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Time, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        return self._value(times_like(t, x), x)

    def _value(self, t: Tensor, x: Tensor) -> Tensor:
        context = () if self.context is None else (self.context,)
        value = self.net(t, x, *context)
        if value.numel() != x.shape[0]:
            raise ValueError(
                f"net must return one value a sample, ({x.shape[0]},) or ({x.shape[0]}, 1), but"
                f" returned {tuple(value.shape)}"
            )
        return value.reshape(x.shape[0])

    def gradient(self, t: Time, x: Float[Tensor, "batch ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ by one reverse sweep."""
        value, pullback, *_ = vjp(self._value, times_like(t, x), x)
        return Gradient(value, *pullback(torch.ones_like(value)))

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch ..."], sigma: Sigma | None = None
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
    """The columns of σ as rows (k, d), with σ = I by default."""
    d = math.prod(x.shape[1:])
    sigma = torch.as_tensor(1.0 if sigma is None else sigma, dtype=x.dtype, device=x.device)
    return sigma * torch.eye(d, dtype=x.dtype, device=x.device) if sigma.dim() == 0 else sigma.T


def antiderivative_of_tanh(x: Tensor) -> Tensor:
    """The function log(2 cosh x), written so that it does not overflow."""
    return x.abs() + torch.log1p(torch.exp(-2 * x.abs()))


class ResNetPotential(Potential):
    """The potential Φ(s) = wᵀN(s) + ½ sᵀAᵀA s + bᵀs + c with s = (x, t) or (x, t, y).

    N is a residual network with antiderivative activation σ(a) = log(2 cosh a):
    u₀ = σ(K₀s + b₀), uᵢ = uᵢ₋₁ + h σ(Kᵢuᵢ₋₁ + bᵢ), i = 1, …, layers − 1, h = 1/(layers − 1).
    First derivatives cost one backward sweep; the exact Laplacian one more forward sweep,
    O(width² min(d, width)) flops a sample and layer.

    Args of the constructor: the dimensions d of x and `context_dim` of y, the `width` of N, the
    number of `layers` ≥ 1, the number of rows (`rank`) of A; `generator` draws the weights.

    Reference: onken2021otflow.
    """

    def __init__(
        self,
        d: int,
        *,
        context_dim: int = 0,
        width: int = 32,
        layers: int = 2,
        rank: int = 10,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if min(d, width, layers, rank) < 1:
            raise ValueError(f"{d=}, {width=}, {layers=} and {rank=} must be at least 1")
        self.d, self.context_dim, self.h = d, context_dim, 1.0 / max(layers - 1, 1)
        n = d + 1 + context_dim

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:
            unit = torch.rand(shape, generator=generator)
            return nn.Parameter((2 * unit - 1) / math.sqrt(fan_in))

        self.K0, self.b0 = uniform(n, width, n), uniform(n, width)
        self.K = uniform(width, layers - 1, width, width)
        self.b = uniform(width, layers - 1, width)
        self.w = nn.Parameter(torch.ones(width))
        self.A = uniform(n, min(rank, n), n)
        self.linear = nn.Parameter(torch.zeros(n))
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, t: Time, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        s = self._inputs(t, x)
        return self._value(s, self._features(s)[0])

    def gradient(self, t: Time, x: Float[Tensor, "batch d"]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ by one forward and one backward sweep."""
        s = self._inputs(t, x)
        u, slopes = self._features(s)
        ds = self._gradient(s, slopes, self._adjoints(u, slopes))
        return Gradient(self._value(s, u), ds[:, self.d], ds[:, : self.d])

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d"], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), in closed form."""
        s = self._inputs(t, x)
        u, slopes = self._features(s)
        z = self._adjoints(u, slopes)
        ds = self._gradient(s, slopes, z)
        trace = self._trace(slopes, z, sigma)
        return Derivatives(self._value(s, u), ds[:, self.d], ds[:, : self.d], trace)

    def _inputs(self, t: Time, x: Tensor) -> Tensor:
        """The rows s = (x, t, y), with a message that names what is missing."""
        parts = [x, times_like(t, x)[:, None]]
        if x.dim() != 2 or x.shape[1] != self.d:
            raise ValueError(f"x must have shape (batch, {self.d}), got {tuple(x.shape)}")
        if self.context_dim:
            if self.context is None:
                raise ValueError("this potential has a context: call potential.given(y) first")
            if self.context.shape != (x.shape[0], self.context_dim):
                wanted, came = (x.shape[0], self.context_dim), tuple(self.context.shape)
                raise ValueError(f"the context y must have shape {wanted}, got {came}")
            parts.append(self.context)
        elif self.context is not None:
            raise ValueError("a context was given, but context_dim=0: set it when constructing")
        return torch.cat(parts, dim=1)

    def _value(self, s: Tensor, u: Tensor) -> Tensor:
        quadratic = 0.5 * (s @ self.A.T).square().sum(-1)
        return u @ self.w + quadratic + s @ self.linear + self.constant

    def _features(self, s: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last features u of N, and the slopes σ′ of every layer."""
        a = s @ self.K0.T + self.b0
        u, slopes = antiderivative_of_tanh(a), [torch.tanh(a)]
        for K, b in zip(self.K, self.b, strict=True):
            a = torch.addmm(b, u, K.T)
            u = u + self.h * antiderivative_of_tanh(a)
            slopes.append(torch.tanh(a))
        return u, slopes

    def _adjoints(self, u: Tensor, slopes: list[Tensor]) -> list[Tensor]:
        """The derivatives z_i of wᵀN by the output u_i of layer i, first layer first."""
        z = [self.w.expand_as(u)]
        for i in range(len(self.K) - 1, -1, -1):
            z.append(z[-1] + self.h * ((slopes[i + 1] * z[-1]) @ self.K[i]))
        return z[::-1]

    def _gradient(self, s: Tensor, slopes: list[Tensor], z: list[Tensor]) -> Tensor:
        return (slopes[0] * z[0]) @ self.K0 + (s @ self.A.T) @ self.A + self.linear

    def _trace(self, slopes: list[Tensor], z: list[Tensor], sigma: Sigma | None) -> Tensor:
        """Σᵢ hᵢ σ″ᵢ zᵢ · Σⱼ(KᵢJᵢ₋₁)ⱼ² with J the derivative of the features along σ's columns."""
        A, M = _along(self.A[:, : self.d], sigma), _along(self.K0[:, : self.d], sigma)
        batch, width = slopes[0].shape
        if M.shape[1] > width:
            # Only M Mᵀ matters below, and the triangular factor of Mᵀ has the same one.
            M = torch.linalg.qr(M.T).R.T
        k = M.shape[1]
        trace = ((1 - slopes[0].square()) * z[0]) @ M.square().sum(-1) + A.square().sum()
        # Columns of all samples side by side: each layer is one matrix product (width, k · batch).
        J = slopes[0].T[:, None, :] * M[:, :, None]
        for i, K in enumerate(self.K):
            KJ = (K @ J.reshape(width, k * batch)).view(width, k, batch)
            curvature = (1 - slopes[i + 1].square()) * z[i + 1]
            trace = trace + self.h * (curvature.T * KJ.square().sum(1)).sum(0)
            J = torch.addcmul(J, slopes[i + 1].T[:, None, :], KJ, value=self.h)
        return trace


def _along(K: Tensor, sigma: Sigma | None) -> Tensor:
    """The matrix K σ, for σ a number, a matrix or (None) the identity."""
    if sigma is None:
        return K
    is_matrix = isinstance(sigma, Tensor) and sigma.dim() == 2
    return K @ sigma if is_matrix else K * sigma
