"""Transport equations ∂ₜu + v·∇u = 0 and ∂ₜρ + ∇·(ρv) = 0, on a grid and by characteristics.

As in `integrate`, the direction is that of the given times: from t₀ to t₁, forward or backward. A
classifier goes backward, from u(T, x) = Wx + μ to u(0, x); the talk's time is T − t.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..dynamics.integration import integrate
from ..dynamics.stepping import Velocity
from .grids import Grid


def characteristics(
    v: Velocity,
    u: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch d"],
    t0: float,
    t1: float,
    *,
    steps: int,
    method: str = "rk4",
) -> Tensor:
    """The solution u(t₁, x) = u(t₀, X(t₀)) of ∂ₜu + v·∇u = 0, with Ẋ = v(t, X) and X(t₁) = x.

    With t₀ = T, t₁ = 0, Euler's method and as many steps as layers, this is a ResNet.

    Args:
        u: the function of x that u is at t₀.

    Reference: li2017deep.
    """
    return u(integrate(v, x, t1, t0, steps=steps, method=method))


def semi_lagrangian(
    v: Velocity,
    u: Float[Tensor, "*shape"],
    grid: Grid,
    t0: float,
    t1: float,
    *,
    steps: int,
    method: str = "midpoint",
) -> Float[Tensor, "*shape"]:
    """The values u(t₁) on the grid of ∂ₜu + v·∇u = 0, by uₖ₊₁(x) = uₖ(X(tₖ)), X(tₖ₊₁) = x.

    The foot X(tₖ) of each characteristic is one step of `method` away, and uₖ is interpolated
    there by cubics. No step is too long to be stable in the interior. The error is of order 2 with
    "midpoint", where steps and spacing shrink together. Feet outside the box see the linear
    extrapolation of `interpolate`: trust only nodes whose characteristics stay inside.

    Raises:
        ValueError: u does not fit the grid, or an argument does not suit `integrate`.

    Reference: staniforth1991semilagrangian.
    """
    x = grid.points(dtype=u.dtype, device=u.device)
    _check(u, grid)
    for t, t_next in _intervals(t0, t1, steps):
        foot = integrate(v, x, t_next, t, steps=1, method=method)
        u = interpolate(u, grid, foot).reshape(grid.shape)
    return u


def interpolate(
    u: Float[Tensor, "*shape"], grid: Grid, x: Float[Tensor, "batch d"]
) -> Float[Tensor, " batch"]:
    """The values at x of the cubic polynomials through the 4ᵈ nodes around each x.

    Outside the box, 2u(c) − u(2c − x) with c the nearest point of the box: exact where u is linear.
    """
    _check(u, grid)
    low, high = (torch.tensor(end, dtype=x.dtype, device=x.device) for end in (grid.low, grid.high))
    c = torch.minimum(torch.maximum(x, low), high)
    values, outside = _cubic(u, grid, c, low), (c != x).any(-1)
    if bool(outside.any()):
        mirrored = torch.minimum(torch.maximum(2 * c - x, low), high)[outside]
        values[outside] = 2 * values[outside] - _cubic(u, grid, mirrored, low)
    return values


def _cubic(u: Tensor, grid: Grid, x: Tensor, low: Tensor) -> Tensor:
    s = (x - low) / torch.tensor(grid.spacing, dtype=x.dtype, device=x.device)
    # At the rim the four nodes lie to one side, so that the order is the same everywhere.
    first = (s.floor().long() - 1).clamp(0, grid.nodes - 4)
    s = s - first
    a, b, c = s - 1, s - 2, s - 3
    weights = torch.stack([-a * b * c / 6, s * b * c / 2, -s * a * c / 2, s * a * b / 6], -1)
    strides, flat = u.contiguous().stride(), u.flatten()

    def contract(axis: int, index: Tensor) -> Tensor:
        """Sum over the nodes along this axis and the next ones: only gathers number 4ᵈ."""
        if axis == x.shape[1]:
            return flat[index]
        nodes = ((k, contract(axis + 1, index + k * strides[axis])) for k in range(4))
        return torch.stack([weights[:, axis, k] * values for k, values in nodes]).sum(0)

    return contract(0, (first * torch.tensor(strides, device=x.device)).sum(-1))


def upwind(
    v: Velocity, u: Float[Tensor, "*shape"], grid: Grid, t0: float, t1: float, *, steps: int
) -> Float[Tensor, "*shape"]:
    """The values u(t₁) on the grid of ∂ₜu + v·∇u = 0, by uₖ₊₁ = uₖ − Δt Σᵢ(vᵢ⁺Dᵢ⁻ + vᵢ⁻Dᵢ⁺)uₖ.

    D⁻ and D⁺ are the differences towards the neighbour below and above; backward in time they
    change roles. The error is of order 1. Beyond the box u goes on linearly: trust only nodes whose
    characteristics stay inside. Where none enters the box, max u and min u never spread.

    Raises:
        ValueError: u does not fit the grid, or |Δt| Σᵢ|vᵢ|/hᵢ exceeds 1 at a node: then the scheme
            would be unstable; the message names a number of steps that is enough.
    """
    x = grid.points(dtype=u.dtype, device=u.device)
    _check(u, grid)
    h = torch.tensor(grid.spacing, dtype=u.dtype, device=u.device)

    def rate(t: float) -> Tensor:
        return (v(t, x) / h).T

    def crossed(cells: Tensor) -> Tensor:
        return cells.abs().sum(0).max()

    for t, t_next in _intervals(t0, t1, steps):
        cells = (t_next - t) * rate((t + t_next) / 2)
        _check_cfl(crossed(cells), lambda t: crossed(rate(t)), t0, t1, steps)
        cells = cells.reshape(-1, *grid.shape)
        u = u - sum(_upwind_change(u, cells[i], i) for i in range(u.dim()))
    return u


def _upwind_change(u: Tensor, speed: Tensor, axis: int) -> Tensor:
    rise, n = u.diff(dim=axis), u.shape[axis]
    below = torch.cat([rise.narrow(axis, 0, 1), rise], axis)
    above = torch.cat([rise, rise.narrow(axis, n - 2, 1)], axis)
    return speed.clamp(min=0) * below + speed.clamp(max=0) * above


def continuity(
    v: Velocity, rho: Float[Tensor, "*shape"], grid: Grid, t0: float, t1: float, *, steps: int
) -> Float[Tensor, "*shape"]:
    """The cell means ρ(t₁) of ∂ₜρ + ∇·(ρv) = 0, by upwind fluxes through the faces of the cells.

    The cells are boxes around the nodes, and nothing leaves the outermost: Σρ stays what it is up
    to round-off, and ρ ≥ 0 stays so. The error is of order 1.

    Raises:
        ValueError: rho does not fit the grid, or in one step more would leave a cell than is in it;
            the message names a number of steps that is enough.
    """
    _check(rho, grid)
    sign = math.copysign(1.0, t1 - t0)

    def leaving(t: float) -> Tensor:
        return _outflow([sign * speed for speed in _face_speeds(v, grid, rho, t)]).max()

    for t, t_next in _intervals(t0, t1, steps):
        speeds = _face_speeds(v, grid, rho, (t + t_next) / 2)
        cells = [(t_next - t) * speed for speed in speeds]
        _check_cfl(_outflow(cells).max(), leaving, t0, t1, steps)
        rho = rho - sum(_flux_change(rho, speed, i) for i, speed in enumerate(cells))
    return rho


def _face_speeds(v: Velocity, grid: Grid, like: Tensor, t: float) -> list[Tensor]:
    """The speeds through the faces normal to each axis in cells a time, zero on the outer faces."""
    speeds = []
    for i, h in enumerate(grid.spacing):
        inner = v(t, grid.faces(i, dtype=like.dtype, device=like.device))[:, i] / h
        shape = [n - (k == i) for k, n in enumerate(grid.shape)]
        closed = like.new_zeros([1 if k == i else n for k, n in enumerate(grid.shape)])
        speeds.append(torch.cat([closed, inner.reshape(shape), closed], i))
    return speeds


def _outflow(speeds: list[Tensor]) -> Tensor:
    """What leaves each cell through all its faces, as a share of its content."""
    sides = []
    for i, speed in enumerate(speeds):
        n = speed.shape[i] - 1
        sides += [speed.narrow(i, 1, n).clamp(min=0), -speed.narrow(i, 0, n).clamp(max=0)]
    return torch.stack(sides).sum(0)


def _flux_change(rho: Tensor, speed: Tensor, axis: int) -> Tensor:
    n = rho.shape[axis]
    below = torch.cat([rho.narrow(axis, 0, 1), rho], axis)  # the closed faces multiply by zero
    above = torch.cat([rho, rho.narrow(axis, n - 1, 1)], axis)
    return (speed.clamp(min=0) * below + speed.clamp(max=0) * above).diff(dim=axis)


def _intervals(t0: float, t1: float, steps: int) -> Iterator[tuple[float, float]]:
    """The steps (tₖ, tₖ₊₁) from t₀ to t₁."""
    if steps < 1 or t0 == t1:
        raise ValueError(f"steps={steps} must be ≥ 1 and the times differ, got {t0=} and {t1=}")
    return pairwise((t0 * (steps - k) + t1 * k) / steps for k in range(steps + 1))


def _check(u: Tensor, grid: Grid) -> None:
    if u.shape != grid.shape:
        raise ValueError(
            f"the values have shape {tuple(u.shape)}, the grid {grid.shape}: reshape(grid.shape)"
        )


def _check_cfl(
    number: Tensor, rate: Callable[[float], Tensor], t0: float, t1: float, steps: int
) -> None:
    """Refuse a step in which something moves farther than the scheme can see."""
    at_most = 1 + 1e-6  # round-off, in single precision too, must not ask for one step more
    if float(number) <= at_most:
        return
    enough, found = steps, float(number)
    while math.isfinite(found) and found > at_most:  # other steps see v at other times
        enough = max(enough + 1, math.ceil(enough * found / at_most))
        middles = [(t + t_next) / 2 for t, t_next in _intervals(t0, t1, enough)]
        found = abs(t1 - t0) / enough * max(float(rate(t)) for t in middles)
    if not math.isfinite(found):
        raise ValueError("v(t, x) is not finite on the grid: shrink the box or bound the velocity")
    raise ValueError(
        f"the CFL number is {float(number):.3g} with steps={steps}, at most 1 is stable: take"
        f" steps={enough}, fewer nodes, or semi_lagrangian, which has no such limit"
    )
