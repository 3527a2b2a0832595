"""OT-Flow on seven densities in the plane whose entropy is known."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.generative import Flow, ot_flow
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.densities import TOYS, Density, Estimate
from machinery.store import Record, Store

FINE = 32  # Runge–Kutta steps by which a trained flow is judged
POINTS = 10_000  # held out, the same for all seeds of a density
HELD_OUT_SEED = 99
SEEDS = (10, 11, 12)  # settings were chosen on seeds 0 and 1


@dataclass(frozen=True)
class Settings:
    """The settings of one fit: the network, the three weights, and how it is trained.

    The objective is L + `alpha` C + `beta` R over `rk4` steps, and its learning rate falls along
    a cosine from `lr` unless `schedule` is "constant". The gradient is cut to `alpha` times
    `max_grad_norm`, which so means the same for all densities.
    """

    density: str
    alpha: float = 100.0
    beta: float = 1.0
    rk4: int = 4
    steps: int = 1000
    batch: int = 512
    lr: float = 0.03
    schedule: str = "cosine"
    max_grad_norm: float | None = 3.0
    average: float | None = 0.99
    width: int = 32
    layers: int = 2


@dataclass(frozen=True)
class Gap:
    """The NLL of a flow, the least possible one at the same points, and their difference."""

    density: str
    seed: int
    nll: float
    least: float
    gap: float
    standard_error: float


PUBLISHED = {  # α and β of the settings documented with the paper's code
    "8gaussians": (30.0, 1.0),
    "checkerboard": (15.0, 2.0),
    "swissroll": (30.0, 15.0),
    "circles": (5.0, 1.0),
    "moons": (8.0, 1.0),
    "pinwheel": (30.0, 15.0),
    "2spirals": (10.0, 1.0),
}


def plain(name: str, **changes: Any) -> Settings:
    """The published weights α and β with an iteration budget of our own, and nothing else."""
    alpha, beta = PUBLISHED[name]
    off: dict[str, Any] = {"max_grad_norm": None, "average": None}
    return Settings(name, **({"alpha": alpha, "beta": beta, "rk4": 6} | off | changes))


# Candidates with α = 100, an average and clipping were worse than these on the circles, at a seed
# that had no part in their choice: the gap was 0.40 with 8 steps and 800 iterations (seed 10), and
# 1.06 with 4 steps and 1,200, whose own solver saw an NLL below the least.
CHOSEN = {
    "8gaussians": plain("8gaussians", lr=0.1),
    "checkerboard": plain("checkerboard", steps=3000),
    "swissroll": plain("swissroll", lr=0.05),
    "circles": plain("circles", lr=0.05),
    "moons": plain("moons", lr=0.05),
    "pinwheel": plain("pinwheel", lr=0.05),
    "2spirals": plain("2spirals", steps=3000),
}


def settings(name: str, **changes: Any) -> Settings:
    """The settings chosen for the density `name`, with some of them changed.

    Raises:
        ValueError: there is no such density.
    """
    if name not in CHOSEN:
        raise ValueError(f"density must be one of {sorted(CHOSEN)}, got {name!r}")
    return replace(CHOSEN[name], **changes)


def described(key: Settings) -> dict[str, Any]:
    """The settings as they are stored, without those that are switched off."""
    off = {"schedule": "cosine", "max_grad_norm": None, "average": None}
    return {k: v for k, v in asdict(key).items() if k not in off or v != off[k]}


def seeded(seed: int, k: int = 0) -> torch.Generator:
    """The generator of the k-th batch of a run; k = 0 draws its first weights."""
    return torch.Generator().manual_seed(1_000_003 * seed + k)


def untrained(key: Settings, seed: int) -> Flow:
    """The flow before its training, with the weights that `seed` draws."""
    phi = ResNetPotential(2, width=key.width, layers=key.layers, generator=seeded(seed))
    return Flow(phi, 2, solver={"steps": FINE}, standardize=False)


def steps_of(
    flow: Flow, key: Settings, seed: int, steps: int, file: Path | None = None, device="cpu"
) -> Iterator[Step]:
    """The first `steps` steps of a training of `flow`, resumed from `file` if that exists."""

    def batch(k: int) -> Tensor:
        return TOYS[key.density].sample(key.batch, seeded(seed, k + 1)).to(device)

    def loss(phi: Any, x: Tensor) -> dict[str, Tensor]:
        return ot_flow(phi, x, likelihood=key.alpha, hjb=key.beta, steps=key.rk4)

    yield from train(
        flow.velocity.to(device),
        loss,
        batch,
        steps=steps,
        lr=cosine(key.lr, key.steps) if key.schedule == "cosine" else key.lr,
        max_grad_norm=key.max_grad_norm and key.alpha * key.max_grad_norm,
        average=key.average,
        checkpoint=file,
    )
    flow.cpu()


def fit_with_record(
    store: Store, key: Settings, seed: int, device: str = "cpu", name: str | None = None
) -> tuple[Flow, Record]:
    """The flow fitted with the settings `key`, and the record of its training."""
    flow = untrained(key, seed)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        return steps_of(flow, key, seed, steps, file, device)

    stored = described(key) | {"seed": seed}
    record = store.fit(name or f"{key.density}-{seed}", flow, stored, training, device=device)
    return flow.requires_grad_(False), record


def fit(store: Store, name: str, seed: int, device: str = "cpu") -> Flow:
    """The flow of the density `name`: loaded, trained or tried out, as the store's `run` says."""
    return fit_with_record(store, settings(name), seed, device)[0]


def fits(store: Store, seeds: Sequence[int] = SEEDS, device: str = "cpu") -> dict[str, list[Flow]]:
    """The flows of all seven densities, one a seed."""
    return {name: [fit(store, name, seed, device) for seed in seeds] for name in TOYS}


def held_out(name: str, points: int = POINTS) -> Tensor:
    """The points of the density `name` on which all of its flows are judged."""
    return TOYS[name].sample(points, seeded(HELD_OUT_SEED))


def solved(flow: Flow, **solver: Any) -> Flow:
    """The same trained flow with another solver, such as steps=8."""
    return Flow(flow.velocity, 2, solver=solver, standardize=False)


def mean_nll(model: Any, x: Tensor) -> float:
    """The mean of −log p(x) over the points x in nats, for a `model` that has a `log_prob`."""
    return -model.log_prob(x).mean().item()


def difference(model: Flow | Density, name: str, x: Tensor) -> Estimate:
    """The mean of log p(x) − log q(x) with its standard error, p the true density, q the model.

    It estimates the Kullback–Leibler divergence. Both are taken at the same points, so the
    standard error is that of the difference, far below those of its two parts.
    """
    d = TOYS[name].log_prob(x) - model.log_prob(x)
    return Estimate(d.mean().item(), d.std().item() / len(d) ** 0.5)


def gap(flow: Flow, name: str, seed: int, x: Tensor | None = None) -> Gap:
    """The distance of a flow from the least possible NLL, by a fine solve of held-out points."""
    x = held_out(name) if x is None else x
    found = difference(solved(flow, steps=FINE), name, x)
    least = mean_nll(TOYS[name], x)
    return Gap(name, seed, least + found.value, least, found.value, found.standard_error)


def nll_table(
    flows: dict[str, list[Flow]], seeds: Sequence[int] = SEEDS, points: int = POINTS
) -> list[Gap]:
    """The gaps of all flows, density by density and seed by seed."""
    x = {name: held_out(name, points) for name in flows}
    pairs = ((name, *pair) for name in flows for pair in zip(flows[name], seeds, strict=True))
    return [gap(flow, name, seed, x[name]) for name, flow, seed in pairs]


def shown(gaps: Sequence[Gap]) -> str:
    """The table as text: for each density the least NLL, and the gaps' mean, maximum and error."""
    lines = [f"{'':13s}  least  mean gap  largest  standard error"]
    for name in dict.fromkeys(row.density for row in gaps):
        rows = [row for row in gaps if row.density == name]
        values = [row.gap for row in rows]
        error = max(row.standard_error for row in rows)
        lines.append(
            f"{name:13s} {rows[0].least:6.3f} {sum(values) / len(values):9.3f}"
            f" {max(values):8.3f} {error:15.4f}"
        )
    return "\n".join(lines)
