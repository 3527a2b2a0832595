"""Covariances that the chapter on diffusion in function space compares with the Laplacian."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.generative.fields import Covariance, multiplicity, squared_wave_numbers


@dataclass(frozen=True)
class PixelNoise(Covariance):
    """Independent pixels of variance `level` on every grid: λₖ = level/n².

    It is not the restriction of a covariance on L² to a grid: each eigenvalue tends to zero as
    n → ∞.
    """

    level: float = 1.0

    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues level/n²."""
        return torch.full((n, n), self.level / n**2, dtype=torch.float64)


@dataclass(frozen=True)
class WhiteNoise(Covariance):
    """The operator Q = level·I, which is not trace class: the variance of a pixel is level·n²."""

    level: float = 1.0

    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues `level`."""
        return torch.full((n, n), self.level, dtype=torch.float64)


@dataclass(frozen=True)
class Matern(Covariance):
    """The operator Q ∝ (κ² − Δ/4π²)⁻ˢ, λₖ = level·(κ² + |k|²)⁻ˢ, trace class if s > 1.

    The correlation length is about 1/κ. Q is also named after Bessel.

    Reference: hagemann2023multilevel.
    """

    s: float
    kappa: float
    level: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.kappa == 0:
            raise ValueError("kappa must be positive; κ = 0 is Laplacian(s)")

    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues level·(κ² + |k|²)⁻ˢ."""
        decay = (self.kappa**2 + squared_wave_numbers(n)) ** -self.s
        return self.level * decay * multiplicity(n)


@dataclass(frozen=True)
class SpectralNoise(Covariance):
    """White noise after a spectral convolution with random weights, λₖ = level·½(|Rₖ|² + |R₋ₖ|²).

    The weights for |k₁|, |k₂| ≤ `modes` are the published Rₖ = 0.2 + 0.8 U + 0.8 i V, where `seed`
    determines U and V, uniform in [0, 1]. All other weights are zero. The mean over ±k makes the
    fields real. The phases of Rₖ have no effect, because those of the noise are uniform.

    Reference: hagemann2023multilevel.
    """

    modes: int
    seed: int = 0
    level: float = 1.0

    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues level·½(|Rₖ|² + |R₋ₖ|²).

        Raises:
            ValueError: n < 2·modes.
        """
        m = self.modes
        if n < 2 * m:
            raise ValueError(f"a grid of n = {n} is too small for {m} modes: take n ≥ {2 * m}")
        generator = torch.Generator().manual_seed(self.seed)
        U, V = torch.rand(2, 2 * m + 1, 2 * m + 1, generator=generator, dtype=torch.float64)
        weights = (0.2 + 0.8 * U) ** 2 + (0.8 * V) ** 2
        weights = (weights + weights.flip(0, 1)) / 2  # a real field has λ₋ₖ = λₖ
        k = torch.arange(-m, m + 1) % n
        full = torch.zeros(n, n, dtype=torch.float64)
        # if n = 2·modes, the wave numbers ±n/2 coincide on the grid
        full.index_put_((k[:, None], k[None, :]), weights, accumulate=True)
        return self.level * full
