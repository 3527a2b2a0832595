"""What happens as the grid is refined: the law of a sampler in closed form, for Gaussian fields.

For data N(0, C) and noise N(0, Q), both stationary, the exact score acts on each wave number alone:
with y = x(t)/a = x(0) + σ η, the estimate of the clean coefficient is c/(c + σ²λ) times that of y.
The sampler is then linear, and the variance of each coefficient obeys a recursion.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from .priors import Covariance, Matern
from .sampling import ladder
from .training import LAWS, PIXELS

GRIDS = (16, 32, 64, 128, 256, 512)
STEPS = 64
DATA = Matern(s=2.0, kappa=3.0).normalized(PIXELS)  # c ~ |k|⁻⁴
LIMITED = ("laplacian", "matern")  # their traces have limits
UNLIMITED = ("white", "standard")


@dataclass(frozen=True)
class Path:
    """The variances of the coefficients of x(t) at the steps of a sampler, and of its sample."""

    grid: int
    variances: Tensor
    """(steps + 1, m, m) for the wave numbers 0 ≤ k₁, k₂ < n/2, the sample at the end."""


def resolved(spectrum: Tensor) -> Tensor:
    """The values at the wave numbers 0 ≤ k₁, k₂ < n/2, of a spectrum that depends on |k₁|, |k₂|."""
    m = (spectrum.shape[0] + 1) // 2
    return spectrum[:m, :m]


def total(values: Tensor) -> Tensor:
    """The sum over all wave numbers |k₁|, |k₂| < n/2: signs count twice, along each axis."""
    twice = torch.full((values.shape[-1],), 2.0, dtype=torch.float64)
    twice[0] = 1.0
    return values @ twice @ twice


def path_of(Q: Covariance, n: int, steps: int = STEPS, data: Covariance = DATA) -> Path:
    """The variances at all steps of `sampling.ancestral` with the exact score."""
    c, rate = resolved(data.spectrum(n)), resolved(Q.spectrum(n))
    sigmas = ladder(steps)
    variance = (1 + sigmas[0] ** 2) * rate
    found = []
    for k, sigma in enumerate(sigmas):
        found.append(variance / (1 + sigma**2))
        clean = c / (c + sigma**2 * rate)
        if k + 1 == steps:
            found.append(clean**2 * variance)
            break
        share = (sigmas[k + 1] / sigma) ** 2
        factor = (1 - share) * clean + share
        variance = factor**2 * variance + sigmas[k + 1] ** 2 * (1 - share) * rate
    return Path(n, torch.stack(found))


def distances(coarse: Path, fine: Path) -> Tensor:
    """The squared Wasserstein distances in L² of the laws on two grids, at all steps.

    Coefficients are independent and normal. Those of the coarse grid alone count as zero.
    """
    more = fine.variances.shape[-1] - coarse.variances.shape[-1]
    filled = nn.functional.pad(coarse.variances, (0, more, 0, more))
    return total((filled.sqrt() - fine.variances.sqrt()).square())


def slopes(values: list[float]) -> list[float]:
    """The exponents between grids n and 2n: log₂ of the quotients of successive values."""
    return [math.log2(b / a) for a, b in pairwise(values)]


@dataclass(frozen=True)
class Refinement:
    """How the laws of the sampler on n and on 2n pixels differ, for n = 16 … 256."""

    path: list[float]
    """The largest squared distance on the way."""
    sample: list[float]
    """The squared distance of the samples."""
    norm: list[float]
    """E‖X‖² halfway, at σ = 1, for n = 16 … 512."""
    modes: list[float]
    """The largest relative difference of a variance with |k₁|, |k₂| ≤ 4 between n and 2n."""


def refinement(name: str, grids: tuple[int, ...] = GRIDS) -> Refinement:
    """The numbers of one prior."""
    paths = [path_of(LAWS[name], n) for n in grids]
    pairs = list(pairwise(paths))
    apart = [distances(a, b) for a, b in pairs]
    halfway = min(range(STEPS), key=lambda k: abs(math.log(ladder(STEPS)[k])))
    low = []
    for a, b in pairs:
        u, v = (path.variances[-1, :5, :5] for path in (a, b))
        low.append(float(((u - v).abs() / u).max()))
    return Refinement(
        path=[float(d.max()) for d in apart],
        sample=[float(d[-1]) for d in apart],
        norm=[float(total(p.variances[halfway])) for p in paths],
        modes=low,
    )
