"""Two well-known dynamical systems, and time series of their solutions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..dynamics.integration import integrate


class Series(NamedTuple):
    """Observations x(tₖ) + noise of solutions of ẋ = v(t, x) at arbitrary times tₖ."""

    t: Float[Tensor, " times"]
    x: Float[Tensor, "times batch d"]


def spiral_velocity(t: Any, x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
    """The velocity (−0.1a³ − 2b³, 2a³ − 0.1b³) of x = (a, b), whose solutions spiral to 0.

    It is from the spiral example of the published code.

    Reference: chen2018neural.
    """
    A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=x.dtype, device=x.device)
    return x**3 @ A


def van_der_pol(mu: float) -> Callable[[Any, Tensor], Tensor]:
    """The velocity (b, μ(1 − a²)b − a) of the Van der Pol oscillator x = (a, b).

    Reference: hairer1993solving, section I.16.
    """

    def velocity(t: Any, x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
        a, b = x.unbind(-1)
        return torch.stack([b, mu * (1 - a * a) * b - a], -1)

    return velocity


def observe(
    velocity: Callable[[Any, Tensor], Tensor],
    x0: Float[Tensor, "batch d"],
    t: Float[Tensor, " times"],
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Series:
    """The solution with x(0) = x0 at increasing times t ≥ 0, plus noise N(0, noise² I).

    It is computed in double precision with tolerance 1e-10.
    """
    exact = integrate(velocity, x0.double(), 0.0, float(t[-1]), tol=1e-10, save_at=t.double())
    errors = noise * torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    return Series(t, (exact + errors).to(x0.dtype))
