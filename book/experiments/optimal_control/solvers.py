"""Solvers of the chapter on optimal control: binary weights, gradient descent and L-BFGS."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.metrics import cross_entropy
from ctdl_lib.networks import Control, time_smoothness

from .pontryagin import (
    Sweep,
    TrainingProblem,
    costates,
    hamiltonian,
    lbfgs,
    objective,
    search,
)


def binary_step(
    B: Float[Tensor, "layers width columns"], M: Float[Tensor, "layers width columns"], share: float
) -> Float[Tensor, "layers width columns"]:
    """The signs B after those that raise ⟨B, M⟩ most have been flipped.

    If the field is linear in its weights, then H = ⟨B, M⟩ with M = E[pₖ₊₁ tanh(uₖ)ᵀ], which is
    ∂J/∂B up to a factor. An entry of B with the sign of M flips if |M| is at least 1 − share times
    the largest such |M| in its layer. With share = 1 the result is the minimiser −sign(M).

    Raises:
        ValueError: an entry of B is not ±1, or `share` is not in (0, 1].

    Reference: li2018discrete.
    """
    if not bool((B.abs() == 1).all()):
        raise ValueError("B must have only −1 and +1 as entries: start from torch.sign of noise")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}: 1 flips all signs equal to M's")
    gain = (B * M).clamp(min=0)
    flips = (gain > 0) & (gain >= (1 - share) * gain.amax((1, 2), keepdim=True))
    return torch.where(flips, -B, B)


def binary_msa(
    logits: Callable[..., Tensor],
    free: list[Tensor],
    B: Float[Tensor, "layers width columns"],
    batches: Callable[[int], tuple[Tensor, ...]],
    *,
    steps: int,
    lr: float,
    share: float = 0.05,
    every: int = 10,
) -> Float[Tensor, "layers width columns"]:
    """The signs B after MSA on minibatches, while Adam trains the real `free` weights in place.

    M is an exponential average of ∂J/∂B over about ten batches. During the first 60 % of the steps,
    `binary_step` flips signs after every `every` batches. Afterwards only the free weights change.

    Args:
        logits: (y, B) ↦ logits, which also depend on the free weights.
        batches: step ↦ (y, labels).
        lr: the initial learning rate of Adam, which decreases to 0 along a cosine.
        share: the argument of `binary_step`; with 0 no sign flips.

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
    """The control after `iterations` of L-BFGS for J(θ) + smooth/2 ∫‖∂ₜθ‖² dt, started at θ.

    L-BFGS works in the coordinates of `Control`, in which the penalty is well conditioned.
    """
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
    """The minimiser of J over θ and the step sizes h, and the problem with these step sizes.

    The step sizes are h = T softmax(s) with a fixed sum T.

    Reference: benning2019deep.
    """
    h = problem.steps(theta)
    theta = theta.detach().clone().requires_grad_()
    s = h.log().requires_grad_()
    resized = lambda: replace(problem, h=h.sum() * torch.softmax(s, 0))  # noqa: E731
    search(lbfgs([theta, s], iterations, 50), lambda: objective(resized(), theta))
    return theta.detach(), replace(problem, h=resized().steps(theta).detach())
