"""Whether a trained flow is a density, and where it goes wrong."""

import copy
import math
from functools import partial

import torch
import zuko
from torch import Tensor

from ctdl_lib.dynamics import (
    IntegrationError,
    Statistics,
    Transformed,
    hutchinson,
    integrate,
    standard_normal_log_prob,
)
from ctdl_lib.generative import Flow

from ..ot_flow.densities import seeded, solved
from .trace import NORMAL, probes

SIDE, NODES = 6.0, 161
MAX_STEPS = 1000


def exact(flow: Flow, tol: float = 1e-9) -> Flow:
    """The same flow in double precision, solved to a tolerance."""
    return solved(copy.deepcopy(flow).double(), tol=tol)


@torch.no_grad()
def mass(flow: Flow, nodes: int = NODES) -> float:
    """The integral of the density over [−6, 6]², by a sum over a grid."""
    side = torch.linspace(-SIDE, SIDE, nodes, dtype=torch.float64)
    p = flow.log_prob(torch.cartesian_prod(side, side)).exp()
    return p.sum().item() * (2 * SIDE / (nodes - 1)) ** 2


def jacobian_error(flow: Flow, x: Tensor) -> float:
    """The largest difference of ℓ(1) from log det ∂z/∂x, the determinant of the whole Jacobian."""
    J = torch.stack([torch.autograd.functional.jacobian(_one(flow), row) for row in x])
    with torch.no_grad():
        log_det = flow.transform(x).log_det
    return (torch.linalg.slogdet(J).logabsdet - log_det).abs().max().item()


def _one(flow: Flow):
    return lambda row: flow(row[None])[0]


@torch.no_grad()
def zuko_error(flow: Flow, x: Tensor, tol: float = 1e-9) -> float:
    """The largest difference from the log density that zuko computes of the same velocity."""
    theirs = zuko.transforms.FreeFormJacobianTransform(flow.velocity, 0.0, 1.0, atol=tol, rtol=tol)
    z, log_det = theirs.call_and_ladj(x)
    return (flow.log_prob(x) - standard_normal_log_prob(z) - log_det).abs().max().item()


@torch.no_grad()
def noisy_evaluations(flow: Flow, x: Tensor, tol: float, seed: int, *, fresh: bool) -> float:
    """The evaluations of a likelihood with one probe a solve, or with a `fresh` one for each.

    It is infinite if the solver needs more than 1,000 steps.
    """
    g, costs = seeded(seed), Statistics()
    one = probes(NORMAL, len(x), x.shape[1], g).to(x)

    def rates(t: Tensor, state: Transformed) -> Transformed:
        eps = probes(NORMAL, len(x), x.shape[1], g).to(x) if fresh else one
        return Transformed(*hutchinson(partial(flow.velocity, t), state.z, eps))

    how = {"tol": tol, "max_steps": MAX_STEPS, "statistics": costs}
    try:
        integrate(rates, Transformed(x, x.new_zeros(len(x))), 0.0, 1.0, **how)
    except IntegrationError:
        return math.inf
    return costs.evaluations
