"""Single steps of explicit Runge–Kutta methods and of Störmer–Verlet, on tuples of tensors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Velocity = Callable[[Any, Any], Any]


class Tableau(NamedTuple):
    """Nodes c, stage weights a and weights b of an explicit Runge–Kutta method."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


TABLEAUS = {
    "euler": Tableau(c=(0.0,), a=((),), b=(1.0,)),
    "midpoint": Tableau(c=(0.0, 0.5), a=((), (0.5,)), b=(0.0, 1.0)),
    "heun": Tableau(c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5)),
    "rk4": Tableau(
        c=(0.0, 0.5, 0.5, 1.0),
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


METHODS = (*TABLEAUS, "verlet")
STAGES = {name: tableau.c for name, tableau in TABLEAUS.items()} | {"verlet": (0.0, 0.5, 1.0)}


@dataclass
class Statistics:
    """The counts of an integration, which `integrate` adds to its argument `statistics`.

    `evaluations` counts the calls of f in the forward pass and, with "recompute", in the backward
    pass. `backward_evaluations` counts the evaluations of the adjoint equation. `accepted` and
    `rejected` count the steps of the forward pass.
    """

    evaluations: int = 0
    accepted: int = 0
    rejected: int = 0
    backward_evaluations: int = 0


class OnTuples:
    """A velocity f as a function of tuples of tensors, which counts its calls.

    The first call checks the shape, dtype and device of the result. Every call checks that f left
    the state as it was, and the result of the call before. Under autocast, results of a lower
    precision are converted to the dtype of the state.

    Args of the constructor: f; a state of the type that f receives; the `Statistics` to add to; the
    number of parts of the state that have one row per sample (`batched`), all of them by default.
    """

    def __init__(self, f: Velocity, like: Any, statistics: Statistics, batched: int | None = None):
        self.f, self.statistics, self.batched = f, statistics, batched
        self.is_tensor, self.kind = isinstance(like, Tensor), type(like)
        self.unchecked = True
        self.last: tuple[Tensors, tuple[int, ...]] = (), ()

    def pack(self, x: Tensors) -> Any:
        """The tuple x as a state of the type that f receives."""
        if self.is_tensor:
            return x[0]
        return self.kind(*x) if hasattr(self.kind, "_fields") else tuple(x)

    def __call__(self, t: Any, x: Tensors) -> Tensors:
        """The velocity at (t, x), a tuple like x."""
        self.statistics.evaluations += 1
        before = _versions(x)
        slope = self.f(t, self.pack(x))
        if self.unchecked and not isinstance(slope, Tensor if self.is_tensor else Iterable):
            raise TypeError(f"f(t, x) must be of the type of x, got a {type(slope).__name__}")
        slope: Any = (slope,) if self.is_tensor else tuple(slope)
        if torch.is_autocast_enabled(x[0].device.type):
            slope = tuple(k.to(part.dtype) for k, part in zip(slope, x, strict=True))
        if self.unchecked:
            _check_slope(slope, x)
            self.unchecked = False
        if _versions(x) != before:
            raise ValueError("f changes its argument x in place: let it work on a copy, x.clone()")
        previous, then = self.last
        if _versions(previous) != then:
            raise ValueError("f overwrites the result of an earlier call: return a new tensor")
        self.last = slope, _versions(slope)
        return slope


def clock(t: Any, x: Tensor) -> Tensor:
    """The times t, numbers or lists of them, in the real dtype and on the device of x."""
    return torch.tensor(t, dtype=x.real.dtype, device=x.device)


def normal(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """The draws from N(0, 1), made on the device of the generator, in the type of `like`."""
    device = generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def step(
    method: str, f: Velocity, t: Sequence[Any], h: float, x: Tensors, slope: Tensors | None = None
) -> Tensors:
    """The state after one step of size h from x, by one of METHODS.

    `t` has the time of each stage, t₀ + cᵢh for the nodes cᵢ in STAGES[method]. `slope` is
    f(t₀, x), if it is known already.
    """
    if method == "verlet":
        return _verlet(f, t, h, x)
    return _runge_kutta(TABLEAUS[method], f, t, h, x, slope)


class Steps(NamedTuple):
    """The sizes of steps, the times of their stages, and the times of their ends."""

    h: list[float]
    stages: list[tuple[Tensor, ...]]
    ends: tuple[Tensor, ...]


def equal_steps(method: str, t0: float, t1: float, n: int, like: Tensor) -> Steps:
    """The n equal steps of a method from t₀ to t₁, with times of the dtype and device of `like`."""
    # Repeated addition of h would miss t1 by rounding; weighted means meet both ends exactly.
    nodes = [(t0 * (n - k) + t1 * k) / n for k in range(n + 1)]
    h = [b - a for a, b in pairwise(nodes)]
    rows = [[t + c * dt for c in STAGES[method]] for t, dt in zip(nodes, h, strict=False)]
    stages = [row.unbind() for row in clock(rows, like).unbind()]
    return Steps(h, stages, clock(nodes[1:], like).unbind())


def hermite(
    h: float, x: Tensors, end: Tensors, slope: Tensors, end_slope: Tensors, s: float
) -> Tensors:
    """The cubic Hermite interpolant of a step at t + s h, with an error of O(h⁴).

    It has the given values and slopes at both ends of the step.

    Reference: hairer1993solving, chapter II.6.
    """
    value0, value1 = (1 + 2 * s) * (1 - s) ** 2, s * s * (3 - 2 * s)
    slope0, slope1 = h * s * (1 - s) ** 2, h * s * s * (s - 1)
    return tuple(
        value0 * a + value1 * b + slope0 * ka + slope1 * kb
        for a, b, ka, kb in zip(x, end, slope, end_slope, strict=True)
    )


def _advance(x: Tensors, h: float, weights: Sequence[float], slopes: Sequence[Tensors]) -> Tensors:
    """The sum x + h Σᵢ wᵢ kᵢ, with one fused multiply-add per term."""
    for w, slope in zip(weights, slopes, strict=True):
        if w:
            x = tuple(torch.add(a, k, alpha=h * w) for a, k in zip(x, slope, strict=True))
    return x


def _runge_kutta(
    tableau: Tableau, f: Velocity, t: Sequence[Any], h: float, x: Tensors, slope: Tensors | None
) -> Tensors:
    slopes = [] if slope is None else [slope]
    for at, row in list(zip(t, tableau.a, strict=True))[len(slopes) :]:
        slopes.append(f(at, _advance(x, h, row, slopes)))
    return _advance(x, h, tableau.b, slopes)


def _verlet(f: Velocity, t: Sequence[Any], h: float, x: Tensors) -> Tensors:
    """One kick–drift–kick step, which is symplectic, symmetric and of order two."""
    (q, p), (start, middle, end) = x, t
    p = torch.add(p, f(start, (q, p))[1], alpha=h / 2)
    q = torch.add(q, f(middle, (q, p))[0], alpha=h)
    return q, torch.add(p, f(end, (q, p))[1], alpha=h / 2)


def as_tensor(value: Any, name: str) -> Tensor:
    """The value, after a check that a function of the caller has returned a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got a {type(value).__name__}")
    return value


def same_shape(value: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """The value, after a check of its shape: broadcasting would turn a fault into a number.

    Raises:
        ValueError: the value has another shape; the message says that of `name`.
    """
    if as_tensor(value, name).shape != torch.Size(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    return value


def _versions(x: Tensors) -> tuple[int, ...]:
    """How often the memory of each tensor was written; inference tensors do not count it."""
    if torch.compiler.is_compiling():  # writes are traced, and have no version
        return ()
    return tuple(0 if part.is_inference() else part._version for part in x)


def _check_slope(slope: Tensors, x: Tensors) -> None:
    """Refuse a slope unlike x: broadcasting (batch, 1) and (batch,) would give (batch, batch)."""
    wanted = [(tuple(part.shape), part.dtype, part.device) for part in x]
    came = [(tuple(part.shape), part.dtype, part.device) for part in slope]
    if came != wanted:
        kind = TypeError if [c[1] for c in came] != [w[1] for w in wanted] else ValueError
        raise kind(f"f(t, x) must have the shape, dtype and device of x, {wanted}, but has {came}")
