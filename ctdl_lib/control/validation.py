"""Checks of a control problem, which find a wrong sign or shape before any training."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..dynamics.stepping import clock, normal
from .problem import Box, ControlProblem, rates_of, sigma_of, terminal_cost_of


class Checked(NamedTuple):
    """What `check` has measured, both near zero for a consistent problem.

    `excess` is the largest of (h(u*) − min h)/(1 + |h(u*)|) for h(u) = L + pᵀf, and `slope` the
    largest relative error of a derivative.
    """

    excess: float
    slope: float


def check(
    problem: ControlProblem,
    x: Float[Tensor, "batch d"],
    *,
    generator: torch.Generator,
    bounds: Box | None = None,
    tolerance: float = 1e-3,
) -> Checked:
    """The largest errors found in a control problem at the states x, if all are small.

    At times 0, T/2 and T, with costates p ~ N(0, I), u* = optimal_control(t, x, p) is compared with
    thousands of controls near and far from it, and with −u*. The derivatives of f, L and G along
    random directions are compared with central differences.

    Args:
        bounds: the corners (low, high) of the box of allowed controls, (m,) each.
        tolerance: the largest error that is accepted; derivatives may be off by 30 times as much,
            since differences in single precision are.

    Raises:
        TypeError: the problem lacks a part.
        ValueError: a part has a wrong shape or is not finite, a control is cheaper than u*, or a
            derivative is wrong. The message names the part.
    """
    if not 0 < float(problem.horizon) < float("inf"):
        raise ValueError(f"horizon must be positive and finite, got {problem.horizon}")
    excess, slope = 0.0, 0.0
    for time in (0.0, 0.5 * problem.horizon, problem.horizon):
        t, p = clock(time, x), normal(x.shape, generator, x)
        _check_diffusion(problem, t, x)
        u = _finite(problem.optimal_control(t, x, p), "optimal_control(t, x, p)")
        if u.dim() != 2 or len(u) != len(x):
            raise ValueError(
                f"optimal_control(t, x, p) must have shape ({len(x)}, m), got {tuple(u.shape)}"
            )
        excess = max(excess, _excess(problem, t, x, p, u, bounds, tolerance, generator))
        for name, f, at in _parts(problem, t, x, u, p):
            slope = max(slope, _slope_error(f, at, name, tolerance, generator))
    return Checked(excess, slope)


def _check_diffusion(problem: ControlProblem, t: Tensor, x: Tensor) -> None:
    """Refuse a σ that fails at one time for all samples, or at one for each, as residuals have."""
    for times in (t, t.expand(len(x))):
        try:
            sigma = sigma_of(problem, times, x)
        except RuntimeError as error:
            shape = tuple(times.shape)
            raise ValueError(f"diffusion(t, x) fails for t of shape {shape}: {error}") from error
        _finite(torch.as_tensor(sigma), "diffusion")


def _parts(problem, t, x, u, p) -> list[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """The functions to differentiate, pᵀf, L and G, with their names and arguments."""
    return [
        ("drift by x", lambda x: (p * rates_of(problem, t, x, u)[0]).sum(-1), x),
        ("drift by u", lambda u: (p * rates_of(problem, t, x, u)[0]).sum(-1), u),
        ("running_cost by x", lambda x: rates_of(problem, t, x, u)[1], x),
        ("running_cost by u", lambda u: rates_of(problem, t, x, u)[1], u),
        ("terminal_cost by x", lambda x: terminal_cost_of(problem, x), x),
    ]


@torch.no_grad()
def _excess(problem, t, x, p, u, bounds, tolerance, generator) -> float:
    """The largest relative excess of h(u*) over h at other controls."""

    def h(u: Tensor) -> Tensor:
        if bounds is not None:
            u = u.clamp(*(corner.to(u) for corner in bounds))
        drift, cost = rates_of(problem, t, x, u)
        _finite(drift, "drift(t, x, u)")
        return _finite(cost, "running_cost(t, x, u)") + (p * drift).sum(-1)

    own, mirrored = h(u), h(-u)
    best = mirrored
    for size in torch.logspace(-3, 1, 160).tolist():
        best = torch.minimum(best, h(u + size * (1 + u.abs()) * normal(u.shape, generator, u)))
    excess = (own - best) / (1 + own.abs())
    worst = int(excess.argmax())
    if excess[worst] > tolerance:
        hint = "; is its sign right?" if mirrored[worst] < own[worst] else ""
        found = f"{float(own[worst]):.6g} at u*, but {float(best[worst]):.6g} elsewhere{hint}"
        raise ValueError(
            f"optimal_control does not minimise L + pᵀf, which at t={float(t):.4g} in sample"
            f" {worst} is {found}"
        )
    return max(0.0, float(excess[worst]))


def _slope_error(
    f: Callable[[Tensor], Tensor], at: Tensor, name: str, tolerance: float, generator
) -> float:
    """The largest relative error of the derivative of f along a random direction."""
    direction = normal(at.shape, generator, at)
    with torch.enable_grad():
        point = at.detach().clone().requires_grad_()
        value = f(point)
        gradient = torch.zeros_like(point)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), point)
    h = torch.finfo(at.dtype).eps ** (1 / 3)
    with torch.no_grad():
        difference = (f(at + h * direction) - f(at - h * direction)) / (2 * h)
        slope = (gradient * direction).sum(-1)
        error = (slope - difference).abs() / (1 + difference.abs() + value.abs())
    worst = int(error.argmax())
    if error[worst] > 30 * tolerance:
        raise ValueError(
            f"the derivative of {name} is {float(slope[worst]):.6g} in sample {worst}, but central"
            f" differences give {float(difference[worst]):.6g}: look for .detach(), torch.no_grad()"
            " or NumPy in it"
        )
    return float(error[worst])


def _finite(value: Tensor, name: str) -> Tensor:
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} is not finite at some of the states x")
    return value
