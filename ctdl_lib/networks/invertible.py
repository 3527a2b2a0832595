"""Invertible residual networks: layers x + g(x) with a contraction g, their inverse and log det."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jacrev, vjp, vmap

from ..dynamics.calculus import Transformed

Function = Callable[[Tensor], Tensor]


class Contraction(nn.Module):
    """The map g(x) = V tanh(⋯ tanh(W₁x + b₁) ⋯) + b_L whose Lipschitz constant is at most c < 1.

    Every matrix W is used as W / max(1, ‖W‖₂/κ) with κ = c^(1/L), L being the number of matrices
    and ‖W‖₂ the exact spectral norm (a singular value decomposition in each call: use it for small
    matrices). The bound is seldom attained, since the worst directions of the layers rarely meet.

    Args of the constructor: dimension `d`, `width` and number `hidden` of the hidden layers, `c`.

    Raises:
        ValueError: c is not between 0 and 1, so that x + g(x) need not have an inverse.

    Reference: behrmann2019invertible.
    """

    def __init__(
        self,
        d: int,
        *,
        width: int,
        hidden: int = 2,
        c: float = 0.9,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not 0 < c < 1:
            raise ValueError(f"c={c} must lie in (0, 1), else x + g(x) need not have an inverse")
        self.c = c
        sizes = [d, *[width] * hidden, d]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n, m in pairwise(sizes):
            self.weights.append(torch.randn(m, n, generator=generator) / n**0.5)
            self.biases.append(torch.zeros(m))

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The value g(x)."""
        kappa = self.c ** (1 / len(self.weights))
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            norm = torch.linalg.matrix_norm(W, ord=2)
            x = torch.addmm(b, torch.tanh(x) if i else x, W.T / (norm / kappa).clamp(min=1))
        return x


class InvertibleResNet(nn.Module):
    """The map that applies x ↦ x + g(x) for each of its contractions g, one after the other.

    Reference: behrmann2019invertible.
    """

    def __init__(self, contractions: Iterable[Contraction]):
        super().__init__()
        self.contractions = nn.ModuleList(contractions)

    def forward(
        self, x: Float[Tensor, "batch d"], log_det: Callable[[Function, Tensor], Tensor]
    ) -> Transformed:
        """The image z of x, and the sum of log_det(g, ·), exact or estimated, over all layers."""
        total = x.new_zeros(len(x))
        for g in self.contractions:
            total, x = total + log_det(g, x), x + g(x)
        return Transformed(x, total)

    def inverse(self, z: Float[Tensor, "batch d"], *, iterations: int) -> Float[Tensor, "batch d"]:
        """The point that is mapped to z, each layer inverted by so many fixed-point iterations."""
        for g in self.contractions[::-1]:
            z = inverse(g, z, float(g.c), iterations=iterations).x  # pyright: ignore[reportArgumentType]
        return z


class Inverse(NamedTuple):
    """An approximate inverse and a bound of its error, one number a sample."""

    x: Float[Tensor, "batch d"]
    error_bound: Float[Tensor, " batch"]


def inverse(g: Function, y: Float[Tensor, "batch d"], c: float, *, iterations: int) -> Inverse:
    """The solution of x + g(x) = y by `iterations` steps of x ← y − g(x), started at x = y.

    With Lip(g) ≤ c the error falls at least like cⁿ, and never exceeds c/(1 − c) ‖xₙ − xₙ₋₁‖.

    Raises:
        ValueError: c is not in [0, 1), or no iteration is asked for.

    Reference: behrmann2019invertible.
    """
    if not 0 <= c < 1:
        raise ValueError(f"c={c} must lie in [0, 1): the iteration converges for contractions only")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    x, before = y, y
    for _ in range(iterations):
        x, before = y - g(x), x
    return Inverse(x, c / (1 - c) * (x - before).norm(dim=-1))


def log_det(g: Function, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """The logarithm of det(I + ∂g/∂x), exact, for d vector–Jacobian products and d³ operations."""
    J = vmap(jacrev(lambda x: g(x[None])[0]))(x)
    return torch.linalg.slogdet(torch.eye(x.shape[1], dtype=x.dtype, device=x.device) + J)[1]


def log_det_series(
    g: Function, x: Float[Tensor, "batch d"], eps: Float[Tensor, "batch d"], *, terms: int
) -> Float[Tensor, " batch"]:
    """The sum Σₖ (−1)ᵏ⁺¹ εᵀJᵏε/k of the first `terms` terms, J = ∂g/∂x, for log det(I + J).

    In expectation over ε with E[εεᵀ] = I it is the truncated series of the traces; what is cut off
    is a bias of at most d cⁿ⁺¹/((n + 1)(1 − c)) for n terms and Lip(g) ≤ c.

    Reference: behrmann2019invertible.
    """
    return _series(g, x, eps, [(-1) ** (k + 1) / k for k in range(1, terms + 1)])


def log_det_roulette(
    g: Function,
    x: Float[Tensor, "batch d"],
    eps: Float[Tensor, "batch d"],
    generator: torch.Generator,
    *,
    always: int = 2,
    stop: float = 0.5,
) -> Float[Tensor, " batch"]:
    """The series of `log_det_series` cut at random, each term weighed so that nothing is lost.

    The first `always` terms are taken, and each further one if the wheel does not say `stop`; so
    term k is reached with probability pₖ = (1 − stop)^(k − always), and is divided by pₖ. The
    expectation over ε and the number of terms is log det(I + J) without bias.

    Raises:
        ValueError: `stop` is not in (0, 1), or `always` is negative.

    Reference: chen2019residual.
    """
    if not 0 < stop < 1 or always < 0:
        raise ValueError(f"stop must lie in (0, 1) and always be ≥ 0, got {stop=}, {always=}")
    terms = always
    while float(torch.rand((), generator=generator)) >= stop:
        terms += 1
    reached = [(1 - stop) ** max(0, k - always) for k in range(1, terms + 1)]
    return _series(g, x, eps, [(-1) ** (k + 1) / k / p for k, p in enumerate(reached, 1)])


def _series(g: Function, x: Tensor, eps: Tensor, weights: list[float]) -> Tensor:
    """The sum Σₖ wₖ εᵀJᵏε, one vector–Jacobian product a term."""
    _, pullback, *_ = vjp(g, x)
    total, v = x.new_zeros(len(x)), eps
    for weight in weights:
        (v,) = pullback(v)
        total = total + weight * (v * eps).sum(-1)
    return total
