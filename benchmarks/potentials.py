"""Derivatives of a potential and their parameter gradients: closed form against torch.func."""

from collections.abc import Iterator

import torch
from torch import nn

from ctdl_lib.metrics import interleaved_times
from ctdl_lib.potentials import AutodiffPotential, ResNetPotential

SIZES = [(2, 32, 1024), (13, 128, 256), (43, 256, 64)]


class AsNet(nn.Module):
    """The closed-form potential as a black box."""

    def __init__(self, phi: ResNetPotential):
        super().__init__()
        self.phi = phi

    def forward(self, t, x):
        return self.phi(t, x)


def rows() -> Iterator[str]:
    for d, width, batch in SIZES:
        times = interleaved_times(contenders(d, width, batch), rounds=5)
        ratio = times["autodiff"] / times["closed form"]
        yield (
            f"d={d:<3} width={width:<4} batch={batch:<5}"
            f" closed form {1e3 * times['closed form']:7.1f} ms, ratio {ratio:.1f}"
        )


def contenders(d: int, width: int, batch: int):
    generator = torch.Generator().manual_seed(0)
    phi = ResNetPotential(d, width=width, generator=generator)
    x = torch.randn(batch, d, generator=generator)

    def step(potential):
        def run():
            phi.zero_grad()
            found = potential.derivatives(0.5, x)
            (found.laplacian + found.dt + found.dx.square().sum(-1)).mean().backward()

        return run

    return {"closed form": step(phi), "autodiff": step(AutodiffPotential(AsNet(phi)))}
