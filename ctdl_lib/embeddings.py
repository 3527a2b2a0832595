"""Features of time for networks."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def time_features(t: Float[Tensor, " batch"], count: int) -> Float[Tensor, "batch {count}"]:
    """The features sin(ωⱼt) and cos(ωⱼt) for `count`/2 frequencies ω from 1 to 1000.

    They are in a geometric progression.

    Raises:
        ValueError: count is odd or below 4.

    Reference: ho2020denoising, appendix B.
    """
    if count < 4 or count % 2:
        raise ValueError(f"count must be even and at least 4, got {count}")
    share = torch.linspace(0, 1, count // 2, dtype=t.dtype, device=t.device)
    phase = t[:, None] * torch.exp(math.log(1000) * share)
    return torch.cat([phase.sin(), phase.cos()], 1)
