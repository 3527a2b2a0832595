"""OT-Flow on seven densities in the plane whose entropy is known."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.generative import Flow, ot_flow
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.potentials import Potential, ResNetPotential
from ctdl_lib.problems.densities import TOYS, Density, Estimate
from machinery.seeds import seeded
from machinery.store import Store

FINE = 32  # Runge–Kutta steps of a trained flow
JUDGED = 128  # those by which its gap is measured; 32 would flatter one of the checkerboard
POINTS = 10_000  # held out, the same for all seeds of a density
EDGE = 0.05  # points nearer to an edge of the checkerboard count as being there
HELD_OUT_SEED = 99
REACH = 4.0  # the data of all seven densities lie within this distance of the origin, or almost
# Settings were chosen on seed 0, and tried on 1. Those of the two spirals were changed after a seed
# of `SEEDS` had failed, so they are judged on seeds that no choice has seen. Three seeds could not
# decide on the pinwheel, so it has five, and none of the three. Those of the checkerboard were
# changed after the variant "fixed" had failed on its seeds. They are judged on the same seeds,
# which makes pairs, but these seeds are not fresh.
SEEDS = (20, 21, 22)
OWN_SEEDS: dict[str, tuple[int, ...]] = {
    "checkerboard": (30, 31, 32),
    "2spirals": (30, 31, 32),
    "pinwheel": (30, 31, 32, 33, 34),
}
VARIANT_SEEDS = {"fixed": (30, 31, 32), "stronger": (30,)}


@dataclass(frozen=True)
class Settings:
    """The settings of one fit: the network, the three weights, and how it is trained.

    The objective is L + `alpha` C + `beta` R. Its Runge–Kutta steps grow from `first` to `rk4` over
    the training, or are drawn for each batch from `first` to `rk4` if `drawn`. The learning rate
    rises over `warmup` steps to `lr`, and falls along a cosine unless `schedule` is "constant". The
    gradient is cut to `alpha` times `max_grad_norm`, which so means the same for all weights.
    `average` is the weight of the average of the parameters. `spread` is the scale of the weights
    of the first layer if `spread_out` draws them; without it they are those of the library.
    """

    density: str
    alpha: float = 30.0
    beta: float = 5.0
    first: int = 4
    rk4: int = 8
    steps: int = 4000
    batch: int = 1024
    lr: float = 0.1
    warmup: int = 50
    schedule: str = "cosine"
    max_grad_norm: float | None = 3.0
    average: float | None = 0.99
    width: int = 32
    layers: int = 2
    spread: float | None = None
    drawn: bool = False


@dataclass(frozen=True)
class Gap:
    """The NLL of a flow, the least possible one at the same points, and their difference."""

    density: str
    seed: int
    nll: float
    least: float
    gap: float
    standard_error: float


@dataclass(frozen=True)
class Belief:
    """What the objective of a training sees at its end, beside the true gap.

    `believed` is the gap by the Runge–Kutta steps of the training, `gap` that by a fine solve.
    `transport` is E ∫½‖v‖² dt, and `hjb` is the residual E ∫|∂ₜΦ − ½‖∇Φ‖²| dt. `variant` names the
    settings of the training in `VARIANTS`, and is empty for the usual ones.
    """

    density: str
    variant: str
    seed: int
    believed: float
    gap: float
    transport: float
    hjb: float


PUBLISHED = {  # α and β of the settings documented with the paper's code
    "8gaussians": (30.0, 1.0),
    "checkerboard": (15.0, 2.0),
    "swissroll": (30.0, 15.0),
    "circles": (5.0, 1.0),
    "moons": (8.0, 1.0),
    "pinwheel": (30.0, 15.0),
    "2spirals": (10.0, 1.0),
}
CHANGED: dict[str, dict[str, Any]] = {  # sharp corners and many turns take longer
    "pinwheel": {"steps": 6000},
    "checkerboard": {"beta": 3.0, "first": 9, "rk4": 18, "drawn": True, "steps": 10000}
    | {"batch": 512, "lr": 0.012, "warmup": 600, "width": 48, "layers": 3, "spread": 2.0},
    "2spirals": {"beta": 3.0, "first": 8, "rk4": 12, "steps": 10000, "lr": 0.03, "warmup": 600}
    | {"spread": 1.0},
}


# What goes wrong on the checkerboard: the same number of solver steps for each batch; and a larger
# weight of the likelihood, with fewer iterations, because it goes wrong early.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "fixed": {"first": 12, "rk4": 12, "drawn": False},
    "stronger": {"alpha": 100.0, "steps": 4000},
}


def settings(name: str, **changes: Any) -> Settings:
    """The settings of the density `name`, with some of them changed.

    Raises:
        ValueError: there is no such density.
    """
    if name not in TOYS:
        raise ValueError(f"density must be one of {sorted(TOYS)}, got {name!r}")
    return Settings(name, **(CHANGED.get(name, {}) | changes))


def seeds_of(name: str, first: int = 0, few: int | None = None) -> list[int]:
    """The seeds on which the density `name` is judged, moved by `first`; `few` of them, or all."""
    return [first + seed for seed in OWN_SEEDS.get(name, SEEDS)[:few]]


def _label(name: str, variant: str) -> str:
    return f"{name}, {variant}" if variant else name


def settings_table() -> str:
    """The settings of all trainings beside the published α and β, as a Markdown table.

    "steps" are those of Runge–Kutta, "net" is width × layers.
    """
    head = ["density", "α, β", "published", "iterations", "steps", "points", "rate", "net"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    tried = [(name, "") for name in PUBLISHED]
    tried += [("checkerboard", variant) for variant in VARIANTS if variant]
    for name, variant in tried:
        (alpha, beta), key = PUBLISHED[name], settings(name, **VARIANTS[variant])
        steps = f"{key.first} to {key.rk4}" if key.first < key.rk4 else f"{key.rk4}"
        steps += ", drawn" if key.drawn else ""
        cells = [_label(name, variant), f"{key.alpha:g}, {key.beta:g}", f"{alpha:g}, {beta:g}"]
        cells += [f"{key.steps:,}", steps, f"{key.batch:,}", f"{key.lr:g}"]
        lines.append("| " + " | ".join([*cells, f"{key.width} × {key.layers}"]) + " |")
    return "\n".join(lines)


@torch.no_grad()
def spread_out(phi: ResNetPotential, scale: float, generator: torch.Generator) -> None:
    """Draw the first layer anew, so that its units bend Φ everywhere among the data.

    A unit σ(kᵀs + b) bends where kᵀs = −b. The start of the library draws k and b alike, so that
    most units bend within a distance of 1 from the origin, while the data reach to 4. Here
    k ~ N(0, scale²) and b ~ U(−4 scale, 4 scale). Small output weights of both signs let Φ start
    almost flat.
    """
    phi.K0.copy_(scale * torch.randn(phi.K0.shape, generator=generator))
    phi.b0.copy_(REACH * scale * (2 * torch.rand(phi.b0.shape, generator=generator) - 1))
    size = 0.2 / scale * (32 / len(phi.w)) ** 0.5
    phi.w.copy_(size * torch.randn(phi.w.shape, generator=generator))


def untrained(key: Settings, seed: int) -> Flow:
    """The flow before its training, with the weights that `seed` draws."""
    generator = seeded(seed, 0)
    phi = ResNetPotential(2, width=key.width, layers=key.layers, generator=generator)
    if key.spread is not None:
        spread_out(phi, key.spread, generator)
    return Flow(phi, 2, solver={"steps": FINE}, standardize=False)


def steps_of(
    flow: Flow, key: Settings, seed: int, steps: int, file: Path | None = None, device="cpu"
) -> Iterator[Step]:
    """The first `steps` steps of a training of `flow`, resumed from `file` if that exists."""

    def batch(k: int) -> tuple[Tensor, int]:
        generator = seeded(seed, k + 1)
        x = TOYS[key.density].sample(key.batch, generator).to(device)
        share = torch.rand((), generator=generator).item() if key.drawn else k / key.steps
        return x, key.first + round((key.rk4 - key.first) * share)

    def loss(phi: Any, drawn: tuple[Tensor, int]) -> dict[str, Tensor]:
        return ot_flow(phi, drawn[0], likelihood=key.alpha, hjb=key.beta, steps=drawn[1])

    yield from train(
        flow.velocity.to(device),
        loss,
        batch,
        steps=steps,
        lr=rate(key),
        max_grad_norm=key.max_grad_norm and key.alpha * key.max_grad_norm,
        average=key.average,
        checkpoint=file,
    )
    flow.cpu()


def rate(key: Settings) -> Callable[[int], float]:
    """The learning rate of each step."""
    falling = cosine(key.lr, key.steps) if key.schedule == "cosine" else lambda k: key.lr
    return lambda k: falling(k) * min(1.0, (k + 1) / max(key.warmup, 1))


def fit(store: Store, name: str, seed: int, device: str = "cpu", *, variant: str = "") -> Flow:
    """The flow of the density `name`: loaded, trained or tried out, as the store's `run` says."""
    key = settings(name, **VARIANTS[variant])
    stem = "-".join(filter(None, (name, variant, str(seed))))
    flow = untrained(key, seed)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        return steps_of(flow, key, seed, steps, file, device)

    store.fit(stem, flow, asdict(key) | {"seed": seed}, training, device=device)
    return flow.requires_grad_(False)


def held_out(name: str, points: int = POINTS) -> Tensor:
    """The points of the density `name` on which all of its flows are judged."""
    return TOYS[name].sample(points, seeded(HELD_OUT_SEED, 0))


def solved(flow: Flow, **solver: Any) -> Flow:
    """The same trained flow with another solver, such as steps=8."""
    return Flow(flow.velocity, flow.d, solver=solver, standardize=False)


def _judged(store: Store) -> int:
    """The Runge–Kutta steps that measure a gap."""
    return 8 if store.run == "smoke" else JUDGED


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


def gap(flow: Flow, name: str, seed: int, x: Tensor | None = None, steps: int = JUDGED) -> Gap:
    """The distance of a flow from the least possible NLL, by a fine solve of held-out points."""
    x = held_out(name) if x is None else x
    found = difference(solved(flow, steps=steps), name, x)
    least = mean_nll(TOYS[name], x)
    return Gap(name, seed, least + found.value, least, found.value, found.standard_error)


@torch.no_grad()
def belief(
    store: Store, name: str, seed: int, x: Tensor, device: str = "cpu", *, variant: str = ""
) -> Belief:
    """What the training of a flow believed in its last step, and what is true."""
    flow = fit(store, name, seed, device, variant=variant)
    assert isinstance(flow.velocity, Potential)
    key = settings(name, **VARIANTS[variant])
    steps = (key.first + key.rk4) // 2 if key.drawn else key.rk4
    terms = ot_flow(flow.velocity, x, likelihood=1.0, hjb=1.0, steps=steps)
    seen = difference(solved(flow, steps=steps), name, x).value
    true = difference(solved(flow, steps=_judged(store)), name, x).value
    return Belief(name, variant, seed, seen, true, terms["transport"].item(), terms["hjb"].item())


def beliefs_table(found: Sequence[Belief]) -> str:
    """The beliefs of trainings, one a row, as a Markdown table."""
    head = "| density | seed | gap it believes | true gap | transport cost | HJB residual |"
    lines = [head, "|---|---:|---:|---:|---:|---:|"]
    for b in found:
        numbers = f"{b.believed:.3f} | {b.gap:.3f} | {b.transport:.2f} | {b.hjb:.2f}"
        lines.append(f"| {_label(b.density, b.variant)} | {b.seed} | {numbers} |")
    return "\n".join(lines)


def gaps(
    store: Store,
    first: int = 0,
    few: int | None = None,
    points: int = POINTS,
    device: str = "cpu",
) -> list[Gap]:
    """The gaps of all flows, density by density and seed by seed, measured once and kept."""
    seeds = {name: seeds_of(name, first, few) for name in TOYS}
    key = {name: asdict(settings(name)) for name in TOYS}
    key |= {"seeds": seeds, "points": points, "fine": JUDGED, "held out": HELD_OUT_SEED}
    fine = _judged(store)

    def rows(name: str) -> list[dict[str, Any]]:
        x = held_out(name, points)
        return [asdict(gap(fit(store, name, s, device), name, s, x, fine)) for s in seeds[name]]

    numbers = store.measure("gaps", key, lambda: {name: rows(name) for name in TOYS}).numbers
    return [Gap(**row) for found in numbers.values() for row in found]


def inside(
    store: Store, first: int = 0, few: int | None = None, device: str = "cpu"
) -> list[float]:
    """The part of each checkerboard gap that points away from the edges of the squares add."""
    name, seeds = "checkerboard", seeds_of("checkerboard", first, few)
    points = 200 if store.run == "smoke" else POINTS
    key = asdict(settings(name)) | {"seeds": seeds, "points": points, "fine": JUDGED, "edge": EDGE}

    def compute() -> dict[str, list[float]]:
        x = held_out(name, points)
        away = (x - 2 * (x / 2).round()).abs().amin(1) >= EDGE
        flows = [solved(fit(store, name, s, device), steps=_judged(store)) for s in seeds]
        apart = [TOYS[name].log_prob(x) - flow.log_prob(x) for flow in flows]
        return {"inside": [(d * away).mean().item() for d in apart]}

    return store.measure("inside", key, compute).numbers["inside"]
