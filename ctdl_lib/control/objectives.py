"""The objective for learning a value function."""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from ..dynamics.stochastic import displacement
from ..potentials.potential import Potential, in_blocks
from .problem import (
    ControlProblem,
    Policy,
    feedback,
    needed_derivatives,
    residual_of,
    sigma_of,
)
from .rollouts import Rollout, rollout


def objective(
    problem: ControlProblem,
    potential: Potential,
    x: Float[Tensor, "batch d"],
    *,
    steps: int,
    generator: torch.Generator | None = None,
    dW: Float[Tensor, "n batch k"] | None = None,
    method: Literal["euler_maruyama", "rk4"] = "euler_maruyama",
    sampler: Policy | None = None,
    penalized: int | None = None,
    cost: float = 1.0,
    hjb: float = 0.0,
    bsde: float = 0.0,
    terminal: float = 0.0,
    terminal_gradient: float = 0.0,
    initial: float = 0.0,
) -> dict[str, Float[Tensor, ""]]:
    """The weighted terms of the objective, on paths that start at x.

    - `cost`: the cost E[J] of the feedback, differentiated through its paths;
    - `hjb`: the mean over paths and times of |∂ₜΦ + H + ½ tr(σσᵀ∇²Φ)|;
    - `bsde`: E Σₖ |Φₖ₊₁ − Φₖ + (H − pᵀb) h − pᵀσΔWₖ| with p = ∇Φₖ and the drift b of the paths.
      With noise it is positive even for the value function, by Itô's second-order term;
    - `terminal` and `terminal_gradient`: E|Φ − G| and E‖∇Φ − ∇G‖₁ at t = T;
    - `initial`: |E[Φ(0, x)] − E[J]|.

    Terms of weight zero are neither computed nor returned. The penalties treat the paths as
    constants, so their gradients do not move the paths to points with small residuals.

    Args:
        sampler: a policy that the paths follow instead of the feedback of Φ. J is then not the cost
            of the feedback, so `cost` and `initial` must be zero.
        penalized: the penalties use only this number of paths, the first ones; by default all.

    Raises:
        ValueError: a weight is negative, all are zero, or `cost` or `initial` is set along with a
            `sampler`.
        TypeError: the problem lacks a part, such as `optimal_control`.

    Reference: li2024neural, section 3.
    """
    weights = {
        "cost": cost,
        "hjb": hjb,
        "bsde": bsde,
        "terminal": terminal,
        "terminal_gradient": terminal_gradient,
        "initial": initial,
    }
    _check_weights(weights, sampler)
    policy = feedback(problem, potential) if sampler is None else sampler
    with torch.set_grad_enabled(torch.is_grad_enabled() and cost > 0):
        path = rollout(problem, policy, x, steps=steps, generator=generator, dW=dW, method=method)
    terms = {"cost": path.cost.mean()} if cost else {}
    if penalized is not None:
        path = _first(path, penalized)
    wanted = {name for name, weight in weights.items() if weight} - {"cost"}
    terms |= _penalties(problem, potential, path, sampler is None, wanted)
    return {name: weights[name] * term for name, term in terms.items()}


def _first(path: Rollout, count: int) -> Rollout:
    """The first `count` paths."""
    costs, dW = (path.running_cost[:count], path.terminal_cost[:count]), path.dW
    return Rollout(path.t, path.x[:, :count], *costs, dW if dW is None else dW[:, :count])


def _penalties(
    problem: ControlProblem, potential: Potential, path: Rollout, own: bool, wanted: set[str]
) -> dict[str, Tensor]:
    """The penalties, from one evaluation of Φ at all nodes of the paths, or at their ends."""
    if not wanted:
        return {}
    times, x = path.t, path.x.detach()
    if not wanted & {"hjb", "bsde"}:
        times, x = (torch.stack([part[0], part[-1]]) for part in (times, x))
    shape, t, points = x.shape[:2], times.repeat_interleave(x.shape[1]), x.flatten(0, 1)
    evaluate = potential.gradient
    if "hjb" in wanted:
        evaluate = partial(needed_derivatives, problem, potential)
    phi, terms = in_blocks(evaluate, t, points), {}
    if "hjb" in wanted:
        terms["hjb"] = residual_of(problem, phi, t, points).abs().mean()
    value, dx = phi.value.view(shape), phi.dx.view(x.shape)
    if "bsde" in wanted:
        terms["bsde"] = _defects(problem, path, value, dx, own).abs().mean(1).sum()
    if wanted & {"terminal", "terminal_gradient"}:
        cost, pullback, *_ = vjp(problem.terminal_cost, x[-1])
        (slope,) = pullback(torch.ones_like(cost))
        terms["terminal"] = (value[-1] - cost).abs().mean()
        terms["terminal_gradient"] = (dx[-1] - slope).abs().sum(-1).mean()
    if "initial" in wanted:
        terms["initial"] = (value[0].mean() - path.cost.detach().mean()).abs()
    return {name: term for name, term in terms.items() if name in wanted}


def _defects(problem: ControlProblem, path: Rollout, value: Tensor, p: Tensor, own: bool) -> Tensor:
    """The defects Φₖ₊₁ − Φₖ + (H − pᵀb) h − pᵀσΔWₖ, (steps, batch).

    H − pᵀb is L if b is the drift of the `own` feedback of Φ, else L + pᵀ(f − b).
    """
    h, x = problem.horizon / (len(path.t) - 1), path.x.detach()
    t, points, slopes = path.t[:-1].repeat_interleave(x.shape[1]), x[:-1].flatten(0, 1), p[:-1]
    u = problem.optimal_control(t, points, slopes.flatten(0, 1))
    spent = h * problem.running_cost(t, points, u).view(value[1:].shape)
    if not own:  # the step xₖ₊₁ − xₖ of the path is b h + σΔWₖ
        moved = x.diff(dim=0) - h * problem.drift(t, points, u).view(x[1:].shape)
    elif path.dW is None:
        moved = torch.zeros_like(x[1:])
    else:
        sigma = sigma_of(problem, t, points)
        moved = displacement(sigma, path.dW.flatten(0, 1), points).view(x[1:].shape)
    return value.diff(dim=0) + spent - (slopes * moved).sum(-1)


def _check_weights(weights: dict[str, float], sampler: Policy | None) -> None:
    if not (all(w >= 0 for w in weights.values()) and any(weights.values())):
        raise ValueError(f"weights must not be negative, nor all zero: {weights}")
    if sampler is not None and (weights["cost"] or weights["initial"]):
        raise ValueError(
            "paths of a sampler do not have the cost of the feedback: set cost=0 and initial=0, or"
            " leave the sampler out"
        )
