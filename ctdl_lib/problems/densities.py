"""Densities to learn from samples, all of them known: the best loss is their entropy."""

import abc
import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Estimate(NamedTuple):
    """A number found by sampling; the error has the standard deviation `standard_error`."""

    value: float
    standard_error: float


class Density(abc.ABC):
    """A probability density in Rᵈ: its samples, its logarithm and its entropy."""

    @abc.abstractmethod
    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n d"]:
        """Draw n samples on the generator's device, in torch's default dtype if none is given."""

    @abc.abstractmethod
    def log_prob(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The logarithm of the density at x, in the dtype and on the device of x."""

    @abc.abstractmethod
    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The entropy −E[log p(X)], the least negative log-likelihood, by n samples in float64."""


@dataclass(frozen=True, eq=False)
class Mixture(Density):
    """The mixture p(x) = Σₖ wₖ N(x; μₖ, diag(sₖ²)) of Gaussians with standard deviations s.

    Raises:
        ValueError: shapes disagree, a weight or deviation is not positive, or Σₖ wₖ ≠ 1.
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
        # of weights in single precision the sum is 1 to about seven digits
        if not (self.weights > 0).all() or not math.isclose(total, 1, abs_tol=1e-5):
            raise ValueError(f"weights must be positive with sum 1, got sum {total}: divide by it")
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, got {float(self.std.min())} among its entries")

    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n d"]:
        """Draw n samples μₖ + sₖξ, with k drawn by the weights and ξ standard normal."""
        weights = self.weights.to(generator.device)
        k = weights.multinomial(n, replacement=True, generator=generator)
        return self._around(k, generator, dtype)

    def _around(self, k: Tensor, generator: torch.Generator, dtype: torch.dtype | None) -> Tensor:
        shape, device = (len(k), self.means.shape[1]), generator.device
        noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return self.means.to(noise)[k] + self.std.to(noise)[k] * noise

    def log_prob(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The logarithm log Σₖ wₖ N(x; μₖ, diag(sₖ²))."""
        return torch.cat([self._log_terms(part).logsumexp(1) for part in self._parts(x)])

    def score(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The gradient ∇log p(x) = Σₖ rₖ(x)(μₖ − x)/sₖ², rₖ the probability of part k given x."""
        precision = self.std.to(x) ** -2
        share = torch.cat([self._log_terms(part).softmax(1) for part in self._parts(x)])
        return share @ (self.means.to(x) * precision) - x * (share @ precision)

    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The entropy −Σₖ wₖ E[log p(X) | k], with ⌈n/k⌉ samples from each part.

        Raises:
            ValueError: n allows fewer than two samples a part.
        """
        parts = len(self.weights)
        each = math.ceil(n / parts)
        if each < 2:
            raise ValueError(f"n = {n} gives fewer than two samples to each of {parts} parts")
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
        """The samples in parts, so that an array (batch, k, d) has at most four million entries."""
        if x.shape[1:] != self.means.shape[1:]:
            raise ValueError(
                f"x must have shape (batch, {self.means.shape[1]}), got {tuple(x.shape)}"
            )
        return x.split(max(1, 4_000_000 // self.means.numel()))


@dataclass(frozen=True)
class Checkerboard(Density):
    """The uniform density on the 8 squares of side 2 of a board [−4, 4]², (0, 2)² one of them."""

    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n 2"]:
        """Draw n samples: a square of the eight, then a point in it."""
        point = torch.rand(n, 2, generator=generator, device=generator.device, dtype=dtype)
        square = torch.randint(8, (n,), generator=generator, device=generator.device)
        column, row = square // 2, 2 * (square % 2) + square // 2 % 2
        return 2 * (torch.stack([column, row], 1) + point) - 4

    def log_prob(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
        """The logarithm −log 32 on the eight squares and −∞ elsewhere."""
        on = ((x / 2).floor().sum(1) % 2 == 0) & (x >= -4).all(1) & (x < 4).all(1)
        return torch.where(on, -math.log(32), -math.inf).to(x)

    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The entropy log 32, without sampling."""
        return Estimate(math.log(32), 0.0)


@dataclass(frozen=True)
class Pinwheel(Density):
    """The law of 2R(−φ)z for z = (1 + 0.3ξ, 0.1η) and φ = 2πk/5 + e^{z₁}/4, k uniform.

    R(φ) is the rotation by φ and (ξ, η) is standard normal.
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
        """The logarithm log Σ N(z)/(4·5·|1 + z₂e^{z₁}/4|) over the z of all arms that end in x.

        A rotation keeps ρ = ‖z‖ = ‖x‖/2 and moves the angle ψ of z to ψ − e^{ρ cos ψ}/4 − 2πk/5.
        Far out this is not monotone in ψ, so all roots are bracketed on a grid, fine enough where
        ‖x‖ ≤ 8 (beyond, the density is below 1e-20), and bisected.
        """
        return torch.cat([self._log_prob(part) for part in x.double().split(1000)]).to(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        k = torch.arange(self.arms, device=x.device)
        radius = (x.norm(dim=1) / 2)[:, None].expand(-1, self.arms)
        wanted = torch.atan2(x[:, 1], x[:, 0])[:, None] + 2 * math.pi / self.arms * k

        def miss(psi: Tensor, radius: Tensor, wanted: Tensor) -> Tensor:
            return psi - self.rate * (radius * psi.cos()).exp() - wanted

        grid = torch.linspace(-math.pi, math.pi, 513, dtype=x.dtype, device=x.device)
        # the sine of half a difference changes its sign where angles agree modulo 2π
        side = (miss(grid, radius[..., None], wanted[..., None]) / 2).sin() > 0
        sample, arm, cell = torch.nonzero(side[..., :-1] != side[..., 1:], as_tuple=True)
        radius, wanted, before = radius[sample, arm], wanted[sample, arm], side[sample, arm, cell]
        low, high = grid[cell], grid[cell + 1]
        for _ in range(48):
            middle = (low + high) / 2
            stay = ((miss(middle, radius, wanted) / 2).sin() > 0) == before
            low, high = torch.where(stay, middle, low), torch.where(stay, high, middle)
        # one step of Newton's method, for the derivative of the root with respect to x
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
        """The entropy, as a mean over n samples."""
        values = -self.log_prob(self.sample(n, generator, dtype=torch.float64))
        return Estimate(float(values.mean()), float(values.std()) / math.sqrt(n))


def ring_of_gaussians(
    d: int, *, components: int = 8, radius: float = 4.0, variance: float = 0.3
) -> Mixture:
    """The equal mixture of Gaussians N(μₖ, variance·I), μₖ = radius·(cos φₖ, sin φₖ, 0, …, 0).

    The angles are φₖ = 2πk/components.

    Reference: ruthotto2020machine.
    """
    if d < 2:
        raise ValueError(f"d must be at least 2 for a circle of means, got {d}")
    means = torch.zeros(components, d, dtype=torch.float64)
    means[:, :2] = radius * _circle(components)
    weights = torch.full((components,), 1 / components, dtype=torch.float64)
    return Mixture(weights, means, torch.full_like(means, math.sqrt(variance)))


def eight_gaussians() -> Mixture:
    """The ring of 8 Gaussians of radius 4 and standard deviation ½, all of it divided by √2.

    Published code divides by 1.414; here it is √2 = 1.41421356….
    """
    return ring_of_gaussians(2, radius=4 / math.sqrt(2), variance=0.5**2 / 2)


def swissroll(nodes: int = 256) -> Mixture:
    """The spiral t(cos t, sin t)/5, t uniform in [3π/2, 9π/2], with noise of deviation 0.2."""
    u, w = _gauss_legendre(nodes)
    t = 1.5 * math.pi * (1 + 2 * u)
    return _noisy(t[:, None] * torch.stack([t.cos(), t.sin()], 1) / 5, w, 0.2)


def circles(nodes: int = 128) -> Mixture:
    """The two circles of radius 3 and 1.5, equally likely, with noise of deviation 0.24."""
    circle = 3 * _circle(nodes)
    return _noisy(torch.cat([circle, circle / 2]), torch.ones_like(circle[:, 0]).repeat(2), 0.24)


def moons(nodes: int = 128) -> Mixture:
    """The half circles 2(cos φ, sin φ) − (1, 0.2) and 2(1 − cos φ, ½ − sin φ) − (1, 0.2).

    They are equally likely, φ is uniform in [0, π] and the noise has deviation 0.2.
    """
    u, w = _gauss_legendre(nodes)
    up = torch.stack([(math.pi * u).cos(), (math.pi * u).sin()], 1)
    ends, centre = up.new_tensor([1.0, 0.5]), up.new_tensor([1.0, 0.2])
    return _noisy(2 * torch.cat([up, ends - up]) - centre, w.repeat(2), 0.2)


def two_spirals(nodes: int = 512) -> Mixture:
    """The spirals ±(t/3)(−cos t, sin t), t = 3π√u, u uniform in [0, 1], with noise 0.1.

    Published code shifts each point by a uniform vector in [0, 1/6]² too, or by its negative on the
    second arm; here the noise is Gaussian alone.
    """
    u, w = _gauss_legendre(nodes)
    t = 3 * math.pi * u  # quadrature in t, whose density grows like t
    arm = t[:, None] * torch.stack([-t.cos(), t.sin()], 1) / 3
    return _noisy(torch.cat([arm, -arm]), (u * w).repeat(2), 0.1)


def _circle(n: int) -> Tensor:
    angle = 2 * math.pi / n * torch.arange(n, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1)


def _noisy(points: Tensor, weights: Tensor, noise: float) -> Mixture:
    """The law of a point of a curve plus noise, as the mixture that quadrature makes of it.

    Where nodes lie closer than the noise is wide, the error is below that of rounding.
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
