"""Adaptive steps by hand: an embedded pair, its error estimate, accepted and rejected steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctdl_lib.dynamics import integrate
from machinery.store import Store

from .problems import van_der_pol

Velocity = Callable[[float, Tensor], Tensor]
STIFFNESS, LONG, TOL = 5.0, 20.0, 1e-4
EVALUATIONS = 3  # of the velocity a step: the last slope is the first of the next step
FINEST = 40_000  # equal steps


class Trial(NamedTuple):
    """A step that was tried at t with the size h, its estimated error over tol, and its end."""

    t: float
    h: float
    error: float
    end: Tensor

    @property
    def accepted(self) -> bool:
        """Whether the estimate is within the tolerance."""
        return self.error <= 1


def pair(f: Velocity, t: float, x: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """One step of order three and the estimate of its error, by comparison with order two.

    Reference: hairer1993solving, chapter II.5.
    """
    k1 = f(t, x)
    k2 = f(t + h / 2, x + h / 2 * k1)
    k3 = f(t + 3 * h / 4, x + 3 * h / 4 * k2)
    end = x + h * (2 * k1 + 3 * k2 + 4 * k3) / 9
    k4 = f(t + h, end)
    return end, h * (-5 / 72 * k1 + k2 / 12 + k3 / 9 - k4 / 8)


def adaptive(f: Velocity, x: Tensor, t1: float, tol: float, h: float = 1e-2) -> list[Trial]:
    """All steps tried between 0 and t₁, with the absolute and relative tolerance `tol`.

    A step is accepted if its estimate is within the tolerance. The next size is 0.9 h error^(−1/3),
    at most five times and at least a fifth of h.
    """
    t, trials = 0.0, []
    while t < t1:
        last = h >= t1 - t
        h = min(h, t1 - t)
        end, estimate = pair(f, t, x, h)
        size = torch.maximum(x.abs(), end.abs())
        error = (estimate / (tol + tol * size)).square().mean().sqrt().item()
        trials.append(Trial(t, h, error, end))
        if error <= 1:
            t, x = t1 if last else t + h, end
        h *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** (-1 / 3)))
    return trials


def equal(f: Velocity, x: Tensor, t1: float, n: int) -> Tensor:
    """The end of n equal steps of the same method of order three."""
    for k in range(n):
        x = pair(f, k * t1 / n, x, t1 / n)[0]
    return x


class Work(NamedTuple):
    """Evaluations of the velocity with adaptive steps, and with equal ones of the same accuracy."""

    adaptive: int
    equal: int


def work(mu: float, seed: int, tol: float = TOL, horizon: float = LONG) -> Work:
    """The work of both for an oscillator of Van der Pol that starts at a random point.

    The number of equal steps is the least power of √2 whose error at the end is no larger.
    """
    f = van_der_pol(mu)
    x = torch.randn(1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    exact = integrate(f, x, 0.0, horizon, tol=1e-11)
    trials = adaptive(f, x, horizon, tol)
    reached = (trials[-1].end - exact).norm().item()
    n = 16.0
    while n < FINEST:
        error = (equal(f, x, horizon, round(n)) - exact).norm().item()
        if error <= reached:
            break
        n *= 2**0.5
    return Work(EVALUATIONS * len(trials), EVALUATIONS * round(n))


def works(store: Store, seeds: Sequence[int]) -> list[Work]:
    """The work of all seeds, measured once."""
    long = 2.0 if store.run == "smoke" else LONG

    def compute() -> dict[str, Any]:
        return {"work": [list(work(STIFFNESS, s, horizon=long)) for s in seeds]}

    settings = {"mu": STIFFNESS, "tol": TOL, "horizon": LONG, "seeds": list(seeds)}
    return [Work(*pair) for pair in store.measure("adaptive", settings, compute).numbers["work"]]
