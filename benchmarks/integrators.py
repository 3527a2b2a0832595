"""A training step of a neural ODE, RK4 with 16 steps: our steps against those of torchdiffeq."""

from collections.abc import Iterator

import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

from ctdl_lib.dynamics import integrate
from machinery.benchmarking import Row, compare

SIZES = [(2, 32, 64), (2, 64, 512), (64, 256, 256)]


class Field(nn.Module):
    """The velocity of a network with two hidden layers."""

    def __init__(self, d: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, d)
        )

    def forward(self, t, x):
        return self.layers(x)


def rows() -> Iterator[Row]:
    for d, width, batch in SIZES:
        case = f"d = {d}, width {width}, batch {batch}"
        yield from compare(case, contenders(d, width, batch))


def contenders(d: int, width: int, batch: int):
    torch.manual_seed(0)
    field, x = Field(d, width), torch.randn(batch, d)
    # the nodes are given, because step_size=1/n results in n + 1 steps for some n
    times = torch.linspace(0, 1, 17)

    def step(solve):
        def run():
            field.zero_grad()
            solve().square().mean().backward()

        return run

    def ours(backprop):
        return step(lambda: integrate(field, x, 0.0, 1.0, steps=16, backprop=backprop))

    grid = {"grid_constructor": lambda f, y, t: times}
    ends = times[[0, -1]]
    return {
        "ours, through": ours("through"),
        "ours, recompute": ours("recompute"),
        "ours, adjoint": ours("adjoint"),
        "torchdiffeq rk4": step(lambda: odeint(field, x, ends, method="rk4", options=grid)[-1]),
        "torchdiffeq rk4, adjoint": step(
            lambda: odeint_adjoint(
                field,
                x,
                ends,
                method="rk4",
                options=grid,
                adjoint_options={"grid_constructor": lambda f, y, t: times.flip(0)},
            )[-1]
        ),
    }
