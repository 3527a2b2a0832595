"""What the gradient of a neural ODE costs in memory, against the number of steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.dynamics import integrate
from ctdl_lib.networks import MLP
from ctdl_lib.networks.architectures import architectures
from ctdl_lib.networks.resnets import reversible
from machinery import instruments
from machinery.store import Store

STEPS = (16, 32, 64, 128, 256)
WAYS: dict[str, Callable[[int], dict[str, Any]]] = {
    "through": lambda n: {"backprop": "through"},
    "recompute, all states": lambda n: {"backprop": "recompute"},
    "recompute, √N states": lambda n: {"backprop": "recompute", "snapshots": math.isqrt(n)},
    "recompute, log₂ N states": lambda n: {
        "backprop": "recompute",
        "snapshots": n.bit_length() - 1,
    },
    "adjoint": lambda n: {"backprop": "adjoint"},
}
REVERSIBLE = "reversible layers"


def peaks(steps: Sequence[int] = STEPS) -> dict[str, list[int]]:
    """The bytes at the peak of a forward and a backward pass, by the way to the gradient.

    The state has 64 samples of eight features, the velocity 32 hidden units, the scheme is RK4.
    Reversible layers are Hamiltonian ones with eight features and a matrix of their own in every
    layer, so their peak contains the gradients of all matrices.
    """
    generator = torch.Generator().manual_seed(0)
    velocity = MLP(8, width=32, generator=generator).float()
    x = torch.randn(64, 8, generator=generator, dtype=torch.float32)

    def gradient(n: int, way: str) -> None:
        velocity.zero_grad()
        integrate(velocity, x, 0.0, 1.0, steps=n, **WAYS[way](n)).square().mean().backward()

    def peak(n: int, way: str) -> int:
        return instruments.peak_bytes(lambda: gradient(n, way))

    def undone(n: int) -> None:
        K = torch.full((n, 4, 4), 0.1, dtype=x.dtype).requires_grad_()
        b = torch.zeros(n, 4, dtype=x.dtype).requires_grad_()
        y, z = reversible(architectures()["hamiltonian"], 1 / n, (x[:, :4], x[:, 4:]), (K, b))
        (y.square().mean() + z.square().mean()).backward()

    found = {way: [peak(n, way) for n in steps] for way in WAYS}
    return found | {REVERSIBLE: [instruments.peak_bytes(lambda n=n: undone(n)) for n in steps]}


class Counted(nn.Module):
    """The velocity −wx with the weight w = 1, and the number of its evaluations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at x."""
        self.calls += 1
        return -self.weight * x


def evaluations(steps: Sequence[int] = STEPS) -> dict[str, list[float]]:
    """The evaluations of the velocity in both passes, over those of the forward pass alone."""

    def count(n: int, way: str) -> float:
        velocity = Counted()
        integrate(velocity, torch.ones(1, 1), 0.0, 1.0, steps=n, **WAYS[way](n)).sum().backward()
        return velocity.calls / (4 * n)

    return {way: [count(n, way) for n in steps] for way in WAYS}


@dataclass(frozen=True)
class Study:
    """Bytes at the peak and evaluations by the way to the gradient, one a number of steps."""

    steps: Sequence[int]
    peaks: dict[str, list[int]]
    evaluations: dict[str, list[float]]


def study(store: Store) -> Study:
    """Both, measured once."""
    steps = (4, 8) if store.run == "smoke" else STEPS

    def compute() -> dict[str, Any]:
        return {"peaks": peaks(steps), "evaluations": evaluations(steps)}

    found = store.measure("memory", {"steps": list(STEPS)}, compute).numbers
    return Study(steps, found["peaks"], found["evaluations"])
