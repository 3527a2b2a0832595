"""Gaussian random fields on the torus [0, 1)², defined independently of a grid."""

import abc
import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Field = Float[Tensor, "batch n n"]

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
        return _multiplied(u, self.spectrum(u.shape[-1]).sqrt())

    def apply(self, u: Field) -> Field:
        """The fields Q u."""
        return _multiplied(u, self.spectrum(u.shape[-1]))

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


def squared_wave_numbers(n: int) -> Float[Tensor, "{n} {n}"]:
    """The values |k|² = k₁² + k₂² in the order of `torch.fft.fft2`."""
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    return k[:, None] ** 2 + k**2


def multiplicity(n: int) -> Float[Tensor, "{n} {n}"]:
    """The number of wave numbers that coincide with k on the grid: per axis, 2 for ±n/2, else 1."""
    twice = torch.ones(n, dtype=torch.float64)
    if n % 2 == 0:
        twice[n // 2] = 2.0
    return twice[:, None] * twice


def resample(u: Field, n: int) -> Float[Tensor, "batch {n} {n}"]:
    """The fields on an n × n grid, by trigonometric interpolation or by omitting wave numbers.

    Amplitudes do not change. Interpolation to a finer grid and back is the identity. An even grid
    cannot distinguish the wave numbers ±n/2, so each gets half of the amplitude on a finer grid.

    Raises:
        ValueError: the fields are not square or not finite, or n < 2.
    """
    checked_fields(u)
    if n < 2:
        raise ValueError(f"a field needs a grid of at least 2 × 2 pixels, got n = {n}")
    old = u.shape[-1]
    if n == old:
        return u
    P = torch.as_tensor(_interpolation(old, n)).to(u)
    return P @ u @ P.T


@cache  # an array, because a tensor made within a transform of torch.func is valid only there
def _interpolation(old: int, n: int) -> np.ndarray:
    """The matrix (n, old) of trigonometric interpolation along one axis."""
    m = min(old, n)
    k = np.arange(-(m // 2), m // 2 + 1)
    weight = np.ones(len(k))
    if m % 2 == 0 and old < n:
        weight[0] = weight[-1] = 0.5  # ±m/2 coincide on the coarse grid
    apart = np.arange(n)[:, None, None] / n - np.arange(old)[:, None] / old
    return (weight * np.cos(2 * math.pi * k * apart)).sum(-1) / old


def checked_fields(u: Tensor) -> Tensor:
    """The same fields, after a check.

    Raises:
        ValueError: u is not (batch, n, n) with n ≥ 2, or has entries that are not finite.
    """
    if u.dim() != 3 or u.shape[1] != u.shape[2] or u.shape[1] < 2:
        raise ValueError(f"fields must be square, (batch, n, n) with n ≥ 2, got {tuple(u.shape)}")
    bad = int((~u.isfinite().flatten(1).all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(u)} fields have NaN or infinite pixels: drop them")
    return u


def _multiplied(u: Field, factor: Tensor) -> Field:
    """The fields F⁻¹ (factor · F u)."""
    n = u.shape[-1]
    half = factor[:, : n // 2 + 1].to(u)  # the wave numbers that rfft2 keeps
    return torch.fft.irfft2(half * torch.fft.rfft2(u), s=(n, n))
