"""Solvers that the chapter on optimal control compares: signs, descent, L-BFGS and polishing."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.learning.pontryagin import (
    Sweep,
    TrainingProblem,
    costates,
    hamiltonian,
    lbfgs,
    minimize_hamiltonian,
    objective,
    search,
)
from ctdl_lib.metrics import cross_entropy
from ctdl_lib.networks import Control, time_smoothness


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

    search(lbfgs(list(control.parameters()), iterations, 100), penalised)
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
    search(lbfgs([theta, s], iterations, 50), lambda: objective(resized(), theta))
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
