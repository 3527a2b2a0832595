"""Pontryagin's principle for networks: costates, Hamiltonians, successive approximations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from ..metrics import cross_entropy
from ..networks.resnets import Control, time_smoothness

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingProblem:
    """The problem min E[ℓ(u_N)] + Σ hₖ L(θₖ) subject to uₖ₊₁ = uₖ + hₖ f(uₖ, θₖ), u₀ given.

    Args of the constructor: `field` (u, θₖ) ↦ f of shape (batch, width), each sample by itself; the
    step size `h`, one number or one a layer; `terminal_cost` u_N ↦ ℓ, one number a sample;
    `running_cost` θₖ ↦ L.
    """

    field: Field
    u0: Float[Tensor, "batch width"]
    h: float | Float[Tensor, " layers"]
    terminal_cost: Callable[[Tensor], Tensor]
    running_cost: Callable[[Tensor], Tensor]

    def steps(self, theta: Float[Tensor, "layers ..."]) -> Float[Tensor, " layers"]:
        """The step sizes h₀, …, h_{N−1}.

        Raises:
            ValueError: there are not as many step sizes as layers.
        """
        h = torch.as_tensor(self.h, dtype=theta.dtype, device=theta.device)
        if h.dim() and len(h) != len(theta):
            raise ValueError(
                f"h has {len(h)} step sizes and theta {len(theta)} layers; give one h a layer, "
                "or a single number"
            )
        return h.expand(len(theta))


class Extremal(NamedTuple):
    """States u₀, …, u_N of all samples, and their costates p₀, …, p_N."""

    u: Float[Tensor, "nodes batch width"]
    p: Float[Tensor, "nodes batch width"]


def tanh_layer(
    u: Float[Tensor, "batch width"], theta: Float[Tensor, "width columns"]
) -> Float[Tensor, "batch width"]:
    """The field tanh(Ku + b) with θ = (K, b), b being its last column."""
    return torch.tanh(u @ theta[:, :-1].mT + theta[:, -1])


def linear_layer(
    u: Float[Tensor, "batch width"], theta: Float[Tensor, "width columns"]
) -> Float[Tensor, "batch width"]:
    """The field K tanh(u) + b with θ = (K, b), which is linear in its weights.

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

    Costates belong to single samples: those of the mean loss are theirs divided by the batch.

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
    """The values Hₖ(θₖ) = L(θₖ) + E[pₖ₊₁ᵀ f(uₖ, θₖ)] of all layers, states and costates fixed.

    If they are those of θ, then ∂J/∂θₖ = hₖ ∂Hₖ/∂θₖ and ∂J/∂hₖ = Hₖ.

    Reference: li2018maximum.
    """
    velocity = torch.vmap(problem.field)(extremal.u[:-1], theta)
    cost = torch.vmap(problem.running_cost)(theta)
    return cost + (extremal.p[1:] * velocity).sum(-1).mean(-1)


class Minimum(NamedTuple):
    """Minimisers of the Hamiltonians of all layers, and how often each H was evaluated."""

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
    """The minimisers of all Hₖ, or of the augmented ones, found by L-BFGS from θ.

    With ρ > 0, ρ/2 E‖f − f(uₖ, θₖ)‖² + ρ/2 E‖g − g(uₖ, θₖ)‖² is added, g = (∂f/∂u)ᵀpₖ₊₁, and
    charges the trial control for the change of either equation of motion. The layers do not
    interact, so one search serves them all.

    Reference: li2018maximum.
    """
    u, p = extremal.u[:-1], extremal.p[1:]
    field = torch.vmap(problem.field)
    force = torch.vmap(lambda u, p, theta: _force(problem.field, u, p, theta))
    # L-BFGS of torch wants contiguous gradients
    trial = theta.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    lbfgs = _lbfgs([trial], iterations)
    if rho:
        velocity, pull = field(u, theta).detach(), force(u, p, theta).detach()

    def augmented() -> Tensor:
        value = hamiltonian(problem, extremal, trial).sum()
        if rho:
            moved = (field(u, trial) - velocity).square() + (force(u, p, trial) - pull).square()
            value = value + rho / 2 * moved.sum(-1).mean(-1).sum()
        return value

    _search(lbfgs, augmented)
    return Minimum(trial.detach(), lbfgs.state[trial]["func_evals"])


class Residual(NamedTuple):
    """For every layer: H at θₖ, how far it is above the least value found, and ‖∂H/∂θ‖."""

    value: Float[Tensor, " layers"]
    gap: Float[Tensor, " layers"]
    gradient: Float[Tensor, " layers"]


def residual(
    problem: TrainingProblem,
    theta: Float[Tensor, "layers ..."],
    starts: tuple[Tensor, ...] = (),
) -> Residual:
    """The distances of all layers from Pontryagin's condition Hₖ(θₖ) = min Hₖ.

    Args:
        starts: controls from which the minimum is sought besides θ. H need not be convex, so the
            gap is a lower bound that grows with their number.
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
    """One sweep of successive approximations: J before it, the new control, evaluations of H."""

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
    """The sweeps of successive approximations: states forward, costates back, then each min Hₖ.

    Args:
        rho: weight of the augmented Hamiltonian; 0 is the plain method.
        damping: the part of the way to the minimisers that is gone.
        iterations: of L-BFGS, all layers at once; they need no state or costate anew.

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


def binary_step(
    B: Float[Tensor, "layers width columns"], M: Float[Tensor, "layers width columns"], share: float
) -> Float[Tensor, "layers width columns"]:
    """The signs that minimise ⟨B, M⟩, that is −sign(M), taken over only where they matter most.

    For a field linear in its weights H is ⟨B, M⟩ with M = E[pₖ₊₁ tanh(uₖ)ᵀ] up to a factor, or
    ∂J/∂B. A sign flips where it agrees with M and |M| is above 1 − share of the largest such
    |M| in its layer; share 1 is the plain method.

    Raises:
        ValueError: B holds something else than ±1, or the share is not in (0, 1].

    Reference: li2018discrete.
    """
    if not bool((B.abs() == 1).all()):
        raise ValueError("B must hold only −1 and +1; start from torch.sign of noise")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}; 1 flips all signs that agree")
    gain = (B * M).clamp(min=0)
    flips = (gain > 0) & (gain >= (1 - share) * gain.amax((1, 2), keepdim=True))
    return torch.where(flips, -B, B)


def binary_msa(
    logits: Callable[..., Tensor],
    free: list[Tensor],
    B: Float[Tensor, "layers width columns"],
    batches: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int,
    lr: float,
    share: float = 0.05,
    every: int = 10,
) -> Float[Tensor, "layers width columns"]:
    """The signs B after MSA on minibatches, while Adam trains the real `free` weights in place.

    M is averaged over the last ten batches or so; every few batches signs may flip, in the first
    60 % of the steps. Then they rest, and the free weights settle.

    Args:
        logits: (y, B) ↦ logits; it depends on the free weights, too.
        share: see `binary_step`; 0 never flips a sign.

    Reference: li2018discrete.
    """
    adam, B = torch.optim.Adam(free, lr=lr), B.clone().requires_grad_()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    M = torch.zeros_like(B)
    for k in range(steps):
        y, label = batches(k)
        adam.zero_grad()
        B.grad = None
        cross_entropy(logits(y, B), label).backward()
        M = 0.9 * M + 0.1 * (M if B.grad is None else B.grad)
        if share and (k + 1) % every == 0 and k < 0.6 * steps:
            B.data = binary_step(B.data, M, share)
        adam.step()
        schedule.step()
    return B.detach()


def gradient_descent(
    problem: TrainingProblem, theta: Float[Tensor, "layers ..."], *, rate: float, sweeps: int
) -> Iterator[Sweep]:
    """The sweeps θₖ ← θₖ − rate ∂Hₖ/∂θₖ = θₖ − (rate/hₖ) ∂J/∂θₖ."""
    theta = theta.detach()
    for index in range(sweeps):
        leaf = theta.clone().requires_grad_()
        H = hamiltonian(problem, costates(problem, theta), leaf).sum()
        loss = objective(problem, theta).item()
        theta = theta - rate * torch.autograd.grad(H, leaf)[0]
        yield Sweep(index, loss, theta, 1)


def solve(
    problem: TrainingProblem,
    theta: Float[Tensor, "layers ..."],
    *,
    iterations: int,
    smooth: float = 0.0,
) -> Float[Tensor, "layers ..."]:
    """The minimiser near θ of J(θ) + smooth/2 ∫‖∂ₜθ‖² dt, by L-BFGS in the norm of this penalty."""
    h = problem.steps(theta)[0].item()
    control = Control(theta, h, smooth)

    def penalised() -> Tensor:
        trial = control()
        return objective(problem, trial) + smooth * time_smoothness(trial, h)

    _search(_lbfgs(list(control.parameters()), iterations, 100), penalised)
    return control().detach().contiguous()


def solve_with_steps(
    problem: TrainingProblem, theta: Float[Tensor, "layers ..."], *, iterations: int
) -> tuple[Float[Tensor, "layers ..."], TrainingProblem]:
    """The minimiser of J over θ and the step sizes Σhₖ softmax(s), and the problem with these.

    Reference: benning2019deep.
    """
    h = problem.steps(theta)
    theta = theta.detach().clone().requires_grad_()
    s = h.log().requires_grad_()
    resized = lambda: replace(problem, h=h.sum() * torch.softmax(s, 0))  # noqa: E731
    _search(_lbfgs([theta, s], iterations, 50), lambda: objective(resized(), theta))
    return theta.detach(), replace(problem, h=resized().steps(theta).detach())


def polish(
    problem: TrainingProblem,
    theta: Float[Tensor, "layers ..."],
    starts: Callable[[Tensor], tuple[Tensor, ...]],
    *,
    rounds: int,
    iterations: int,
) -> Float[Tensor, "layers ..."]:
    """The control after layers far above the minimum of their H were replaced, and all trained on.

    A round replaces the layers with more than half of the largest gap, and is kept if J falls.

    Args:
        starts: θ ↦ the controls from which minima are sought besides θ.
    """
    J = objective(problem, theta).item()
    for _ in range(rounds):
        extremal = costates(problem, theta)
        trials = [
            minimize_hamiltonian(problem, extremal, start).theta
            for start in (theta, *starts(theta))
        ]
        H = torch.stack([hamiltonian(problem, extremal, trial) for trial in trials])
        best = torch.stack(trials)[H.argmin(0), torch.arange(len(theta))]
        gap = hamiltonian(problem, extremal, theta) - H.amin(0)
        worst = (gap > gap.max() / 2).reshape(-1, *[1] * (theta.dim() - 1))
        trial = solve(problem, torch.where(worst, best, theta), iterations=iterations)
        value = objective(problem, trial).item()
        if value > J - 1e-6:
            break
        theta, J = trial, value
    return theta


def _lbfgs(parameters: list[Tensor], iterations: int, memory: int = 20) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=memory,
        tolerance_grad=1e-9,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )


def _search(lbfgs: torch.optim.LBFGS, value: Callable[[], Tensor]) -> None:
    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = value()
        loss.backward()
        return loss

    lbfgs.step(closure)  # pyright: ignore[reportArgumentType]


def _force(field: Field, u: Tensor, p: Tensor, theta: Tensor) -> Tensor:
    """The product (∂f/∂u)ᵀp."""
    return vjp(lambda u: field(u, theta), u)[1](p)[0]
