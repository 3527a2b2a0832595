"""Problems of simulation-based inference whose likelihood is known: find x from what it caused.

Parameters x (n, d) have a prior; y (n, m) is drawn with the noise of a 64-bit seed for each row.
"""

import abc
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt64
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from ctdl_lib.potentials import AutodiffPotential, Potential
from ctdl_lib.problems.densities import Density, Estimate, Mixture

from .campaigns import Simulated

Seeds = UInt64[np.ndarray, " n"]


Values = Float[Tensor, " n"]


@dataclass(frozen=True)
class BoxUniform(Density):
    """The uniform density on the box [low₁, high₁] × … × [low_d, high_d].

    Raises:
        ValueError: the bounds differ in number, are not finite, or some low is not below its high.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        if not self.low or len(self.low) != len(self.high):
            got = f"{len(self.low)} and {len(self.high)}"
            raise ValueError(f"low and high must have one entry for each coordinate, got {got}")
        for low, high in zip(self.low, self.high, strict=True):
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"low must be below high, both finite, got {low} and {high}")

    @property
    def d(self) -> int:
        """The number of coordinates."""
        return len(self.low)

    def sample(
        self, n: int, generator: torch.Generator, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n d"]:
        """Draw n samples on the generator's device, in torch's default dtype if none is given."""
        u = torch.rand(n, self.d, generator=generator, device=generator.device, dtype=dtype)
        low, high = u.new_tensor(self.low), u.new_tensor(self.high)
        # rounding may push a point above the bound, where the density is zero
        return torch.minimum(low + (high - low) * u, high)

    def inside(self, x: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
        """Where x lies in the box, its faces included; NaN lies outside."""
        if x.dim() != 2 or x.shape[1] != self.d:
            raise ValueError(f"x must have shape (n, {self.d}), got {tuple(x.shape)}")
        return ((x >= x.new_tensor(self.low)) & (x <= x.new_tensor(self.high))).all(1)

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The logarithm −Σᵢ log(highᵢ − lowᵢ) in the box and −∞ outside."""
        return torch.where(self.inside(x), -self._log_volume(), -math.inf).to(x)

    def entropy(self, n: int, generator: torch.Generator) -> Estimate:
        """The entropy Σᵢ log(highᵢ − lowᵢ), without sampling."""
        return Estimate(self._log_volume(), 0.0)

    def _log_volume(self) -> float:
        return math.fsum(math.log(b - a) for a, b in zip(self.low, self.high, strict=True))


def uniforms(seeds: Seeds, k: int) -> Float[np.ndarray, "n k"]:
    """The k random numbers in (0, 1) that belong to each seed, the first k of any larger number.

    Number j of a seed s is h(h(s) + jγ)/2⁶⁴ with the hash h and the odd γ of SplitMix64: a counter
    in place of a state, so that all rows are drawn at once and none depends on another. Hashed
    twice, neighbouring seeds are as good as random ones.

    Raises:
        TypeError: the seeds are no array of 64-bit integers without sign.

    Reference: steele2014fast.
    """
    if not isinstance(seeds, np.ndarray) or seeds.dtype != np.uint64:
        kind = getattr(seeds, "dtype", type(seeds).__name__)
        raise TypeError(f"seeds must be an array of dtype uint64, got {kind}: use astype")
    counter = np.arange(1, k + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = _hash(_hash(seeds)[:, None] + counter)
    # 52 bits and a half: 0 and 1 never occur, and nothing is rounded
    return ((bits >> np.uint64(12)) + 0.5) * 2.0**-52


def normals(seeds: Seeds, k: int) -> Float[np.ndarray, "n k"]:
    """The k standard normal numbers that belong to each seed: Φ⁻¹ of its uniform ones."""
    return torch.special.ndtri(torch.from_numpy(uniforms(seeds, k))).numpy()


def _hash(z: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, a bijection of the 64-bit integers."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Gaussian(NamedTuple):
    """Normal laws with the rows of `mean` as means and one covariance matrix."""

    mean: Float[Tensor, "n d"]
    covariance: Float[Tensor, "d d"]


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """The problem y = Ax + noise·ε with x ~ N(0, I) and ε ~ N(0, I), where all laws are normal.

    Raises:
        ValueError: the matrix A is not (m, d) with finite entries, or noise is not positive.
    """

    matrix: Float[Tensor, "m d"]
    noise: float

    def __post_init__(self):
        if self.matrix.dim() != 2 or not self.matrix.isfinite().all():
            raise ValueError(f"matrix must be (m, d) and finite, got {tuple(self.matrix.shape)}")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise must be positive and finite, got {self.noise}")

    @property
    def prior(self) -> Mixture:
        """The prior N(0, I)."""
        zero = torch.zeros(1, self.matrix.shape[1], dtype=torch.float64)
        return Mixture(torch.ones_like(zero[:, 0]), zero, torch.ones_like(zero))

    def simulate(self, x: Float[Tensor, "n d"], seeds: Seeds) -> Simulated:
        """Draw y = Ax + noise·ε for each row of x, with the noise of its seed."""
        _check_runs(x, seeds, self.matrix.shape[1])
        epsilon = torch.from_numpy(normals(seeds, self.matrix.shape[0])).to(x)
        # the last bit of a product of matrices would depend on the number of rows
        mean = (x[:, None] * self.matrix.to(x)).sum(2)
        return _simulated(mean + self.noise * epsilon)

    def log_likelihood(self, x: Float[Tensor, "n d"], y: Float[Tensor, "#n m"]) -> Values:
        """The logarithm of N(y; Ax, noise²I)."""
        error = (y - x @ self.matrix.to(x).T) / self.noise
        scale = math.log(math.sqrt(2 * math.pi) * self.noise)
        return -0.5 * error.square().sum(1) - self.matrix.shape[0] * scale

    def posterior(self, y: Float[Tensor, "n m"]) -> Gaussian:
        """The law N(ΣAᵀy/noise², Σ) of x given y, Σ⁻¹ = I + AᵀA/noise²."""
        A, rate = self.matrix.double(), self.noise**-2
        covariance = torch.linalg.inv(self._precision())
        return Gaussian(y @ (rate * A @ covariance).to(y), covariance.to(y))

    def posterior_log_prob(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n m"]) -> Values:
        """The logarithm of the posterior density of each x given its y."""
        return MultivariateNormal(*self.posterior(y)).log_prob(x)

    def posterior_sample(
        self, y: Float[Tensor, "n m"], draws: int, generator: torch.Generator
    ) -> Float[Tensor, "n draws d"]:
        """Draw from the posterior of each y."""
        mean, covariance = self.posterior(y)
        shape = (len(y), draws, mean.shape[1])
        z = torch.randn(shape, generator=generator, device=generator.device, dtype=y.dtype).to(y)
        return mean[:, None] + z @ torch.linalg.cholesky(covariance).T

    def posterior_entropy(self) -> float:
        """The entropy d log(2πe)/2 + log det Σ/2 of each posterior, the least −E log p(x | y)."""
        rate = torch.linalg.eigvalsh(self._precision())
        return -0.5 * float((rate / (2 * math.pi * math.e)).log().sum())

    def potential(self) -> Potential:
        """The potential Φ(t, x; y) whose velocity −∇Φ moves the posterior of y to N(0, I).

        It moves at least cost E∫½‖v‖² dt: along straight lines from x to Σ^(−1/2)(x − mean), at
        constant speed, so that ∂ₜΦ − ½‖∇Φ‖² = 0.
        """
        rate, basis = torch.linalg.eigh(self._precision())
        gain = self.matrix.double() @ basis / (self.noise**2 * rate)
        return AutodiffPotential(_StraightPaths(basis, gain, rate.sqrt()))

    def _precision(self) -> Tensor:
        A = self.matrix.double()
        return torch.eye(A.shape[1], dtype=A.dtype, device=A.device) + A.T @ A / self.noise**2


class _StraightPaths(nn.Module):
    """The value function of the paths (1 − t)x + ts(x − mean), in the basis where s is diagonal."""

    basis: Tensor
    gain: Tensor
    stretch: Tensor

    def __init__(self, basis: Tensor, gain: Tensor, stretch: Tensor):
        super().__init__()
        for name, value in (("basis", basis), ("gain", gain), ("stretch", stretch)):
            self.register_buffer(name, value)

    def forward(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        t, s, shift = t[:, None], self.stretch.to(x), self.stretch.to(x) * (y @ self.gain.to(x))
        start = (x @ self.basis.to(x) + t * shift) / (1 + t * (s - 1))
        velocity = (s - 1) * start - shift
        # at t = 0 the slope is −velocity; along a path the value falls by ½‖velocity‖² dt
        return (start * (shift - 0.5 * (s - 1) * start) - 0.5 * t * velocity**2).sum(1)


def hilbert(m: int, d: int, *, noise: float) -> LinearGaussian:
    """The linear problem with the Hilbert matrix A, Aᵢⱼ = 1/(i + j − 1), of m rows and d columns.

    Its singular values fall fast: data say much about one direction of x and little about others.
    """
    if min(m, d) < 1:
        raise ValueError(f"m and d must be at least 1, got {m} and {d}")
    i, j = torch.arange(1.0, m + 1, dtype=torch.float64), torch.arange(d, dtype=torch.float64)
    return LinearGaussian(1 / (i[:, None] + j), noise)


def gaussian_kl(
    mean0: Float[Tensor, "*batch d"],
    covariance0: Float[Tensor, "*#batch d d"],
    mean1: Float[Tensor, "*batch d"],
    covariance1: Float[Tensor, "*#batch d d"],
) -> Float[Tensor, "*batch"]:
    """The divergence KL(N₀ ‖ N₁) = ½(tr Σ₁⁻¹Σ₀ + ‖μ₁ − μ₀‖²_Σ₁⁻¹ − d + log det Σ₁/det Σ₀).

    Raises:
        ValueError: a covariance matrix is not positive definite.
    """
    # other libraries switch the validation off for all of torch
    first = MultivariateNormal(mean0, covariance0, validate_args=True)
    second = MultivariateNormal(mean1, covariance1, validate_args=True)
    return kl_divergence(first, second)


class Reference(NamedTuple):
    """One observation y, 10,000 samples of its posterior, and the parameters that caused it."""

    y: Float[Tensor, " m"]
    posterior: Float[Tensor, "n d"]
    truth: Float[Tensor, " d"]


class Task(abc.ABC):
    """A task of the benchmark `sbibm`: ten observations of it come with posterior samples."""

    name: ClassVar[str]
    prior: ClassVar[BoxUniform]

    @abc.abstractmethod
    def simulate(self, x: Float[Tensor, "n d"], seeds: Seeds) -> Simulated:
        """Draw y for each row of x, with the noise of its seed."""

    @abc.abstractmethod
    def log_likelihood(self, x: Float[Tensor, "n d"], y: Float[Tensor, "#n m"]) -> Values:
        """The logarithm of the density of y given x; one y serves all x."""

    def reference(self, observation: int) -> Reference:
        """Read observation 1, …, 10 from the files of the package `sbibm`, which is not imported.

        Raises:
            ModuleNotFoundError: the package is not installed.
            ValueError: there is no such observation.

        Reference: lueckmann2021benchmarking.
        """
        if observation not in range(1, 11):
            raise ValueError(f"observation must be 1, 2, … or 10, got {observation}")
        folder = _sbibm() / "tasks" / self.name / "files" / f"num_observation_{observation}"
        names = "observation.csv", "reference_posterior_samples.csv.bz2", "true_parameters.csv"
        tables = (np.loadtxt(folder / name, delimiter=",", skiprows=1) for name in names)
        return Reference(*(torch.as_tensor(t, dtype=torch.get_default_dtype()) for t in tables))


@dataclass(frozen=True)
class TwoMoons(Task):
    """The task y = (r cos a + ¼ − |x₁ + x₂|/√2, r sin a + (x₂ − x₁)/√2), x uniform in [−1, 1]².

    The angle a is uniform in (−π/2, π/2) and r ~ N(0.1, 0.01²). Given y, x lies on two crescents.
    The ten shipped posteriors are exact. The likelihood in `sbibm` 1.1.0 is not the density of its
    simulator: it lacks the factor 1/(πr).

    Reference: lueckmann2021benchmarking.
    """

    name: ClassVar[str] = "two_moons"
    prior: ClassVar[BoxUniform] = BoxUniform((-1.0, -1.0), (1.0, 1.0))

    def simulate(self, x: Float[Tensor, "n 2"], seeds: Seeds) -> Simulated:
        """Draw y = p + (−|x₁ + x₂|, x₂ − x₁)/√2 for each row of x, p on half a ring."""
        _check_runs(x, seeds, 2)
        a, r = math.pi * (uniforms(seeds, 1) - 0.5), 0.1 + 0.01 * normals(seeds, 2)[:, 1:]
        p = np.hstack([r * np.cos(a) + 0.25, r * np.sin(a)])
        return _simulated(torch.from_numpy(p).to(x) + self._centre(x))

    def log_likelihood(self, x: Float[Tensor, "n 2"], y: Float[Tensor, "#n 2"]) -> Values:
        """The logarithm of N(r; 0.1, 0.01²)/(π|r|), with r < 0 behind the half ring."""
        ray = y - self._centre(x) - x.new_tensor([0.25, 0.0])
        r = torch.where(ray[:, 0] < 0, -1.0, 1.0).to(x) * ray.norm(dim=1)
        scale = math.log(math.sqrt(2 * math.pi) * 0.01 * math.pi)
        return -0.5 * ((r - 0.1) / 0.01).square() - r.abs().log() - scale

    @staticmethod
    def _centre(x: Tensor) -> Tensor:
        return torch.stack([-(x[:, 0] + x[:, 1]).abs(), x[:, 1] - x[:, 0]], 1) / math.sqrt(2)


@dataclass(frozen=True)
class GaussianMixture(Task):
    """The task y ~ ½N(x, I) + ½N(x, 0.01 I), x uniform in [−10, 10]².

    The ten shipped posteriors are exact. In `sbibm` 1.0.7 the simulator drew one of the two parts
    for all rows of a batch, so that its results may be wrong; 1.1.0 draws one for each row.

    Reference: lueckmann2021benchmarking.
    """

    name: ClassVar[str] = "gaussian_mixture"
    prior: ClassVar[BoxUniform] = BoxUniform((-10.0, -10.0), (10.0, 10.0))

    def simulate(self, x: Float[Tensor, "n 2"], seeds: Seeds) -> Simulated:
        """Draw y = x + sε for each row of x, with s = 1 or 0.1."""
        _check_runs(x, seeds, 2)
        scale = np.where(uniforms(seeds, 1) < 0.5, 1.0, 0.1)
        return _simulated(x + torch.from_numpy(scale * normals(seeds, 3)[:, 1:]).to(x))

    def log_likelihood(self, x: Float[Tensor, "n 2"], y: Float[Tensor, "#n 2"]) -> Values:
        """The logarithm of ½N(y; x, I) + ½N(y; x, 0.01 I)."""
        s = x.new_tensor([1.0, 0.1])
        square = (y - x).square().sum(1, keepdim=True)
        return (-0.5 * square / s**2 - (4 * math.pi * s**2).log()).logsumexp(1)


@dataclass(frozen=True)
class SLCP(Task):
    """The task of four points y ~ N((x₁, x₂), S) in the plane, x uniform in [−3, 3]⁵.

    The standard deviations in S are x₃² and x₄², their correlation is tanh x₅, and 10⁻⁶ is added to
    both variances. A simple likelihood, a complex posterior: the signs of x₃ and x₄ do not matter.

    Reference: lueckmann2021benchmarking.
    """

    name: ClassVar[str] = "slcp"
    prior: ClassVar[BoxUniform] = BoxUniform((-3.0,) * 5, (3.0,) * 5)

    def simulate(self, x: Float[Tensor, "n 5"], seeds: Seeds) -> Simulated:
        """Draw the four points (y₁, y₂), (y₃, y₄), … for each row of x."""
        _check_runs(x, seeds, 5)
        z = torch.from_numpy(normals(seeds, 8)).to(x).reshape(-1, 4, 2)
        a, b, c = (entry[:, None] for entry in self._cholesky(x))
        noise = torch.stack([a * z[..., 0], b * z[..., 0] + c * z[..., 1]], 2)
        return _simulated((x[:, None, :2] + noise).flatten(1))

    def log_likelihood(self, x: Float[Tensor, "n 5"], y: Float[Tensor, "#n 8"]) -> Values:
        """The logarithm of the product of the densities of the four points."""
        a, b, c = (entry[:, None] for entry in self._cholesky(x))
        error = y.reshape(-1, 4, 2) - x[:, None, :2]
        first = error[..., 0] / a
        second = (error[..., 1] - b * first) / c
        return -(0.5 * (first**2 + second**2) + (2 * math.pi * a * c).log()).sum(1)

    @staticmethod
    def _cholesky(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The entries a, b, c of the factor of S with rows (a, 0) and (b, c)."""
        s1, s2, rho = x[:, 2] ** 2, x[:, 3] ** 2, x[:, 4].tanh()
        a = (s1**2 + 1e-6).sqrt()
        share = rho * s1 / a
        return a, share * s2, ((1 - share**2) * s2**2 + 1e-6).sqrt()


def _simulated(y: Tensor) -> Simulated:
    completed = y.isfinite().all(1)
    return Simulated(torch.where(completed[:, None], y, math.nan), completed)


def _check_runs(x: Tensor, seeds: np.ndarray, d: int) -> None:
    finite = bool(x.isfinite().all())
    if x.dim() != 2 or x.shape[1] != d or not finite:
        raise ValueError(f"x must be (n, {d}) and finite, got {tuple(x.shape)}, finite: {finite}")
    if len(seeds) != len(x):
        raise ValueError(f"every row of x needs one seed, got {len(x)} rows, {len(seeds)} seeds")


def _sbibm() -> Path:
    """The folder of the package, found without its import, which needs packages of its own."""
    spec = find_spec("sbibm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "reference posteriors come with the package sbibm, of which only the files are needed:"
            " pip install --no-deps sbibm==1.1.0",
            name="sbibm",
        )
    return Path(spec.submodule_search_locations[0])
