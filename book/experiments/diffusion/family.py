"""Diffusion, flow matching and stochastic interpolants: one denoiser, one map, other clocks."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctdl_lib.dynamics import integrate
from machinery.seeds import seeded
from machinery.store import Store

from . import samplers
from .laws import DOUBLE, SCHEDULE, MixtureScore, distance, quantiles, random_mixture
from .race import POINTS, seeds_of
from .samplers import Stratified

Weights = Callable[[Tensor], Tensor]
BUDGETS = (8, 16, 32, 64)
LAST = 0.01


class Path(NamedTuple):
    """The interpolant x(t) = α(t)x(0) + γ(t)η, by its two weights."""

    alpha: Weights
    gamma: Weights


DIFFUSION, LINEAR, CIRCLE = "diffusion", "straight lines", "quarter circles"
PATHS = {
    DIFFUSION: Path(SCHEDULE.a, SCHEDULE.s),
    LINEAR: Path(lambda t: 1 - t, lambda t: t),
    CIRCLE: Path(lambda t: torch.cos(math.pi / 2 * t), lambda t: torch.sin(math.pi / 2 * t)),
}


def mean(score: Callable, sigma: Tensor, y: Tensor) -> Tensor:
    """The mean E[x(0) | x(0) + ση = y], by the score of the diffusion that has this σ."""
    at = samplers.level(min(samplers.time_of(sigma).item(), 1.0))
    return (at.a * y + at.s**2 * score(at.t, at.a * y)) / at.a


class Velocity:
    """The velocity v(t, x) = α′E[x(0) | x] + γ′E[η | x] of an interpolant, by the mean alone."""

    def __init__(self, path: Path, score: Callable):
        self.path, self.score = path, score

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        """The value v(t, x)."""
        t = torch.as_tensor(t, **DOUBLE).clamp(0, 1)
        slopes = [torch.func.grad(weight)(t) for weight in self.path]
        alpha, gamma = (weight(t) for weight in self.path)
        D = mean(self.score, gamma / alpha, x / alpha)
        return slopes[0] * D + slopes[1] * (x - alpha * D) / gamma


def time_of(path: Path, sigma: float) -> float:
    """The time at which γ/α = σ, by bisection."""
    low, high = torch.zeros((), **DOUBLE), torch.ones((), **DOUBLE)
    for _ in range(60):
        middle = (low + high) / 2
        under = path.gamma(middle) < sigma * path.alpha(middle)
        low, high = (middle, high) if under else (low, middle)
    return ((low + high) / 2).item()


def solved(
    name: str, score: Callable, eta: Tensor, *, save: int | None = None, **how
) -> tuple[Tensor, Tensor]:
    """The data x(0) to which the flow of an interpolant carries noise, and its path.

    The flow starts where σ is that of the diffusion at t = 1, and its last value is the mean. With
    `save`, so many states are kept at even times, and their times are the first result.
    """
    path, top = PATHS[name], samplers.level(1.0).sigma
    start, end = time_of(path, top), time_of(path, LAST)
    last, v = torch.tensor(LAST, **DOUBLE), Velocity(path, score)
    eta = path.gamma(torch.tensor(start, **DOUBLE)) * eta
    if save is None:
        x = integrate(v, eta, start, end, **how)
        alpha = path.alpha(torch.tensor(end, **DOUBLE))
        return mean(score, last, x / alpha), x
    times = torch.linspace(start, end, save, **DOUBLE)
    return times, integrate(v, eta, start, end, save_at=times, **how)


def mirrored(score: Callable, eta: Tensor, **how) -> Tensor:
    """The control: the map of the diffusion after a mirror, which carries the same laws."""
    return solved(DIFFUSION, score, -eta, **how)[0]


def apart(store: Store, seed: int = 0) -> dict[str, list[float]]:
    """The root mean square distance of maps from that of the diffusion, one a mixture."""
    smoke, seeds = store.run == "smoke", seeds_of(store, seed)
    n, tol = (4, 1e-3) if smoke else (200, 1e-8)
    key = {"seeds": seeds, "points": n, "tol": tol, "last": LAST}

    def distances(s: int) -> dict[str, float]:
        score = MixtureScore(random_mixture(s, d=2))
        eta = torch.randn(n, 2, generator=seeded(s, 5), **DOUBLE)
        ours = solved(DIFFUSION, score, eta, tol=tol)[0]
        others = {name: solved(name, score, eta, tol=tol)[0] for name in (LINEAR, CIRCLE)}
        others["mirror"] = mirrored(score, eta, tol=tol)
        rms = lambda x: (x - ours).square().sum(1).mean().sqrt().item()  # noqa: E731
        return {name: rms(x) for name, x in others.items()}

    def compute() -> dict[str, list[float]]:
        found = [distances(s) for s in seeds]
        return {name: [row[name] for row in found] for name in found[0]}

    return store.measure("families", key, compute).numbers


def budgets(store: Store, seed: int = 0) -> dict[str, dict[int, list[float]]]:
    """The errors W₁ of Heun's method with equal steps in the time of each interpolant."""
    smoke, seeds = store.run == "smoke", seeds_of(store, seed)
    points, these = (64, BUDGETS[:2]) if smoke else (POINTS, BUDGETS)
    key = {"budgets": these, "seeds": seeds, "points": points, "last": LAST}

    def error(name: str, n: int, s: int) -> float:
        p = random_mixture(s)
        x = Stratified(seeded(s, 0)).start(points)
        end, _ = solved(name, MixtureScore(p), x, steps=(n - 1) // 2, method="heun")
        return distance(end, quantiles(p, points))

    def compute() -> dict[str, dict[int, list[float]]]:
        return {name: {n: [error(name, n, s) for s in seeds] for n in these} for name in PATHS}

    found = store.measure("interpolants", key, compute).numbers
    return {name: {int(n): row for n, row in rows.items()} for name, rows in found.items()}
