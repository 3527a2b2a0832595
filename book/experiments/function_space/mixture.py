"""A law on function space whose score is known, and what a network learns of it."""

import math
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.dynamics.stepping import Velocity
from ctdl_lib.generative import Score, perturb
from machinery.seeds import seeded
from machinery.store import Store

from .random_fields import FieldMixture
from .training import COMMON, LAWS, SCHEDULE, fno_of, seeds_of, steps_of

TRAINED, TWICE = 32, 64
LEARNING: dict[str, Any] = COMMON | {"steps": 1500}
TIMES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
FIELDS = 200
KINDS = ("matern", "standard")


def ramps(n: int) -> Tensor:
    """Two soft waves f, one along each axis, for means m = Q f."""
    wave = torch.cos(2 * math.pi * torch.arange(n, dtype=torch.float64) / n)
    return torch.stack([wave[:, None].expand(n, n), -wave[None, :].expand(n, n)])


def mixture_of(name: str, n: int, unit: int = TRAINED) -> FieldMixture:
    """The mixture of two Gaussian fields; pixels of noise are another Q on each grid."""
    Q, half = LAWS[name].normalized(unit), torch.tensor([0.5, 0.5])
    size = Q.apply(ramps(n))[0].square().mean().sqrt().item()
    return FieldMixture(Q, half, lambda n: 2 * ramps(n) / size)


def score_error(score: Velocity, law: FieldMixture, t: float, n: int, count: int, k: int) -> float:
    """The error E‖S_θ − S‖² of a score, over E‖S + x‖², which is what there is to learn."""
    generator = seeded(0, k)
    x = law.sample(count, n, generator)
    x = perturb(x, law.covariance.sample(count, n, generator), torch.tensor(t), SCHEDULE)
    exact = law.score(t, x, SCHEDULE)
    off = (score(t, x) - exact).square().mean() / (exact + x).square().mean()
    return off.item()


@torch.no_grad()
def errors(name: str, seed: int, small: bool, device: str) -> dict[str, list[float]]:
    """The errors of a network trained on one grid, there and on twice as many pixels, by time."""
    law = mixture_of(name, TRAINED)
    model = fno_of(seed, LEARNING, math.sqrt(5))

    def draw(k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = law.sample(LEARNING["batch"], TRAINED, generator)
        return x, law.covariance.sample(len(x), TRAINED, generator)

    with torch.enable_grad():
        steps = 3 if small else LEARNING["steps"]
        list(steps_of(model, draw, LEARNING, seed, steps, device=device))
    score, found = Score(model.requires_grad_(False), SCHEDULE), {}
    for n in (TRAINED, TWICE):
        count, law = 8 if small else FIELDS, mixture_of(name, n)
        rows = [score_error(score, law, t, n, count, k) for k, t in enumerate(TIMES)]
        found[str(n)] = rows
    return found


def all_errors(store: Store, seed: int = 0, device: str = "cpu") -> dict[str, list[Any]]:
    """The errors for both kinds of noise, one a seed."""
    seeds, small = seeds_of(store, seed), store.run == "smoke"
    compute = lambda: {k: [errors(k, s, small, device) for s in seeds] for k in KINDS}  # noqa: E731
    key = LEARNING | {"seeds": seeds, "fields": FIELDS}
    return store.measure("mixture", key, compute, device=device).numbers
