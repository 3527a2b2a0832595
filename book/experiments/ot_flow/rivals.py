"""Three other flows that are regularised by optimal transport, after papers the talk names."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vjp, vmap

from ctdl_lib.dynamics import integrate, standard_normal_log_prob
from ctdl_lib.generative import Flow
from ctdl_lib.metrics import check_samples
from ctdl_lib.potentials import Derivatives, Gradient, Potential


class Stationary(Potential):
    """The potential Φ(x) = φ(0, x), which does not depend on time: a Monge–Ampère flow's.

    Reference: zhang2018monge.
    """

    def __init__(self, potential: Potential):
        super().__init__()
        self.potential = potential

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        """The value Φ(x)."""
        return self.potential(0.0, x)

    def gradient(self, t: float | Tensor, x: Tensor) -> Gradient:
        """The value Φ, zero for ∂ₜΦ, and ∇Φ."""
        phi = self.potential.gradient(0.0, x)
        return phi._replace(dt=torch.zeros_like(phi.value))

    def derivatives(self, t: float | Tensor, x: Tensor, sigma: Any = None) -> Derivatives:
        """The value Φ, zero for ∂ₜΦ, ∇Φ and ΔΦ."""
        phi = self.potential.derivatives(0.0, x, sigma)
        return phi._replace(dt=torch.zeros_like(phi.value))


class Penalized(NamedTuple):
    """The position of each sample, and what has accumulated along its path."""

    x: Tensor
    penalty: Tensor


def generated(potential: Potential, z: Tensor, *, steps: int) -> Penalized:
    """The samples x(0) of ẋ = −∇Φ with x(1) = z, and ∫ (∂ₜΦ − ½‖∇Φ‖²)² dt along their paths.

    Reference: yang2020potential.
    """

    def rates(t: Any, s: Penalized) -> Penalized:
        phi = potential.gradient(t, s.x)
        residual = phi.dt - 0.5 * phi.dx.square().sum(1)
        return Penalized(-phi.dx, -residual.square())  # minus, since time runs from 1 to 0

    return integrate(rates, Penalized(z, z.new_zeros(len(z))), 1.0, 0.0, steps=steps)


def mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, bandwidth: float) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of x and y.

    The discrepancy is E k(X, X′) + E k(Y, Y′) − 2E k(X, Y) with the kernel
    k(x, y) = exp(−‖x − y‖²/(2 bandwidth²)). The estimate may be negative.

    Reference: gretton2012kernel, Lemma 6.
    """
    check_samples(x, y)
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")

    def total(a: Tensor, b: Tensor) -> float:
        # with matrix products the distance of a sample to itself would not be exactly zero
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return float(torch.exp(-0.5 * (distance / bandwidth) ** 2).sum(dtype=torch.float64))

    n, m = len(x), len(y)
    # the n pairs of a sample with itself, for which k(x, x) = 1, would cause a bias
    within_x = (total(x, x) - n) / (n * (n - 1))
    within_y = (total(y, y) - m) / (m * (m - 1))
    return within_x + within_y - 2 * total(x, y) / (n * m)


def kernel_distance(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """The unbiased estimate of the squared MMD of equally many points x and y, with a gradient.

    The kernel is the sum of exp(−‖x − y‖²/(2h²)) over the bandwidths h. `mmd` gives the same
    number for one bandwidth, to more digits and without a gradient.
    """
    n = len(x)

    def total(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.cdist(a, b).square()
        return torch.stack([(-squared / (2 * h * h)).exp().sum() for h in bandwidths]).sum()

    within = total(x, x) + total(y, y) - 2 * n * len(bandwidths)  # without pairs of a point itself
    return within / (n * (n - 1)) - 2 * total(x, y) / n**2


class Regularized(NamedTuple):
    """The position of each sample, ∫∇·v dt, ∫‖v‖² dt and ∫‖∂v/∂x‖² dt (Frobenius)."""

    x: Tensor
    log_det: Tensor
    kinetic: Tensor
    jacobian: Tensor


def regularized(velocity: nn.Module, x: Tensor, *, steps: int) -> Regularized:
    """The end of the paths of ẋ = v(t, x) from t = 0 to 1, with both regularisers of RNODE.

    In the plane the Jacobian costs two vector–Jacobian products, so that no probe is needed.

    Reference: finlay2020train.
    """
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None].expand(-1, *x.shape)

    def rates(t: Any, s: Regularized) -> Regularized:
        v, pullback, *_ = vjp(partial(velocity, t), s.x)
        (rows,) = vmap(pullback)(basis)  # (d, batch, d): row i of each Jacobian
        trace = rows.diagonal(dim1=0, dim2=2).sum(1)
        return Regularized(v, trace, v.square().sum(1), rows.square().sum((0, 2)))

    zero = x.new_zeros(len(x))
    return integrate(rates, Regularized(x, zero, zero, zero), 0.0, 1.0, steps=steps)


class Draw(NamedTuple):
    """What a training step draws: data and reference points."""

    x: Tensor
    z: Tensor


def monge_ampere_loss(flow: Flow, draw: Draw, steps: int) -> Tensor:
    """The mean NLL of a flow that is solved with fixed steps, the loss of Monge–Ampère flows."""
    fixed = Flow(flow.velocity, flow.d, solver={"steps": steps}, standardize=False)
    return -fixed.log_prob(draw.x).mean()


def generator_loss(
    flow: Flow, draw: Draw, steps: int, bandwidths: Sequence[float], distance: float, hjb: float
) -> dict[str, Tensor]:
    """The terms of a potential flow generator: squared MMD from the data, and penalty, weighted."""
    assert isinstance(flow.velocity, Potential)
    found = generated(flow.velocity, draw.z, steps=steps)
    mmd = kernel_distance(found.x, draw.x, bandwidths)
    return {"distance": distance * mmd, "hjb": hjb * found.penalty.mean()}


def rnode_loss(
    flow: Flow, draw: Draw, steps: int, kinetic: float, jacobian: float
) -> dict[str, Tensor]:
    """The three terms of RNODE: the mean NLL, and both regularisers with their weights."""
    end = regularized(flow.velocity, draw.x, steps=steps)
    return {
        "nll": -(standard_normal_log_prob(end.x) + end.log_det).mean(),
        "kinetic": kinetic * end.kinetic.mean(),
        "jacobian": jacobian * end.jacobian.mean(),
    }
