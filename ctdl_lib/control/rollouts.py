"""Paths under a policy, and their costs."""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..dynamics.deferral import holds
from ..dynamics.integration import integrate
from ..dynamics.stochastic import euler_maruyama
from ..potentials.potential import Time
from .problem import (
    ControlProblem,
    Policy,
    is_noisy,
    rates_of,
    sigma_of,
    terminal_cost_of,
)


class Rollout(NamedTuple):
    """Paths under a policy: the steps + 1 times, states, costs, and the noise ΔW.

    `running_cost` is ∫L dt, `terminal_cost` is G(x(T)), and `cost` is their sum.
    """

    t: Float[Tensor, " nodes"]
    x: Float[Tensor, "nodes batch d"]
    running_cost: Float[Tensor, " batch"]
    terminal_cost: Float[Tensor, " batch"]
    dW: Tensor | None  # noqa: N815

    @property
    def cost(self) -> Float[Tensor, " batch"]:
        """The cost of each path."""
        return self.running_cost + self.terminal_cost


class CostError(ArithmeticError):
    """A cost along a path is not finite."""


def rollout(
    problem: ControlProblem,
    policy: Policy,
    x: Float[Tensor, "batch d"],
    *,
    steps: int,
    generator: torch.Generator | None = None,
    dW: Float[Tensor, "n batch k"] | None = None,
    method: Literal["euler_maruyama", "rk4"] = "euler_maruyama",
) -> Rollout:
    """The paths from x(0) = x under u = policy(t, x), and their costs.

    Euler–Maruyama approximates ∫L dt by Σ h L(tₖ, xₖ, uₖ). RK4 requires σ = 0, and integrates L
    together with x.

    Args:
        generator, dW: the source of the noise, or the noise (steps, batch, r); neither if σ = 0.

    Raises:
        ValueError: `steps`, `method`, σ or the noise is invalid.
        CostError: a cost is not finite; the message names the sample, the state and the time.
        IntegrationError: a path is not finite.

    Reference: li2024neural, section 3.
    """
    _check_driver(is_noisy(problem), method, generator is None and dW is None)
    if method == "rk4":
        path = _deterministic(problem, policy, x, steps)
    else:
        path = _with_noise(problem, policy, x, steps, generator=generator, dW=dW)
    _check_finite(path.terminal_cost[None], path.t[-1:], path.x[-1:])
    return path


def _with_noise(
    problem: ControlProblem, policy: Policy, x: Tensor, steps: int, **noise: Any
) -> Rollout:
    """The paths by Euler–Maruyama."""
    spent = []

    def drift(t: Time, x: Tensor) -> Tensor:
        slope, cost = rates_of(problem, t, x, policy(t, x))
        spent.append(cost)
        return slope

    def sigma(t: Time, x: Tensor) -> float | Tensor:
        return sigma_of(problem, t, x)

    if not is_noisy(problem):
        noise["dW"] = x.new_zeros(steps, *x.shape)
    path = euler_maruyama(drift, sigma, x, 0.0, problem.horizon, steps=steps, **noise)
    _check_finite(torch.stack(spent), path.t, path.x)
    running = torch.stack(spent).sum(0) * (problem.horizon / steps)
    return Rollout(path.t, path.x, running, terminal_cost_of(problem, path.x[-1]), path.dW)


def _deterministic(problem: ControlProblem, policy: Policy, x: Tensor, steps: int) -> Rollout:
    """The paths without noise and their running costs by RK4."""

    def rates(t: Time, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        slope, cost = rates_of(problem, t, state[0], policy(t, state[0]))
        _check_finite(cost[None], torch.as_tensor(t).reshape(1), state[0][None])
        return slope, cost

    t = torch.linspace(0.0, problem.horizon, steps + 1, dtype=x.dtype, device=x.device)
    start = x, x.new_zeros(len(x))
    states, running = integrate(rates, start, 0.0, problem.horizon, steps=steps, save_at=t)
    return Rollout(t, states, running[-1], terminal_cost_of(problem, states[-1]), None)


def _check_driver(noisy: bool, method: str, silent: bool) -> None:
    """Refuse a method and a source of noise that do not fit σ."""
    if noisy and method == "rk4":
        raise ValueError('method="rk4" needs diffusion = 0; with noise use "euler_maruyama"')
    if not noisy and not silent:
        raise ValueError("there is no noise to draw if diffusion = 0: leave generator and dW out")


def _check_finite(costs: Tensor, t: Tensor, x: Tensor) -> None:
    """Refuse a cost that is not finite, and name its sample, state and time."""
    good = costs.isfinite()
    if not holds(good):
        k, i = (~good).nonzero()[0].tolist()
        raise CostError(
            f"the cost of sample {i} is {costs[k, i].item()} at t={t[k].item():.4g}, where"
            f" x={[round(value, 4) for value in x[k, i].tolist()]}; check(problem, x) examines the"
            " problem"
        )
