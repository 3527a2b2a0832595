"""Maps that are gradients of convex functions, inverted by Newton's method."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn import functional

from .calculus import Transformed
from .maps import Sample, TransportMap


class Steering(NamedTuple):
    """The factors on the features and on x, and the shift, by which a context steers a layer."""

    gate: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


class ConvexPotential(nn.Module):
    """The function G(x; y) = wᵀuₖ + ½ a‖x‖², convex in x, of a partially input convex network.

    A path of contexts v₀ = y, vᵢ₊₁ = ELU(Vᵢvᵢ + vᵢ°) steers a path of features

        uᵢ₊₁ = softplus(Wᵢ(uᵢ ⊙ softplus(Aᵢvᵢ + aᵢ)) + Xᵢ(x ⊙ (Bᵢvᵢ + bᵢ)) + Cᵢvᵢ + cᵢ)

    without the first term where i = 0. The number a is softplus of a parameter, and so are the
    entries of w and Wᵢ, divided by the width. As they are positive, each step preserves convexity,
    and ∇ₓG is a bijection of ℝᵈ.
    Without a context, only Xᵢx + cᵢ stays beside the first term.

    Args of the constructor: the dimensions `d` of x and `context_dim` of y; the `width` of both
    paths, the number of `layers` ≥ 1 of features; `generator` draws the weights.

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
        if min(d, width, layers) < 1:
            raise ValueError(f"{d=}, {width=} and {layers=} must be at least 1")

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
        self, x: Float[Tensor, "batch d"], y: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, " batch"]:
        """The value G(x; y)."""
        return self.convex(x, self.steer(y))

    def steer(self, y: Float[Tensor, "batch context"] | None) -> list[Steering]:
        """What the context does to each layer: nothing of it depends on x."""
        if (y is None) != (not self.C):
            raise ValueError(
                "the potential has a context: give y"
                if self.C
                else "y was given, but context_dim=0: set it when constructing"
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
        """The value G(x; y), of what `steer` has made of y."""
        u, width = None, len(self.w)
        for i, (X, at) in enumerate(zip(self.X, steering, strict=True)):
            a = X(x if at.scale is None else x * at.scale)
            if at.shift is not None:
                a = a + at.shift
            if u is not None:
                gated = u if at.gate is None else u * at.gate
                # the mean, not the sum: positive weights would add up to the width
                a = a + gated @ functional.softplus(self.W[i - 1]).T / width
            u = functional.softplus(a)
        assert u is not None
        quadratic = 0.5 * functional.softplus(self.a) * x.square().sum(-1)
        return u @ functional.softplus(self.w) / width + quadratic


class SecondOrder(NamedTuple):
    """The gradient of a convex function and its Hessian."""

    gradient: Float[Tensor, "batch d"]
    hessian: Float[Tensor, "batch d d"]


class ConvexMap(TransportMap):
    """The map z = ∇ₓG(x; y) of standardized data, which increases along every line.

    Its Jacobian is the Hessian of G, whose determinant is exact; its inverse is the minimiser of
    G(x; y) − zᵀx. Training needs the likelihood only.

    Args of the constructor: the `potential`, convex in x, with its dimensions `d` and
    `context_dim`; the inverse is found where ‖∇G − z‖∞ ≤ `tol`. Without `standardize`, mean 0 and
    deviation 1 stand in for those of the data; with a `box`, `BoxScaling` comes first.

    Reference: wang2023efficient.
    """

    def __init__(
        self,
        potential: ConvexPotential,
        d: int,
        *,
        context_dim: int = 0,
        tol: float = 1e-5,
        box: tuple[Sequence[float], Sequence[float]] | None = None,
        standardize: bool = True,
    ):
        super().__init__(d, context_dim=context_dim, box=box, standardize=standardize)
        if not tol > 0:
            raise ValueError(f"tol must be positive, got {tol}")
        self.potential, self.tol = potential, tol

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The reference points z = ∇G(x)."""
        x, steering = self.data(x), self._steering(len(x))
        return grad(lambda x: self.potential.convex(x, steering).sum())(x)

    def transform(self, x: Float[Tensor, "batch d"]) -> Transformed:
        """The reference points z = ∇G(x), and log |det ∂z/∂x|."""
        scaled = self.data.transform(x)
        at = self._second_order(scaled.z, self._steering(len(x)))
        factor, _ = torch.linalg.cholesky_ex(at.hessian)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        return Transformed(at.gradient, scaled.log_det + log_det)

    def inverse(self, z: Float[Tensor, "batch d"], *, steps: int = 100) -> Float[Tensor, "batch d"]:
        """The data x = argmin G(x) − zᵀx, by Newton's method with halved steps; no gradient.

        Raises:
            ArithmeticError: after so many `steps` a sample is still off by more than the tolerance.
        """
        z = self.data.checked(z)
        with torch.no_grad():
            return self.data.inverse(self._minimise(z, self._steering(len(z)), steps))

    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> Sample:
        """The images of n reference points, and log p there."""
        x = self.sample(n, generator)
        return Sample(x, self.log_prob(x))

    def _minimise(self, z: Tensor, steering: list[Steering], steps: int) -> Tensor:
        x, length = torch.zeros_like(z), torch.ones_like(z[:, 0])
        at = self._second_order(x, steering)
        for k in range(steps + 1):
            residual = at.gradient - z
            active = ~(residual.abs().amax(1) <= self.tol)  # NaN has not converged either
            if not bool(active.any()):
                return x
            if k == steps:
                break
            step = -torch.linalg.solve(at.hessian, residual)
            there = x + length[:, None] * step
            new = self._second_order(there, steering)
            # a convex function may go on falling: only a slope that turned too far is refused
            slope, before = ((part * step).sum(-1) for part in (new.gradient - z, residual))
            good = active & (slope <= 0.8 * before.abs())
            length = torch.where(good, 1.0, 0.5 * length)
            x = torch.where(good[:, None], there, x)
            at = SecondOrder(
                *(torch.where(_like(good, a), b, a) for a, b in zip(at, new, strict=True))
            )
        worst = float((at.gradient - z).abs().max())
        raise ArithmeticError(
            f"after {steps} steps of Newton's method the inverse is off by {worst:.1e}, which is"
            f" more than tol={self.tol:.1e}: allow more, or calculate in float64"
        )

    def _second_order(self, x: Tensor, steering: list[Steering]) -> SecondOrder:
        def slope(x: Tensor) -> Tensor:
            return grad(lambda x: self.potential.convex(x, steering).sum())(x)

        def column(e: Tensor) -> tuple[Tensor, Tensor]:
            gradient, along_e, *_ = jvp(slope, (x,), (e.expand_as(x),))
            return gradient, along_e

        basis = torch.eye(self.d, dtype=x.dtype, device=x.device)
        gradient, columns = vmap(column, out_dims=(None, 1))(basis)  # pyright: ignore
        return SecondOrder(gradient, columns)

    def _steering(self, n: int) -> list[Steering]:
        return self.potential.steer(self.context_of(n))


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (x.dim() - 1))
