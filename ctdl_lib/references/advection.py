"""Solvers for ∂ₜu + v·∇u = 0 and ∂ₜρ + ∇·(ρv) = 0, on a grid and by characteristics.

As in `integrate`, the equation is solved from t₀ to t₁, which may be forward or backward in time. A
classifier is solved backward, from u(T, x) = Wx + μ to u(0, x). The talk uses the time T − t.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..contracts import guard
from ..dynamics.integration import integrate
from ..dynamics.stepping import Velocity, as_tensor, same_shape
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

    With t₀ = T, t₁ = 0, Euler's method and one step per layer, the solution is a ResNet.

    Args:
        u: the function x ↦ u(t₀, x).

    Reference: li2017deep.
    """
    return as_tensor(u(integrate(v, x, t1, t0, steps=steps, method=method)), "u(x)")


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

    One step of `method` computes the foot X(tₖ) of each characteristic, and uₖ is interpolated
    there by cubic polynomials. In the interior the scheme is stable for all step sizes. With
    "midpoint" the error is of order 2 if the step size is proportional to the spacing. If a foot
    lies outside the box, `interpolate` extrapolates linearly, so values are accurate only at nodes
    whose characteristics stay inside.

    Raises:
        ValueError: the shape of u is not that of the grid, or `integrate` refuses an argument.

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

    Outside the box, the value is 2u(c) − u(2c − x), where c is the point of the box nearest to x.
    It is exact if u is linear.
    """
    _check(u, grid)
    same_shape(x, (len(x), len(grid.low)), "x")
    low, high = (torch.tensor(end, dtype=x.dtype, device=x.device) for end in (grid.low, grid.high))
    c = torch.minimum(torch.maximum(x, low), high)
    values, outside = _cubic(u, grid, c, low), (c != x).any(-1)
    if bool(outside.any()):
        mirrored = torch.minimum(torch.maximum(2 * c - x, low), high)[outside]
        values[outside] = 2 * values[outside] - _cubic(u, grid, mirrored, low)
    return values


def _cubic(u: Tensor, grid: Grid, x: Tensor, low: Tensor) -> Tensor:
    s = (x - low) / torch.tensor(grid.spacing, dtype=x.dtype, device=x.device)
    # Near the boundary the four nodes lie on one side of x, and the order is the same.
    first = (s.floor().long() - 1).clamp(0, grid.nodes - 4)
    s = s - first
    a, b, c = s - 1, s - 2, s - 3
    weights = torch.stack([-a * b * c / 6, s * b * c / 2, -s * a * c / 2, s * a * b / 6], -1)
    strides, flat = u.contiguous().stride(), u.flatten()

    def contract(axis: int, index: Tensor) -> Tensor:
        """The sum over the nodes along this axis and the following ones."""
        if axis == x.shape[1]:
            return flat[index]
        nodes = ((k, contract(axis + 1, index + k * strides[axis])) for k in range(4))
        return torch.stack([weights[:, axis, k] * values for k, values in nodes]).sum(0)

    return contract(0, (first * torch.tensor(strides, device=x.device)).sum(-1))


def upwind(
    v: Velocity, u: Float[Tensor, "*shape"], grid: Grid, t0: float, t1: float, *, steps: int
) -> Float[Tensor, "*shape"]:
    """The values u(t₁) on the grid of ∂ₜu + v·∇u = 0, by uₖ₊₁ = uₖ − Δt Σᵢ(vᵢ⁺Dᵢ⁻ + vᵢ⁻Dᵢ⁺)uₖ.

    D⁻ and D⁺ are the differences with the lower and the upper neighbour. Backward in time they
    change roles. The error is of order 1. Outside the box, u is extrapolated linearly, so values
    are accurate only at nodes whose characteristics stay inside. If no characteristic enters the
    box, max u does not increase and min u does not decrease.

    Raises:
        ValueError: the shape of u is not that of the grid, or |Δt| Σᵢ|vᵢ|/hᵢ exceeds 1 at a node.
            The scheme would then be unstable; the message gives a sufficient number of steps.
    """
    x = grid.points(dtype=u.dtype, device=u.device)
    _check(u, grid)
    h = torch.tensor(grid.spacing, dtype=u.dtype, device=u.device)

    def rate(t: float) -> Tensor:
        return (same_shape(v(t, x), x.shape, "v(t, x)") / h).T

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

    The cells are boxes around the nodes, and there is no flux through the outer boundary. Up to
    rounding errors, Σρ is constant, and ρ ≥ 0 if it is so at t₀. The error is of order 1.

    Raises:
        ValueError: the shape of rho is not that of the grid, or in one step more mass would leave a
            cell than it contains. The message gives a sufficient number of steps.
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
    """The normal speeds on the faces, in cells per unit of time, for each axis.

    They are zero on the outer faces.
    """
    speeds = []
    for i, h in enumerate(grid.spacing):
        faces = grid.faces(i, dtype=like.dtype, device=like.device)
        inner = same_shape(v(t, faces), faces.shape, "v(t, x)")[:, i] / h
        shape = [n - (k == i) for k, n in enumerate(grid.shape)]
        closed = like.new_zeros([1 if k == i else n for k, n in enumerate(grid.shape)])
        speeds.append(torch.cat([closed, inner.reshape(shape), closed], i))
    return speeds


def _outflow(speeds: list[Tensor]) -> Tensor:
    """The share of the mass of each cell that leaves it through its faces."""
    sides = []
    for i, speed in enumerate(speeds):
        n = speed.shape[i] - 1
        sides += [speed.narrow(i, 1, n).clamp(min=0), -speed.narrow(i, 0, n).clamp(max=0)]
    return torch.stack(sides).sum(0)


def _flux_change(rho: Tensor, speed: Tensor, axis: int) -> Tensor:
    n = rho.shape[axis]
    below = torch.cat([rho.narrow(axis, 0, 1), rho], axis)  # the speed on outer faces is 0
    above = torch.cat([rho, rho.narrow(axis, n - 1, 1)], axis)
    return (speed.clamp(min=0) * below + speed.clamp(max=0) * above).diff(dim=axis)


def _intervals(t0: float, t1: float, steps: int) -> Iterator[tuple[float, float]]:
    """The steps (tₖ, tₖ₊₁) from t₀ to t₁."""
    if steps < 1 or t0 == t1:
        raise ValueError(f"steps={steps} must be ≥ 1 and t0 and t1 must differ, got {t0=}, {t1=}")
    return pairwise((t0 * (steps - k) + t1 * k) / steps for k in range(steps + 1))


def _check(u: Tensor, grid: Grid) -> None:
    if u.shape != grid.shape:
        raise ValueError(
            f"the values have shape {tuple(u.shape)}, the grid {grid.shape}: use"
            " reshape(grid.shape)"
        )


def _check_cfl(
    number: Tensor, rate: Callable[[float], Tensor], t0: float, t1: float, steps: int
) -> None:
    """Refuse a step whose CFL number exceeds 1, and name a sufficient number of steps."""
    at_most = 1 + 1e-6  # rounding errors in single precision must not require one more step
    if float(number) <= at_most:
        return
    enough, found = steps, float(number)
    while math.isfinite(found) and found > at_most:  # v depends on the times of the steps
        enough = max(enough + 1, math.ceil(enough * found / at_most))
        middles = [(t + t_next) / 2 for t, t_next in _intervals(t0, t1, enough)]
        found = abs(t1 - t0) / enough * max(float(rate(t)) for t in middles)
    if not math.isfinite(found):
        raise ValueError("v(t, x) is not finite on the grid: take a smaller box or a bounded v")
    raise ValueError(
        f"the CFL number is {float(number):.3g} with steps={steps}, at most 1 is stable: take"
        f" steps={enough}, fewer nodes, or semi_lagrangian, which has no such limit"
    )


guard(__name__)
