"""Functions that are convex in x: partially input convex networks."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Steering(NamedTuple):
    """The effect of a context on a layer: factors of the features and of x, and a shift."""

    gate: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


class ConvexPotential(nn.Module):
    """The function G(x; y) = wᵀuₖ + ½ a‖x‖², convex in x, of a partially input convex network.

    From the contexts v₀ = y, vᵢ₊₁ = ELU(Vᵢvᵢ + vᵢ°) the network computes the features

        uᵢ₊₁ = softplus(Wᵢ(uᵢ ⊙ softplus(Aᵢvᵢ + aᵢ)) + Xᵢ(x ⊙ (Bᵢvᵢ + bᵢ)) + Cᵢvᵢ + cᵢ),

    without the first term if i = 0. The number a is softplus of a parameter. The entries of w and
    Wᵢ are softplus of parameters, divided by the width. They are positive, so G is convex in x, and
    ∇ₓG is a bijection of ℝᵈ. Without a context, uᵢ₊₁ = softplus(Wᵢuᵢ + Xᵢx + cᵢ).

    Args of the constructor: the dimensions `d` of x and `context_dim` of y; the `width` of contexts
    and features; the number of `layers` ≥ 1 of features; `generator` draws the weights.

    Reference: amos2017input; wang2023efficient.
    """

    def __init__(
        self,
        d: int,
        *,
        context_dim: int = 0,
        width: int = 64,
        layers: int = 2,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.d, self.context_dim = d, context_dim or None

        def linear(inputs: int, outputs: int, offset: float = 0.0) -> nn.Linear:
            layer = nn.Linear(inputs, outputs)
            for parameter in layer.parameters():
                with torch.no_grad():
                    parameter.uniform_(-1, 1, generator=generator).div_(math.sqrt(max(inputs, 1)))
            layer.bias.data.add_(offset)
            return layer

        def raw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        contexts = [context_dim, *[width] * (layers - 1)] if context_dim else []
        self.V = nn.ModuleList(linear(n, width) for n in contexts[:-1])
        self.C = nn.ModuleList(linear(n, width) for n in contexts)
        self.B = nn.ModuleList(linear(n, d, offset=1.0) for n in contexts)
        self.A = nn.ModuleList(linear(n, width) for n in contexts[1:])
        self.X = nn.ModuleList(linear(d, width) for _ in range(layers))
        self.W = nn.ParameterList(raw(width, width) for _ in range(layers - 1))
        self.w, self.a = raw(width), nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Float[Tensor, "batch d"], y: Float[Tensor, "batch context_dim"] | None = None
    ) -> Float[Tensor, " batch"]:
        """The value G(x; y)."""
        return self.convex(x, self.steer(y))

    def steer(self, y: Float[Tensor, "batch context_dim"] | None) -> list[Steering]:
        """The effect of the context on each layer, which does not depend on x."""
        if (y is None) != (not self.C):
            raise ValueError(
                "this potential has a context: give y"
                if self.C
                else "y was given, but context_dim=0: set context_dim in the constructor"
            )
        if y is None:
            return [Steering(None, None, None)] * len(self.X)
        found, v = [], y
        for i, (B, C) in enumerate(zip(self.B, self.C, strict=True)):
            gate = functional.softplus(self.A[i - 1](v)) if i else None
            found.append(Steering(gate, B(v), C(v)))
            v = functional.elu(self.V[i](v)) if i < len(self.V) else v
        return found

    def convex(
        self, x: Float[Tensor, "batch d"], steering: list[Steering]
    ) -> Float[Tensor, " batch"]:
        """The value G(x; y) for `steering` = steer(y)."""
        u, width = None, len(self.w)
        for i, (X, at) in enumerate(zip(self.X, steering, strict=True)):
            a = X(x if at.scale is None else x * at.scale)
            if at.shift is not None:
                a = a + at.shift
            if u is not None:
                gated = u if at.gate is None else u * at.gate
                # the mean, because a sum of positive weights would grow with the width
                a = a + gated @ functional.softplus(self.W[i - 1]).T / width
            u = functional.softplus(a)
        assert u is not None
        quadratic = 0.5 * functional.softplus(self.a) * x.square().sum(-1)
        return u @ functional.softplus(self.w) / width + quadratic
