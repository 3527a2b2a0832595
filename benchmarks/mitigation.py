"""Control of a PDE: a step of a rollout, forward and backward, against dense LU and bare solves."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctdl_lib.control import rollout
from experiments.pde_control.environments import ControlEnvironment
from experiments.pde_control.mitigation import SourceMitigation, draw_basins
from machinery.instruments import interleaved_times

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


def environment_rate() -> float:
    """Steps per second of the environment, with a new basin for each episode."""

    def episode(generator: torch.Generator) -> tuple[SourceMitigation, Tensor]:
        problem = SourceMitigation(draw_basins(1, generator))
        return problem, problem.start

    def observe(problem: Any, t: float, x: Tensor) -> np.ndarray:
        clock = np.full((1, 17, 17), t)
        field = x.view(1, 17, 17).numpy()
        return np.concatenate([field, problem.images[0].numpy(), clock]).astype(np.float32)

    bounds = {"low": torch.zeros(1), "high": torch.full((1,), 3.0)}
    env = ControlEnvironment(episode, observe, steps=STEPS, **bounds)
    best, action = float("inf"), np.zeros(1, np.float32)
    for k in range(40):
        began, terminated = time.perf_counter(), False
        env.reset(seed=k)
        while not terminated:
            terminated = env.step(action)[2]
        best = min(best, time.perf_counter() - began)
    return STEPS / best


def rows() -> Iterator[str]:
    """For two meshes: milliseconds per step, forward and backward, and their ratios."""
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

        times = interleaved_times({"ours": ours, "dense": dense, "solves": solves}, rounds=10)
        ms = {name: 1e3 * seconds / STEPS for name, seconds in times.items()}
        yield (
            f"{BATCH} basins, {nodes}² nodes, a step, both passes: ours {ms['ours']:.2f} ms,"
            f" dense LU {ms['dense']:.2f} ms (ratio {ms['dense'] / ms['ours']:.1f}), bare solves"
            f" {ms['solves']:.2f} ms (ratio {ms['ours'] / ms['solves']:.1f})"
        )
    yield f"environment: {environment_rate():.0f} steps per second, new basins included"
