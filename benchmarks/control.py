"""A training step of optimal control: all times in one batch against one time after another."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vjp

from ctdl_lib.control import ControlProblem, hamiltonian, objective
from ctdl_lib.potentials import PinnedPotential, Potential, ResNetPotential
from ctdl_lib.problems.control import obstacle
from ctdl_lib.problems.vehicles import Quadcopter
from experiments.stochastic_control.radial import LogarithmicTarget
from machinery.instruments import interleaved_times

# The networks, batches, steps and weights of li2024neural.
SIX = ("bsde", "terminal", "terminal_gradient", "hjb", "cost", "initial")
CASES = {
    "2-D": (64, 20, (1.0, 1.0, 0.0, 1.0, 1.0, 0.0)),
    "100-D": (64, 20, (1.0, 1.0, 1.0, 0.0, 20.0, 0.0)),
    "quadcopter": (256, 100, (0.1, 0.1, 0.1, 0.1, 1.0, 0.0)),
}


def problem_and_network(name: str) -> tuple[ControlProblem, Potential, Tensor]:
    """The problem, an untrained network for it, and a start."""
    generator = torch.Generator().manual_seed(0)
    if name == "2-D":
        plane = obstacle()
        net = ResNetPotential(2, width=32, generator=generator)
        known = plane.linear_quadratic.value()
        return plane, PinnedPotential(known, net), torch.full((2,), -1.5)
    if name == "100-D":
        target = LogarithmicTarget(torch.zeros(100))
        net = ResNetPotential(100, width=64, layers=4, generator=generator)
        return target, net, torch.zeros(100)
    copter = Quadcopter()
    return copter, ResNetPotential(12, width=128, generator=generator), copter.start.float()


def one_by_one(problem: ControlProblem, phi: Potential, x: Tensor, dW: Tensor) -> dict[str, Tensor]:
    """All six terms, whatever their weights, from a simple loop over the times."""
    sigma, h = torch.as_tensor(problem.diffusion).to(x), problem.horizon / len(dW)
    cost, hjb, bsde = x.new_zeros(3, 1)
    g = phi.derivatives(0.0, x, sigma)
    start, expected = g.value, g.value
    for k in range(len(dW) + 1):
        g = phi.derivatives(k * h, x, sigma) if k else g
        hjb = hjb + (g.dt + hamiltonian(problem, k * h, x, g.dx) + 0.5 * g.laplacian).abs().mean()
        bsde = bsde + (g.value - expected).abs().mean()
        if k < len(dW):
            u = problem.optimal_control(k * h, x, g.dx)
            noise = dW[k] @ sigma.T if sigma.dim() else sigma * dW[k]
            spent = h * problem.running_cost(k * h, x, u)
            expected = g.value - spent + (g.dx * noise).sum(1)
            x, cost = x + h * problem.drift(k * h, x, u) + noise, cost + spent
    end, pullback, *_ = vjp(problem.terminal_cost, x)
    (slope,) = pullback(torch.ones_like(end))
    return {
        "bsde": bsde.sum(),
        "terminal": (g.value - end).abs().mean(),
        "terminal_gradient": (g.dx - slope).abs().sum(1).mean(),
        "hjb": hjb.sum() / (len(dW) + 1),
        "cost": (cost + end).mean(),
        "initial": ((start - cost - end).mean()).abs(),
    }


def rows() -> Iterator[str]:
    """For each problem: milliseconds per step, forward and backward, and the ratio."""
    for name, (batch, steps, values) in CASES.items():
        problem, phi, start = problem_and_network(name)
        weights = dict(zip(SIX, values, strict=True))
        x = start + 0.1 * torch.randn(batch, len(start))
        dW = torch.randn(steps, batch, len(start)) / math.sqrt(steps)

        def ours(problem=problem, phi=phi, x=x, dW=dW, weights=weights):
            terms = objective(problem, phi, x, steps=len(dW), dW=dW, **weights)
            torch.stack(list(terms.values())).sum().backward()

        def plain(problem=problem, phi=phi, x=x, dW=dW, weights=weights):
            terms = one_by_one(problem, phi, x, dW)
            torch.stack([weights[key] * term for key, term in terms.items()]).sum().backward()

        times = interleaved_times({"ours": ours, "one by one": plain}, rounds=5)
        ratio = times["one by one"] / times["ours"]
        yield (
            f"{name:10s} {batch:3d} paths, {steps:3d} steps: ours {1e3 * times['ours']:6.1f} ms,"
            f" one by one {1e3 * times['one by one']:6.1f} ms, ratio {ratio:.1f}"
        )
