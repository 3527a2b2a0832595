"""Without noise: Pontryagin's boundary value problem, and the fan of characteristics."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_bvp
from torch import Tensor

from ctdl_lib.control import feedback, rollout
from ctdl_lib.dynamics import integrate
from ctdl_lib.potentials import Potential
from ctdl_lib.problems.control import obstacle
from machinery.store import Store

from . import grids, training
from .training import CALM, DOUBLE, seeds_of

PROBLEM = obstacle(noise=0.0)
WEIGHT, TARGET = 100.0, 1.5


class Gap(NamedTuple):
    """How far a feedback path is from the characteristic with the same start.

    `path` is the largest distance in an entry, `costate` and `straight` are errors of ∇Φ along the
    path in percent: of the network, and of the value function without the hill. Φ and the cost are
    those of the network.
    """

    path: float
    costate: float
    straight: float
    value: float
    cost: float


def rates(t: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The rates of the state and the costate: −p and −∇Q."""
    hill = PROBLEM.hill(torch.from_numpy(z[:2].T.copy())).numpy()
    return np.concatenate([-z[2:], hill * z[:2] / PROBLEM.variance])


def ends(za: np.ndarray, zb: np.ndarray) -> np.ndarray:
    """What has to vanish: x(0) minus the start, and p(1) minus ∇G."""
    return np.concatenate([za[:2] - np.array(grids.SIDE), zb[2:] - WEIGHT * (zb[:2] - TARGET)])


def fits(store: Store, seed: int = 0) -> list[Potential]:
    """The value functions of the hill without noise, of three seeds."""
    task = training.calm()
    return [training.fit(store, "calm", task, s, CALM)[0] for s in seeds_of(store, seed, 3)]


def gap(phi: Potential) -> Gap:
    """The feedback path of Φ and the gradient along it, against the boundary value problem."""
    path = rollout(
        PROBLEM, feedback(PROBLEM, phi), grids.point(grids.SIDE), steps=100, method="rk4"
    )
    t, x = path.t.numpy(), path.x[:, 0].numpy()

    def costates(of: Potential) -> np.ndarray:
        nodes = zip(path.t.tolist(), path.x, strict=True)
        return torch.cat([of.gradient(s, y).dx for s, y in nodes]).numpy()

    p, straight = costates(phi), costates(PROBLEM.linear_quadratic.value())
    guess = np.concatenate([x.T, p.T])
    true = solve_bvp(rates, ends, t, guess, tol=1e-8, max_nodes=20_000).sol(t)
    size = np.linalg.norm(true[2:])
    wrong = [100 * float(np.linalg.norm(true[2:].T - q) / size) for q in (p, straight)]
    far = float(np.abs(true[:2].T - x).max())
    return Gap(far, wrong[0], wrong[1], float(phi(0.0, grids.point(grids.SIDE))), float(path.cost))


def fan(angles: Tensor, *, reach: float = 0.035, steps: int = 200) -> Tensor:
    """Characteristics that end at points around the target, (steps + 1, angles, 2), from t = 1 on.

    The end x(1) fixes p(1) = 100 (x(1) − x*), and the equations run back from there. The distance
    of the end from the target is `reach`, times a number that lets all have about one length.
    """
    ends = TARGET + reach * torch.stack([angles.cos(), angles.sin()], 1)
    z = torch.cat([ends, WEIGHT * (ends - TARGET)], 1)

    def back(t: float | Tensor, z: Tensor) -> Tensor:
        return torch.from_numpy(rates(np.zeros(0), z.numpy().T).T.copy())

    nodes = torch.linspace(1.0, 0.0, steps + 1, **DOUBLE)
    return integrate(back, z, 1.0, 0.0, steps=steps, save_at=nodes)
