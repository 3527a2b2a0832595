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
from machinery.benchmarking import Floor, Row, compare, has_compiler

from .potentials import Runs

COMPILED = ("2-D",)  # a graph of more steps takes minutes to compile

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


def rows() -> Iterator[Row]:
    for name, (batch, steps, values) in CASES.items():
        problem, phi, start = problem_and_network(name)
        weights = dict(zip(SIX, values, strict=True))
        x = start + 0.1 * torch.randn(batch, len(start))
        dW = torch.randn(steps, batch, len(start)) / math.sqrt(steps)

        def loss(x, dW, problem=problem, phi=phi, weights=weights):
            terms = objective(problem, phi, x, steps=len(dW), dW=dW, **weights)
            return torch.stack(list(terms.values())).sum()

        def ours(loss=loss, x=x, dW=dW):
            loss(x, dW).backward()

        def plain(problem=problem, phi=phi, x=x, dW=dW, weights=weights):
            terms = one_by_one(problem, phi, x, dW)
            torch.stack([weights[key] * term for key, term in terms.items()]).sum().backward()

        case = f"{name}, {batch} paths, {steps} steps"
        runs: Runs = {"ours": ours, "one time after another": plain}
        if has_compiler() and name in COMPILED:
            fused = torch.compile(loss, fullgraph=True, dynamic=False)
            runs["ours, compiled"] = lambda fused=fused, x=x, dW=dW: fused(x, dW).backward()
        yield from compare(
            case, runs, floor=products(phi, batch, steps, weights["hjb"] > 0), rounds=7
        )


def products(phi: Potential, batch: int, steps: int, with_trace: bool) -> Floor:
    """The products of the paths and the penalties, and those of the sweep of the Jacobian.

    With two layers, a gradient takes one product forward and one backward, and the derivative of
    both takes twice as many. The sweep takes one forward and two backward.
    """
    net = next(part for part in phi.modules() if isinstance(part, ResNetPotential))
    width, d, nodes = len(net.w), net.d, steps + 1
    K, u = torch.randn(width, width), torch.randn(width, batch)
    J = torch.randn(width, batch * d)
    swept = 3 * len(net.K) if with_trace else 0

    def run() -> None:
        for _ in range(6 * len(net.K) * 2):
            torch.mm(K, u)
        for _ in range(swept):
            torch.mm(K, J)

    return Floor("products", run, nodes)
