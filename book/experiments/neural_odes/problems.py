"""Problems of the chapter on neural ODEs: annuli, two dynamical systems, and time series."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.dynamics import integrate
from ctdl_lib.problems.classification import Classification, Samples


class Series(NamedTuple):
    """Observations x(tₖ) + noise of solutions of ẋ = v(t, x) at arbitrary times tₖ."""

    t: Float[Tensor, " times"]
    x: Float[Tensor, "times batch d"]


def annuli(seed: int, *, inner: int = 500, outer: int = 1500) -> Classification:
    """The points r (cos φ, sin φ) of class 1 for 0 < r < ½ and of class 0 for 1 < r < 3/2.

    r and φ are uniformly distributed. `inner` and `outer` are the numbers of training samples per
    class; there are a fifth as many validation samples.

    Reference: dupont2019augmented.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(inside: int, outside: int) -> Samples:
        n = inside + outside
        r = 0.5 * torch.rand(n, generator=generator)
        r[inside:] += 1
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        y = torch.stack([r * angle.cos(), r * angle.sin()], 1)
        return Samples(y, (torch.arange(n) < inside).long())

    return Classification("annuli", 2, draw(inner, outer), draw(inner // 5, outer // 5))


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
