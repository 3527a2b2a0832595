"""Divergences of batched functions, and a Taylor test for derivatives."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp, vmap

from .stepping import as_tensor


class Transformed(NamedTuple):
    """The image z of each sample under a map, and log |det ∂z/∂x| there."""

    z: Float[Tensor, "batch d"]
    log_det: Float[Tensor, " batch"]


def standard_normal_log_prob(z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """The log density log N(z; 0, I) = −½‖z‖² − d/2 log 2π of each sample."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


class Divergence(NamedTuple):
    """The values of a vector field and of its divergence at each sample."""

    value: Float[Tensor, "batch d"]
    divergence: Float[Tensor, " batch"]


def divergence(v: Callable[[Tensor], Tensor], x: Float[Tensor, "batch d"]) -> Divergence:
    """The value v(x) and the exact ∇·v(x) = Σᵢ ∂vᵢ/∂xᵢ, from d vector–Jacobian products.

    v must treat the samples of the batch independently.
    """
    value, pullback, *_ = vjp(lambda x: as_tensor(v(x), "v(x)"), x)
    # product i gives row i of every sample's Jacobian; one batch of d products is fastest
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None, :].expand(-1, *x.shape)
    (rows,) = vmap(pullback)(basis)
    return Divergence(value, rows.diagonal(dim1=0, dim2=2).sum(-1))


def hutchinson(
    v: Callable[[Tensor], Tensor], x: Float[Tensor, "batch d"], eps: Float[Tensor, "batch d"]
) -> Divergence:
    """The value v(x) and εᵀ(∂v/∂x)ε, an unbiased estimate of ∇·v(x) when E[εεᵀ] = I.

    The estimate costs one vector–Jacobian product. Among random ε with independent entries, signs
    ±1 have the smallest variance, 2 Σ_{i≠j} S_ij², where S is the symmetric part of ∂v/∂x.

    Reference: hutchinson1989stochastic.
    """
    value, pullback, *_ = vjp(lambda x: as_tensor(v(x), "v(x)"), x)
    (eps_jacobian,) = pullback(eps)
    return Divergence(value, (eps_jacobian * eps).sum(-1))


class TaylorErrors(NamedTuple):
    """Step sizes h and the errors of the Taylor expansions of orders zero and one."""

    h: Float[Tensor, " steps"]
    zeroth: Float[Tensor, " steps"]
    first: Float[Tensor, " steps"]


def taylor_errors(
    f: Callable[[Tensor], Tensor],
    df: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "*shape"],
    dx: Float[Tensor, "*shape"],
    steps: int = 10,
) -> TaylorErrors:
    """The errors ‖f(x + h dx) − f(x)‖ and ‖f(x + h dx) − f(x) − h df(x, dx)‖, h = 1, ½, ¼, etc.

    If `df` is the derivative of f, the first error is O(h) and the second O(h²), until rounding
    errors dominate. If `df` is wrong, both are O(h).
    """
    f0, slope = as_tensor(f(x), "f(x)"), as_tensor(df(x, dx), "df(x, dx)")
    h = 0.5 ** torch.arange(steps, dtype=x.dtype, device=x.device)
    change = [f(x + hk * dx) - f0 for hk in h]
    zeroth = torch.stack([c.norm() for c in change])
    first = torch.stack([(c - hk * slope).norm() for c, hk in zip(change, h, strict=True)])
    return TaylorErrors(h, zeroth, first)
