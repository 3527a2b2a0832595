"""The networks of the chapter: trained with noise, without noise, and on an even clock."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.control import objective
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.potentials import Potential, ResNetPotential, ScaledPotential
from ctdl_lib.problems.vehicles import Quadcopter
from machinery.seeds import seeded
from machinery.store import Record, Store

CHAPTER = "14_quadcopter"
SEEDS = (10, 11, 12)  # settings were chosen with seed 1
UNIT = torch.tensor([1.0, 0.3, 1.0, 1.0], dtype=torch.float32).repeat_interleave(3)
SETTINGS: dict[str, Any] = {
    **{"width": 128, "rank": 13, "unit": UNIT.tolist(), "height": 10.0, "layer": 0.02},
    **{"batch": 64, "times": 100, "steps": 4000, "lr": 0.05, "warm_up": 100, "clip": 2e4},
    **{"spread": 1.0, "weights": {"hjb": 0.01, "terminal": 0.01}, "penalized": 16},
}
SIGMAS = {"stochastic": 0.2, "deterministic": 0.0, "flat": 0.2}
KINDS = tuple(SIGMAS)


def starts(
    count: int, generator: torch.Generator, *, spread: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Random starts at rest, (count, 12), whose places are normal around the start."""
    x = Quadcopter().start.to(dtype or torch.float32).repeat(count, 1)
    x[:, :3] += spread * torch.randn(count, 3, generator=generator, dtype=torch.float32).to(x)
    return x


def untrained(key: dict[str, Any], seed: int) -> ScaledPotential:
    """The network in its units of cost, state and time, before its training."""
    shape: dict[str, Any] = {"width": key["width"], "rank": key["rank"], "generator": seeded(seed)}
    frame: dict[str, Any] = {"height": key["height"], "layer": key["layer"]}
    return ScaledPotential(
        ResNetPotential(12, **shape), center=Quadcopter().target, unit=UNIT, **frame
    )


@dataclass(frozen=True)
class Fitted:
    """A trained value function in double precision, with the record of its training."""

    phi: Potential
    seed: int
    record: Record


def fit(store: Store, kind: str, seed: int) -> Fitted:
    """A value function that was trained with this seed; `kind` is one of `KINDS`."""
    key: dict[str, Any] = SETTINGS | ({"layer": None} if kind == "flat" else {})
    sigma, model = SIGMAS[kind], untrained(key, seed)
    problem = Quadcopter(diffusion=sigma)

    def batch(k: int) -> tuple[Tensor, torch.Generator]:
        generator = seeded(10_000 * seed + k)
        count = 4 if store.run == "smoke" else key["batch"]
        return starts(count, generator, spread=key["spread"]), generator

    def loss(_: nn.Module, drawn: tuple[Tensor, torch.Generator]) -> dict[str, Tensor]:
        how = key["weights"] | {"steps": key["times"], "penalized": key["penalized"]}
        noise: dict[str, Any] = {"generator": drawn[1]} if sigma else {}
        return objective(problem, model, drawn[0], **how, **noise)

    def training(steps: int, checkpoint: Path | None) -> Iterator[Step]:
        falling, ramp = cosine(key["lr"], steps), key["warm_up"]
        rate = lambda k: min(1.0, (k + 1) / ramp) * falling(k)  # noqa: E731
        how = {"lr": rate, "max_grad_norm": key["clip"], "checkpoint": checkpoint}
        return train(model, loss, batch, steps=steps, **how)

    record = store.fit(f"{kind}-{seed}", model, key | {"sigma": sigma, "seed": seed}, training)
    return Fitted(model.double().requires_grad_(False), seed, record)


def seeds_of(store: Store, seed: int = 0, kind: str = "stochastic") -> list[int]:
    """The seeds of the trainings: three, two on an even clock, one in a trial run."""
    count = 1 if store.run == "smoke" else 2 if kind == "flat" else len(SEEDS)
    return [seed + s for s in SEEDS[:count]]


def trained(store: Store, kind: str, seed: int = 0) -> list[Fitted]:
    """The value functions of all seeds."""
    return [fit(store, kind, s) for s in seeds_of(store, seed, kind)]
