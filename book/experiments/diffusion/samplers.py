"""Samplers that reverse the noise: one step of each, grids of times, and the loop they share.

All use the mean D(t, x) = E[X(0) | X(t) = x] = (x + s²∇log p_t(x))/a. With y = x/a and the level of
noise σ = s/a, the probability flow is dy/dσ = (y − D)/σ, whatever the schedule.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .laws import SCHEDULE

Score = Callable[[float, Tensor], Tensor]
Noise = Callable[[Tensor], Tensor]


class Level(NamedTuple):
    """A time with what is left of the data (a), the noise (s), σ = s/a, β and ∫β."""

    t: float
    a: float
    s: float
    sigma: float
    beta: float
    integral: float


def level(t: float) -> Level:
    """The level of noise at time t."""
    a, s = SCHEDULE.a(t).item(), SCHEDULE.s(t).item()
    return Level(t, a, s, s / a, SCHEDULE.beta(t).item(), SCHEDULE.integral(t).item())


def time_of(sigma: Tensor) -> Tensor:
    """The time at which s/a = σ, from ∫β = log(1 + σ²)."""
    passed, slope = torch.log1p(sigma**2), SCHEDULE.end - SCHEDULE.start
    root = torch.sqrt(SCHEDULE.start**2 + 2 * slope * passed)
    return 2 * passed / (SCHEDULE.start + root)  # no difference of nearly equal numbers


def grid(kind: str, steps: int, last: float) -> list[float]:
    """The times of so many steps from t = 1 down to the level σ = `last`.

    They are even in t ("t"), in t squared's root ("√t"), in log σ ("log σ"), or in the seventh root
    of σ ("σ^(1/7)").

    Raises:
        ValueError: the kind is unknown.
    """
    top, share = level(1.0).sigma, torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    low = torch.tensor(last, dtype=torch.float64)
    if kind == "log σ":
        sigma = torch.exp(share * low.log() + (1 - share) * math.log(top))
    elif kind == "σ^(1/7)":
        sigma = (share * low ** (1 / 7) + (1 - share) * top ** (1 / 7)) ** 7
    elif kind in ("t", "√t"):
        power = 1 if kind == "t" else 2
        end = time_of(low) ** (1 / power)
        return [1.0, *((share * end + (1 - share)) ** power).tolist()[1:]]
    else:
        raise ValueError(f"kind must be one of {', '.join(GRIDS)}, got {kind!r}")
    return [1.0, *time_of(sigma).tolist()[1:]]


GRIDS = ("t", "√t", "σ^(1/7)", "log σ")


@dataclass
class Run:
    """A run of a sampler: the score, the noise it draws, and what it remembers."""

    score: Score
    noise: Noise
    evaluations: int = 0
    before: tuple[Tensor, float] | None = None  # the last mean and the step in log σ that it began

    def mean(self, at: Level, x: Tensor) -> Tensor:
        """The mean D(t, x) of the data given the state x."""
        return (x + at.s**2 * self.slope(at, x)) / at.a

    def slope(self, at: Level, x: Tensor) -> Tensor:
        """The score; all evaluations pass here and are counted."""
        self.evaluations += 1
        return self.score(at.t, x)


Step = Callable[[Run, Level, Level, Tensor], Tensor]


def euler_maruyama(run: Run, at: Level, to: Level, x: Tensor) -> Tensor:
    """A step of the reverse equation with everything frozen."""
    h = at.beta * (at.t - to.t)
    return x + h * (0.5 * x + run.slope(at, x)) + math.sqrt(h) * run.noise(x)


def freeze_sum(run: Run, at: Level, to: Level, x: Tensor) -> Tensor:
    """A step of the reverse equation with x + S frozen: exact for standard normal data."""
    keep = math.exp(-0.5 * (at.integral - to.integral))
    V = x + run.slope(at, x)
    return keep * x + 2 * (1 - keep) * V + math.sqrt(1 - keep**2) * run.noise(x)


def freeze_mean(run: Run, at: Level, to: Level, x: Tensor) -> Tensor:
    """A step of the reverse equation with D frozen: exact if the data are one point."""
    D, r = run.mean(at, x), to.sigma / at.sigma
    y = D + r**2 * (x / at.a - D)
    return to.a * y + to.s * math.sqrt(1 - r**2) * run.noise(x)


def flow_mean(run: Run, at: Level, to: Level, x: Tensor) -> Tensor:
    """A step of the probability flow with D frozen, which is Euler's in σ."""
    D = run.mean(at, x)
    return to.a * (D + to.sigma / at.sigma * (x / at.a - D))


def flow_line(run: Run, at: Level, to: Level, x: Tensor) -> Tensor:
    """A step of the probability flow with D on the line through its last two values in log σ."""
    D, h = run.mean(at, x), math.log(at.sigma / to.sigma)
    line = D
    if run.before is not None:
        old, before = run.before
        line = D + 0.5 * h / before * (D - old)
    run.before = D, h
    return to.a * (line + to.sigma / at.sigma * (x / at.a - line))


def heun_time(run: Run, at: Level, to: Level, x: Tensor) -> Tensor:
    """Heun's step of the probability flow in x and t."""
    h = to.t - at.t
    first = -0.5 * at.beta * (x + run.slope(at, x))
    z = x + h * first
    return x + 0.5 * h * (first - 0.5 * to.beta * (z + run.slope(to, z)))


def heun_level(run: Run, at: Level, to: Level, x: Tensor) -> Tensor:
    """Heun's step of the probability flow in y = x/a and σ."""
    y, h = x / at.a, to.sigma - at.sigma
    first = (y - run.mean(at, x)) / at.sigma
    z = y + h * first
    second = (z - run.mean(to, to.a * z)) / to.sigma
    return to.a * (y + 0.5 * h * (first + second))


class Sampler(NamedTuple):
    """A step, how often it evaluates the score, whether it draws noise, and its order in theory."""

    step: Step
    evaluations: int
    noisy: bool
    order: int

    def steps(self, budget: int) -> int:
        """The steps that a budget of evaluations affords: the last evaluation is the final mean."""
        return (budget - 1) // self.evaluations


EULER, SUM, MEAN = "Euler–Maruyama", "SDE, x + S frozen", "SDE, mean frozen"
FLOW, LINE = "flow, mean frozen", "flow, mean on a line"
HEUN, HEUN_LEVEL = "flow, Heun in t", "flow, Heun in σ"
SAMPLERS = {
    EULER: Sampler(euler_maruyama, 1, True, 1),
    SUM: Sampler(freeze_sum, 1, True, 1),
    MEAN: Sampler(freeze_mean, 1, True, 1),
    FLOW: Sampler(flow_mean, 1, False, 1),
    LINE: Sampler(flow_line, 1, False, 2),
    HEUN: Sampler(heun_time, 2, False, 2),
    HEUN_LEVEL: Sampler(heun_level, 2, False, 2),
}


def states(
    name: str, score: Score, x: Tensor, times: list[float], noise: Noise
) -> Iterator[tuple[float, Tensor]]:
    """The times and states of a sampler from x at t = 1 on, and at last the mean, as of t = 0."""
    run, levels, sampler = Run(score, noise), [level(t) for t in times], SAMPLERS[name]
    yield 1.0, x
    for at, to in pairwise(levels):
        x = sampler.step(run, at, to, x)
        yield to.t, x
    yield 0.0, run.mean(levels[-1], x)


@torch.no_grad()
def sample(
    name: str, score: Score, x: Tensor, times: list[float], noise: Noise = torch.randn_like
) -> Tensor:
    """The samples into which a sampler turns the noise x."""
    return deque(states(name, score, x, times, noise), maxlen=1)[0][1]


class Stratified:
    """Normal noise for points on the line, spread evenly so that laws are computed and not sampled.

    Points that are neighbours after sorting get the terms of van der Corput's sequence, shifted by
    a random number that is new in each call. So any stretch of the line gets the whole normal law.
    """

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def start(self, n: int) -> Tensor:
        """The quantiles of the normal law at (k + ½)/n."""
        return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """The noise for the points x (n, 1)."""
        shift = torch.rand((), generator=self.generator, dtype=torch.float64)
        levels = (van_der_corput(len(x)) + shift) % 1
        rank = x.flatten().argsort().argsort()
        return torch.special.ndtri(levels.clamp(1e-12, 1 - 1e-12))[rank][:, None]


def van_der_corput(n: int) -> Tensor:
    """The first n terms of the sequence in base 2, moved by half a cell."""
    k, bits = torch.arange(n), max(1, math.ceil(math.log2(n)))
    value = torch.zeros(n, dtype=torch.float64)
    for bit in range(bits):
        value += (k >> bit & 1).double() * 0.5 ** (bit + 1)
    return value + 0.5 ** (bits + 1)
