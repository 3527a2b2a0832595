"""Time integration of ẋ = f(t, x), with fixed steps, or with the adaptive steps of torchdiffeq."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint

from .adjoint import parameters_of, solve_with_adjoint
from .stepping import METHODS, OnTuples, Statistics, Tensors, Velocity, hermite, same_shape, step

State = TypeVar("State", bound=Tensor | tuple[Tensor, ...])
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


class IntegrationError(ArithmeticError):
    """The solution is not finite, or it needs more steps than allowed."""


def integrate(
    f: Velocity,
    state: State,
    t0: float,
    t1: float,
    *,
    steps: int | None = None,
    tol: float | None = None,
    method: str | None = None,
    backprop: Literal["through", "adjoint", "recompute"] = "through",
    parameters: Iterable[Tensor] | None = None,
    save_at: Sequence[float] | Tensor | None = None,
    max_steps: int = 10_000,
    statistics: Statistics | None = None,
) -> State:
    """The solution x(t₁) of ẋ = f(t, x), x(t₀) = `state`, or x at the times `save_at`, stacked.

    `state` is a tensor or a (named) tuple of tensors. f receives and returns the same type, which
    is also the type of the result. If t₁ < t₀, the equation is integrated backward in time.

    Args:
        steps: the number of equal steps of `method` "euler", "midpoint", "heun", "rk4" (default) or
            "verlet". Störmer–Verlet needs a state (q, p) where q̇ depends on p alone and ṗ on q
            alone.
        tol: the relative and absolute tolerance of the adaptive `method` "dopri5" (default),
            "dopri8", "bosh3", "fehlberg2" or "adaptive_heun". Give exactly one of `steps` and
            `tol`.
        backprop: "through" stores every stage and differentiates the discrete steps. "recompute"
            gives the same gradient, but stores only the states on the grid and evaluates each
            stage a second time. "adjoint" solves −ṗ = (∂f/∂x)ᵀp backward. Its memory does not grow
            with the number of steps, and its gradient is exact only in the limit of small steps.
        parameters: further tensors for which "adjoint" computes gradients. The parameters of f are
            included if f is an `nn.Module` or a method of one. The other modes need no list.
        save_at: times between t₀ and t₁ in the order of integration. With `steps`, states between
            grid points are values of cubic Hermite interpolants.
        max_steps: the largest number of steps of an adaptive method, accepted or rejected.
        statistics: an object to which the counts of this call are added.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it and a remedy.
        IntegrationError: the state is not finite, or `max_steps` is reached; the message gives t.

    Reference: hairer1993solving, chapters II.1 and II.6; chen2018neural, section 2.
    """
    method = _checked_method(steps, tol, method, backprop)
    x = state if isinstance(state, tuple) else (state,)
    _check_state(x, method)
    _refuse_gradients_of_times(t0=t0, t1=t1, save_at=save_at)
    t0, t1 = float(t0), float(t1)
    times = _checked_times(t0, t1, save_at)
    x = tuple(part.clone() for part in x)  # f may be refused only after it has changed x
    g = OnTuples(f, state, Statistics() if statistics is None else statistics)
    if steps is not None:
        solve = _Fixed(method, abs(t1 - t0) / steps, backprop == "recompute")
    else:
        solve = _Adaptive(method, tol or 0.0, max_steps)
    if backprop == "adjoint" and torch.is_grad_enabled():
        path = solve_with_adjoint(solve, g, x, t0, t1, times, parameters_of(f, parameters))
    else:
        path = solve(g, x, t0, t1, times)
    return g.pack(path if save_at is not None else tuple(part[-1] for part in path))


@dataclass(frozen=True)
class _Fixed:
    """A solver with equal steps of size h, which returns the states at `times`, stacked."""

    method: str
    h: float
    recompute: bool

    def __call__(
        self, f: OnTuples, x: Tensors, t0: float, t1: float, times: list[float]
    ) -> Tensors:
        # The adjoint equation adds components to (q, p); midpoint has the same order as Verlet.
        method = "midpoint" if self.method == "verlet" and len(x) != 2 else self.method
        nodes = self.nodes(t0, t1)
        wanted = _in_steps(times, t0, t1, len(nodes) - 1)
        start, saved, slope = x, [x] if wanted[0] == 0 else [], None
        for k, (t, t_next) in enumerate(pairwise(nodes)):
            between = [s - k for s in wanted if k < s < k + 1]
            h = t_next - t
            if between:  # the slope at the end is reused as the first stage of the next step
                slope = slope or self.remember(f, t, x)
                end = self.remember(step, method, f, t, h, x, slope)
                following = self.remember(f, t_next, end)
                saved += [hermite(h, x, end, slope, following, s) for s in between]
                slope = following
            else:
                end, slope = self.remember(step, method, f, t, h, x, slope), None
            f.statistics.accepted += 1
            x = end
            if k + 1 in wanted:
                saved.append(x)
            if len(saved) == len(wanted):
                break
        if not _finite(x):
            raise IntegrationError(_blame(method, f, start, nodes))
        return tuple(torch.stack(parts) for parts in zip(*saved, strict=True))

    def nodes(self, t0: float, t1: float) -> list[float]:
        # Repeated addition of h would miss t1 by rounding; weighted means meet both ends exactly.
        n = max(1, round(abs(t1 - t0) / self.h))
        return [(t0 * (n - k) + t1 * k) / n for k in range(n + 1)]

    def remember(self, function: Callable, *args):
        """Call the function; with "recompute", keep only its arguments for the backward pass."""
        if not (self.recompute and torch.is_grad_enabled()):
            return function(*args)
        return checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
        )


def _in_steps(times: list[float], t0: float, t1: float, steps: int) -> list[float]:
    """The times in units of steps, as integers where they are grid points up to rounding."""
    indices = [steps * (t - t0) / (t1 - t0) for t in times]
    return [float(round(i)) if abs(i - round(i)) < 1e-9 * steps else i for i in indices]


@dataclass(frozen=True)
class _Adaptive:
    """A solver with adaptive steps, which returns the states at `times`, stacked."""

    method: str
    tol: float
    max_steps: int

    def __call__(
        self, f: OnTuples, x: Tensors, t0: float, t1: float, times: list[float]
    ) -> Tensors:
        # torchdiffeq needs strictly monotone times that begin with t0
        ts = times if times[0] == t0 else [t0, *times]
        if len(ts) == 1:
            return tuple(part[None] for part in x)
        monitored = _Monitored(f, t0, self.max_steps)
        grid = torch.tensor(ts, dtype=torch.float64, device=x[0].device)
        try:
            path: Any = odeint(
                monitored,
                x[0] if len(x) == 1 else x,  # torchdiffeq copies a tuple in each evaluation
                grid,
                rtol=self.tol,
                atol=self.tol,
                method=self.method,
                # end a step at t1, which is more accurate than the interpolant inside of a step
                options={"step_t": grid[-1:]},
            )
        except AssertionError as error:
            raise IntegrationError(
                f"{self.method} stopped at t={monitored.t:.6g} ({error}): the velocity is not"
                " finite there, or so stiff that no step meets tol"
            ) from error
        path = (path,) if isinstance(path, Tensor) else tuple(path)
        if not _finite(path):
            raise IntegrationError(f"the state is not finite at t={t1:.6g}: bound the velocity")
        return tuple(part[len(ts) - len(times) :] for part in path)


class _Monitored:
    """A velocity for torchdiffeq, with the callbacks that torchdiffeq calls at each step."""

    def __init__(self, f: OnTuples, t0: float, max_steps: int):
        self.f, self.t, self.taken, self.max_steps = f, t0, 0, max_steps

    def __call__(self, t: Tensor, x: Tensor | Tensors) -> Tensor | Tensors:
        return self.f(t, (x,))[0] if isinstance(x, Tensor) else self.f(t, x)

    def callback_step(self, t, x, dt):
        self.t = float(t.detach())
        if self.taken == self.max_steps:
            raise IntegrationError(
                f"max_steps={self.max_steps} steps were taken and only t={self.t:.6g} was reached:"
                " raise max_steps, loosen tol, or look for a stiff or exploding velocity"
            )
        self.taken += 1

    def callback_accept_step(self, t, x, dt):
        self.f.statistics.accepted += 1

    def callback_reject_step(self, t, x, dt):
        self.f.statistics.rejected += 1


def _finite(x: Tensors) -> bool:
    try:
        return all(bool(part.isfinite().all()) for part in x)
    except RuntimeError:  # inside torch.func.vmap a tensor has no single truth value
        return True


@torch.no_grad()
def _blame(method: str, f: OnTuples, x: Tensors, nodes: list[float]) -> str:
    """The error message, with the first time at which the state of a second solve is not finite."""
    for k, (t, t_next) in enumerate(pairwise(nodes)):
        x = step(method, f, t, t_next - t, x)
        if not _finite(x):
            return (
                f"the state is not finite from t={t_next:.6g} on (step {k + 1} of {len(nodes) - 1},"
                f" {method}): take more steps or bound the velocity"
            )
    return f"the state was not finite at t={nodes[-1]:.6g}: bound the velocity"


def _checked_method(steps, tol, method, backprop) -> str:
    if (steps is None) == (tol is None):
        given = "neither" if steps is None else "both"
        raise ValueError(
            f"{given} of steps and tol given; give exactly one, such as steps=16 (equal steps) or"
            " tol=1e-6 (adaptive steps)"
        )
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be an integer ≥ 1, got {steps!r}")
    if tol is not None and not 0 < tol < math.inf:
        raise ValueError(f"tol must be a positive number, got {tol!r}")
    if backprop not in ("through", "adjoint", "recompute"):
        raise ValueError(f'backprop must be "through", "adjoint" or "recompute", got {backprop!r}')
    if backprop == "recompute" and steps is None:
        raise ValueError('backprop="recompute" needs equal steps: give steps= instead of tol=')
    choices = ADAPTIVE if steps is None else METHODS
    method = method or ("dopri5" if steps is None else "rk4")
    if method not in choices:
        accuracy = "tol" if steps is None else "steps"
        raise ValueError(f"{accuracy}= has no method {method!r}; choose from {choices}")
    return method


def _check_state(x: tuple[Any, ...], method: str) -> None:
    if not x or not all(isinstance(part, Tensor) for part in x):
        kinds = [type(part).__name__ for part in x]
        raise TypeError(f"state must be a tensor or a (named) tuple of tensors, got {kinds}")
    first = x[0]
    for part in x:
        if not part.is_floating_point():
            raise TypeError(f"state must be floating point, got {part.dtype}: call .double() on it")
        if part.dtype != first.dtype:
            raise TypeError(f"state mixes {first.dtype} and {part.dtype}: convert with .to(dtype)")
        if part.device != first.device:
            raise ValueError(f"state mixes {first.device} and {part.device}: move with .to(device)")
    if method == "verlet" and len(x) != 2:
        raise ValueError(f"verlet needs a state (q, p) of two tensors, got {len(x)}")
    if not _finite(x):
        raise IntegrationError("the initial state at t = t0 is not finite")


def _refuse_gradients_of_times(**times: Any) -> None:
    """Refuse times that require gradients: they would silently get none."""
    for name, given in times.items():
        parts = given if isinstance(given, list | tuple) else (given,)
        if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
            raise TypeError(
                f"{name} requires grad, but times get no gradients: integrate s from 0 to 1 with"
                " the velocity (t1 - t0) * f(t0 + s * (t1 - t0), x), or detach it"
            )


def _checked_times(t0: float, t1: float, save_at: Sequence[float] | Tensor | None) -> list[float]:
    if not (math.isfinite(t0) and math.isfinite(t1)):
        raise ValueError(f"t0 and t1 must be finite, got {t0} and {t1}")
    if t0 == t1:
        raise ValueError(f"t0 and t1 must differ, got t0 = t1 = {t0}: x(t1) is the initial state")
    if save_at is None:
        return [t1]
    times = [float(t) for t in save_at]
    sign = math.copysign(1.0, t1 - t0)
    slack = 1e-6 * abs(t1 - t0)  # rounding may put the end of a float32 grid outside
    rising = all(sign * (b - a) > 0 for a, b in pairwise(times))
    inside = all(-slack <= sign * (t - t0) and sign * (t - t1) <= slack for t in times)
    if not (times and rising and inside):
        raise ValueError(
            f"save_at must be distinct times, ordered from t0={t0} to t1={t1}, got {times}"
        )
    return [min(max(t, min(t0, t1)), max(t0, t1)) for t in times]


class Path(NamedTuple):
    """The times (n + 1,), states (n + 1, …) and increments dW (n, …) of a stochastic path."""

    t: Tensor
    x: Tensor
    dW: Tensor  # noqa: N815


def euler_maruyama(
    drift: Velocity,
    diffusion: Velocity | float | Tensor,
    x: Tensor,
    t0: float,
    t1: float,
    *,
    steps: int,
    generator: torch.Generator | None = None,
    dW: Tensor | None = None,
) -> Path:
    """The path Xₖ₊₁ = Xₖ + drift(tₖ, Xₖ) h + diffusion(tₖ, Xₖ) ΔWₖ of dX = drift dt + diffusion dW.

    Args:
        diffusion: a number, a matrix (d, k) or (batch, d, k), or a function (t, x) ↦ one of these.
        generator: draws ΔW ~ N(0, |h| I) on its own device, whatever the device of x.
        dW: given increments (steps, batch, k), instead of `generator`.

    Raises:
        ValueError: both or neither of `generator` and `dW` are given, or an argument has a wrong
            size.
        IntegrationError: the path is not finite.

    Reference: kloeden1992numerical, section 10.2.
    """
    _checked_method(steps, None, "euler", "through")
    _checked_times(t0, t1, None)
    _check_state((x,), "euler")
    if (generator is None) == (dW is None):
        raise ValueError("give exactly one of generator= (to draw the noise) and dW= (the noise)")
    sigma = diffusion if callable(diffusion) else lambda t, x: diffusion
    h = (t1 - t0) / steps
    if dW is None:
        dW = _increments(sigma(t0, x), x, steps, abs(h), generator)
    elif dW.shape[0] != steps:
        raise ValueError(f"dW has {dW.shape[0]} increments, but steps={steps}")
    same_shape(dW, (steps, *_noise_shape(sigma(t0, x), x)), "dW")
    path = [x]
    for k, dw in enumerate(dW):
        t = t0 + k * h
        slope = same_shape(drift(t, x), x.shape, "drift(t, x)")
        x = x + h * slope + displacement(sigma(t, x), dw, x)
        path.append(x)
    if not _finite((x,)):
        bad = next(k for k, x in enumerate(path) if not _finite((x,)))
        raise IntegrationError(f"the path is not finite from t={t0 + bad * h:.6g} on (step {bad})")
    times = torch.linspace(t0, t1, steps + 1, dtype=x.dtype, device=x.device)
    return Path(times, torch.stack(path), dW)


def _increments(sigma, x: Tensor, steps: int, h: float, generator) -> Tensor:
    shape, device = (steps, *_noise_shape(sigma, x)), generator.device
    noise = torch.randn(shape, generator=generator, dtype=x.dtype, device=device)
    return math.sqrt(h) * noise.to(x.device)


def _noise_shape(sigma, x: Tensor) -> tuple[int, ...]:
    """The shape of one increment ΔW of all samples."""
    return (len(x), sigma.shape[-1]) if _is_matrix(sigma, x) else tuple(x.shape)


def displacement(sigma: float | Tensor, dw: Tensor, x: Tensor) -> Tensor:
    """The increments σΔW of the states x, where σ is a number, a matrix, or one matrix per sample.

    Raises:
        ValueError: the shape of σ does not fit the shape of x.
    """
    if isinstance(sigma, Tensor) and _is_matrix(sigma, x):
        return (sigma @ dw.unsqueeze(-1)).squeeze(-1)
    return sigma * dw


def _is_matrix(sigma, x: Tensor) -> bool:
    if not isinstance(sigma, Tensor) or sigma.dim() == 0:
        return False
    if sigma.shape[:-1] not in (x.shape[1:], x.shape):
        raise ValueError(
            f"diffusion must be a number or a matrix (d, k) or (batch, d, k) for x of shape"
            f" {tuple(x.shape)}, got {tuple(sigma.shape)}; use diag_embed for a diagonal one"
        )
    return True
