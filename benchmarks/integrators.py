"""A training step of a neural ODE, RK4 with 16 steps: our steps against those of torchdiffeq."""

from collections.abc import Iterator

import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

from ctdl_lib.dynamics import integrate
from machinery.instruments import interleaved_times, retained_bytes

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


def rows() -> Iterator[str]:
    for d, width, batch in SIZES:
        times = interleaved_times(contenders(d, width, batch), rounds=5)
        ours = times["through"]
        ratios = ", ".join(f"{name} {seconds / ours:.2f}" for name, seconds in times.items())
        kept = retained(d, width, batch)
        yield f"d={d:<3} width={width:<4} batch={batch:<4} {1e3 * ours:7.1f} ms; ratios: {ratios}"
        yield f"{'':28} bytes kept by through over recompute: {kept:.0f}"


def retained(d: int, width: int, batch: int) -> float:
    field, x = Field(d, width), torch.randn(batch, d)

    def kept(backprop):
        return retained_bytes(lambda: integrate(field, x, 0.0, 1.0, steps=16, backprop=backprop))

    return kept("through") / kept("recompute")


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
        "through": ours("through"),
        "recompute": ours("recompute"),
        "adjoint": ours("adjoint"),
        "torchdiffeq": step(lambda: odeint(field, x, ends, method="rk4", options=grid)[-1]),
        "torchdiffeq adjoint": step(
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
