"""Checks of what `integrate` receives, and the error of a solution that is not finite."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .deferral import holds
from .stepping import METHODS, Tensors

ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}  # orders


class IntegrationError(ArithmeticError):
    """The solution is not finite, or it needs more steps than allowed."""


def checked_method(steps, tol, method, backprop, step_at=()) -> str:
    """The method, by default that of `steps` or `tol`, after a check of all five arguments."""
    if (steps is None) == (tol is None):
        given = "neither" if steps is None else "both"
        raise ValueError(
            f"{given} of steps and tol given; give exactly one, such as steps=16 (equal steps) or"
            " tol=1e-6 (adaptive steps)"
        )
    if steps is not None and (
        isinstance(steps, bool) or not hasattr(steps, "__index__") or int(steps) < 1
    ):
        raise ValueError(f"steps must be an integer ≥ 1, got {steps!r}")
    if tol is not None and not 0 < tol < math.inf:
        raise ValueError(f"tol must be a positive number, got {tol!r}")
    if backprop not in ("through", "adjoint", "recompute"):
        raise ValueError(f'backprop must be "through", "adjoint" or "recompute", got {backprop!r}')
    if steps is not None and len(step_at):
        raise ValueError(
            "step_at is for adaptive methods: with steps=, choose steps that end there"
        )
    if backprop == "recompute" and steps is None:
        raise ValueError('backprop="recompute" needs equal steps: give steps= instead of tol=')
    choices = tuple(ADAPTIVE) if steps is None else METHODS
    method = method or ("dopri5" if steps is None else "rk4")
    if method not in choices:
        accuracy = "tol" if steps is None else "steps"
        raise ValueError(f"{accuracy}= has no method {method!r}; choose from {choices}")
    return method


def checked_snapshots(snapshots: Any, backprop: str) -> int | None:
    """The number of states that "recompute" keeps, None for all."""
    if snapshots is None:
        return None
    if isinstance(snapshots, bool) or not hasattr(snapshots, "__index__") or int(snapshots) < 1:
        raise ValueError(f"snapshots must be an integer ≥ 1, got {snapshots!r}")
    if backprop != "recompute":
        raise ValueError(f'snapshots is for backprop="recompute", got backprop="{backprop}"')
    return int(snapshots)


def check_state(x: tuple[Any, ...], method: str, tol: float | None = None) -> None:
    """Refuse a state that is no tuple of finite tensors of one dtype and device, or has no element.

    A tolerance below the precision of that dtype is refused as well.
    """
    if not x or not all(isinstance(part, Tensor) for part in x):
        kinds = [type(part).__name__ for part in x]
        raise TypeError(f"state must be a tensor or a (named) tuple of tensors, got {kinds}")
    first = x[0]
    for part in x:
        if not (part.is_floating_point() or part.is_complex()):
            raise TypeError(f"state must be floating point, got {part.dtype}: call .double() on it")
        if part.numel() == 0:
            raise ValueError(f"state is empty, it has shape {tuple(part.shape)}: give samples")
        if part.dtype != first.dtype:
            raise TypeError(f"state mixes {first.dtype} and {part.dtype}: convert with .to(dtype)")
        if part.device != first.device:
            raise ValueError(f"state mixes {first.device} and {part.device}: move with .to(device)")
    if first.is_meta:
        raise ValueError("state is on the meta device and has no values: move it to another")
    if method == "verlet" and len(x) != 2:
        raise ValueError(f"verlet needs a state (q, p) of two tensors, got {len(x)}")
    if not finite(x):
        raise IntegrationError(f"the initial state at t = t0 is not finite in {first_bad(x)}")
    if tol is not None and tol < torch.finfo(first.dtype).eps:
        eps = torch.finfo(first.dtype).eps
        raise ValueError(
            f"tol={tol:g} is below what {first.dtype} resolves, {eps:.1e}: raise tol, or use a"
            " state of higher precision, such as state.double()"
        )


def refuse_gradients_of_times(**times: Any) -> None:
    """Refuse times that require gradients: they would silently get none."""
    for name, given in times.items():
        parts = given if isinstance(given, list | tuple) else (given,)
        if any(isinstance(part, Tensor) and part.requires_grad for part in parts):
            raise TypeError(
                f"{name} requires grad, but times get no gradients: integrate s from 0 to 1 with"
                " the velocity (t1 - t0) * f(t0 + s * (t1 - t0), x), or detach it"
            )


def checked_times(t0: float, t1: float, save_at: Sequence[float] | Tensor | None) -> list[float]:
    """The times to save at, within [t₀, t₁] and in order; t₁ alone by default."""
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


def checked_jumps(step_at: Sequence[float] | Tensor, t0: float, t1: float) -> list[float]:
    """The times of jumps between t₀ and t₁, sorted."""
    jumps = sorted({float(t) for t in step_at})
    if not all(min(t0, t1) <= t <= max(t0, t1) for t in jumps):
        raise ValueError(f"step_at must lie between t0={t0} and t1={t1}, got {jumps}")
    return [t for t in jumps if t not in (t0, t1)]


def finite(x: Tensors) -> bool:
    """The answer whether all entries are finite."""
    try:
        return holds(torch.stack([part.isfinite().all() for part in x]))
    except RuntimeError:  # inside torch.func.vmap a tensor has no single truth value
        return True


def first_bad(x: Tensors) -> str:
    """The first sample whose state is not finite, in words."""
    for part in x:
        bad = (~part.isfinite()).reshape(len(part) if part.dim() else 1, -1).any(1)
        if bad.any():
            return f"sample {int(bad.nonzero()[0])} (of {len(bad)})"
    return "no sample"
