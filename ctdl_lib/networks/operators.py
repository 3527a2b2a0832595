"""Fourier neural operators, which map functions on the torus to functions on the torus."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..dynamics.deferral import in_transform
from .embeddings import Time, time_features, times_like, torus_features


class _Waves(NamedTuple):
    """The real matrices of the truncated Fourier transform along each axis and of its inverse.

    The transform acts along y first and gives pairs (real part, imaginary part) for the wave
    numbers 0 ≤ k₂ < m. It then acts along x and gives −m < k₁ < m. The inverse returns the real
    part of the sum.
    """

    along_y: Float[Tensor, "pairs n"]  # (2m, n)
    along_x: Float[Tensor, "rows two_n"]  # (2(2m − 1), 2n), pairs to pairs
    back_x: Float[Tensor, "two_n rows"]
    back_y: Float[Tensor, "n pairs"]


def _waves(n: int, modes: int, like: Tensor) -> _Waves:
    key = n, modes, like.dtype, like.device
    if key in _KEPT:
        return _KEPT[key]
    with torch.inference_mode(False):  # a tensor made in that mode cannot be used in training
        waves = _Waves(*(torch.as_tensor(matrix).to(like) for matrix in _wave_arrays(n, modes)))
    # a tensor made in a transform of torch.func cannot be used after its end
    return waves if in_transform() else _KEPT.setdefault(key, waves)


_KEPT: dict[tuple[int, int, torch.dtype, torch.device], _Waves] = {}


@cache
def _wave_arrays(n: int, modes: int) -> tuple[np.ndarray, ...]:
    x = 2 * math.pi * np.arange(n) / n
    ky, kx = np.arange(modes), np.arange(-modes + 1, modes)
    phase_y, phase_x = ky[:, None] * x, kx[:, None] * x
    cos, sin = np.cos(phase_x), np.sin(phase_x)
    # multiplication by e^{−iφ} acts on (real, imaginary) as the matrix ((cos, sin), (−sin, cos))
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)])
    along_x = turn.reshape(2 * len(kx), 2 * n)
    along_y = np.stack([np.cos(phase_y), -np.sin(phase_y)]).reshape(2 * modes, n)
    # the coefficients with k₂ < 0 are the conjugates of those with k₂ > 0
    twice = np.tile(np.where(ky > 0, 2.0, 1.0), 2)
    matrices = (along_y / n, along_x / n, along_x.T, (twice[:, None] * along_y).T)
    return tuple(np.ascontiguousarray(matrix) for matrix in matrices)


class SpectralConv(nn.Module):
    """The convolution (Ku)(x) = Σₖ Rₖ ûₖ e^{2πi k·x} over wave numbers |k₁|, |k₂| < modes.

    The Fourier coefficients are ûₖ = (n₁n₂)⁻¹ Σ u(x) e^{−2πi k·x}, so K is the same operator on
    every grid with n₁, n₂ ≥ 2·modes. The matrices Rₖ ∈ ℂ^{out × in} are learned for k₂ ≥ 0, and R₋ₖ
    is the conjugate of Rₖ, so Ku is real. If k₂ = 0, both Rₖ and R₋ₖ are learned, and the operator
    uses the mean of Rₖ and the conjugate of R₋ₖ.

    For few modes, truncated transforms by matrix products are faster than the full FFT. They need
    the grid as the first two axes. In single precision, with B samples, c channels and m modes, a
    call reads and writes about 4Bc(2n² + 8nm + 40m²) bytes of arrays and 32m²c² bytes of weights.

    Args of the constructor: the numbers of channels (`inputs`, `outputs`) and of `modes`;
    `generator` draws the entries of Rₖ, whose squared moduli have the mean 1/`inputs`.

    Reference: li2021fourier, section 4.
    """

    def __init__(
        self, inputs: int, outputs: int, *, modes: int, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.modes, self.inputs = modes, inputs
        shape = ((2 * modes - 1) * modes, inputs, 2 * outputs)  # real parts, then imaginary ones
        self.R = nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(2 * inputs))

    def forward(
        self, u: Float[Tensor, "n1 n2 batch inputs"]
    ) -> Float[Tensor, "n1 n2 batch outputs"]:
        """The fields Ku on the grid of u.

        Raises:
            ValueError: n₁ or n₂ is below 2·modes.
        """
        n1, n2, batch, inputs = u.shape
        m, outputs = self.modes, self.R.shape[2] // 2
        if min(n1, n2) < 2 * m:
            n = min(n1, n2)
            raise ValueError(f"a grid of n = {n} is too small for {m} modes: take n ≥ {2 * m}")
        x, y = _waves(n1, m, u), _waves(n2, m, u)
        u = torch.matmul(y.along_y, u.reshape(n1, n2, batch * inputs))
        u = x.along_x @ u.reshape(2 * n1, m * batch * inputs)
        real, imaginary = (part @ self.R for part in u.reshape(2, -1, batch, inputs))
        a, b = real.split(outputs, -1), imaginary.split(outputs, -1)
        u = torch.stack([a[0] - b[1], a[1] + b[0]])
        u = x.back_x @ u.reshape(-1, m * batch * outputs)
        u = torch.matmul(y.back_y, u.reshape(n1, 2 * m, batch * outputs))
        return u.reshape(n1, n2, batch, outputs)


class FNO(nn.Module):
    """The Fourier neural operator net(t, u) on fields u over the torus, at any resolution.

    A matrix maps the channels u, sin 2πx, cos 2πx, sin 2πy, cos 2πy to `width` channels. Each of
    the `layers` maps u to u + gelu(g ⊙ (Ku + Wu + b) + e), where K is a `SpectralConv`, W a matrix,
    and the vectors g and e depend on t. A network with one hidden layer maps the result to one
    channel. Everything except K acts pointwise. The published operator has no skip connection and
    no time.

    Args of the constructor: the `modes` of each convolution; the even `width`; the number of
    `layers`; `generator` draws all weights.

    Raises:
        ValueError: `modes` or `layers` is below 1, or `width` is odd or below 4.

    Reference: li2021fourier, section 4.
    """

    def __init__(
        self,
        *,
        modes: int,
        width: int,
        layers: int = 4,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"{width=} must be even and at least 4")

        def weights(outputs: int, inputs: int, *stack: int) -> nn.Parameter:
            uniform = 2 * torch.rand((*stack, outputs, inputs), generator=generator) - 1
            return nn.Parameter(uniform / math.sqrt(inputs))

        self.modes, self.width = modes, width
        self.lift, self.b_lift = weights(width, 5), nn.Parameter(torch.zeros(width))
        self.K = nn.ModuleList(
            SpectralConv(width, width, modes=modes, generator=generator) for _ in range(layers)
        )
        self.W, self.b = weights(width, width, layers), nn.Parameter(torch.zeros(layers, width))
        self.clock, self.hands = weights(4 * width, width), weights(2 * width, 4 * width, layers)
        self.widen, self.b_widen = weights(4 * width, width), nn.Parameter(torch.zeros(4 * width))
        self.narrow = weights(1, 4 * width)

    def forward(self, t: Time, u: Float[Tensor, "batch n1 n2"]) -> Float[Tensor, "batch n1 n2"]:
        """The fields net(t, u), where t is one time or one time per field.

        Raises:
            ValueError: u is not (batch, n₁, n₂), or n₁ or n₂ is below 2·modes.
        """
        if u.dim() != 3:
            raise ValueError(f"u must have the shape (batch, n₁, n₂), got {tuple(u.shape)}")
        time = functional.silu(time_features(times_like(t, u), self.width) @ self.clock.T)
        place = torus_features(u).permute(1, 2, 0)[:, :, None].expand(-1, -1, len(u), -1)
        u = torch.cat([u.permute(1, 2, 0)[..., None], place], -1)
        u = torch.addmm(self.b_lift, u.flatten(0, 2), self.lift.T).unflatten(0, u.shape[:3])
        for K, W, b, hands in zip(self.K, self.W, self.b, self.hands, strict=True):
            gain, shift = (time @ hands.T).chunk(2, 1)
            step = torch.addmm(b, u.flatten(0, 2), W.T).view_as(u) + K(u)
            u = u + functional.gelu(torch.addcmul(shift, step, 1 + gain))
        hidden = functional.gelu(torch.addmm(self.b_widen, u.flatten(0, 2), self.widen.T))
        return (hidden @ self.narrow.T).view(u.shape[:3]).permute(2, 0, 1)
