"""Features of time and position, as inputs of networks."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import guard

Time = float | Float[Tensor, ""] | Float[Tensor, "1"] | Float[Tensor, " batch"]  # one, or one each


def time_features(t: Float[Tensor, " batch"], count: int) -> Float[Tensor, "batch {count}"]:
    """The features sin(ωⱼt) and cos(ωⱼt) for `count`/2 frequencies ωⱼ.

    The frequencies are in geometric progression from 1 to 1000.

    Raises:
        ValueError: `count` is odd or below 4.

    Reference: ho2020denoising, appendix B.
    """
    if count < 4 or count % 2:
        raise ValueError(f"count must be even and at least 4, got {count}")
    share = torch.linspace(0, 1, count // 2, dtype=t.dtype, device=t.device)
    phase = t[:, None] * torch.exp(math.log(1000) * share)
    return torch.cat([phase.sin(), phase.cos()], 1)


def torus_features(u: Float[Tensor, "batch n1 n2"]) -> Float[Tensor, "4 n1 n2"]:
    """The features sin 2πx, cos 2πx, sin 2πy, cos 2πy at the pixels (x, y) of the unit torus."""

    def circle(n: int) -> Tensor:
        x = 2 * math.pi * torch.arange(n, dtype=u.dtype, device=u.device) / n
        return torch.stack([x.sin(), x.cos()])

    n1, n2 = u.shape[-2:]
    along_x, along_y = circle(n1)[:, :, None], circle(n2)[:, None]
    return torch.cat([along_x.expand(2, n1, n2), along_y.expand(2, n1, n2)])


def times_like(t: Any, x: Tensor) -> Float[Tensor, " batch"]:
    """The time t as one value per sample, from a number, a 0-dim tensor or a tensor (batch,)."""
    if isinstance(t, float | int):  # filled on the device, where as_tensor would copy it from here
        t = torch.full((), t, dtype=x.dtype, device=x.device)
    return torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(x.shape[0])


guard(__name__)
