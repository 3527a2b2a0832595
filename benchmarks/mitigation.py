"""Control of a PDE: a step of a rollout, forward and backward, against dense LU and bare solves."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctdl_lib.control import rollout
from experiments.pde_control.environments import ControlEnvironment
from experiments.pde_control.mitigation import SourceMitigation, draw_basins
from machinery.benchmarking import Floor, Row, compare

BATCH, STEPS = 8, 25


def dense_factors(problem: SourceMitigation) -> tuple[Tensor, Tensor]:
    """The LU factors of the matrices M + hA."""
    n, h = problem.source.shape[1], problem.horizon / problem.steps
    A = [torch.from_numpy(problem._advection(v).toarray()) for v in problem.velocities]
    return torch.linalg.lu_factor(problem.mass.expand(len(A), n, n) + h * torch.stack(A))


def dense_cost(problem: SourceMitigation, factors: tuple[Tensor, Tensor], a: Tensor) -> Tensor:
    """The sum of the costs of controls a (batch, steps), by dense algebra alone."""
    h, M, u, cost = problem.horizon / problem.steps, problem.mass, problem.start, 0.0
    for k in range(problem.steps):
        energy = 0.5 * ((u @ M) * u).sum()
        cost = cost + h * (energy + 0.5 * problem.control_weight * a[:, k].square().sum())
        b = u @ M + h * (problem.source - a[:, k, None] * problem.sink)
        u = torch.linalg.lu_solve(*factors, b[..., None])[..., 0]
    return cost + problem.terminal_weight * 0.5 * ((u @ M) * u).sum()


def rows() -> Iterator[Row]:
    """For two meshes: the steps of a rollout, forward and backward."""
    for nodes in (17, 33):
        generator = torch.Generator().manual_seed(0)
        problem = SourceMitigation(draw_basins(BATCH, generator), nodes=nodes)
        a = torch.rand(BATCH, STEPS, dtype=torch.float64).requires_grad_()
        factors, systems, b = dense_factors(problem), problem.systems, problem.source

        def ours(problem=problem, a=a):
            policy = lambda t, x: a[:, round(float(t) * STEPS)].view(-1, 1)  # noqa: E731
            rollout(problem, policy, problem.start, steps=STEPS).cost.sum().backward()

        def dense(problem=problem, a=a, factors=factors):
            dense_cost(problem, factors, a).backward()

        def solves(systems=systems, b=b):
            for k in range(2 * STEPS):
                systems._solve(b, k >= STEPS)

        case = f"{BATCH} basins, {nodes}² nodes, {STEPS} steps and their gradient"
        runs = {"ours": ours, "dense LU": dense}
        yield from compare(case, runs, floor=Floor("bare solves", solves))
    yield from compare(f"an episode of the environment, {STEPS} steps", {"ours": environment()})


def environment() -> Callable[[], None]:
    """An episode of the environment, with a new basin."""

    def episode(generator: torch.Generator) -> tuple[SourceMitigation, Tensor]:
        problem = SourceMitigation(draw_basins(1, generator))
        return problem, problem.start

    def observe(problem: Any, t: float, x: Tensor) -> np.ndarray:
        clock = np.full((1, 17, 17), t)
        field = x.view(1, 17, 17).numpy()
        return np.concatenate([field, problem.images[0].numpy(), clock]).astype(np.float32)

    bounds = {"low": torch.zeros(1), "high": torch.full((1,), 3.0)}
    env = ControlEnvironment(episode, observe, steps=STEPS, **bounds)
    action, seeds = np.zeros(1, np.float32), itertools.count()

    def run() -> None:
        terminated = False
        env.reset(seed=next(seeds))
        while not terminated:
            terminated = env.step(action)[2]

    return run
