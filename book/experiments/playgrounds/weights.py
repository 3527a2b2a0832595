"""How weights travel to the browser: as integers of 16 bits, with one factor for each tensor.

They are off by about 2⁻¹⁶ of the largest entry, which no picture shows, and take half of the room
of float32.
"""

import base64
import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

MOST = 2**15 - 1
Net = TypeVar("Net", bound=nn.Module)


def parted(x: Tensor) -> tuple[float, Tensor]:
    """The factor f and the integers k with x ≈ f k."""
    x = x.detach().double()
    factor = float(x.abs().max()) / MOST or 1.0
    return factor, (x / factor).round().to(torch.int16)


def encoded(**tensors: Tensor) -> dict[str, tuple[float, str]]:
    """The factor and the integers, in base64, of tensors by their names."""
    found = {}
    for name, x in tensors.items():
        factor, integers = parted(x)
        found[name] = factor, base64.b64encode(integers.contiguous().numpy().tobytes()).decode()
    return found


def weights(net: nn.Module) -> dict[str, tuple[float, str]]:
    """The weights of a network by their names, encoded."""
    return encoded(**net.state_dict())


def received(x: Tensor) -> Tensor:
    """The tensor that the browser reads."""
    factor, integers = parted(x)
    return factor * integers.double()


def as_received(net: Net) -> Net:
    """The network with the weights that the browser reads, in double precision."""
    net = copy.deepcopy(net).double()
    net.load_state_dict({name: received(x) for name, x in net.state_dict().items()})
    return net
