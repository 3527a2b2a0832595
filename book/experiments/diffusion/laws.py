"""Laws whose score is known at every level of noise, and distances on the line without sampling."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.generative import Schedule
from ctdl_lib.generative.maps import TransportMap
from ctdl_lib.networks.embeddings import Time, times_like
from ctdl_lib.problems.densities import Mixture
from machinery.seeds import seeded

SCHEDULE = Schedule()
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def noisy(p: Mixture, t: float | Tensor) -> Mixture:
    """The law of X(t) = aX(0) + sη, if X(0) has the law p."""
    a, s = SCHEDULE.a(t), SCHEDULE.s(t)
    return Mixture(p.weights, a * p.means, (a**2 * p.std**2 + s**2).sqrt())


def random_mixture(seed: int, d: int = 1, parts: int = 3, width: float | None = None) -> Mixture:
    """A mixture in ℝᵈ that `seed` draws, with mean 0 and variance 1 in each coordinate.

    Before all is standardized, weights are between 1 and 2, means are uniform in [−1.5, 1.5]ᵈ, and
    standard deviations between 0.03 and 0.3, uniform in their logarithms, or all equal to `width`.
    """
    generator = seeded(seed, 0)
    weights = 1 + torch.rand(parts, generator=generator, **DOUBLE)
    means = 3 * torch.rand(parts, d, generator=generator, **DOUBLE) - 1.5
    std = 0.03 * 10 ** torch.rand(parts, d, generator=generator, **DOUBLE)
    if width is not None:
        std = torch.full_like(std, width)
    return standardized(Mixture(weights / weights.sum(), means, std))


def moments(p: Mixture) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of a mixture."""
    mean = p.weights @ p.means
    apart = p.means - mean
    spread = torch.diag(p.weights @ p.std**2)
    return mean, spread + apart.T @ (p.weights[:, None] * apart)


def standardized(p: Mixture) -> Mixture:
    """The law of the standardized coordinates."""
    mean, cov = moments(p)
    scale = cov.diagonal().sqrt()
    return Mixture(p.weights, (p.means - mean) / scale, p.std / scale)


def in_units_of(p: Mixture, model: TransportMap) -> Mixture:
    """The law of the data in the units that a model has standardized them to."""
    mean, spread = (model.data.get_buffer(name).double() for name in ("mean", "std"))
    return Mixture(p.weights, (p.means - mean) / spread, p.std / spread)


class MixtureScore(nn.Module):
    """The score ∇log p_t of a mixture p with noise, for one time or one time a sample."""

    def __init__(self, p: Mixture):
        super().__init__()
        self.p = p

    def forward(self, t: Time, x: Tensor) -> Tensor:
        """The value ∇log p_t(x)."""
        if not isinstance(t, Tensor) or t.dim() == 0:
            return noisy(self.p, t).score(x)
        t = times_like(t, x)[:, None, None]
        a, s = SCHEDULE.a(t), SCHEDULE.s(t)
        variance = a**2 * self.p.std.to(x) ** 2 + s**2
        apart = a * self.p.means.to(x) - x[:, None]
        terms = self.p.weights.to(x).log() - 0.5 * (apart**2 / variance + variance.log()).sum(2)
        return (terms.softmax(1)[..., None] * apart / variance).sum(1)


class Surprise(nn.Module):
    """The function Φ(t, x) = −log p_t(x) of a mixture p with noise, for one time a sample."""

    def __init__(self, p: Mixture):
        super().__init__()
        self.p = p

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The value Φ(t, x)."""
        t = t[:, None, None]
        a, s = SCHEDULE.a(t), SCHEDULE.s(t)
        variance = a**2 * self.p.std**2 + s**2
        apart = x[:, None] - a * self.p.means
        terms = apart**2 / variance + variance.log() + math.log(2 * math.pi)
        return -(self.p.weights.log() - 0.5 * terms.sum(2)).logsumexp(1)


class GaussianScore(nn.Module):
    """The score of N(mean, cov) with noise: what no network has to learn."""

    def __init__(self, mean: Tensor, cov: Tensor):
        super().__init__()
        self.mean, self.cov = mean, cov

    def forward(self, t: float, x: Tensor) -> Tensor:
        """The value ∇log p_t(x)."""
        a, s = SCHEDULE.a(t), SCHEDULE.s(t)
        cov = a**2 * self.cov.to(x) + s**2 * torch.eye(len(self.cov), dtype=x.dtype)
        return -torch.linalg.solve(cov, (x - a * self.mean.to(x)).T).T


def cdf(p: Mixture, x: Tensor) -> Tensor:
    """The distribution function of a mixture on the line at the points x (n,)."""
    z = (x[:, None] - p.means.T) / p.std.T
    return torch.special.ndtr(z) @ p.weights


def quantiles(p: Mixture, n: int) -> Tensor:
    """The quantiles of a mixture on the line at the levels (k + ½)/n, by bisection."""
    levels = (torch.arange(n, **DOUBLE) + 0.5) / n
    low = torch.full_like(levels, float((p.means - 9 * p.std).min()))
    high = torch.full_like(levels, float((p.means + 9 * p.std).max()))
    for _ in range(50):
        middle = (low + high) / 2
        under = cdf(p, middle) < levels
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


def distance(x: Tensor, exact: Tensor) -> float:
    """The Wasserstein distance W₁ of samples on the line to a law with these quantiles."""
    return (x.flatten().sort().values - exact).abs().mean().item()
