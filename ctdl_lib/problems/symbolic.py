"""The deterministic problems of `vehicles` in CasADi symbols, for direct transcription."""

import numpy as np

from ..contracts import guard
from ..extras import needed
from ..references.transcription import Symbol, SymbolicProblem
from .vehicles import Corridor, Quadcopter

ca = needed("casadi", "control")


def quadcopter(problem: Quadcopter) -> SymbolicProblem:
    """The problem of the quadcopter without noise."""
    gravity = ca.DM([0, 0, problem.gravity])

    def drift(x: Symbol, u: Symbol) -> Symbol:
        yaw, pitch, roll = x[3], x[4], x[5]
        across, along = ca.sin(roll), ca.sin(pitch) * ca.cos(roll)
        axis = ca.vertcat(
            ca.sin(yaw) * across + ca.cos(yaw) * along,
            ca.sin(yaw) * along - ca.cos(yaw) * across,
            ca.cos(pitch) * ca.cos(roll),
        )
        return ca.vertcat(x[6:12], u[0] / problem.mass * axis - gravity, u[1:4])

    target = problem.target.numpy()
    return SymbolicProblem(
        12,
        4,
        drift,
        lambda x, u: 2 + ca.sumsqr(u),
        lambda x: problem.weight / 2 * ca.sumsqr(x - target),
        horizon=problem.horizon,
    )


def corridor(problem: Corridor) -> SymbolicProblem:
    """The problem of the corridor, with the constraint that the agents keep the distance 2r."""
    target, s = problem.target.numpy(), problem.variance

    def hills(x: Symbol) -> Symbol:
        squares = [(x[0] - c) ** 2 + x[1] ** 2 for c in (-2.5, -1.5, 1.5, 2.5)]
        return sum(ca.exp(-square / (2 * s)) for square in squares) / (2 * np.pi * s)

    def running_cost(x: Symbol, u: Symbol) -> Symbol:
        close = ca.exp(-ca.sumsqr(x[:2] - x[2:]) / (2 * problem.radius**2))
        hill = hills(x[:2]) + hills(x[2:])
        return ca.sumsqr(u) / 2 + problem.obstacle * hill + problem.repulsion * close

    return SymbolicProblem(
        4,
        4,
        lambda x, u: u,
        running_cost,
        lambda x: problem.weight / 2 * ca.sumsqr(x - target),
        constraint=lambda x: ca.sumsqr(x[:2] - x[2:]) - 4 * problem.radius**2,
        horizon=problem.horizon,
    )


guard(__name__)
