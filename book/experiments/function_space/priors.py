"""The covariances of noise in function space: Gaussian random fields on the torus [0, 1)²."""

import abc
import dataclasses
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .grids import Field, checked_fields, multiplicity, multiplied, squared_wave_numbers

# typing.Self cannot be checked at run time
Kind = TypeVar("Kind", bound="Covariance")


class Covariance(abc.ABC):
    """The covariance operator Q of a stationary field η = Σₖ √λₖ ξₖ e^{2πi k·x}, E|ξₖ|² = 1.

    A field is an array (batch, n, n) of values at x = (i, j)/n. Its amplitude does not depend on n,
    and its mean square over the pixels is its squared norm in L². On an n × n grid, it has the wave
    numbers |k₁|, |k₂| ≤ n/2. Subclasses are frozen dataclasses with a factor `level` of Q.
    """

    level: float

    def __post_init__(self):
        if any(isinstance(value, float | int) and value < 0 for value in vars(self).values()):
            raise ValueError(f"parameters of a covariance must not be negative: {self}")

    @abc.abstractmethod
    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues λₖ in float64, in the order of `torch.fft.fft2`."""

    def trace(self, n: int) -> float:
        """The variance E‖η‖² = Σₖ λₖ of a pixel, summed over the wave numbers of the grid."""
        return float(self.spectrum(n).sum())

    def normalized(self: Kind, n: int) -> Kind:
        """The covariance times a factor, so that a pixel of the n × n grid has variance 1."""
        return dataclasses.replace(self, level=self.level / self.trace(n))  # pyright: ignore[reportArgumentType]

    def sample(
        self, count: int, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "{count} {n} {n}"]:
        """Draw fields n F⁻¹ √λ F z from white noise z, on the device of the generator."""
        z = torch.randn((count, n, n), generator=generator, device=generator.device, dtype=dtype)
        return n * self.apply_sqrt(z)

    def apply_sqrt(self, u: Field) -> Field:
        """The fields Q^½ u."""
        return multiplied(u, self.spectrum(u.shape[-1]).sqrt())

    def apply(self, u: Field) -> Field:
        """The fields Q u."""
        return multiplied(u, self.spectrum(u.shape[-1]))

    def log_prob(self, u: Field) -> Float[Tensor, " batch"]:
        """The log density log N(u; 0, Q) with respect to the n² pixels.

        It has no limit as n → ∞. Compare only fields on the same grid.

        Raises:
            ValueError: an eigenvalue is zero, so Q has no inverse on this grid.
        """
        n = u.shape[-1]
        variance = n**2 * self.spectrum(n).to(u.device)  # of the orthonormal Fourier coefficients
        if not (variance > 0).all():
            raise ValueError(
                f"N(0, Q) has no density: {int((variance == 0).sum())} of {n * n} wave numbers have"
                " no variance; add another covariance (see Sum)"
            )
        power = torch.fft.fft2(u, norm="ortho").abs() ** 2
        quadratic = (power / variance).sum((1, 2))
        return (-0.5 * (quadratic + (2 * math.pi * variance).log().sum())).to(u.dtype)

    def check(self, u: Field) -> Field:
        """The same fields, after a check that the noise has all their wave numbers.

        Raises:
            ValueError: the fields are not finite or not square, or more than 10⁻⁸ of their power
                is at wave numbers where Q has no variance. The noise cannot remove these, and
                samples that start from noise cannot have them.
        """
        checked_fields(u)
        n = u.shape[-1]
        power = (torch.fft.fft2(u.detach().double()).abs() ** 2).mean(0)
        bare = self.spectrum(n).to(u.device) == 0
        share = float(power[bare].sum() / power.sum().clamp(min=1e-300))
        if share > 1e-8:
            mean = " (the mean of the field among them)" if bool(bare[0, 0]) else ""
            raise ValueError(
                f"the noise has no variance at {int(bare.sum())} of {n * n} wave numbers{mean}, but"
                f" the data have {100 * share:.3g} % of their power there: raise modes or mean, or"
                " add another covariance (see Sum)"
            )
        return u


@dataclass(frozen=True)
class Laplacian(Covariance):
    """The operator Q ∝ (−Δ)⁻ˢ, λₖ = level·|k|⁻²ˢ and λ₀ = level·mean, trace class if s > 1.

    With the published `mean` = 0, the mean of every sample is zero.

    Reference: hagemann2023multilevel.
    """

    s: float
    mean: float = 1.0
    level: float = 1.0

    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues level·|k|⁻²ˢ."""
        decay = squared_wave_numbers(n) ** -self.s
        decay[0, 0] = self.mean  # instead of 0⁻ˢ
        return self.level * decay * multiplicity(n)


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
class BandNoise(Covariance):
    """The operator Q with λₖ = level for |k₁|, |k₂| ≤ `modes`, and 0 beyond: trace class."""

    modes: int
    level: float = 1.0

    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues `level` or 0.

        Raises:
            ValueError: n ≤ 2·modes.
        """
        if n <= 2 * self.modes:
            raise ValueError(f"a grid of n = {n} is too small for {self.modes} modes")
        k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).abs() <= self.modes
        return self.level * (k[:, None] & k).double()


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


@dataclass(frozen=True)
class Sum(Covariance):
    """The covariance level·Σ Qᵢ of a sum of independent fields."""

    parts: tuple[Covariance, ...]
    level: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not self.parts:
            raise ValueError("parts must contain at least one covariance")

    def spectrum(self, n: int) -> Float[Tensor, "{n} {n}"]:
        """The eigenvalues level·Σ λₖ."""
        return self.level * torch.stack([part.spectrum(n) for part in self.parts]).sum(0)
