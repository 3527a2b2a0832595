"""Transport maps that are gradients of convex functions, inverted by Newton's method."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from ..dynamics.calculus import Transformed
from ..potentials.convex import ConvexPotential, Steering
from .maps import Sample, TransportMap
from .scaling import Rows


class SecondOrder(NamedTuple):
    """The gradient and the Hessian of a convex function at each sample."""

    gradient: Float[Tensor, "batch d"]
    hessian: Float[Tensor, "batch d d"]


class ConvexMap(TransportMap):
    """The monotone map z = ∇ₓG(x; y) of standardized data, where G is convex in x.

    The Jacobian is the Hessian of G, and its determinant is exact. The inverse is the minimiser of
    G(x; y) − zᵀx. Training maximises the likelihood and needs no inverse.

    Args of the constructor: the `potential` G with its dimensions `d` of x and `context_dim` of y;
    the tolerance `tol` of the inverse, ‖∇G − z‖∞ ≤ `tol`; `box`, `standardize` and `encoder` as in
    `TransportMap`.

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
        encoder: nn.Module | None = None,
    ):
        scaling: dict[str, Any] = {"box": box, "standardize": standardize}
        super().__init__(d, context_dim=context_dim, encoder=encoder, **scaling)
        if not tol > 0:
            raise ValueError(f"tol must be positive, got {tol}")
        self.potential, self.tol = potential, tol
        self.adopt(potential)

    def forward(self, x: Rows) -> Float[Tensor, "batch d"]:
        """The reference points z = ∇G(x)."""
        return self._gradient(self.data(x), self._steering(len(x)))

    def transform(self, x: Rows) -> Transformed:
        """The reference points z = ∇G(x), and log |det ∂z/∂x|."""
        scaled = self.data.transform(x)
        at = self._second_order(scaled.z, self._steering(len(x)))
        factor, _ = torch.linalg.cholesky_ex(at.hessian)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        return Transformed(at.gradient, scaled.log_det + log_det)

    def inverse(self, z: Float[Tensor, "batch d"], *, steps: int = 100) -> Float[Tensor, "batch d"]:
        """The data x = argmin G(x) − zᵀx, without gradients, by Newton's method with step halving.

        Raises:
            ArithmeticError: after `steps` iterations, a sample misses the tolerance.
        """
        z = self.data.checked(z)
        with torch.no_grad():
            return self.data.inverse(self._minimise(z, self._steering(len(z)), steps))

    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> Sample:
        """The n samples x = T⁻¹(z) with z ~ N(0, I), and log p(x)."""
        x = self.sample(n, generator)
        return Sample(x, self.log_prob(x))

    def _minimise(self, z: Tensor, steering: list[Steering], steps: int) -> Tensor:
        x, length = torch.zeros_like(z), torch.ones_like(z[:, 0])
        at = self._second_order(x, steering)
        for k in range(steps + 1):
            residual = at.gradient - z
            active = ~(residual.abs().amax(1) <= self.tol)  # also true for NaN
            if not bool(active.any()):
                return x
            if k == steps:
                break
            step = -torch.linalg.solve(at.hessian, residual)
            there = x + length[:, None] * step
            new = self._second_order(there, steering)
            # the function may still fall where a step ends, but must not rise too fast there
            slope, before = ((part * step).sum(-1) for part in (new.gradient - z, residual))
            good = active & (slope <= 0.8 * before.abs())
            length = torch.where(good, 1.0, 0.5 * length)
            x = torch.where(good[:, None], there, x)
            at = SecondOrder(
                torch.where(good[:, None], new.gradient, at.gradient),
                torch.where(good[:, None, None], new.hessian, at.hessian),
            )
        worst = float((at.gradient - z).abs().max())
        raise ArithmeticError(
            f"after {steps} Newton steps the inverse is off by {worst:.1e}, more than"
            f" tol={self.tol:.1e}: allow more steps, or use float64"
        )

    def _gradient(self, x: Tensor, steering: list[Steering]) -> Tensor:
        return grad(lambda x: self.potential.convex(x, steering).sum())(x)

    def _second_order(self, x: Tensor, steering: list[Steering]) -> SecondOrder:
        slope = partial(self._gradient, steering=steering)

        def column(e: Tensor) -> tuple[Tensor, Tensor]:
            gradient, along_e, *_ = jvp(slope, (x,), (e.expand_as(x),))
            return gradient, along_e

        basis = torch.eye(self.d, dtype=x.dtype, device=x.device)
        gradient, columns = vmap(column, out_dims=(None, 1))(basis)  # pyright: ignore
        return SecondOrder(gradient, columns)

    def _steering(self, n: int) -> list[Steering]:
        return self.potential.steer(self.context_of(n))
