"""Densities with known log p and entropy, which is the least expected loss of a model."""

import abc
import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import guard


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error."""

    value: float
    standard_error: float


class Density(abc.ABC):
    """A probability density in ℝᵈ with samples, log density and entropy."""

    @abc.abstractmethod
    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n d"]:
        """Draw n samples on the generator's device, with torch's default dtype if it is None."""

    @abc.abstractmethod
    def log_prob(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The log density log p(x), with the dtype and on the device of x."""

    @abc.abstractmethod
    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The entropy −E[log p(X)], estimated with n samples in double precision."""


@dataclass(frozen=True, eq=False)
class Mixture(Density):
    """The Gaussian mixture p(x) = Σₖ wₖ N(x; μₖ, diag(sₖ²)).

    Args of the constructor: the `weights` wₖ; the `means` μₖ; the standard deviations sₖ (`std`).

    Raises:
        ValueError: shapes disagree, a weight or standard deviation is not positive, or Σₖ wₖ ≠ 1.
    """

    weights: Float[Tensor, " k"]
    means: Float[Tensor, "k d"]
    std: Float[Tensor, "k d"]

    def __post_init__(self):
        shapes = [tuple(part.shape) for part in (self.weights, self.means, self.std)]
        if len(shapes[1]) != 2 or shapes != [shapes[1][:1], shapes[1], shapes[1]]:
            raise ValueError(
                f"weights, means and std must have shapes (k,), (k, d) and (k, d), got {shapes}"
            )
        total = float(self.weights.double().sum())
        # the sum of weights in single precision has about seven correct digits
        if not (self.weights > 0).all() or not math.isclose(total, 1, abs_tol=1e-5):
            raise ValueError(f"weights must be positive with sum 1, got sum {total}: divide by it")
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, its smallest entry is {float(self.std.min())}")

    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n d"]:
        """Draw n samples μₖ + sₖξ, where k has the probabilities wₖ and ξ is standard normal."""
        weights = self.weights.to(generator.device)
        k = weights.multinomial(n, replacement=True, generator=generator)
        return self._around(k, generator, dtype)

    def _around(self, k: Tensor, generator: torch.Generator, dtype: torch.dtype | None) -> Tensor:
        shape, device = (len(k), self.means.shape[1]), generator.device
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return self.means.to(noise)[k] + self.std.to(noise)[k] * noise

    def log_prob(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The log density log Σₖ wₖ N(x; μₖ, diag(sₖ²))."""
        return torch.cat([self._log_terms(part).logsumexp(1) for part in self._parts(x)])

    def score(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The score ∇log p(x) = Σₖ rₖ(x)(μₖ − x)/sₖ² with the posterior weights rₖ(x)."""
        precision = self.std.to(x) ** -2
        share = torch.cat([self._log_terms(part).softmax(1) for part in self._parts(x)])
        return share @ (self.means.to(x) * precision) - x * (share @ precision)

    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The entropy −Σₖ wₖ E[log p(X) | k], estimated with an equal share of n for each k.

        Raises:
            ValueError: there are fewer than two samples per component.
        """
        parts = len(self.weights)
        each = math.ceil(n / parts)
        if each < 2:
            raise ValueError(f"n = {n} gives fewer than two samples to each of {parts} components")
        k = torch.arange(parts, device=generator.device).repeat_interleave(each)
        values = -self.log_prob(self._around(k, generator, torch.float64)).reshape(parts, each)
        weights = self.weights.to(values)
        error = ((weights**2 * values.var(1)).sum() / each).sqrt()
        return Estimate(float(weights @ values.mean(1)), float(error))

    def _log_terms(self, x: Tensor) -> Tensor:
        """The terms log(wₖ N(x; μₖ, diag(sₖ²))), (batch, k)."""
        weights, means, std = self.weights.to(x), self.means.to(x), self.std.to(x)
        scale = weights.log() - (math.sqrt(2 * math.pi) * std).log().sum(1)
        return scale - 0.5 * ((x[:, None] - means) / std).square().sum(2)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The samples in parts whose arrays (batch, k, d) have at most four million entries."""
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"x must have shape (batch, {self.means.shape[1]}), got {tuple(x.shape)}"
            )
        return x.split(max(1, 4_000_000 // self.means.numel()))


@dataclass(frozen=True)
class Checkerboard(Density):
    """The uniform density on 8 of the 16 squares of side 2 in [−4, 4]², among them (0, 2)²."""

    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n 2"]:
        """Draw n samples: first one of the eight squares, then a point in it."""
        point = torch.rand(n, 2, generator=generator, device=generator.device, dtype=dtype)
        square = torch.randint(8, (n,), generator=generator, device=generator.device)
        column, row = square // 2, 2 * (square % 2) + square // 2 % 2
        return 2 * (torch.stack([column, row], 1) + point) - 4

    def log_prob(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
        """The log density −log 32 on the eight squares and −∞ elsewhere."""
        on = ((x / 2).floor().sum(1) % 2 == 0) & (x >= -4).all(1) & (x < 4).all(1)
        return torch.where(on, -math.log(32), -math.inf).to(x)

    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The exact entropy log 32."""
        return Estimate(math.log(32), 0.0)


@dataclass(frozen=True)
class Pinwheel(Density):
    """The law of 2R(−φ)z with z = (1 + 0.3ξ, 0.1η) and φ = 2πk/5 + e^{z₁}/4.

    R(φ) is the rotation by φ, (ξ, η) is standard normal, and k is uniform in {0, …, 4}.
    """

    arms: int = 5
    rate: float = 0.25

    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n 2"]:
        """Draw n samples 2R(−φ)z."""
        device = generator.device
        k = torch.randint(self.arms, (n,), generator=generator, device=device)
        xi, eta = torch.randn(2, n, generator=generator, device=device, dtype=dtype)
        a, b = 1 + 0.3 * xi, 0.1 * eta
        angle = 2 * math.pi / self.arms * k.to(a) + self.rate * a.exp()
        cos, sin = angle.cos(), angle.sin()
        return 2 * torch.stack([a * cos + b * sin, b * cos - a * sin], 1)

    def log_prob(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
        """The log density log Σ p(z)/(4·5·|1 + z₂e^{z₁}/4|) over all (k, z) that are mapped to x.

        Here p is the density of z. The map keeps ρ = ‖z‖ = ‖x‖/2 and takes the angle ψ of z to
        ψ − e^{ρ cos ψ}/4 − 2πk/5. For large ρ this is not monotone in ψ. Therefore all roots are
        bracketed on a grid and computed by bisection. The grid is fine enough for ‖x‖ ≤ 8; for
        larger ‖x‖ the density is below 1e-20.
        """
        return torch.cat([self._log_prob(part) for part in x.double().split(1000)]).to(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        k = torch.arange(self.arms, device=x.device)
        radius = (x.norm(dim=1) / 2)[:, None].expand(-1, self.arms)
        wanted = torch.atan2(x[:, 1], x[:, 0])[:, None] + 2 * math.pi / self.arms * k

        def miss(psi: Tensor, radius: Tensor, wanted: Tensor) -> Tensor:
            return psi - self.rate * (radius * psi.cos()).exp() - wanted

        grid = torch.linspace(-math.pi, math.pi, 513, dtype=x.dtype, device=x.device)
        # sin(difference / 2) changes its sign where two angles agree modulo 2π
        side = (miss(grid, radius[..., None], wanted[..., None]) / 2).sin() > 0
        sample, arm, cell = torch.nonzero(side[..., :-1] != side[..., 1:], as_tuple=True)
        radius, wanted, before = radius[sample, arm], wanted[sample, arm], side[sample, arm, cell]
        low, high = grid[cell], grid[cell + 1]
        for _ in range(48):
            middle = (low + high) / 2
            stay = ((miss(middle, radius, wanted) / 2).sin() > 0) == before
            low, high = torch.where(stay, middle, low), torch.where(stay, high, middle)
        # one step of Newton's method gives the root its derivative with respect to x
        slope = 1 + self.rate * radius * low.sin() * (radius * low.cos()).exp()
        rest = miss(low, radius, wanted)
        psi = low - torch.atan2(rest.sin(), rest.cos()) / slope
        a, b = radius * psi.cos(), radius * psi.sin()
        normal = -0.5 * (((a - 1) / 0.3) ** 2 + (b / 0.1) ** 2) - math.log(2 * math.pi * 0.3 * 0.1)
        term = normal - (1 + self.rate * b * a.exp()).abs().log() - math.log(4 * self.arms)
        top = torch.full_like(x[:, 0], -math.inf).scatter_reduce(0, sample, term.detach(), "amax")
        total = torch.zeros_like(top).index_add(0, sample, (term - top[sample]).exp())
        return top + total.log()

    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The entropy, estimated by a mean over n samples."""
        values = -self.log_prob(self.sample(n, generator, dtype=torch.float64))
        return Estimate(float(values.mean()), float(values.std()) / math.sqrt(n))


def ring_of_gaussians(
    d: int, *, components: int = 8, radius: float = 4.0, variance: float = 0.3
) -> Mixture:
    """The mixture of the densities N(μₖ, variance·I) with equal weights and means on a circle.

    The means are μₖ = radius·(cos φₖ, sin φₖ, 0, …, 0) with φₖ = 2πk/components.

    Reference: ruthotto2020machine.
    """
    if d < 2:
        raise ValueError(f"d must be at least 2, because the means lie on a circle, got {d}")
    means = torch.zeros(components, d, dtype=torch.float64)
    means[:, :2] = radius * _circle(components)
    weights = torch.full((components,), 1 / components, dtype=torch.float64)
    return Mixture(weights, means, torch.full_like(means, math.sqrt(variance)))


def eight_gaussians() -> Mixture:
    """The ring of 8 Gaussians with radius 4 and standard deviation ½, scaled by 1/√2.

    The published code divides by 1.414 instead of √2.
    """
    return ring_of_gaussians(2, radius=4 / math.sqrt(2), variance=0.5**2 / 2)


def swissroll(nodes: int = 256) -> Mixture:
    """The spiral t(cos t, sin t)/5 with t uniform in [3π/2, 9π/2], plus noise N(0, 0.2² I)."""
    u, w = _gauss_legendre(nodes)
    t = 1.5 * math.pi * (1 + 2 * u)
    return _noisy(t[:, None] * torch.stack([t.cos(), t.sin()], 1) / 5, w, 0.2)


def circles(nodes: int = 128) -> Mixture:
    """The circles of radius 3 and 1.5 with equal weights, plus noise N(0, 0.24² I)."""
    circle = 3 * _circle(nodes)
    return _noisy(torch.cat([circle, circle / 2]), torch.ones_like(circle[:, 0]).repeat(2), 0.24)


def moons(nodes: int = 128) -> Mixture:
    """The half circles 2(cos φ, sin φ) − (1, 0.2) and 2(1 − cos φ, ½ − sin φ) − (1, 0.2).

    They have equal weights, φ is uniform in [0, π], and the noise is N(0, 0.2² I).
    """
    u, w = _gauss_legendre(nodes)
    up = torch.stack([(math.pi * u).cos(), (math.pi * u).sin()], 1)
    ends, centre = up.new_tensor([1.0, 0.5]), up.new_tensor([1.0, 0.2])
    return _noisy(2 * torch.cat([up, ends - up]) - centre, w.repeat(2), 0.2)


def two_spirals(nodes: int = 512) -> Mixture:
    """The spirals ±(t/3)(−cos t, sin t) with t = 3π√u and u uniform in [0, 1], plus noise.

    The noise is N(0, 0.1² I). The published code also shifts each point by a uniform vector in
    [0, 1/6]², and by its negative on the second spiral.
    """
    u, w = _gauss_legendre(nodes)
    t = 3 * math.pi * u  # the quadrature is in t, which has a density proportional to t
    arm = t[:, None] * torch.stack([-t.cos(), t.sin()], 1) / 3
    return _noisy(torch.cat([arm, -arm]), (u * w).repeat(2), 0.1)


def _circle(n: int) -> Tensor:
    angle = 2 * math.pi / n * torch.arange(n, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1)


def _noisy(points: Tensor, weights: Tensor, noise: float) -> Mixture:
    """The law of a random point on a curve plus noise, approximated by quadrature along the curve.

    The result is a Gaussian mixture. If the distance of the nodes is below the standard deviation
    of the noise, the error is smaller than rounding errors.
    """
    return Mixture(weights / weights.sum(), points, torch.full_like(points, noise))


@cache
def _gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """The nodes and weights of Gauss–Legendre quadrature on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.as_tensor((x + 1) / 2), torch.as_tensor(w / 2)


TOYS: dict[str, Density] = {
    "8gaussians": eight_gaussians(),
    "checkerboard": Checkerboard(),
    "swissroll": swissroll(),
    "circles": circles(),
    "moons": moons(),
    "pinwheel": Pinwheel(),
    "2spirals": two_spirals(),
}


guard(__name__)
