"""Derivatives of batched functions, and the test that a derivative is right."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap


class Transformed(NamedTuple):
    """An image and the logarithm of the determinant of the Jacobian that leads to it."""

    z: Float[Tensor, "batch d"]
    log_det: Float[Tensor, " batch"]


def standard_normal_log_prob(z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """The value log N(z; 0, I) = −½‖z‖² − d/2 log 2π."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


class Divergence(NamedTuple):
    """A vector field and its divergence at the same points."""

    value: Float[Tensor, "batch d"]
    divergence: Float[Tensor, " batch"]


def divergence(v: Callable[[Tensor], Tensor], x: Float[Tensor, "batch d"]) -> Divergence:
    """The value v(x) and ∇·v(x) = Σᵢ ∂vᵢ/∂xᵢ, exact, for d vector–Jacobian products.

    v must treat the samples of the batch independently.
    """
    value, pullback, *_ = vjp(v, x)
    # one row of each sample's Jacobian a product, all products in one batch
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None, :].expand(-1, *x.shape)
    (rows,) = vmap(pullback)(basis)
    return Divergence(value, rows.diagonal(dim1=0, dim2=2).sum(-1))


def hutchinson(
    v: Callable[[Tensor], Tensor], x: Float[Tensor, "batch d"], eps: Float[Tensor, "batch d"]
) -> Divergence:
    """The value v(x) and εᵀ(∂v/∂x)ε, an unbiased estimate of ∇·v(x) when E[εεᵀ] = I.

    One vector–Jacobian product. Independent signs ±1 have the least variance among independent
    entries: 2 Σ_{i≠j} S_ij² with S the symmetric part of ∂v/∂x.

    Reference: hutchinson1989stochastic.
    """
    value, pullback, *_ = vjp(v, x)
    (eps_jacobian,) = pullback(eps)
    return Divergence(value, (eps_jacobian * eps).sum(-1))


class TaylorErrors(NamedTuple):
    """Step sizes h and the errors of the two shortest Taylor expansions."""

    h: Float[Tensor, " steps"]
    zeroth: Float[Tensor, " steps"]
    first: Float[Tensor, " steps"]


def taylor_errors(
    f: Callable[[Tensor], Tensor],
    df: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    dx: Tensor,
    steps: int = 10,
) -> TaylorErrors:
    """The errors ‖f(x + h dx) − f(x)‖ and ‖f(x + h dx) − f(x) − h df(x, dx)‖, h = 1, ½, ¼, etc.

    A right derivative makes them fall like h and h² until round-off; a wrong one, both like h.
    """
    f0, slope = f(x), df(x, dx)
    h = 0.5 ** torch.arange(steps, dtype=x.dtype, device=x.device)
    change = [f(x + hk * dx) - f0 for hk in h]
    zeroth = torch.stack([c.norm() for c in change])
    first = torch.stack([(c - hk * slope).norm() for c, hk in zip(change, h, strict=True)])
    return TaylorErrors(h, zeroth, first)
