"""The residual network as a potential, with its derivatives in closed form."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..networks.embeddings import times_like
from .potential import Derivatives, Gradient, Potential, Sigma, Time, along_noise
from .sweeps import adjoints, features, second_order


class ResNetPotential(Potential):
    """The potential Φ(s) = wᵀN(s) + ½ sᵀAᵀA s + bᵀs + c with s = (x, t) or (x, t, y).

    N is a residual network with antiderivative activation σ(a) = log(2 cosh a):
    u₀ = σ(K₀s + b₀), uᵢ = uᵢ₋₁ + h σ(Kᵢuᵢ₋₁ + bᵢ), i = 1, …, layers − 1, h = 1/(layers − 1).
    The first derivatives cost one backward sweep through the layers. The exact Laplacian costs one
    more forward sweep, with O(width² min(d, width)) operations per sample and layer.

    Args of the constructor: the dimensions `d` of x and `context_dim` of y; the `width` of N; the
    number of `layers` ≥ 1; the number of rows (`rank`) of A; `generator` draws the weights.

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
        u, _ = features(s, self.K0, self.b0, self.K, self.b, self.h)
        return self.w @ u[-1] + self._quadratic(s)

    def gradient(self, t: Time, x: Float[Tensor, "batch d"]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ by one forward and one backward sweep."""
        s = self._inputs(t, x)
        u, slopes = features(s, self.K0, self.b0, self.K, self.b, self.h)
        _, y = adjoints(slopes, self.K, self.w, self.h)
        return self._gradient(s, self.w @ u[-1], self.K0.T @ y[0])

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d"], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), in closed form."""
        s = self._inputs(t, x)
        A, M = along_noise(self.A[:, : self.d], sigma), along_noise(self.K0[:, : self.d], sigma)
        swept = second_order(s, self.K0, self.b0, self.K, self.b, self.w, M, self.h)
        gradient = self._gradient(s, swept.value, swept.ds)
        return Derivatives(*gradient, swept.trace + A.square().sum())

    def _inputs(self, t: Time, x: Tensor) -> Tensor:
        """The inputs s = (x, t, y) as columns; wrong shapes and a missing context are refused."""
        if x.dim() != 2 or x.shape[1] != self.d:
            raise ValueError(f"x must have shape (batch, {self.d}), got {tuple(x.shape)}")
        parts = [x.T, times_like(t, x)[None]]
        if self.context_dim:
            if self.context is None:
                raise ValueError("this potential has a context: call potential.given(y) first")
            if self.context.shape != (x.shape[0], self.context_dim):
                wanted, came = (x.shape[0], self.context_dim), tuple(self.context.shape)
                raise ValueError(f"the context y must have shape {wanted}, got {came}")
            parts.append(self.context.T)
        elif self.context is not None:
            raise ValueError("a context was given, but context_dim=0: set it in the constructor")
        return torch.cat(parts)

    def _quadratic(self, s: Tensor) -> Tensor:
        return 0.5 * (self.A @ s).square().sum(0) + self.linear @ s + self.constant

    def _gradient(self, s: Tensor, value: Tensor, ds: Tensor) -> Gradient:
        """The value and the gradient of Φ from those of wᵀN."""
        ds = torch.addmm(ds + self.linear[:, None], self.A.T, self.A @ s)
        dx, dt, _ = ds.split([self.d, 1, self.context_dim])
        return Gradient(value + self._quadratic(s), dt[0], dx.T)
