"""Hutchinson's estimate of a divergence: its variance, and what it costs a trained density."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.dynamics import divergence, hutchinson
from ctdl_lib.generative import Flow
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.networks import ConcatSquash
from ctdl_lib.problems.densities import TOYS
from machinery.seeds import seeded
from machinery.store import Store

from ..ot_flow.densities import solved
from .training import RATES, best_rate

SEEDS = (10, 11, 12)  # learning rates are chosen on seed 0
EXACT, NORMAL, SIGNS = "exact", "normal", "signs"
LONGER = "normal, three times the steps"  # which then takes about as long as the exact divergence
PROBES = (1, 4, 16, 64)
DIMS = (2, 32)
REPEATS = 2000
PLANES = 4  # of which the state has two dimensions each
POINTS = 4000
FINE = {"steps": 32}


def probes(kind: str, n: int, d: int, generator: torch.Generator) -> Tensor:
    """Random vectors with E[εεᵀ] = I, from N(0, I) or with entries ±1.

    Raises:
        ValueError: there is no such kind.
    """
    if kind == NORMAL:
        return torch.randn(n, d, generator=generator)
    if kind == SIGNS:
        return 2.0 * torch.randint(2, (n, d), generator=generator) - 1
    raise ValueError(f"kind must be {NORMAL!r} or {SIGNS!r}, got {kind!r}")


@dataclass(frozen=True)
class Variance:
    """The variance of the mean of some probes, measured and by theory."""

    measured: list[float]
    theory: list[float]


def variance(d: int, kind: str, seed: int, repeats: int = REPEATS) -> Variance:
    """The variance of the mean over each of the `PROBES`, for an untrained network at one point.

    With the symmetric part S of the Jacobian it is 2 Σᵢⱼ Sᵢⱼ²/m for m normal probes, and without
    the diagonal for signs.

    Reference: hutchinson1989stochastic.
    """
    g = seeded(seed, 0)
    field = partial(ConcatSquash(d, width=64, hidden=3, generator=g), torch.tensor(0.5))
    x = torch.randn(1, d, generator=g)
    exact = divergence(field, x).divergence
    J = torch.func.jacrev(lambda x: field(x[None])[0])(x[0])
    S = (J + J.T).detach() / 2
    one = 2 * (S.square().sum() - (S.diagonal().square().sum() if kind == SIGNS else 0)).item()
    measured = []
    for m in PROBES:
        eps = probes(kind, m * repeats, d, g)
        found = hutchinson(field, x.expand(len(eps), d), eps).divergence.reshape(repeats, m)
        measured.append((found.mean(1) - exact).detach().square().mean().item())
    return Variance(measured, [one / m for m in PROBES])


def variances(store: Store, seeds: Sequence[int]) -> dict[tuple[int, str], list[Variance]]:
    """The variance in each of the `DIMS` and for both kinds of probes, measured once and kept."""
    repeats = 20 if store.run == "smoke" else REPEATS
    cases = [(d, kind) for d in DIMS for kind in (NORMAL, SIGNS)]
    key = {"steps": 0, "cases": cases, "seeds": list(seeds), "repeats": REPEATS}

    def compute() -> dict[str, Any]:
        return {
            f"{d}, {kind}": [asdict(variance(d, kind, s, repeats)) for s in seeds]
            for d, kind in cases
        }

    found = store.measure("variance", key, compute).numbers
    return {(d, kind): [Variance(**row) for row in found[f"{d}, {kind}"]] for d, kind in cases}


@dataclass(frozen=True)
class Rotated:
    """Independent copies of the eight Gaussians in `planes` planes, all turned by one rotation.

    Its samples are x = Q y, where y has the copies side by side.
    """

    planes: int

    @property
    def Q(self) -> Tensor:  # noqa: N802
        """The rotation, the same for all seeds."""
        size, drawn = 2 * self.planes, {"generator": seeded(7, 0), "dtype": torch.float64}
        A = torch.randn(size, size, **drawn)
        return torch.linalg.qr(A).Q.to(torch.get_default_dtype())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n samples."""
        y = [TOYS["8gaussians"].sample(n, generator) for _ in range(self.planes)]
        return torch.cat(y, 1) @ self.Q.T

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density at x."""
        y = (x @ self.Q).split(2, 1)
        return torch.stack([TOYS["8gaussians"].log_prob(part) for part in y]).sum(0)


@dataclass(frozen=True)
class Settings:
    """The settings of one training with an estimate of the divergence."""

    estimate: str
    planes: int = PLANES
    rk4: int = 8
    steps: int = 500
    batch: int = 250
    lr: float = 0.01
    width: int = 64
    hidden: int = 3


def untrained(key: Settings, seed: int) -> Flow:
    """The flow before its training."""
    d = 2 * key.planes
    net = ConcatSquash(d, width=key.width, hidden=key.hidden, generator=seeded(seed, 0))
    return Flow(net, d, solver={"steps": key.rk4}, standardize=False)


def steps_of(
    flow: Flow, key: Settings, seed: int, steps: int, file: Path | None = None
) -> Iterator[Step]:
    """The first `steps` steps of a training, resumed from `file` if that exists."""
    density = Rotated(key.planes)

    def batch(k: int) -> tuple[Tensor, Tensor | None]:
        g = seeded(seed, k + 1)
        x = density.sample(key.batch, g)
        return x, None if key.estimate == EXACT else probes(key.estimate, len(x), x.shape[1], g)

    def loss(flow: Any, drawn: tuple[Tensor, Tensor | None]) -> Tensor:
        x, eps = drawn
        return -flow.log_prob(x, eps=eps).mean()

    rate = cosine(key.lr, key.steps)
    return train(flow, loss, batch, steps=steps, lr=rate, checkpoint=file)


TRAININGS = {
    EXACT: Settings(EXACT),
    NORMAL: Settings(NORMAL),
    LONGER: Settings(NORMAL, steps=1500),
}


@dataclass(frozen=True)
class Outcome:
    """The rate that was best on seed 0; the gaps, in nats, and the seconds of all seeds.

    Gaps are computed with the exact divergence, whatever the training took.
    """

    rate: float
    gaps: list[float]
    seconds: list[float]


def held_out(store: Store) -> Tensor:
    """The points on which all trainings in eight dimensions are judged."""
    return Rotated(PLANES).sample(50 if store.run == "smoke" else POINTS, seeded(99, 0))


def outcome(store: Store, kind: str, seeds: Sequence[int]) -> Outcome:
    """What one of the `TRAININGS` is worth, measured once and kept.

    The longer one has the rate of the shorter one.
    """
    key, density, smoke = TRAININGS[kind], Rotated(PLANES), store.run == "smoke"
    x = held_out(store)

    def trained(lr: float, seed: int) -> tuple[float, float]:
        flow = untrained(tried := replace(key, lr=lr), seed)
        *_, last = steps_of(flow, tried, seed, 2 if smoke else key.steps)
        with torch.no_grad():
            found = density.log_prob(x) - solved(flow, **FINE).log_prob(x)
        return found.mean().item(), last.seconds

    def best() -> float:
        if kind == LONGER:
            return outcome(store, NORMAL, seeds).rate
        return best_rate({str(lr): trained(lr, 0)[0] for lr in RATES[: 1 if smoke else None]})

    def compute() -> dict[str, Any]:
        rate = best()
        gaps, seconds = zip(*(trained(rate, s) for s in seeds), strict=True)
        return {"rate": rate, "gaps": list(gaps), "seconds": list(seconds)}

    settings = asdict(key) | {"rates": list(RATES), "seeds": list(seeds), "points": POINTS}
    name = f"trace-{'longer' if kind == LONGER else kind}"
    return Outcome(**store.measure(name, settings, compute).numbers)


def slope(found: Sequence[float]) -> float:
    """The slope of the logarithm of a variance against that of the number of probes."""
    return math.log(found[-1] / found[0]) / math.log(PROBES[-1] / PROBES[0])
