"""FFJORD's flows of the plane: with the published settings, tuned, and in other variants."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.dynamics import Statistics, standard_normal_log_prob
from ctdl_lib.generative import Flow
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.networks import ConcatSquash
from ctdl_lib.problems.densities import TOYS
from machinery.seeds import seeded
from machinery.store import Record, Store

from ..ot_flow import densities
from ..ot_flow.densities import difference, solved
from ..ot_flow.rivals import regularized
from ..ot_flow.steps import inverse_error

SEEDS = (10, 11, 12)  # learning rates are chosen on seed 0
RATES = (0.01, 0.03, 0.1)
STEPS = 600
RECORDS = 20  # of evaluations and gap during a training
WATCHED = 1000  # points on which both are recorded
POINTS = 10_000  # on which a trained flow is judged
COUNTED = {"tol": 1e-5}  # the solver whose evaluations are counted
FINE = {"steps": 64}  # the solver that judges a flow

PUBLISHED, ADAPTIVE = "published settings", "adaptive steps"
FIXED, REGULARIZED = "fixed steps", "fixed steps, regularised"
MEAN_DENSITY = "regularised, mean density"


@dataclass(frozen=True)
class Settings:
    """The settings of one training, by an adaptive solver (`tol`) or by `rk4` equal steps.

    `decay` is the ℓ₂ penalty of Adam. With `learned_time`, the velocity is T v(Tt, x) with T = s²,
    and s is learned from s² = ½ on. `kinetic` and `jacobian` are the weights of the regularisers of
    Finlay et al. With `log` the mean of log p(x) is maximised, without it that of p(x).
    """

    density: str
    tol: float | None = None
    rk4: int | None = None
    backprop: str = "through"
    steps: int = STEPS
    batch: int = 250
    lr: float = 0.01
    schedule: str = "cosine"
    decay: float = 0.0
    learned_time: bool = False
    kinetic: float = 0.0
    jacobian: float = 0.0
    log: bool = True
    width: int = 64
    hidden: int = 3


# The first are the settings of train_toy.py, published with the paper, which see 1,000,000 points.
# The others see 150,000.
KINDS: dict[str, dict[str, Any]] = {
    PUBLISHED: {"tol": 1e-5, "backprop": "adjoint", "steps": 10_000, "batch": 100, "lr": 1e-3}
    | {"schedule": "constant", "decay": 1e-5, "learned_time": True},
    ADAPTIVE: {"tol": 1e-5},
    FIXED: {"rk4": 8},
    REGULARIZED: {"rk4": 8, "kinetic": 0.01, "jacobian": 0.01},
    MEAN_DENSITY: {"rk4": 8, "kinetic": 0.01, "jacobian": 0.01, "log": False},
}


class LearnedTime(nn.Module):
    """The velocity T v(Tt, x) with T = s², which moves for the time T in one unit of time."""

    def __init__(self, velocity: nn.Module):
        super().__init__()
        self.velocity = velocity
        self.root = nn.Parameter(torch.tensor(math.sqrt(0.5)))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at (t, x)."""
        T = self.root.square()
        return T * self.velocity(T * t, x)


@dataclass(frozen=True)
class Finish:
    """A trained flow: its gap in nats, evaluations of a likelihood, and the error of its inverse.

    `gap` is by 64 fixed steps, and `believed` by the solver of the training. `evaluations` are
    those of an adaptive solver with tolerance 1e-5, and `inverse_error` is the mean distance of x
    from the inverse of its image with that tolerance.
    """

    gap: float
    standard_error: float
    believed: float
    evaluations: int
    inverse_error: float


def settings(store: Store, kind: str, density: str = "8gaussians") -> Settings:
    """The settings of a kind of training on a density.

    Its rate is the best for eight Gaussians on seed 0. Adaptive steps take that of fixed ones, the
    published settings have their own, and a smoke run takes the default.
    """
    key = Settings(density, **KINDS[kind])
    if kind == PUBLISHED or store.run == "smoke":
        return key
    return replace(key, lr=best_rate(rates(store, FIXED if kind == ADAPTIVE else kind)))


def rates(store: Store, kind: str) -> dict[str, float]:
    """The gap for eight Gaussians on seed 0 at each of the `RATES`, searched once and kept."""
    smoke, key = store.run == "smoke", Settings("8gaussians", **KINDS[kind])

    def gap(lr: float) -> float:
        flow = untrained(tried := replace(key, lr=lr), 0)
        for _ in steps_of(flow, tried, 0, 2 if smoke else key.steps):
            pass
        return finish(flow.requires_grad_(False), key.density, WATCHED if not smoke else 50).gap

    def compute() -> dict[str, float]:
        return {str(lr): gap(lr) for lr in RATES[: 1 if smoke else None]}

    return store.measure(
        f"rates-{_stem(kind)}", asdict(key) | {"rates": list(RATES)}, compute
    ).numbers


def best_rate(found: Mapping[str, float]) -> float:
    """The rate with the least gap."""
    return float(min(found, key=found.__getitem__))


def _stem(kind: str) -> str:
    return kind.replace(", ", "-").replace(" ", "-")


def untrained(key: Settings, seed: int) -> Flow:
    """The flow before its training, with two records that are kept with its weights."""
    net: nn.Module = ConcatSquash(2, width=key.width, hidden=key.hidden, generator=seeded(seed, 0))
    net = LearnedTime(net) if key.learned_time else net
    solver: dict[str, Any] = {"backprop": key.backprop}
    solver |= {"steps": key.rk4} if key.tol is None else {"tol": key.tol}
    flow = Flow(net, 2, solver=solver, standardize=False)
    flow.register_buffer("evaluations", torch.zeros(RECORDS, dtype=torch.long))
    flow.register_buffer("gaps", torch.zeros(RECORDS))
    return flow


def objective(key: Settings, flow: Flow, x: Tensor) -> Tensor | Mapping[str, Tensor]:
    """The loss on the points x."""

    def goal(log_prob: Tensor) -> Tensor:
        return -log_prob.mean() if key.log else math.log(len(x)) - log_prob.logsumexp(0)

    if not (key.kinetic or key.jacobian):
        return goal(flow.log_prob(x))
    assert key.rk4 is not None
    end = regularized(flow.velocity, x, steps=key.rk4)
    return {
        "goal": goal(standard_normal_log_prob(end.x) + end.log_det),
        "kinetic": key.kinetic * end.kinetic.mean(),
        "jacobian": key.jacobian * end.jacobian.mean(),
    }


@torch.no_grad()
def look(flow: Any, x: Tensor, density: str, k: int) -> None:
    """Record the evaluations of a likelihood, and the gap, as the k-th of a training."""
    log_prob = solved(flow, **COUNTED).log_prob(x, statistics=(costs := Statistics()))
    flow.evaluations[k] = costs.evaluations
    flow.gaps[k] = (TOYS[density].log_prob(x) - log_prob).mean()


def steps_of(
    flow: Flow, key: Settings, seed: int, steps: int, file: Path | None = None
) -> Iterator[Step]:
    """The first `steps` steps of a training, resumed from `file` if that exists."""
    every, device = max(1, key.steps // RECORDS), flow.get_buffer("gaps").device
    x = held_out(key.density, WATCHED).to(device)

    def loss(flow: Any, batch: tuple[int, Tensor]) -> Tensor | Mapping[str, Tensor]:
        k, points = batch
        if k % every == 0:
            look(flow, x, key.density, k // every)
        return objective(key, flow, points)

    def batch(k: int) -> tuple[int, Tensor]:
        return k, TOYS[key.density].sample(key.batch, seeded(seed, k + 1)).to(device)

    optimizer = torch.optim.Adam(flow.parameters(), key.lr, weight_decay=key.decay)
    factor = cosine(1.0, key.steps) if key.schedule == "cosine" else 1.0  # of the optimizer's rate
    return train(flow, loss, batch, steps=steps, lr=factor, optimizer=optimizer, checkpoint=file)


def held_out(density: str, points: int = POINTS) -> Tensor:
    """The points on which all flows of a density are judged."""
    return densities.held_out(density, points)


def fit(
    store: Store, kind: str, seed: int, density: str = "8gaussians", device: str = "cpu"
) -> tuple[Flow, Record]:
    """The flow, on the CPU, and the record of its training: loaded, trained or tried out."""
    key = settings(store, kind, density)
    flow = untrained(key, seed).to(device)
    name, full = f"{density}-{_stem(kind)}-{seed}", asdict(key) | {"seed": seed}
    record = store.fit(name, flow, full, partial(steps_of, flow, key, seed), device=device)
    return flow.cpu().requires_grad_(False), record


def finish(flow: Flow, density: str, points: int = POINTS) -> Finish:
    """What a trained flow is worth."""
    x = held_out(density, points)
    gap = difference(solved(flow, **FINE), density, x)
    believed = difference(flow, density, x).value
    counted = solved(flow, **COUNTED)
    counted.log_prob(x[:WATCHED], statistics=(costs := Statistics()))
    error = inverse_error(counted, x[:WATCHED])
    return Finish(gap.value, gap.standard_error, believed, costs.evaluations, error)


def finishes(
    store: Store, kind: str, seeds: Sequence[int], density: str = "8gaussians"
) -> list[Finish]:
    """What all seeds of a kind of training are worth, measured once and kept."""
    points = 50 if store.run == "smoke" else POINTS
    key = asdict(settings(store, kind, density)) | {"seeds": list(seeds), "points": POINTS}

    def compute() -> dict[str, Any]:
        flows = (fit(store, kind, s, density)[0] for s in seeds)
        return {"rows": [asdict(finish(flow, density, points)) for flow in flows]}

    rows = store.measure(f"finish-{density}-{_stem(kind)}", key, compute).numbers["rows"]
    return [Finish(**row) for row in rows]
