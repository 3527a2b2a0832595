"""Fields on the torus [0, 1)²: their wave numbers, and how they change from grid to grid."""

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Field = Float[Tensor, "batch n n"]


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


def multiplied(u: Field, factor: Tensor) -> Field:
    """The fields F⁻¹ (factor · F u)."""
    n = u.shape[-1]
    half = factor[:, : n // 2 + 1].to(u)  # the wave numbers that rfft2 keeps
    return torch.fft.irfft2(half * torch.fft.rfft2(u), s=(n, n))
