"""A small U-Net: convolutions on pixels at several resolutions."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ctdl_lib.networks.embeddings import time_features, times_like, torus_features


class UNet(nn.Module):
    """The U-Net net(t, u) on fields u of n × n pixels.

    The encoder halves the grid from level to level, and the decoder doubles it again. Each level
    has one residual block in the encoder and one in the decoder; a skip connection passes the
    output of the first to the second. Kernels have 3 × 3 pixels at any resolution, with zero
    padding. The position enters as the channels sin 2πx, cos 2πx, sin 2πy, cos 2πy.

    Args of the constructor: the number of channels of the first level (`width`); the channels of
    each level as multiples of it (`factors`). The global generator of torch draws the weights. The
    last convolution starts with zero weights.

    Raises:
        ValueError: `width` is not a multiple of 8, or `factors` is empty.

    Reference: ronneberger2015unet; ho2020denoising, appendix B.
    """

    def __init__(self, *, width: int, factors: Sequence[int] = (1, 2, 2)):
        super().__init__()
        if width < 8 or width % 8 or not factors:
            raise ValueError(
                f"width must be a multiple of 8, got {width}, and {factors=} not empty"
            )
        self.width, self.factors = width, tuple(factors)
        sizes = [width * factor for factor in factors]
        self.clock = nn.Linear(width, 4 * width)
        self.first = _conv(5, sizes[0])
        before = [sizes[0], *sizes]
        self.down = nn.ModuleList(
            _Block(a, b, 4 * width) for a, b in zip(before, sizes, strict=False)
        )
        self.middle = _Block(sizes[-1], sizes[-1], 4 * width)
        after = [*sizes[1:], sizes[-1]]
        self.up = nn.ModuleList(
            _Block(a + b, b, 4 * width) for a, b in zip(after, sizes, strict=True)
        )
        self.norm, self.last = nn.GroupNorm(8, sizes[0]), _conv(sizes[0], 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, t: Any, u: Float[Tensor, "batch n n"]) -> Float[Tensor, "batch n n"]:
        """The fields net(t, u), where t is one time or one time per field.

        Raises:
            ValueError: the fields are not square, or n cannot be halved once per further level.
        """
        halvings = len(self.down) - 1
        if u.dim() != 3 or u.shape[1] != u.shape[2] or u.shape[1] % 2**halvings:
            raise ValueError(
                f"want square fields (batch, n, n) with n a multiple of {2**halvings}, got"
                f" {tuple(u.shape)}: resample them"
            )
        time = functional.silu(self.clock(time_features(times_like(t, u), self.width)))
        place = torus_features(u).expand(len(u), -1, -1, -1)
        x = self.first(torch.cat([u[:, None], place], 1))
        left = []
        for level, block in enumerate(self.down):
            x = block(functional.avg_pool2d(x, 2) if level else x, time)
            left.append(x)
        x = self.middle(x, time)
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([x, left[level]], 1), time)
            x = functional.interpolate(x, scale_factor=2) if level else x
        return self.last(functional.silu(self.norm(x)))[:, 0]


class _Block(nn.Module):
    """The residual block x + conv(silu(norm(conv(silu(norm(x))) + time)))."""

    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), _conv(inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), _conv(outputs, outputs)
        self.hands = nn.Linear(time, outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        u = self.conv1(functional.silu(self.norm1(x))) + self.hands(time)[..., None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(u)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
