"""The compiled Gillespie simulator against simple loops with and without NumPy."""

import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from experiments.simulation_based_inference.campaigns import seeds
from experiments.simulation_based_inference.lotka_volterra import (
    THETA,
    StochasticLotkaVolterra,
    statistics,
)
from machinery.benchmarking import Row, compare

CHANGES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
PROBLEM = StochasticLotkaVolterra()
FEW = 4  # simulations at θ* by a simple loop; times are per simulation


def rows() -> Iterator[Row]:
    yield from compared("oscillations", log_theta(0))
    yield from compared("extinction", log_theta(1))
    prior = PROBLEM.prior.sample(16, torch.Generator().manual_seed(1)).double()
    yield from compared("parameters of the prior", prior)
    yield from summaries(5000)
    yield from campaign(50_000)


def log_theta(index: int, n: int = FEW) -> Tensor:
    return torch.tensor(THETA[index], dtype=torch.float64).log().expand(n, 4)


def compared(what: str, x: Tensor) -> list[Row]:
    """The time of one simulation and its statistics, as a mean over the same few parameters.

    The contenders draw different random numbers but have about the same number of reactions. The
    compiled one repeats each row, because otherwise the overhead of the call would dominate.
    """
    often = 50
    many = x.repeat(often, 1)
    contenders = {
        "compiled": lambda: PROBLEM.simulate(many, seeds(len(many), 0)),
        "NumPy loop": plainly(numpy_path, x),
        "Python loop": plainly(python_path, x),
    }
    reactions = PROBLEM.paths(many, seeds(len(many), 0)).reactions.double().mean()
    work = {name: len(many) if name == "compiled" else len(x) for name in contenders}
    case = f"a simulation, {what}, {reactions:.0f} reactions"
    return compare(case, contenders, rounds=3, work=work)


def plainly(path: Callable, x: Tensor) -> Callable[[], None]:
    def run():
        rng = np.random.default_rng(0)
        chance = random.Random(0)
        for row in x.exp().tolist():
            states = path(row, rng if path is numpy_path else chance)
            if states is not None:
                numpy_statistics(np.asarray(states, float))

    return run


def numpy_path(theta: list[float], rng: np.random.Generator) -> np.ndarray | None:
    """The path by an algorithm with arrays, or None if it has too many reactions."""
    state, t, reactions = np.array(PROBLEM.start), 0.0, 0
    states = np.empty((len(PROBLEM.times), 2))
    for k, recorded in enumerate(PROBLEM.times.tolist()):
        while t <= recorded:
            X, Y = before = state
            rates = np.array(theta) * np.array([X * Y, X, Y, X * Y])
            total = rates.sum()
            if total == 0:
                states[k:] = state
                return states
            t += rng.exponential(1 / total)
            state = state + CHANGES[rng.choice(4, p=rates / total)]
            reactions += 1
            if reactions > PROBLEM.max_reactions:
                return None
        states[k] = before
    return states


def python_path(theta: list[float], rng: random.Random) -> list[tuple[int, int]] | None:
    """The path by an algorithm with integers and branches, or None if it has too many reactions."""
    a, b, c, d = theta
    (X, Y), t, reactions = PROBLEM.start, 0.0, 0
    before, states = (X, Y), []
    times = PROBLEM.times.tolist()
    for recorded in times:
        while t <= recorded:
            before = X, Y
            first = a * X * Y
            second = first + b * X
            third = second + c * Y
            total = third + d * X * Y
            if total == 0:
                t = math.inf
                break
            t += rng.expovariate(total)
            level = rng.random() * total
            if level < first:
                X += 1
            elif level < second:
                X -= 1
            elif level < third:
                Y += 1
            else:
                Y -= 1
            reactions += 1
            if reactions > PROBLEM.max_reactions:
                return None
        states.append(before)
    return states


def numpy_statistics(path: np.ndarray) -> list[float]:
    found = [*path.mean(0), *np.log(path.var(0) + 1)]
    scale = np.where(path.std(0) > 0, path.std(0), 1)
    Z = (path - path.mean(0)) / scale
    for z in Z.T:
        found += [z[:-lag] @ z[lag:] / (len(z) - 1) for lag in (1, 2)]
    return [*found, (Z[:, 0] * Z[:, 1]).mean()]


def campaign(n: int) -> list[Row]:
    x = PROBLEM.prior.sample(n, torch.Generator().manual_seed(0)).double()
    wanted = seeds(n, 0)
    run = {"compiled": lambda: PROBLEM.simulate(x, wanted)}
    return compare("a simulation of a campaign", run, rounds=2, work={"compiled": n})


def summaries(n: int) -> list[Row]:
    states = PROBLEM.paths(log_theta(1, n), seeds(n, 0)).states
    paths = list(states.numpy())
    contenders = {
        "compiled": lambda: statistics(states),
        "NumPy": lambda: [numpy_statistics(path) for path in paths],
    }
    work = dict.fromkeys(contenders, float(n))
    return compare("statistics of a path", contenders, rounds=3, work=work)
