"""Optimal control with a learned value function: the feedback, the HJB equation, the objective."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from .integrate import displacement, euler_maruyama, integrate
from .potentials import Derivatives, Gradient, Potential, Sigma, Time, in_blocks

Policy = Callable[[Time, Tensor], Tensor]
Box = tuple[Tensor, Tensor]


@runtime_checkable
class ControlProblem(Protocol):
    """The problem min E[∫ L(t, x, u) dt + G(x(T))] subject to dx = f(t, x, u) dt + σ dW."""

    @property
    def diffusion(self) -> Sigma:
        """The number or matrix (d, r) σ, 0 where there is no noise."""
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
        """The control u*(t, x, p) where L + pᵀf is least."""
        ...


class Rollout(NamedTuple):
    """Paths under a policy: times (steps + 1,), states, what they cost, the noise that drove them.

    `cost` is the sum of the running cost ∫L dt and of the terminal cost G(x(T)).
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


def hamiltonian(
    problem: ControlProblem, t: Time, x: Float[Tensor, "batch d"], p: Float[Tensor, "batch d"]
) -> Float[Tensor, " batch"]:
    """The Hamiltonian H(t, x, p) = min_u {L(t, x, u) + pᵀf(t, x, u)}.

    Reference: li2024neural, section 2.
    """
    u = problem.optimal_control(t, x, p)
    return problem.running_cost(t, x, u) + (p * problem.drift(t, x, u)).sum(-1)


def hjb_residual(
    problem: ControlProblem, potential: Potential, t: Time, x: Float[Tensor, "batch d"]
) -> Float[Tensor, " batch"]:
    """The residual ∂ₜΦ + H(t, x, ∇Φ) + ½ tr(σσᵀ∇²Φ), zero for the value function.

    Reference: li2024neural, section 2.
    """
    return _residual(problem, _derivatives(problem, potential, t, x), t, x)


def feedback(problem: ControlProblem, potential: Potential) -> Policy:
    """The policy u(t, x) = u*(t, x, ∇Φ(t, x)).

    Raises:
        TypeError: the problem lacks a part, such as `optimal_control`.
    """
    _check(problem)
    return lambda t, x: problem.optimal_control(t, x, potential.gradient(t, x).dx)


def rollout(
    problem: ControlProblem,
    policy: Policy,
    x: Float[Tensor, "batch d"],
    *,
    steps: int,
    generator: torch.Generator | None = None,
    dW: Tensor | None = None,
    method: Literal["euler_maruyama", "rk4"] = "euler_maruyama",
    trained_on: Box | None = None,
) -> Rollout:
    """The paths from x(0) = x under u = policy(t, x), and their costs.

    Euler–Maruyama, with ∫L dt as the sum of h L(tₖ, xₖ, uₖ); without noise also RK4, which then
    integrates L with its own order.

    Args:
        generator, dW: draws the noise, or is the noise (steps, batch, r); neither if σ = 0.
        trained_on: the lowest and highest starts that a learned policy has seen, (d,) each; starts
            outside of this box bring a warning.

    Raises:
        ValueError: `steps`, σ or the noise do not suit the problem.
        CostError: a cost is not finite; says of which sample, where and when.
        IntegrationError: a path leaves the finite numbers.

    Reference: li2024neural, section 3.
    """
    if trained_on is not None:
        _warn_outside(x, trained_on)
    _check_driver(_sigma(problem, x), steps, method, generator is None and dW is None)
    if method == "rk4":
        path = _deterministic(problem, policy, x, steps)
    else:
        path = _with_noise(problem, policy, x, steps, generator, dW)
    _check_finite(path.terminal_cost[None], path.t[-1:], path.x[-1:])
    return path


def objective(
    problem: ControlProblem,
    potential: Potential,
    x: Float[Tensor, "batch d"],
    *,
    steps: int,
    generator: torch.Generator | None = None,
    dW: Tensor | None = None,
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
    """The weighted terms of the objective, on paths from samples x of the starts.

    - `cost`: the cost E[J] of the feedback, differentiated through its paths;
    - `hjb`: the mean over paths and times of |∂ₜΦ + H + ½ tr(σσᵀ∇²Φ)|;
    - `bsde`: E Σₖ |Φₖ₊₁ − Φₖ + (H − pᵀb) h − pᵀσΔWₖ| with p = ∇Φₖ and the drift b of the paths,
      which for the value function is the noise of Itô's second-order term, not zero;
    - `terminal` and `terminal_gradient`: E|Φ − G| and E‖∇Φ − ∇G‖₁ at t = T;
    - `initial`: |E[Φ(0, x)] − E[J]|.

    A term of weight zero is not computed and not returned. The penalties take the points of the
    paths as given: they teach Φ, and do not bend paths to where a residual is small. All times of
    all paths are evaluated together.

    Args:
        sampler: the policy that paths follow, in place of the feedback of Φ. They then say nothing
            of its cost, so `cost` and `initial` must be zero.
        penalized: how many of the paths the penalties see, the first ones; by default all.

    Raises:
        ValueError: a weight is negative, all are zero, or one does not go with a `sampler`.
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
    _check(problem)
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
    """The first few of the paths."""
    costs, dW = (path.running_cost[:count], path.terminal_cost[:count]), path.dW
    return Rollout(path.t, path.x[:, :count], *costs, dW if dW is None else dW[:, :count])


def _penalties(
    problem: ControlProblem,
    potential: Potential,
    path: Rollout,
    own: bool,
    wanted: set[str],
) -> dict[str, Tensor]:
    """The terms on Φ alone, from one evaluation at all nodes of the paths, or at their ends."""
    if not wanted:
        return {}
    times, x = path.t, path.x.detach()
    if not wanted & {"hjb", "bsde"}:
        times, x = times[[0, -1]], x[[0, -1]]
    shape, t, points = x.shape[:2], times.repeat_interleave(x.shape[1]), x.flatten(0, 1)
    evaluate = potential.gradient
    if "hjb" in wanted:
        evaluate = partial(_derivatives, problem, potential)
    phi, terms = in_blocks(evaluate, t, points), {}
    if "hjb" in wanted:
        terms["hjb"] = _residual(problem, phi, t, points).abs().mean()
    value, dx = phi.value.view(shape), phi.dx.view(x.shape)
    if "bsde" in wanted:
        terms["bsde"] = _defects(problem, path, value, dx, own).abs().mean(1).sum()
    if wanted & {"terminal", "terminal_gradient"}:
        cost, pullback, *_ = vjp(problem.terminal_cost, x[-1])
        (slope,) = pullback(torch.ones_like(cost))
        gaps = {
            "terminal": (value[-1] - cost).abs().mean(),
            "terminal_gradient": (dx[-1] - slope).abs().sum(-1).mean(),
        }
        terms |= {name: gap for name, gap in gaps.items() if name in wanted}
    if "initial" in wanted:
        terms["initial"] = (value[0].mean() - path.cost.detach().mean()).abs()
    return terms


def _defects(problem: ControlProblem, path: Rollout, value: Tensor, p: Tensor, own: bool) -> Tensor:
    """The defects Φₖ₊₁ − Φₖ − (pᵀb − H) h − pᵀσΔWₖ, (steps, batch), where pᵀb − H is the rate at
    which Φ changes in the mean on paths with drift b: −L on those of its `own` feedback."""
    h, x = problem.horizon / (len(path.t) - 1), path.x.detach()
    t, points, slopes = path.t[:-1].repeat_interleave(x.shape[1]), x[:-1].flatten(0, 1), p[:-1]
    u = problem.optimal_control(t, points, slopes.flatten(0, 1))
    spent = h * problem.running_cost(t, points, u).view(value[1:].shape)
    noise = _shaken(problem, path)
    if own:
        return value.diff(dim=0) + spent - (slopes * noise).sum(-1)
    # drift and noise together are how far the path went
    went = x.diff(dim=0) - h * problem.drift(t, points, u).view(x[1:].shape)
    return value.diff(dim=0) + spent - (slopes * went).sum(-1)


def _shaken(problem: ControlProblem, path: Rollout) -> Tensor:
    """The displacements σΔW, (steps, batch, d)."""
    if path.dW is None:
        return torch.zeros_like(path.x[1:])
    return displacement(_sigma(problem, path.x), path.dW, path.x[0])


def _derivatives(
    problem: ControlProblem, potential: Potential, t: Time, x: Tensor
) -> Derivatives | Gradient:
    """The derivatives of Φ that the HJB equation asks for: without noise, not the second."""
    sigma = _sigma(problem, x)
    if isinstance(sigma, float) and sigma == 0:
        return potential.gradient(t, x)
    return potential.derivatives(t, x, sigma)


def _residual(problem: ControlProblem, phi: Derivatives | Gradient, t: Time, x: Tensor) -> Tensor:
    residual = phi.dt + hamiltonian(problem, t, x, phi.dx)
    return residual + 0.5 * phi.laplacian if isinstance(phi, Derivatives) else residual


def _with_noise(
    problem: ControlProblem,
    policy: Policy,
    x: Tensor,
    steps: int,
    generator: torch.Generator | None,
    dW: Tensor | None,
) -> Rollout:
    """The paths by Euler–Maruyama."""
    sigma, spent = _sigma(problem, x), []

    def drift(t: Time, x: Tensor) -> Tensor:
        u = policy(t, x)
        spent.append(problem.running_cost(t, x, u))
        return problem.drift(t, x, u)

    if isinstance(sigma, float) and sigma == 0:
        dW = x.new_zeros(steps, *x.shape)
    noise = {"generator": generator, "dW": dW}
    path = euler_maruyama(drift, sigma, x, 0.0, problem.horizon, steps=steps, **noise)
    _check_finite(torch.stack(spent), path.t, path.x)
    running = torch.stack(spent).sum(0) * (problem.horizon / steps)
    return Rollout(path.t, path.x, running, problem.terminal_cost(path.x[-1]), path.dW)


def _deterministic(problem: ControlProblem, policy: Policy, x: Tensor, steps: int) -> Rollout:
    """The paths without noise by RK4, which integrates the running cost along with them."""

    def rates(t: Time, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        u = policy(t, state[0])
        cost = problem.running_cost(t, state[0], u)
        _check_finite(cost[None], torch.as_tensor(t).reshape(1), state[0][None])
        return problem.drift(t, state[0], u), cost

    t = torch.linspace(0.0, problem.horizon, steps + 1, dtype=x.dtype, device=x.device)
    start = x, x.new_zeros(len(x))
    states, running = integrate(rates, start, 0.0, problem.horizon, steps=steps, save_at=t)
    return Rollout(t, states, running[-1], problem.terminal_cost(states[-1]), None)


def _sigma(problem: ControlProblem, x: Tensor) -> Sigma:
    """The diffusion as a number, or as a matrix of x's type that fits it."""
    sigma = problem.diffusion
    if not isinstance(sigma, Tensor) or sigma.dim() == 0:
        return float(sigma)
    if sigma.dim() != 2 or sigma.shape[0] != x.shape[-1]:
        raise ValueError(
            f"diffusion must be a number or a matrix ({x.shape[-1]}, r) for states of dimension"
            f" {x.shape[-1]}, got shape {tuple(sigma.shape)}; use torch.diag for a diagonal one"
        )
    return sigma.to(x)


def _check_driver(sigma: Sigma, steps: int, method: str, silent: bool) -> None:
    """Refuse steps, a method or a noise that the problem does not go with."""
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if method not in ("euler_maruyama", "rk4"):
        raise ValueError(f'method must be "euler_maruyama" or "rk4", got {method!r}')
    noisy = isinstance(sigma, Tensor) or sigma != 0
    if noisy and method == "rk4":
        raise ValueError('method="rk4" needs diffusion = 0; with noise use "euler_maruyama"')
    if not noisy and not silent:
        raise ValueError("there is no noise to draw with diffusion = 0: leave generator and dW out")


def _check(problem: ControlProblem) -> None:
    """Refuse what is no control problem, and say what is missing."""
    parts = ("drift", "diffusion", "running_cost", "terminal_cost", "optimal_control", "horizon")
    missing = [name for name in parts if not hasattr(problem, name)]
    if missing:
        hint = ""
        if "optimal_control" in missing:
            hint = "; optimal_control(t, x, p) returns the u where L(t, x, u) + pᵀf is least"
        raise TypeError(f"{type(problem).__name__} lacks {', '.join(missing)}{hint}")


def _check_weights(weights: dict[str, float], sampler: Policy | None) -> None:
    if not (all(w >= 0 for w in weights.values()) and any(weights.values())):
        raise ValueError(f"weights must not be negative, nor all zero: {weights}")
    if sampler is not None and (weights["cost"] or weights["initial"]):
        raise ValueError(
            "the cost of paths that follow a sampler is not that of the feedback: set cost=0 and"
            " initial=0, or leave the sampler out"
        )


def _check_finite(costs: Tensor, t: Tensor, x: Tensor) -> None:
    """Say of which sample, where and when a cost (nodes, batch) is not finite."""
    bad = ~costs.isfinite()
    if bad.any():
        k, i = bad.nonzero()[0].tolist()
        raise CostError(
            f"the cost of sample {i} is {costs[k, i].item()} at t={t[k].item():.4g}, where"
            f" x={[round(value, 4) for value in x[k, i].tolist()]}"
        )


def _warn_outside(x: Tensor, box: Box) -> None:
    low, high = (corner.to(x) for corner in box)
    outside = ((x < low) | (x > high)).any(-1)
    if outside.any():
        i = int(outside.nonzero()[0])
        warnings.warn(
            f"{int(outside.sum())} of {len(x)} starts lie outside the box that the policy was"
            f" trained on (sample {i} first): what it does there was never learned",
            stacklevel=3,
        )
