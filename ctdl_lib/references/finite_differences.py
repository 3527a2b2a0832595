"""Finite differences for Hamilton–Jacobi equations, a reference solution in low dimensions."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

from ..contracts import guard
from ..dynamics.stepping import same_shape
from .grids import Grid

Hamiltonian = Callable[[float, Tensor, Tensor], Tensor]


def hamilton_jacobi(
    hamiltonian: Hamiltonian,
    w: Float[Tensor, "*shape"],
    grid: Grid,
    times: Sequence[float],
    *,
    covariance: Float[Tensor, "d d"] | None = None,
    cfl: float = 0.5,
) -> Float[Tensor, "times *shape"]:
    """The solution of ∂ₜw + H(t, x, ∇w) + ½ tr(S∇²w) = 0 at decreasing `times`, stacked.

    H must be concave in p, as a minimum over controls is. The scheme uses one-sided differences of
    order 3, the local Lax–Friedrichs flux, central differences of order 4 for the second-order
    term, and Runge–Kutta steps of order 3 with the Courant number `cfl`. Outside the box, w is
    extrapolated by cubic polynomials, so values are accurate only at nodes whose optimal paths stay
    inside.

    Args:
        hamiltonian: (t, x, p) ↦ H for x and p of shape (nodes, d).
        w: the values at the first of the times.
        covariance: S = σσᵀ, zero by default.

    Raises:
        ValueError: the shape of w or `covariance` does not fit the grid, `cfl` is not in (0, 1),
            the times do not decrease, or w or H is not finite.

    Reference: osher1991high; shu1988efficient.
    """
    if w.shape != grid.shape:
        raise ValueError(f"w has shape {tuple(w.shape)}, the grid {grid.shape}: reshape w")
    if len(times) < 2 or any(a <= b for a, b in pairwise(times)):
        raise ValueError(f"times must decrease from the terminal time, got {list(times)[:5]}")
    x = grid.points(dtype=w.dtype, device=w.device)
    d = w.dim()
    if not 0 < cfl < 1 or not (covariance is None or covariance.shape == (d, d)):
        raise ValueError(
            f"{cfl=} must lie in (0, 1), and covariance must have shape {(d, d)} or be None"
        )
    scheme = _Scheme(hamiltonian, x, grid, covariance)
    saved, t = [w], times[0]
    for goal in times[1:]:
        while t > goal:
            rate, limit = scheme(t, w)
            if not math.isfinite(limit):
                raise ValueError(f"w or H is not finite on the grid at t={t:.6g}")
            dt = min(cfl / limit, t - goal) if limit else t - goal
            w = _ssp_rk3(scheme, t, w, rate, dt)
            t = goal if t - dt <= goal else t - dt
        saved.append(w)
    return torch.stack(saved)


def _ssp_rk3(scheme: "_Scheme", t: float, w: Tensor, rate: Tensor, dt: float) -> Tensor:
    """The values w after a step back by dt of the third-order SSP Runge–Kutta method."""
    first = w + dt * rate
    second = 0.75 * w + 0.25 * (first + dt * scheme(t - dt, first)[0])
    return w / 3 + 2 / 3 * (second + dt * scheme(t - dt / 2, second)[0])


class _Scheme:
    """The rate −∂ₜw at all nodes, and the largest stable value of 1/dt, as a function of (t, w)."""

    def __init__(self, hamiltonian: Hamiltonian, x: Tensor, grid: Grid, S: Tensor | None):
        self.hamiltonian, self.x, self.h = hamiltonian, x, grid.spacing
        self.S = None if S is None else S.to(x)

    def __call__(self, t: float, w: Tensor) -> tuple[Tensor, float]:
        d = w.dim()
        padded = [_padded(w, axis) for axis in range(d)]
        left, right = zip(*(_one_sided(padded[i], i, self.h[i]) for i in range(d)), strict=True)
        p, q = (torch.stack(side, -1).flatten(0, -2) for side in (left, right))
        H = self.hamiltonian(t, self.x, (p + q) / 2)
        rate = same_shape(H, self.x.shape[:1], "hamiltonian(t, x, p)").reshape(w.shape)
        # H is concave, so |∂H/∂p| between p and q is largest at p or q, even where w has a kink
        speed = torch.maximum(self._speed(t, p), self._speed(t, q)).T.reshape(d, *w.shape)
        crossing = sum(speed[i] / self.h[i] for i in range(d))
        for i in range(d):
            rate = rate + 0.5 * speed[i] * (right[i] - left[i])
        limit = float(torch.as_tensor(crossing).max())
        if self.S is not None:
            rate = rate + self._noise(self.S, w, padded)
            limit += sum(float(self.S[i, i]) / self.h[i] ** 2 for i in range(d))
        return rate, limit

    def _speed(self, t: float, p: Tensor) -> Tensor:
        """The values |∂H/∂p| at all nodes."""
        value, pullback, *_ = vjp(lambda p: self.hamiltonian(t, self.x, p), p)
        return pullback(torch.ones_like(value))[0].abs()

    def _noise(self, S: Tensor, w: Tensor, padded: list[Tensor]) -> Tensor:
        """The sum ½ Σᵢⱼ Sᵢⱼ ∂ᵢ∂ⱼw."""
        total = torch.zeros_like(w)
        for i in range(w.dim()):
            total += 0.5 * S[i, i] * _second(padded[i], i, self.h[i])
            for j in range(i):
                mixed = _central(_padded(_central(padded[i], i, self.h[i]), j), j, self.h[j])
                total += S[i, j] * mixed
        return total


def _padded(w: Tensor, axis: int) -> Tensor:
    """The values w with two more on each side of an axis, from cubic extrapolation."""
    for _ in range(2):
        a, b, c, e = (w.narrow(axis, k, 1) for k in range(4))
        n = w.shape[axis]
        p, q, r, s = (w.narrow(axis, n - 1 - k, 1) for k in range(4))
        w = torch.cat([4 * a - 6 * b + 4 * c - e, w, 4 * p - 6 * q + 4 * r - s], axis)
    return w


def _shift(w: Tensor, axis: int, k: int) -> Tensor:
    """The padded values, shifted by k nodes."""
    return w.narrow(axis, 2 + k, w.shape[axis] - 4)


def _one_sided(w: Tensor, axis: int, h: float) -> tuple[Tensor, Tensor]:
    """The left-sided and the right-sided first derivative, of order 3."""
    far_left, left, here, right, far_right = (_shift(w, axis, k) for k in range(-2, 3))
    from_left = (2 * right + 3 * here - 6 * left + far_left) / (6 * h)
    from_right = (-far_right + 6 * right - 3 * here - 2 * left) / (6 * h)
    return from_left, from_right


def _central(w: Tensor, axis: int, h: float) -> Tensor:
    """The first derivative, of order 4."""
    far_left, left, _, right, far_right = (_shift(w, axis, k) for k in range(-2, 3))
    return (8 * (right - left) - (far_right - far_left)) / (12 * h)


def _second(w: Tensor, axis: int, h: float) -> Tensor:
    """The second derivative, of order 4."""
    far_left, left, here, right, far_right = (_shift(w, axis, k) for k in range(-2, 3))
    return (16 * (left + right) - 30 * here - far_left - far_right) / (12 * h**2)


guard(__name__)
