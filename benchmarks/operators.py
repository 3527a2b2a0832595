"""The Fourier neural operator against full FFTs, neuralop, and the peak rates of the machine."""

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
from machinery.instruments import interleaved_times, moved_bytes

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


def rows() -> Iterator[str]:
    try:
        importlib.import_module("neuralop.models")
    except ModuleNotFoundError as error:
        yield (
            f"neuralop is left out ({error}): pip install --no-deps neuraloperator tensorly"
            " tensorly-torch opt-einsum"
        )
    else:
        yield "neuralop: n_modes (2·modes − 1, 2·modes − 1), its defaults, the time as a channel"
    for size in SIZES:
        yield training(*size)
    yield sampling(28, 10, 16, 16)
    yield layer(28, 10, 16, 32)


def example(n: int, modes: int, width: int, batch: int) -> tuple[FNO, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = FNO(modes=modes, width=width, generator=generator)
    u = torch.randn(batch, n, n, generator=generator)
    return net, torch.rand(batch, generator=generator), u


def training(n: int, modes: int, width: int, batch: int) -> str:
    net, t, u = example(n, modes, width, batch)
    plain = PlainFNO(net)
    assert torch.allclose(net(t, u), plain(t, u), atol=1e-4)

    def step(network) -> None:
        net.zero_grad()
        network(t, u).square().mean().backward()

    runs = {"ours": partial(step, net), "plain": partial(step, plain)} | neuralop(
        modes, width, t, u
    )
    times = interleaved_times(runs, rounds=8)
    ours = times.pop("ours")
    shown = ", ".join(f"{k} {1e3 * v / batch:.2f} ms ({v / ours:.1f} ×)" for k, v in times.items())
    return (
        f"n={n} modes={modes} width={width} batch={batch}: training step per image, ours"
        f" {1e3 * ours / batch:.2f} ms, {shown}"
    )


def neuralop(modes: int, width: int, t: Tensor, u: Tensor) -> dict:
    """A step of the FNO of neuralop with equal modes, width and layers, if it is installed."""
    try:
        models = importlib.import_module("neuralop.models")
    except ModuleNotFoundError:
        return {}  # the first row says so
    # neuralop counts modes of both signs and keeps total // 2 + 1 = modes along the last axis
    total = 2 * modes - 1
    peer = models.FNO((total, total), 2, 1, width, n_layers=4)
    time = t[:, None, None].expand_as(u)

    def step() -> None:
        peer.zero_grad()
        peer(torch.stack([u, time], 1)).square().mean().backward()

    return {"neuralop": step}


def sampling(n: int, modes: int, width: int, batch: int) -> str:
    net, _, _ = example(n, modes, width, batch)
    schedule, Q, steps = Schedule(), Laplacian(1.1).normalized(n), 5
    generator = torch.Generator().manual_seed(1)

    def run(network: nn.Module) -> None:
        score = Score(Denoiser(network, std=1.0, schedule=schedule), schedule)
        sample_sde(score, lambda: Q.sample(batch, n, generator), schedule, steps=steps)

    times = interleaved_times({"ours": partial(run, net), "plain": partial(run, PlainFNO(net))})
    each = {name: 1e3 * seconds / batch / steps for name, seconds in times.items()}
    return (
        f"n={n} modes={modes} width={width} batch={batch}: sampling per image and step, ours"
        f" {each['ours']:.2f} ms, plain {each['plain']:.2f} ms, ratio"
        f" {each['plain'] / each['ours']:.1f}"
    )


@torch.no_grad()
def layer(n: int, modes: int, width: int, batch: int) -> str:
    """One spectral layer against a copy of its bytes, and its operations in a matrix product."""
    net, _, _ = example(n, modes, width, batch)
    m, columns = modes, batch * width
    u = torch.randn(n, n, batch, width)
    channels_first = u.permute(2, 3, 0, 1).contiguous()
    moved = moved_bytes(lambda: net.K[0](u))
    flops = 2 * columns * (2 * (2 * m) * n * n + 2 * (4 * m) * (2 * n) * m + 8 * m * m * width)
    source, target = torch.randn(moved // 8), torch.empty(moved // 8)
    A, B = torch.randn(2 * m, n), torch.randn(n, n * columns)
    runs = {
        "ours": lambda: net.K[0](u),
        "plain": lambda: plain_conv(net.K[0], channels_first),
        "copy": lambda: target.copy_(source),
        "product": lambda: A @ B,
    }
    times = interleaved_times(runs, rounds=30)
    rate = 2 * A.numel() * B.shape[1] / times["product"]
    return (
        f"n={n} modes={modes} width={width} batch={batch}: one layer {1e3 * times['ours']:.2f} ms,"
        f" plain {1e3 * times['plain']:.2f} ms; its {moved / 1e6:.1f} MB copied"
        f" {1e3 * times['copy']:.2f} ms, its {flops / 1e6:.0f} Mflop at {rate / 1e9:.0f} Gflop/s"
        f" {1e3 * flops / rate:.2f} ms"
    )
