"""Gradients by the adjoint equation −ṗ = (∂f/∂x)ᵀp, solved backward with the state."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .stepping import OnTuples, Statistics, Tensors, Velocity, clock

Solve = Callable[[OnTuples, Tensors, float, float, list[float]], Tensors]


def solve_with_adjoint(
    solve: Solve,
    f: OnTuples,
    x: Tensors,
    t0: float,
    t1: float,
    times: list[float],
    theta: Tensors,
) -> Tensors:
    """The states solve(f, x, t0, t1, times), whose gradients are computed by the adjoint equation.

    The gradients are those with respect to x and θ. The backward pass integrates (x, p, ∂L/∂θ) with
    `solve` from each time in `times` to the previous one. At each of these times, x restarts from
    its stored value, and the gradient of the loss L with respect to that state is added to p.

    Raises:
        ValueError: f uses a tensor that requires a gradient and is not in θ.

    Reference: chen2018neural, section 2.
    """
    _refuse_captured(f, t0, x, theta)
    return _Adjoint.apply(solve, f, t0, t1, times, len(x), *x, *theta)  # pyright: ignore


def parameters_of(f: Velocity, more: Iterable[Tensor] | None) -> Tensors:
    """The tensors that require gradients among `more` and the parameters of f.

    Parameters are found if f is an `nn.Module` or a method of one.
    """
    owner = getattr(f, "__self__", f)
    own = tuple(owner.parameters()) if isinstance(owner, nn.Module) else ()
    unique = {id(p): p for p in (*own, *(more or ())) if p.requires_grad}
    return tuple(unique.values())


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, solve: Solve, f: OnTuples, t0, t1, times, n: int, *tensors: Tensor):
        path = solve(f, tensors[:n], t0, t1, times)
        ctx.solve, ctx.f, ctx.t0, ctx.times, ctx.n = solve, f, t0, times, n
        ctx.save_for_backward(*path, *tensors[n:])
        return path

    @staticmethod
    def backward(ctx, *grads: Tensor):  # pyright: ignore
        if torch.is_grad_enabled():  # only with create_graph=True
            raise RuntimeError(
                'backprop="adjoint" has first derivatives only: use "through" or "recompute" to'
                " differentiate the gradient"
            )
        n, times = ctx.n, ctx.times
        path, theta = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        costs = Statistics()
        augmented = OnTuples(_augmented(ctx.f.f, ctx.f.pack, n, theta), (), costs, batched=2 * n)
        p = tuple(torch.zeros_like(g[0]) for g in grads)
        dtheta = tuple(torch.zeros_like(w) for w in theta)
        for i in reversed(range(len(times))):
            p = tuple(a + g[i] for a, g in zip(p, grads, strict=True))
            before = times[i - 1] if i else ctx.t0
            if times[i] == before:
                continue
            x = tuple(part[i] for part in path)
            end = ctx.solve(augmented, (*x, *p, *dtheta), times[i], before, [before])
            end = tuple(part[-1] for part in end)
            p, dtheta = end[n : 2 * n], end[2 * n :]
        ctx.f.statistics.backward_evaluations += costs.evaluations
        return None, None, None, None, None, None, *p, *dtheta


def _augmented(f: Velocity, pack: Callable[[Tensors], Any], n: int, theta: Tensors) -> Velocity:
    """The velocity of (x, p, ∂L/∂θ): (f, −(∂f/∂x)ᵀp, −(∂f/∂θ)ᵀp)."""

    def velocity(t, state: Tensors) -> Tensors:
        with torch.enable_grad():
            x = tuple(part.detach().requires_grad_() for part in state[:n])
            slope = f(t, pack(x))
        slope = (slope,) if isinstance(slope, Tensor) else tuple(slope)
        inputs = (*x, *theta)
        live = [(s, -p) for s, p in zip(slope, state[n : 2 * n], strict=True) if s.requires_grad]
        pulled = (None,) * len(inputs)
        if live:
            outputs, weights = zip(*live, strict=True)
            # θ may be a function of other tensors; their gradients need its graph afterwards
            pulled = torch.autograd.grad(
                outputs, inputs, weights, allow_unused=True, retain_graph=True
            )
        zipped = zip(inputs, pulled, strict=True)
        return (
            *(s.detach() for s in slope),
            *(torch.zeros_like(a) if g is None else g for a, g in zipped),
        )

    return velocity


def _refuse_captured(f: OnTuples, t0: float, x: Tensors, theta: Tensors) -> None:
    """Refuse an f that uses tensors outside of θ which require gradients: they would get none."""
    with torch.enable_grad():
        inputs = tuple(part.detach().requires_grad_() for part in x)
        slope = f.f(clock(t0, x[0]), f.pack(inputs))
    slope = (slope,) if isinstance(slope, Tensor) else tuple(slope)
    known = {id(p) for p in (*inputs, *theta)}
    seen = {p.grad_fn for p in theta if p.grad_fn is not None}
    pending = [s.grad_fn for s in slope if s.grad_fn is not None]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ValueError(
                f"f uses a tensor of shape {tuple(leaf.shape)} that requires grad and is none of"
                ' its parameters, so backprop="adjoint" would silently give it no gradient: pass'
                ' it in parameters=, make f an nn.Module that owns it, or use backprop="recompute"'
            )
        pending.extend(following for following, _ in node.next_functions if following is not None)
