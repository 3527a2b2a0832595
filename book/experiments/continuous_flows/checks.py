"""Whether a trained flow is a density, and where it goes wrong."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

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
from machinery.seeds import seeded
from machinery.store import Store

from ..ot_flow.densities import solved
from . import training
from .trace import NORMAL, probes

SIDE, NODES = 6.0, 161
POINTS = 20  # at which log-determinants are compared
MAX_STEPS = 1000
TOLS = (1e-1, 1e-2, 1e-3)  # with fresh noise, 1e-4 needs more than the most steps
NOISY = 64  # points whose evaluations are counted
RADII = (4 / math.sqrt(2), 5.0, 8.0)


def exact(flow: Flow, tol: float = 1e-9) -> Flow:
    """The same flow in double precision, solved to a tolerance."""
    return solved(copy.deepcopy(flow).double(), tol=tol)


@dataclass(frozen=True)
class Checks:
    """By how much three numbers of a trained flow are off, and by how much with a mistake.

    `mass` is that of the integral of the density over [−6, 6]², and `mass_without` that of
    N(z(x); 0, I), without the log-determinant. `log_det` is the largest difference of ℓ(1) from
    the determinant of the whole Jacobian, and `log_det_probe` that of Hutchinson's estimate with
    one probe. `zuko` is the largest difference from zuko's log density of the same velocity, and
    `zuko_coarse` with the eight fixed steps of the training.
    """

    mass: float
    mass_without: float
    log_det: float
    log_det_probe: float
    zuko: float
    zuko_coarse: float


def checks(store: Store, seeds: Sequence[int]) -> list[Checks]:
    """The checks of the regularised flows, measured once and kept."""
    smoke, key = store.run == "smoke", asdict(training.settings(store, training.REGULARIZED))
    key |= {"seeds": list(seeds), "nodes": NODES, "points": POINTS, "zuko": zuko.__version__}

    def compute() -> dict[str, Any]:
        flows = [training.fit(store, training.REGULARIZED, s)[0] for s in seeds]
        nodes, points = (11, 2) if smoke else (NODES, POINTS)
        pairs = zip(flows, seeds, strict=True)
        return {"rows": [asdict(check(flow, s, nodes, points)) for flow, s in pairs]}

    return [Checks(**row) for row in store.measure("checks", key, compute).numbers["rows"]]


def check(flow: Flow, seed: int, nodes: int = NODES, points: int = POINTS) -> Checks:
    """The checks of one flow in double precision."""
    fine, coarse = exact(flow), solved(copy.deepcopy(flow).double(), steps=8)
    x = training.held_out("8gaussians", points).double()
    eps = probes(NORMAL, points, 2, seeded(seed, 0)).to(x)
    with torch.no_grad():
        probe = (fine.transform(x, eps=eps).log_det - fine.transform(x).log_det).abs().max()
    return Checks(
        mass=abs(mass(exact(flow, 1e-5), nodes) - 1),
        mass_without=abs(mass(exact(flow, 1e-5), nodes, log_det=False) - 1),
        log_det=jacobian_error(fine, x),
        log_det_probe=probe.item(),
        zuko=zuko_error(fine, x),
        zuko_coarse=zuko_error(coarse, x),
    )


@torch.no_grad()
def mass(flow: Flow, nodes: int = NODES, *, log_det: bool = True) -> float:
    """The integral of the density over [−6, 6]², by a sum over a grid.

    Without `log_det` it is the integral of N(z(x); 0, I), which is no density of x.
    """
    side = torch.linspace(-SIDE, SIDE, nodes, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    p = (flow.log_prob(x) if log_det else standard_normal_log_prob(flow(x))).exp()
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
    g, costs = seeded(seed, 0), Statistics()
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


@dataclass(frozen=True)
class Noise:
    """Evaluations at each of the `TOLS`, one list a seed: with one probe, another, and fresh ones.

    They are infinite where the solver stopped after 1,000 steps.
    """

    one: list[list[float]]
    another: list[list[float]]
    fresh: list[list[float]]


def noise(store: Store, seeds: Sequence[int]) -> Noise:
    """What fresh noise costs the regularised flows, measured once and kept."""
    smoke, key = store.run == "smoke", asdict(training.settings(store, training.REGULARIZED))
    key |= {"seeds": list(seeds), "tols": list(TOLS), "points": NOISY}
    x = training.held_out("8gaussians", 4 if smoke else NOISY).double()

    def counted(flow: Flow, seed: int, *, fresh: bool) -> list[float]:
        tols = TOLS[:1] if smoke else TOLS
        return [noisy_evaluations(flow, x, tol, seed, fresh=fresh) for tol in tols]

    def compute() -> dict[str, Any]:
        flows = [exact(training.fit(store, training.REGULARIZED, s)[0]) for s in seeds]
        pairs = list(zip(flows, seeds, strict=True))
        return {
            "one": [counted(flow, s, fresh=False) for flow, s in pairs],
            "another": [counted(flow, s + 1000, fresh=False) for flow, s in pairs],
            "fresh": [counted(flow, s, fresh=True) for flow, s in pairs],
        }

    return Noise(**store.measure("noise", key, compute).numbers)
