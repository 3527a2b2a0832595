"""Layers undone from the last to the first, and what that saves of the memory."""

from collections.abc import Sequence

import torch

from ctdl_lib.networks.architectures import Architecture, architectures
from ctdl_lib.networks.resnets import ResNet
from machinery import instruments
from machinery.store import Store

KINDS = ("hamiltonian", "midpoint", "leapfrog", "resnet")
DEPTHS = (16, 64, 256, 1024)
TIMES = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # final times of the round trips
LAYERS, SCALE = 1000, 0.5


def network(kind: str, layers: int, horizon: float, generator: torch.Generator) -> ResNet:
    """A random network with eight features, in single precision."""
    shape = {"width": 8, "layers": layers, "horizon": horizon, "scale": SCALE}
    return ResNet(4, 1, **shape, architecture=architectures()[kind], generator=generator)


@torch.no_grad()
def round_trip(kind: str, seed: int, horizon: float, layers: int = LAYERS) -> float:
    """The relative error of the first features after all layers, forward and back.

    Layers without an explicit inverse are run backward with Euler's method and the step −h.
    """
    generator = torch.Generator().manual_seed(seed)
    net = network(kind, layers, horizon, generator).float()
    y = torch.randn(100, 4, generator=generator, dtype=torch.float32)
    first, *_, last = net.states(y)
    if net.architecture.scheme.inverse:
        *_, again = net.reversed_states(last)
    else:
        (u,) = last
        for K, b in zip(net.K.flip(0), net.b.flip(0), strict=True):
            u = u - net.h * net.architecture.field(u, K, b)
        again = (u,)
    start, end = torch.cat(first, 1), torch.cat(again, 1)
    return ((end - start).norm() / start.norm()).item()


def round_trips(store: Store, seeds: Sequence[int]) -> dict[str, list[list[float]]]:
    """The errors of round trips, by kind, seed and final time."""
    layers = 20 if store.run == "smoke" else LAYERS

    def compute() -> dict[str, list[list[float]]]:
        return {k: [[round_trip(k, s, T, layers) for T in TIMES] for s in seeds] for k in KINDS}

    settings = {"kinds": list(KINDS), "seeds": list(seeds), "times": list(TIMES), "layers": layers}
    return store.measure("round-trips", settings, compute).numbers


def kept_bytes(reverse: bool, depths: Sequence[int] = DEPTHS) -> list[int]:
    """The bytes alive between the forward and the backward pass of Hamiltonian networks.

    With `reverse`, features are computed again from the last ones and not stored.
    """
    hamiltonian: Architecture = architectures()["hamiltonian"]
    batch = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    shape = {"width": 8, "architecture": hamiltonian, "reverse": reverse}
    nets = [ResNet(4, 1, layers=n, **shape).float() for n in depths]
    return [instruments.retained_bytes(lambda net=net: net(batch)) for net in nets]
