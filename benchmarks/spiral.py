"""A training step for a spiral with 30 outputs on (0, 1.5], and the error of its gradient."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from ctdl_lib.dynamics import integrate
from ctdl_lib.networks import MLP
from experiments.neural_odes.problems import observe, spiral_velocity
from machinery.benchmarking import Row, compare

STEPS = 15
TIMES = torch.linspace(0.05, 1.5, 30)


class Cubed(torch.nn.Module):
    """The velocity of a network with 50 hidden units whose inputs are the cubes of the state."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = MLP(2, width=50, hidden=1, time=False, generator=generator)

    def forward(self, t, x):
        return self.net(t, x**3)


def rows() -> Iterator[Row]:
    field, runs = contenders()
    exact = reference()

    def named(name: str) -> str:
        runs[name]()
        error = float((gradient(field) - exact).norm() / exact.norm())
        return f"{name}, error {error:.0e}"

    yield from compare("30 outputs on (0, 1.5]", {named(name): run for name, run in runs.items()})


def problem(dtype: torch.dtype):
    field, x0 = Cubed().to(dtype), torch.tensor([[2.0, 0.0]], dtype=dtype)
    target = observe(spiral_velocity, x0, TIMES).x
    return field, x0, lambda x: (x - target).abs().mean()


def gradient(field: Cubed) -> Tensor:
    grads = [p.grad for p in field.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in grads]).double()


def reference() -> Tensor:
    field, x0, loss = problem(torch.float64)
    loss(integrate(field, x0, 0.0, 1.5, steps=600, save_at=TIMES.double())).backward()
    return gradient(field)


def contenders():
    field, x0, loss = problem(torch.float32)
    grid = torch.cat([torch.zeros(1), TIMES])

    def step(solve):
        def run():
            field.zero_grad()
            loss(solve()).backward()

        return run

    def ours(**how):
        return step(lambda: integrate(field, x0, 0.0, 1.5, save_at=TIMES, **how))

    def theirs(solver, **how):
        return step(lambda: solver(field, x0, grid, **how)[1:])

    return field, {
        "ours, RK4 through": ours(steps=STEPS),
        "ours, RK4 recompute": ours(steps=STEPS, backprop="recompute"),
        "ours, RK4 adjoint": ours(steps=STEPS, backprop="adjoint"),
        "ours, tol=1e-5 through": ours(tol=1e-5),
        "torchdiffeq": theirs(odeint),
        "torchdiffeq RK4": theirs(odeint, method="rk4"),
        "torchdiffeq adjoint": theirs(odeint_adjoint),
        "torchdiffeq adjoint, tol 1e-5": theirs(odeint_adjoint, rtol=1e-5, atol=1e-5),
    }
