"""Invertible residual networks: layers x + g(x) with a contraction g, their inverse and log det."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jacrev, vjp, vmap

from ctdl_lib.dynamics.calculus import Transformed

Function = Callable[[Tensor], Tensor]


class Contraction(nn.Module):
    """The map g(x) = V tanh(⋯ tanh(W₁x + b₁) ⋯) + b_L whose Lipschitz constant is at most c < 1.

    Each of the L matrices W is divided by max(1, ‖W‖₂/κ) with κ = c^(1/L). The spectral norm ‖W‖₂
    is exact and costs a singular value decomposition per call, so matrices should be small. The
    actual Lipschitz constant is usually below c, because the leading singular vectors of successive
    layers are rarely aligned.

    Args of the constructor: the dimension `d`; the `width` and number `hidden` of hidden layers;
    the bound `c`; `generator` draws the weights.

    Raises:
        ValueError: c is not in (0, 1), so that x + g(x) need not be invertible.

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
    """The composition of the maps x ↦ x + g(x) over the given contractions g.

    Reference: behrmann2019invertible.
    """

    def __init__(self, contractions: Iterable[Contraction]):
        super().__init__()
        self.contractions = nn.ModuleList(contractions)

    def forward(
        self, x: Float[Tensor, "batch d"], log_det: Callable[[Function, Tensor], Tensor]
    ) -> Transformed:
        """The image z of x and log det ∂z/∂x, the sum of log_det(g, ·) over all layers.

        `log_det` is `log_det` of this module or one of its two estimates.
        """
        total = x.new_zeros(len(x))
        for g in self.contractions:
            total, x = total + log_det(g, x), x + g(x)
        return Transformed(x, total)

    def inverse(self, z: Float[Tensor, "batch d"], *, iterations: int) -> Float[Tensor, "batch d"]:
        """The point that is mapped to z, from `iterations` fixed-point iterations per layer."""
        for g in self.contractions[::-1]:
            z = inverse(g, z, float(g.c), iterations=iterations).x  # pyright: ignore[reportArgumentType]
        return z


class Inverse(NamedTuple):
    """An approximate inverse x and a bound on its error in the norm, for each sample."""

    x: Float[Tensor, "batch d"]
    error_bound: Float[Tensor, " batch"]


def inverse(g: Function, y: Float[Tensor, "batch d"], c: float, *, iterations: int) -> Inverse:
    """The solution of x + g(x) = y by `iterations` steps of x ← y − g(x), started at x = y.

    If Lip(g) ≤ c, the error after n iterations is O(cⁿ) and at most c/(1 − c) ‖xₙ − xₙ₋₁‖.

    Raises:
        ValueError: c is not in [0, 1), or `iterations` is below 1.

    Reference: behrmann2019invertible.
    """
    if not 0 <= c < 1:
        raise ValueError(f"c={c} must lie in [0, 1): only for contractions the iteration converges")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    x, before = y, y
    for _ in range(iterations):
        x, before = y - g(x), x
    return Inverse(x, c / (1 - c) * (x - before).norm(dim=-1))


def log_det(g: Function, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """The exact log |det(I + ∂g/∂x)|, from d vector–Jacobian products and O(d³) operations."""
    J = vmap(jacrev(lambda x: g(x[None])[0]))(x)
    return torch.linalg.slogdet(torch.eye(x.shape[1], dtype=x.dtype, device=x.device) + J)[1]


def log_det_series(
    g: Function, x: Float[Tensor, "batch d"], eps: Float[Tensor, "batch d"], *, terms: int
) -> Float[Tensor, " batch"]:
    """The estimate Σₖ (−1)ᵏ⁺¹ εᵀJᵏε/k of log det(I + J), k = 1, …, `terms`, where J = ∂g/∂x.

    Its expectation over ε with E[εεᵀ] = I is the truncated series Σₖ (−1)ᵏ⁺¹ tr(Jᵏ)/k. If
    Lip(g) ≤ c, the truncation after n terms causes a bias of at most d cⁿ⁺¹/((n + 1)(1 − c)).

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
    """The series of `log_det_series` truncated at random, an unbiased estimate of log det(I + J).

    The first `always` terms are always summed. Before each further term the sum stops with
    probability `stop`. A term k > `always` is thus reached with probability
    pₖ = (1 − stop)^(k − always). It is divided by pₖ, so that the truncation causes no bias. The
    variance is finite if 1 − stop exceeds c² for a Lipschitz constant c of g.

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
    """The sum Σₖ wₖ εᵀJᵏε, from one vector–Jacobian product per term."""
    _, pullback, *_ = vjp(g, x)
    total, v = x.new_zeros(len(x)), eps
    for weight in weights:
        (v,) = pullback(v)
        total = total + weight * (v * eps).sum(-1)
    return total
