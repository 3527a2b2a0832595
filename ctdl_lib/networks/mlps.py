"""Multilayer perceptrons as velocities, and as readers of a context."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..dynamics.stepping import same_shape
from .embeddings import Time, times_like


class MLP(nn.Module):
    """The velocity v(t, x) = W_L a(⋯ a(W₁(x, t) + b₁) ⋯) + b_L, with time as one more input.

    Args of the constructor: the dimension `d` of x; the `width` and number `hidden` of hidden
    layers; the `activation` a. Without `time` the velocity does not depend on t. With `context_dim`
    above zero, v(t, x, y) has a context y as further input. `generator` draws weights and biases
    uniformly from [−1/√n, 1/√n], where n is the number of inputs of their layer.
    """

    def __init__(
        self,
        d: int,
        *,
        width: int,
        hidden: int = 2,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        time: bool = True,
        context_dim: int = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.d, self.context_dim = d, context_dim
        self.activation, self.time = activation, time
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        sizes = [d + time + context_dim, *[width] * hidden, d]
        for n, m in pairwise(sizes):
            for parameters, shape in ((self.weights, (m, n)), (self.biases, (m,))):
                parameters.append(uniform(shape, n, generator))

    def forward(
        self,
        t: Time,
        x: Float[Tensor, "batch d"],
        y: Float[Tensor, "batch context_dim"] | None = None,
    ) -> Float[Tensor, "batch d"]:
        """The velocity v(t, x) or v(t, x, y), where t is one time or one time per sample."""
        same_shape(x, (len(x), self.d), "x")  # where it is called by a denoiser, for one
        time = [times_like(t, x)[:, None]] if self.time else []
        x = torch.cat([x, *time, *([] if y is None else [y])], 1)
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.addmm(b, self.activation(x) if i else x, W.T)
        return x


class ConcatSquash(nn.Module):
    """The velocity of layers (Wx + b) · sigmoid(at + c) + et, with an activation between them.

    The vectors a, c and e act componentwise, so time can switch each unit on and off.

    Args of the constructor: as for `MLP`.

    Reference: grathwohl2019ffjord.
    """

    def __init__(
        self,
        d: int,
        *,
        width: int,
        hidden: int = 2,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        context_dim: int = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.d, self.context_dim = d, context_dim
        self.activation = activation
        self.W, self.b, self.a, self.c, self.e = (nn.ParameterList() for _ in range(5))
        for n, m in pairwise([d + context_dim, *[width] * hidden, d]):
            self.W.append(uniform((m, n), n, generator))
            self.b.append(uniform((m,), n, generator))
            for row in (self.a, self.c, self.e):  # their only input is the time
                row.append(uniform((m,), 1, generator))

    def forward(
        self,
        t: Time,
        x: Float[Tensor, "batch d"],
        y: Float[Tensor, "batch context_dim"] | None = None,
    ) -> Float[Tensor, "batch d"]:
        """The velocity v(t, x) or v(t, x, y), where t is one time or one time per sample."""
        t = times_like(t, x)[:, None]
        x = x if y is None else torch.cat([x, y], 1)
        rows = zip(self.W, self.b, self.a, self.c, self.e, strict=True)
        for i, (W, b, a, c, e) in enumerate(rows):
            x = torch.addmm(b, self.activation(x) if i else x, W.T)
            x = torch.addcmul(e * t, x, torch.sigmoid(torch.addcmul(c, a, t)))
        return x


class Encoder(nn.Module):
    """The features (y, N(y)) of a context y, where N is a perceptron, for the `encoder` of a map.

    Args of the constructor: the dimension `m` of y; the number of outputs of N (`features`); the
    `width` and number `hidden` of hidden layers; the `activation` between layers; `generator` draws
    weights and biases as in `MLP`. The number of all outputs is `context_dim` = m + features, which
    is the context_dim of the network or potential that is steered.
    """

    def __init__(
        self,
        m: int,
        *,
        features: int = 32,
        width: int = 96,
        hidden: int = 2,
        activation: Callable[[Tensor], Tensor] = functional.silu,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.m, self.context_dim, self.activation = m, m + features, activation
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n, k in pairwise([m, *[width] * hidden, features]):
            self.weights.append(uniform((k, n), n, generator))
            self.biases.append(uniform((k,), n, generator))

    def forward(self, y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch context_dim"]:
        """The features (y, N(y))."""
        u = y
        for i, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            u = torch.addmm(b, self.activation(u) if i else u, W.T)
        return torch.cat([y, u], 1)


def uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator | None) -> Tensor:
    """A tensor whose entries are drawn uniformly from [−1/√inputs, 1/√inputs]."""
    return (2 * torch.rand(shape, generator=generator) - 1) * (1 / math.sqrt(inputs))
