"""Pontryagin's principle for networks: costates, Hamiltonians, successive approximations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingProblem:
    """The problem min E[ℓ(u_N)] + Σ hₖ L(θₖ) subject to uₖ₊₁ = uₖ + hₖ f(uₖ, θₖ), u₀ given.

    Args of the constructor: the `field` (u, θₖ) ↦ f of shape (batch, width), which treats samples
    independently; the initial states `u0`; the step size `h`, one number or one per layer; the
    `terminal_cost` u_N ↦ ℓ of shape (batch,); the `running_cost` θₖ ↦ L, a scalar.
    """

    field: Field
    u0: Float[Tensor, "batch width"]
    h: float | Float[Tensor, " layers"]
    terminal_cost: Callable[[Tensor], Tensor]
    running_cost: Callable[[Tensor], Tensor]

    def steps(self, theta: Float[Tensor, "layers ..."]) -> Float[Tensor, " layers"]:
        """The step sizes h₀, …, h_{N−1}.

        Raises:
            ValueError: the numbers of step sizes and layers differ.
        """
        h = torch.as_tensor(self.h, dtype=theta.dtype, device=theta.device)
        if h.dim() and len(h) != len(theta):
            raise ValueError(
                f"h has {len(h)} step sizes and theta {len(theta)} layers: give one step size per"
                " layer, or a single number"
            )
        return h.expand(len(theta))


class Extremal(NamedTuple):
    """States u₀, …, u_N of all samples, and their costates p₀, …, p_N."""

    u: Float[Tensor, "nodes batch width"]
    p: Float[Tensor, "nodes batch width"]


def tanh_layer(
    u: Float[Tensor, "batch width"], theta: Float[Tensor, "width columns"]
) -> Float[Tensor, "batch width"]:
    """The field tanh(Ku + b), where b is the last column of θ = (K, b)."""
    return torch.tanh(u @ theta[:, :-1].mT + theta[:, -1])


def linear_layer(
    u: Float[Tensor, "batch width"], theta: Float[Tensor, "width columns"]
) -> Float[Tensor, "batch width"]:
    """The field K tanh(u) + b with θ = (K, b), which is linear in θ.

    Reference: li2018discrete.
    """
    return torch.tanh(u) @ theta[:, :-1].mT + theta[:, -1]


def states(
    problem: TrainingProblem, theta: Float[Tensor, "layers ..."]
) -> Float[Tensor, "nodes batch width"]:
    """The states u₀, …, u_N of uₖ₊₁ = uₖ + hₖ f(uₖ, θₖ), stacked."""
    u = [problem.u0]
    for theta_k, h in zip(theta, problem.steps(theta), strict=True):
        u.append(u[-1] + h * problem.field(u[-1], theta_k))
    return torch.stack(u)


def objective(problem: TrainingProblem, theta: Float[Tensor, "layers ..."]) -> Float[Tensor, ""]:
    """The value J(θ) = E[ℓ(u_N)] + Σ hₖ L(θₖ)."""
    cost = torch.vmap(problem.running_cost)(theta)
    return problem.terminal_cost(states(problem, theta)[-1]).mean() + problem.steps(theta) @ cost


def costates(problem: TrainingProblem, theta: Float[Tensor, "layers ..."]) -> Extremal:
    """The states and pₖ = pₖ₊₁ + hₖ (∂f/∂u)ᵀ pₖ₊₁ with p_N = ∇ℓ(u_N), so that pₖ = ∂ℓ/∂uₖ.

    Each costate is the derivative of the sample's own loss ℓ. Division by the batch size gives the
    derivatives of the mean loss.

    Reference: li2018maximum.
    """
    theta = theta.detach()
    u = states(problem, theta).detach()
    end = u[-1].clone().requires_grad_()
    p = [torch.autograd.grad(problem.terminal_cost(end).sum(), end)[0]]
    for k in reversed(range(len(theta))):
        pulled = _force(problem.field, u[k], p[-1], theta[k])
        p.append(p[-1] + problem.steps(theta)[k] * pulled)
    return Extremal(u, torch.stack(p[::-1]).detach())


def hamiltonian(
    problem: TrainingProblem, extremal: Extremal, theta: Float[Tensor, "layers ..."]
) -> Float[Tensor, " layers"]:
    """The values Hₖ(θₖ) = L(θₖ) + E[pₖ₊₁ᵀ f(uₖ, θₖ)] of all layers, for fixed states and costates.

    If the states and costates belong to θ, then ∂J/∂θₖ = hₖ ∂Hₖ/∂θₖ and ∂J/∂hₖ = Hₖ.

    Reference: li2018maximum.
    """
    velocity = torch.vmap(problem.field)(extremal.u[:-1], theta)
    cost = torch.vmap(problem.running_cost)(theta)
    return cost + (extremal.p[1:] * velocity).sum(-1).mean(-1)


class Minimum(NamedTuple):
    """The minimisers of the Hamiltonians of all layers, and the number of evaluations of each H."""

    theta: Float[Tensor, "layers ..."]
    evaluations: int


def minimize_hamiltonian(
    problem: TrainingProblem,
    extremal: Extremal,
    theta: Float[Tensor, "layers ..."],
    *,
    rho: float = 0.0,
    iterations: int = 100,
) -> Minimum:
    """The minimisers of the Hamiltonians of all layers, found by L-BFGS from θ.

    With ρ > 0 the augmented Hamiltonians are minimised. They contain the additional terms
    ρ/2 E‖f − f(uₖ, θₖ)‖² + ρ/2 E‖g − g(uₖ, θₖ)‖² with g = (∂f/∂u)ᵀpₖ₊₁, which penalise changes of
    the state equation and of the costate equation. The layers are independent of each other, so a
    single search minimises the sum of all Hamiltonians.

    Reference: li2018maximum.
    """
    u, p = extremal.u[:-1], extremal.p[1:]
    field = torch.vmap(problem.field)
    force = torch.vmap(lambda u, p, theta: _force(problem.field, u, p, theta))
    # L-BFGS of torch needs contiguous gradients
    trial = theta.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = lbfgs([trial], iterations)
    if rho:
        velocity, pull = field(u, theta).detach(), force(u, p, theta).detach()

    def augmented() -> Tensor:
        value = hamiltonian(problem, extremal, trial).sum()
        if rho:
            moved = (field(u, trial) - velocity).square() + (force(u, p, trial) - pull).square()
            value = value + rho / 2 * moved.sum(-1).mean(-1).sum()
        return value

    search(optimizer, augmented)
    return Minimum(trial.detach(), optimizer.state[trial]["func_evals"])


class Residual(NamedTuple):
    """For each layer: the value H(θₖ), its gap to the smallest value found, and ‖∂H/∂θₖ‖."""

    value: Float[Tensor, " layers"]
    gap: Float[Tensor, " layers"]
    gradient: Float[Tensor, " layers"]


def residual(
    problem: TrainingProblem,
    theta: Float[Tensor, "layers ..."],
    starts: tuple[Tensor, ...] = (),
) -> Residual:
    """The residuals of Pontryagin's condition Hₖ(θₖ) = min Hₖ in all layers.

    Args:
        starts: further controls, besides θ, from which H is minimised. H need not be convex, so
            the gap is a lower bound. More starts can only raise it.
    """
    extremal = costates(problem, theta)
    theta = theta.detach().clone().requires_grad_()
    value = hamiltonian(problem, extremal, theta)
    gradient = torch.autograd.grad(value.sum(), theta)[0].flatten(1).norm(dim=1)
    found = [minimize_hamiltonian(problem, extremal, start) for start in (theta, *starts)]
    least = torch.stack([hamiltonian(problem, extremal, trial.theta) for trial in found]).amin(0)
    value = value.detach()
    return Residual(value, (value - least).clamp(min=0), gradient)


@dataclass(frozen=True)
class Sweep:
    """The record of a sweep: J before it, the new control, and the number of evaluations of H."""

    index: int
    loss: float
    theta: Tensor
    evaluations: int


def msa(
    problem: TrainingProblem,
    theta: Float[Tensor, "layers ..."],
    *,
    sweeps: int,
    rho: float = 0.0,
    damping: float = 1.0,
    iterations: int = 20,
) -> Iterator[Sweep]:
    """The sweeps of the method of successive approximations (MSA), started at θ.

    A sweep computes the states forward and the costates backward, and then minimises each Hₖ.

    Args:
        rho: the weight ρ of the augmented Hamiltonian; 0 gives the plain method.
        damping: the factor of the step θ ← θ + damping (θ* − θ) towards the minimisers θ*.
        iterations: the iterations of L-BFGS for all layers, with fixed states and costates.

    Reference: li2018maximum.
    """
    if not 0 < damping <= 1 or rho < 0:
        raise ValueError(f"damping must be in (0, 1] and rho ≥ 0, got {damping=}, {rho=}")
    theta = theta.detach()
    for index in range(sweeps):
        loss = objective(problem, theta).item()
        best = minimize_hamiltonian(
            problem, costates(problem, theta), theta, rho=rho, iterations=iterations
        )
        theta = theta + damping * (best.theta - theta)
        yield Sweep(index, loss, theta, best.evaluations)


def lbfgs(parameters: list[Tensor], iterations: int, memory: int = 20) -> torch.optim.LBFGS:
    """The optimizer L-BFGS with a strong Wolfe line search and tight tolerances."""
    return torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=memory,
        tolerance_grad=1e-9,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )


def search(optimizer: torch.optim.LBFGS, value: Callable[[], Tensor]) -> None:
    """Set the parameters of the optimizer to a minimiser of `value()`."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]


def _force(field: Field, u: Tensor, p: Tensor, theta: Tensor) -> Tensor:
    """The product (∂f/∂u)ᵀp."""
    return vjp(lambda u: field(u, theta), u)[1](p)[0]
