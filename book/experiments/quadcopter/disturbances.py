"""What no controller was told: gusts, a wrong mass, a weak rotor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ctdl_lib.potentials.potential import Time
from ctdl_lib.problems.vehicles import Quadcopter

GUST, GUST_TIMES = 10.0, (0.4, 0.6)
ARM, DRAG = 10.0, 0.5  # angular accelerations by a unit of thrust: of pitch and roll, and of yaw


@dataclass(frozen=True, eq=False)
class Disturbed:
    """A quadcopter that differs from the one that the controllers know.

    Args of the constructor: σ (`diffusion`), the `mass`, the share of thrust that the first rotor
    loses (`loss`), and the acceleration of the gust of each flight (`gust`, (flights, 3)).
    """

    diffusion: float = 0.2
    mass: float = 1.0
    loss: float = 0.0
    gust: Tensor | None = None
    horizon: float = 1.0

    @property
    def true(self) -> Quadcopter:
        """The quadcopter with the true mass."""
        return Quadcopter(self.diffusion, mass=self.mass)

    def applied(self, u: Tensor) -> Tensor:
        """What the rotors do if u is asked for: the first one has too little thrust."""
        f = 0.25 * (u[:, :1] + u[:, 1:2] / DRAG) + 0.5 * u[:, 2:3] / ARM
        return u - self.loss * f * u.new_tensor([1.0, DRAG, ARM, 0.0])

    def drift(self, t: Time, x: Tensor, u: Tensor) -> Tensor:
        """The drift with all disturbances."""
        rate = self.true.drift(t, x, self.applied(u))
        if self.gust is None or not GUST_TIMES[0] <= float(t) < GUST_TIMES[1]:
            return rate
        pushed = torch.cat([x.new_zeros(len(x), 6), self.gust[: len(x)], x.new_zeros(len(x), 3)], 1)
        return rate + pushed

    def running_cost(self, t: Time, x: Tensor, u: Tensor) -> Tensor:
        """The running cost of what was asked for."""
        return self.true.running_cost(t, x, u)

    def terminal_cost(self, x: Tensor) -> Tensor:
        """The terminal cost."""
        return self.true.terminal_cost(x)

    def optimal_control(self, t: Time, x: Tensor, p: Tensor) -> Tensor:
        """The control of the undisturbed quadcopter, which is all that is known."""
        return Quadcopter().optimal_control(t, x, p)


def sideways(flights: int, generator: torch.Generator) -> Tensor:
    """Horizontal accelerations of equal strength, each in a random direction, (flights, 3)."""
    angle = 2 * torch.pi * torch.rand(flights, generator=generator, dtype=torch.float64)
    return GUST * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
