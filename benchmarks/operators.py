"""The Fourier neural operator against full FFTs, and against neuralop where it is installed."""

import importlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctdl_lib.generative import Denoiser, Schedule, Score, sample_sde
from ctdl_lib.networks import FNO, time_features
from experiments.function_space.priors import Laplacian
from machinery.benchmarking import Floor, Row, compare
from machinery.instruments import moved_bytes

SIZES = [(28, 10, 16, 32), (28, 12, 24, 32), (56, 10, 16, 32), (32, 12, 32, 32)]


class PlainFNO(nn.Module):
    """The same operator with channels before pixels, full FFTs and complex products."""

    def __init__(self, net: FNO):
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        net, n = self.net, u.shape[-1]
        time = functional.silu(time_features(t.expand(len(u)), net.width) @ net.clock.T)
        x = 2 * math.pi * torch.arange(n) / n
        X, Y = (a.expand(len(u), 1, n, n) for a in torch.meshgrid(x, x, indexing="ij"))
        u = torch.cat([u[:, None], X.sin(), X.cos(), Y.sin(), Y.cos()], 1)
        u = _pointwise(u, net.lift, net.b_lift)
        for K, W, b, hands in zip(net.K, net.W, net.b, net.hands, strict=True):
            gain, shift = (time @ hands.T)[..., None, None].chunk(2, 1)
            step = _pointwise(u, W, b) + plain_conv(K, u)
            u = u + functional.gelu(step * (1 + gain) + shift)
        hidden = functional.gelu(_pointwise(u, net.widen, net.b_widen))
        return _pointwise(hidden, net.narrow)[:, 0]


def plain_conv(K: Any, u: Tensor) -> Tensor:
    """The result of the `SpectralConv` K for u (batch, channels, n, n), by the full FFT."""
    m, n, outputs = K.modes, u.shape[-1], K.R.shape[2] // 2
    R = torch.complex(*K.R.split(outputs, -1)).reshape(2 * m - 1, m, -1, outputs)
    coefficients = torch.fft.rfft2(u, norm="forward")
    out = torch.zeros(len(u), outputs, n, n // 2 + 1, dtype=R.dtype)
    for rows, part in ((slice(0, m), R[m - 1 :]), (slice(1 - m, None), R[: m - 1])):
        mixed = torch.einsum("bixy,xyio->boxy", coefficients[:, :, rows, :m], part)
        out[:, :, rows, :m] = mixed
    return torch.fft.irfft2(out, s=(n, n), norm="forward")


def _pointwise(u: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    return functional.conv2d(u, W[..., None, None], b)


def rows() -> Iterator[Row]:
    for size in SIZES:
        yield from training(*size)
    yield from sampling(28, 10, 16, 16)
    yield from layer(28, 10, 16, 32)


def named(n: int, modes: int, width: int, batch: int, what: str) -> str:
    return f"{what}; {n}² pixels, {modes} modes, width {width}, batch {batch}"


def example(n: int, modes: int, width: int, batch: int) -> tuple[FNO, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = FNO(modes=modes, width=width, generator=generator)
    u = torch.randn(batch, n, n, generator=generator)
    return net, torch.rand(batch, generator=generator), u


def training(n: int, modes: int, width: int, batch: int) -> list[Row]:
    net, t, u = example(n, modes, width, batch)
    plain = PlainFNO(net)
    assert torch.allclose(net(t, u), plain(t, u), atol=1e-4)

    def step(network) -> None:
        net.zero_grad()
        network(t, u).square().mean().backward()

    runs = {"ours": partial(step, net), "plain": partial(step, plain)} | neuralop(
        modes, width, t, u
    )
    return compare(named(n, modes, width, batch, "training step"), runs)


def neuralop(modes: int, width: int, t: Tensor, u: Tensor) -> dict:
    """A step of the FNO of neuralop with equal modes, width and layers, if it is installed."""
    try:
        models = importlib.import_module("neuralop.models")
    except ModuleNotFoundError:
        return {}
    # neuralop counts modes of both signs and keeps total // 2 + 1 = modes along the last axis
    total = 2 * modes - 1
    peer = models.FNO((total, total), 2, 1, width, n_layers=4)
    time = t[:, None, None].expand_as(u)

    def step() -> None:
        peer.zero_grad()
        peer(torch.stack([u, time], 1)).square().mean().backward()

    return {"neuralop": step}


def sampling(n: int, modes: int, width: int, batch: int) -> list[Row]:
    net, _, _ = example(n, modes, width, batch)
    schedule, Q, steps = Schedule(), Laplacian(1.1).normalized(n), 5
    generator = torch.Generator().manual_seed(1)

    def run(network: nn.Module) -> None:
        score = Score(Denoiser(network, std=1.0, schedule=schedule), schedule)
        sample_sde(score, lambda: Q.sample(batch, n, generator), schedule, steps=steps)

    runs = {"ours": partial(run, net), "plain": partial(run, PlainFNO(net))}
    return compare(named(n, modes, width, batch, f"samples in {steps} steps"), runs)


@torch.no_grad()
def layer(n: int, modes: int, width: int, batch: int) -> list[Row]:
    """One spectral layer; the floor is a copy of the bytes that its operations read and write."""
    net, _, _ = example(n, modes, width, batch)
    u = torch.randn(n, n, batch, width)
    channels_first = u.permute(2, 3, 0, 1).contiguous()
    moved = moved_bytes(lambda: net.K[0](u))
    source, target = torch.randn(moved // 8), torch.empty(moved // 8)
    runs = {"ours": lambda: net.K[0](u), "plain": lambda: plain_conv(net.K[0], channels_first)}
    copied = Floor(f"copy of {moved / 1e6:.0f} MB", lambda: target.copy_(source))
    return compare(named(n, modes, width, batch, "one layer"), runs, floor=copied, rounds=30)
