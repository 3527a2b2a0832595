"""Time integration of ẋ = f(t, x), with fixed steps, or with the adaptive steps of torchdiffeq."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torchdiffeq import odeint

from .adjoint import parameters_of, solve_with_adjoint
from .checkpointing import forgetting, sparse_steps
from .inputs import (
    ADAPTIVE,
    IntegrationError,
    check_state,
    checked_jumps,
    checked_method,
    checked_snapshots,
    checked_times,
    finite,
    first_bad,
    refuse_gradients_of_times,
)
from .stepping import (
    OnTuples,
    Statistics,
    Steps,
    Tensors,
    Velocity,
    clock,
    equal_steps,
    hermite,
    step,
)

State = TypeVar("State", bound=Tensor | tuple[Tensor, ...])
CLOCKS = {"mps": torch.float32}  # the dtype of times on devices that have no float64
RANDOM = (nn.modules.dropout._DropoutNd,)
COUNTING = (nn.modules.batchnorm._NormBase,)


def integrate(
    f: Velocity,
    state: State,
    t0: float,
    t1: float,
    *,
    steps: SupportsIndex | None = None,
    tol: float | None = None,
    method: str | None = None,
    backprop: Literal["through", "adjoint", "recompute"] = "through",
    snapshots: SupportsIndex | None = None,
    parameters: Iterable[Tensor] | None = None,
    save_at: Sequence[float] | Shaped[Tensor, " count"] | None = None,
    step_at: Sequence[float] | Tensor = (),
    max_steps: int = 10_000,
    statistics: Statistics | None = None,
) -> State:
    """The solution x(t₁) of ẋ = f(t, x), x(t₀) = `state`, or x at the times `save_at`, stacked.

    `state` is a tensor or a (named) tuple of tensors, whose first dimension counts the samples. f
    receives the time as a 0-dim tensor, and a state of the same type. It returns that type, which
    is also the type of the result. If t₁ < t₀, the equation is integrated backward in time.

    Args:
        steps: the number of equal steps of `method` "euler", "midpoint", "heun", "rk4" (default) or
            "verlet". Störmer–Verlet needs a state (q, p) where q̇ depends on p alone and ṗ on q
            alone.
        tol: the relative and absolute tolerance of the adaptive `method` "dopri5" (default),
            "dopri8", "bosh3", "fehlberg2" or "adaptive_heun". All samples share the steps, which
            fit the sample with the largest error. Give exactly one of `steps` and `tol`.
        backprop: "through" stores every stage and differentiates the discrete steps. "recompute"
            gives the same gradient, but stores only the states on the grid and evaluates each
            stage a second time. "adjoint" solves −ṗ = (∂f/∂x)ᵀp backward. Its memory does not grow
            with the number of steps, and its gradient is exact only in the limit of small steps. It
            cannot be differentiated again.
        snapshots: how many states "recompute" keeps between t₀ and t₁, or between times saved. By
            default it keeps all. With fewer, it evaluates steps more than twice, by the schedule
            that needs the least evaluations: up to four times for √steps snapshots. The backward
            pass holds about twice as many states.
        parameters: further tensors for which "adjoint" computes gradients. The parameters of f are
            included if f is an `nn.Module` or a method of one. The other modes need no list.
        save_at: times between t₀ and t₁ in the order of integration. With `steps`, states between
            grid points are values of cubic Hermite interpolants.
        step_at: times at which f jumps, for adaptive methods, which end a step at each of them.
        max_steps: the largest number of steps of an adaptive method, accepted or rejected.
        statistics: an object to which the counts of this call are added.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it and a remedy.
        IntegrationError: the state is not finite, or `max_steps` is reached; the message gives t.

    Reference: hairer1993solving, chapters II.1 and II.6; chen2018neural, section 2;
    griewank2000algorithm.
    """
    method = checked_method(steps, tol, method, backprop, step_at)
    kept = checked_snapshots(snapshots, backprop)
    x = state if isinstance(state, tuple) else (state,)
    check_state(x, method, tol)
    refuse_gradients_of_times(t0=t0, t1=t1, save_at=save_at, step_at=step_at)
    t0, t1 = float(t0), float(t1)
    times = checked_times(t0, t1, save_at)
    x = tuple(part.clone() for part in x)  # f may be refused only after it has changed x
    g = OnTuples(f, state, Statistics() if statistics is None else statistics)
    if steps is not None:
        solve = _Fixed(method, abs(t1 - t0) / int(steps), backprop == "recompute", kept)
    else:
        solve = _Adaptive(method, tol or 0.0, max_steps, checked_jumps(step_at, t0, t1))
    if backprop == "through" or not torch.is_grad_enabled():
        path = solve(g, x, t0, t1, times)
    elif backprop == "recompute":
        with _refused(COUNTING, '"recompute" would update its statistics twice'):
            path = solve(g, x, t0, t1, times)
    else:
        with _refused(COUNTING + RANDOM, '"adjoint" would integrate another velocity backward'):
            path = solve_with_adjoint(solve, g, x, t0, t1, times, parameters_of(f, parameters))
    return g.pack(path if save_at is not None else tuple(part[-1] for part in path))


@contextmanager
def _refused(kinds: tuple[type, ...], reason: str) -> Iterator[None]:
    """Refuse modules of these kinds in training mode, wherever f calls them."""

    def refuse(module: nn.Module, _: Any) -> None:
        if isinstance(module, kinds) and module.training:
            name = type(module).__name__
            raise ValueError(f'f calls {name} in training mode: {reason}. Use "through" or .eval()')

    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class _Fixed:
    """A solver with equal steps of size h, which returns the states at `times`, stacked."""

    method: str
    h: float
    recompute: bool
    snapshots: int | None

    def __call__(
        self, f: OnTuples, x: Tensors, t0: float, t1: float, times: list[float]
    ) -> Tensors:
        # The adjoint equation adds components to (q, p); midpoint has the same order as Verlet.
        method = "midpoint" if self.method == "verlet" and len(x) != 2 else self.method
        grid = equal_steps(method, t0, t1, max(1, round(abs(t1 - t0) / self.h)), x[0])
        wanted = _in_steps(times, t0, t1, len(grid.h))
        if self.snapshots is not None and torch.is_grad_enabled():
            return self.sparsely(f, method, x, grid, wanted, self.snapshots)
        inside: dict[int, list[float]] = {}  # the fractions of each step at which it is saved
        for s in wanted:
            if s % 1:
                inside.setdefault(int(s), []).append(s % 1)
        start, saved, slope = x, [x] if wanted[0] == 0 else [], None
        for k, (t, h) in enumerate(zip(grid.stages, grid.h, strict=True)):
            if k in inside:  # the slope at the end is reused as the first stage of the next step
                slope = slope or self.remember(f, t[0], x)
                end = self.remember(step, method, f, t, h, x, slope)
                following = self.remember(f, grid.ends[k], end)
                saved += [hermite(h, x, end, slope, following, s) for s in inside[k]]
                slope = following
            else:
                end, slope = self.remember(step, method, f, t, h, x, slope), None
            f.statistics.accepted += 1
            x = end
            if len(saved) < len(wanted) and wanted[len(saved)] == k + 1:
                saved.append(x)
            if len(saved) == len(wanted):
                break
        if not finite(x):
            raise IntegrationError(_blame(method, f, start, grid))
        return tuple(torch.stack(parts) for parts in zip(*saved, strict=True))

    def sparsely(
        self, f: OnTuples, method: str, x: Tensors, grid: Steps, wanted: list[float], kept: int
    ) -> Tensors:
        """The states saved, of which the backward pass computes all but a few again."""
        if any(s % 1 for s in wanted):
            raise ValueError(
                "with snapshots, save_at must lie on the grid of equal steps: choose steps so that"
                " all times are multiples of the step size, or leave snapshots out"
            )

        def one(k: int, x: Tensors) -> Tensors:
            return step(method, f, grid.stages[k], grid.h[k], x)

        saved, start, done = [], x, 0
        for end in map(int, wanted):
            x = sparse_steps(one, x, done, end, kept) if end > done else x
            f.statistics.accepted += end - done
            saved, done = [*saved, x], end
        if not finite(x):
            raise IntegrationError(_blame(method, f, start, grid))
        return tuple(torch.stack(parts) for parts in zip(*saved, strict=True))

    def remember(self, function: Callable, *args):
        """Call the function; with "recompute", keep only its arguments for the backward pass."""
        if not (self.recompute and torch.is_grad_enabled()):
            return function(*args)
        return forgetting(function, *args)


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
    jumps: list[float]

    def __call__(
        self, f: OnTuples, x: Tensors, t0: float, t1: float, times: list[float]
    ) -> Tensors:
        # torchdiffeq needs strictly monotone times that begin with t0
        ts = times if times[0] == t0 else [t0, *times]
        if len(ts) == 1:
            return tuple(part[None] for part in x)
        dtype = CLOCKS.get(x[0].device.type, torch.float64)
        monitored = _Monitored(f, t0, self.max_steps)
        first = self.first_step(monitored, x, t0, t1)
        grid = torch.tensor(ts, dtype=dtype, device=x[0].device)
        try:
            path: Any = odeint(
                monitored,
                x[0] if len(x) == 1 else x,  # torchdiffeq copies a tuple in each evaluation
                grid,
                rtol=self.tol,
                atol=self.tol,
                method=self.method,
                options={
                    "dtype": dtype,
                    "norm": lambda state: _norm(state, f.batched),
                    # chosen here, since torchdiffeq would differentiate all times by its choice
                    "first_step": first,
                    # end a step at t1, which is more accurate than the interpolant inside of a step
                    "step_t": grid[-1:],
                    "jump_t": grid.new_tensor(self.jumps),
                },
            )
        except AssertionError as error:
            raise IntegrationError(
                f"{self.method} stopped at t={monitored.t:.6g} ({error}): the velocity is not"
                " finite there, or so stiff that no step meets tol"
            ) from error
        path = (path,) if isinstance(path, Tensor) else tuple(path)
        if not finite(path):
            raise IntegrationError(f"the state is not finite at t={t1:.6g}: bound the velocity")
        return tuple(part[len(ts) - len(times) :] for part in path)

    def first_step(self, f: "_Monitored", x: Tensors, t0: float, t1: float) -> float:
        """The size of the first step, from the slopes at x and after an explicit Euler step.

        Reference: hairer1993solving, chapter II.4.
        """

        def size(parts: Tensors) -> float:
            scaled = tuple(
                part / (self.tol + self.tol * a.abs()) for part, a in zip(parts, x, strict=True)
            )
            return float(_norm(scaled, f.f.batched))

        slope = f.begin(t0, x)
        with torch.no_grad():
            d0, d1 = size(x), size(slope)
            h = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
            signed = math.copysign(h, t1 - t0)
            moved = tuple(torch.add(a, k, alpha=signed) for a, k in zip(x, slope, strict=True))
            end = f.f(clock(t0 + signed, x[0]), moved)
            d2 = size(tuple(b - a for a, b in zip(slope, end, strict=True))) / h
        most = max(d1, d2)
        if most <= 1e-15:
            return min(100 * h, max(1e-6, 1e-3 * h))
        return min(100 * h, (0.01 / most) ** (1 / ADAPTIVE[self.method]))


def _norm(state: Tensor | Tensors, batched: int | None) -> Tensor:
    """The largest root mean square over the components of one sample, over samples and parts.

    Parts from number `batched` on are one sample each.
    """
    parts = (state,) if isinstance(state, Tensor) else state
    flat = [part.abs().reshape(len(part) if part.dim() else 1, -1) for part in parts[:batched]]
    flat += [part.abs().reshape(1, -1) for part in parts[len(flat) :]]
    return torch.stack([part.square().mean(1).max() for part in flat]).max().sqrt()


class _Monitored:
    """A velocity for torchdiffeq, with the callbacks that torchdiffeq calls at each step."""

    def __init__(self, f: OnTuples, t0: float, max_steps: int):
        self.f, self.t, self.taken, self.max_steps = f, t0, 0, max_steps
        self.first: Tensors | None = None

    def begin(self, t0: float, x: Tensors) -> Tensors:
        """The slope at t₀, which is kept for the first call of torchdiffeq at the same place."""
        self.first = self.f(clock(t0, x[0]), x)
        return tuple(part.detach() for part in self.first)

    def __call__(self, t: Tensor, x: Tensor | Tensors) -> Tensor | Tensors:
        parts = (x,) if isinstance(x, Tensor) else x
        slope, self.first = self.first or self.f(t, parts), None
        return slope[0] if isinstance(x, Tensor) else slope

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


@torch.no_grad()
def _blame(method: str, f: OnTuples, x: Tensors, grid: Steps) -> str:
    """The error message, with the first time at which the state of a second solve is not finite."""
    for k, (t, h) in enumerate(zip(grid.stages, grid.h, strict=True)):
        x = step(method, f, t, h, x)
        if not finite(x):
            return (
                f"the state of {first_bad(x)} is not finite from t={float(grid.ends[k]):.6g} on"
                f" (step {k + 1} of {len(grid.h)}, {method}): take more steps or bound the velocity"
            )
    return f"the state was not finite at t={float(grid.ends[-1]):.6g}: bound the velocity"
