"""Control problems for vehicles: two agents in a corridor, and a quadcopter with noise."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import guard
from ..potentials.potential import Time


@dataclass(frozen=True, eq=False)
class Corridor:
    """The problem ẋ = u for two agents in the plane that pass a gate, with x = (x₁, x₂) ∈ ℝ⁴.

    The costs are L = ½‖u‖² + q Σᵢ Q(xᵢ) + w exp(−‖x₁ − x₂‖²/2r²) and G = ½ m‖x − target‖². Q is the
    sum of four normal densities with means at ±1.5 and ±2.5 on the first axis. In the published
    code the last term of L jumps to 0 at the distance 2.2 r; here it is smooth.

    Args of the constructor: the weights q (`obstacle`), w (`repulsion`) and m (`weight`); the
    `radius` r; the `variance` of the four densities.

    Reference: onken2022neural, section IV.
    """

    obstacle: float = 1e4
    repulsion: float = 300.0
    weight: float = 100.0
    radius: float = 0.5
    variance: float = 0.2
    diffusion: float = 0.0
    horizon: float = 1.0

    @property
    def start(self) -> Float[Tensor, "4"]:
        """The initial state (−2, −2, 2, −2)."""
        return torch.tensor([-2.0, -2.0, 2.0, -2.0], dtype=torch.float64)

    @property
    def target(self) -> Float[Tensor, "4"]:
        """The target (2, 2, −2, 2)."""
        return torch.tensor([2.0, 2.0, -2.0, 2.0], dtype=torch.float64)

    def obstacles(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
        """The value Q(x) for one agent at x."""
        centers = x.new_tensor([-2.5, -1.5, 1.5, 2.5])
        squares = (x[:, :1] - centers).square() + x[:, 1:].square()
        return torch.exp(-0.5 / self.variance * squares).sum(1) / (2 * math.pi * self.variance)

    def distance(self, x: Float[Tensor, "batch 4"]) -> Float[Tensor, " batch"]:
        """The distance ‖x₁ − x₂‖ of the two agents, which collide if it is below 2r."""
        return (x[:, :2] - x[:, 2:]).norm(dim=1)

    def drift(
        self, t: Time, x: Float[Tensor, "batch 4"], u: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch 4"]:
        """The drift u."""
        return u

    def running_cost(
        self, t: Time, x: Float[Tensor, "batch 4"], u: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, " batch"]:
        """The running cost L(x, u)."""
        close = torch.exp(-0.5 / self.radius**2 * (x[:, :2] - x[:, 2:]).square().sum(1))
        hills = self.obstacles(x[:, :2]) + self.obstacles(x[:, 2:])
        return 0.5 * u.square().sum(1) + self.obstacle * hills + self.repulsion * close

    def terminal_cost(self, x: Float[Tensor, "batch 4"]) -> Float[Tensor, " batch"]:
        """The terminal cost ½ m‖x − target‖²."""
        return 0.5 * self.weight * (x - self.target.to(x)).square().sum(1)

    def optimal_control(
        self, t: Time, x: Float[Tensor, "batch 4"], p: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch 4"]:
        """The optimal control −p."""
        return -p


@dataclass(frozen=True, eq=False)
class Quadcopter:
    """A quadcopter with the state (position, angles, velocity, angular rates) ∈ ℝ¹² and u ∈ ℝ⁴.

    The angles are yaw ψ, pitch θ and roll φ. The thrust u₁ accelerates along the axis e(ψ, θ, φ),
    and the torques u₂, u₃, u₄ change the angular rates. The costs are L = 2 + ‖u‖² and
    G = ½ m‖x − target‖². Noise is added to all states.

    Args of the constructor: σ (`diffusion`); the `mass`; `gravity`; the weight m (`weight`).

    Reference: li2024neural, section 4.3; onken2022neural.
    """

    diffusion: float = 0.2
    mass: float = 1.0
    gravity: float = 9.81
    weight: float = 5000.0
    horizon: float = 1.0

    @property
    def target(self) -> Float[Tensor, "12"]:
        """The state of rest at (2, 2, 2)."""
        return torch.tensor([2.0] * 3 + [0.0] * 9, dtype=torch.float64)

    @property
    def start(self) -> Float[Tensor, "12"]:
        """The state of rest at (−1.5, −1.5, −1.5)."""
        return torch.tensor([-1.5] * 3 + [0.0] * 9, dtype=torch.float64)

    def axis(self, x: Float[Tensor, "batch 12"]) -> Float[Tensor, "batch 3"]:
        """The direction e(ψ, θ, φ) of the thrust."""
        (s1, s2, s3), (c1, c2, c3) = x[:, 3:6].sin().unbind(1), x[:, 3:6].cos().unbind(1)
        tilted = s2 * c3
        return torch.stack([s1 * s3 + c1 * tilted, s1 * tilted - c1 * s3, c2 * c3], 1)

    def drift(
        self, t: Time, x: Float[Tensor, "batch 12"], u: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch 12"]:
        """The drift: the velocity, the angular rates, u₁e/mass − gravity, and the torques."""
        a = self.axis(x) * (u[:, :1] / self.mass)
        a = a - a.new_tensor([0.0, 0.0, self.gravity])
        return torch.cat([x[:, 6:], a, u[:, 1:]], 1)

    def running_cost(
        self, t: Time, x: Float[Tensor, "batch 12"], u: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, " batch"]:
        """The running cost 2 + ‖u‖²."""
        return 2 + u.square().sum(1)

    def terminal_cost(self, x: Float[Tensor, "batch 12"]) -> Float[Tensor, " batch"]:
        """The terminal cost ½ m‖x − target‖²."""
        return 0.5 * self.weight * (x - self.target.to(x)).square().sum(1)

    def optimal_control(
        self, t: Time, x: Float[Tensor, "batch 12"], p: Float[Tensor, "batch 12"]
    ) -> Float[Tensor, "batch 4"]:
        """The optimal controls −eᵀp₇₋₉/(2 mass) and −p₁₀₋₁₂/2."""
        thrust = (self.axis(x) * p[:, 6:9]).sum(1, keepdim=True) / self.mass
        return -0.5 * torch.cat([thrust, p[:, 9:]], 1)


guard(__name__)
