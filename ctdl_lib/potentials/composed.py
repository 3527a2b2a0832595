"""Potentials made of others: a known part plus a correction, and a change of units."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..networks.embeddings import times_like
from .potential import Derivatives, Gradient, Potential, Sigma, Time, _columns


def _bound(whole: Potential, *parts: Potential) -> tuple[Potential, ...]:
    """The parts, with the context of the whole bound to each of them."""
    y = whole.context
    return parts if y is None else tuple(part.given(y) for part in parts)


class PinnedPotential(Potential):
    """The potential Φ(t, x) = known(t, x) + (T − t)·correction(t, x), which is known at t = T.

    A learned value function then satisfies the terminal condition exactly and contains the known
    part of the solution.

    Args of the constructor: the potentials `known` and `correction`, and the time T (`horizon`).
    """

    def __init__(self, known: Potential, correction: Potential, *, horizon: float = 1.0):
        super().__init__()
        self.known, self.correction, self.horizon = known, correction, horizon

    def forward(self, t: Time, x: Float[Tensor, "batch d ..."]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        known, correction = _bound(self, self.known, self.correction)
        return known(t, x) + (self.horizon - times_like(t, x)) * correction(t, x)

    def gradient(self, t: Time, x: Float[Tensor, "batch d ..."]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ from those of both parts."""
        known, correction = _bound(self, self.known, self.correction)
        return self._sum(t, x, known.gradient(t, x), correction.gradient(t, x))

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d ..."], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), from those of both parts."""
        parts = _bound(self, self.known, self.correction)
        known, correction = (part.derivatives(t, x, sigma) for part in parts)
        trace = known.laplacian + (self.horizon - times_like(t, x)) * correction.laplacian
        return Derivatives(*self._sum(t, x, known, correction), trace)

    def _sum(
        self,
        t: Time,
        x: Tensor,
        known: Gradient | Derivatives,
        correction: Gradient | Derivatives,
    ) -> Gradient:
        left = self.horizon - times_like(t, x)
        return Gradient(
            known.value + left * correction.value,
            known.dt - correction.value + left * correction.dt,
            known.dx + left.reshape(-1, *(1,) * (x.dim() - 1)) * correction.dx,
        )


class ScaledPotential(Potential):
    """The potential Φ(t, x) = height · φ(s(t), (x − center)/unit), which rescales t, x and Φ.

    With a terminal `layer` ε, s = log((T + ε)/(T − t + ε))/log((T + ε)/ε) ∈ [0, 1] resolves the
    times just before T, where the feedback becomes strong. Without it, s = t.

    Args of the constructor: the potential φ on vectors; the number `height`; the `center` and the
    positive `unit` of each entry of x, both (d,); ε > 0 (`layer`); T (`horizon`).

    Raises:
        ValueError: a unit or ε is not positive, or `center` and `unit` differ in length.
    """

    center: Tensor
    unit: Tensor

    def __init__(
        self,
        potential: Potential,
        *,
        height: float,
        center: Float[Tensor, " d"],
        unit: Float[Tensor, " d"],
        layer: float | None = None,
        horizon: float = 1.0,
    ):
        super().__init__()
        if center.shape != unit.shape or not (unit > 0).all():
            raise ValueError(f"unit must be positive, one for each center, got {unit.tolist()}")
        if layer is not None and not layer > 0:
            raise ValueError(f"{layer=} must be positive, or None for s = t")
        self.potential, self.height, self.d = potential, height, len(center)
        self.layer, self.horizon = layer, horizon
        for name, value in (("center", center), ("unit", unit)):
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def forward(self, t: Time, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value Φ(t, x)."""
        potential, s, z, _ = self._inside(t, x)
        return self.height * potential(s, z)

    def gradient(self, t: Time, x: Float[Tensor, "batch d"]) -> Gradient:
        """The value Φ, ∂ₜΦ and ∇ₓΦ from those of φ."""
        potential, s, z, rate = self._inside(t, x)
        return self._scaled(potential.gradient(s, z), rate)

    def derivatives(
        self, t: Time, x: Float[Tensor, "batch d"], sigma: Sigma | None = None
    ) -> Derivatives:
        """The value Φ, ∂ₜΦ, ∇ₓΦ and ΔₓΦ, or tr(σσᵀ∇ₓ²Φ), from those of φ."""
        potential, s, z, rate = self._inside(t, x)
        phi = potential.derivatives(s, z, _columns(sigma, x).T / self.unit[:, None])
        return Derivatives(*self._scaled(phi, rate), self.height * phi.laplacian)

    def _inside(self, t: Time, x: Tensor) -> tuple[Potential, Time, Tensor, float | Tensor]:
        """The potential φ with its context, its arguments, and ds/dt."""
        (potential,) = _bound(self, self.potential)
        z = (x - self.center) / self.unit
        if self.layer is None:
            return potential, t, z, 1.0
        left, most = self.horizon - times_like(t, x) + self.layer, self.horizon + self.layer
        span = math.log(most / self.layer)
        return potential, (math.log(most) - left.log()) / span, z, 1 / (left * span)

    def _scaled(self, phi: Gradient | Derivatives, rate: float | Tensor) -> Gradient:
        c = self.height
        return Gradient(c * phi.value, c * rate * phi.dt, c / self.unit * phi.dx)
