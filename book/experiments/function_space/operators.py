"""Whether a network is one operator on all grids."""

import copy

import torch
from torch import nn

from ctdl_lib.generative import Denoiser
from ctdl_lib.networks import FNO
from machinery.seeds import seeded

from .grids import Field, resample
from .priors import Matern
from .training import PIXELS, SHAPE
from .unets import UNet

GRIDS = (50, 56, 61)
MOMENTS = (0.05, 0.2, 0.5, 0.9)
POINTS = 21


def smooth(seed: int = 0) -> Field:
    """Four sums of a few waves, on 61 × 61 pixels in double precision."""
    few = Matern(s=4.0, kappa=2.0).normalized(PIXELS).sample(4, 7, seeded(seed, 0)).double()
    return resample(few, GRIDS[-1])


@torch.no_grad()
def gap(net: nn.Module, t: float, u: Field, n: int, reference: int = PIXELS) -> float:
    """The relative difference of net(u) on two grids, at 21 × 21 points."""
    coarse, fine = (resample(net(t, resample(u, k)), POINTS) for k in (reference, n))
    return float((fine - coarse).norm() / coarse.norm())


def untrained(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """An FNO and a U-Net with random weights, in double precision."""
    net = FNO(**SHAPE, generator=seeded(seed, 0))
    torch.manual_seed(seed)
    unet = UNet(width=16)
    nn.init.normal_(unet.last.weight, std=0.1)  # it starts at zero
    return net.double(), unet.double()


def gaps(seed: int = 0) -> tuple[list[float], float]:
    """The gaps of an FNO between 28 and other grids, and the one of a U-Net between 28 and 56."""
    net, unet = untrained(seed)
    u = smooth(seed)
    return [gap(net, 0.5, u, n) for n in GRIDS], gap(unet, 0.5, u, 2 * PIXELS)


def trained_gaps(model: Denoiser, seed: int = 0) -> dict[str, list[float]]:
    """The gaps of the network inside of a denoiser at four times, between 28, 56 and 112."""
    net, u = copy.deepcopy(model.net).double(), smooth(seed)
    return {
        "28 and 56": [gap(net, t, u, 2 * PIXELS) for t in MOMENTS],
        "56 and 112": [gap(net, t, u, 4 * PIXELS, 2 * PIXELS) for t in MOMENTS],
    }
