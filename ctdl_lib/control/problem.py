"""A control problem, its Hamiltonian, the HJB equation, and the feedback of a potential."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..dynamics.stepping import as_tensor, same_shape
from ..potentials.potential import (
    Derivatives,
    Gradient,
    Potential,
    Sigma,
    Time,
    derivatives_along,
)

Policy = Callable[[Time, Tensor], Tensor]
Diffusion = Sigma | Callable[[Time, Tensor], float | Tensor]
Box = tuple[Tensor, Tensor]


@runtime_checkable
class ControlProblem(Protocol):
    """The problem min E[∫ L(t, x, u) dt + G(x(T))] subject to dx = f(t, x, u) dt + σ dW."""

    @property
    def diffusion(self) -> Diffusion:
        """The number or matrix (d, r) σ, which is 0 without noise, or a function (t, x) ↦ σ(t, x).

        The function may return one number or matrix per sample, (batch,) or (batch, d, r). It has
        to, where it depends on t, which is one time for all samples or one for each, (batch,).
        """
        ...

    @property
    def horizon(self) -> float:
        """The time T."""
        ...

    def drift(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch m"]
    ) -> Float[Tensor, "batch d"]:
        """The value f(t, x, u)."""
        ...

    def running_cost(
        self, t: Time, x: Float[Tensor, "batch d"], u: Float[Tensor, "batch m"]
    ) -> Float[Tensor, " batch"]:
        """The value L(t, x, u)."""
        ...

    def terminal_cost(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value G(x)."""
        ...

    def optimal_control(
        self, t: Time, x: Float[Tensor, "batch d"], p: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch m"]:
        """The control u*(t, x, p) that minimises L + pᵀf."""
        ...


def hamiltonian(
    problem: ControlProblem, t: Time, x: Float[Tensor, "batch d"], p: Float[Tensor, "batch d"]
) -> Float[Tensor, " batch"]:
    """The Hamiltonian H(t, x, p) = min_u {L(t, x, u) + pᵀf(t, x, u)}.

    Raises:
        ValueError: p, the drift or the running cost has a wrong shape.

    Reference: li2024neural, section 2.
    """
    u = problem.optimal_control(t, x, same_shape(p, x.shape, "p"))
    drift, cost = rates_of(problem, t, x, u)
    return cost + (p * drift).sum(-1)


def rates_of(problem: ControlProblem, t: Time, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The drift f(t, x, u) and the running cost L(t, x, u), after a check of their shapes."""
    as_tensor(u, "the control u(t, x)")
    try:
        cost = same_shape(problem.running_cost(t, x, u), x.shape[:1], "running_cost(t, x, u)")
        return same_shape(problem.drift(t, x, u), x.shape, "drift(t, x, u)"), cost
    except ValueError as error:
        raise ValueError(f"{error}; check(problem, x) examines every part") from error


def terminal_cost_of(problem: ControlProblem, x: Tensor) -> Tensor:
    """The terminal cost G(x), after a check of its shape."""
    return same_shape(problem.terminal_cost(x), x.shape[:1], "terminal_cost(x)")


def hjb_residual(
    problem: ControlProblem, potential: Potential, t: Time, x: Float[Tensor, "batch d"]
) -> Float[Tensor, " batch"]:
    """The residual ∂ₜΦ + H(t, x, ∇Φ) + ½ tr(σσᵀ∇²Φ), zero for the value function.

    Reference: li2024neural, section 2.
    """
    return residual_of(problem, needed_derivatives(problem, potential, t, x), t, x)


def feedback(problem: ControlProblem, potential: Potential) -> Policy:
    """The policy u(t, x) = u*(t, x, ∇Φ(t, x)).

    Raises:
        TypeError: the problem lacks a part, such as `optimal_control`.
    """
    return lambda t, x: problem.optimal_control(t, x, potential.gradient(t, x).dx)


def needed_derivatives(
    problem: ControlProblem, potential: Potential, t: Time, x: Tensor
) -> Derivatives | Gradient:
    """The derivatives of Φ in the HJB equation, without second ones if σ = 0."""
    sigma = sigma_of(problem, t, x)
    if isinstance(sigma, float) and sigma == 0:
        return potential.gradient(t, x)
    if isinstance(sigma, Tensor) and sigma.dim() == 3:
        return derivatives_along(potential, t, x, sigma)
    return potential.derivatives(t, x, sigma)


def residual_of(problem: ControlProblem, phi: Derivatives | Gradient, t: Time, x: Tensor) -> Tensor:
    """The residual of the HJB equation, from the derivatives of Φ."""
    residual = phi.dt + hamiltonian(problem, t, x, phi.dx)
    return residual + 0.5 * phi.laplacian if isinstance(phi, Derivatives) else residual


def sigma_of(problem: ControlProblem, t: Time, x: Tensor) -> float | Tensor:
    """The diffusion σ(t, x): a number, or a matrix (d, r) or matrices (batch, d, r) like x.

    Numbers (batch,) of a function, one a sample, become multiples of the identity.
    """
    sigma, places = problem.diffusion, (x.shape[1:],)
    if callable(sigma):
        sigma, places = sigma(t, x), (x.shape[1:], x.shape)
        if isinstance(sigma, Tensor) and sigma.dim() == 0:
            return sigma.to(x)
        if isinstance(sigma, Tensor) and sigma.shape == x.shape[:1]:
            return sigma.to(x)[:, None, None] * torch.eye(x.shape[1]).to(x)
    if not isinstance(sigma, Tensor) or sigma.dim() == 0:
        return float(sigma)
    if sigma.shape[:-1] not in places:
        raise ValueError(
            f"diffusion must be a number or a matrix ({x.shape[-1]}, r) for states of dimension"
            f" {x.shape[-1]}, or a function (t, x) of these that may return (batch,) or (batch,"
            f" {x.shape[-1]}, r), got shape {tuple(sigma.shape)}; use torch.diag or diag_embed for"
            " a diagonal σ"
        )
    return sigma.to(x)


def is_noisy(problem: ControlProblem) -> bool:
    """The answer to whether σ is a function, a matrix, or a number that is not zero."""
    sigma = problem.diffusion
    return callable(sigma) or (isinstance(sigma, Tensor) and sigma.dim() > 0) or float(sigma) != 0
