"""A training step of a ResNet: the hand-written backward pass against that of autograd."""

from collections.abc import Iterator

import torch

from ctdl_lib.networks import ResNet
from machinery.benchmarking import Row, compare

SIZES = [(16, 2, 1000), (64, 4, 512), (1024, 4, 512), (64, 16, 1000)]


def rows() -> Iterator[Row]:
    for layers, width, batch in SIZES:
        case = f"{layers} layers, width {width}, batch {batch}"
        yield from compare(case, contenders(layers, width, batch))


def contenders(layers: int, width: int, batch: int):
    generator = torch.Generator().manual_seed(0)
    net = ResNet(2, 1, width=width, layers=layers, horizon=5.0, generator=generator)
    y = torch.randn(batch, 2, generator=generator)

    def by_hand():
        net.zero_grad()
        net(y).square().mean().backward()

    def autograd():
        net.zero_grad()
        u = y @ net.K_in.T
        for K, b in zip(net.K, net.b, strict=True):
            u = torch.add(u, torch.tanh(torch.addmm(b, u, K.T)), alpha=net.h)
        (u @ net.K_out.T + net.b_out).square().mean().backward()

    return {"ours": by_hand, "autograd": autograd}
