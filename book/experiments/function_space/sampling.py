"""Samplers of denoisers: by equal steps in time, and by steps that are even in log σ, σ = s/a."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ctdl_lib.generative import Score, sample_sde
from machinery.seeds import seeded

from .grids import resample
from .priors import Covariance
from .training import SCHEDULE

Noise = Callable[[], Tensor]
LAST = 0.02  # the σ at which the estimate of the clean field is the sample


def time_of(sigma: float) -> float:
    """The time t with s(t)/a(t) = σ."""
    beta = 2 * math.log(math.hypot(1, sigma))  # the integral of β from 0 to t
    start, slope = SCHEDULE.start, SCHEDULE.end - SCHEDULE.start
    return min((math.sqrt(start**2 + 2 * slope * beta) - start) / slope, 1.0)


def ladder(steps: int, last: float = LAST) -> list[float]:
    """The values of σ from t = 1 down to `last`, even in log σ."""
    first = float(SCHEDULE.s(1.0) / SCHEDULE.a(1.0))
    return [first * (last / first) ** (k / (steps - 1)) for k in range(steps)]


def estimate(denoiser: nn.Module, y: Tensor, sigma: float) -> Tensor:
    """The estimate η̂ of the noise in y = x(t)/a = x(0) + σ η."""
    return denoiser(time_of(sigma), y / math.hypot(1, sigma))


@torch.no_grad()
def ancestral(denoiser: nn.Module, noise: Noise, steps: int) -> Tensor:
    """The sample of a reverse SDE: each step is exact for a frozen estimate x̂ of the clean field.

    Given y = x̂ + σ η, the law at τ < σ is that of x̂ + (τ/σ)²(y − x̂) + τ √(1 − (τ/σ)²) ξ.
    It takes `steps` evaluations.
    """
    sigmas = ladder(steps)
    y = noise() * math.hypot(1, sigmas[0])
    for k, sigma in enumerate(sigmas):
        clean = y - sigma * estimate(denoiser, y, sigma)
        if k + 1 == steps:
            break
        share = (sigmas[k + 1] / sigma) ** 2
        y = clean + share * (y - clean) + sigmas[k + 1] * math.sqrt(1 - share) * noise()
    return clean


@torch.no_grad()
def heun(denoiser: nn.Module, noise: Noise, steps: int) -> Tensor:
    """The sample of the probability flow dy/dσ = η̂, by Heun's method.

    It takes 2 `steps` − 1 evaluations.

    Reference: karras2022elucidating, algorithm 1.
    """
    sigmas = ladder(steps)
    y = noise() * math.hypot(1, sigmas[0])
    for sigma, after in pairwise(sigmas):
        slope = estimate(denoiser, y, sigma)
        ahead = y + (after - sigma) * slope
        y = y + 0.5 * (after - sigma) * (slope + estimate(denoiser, ahead, after))
    return y - sigmas[-1] * estimate(denoiser, y, sigmas[-1])


def equal(denoiser: nn.Module, noise: Noise, steps: int) -> Tensor:
    """The sample of the reverse SDE by the library's equal steps in time, `steps` evaluations."""
    return sample_sde(Score(denoiser, SCHEDULE), noise, SCHEDULE, steps=steps)


SAMPLERS = {"equal": equal, "ancestral": ancestral, "heun": heun}


@torch.no_grad()
def samples_of(
    denoiser: nn.Module,
    Q: Covariance,
    n: int,
    seed: int,
    count: int,
    steps: int,
    *,
    sampler: str = "equal",
    size: int = 32,
) -> Tensor:
    """Samples (count, n, n), `size` at a time."""
    generator = seeded(seed, 10_000 + n)
    parts = []
    for k in range(0, count, size):
        noise = partial(Q.sample, min(size, count - k), n, generator)
        parts.append(SAMPLERS[sampler](denoiser, noise, steps))
    return torch.cat(parts)


def coupled(Q: Covariance, n: int, finest: int, count: int, seed: int, k: int = 77) -> Noise:
    """Noise on n × n pixels whose wave numbers are those of one draw on the finest grid."""
    generator = seeded(seed, k)
    return lambda: resample(Q.sample(count, finest, generator), n)
