"""How few steps OT-Flow needs, what its penalty and its weight α do, and what a trace costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ctdl_lib.dynamics import hutchinson
from ctdl_lib.generative import Flow, transport
from ctdl_lib.potentials import Potential, ResNetPotential
from machinery import instruments
from machinery.seeds import seeded
from machinery.store import Record, Store

from .densities import POINTS, PUBLISHED, Settings, held_out, mean_nll, solved, steps_of, untrained

SEEDS = (10, 11, 12)
COUNTS = (2, 4, 8, 16)
DIMENSIONS = (2, 13, 43, 784)
SMOKE_POINTS = 200


@dataclass(frozen=True)
class BySteps:
    """What a number of Runge–Kutta steps gives, one value a flow.

    `inverse_error` is the mean distance of x from the inverse of its image.
    """

    steps: int
    nll: list[float]
    inverse_error: list[float]


@dataclass(frozen=True)
class Row:
    """What one seed of the ablation gives: the NLL as trained and by a fine solve, cost, bend."""

    believed: float
    true: float
    cost: float
    bend: float


def by_steps(flows: Sequence[Flow], x: Tensor, counts: Sequence[int] = COUNTS) -> list[BySteps]:
    """The NLL and the inverse error of trained flows, solved with each of the `counts` of steps."""

    def row(n: int) -> BySteps:
        others = [solved(flow, steps=n) for flow in flows]
        return BySteps(n, [mean_nll(f, x) for f in others], [inverse_error(f, x) for f in others])

    return [row(n) for n in counts]


def inverse_error(flow: Flow, x: Tensor) -> float:
    """The mean distance of x from the inverse of its image."""
    return (flow.inverse(flow(x)) - x).norm(dim=1).mean().item()


def bend_of(path: Tensor) -> float:
    """The mean length of paths (times, batch, d) over the distance of their ends, minus 1."""
    length = path.diff(dim=0).norm(dim=2).sum(0)
    return (length / (path[-1] - path[0]).norm(dim=1)).mean().item() - 1


def detour_of(path: Tensor) -> float:
    """The mean of ∫‖ẋ‖² dt over ‖x(1) − x(0)‖², minus 1, of paths (times, batch, d) on [0, 1].

    It is zero for straight paths of constant speed alone, while a bend does not see the speed.
    """
    cost = (len(path) - 1) * path.diff(dim=0).square().sum(2).sum(0)
    return (cost / (path[-1] - path[0]).square().sum(1)).mean().item() - 1


def paths(flow: Flow, x: Tensor) -> Tensor:
    """The paths of the flow that start at the first thousand points x, at 33 times."""
    return flow(x[:1000], save_at=torch.linspace(0, 1, 33))


def bend(flow: Flow, x: Tensor) -> float:
    """The bend of the flow's paths that start at the first thousand points x."""
    return bend_of(paths(flow, x))


def trial() -> Settings:
    """The settings that the ablation varies: short runs without average or clipping."""
    alpha, beta = PUBLISHED["8gaussians"]
    plain: dict[str, Any] = {"warmup": 0, "max_grad_norm": None, "average": None}
    return Settings("8gaussians", alpha, beta, rk4=6, steps=400, batch=512, lr=0.1, **plain)


def variants() -> dict[str, dict[str, int]]:
    """The changes of each variant: the penalty on and off with 2, 4, 8 steps, and values of α."""
    found = {f"β={b}, {n} steps": {"beta": b, "rk4": n} for n in (2, 4, 8) for b in (1, 0)}
    return found | {f"α={a}": {"alpha": a} for a in (1, 3, 10, 100, 300)}


def stored_key(seeds: Sequence[int]) -> dict[str, Any]:
    """The settings under which the ablation is stored: what `trial` says, and the variants."""
    names = ("width", "layers", "batch", "rk4", "lr", "steps", "density")
    key = {name: getattr(trial(), name) for name in names} | {"alpha": 30, "beta": 1}
    return key | {"variants": variants(), "seeds": list(seeds), "points": POINTS}


def ablation(
    store: Store, seeds: Sequence[int] = SEEDS, device: str = "cpu"
) -> dict[str, list[Row]]:
    """The rows of each variant, one a seed: trained once, then loaded."""
    smoke = store.run == "smoke"
    x = held_out("8gaussians", SMOKE_POINTS if smoke else POINTS)

    def compute() -> dict[str, list[list[float]]]:
        names = list(variants())[:1] if smoke else list(variants())
        return {name: [_numbers(name, seed, x, smoke, device) for seed in seeds] for name in names}

    numbers = store.measure("ablation", stored_key(seeds), compute, device=device).numbers
    return {name: [Row(*row) for row in rows] for name, rows in numbers.items()}


def _numbers(variant: str, seed: int, x: Tensor, smoke: bool, device: str) -> list[float]:
    """The entries of one `Row`, after a training with the changes of `variant`."""
    key = replace(trial(), **variants()[variant])
    key = replace(key, first=key.rk4)
    flow = untrained(key, seed)
    assert isinstance(flow.velocity, Potential)
    list(steps_of(flow, key, seed, 3 if smoke else key.steps, None, device))
    flow.requires_grad_(False)
    cost = transport(cast(Potential, flow.velocity), x, steps=16).transport_cost.mean().item()
    believed = mean_nll(solved(flow, steps=key.rk4), x)
    return [believed, mean_nll(solved(flow, steps=32), x), cost, bend(solved(flow, steps=16), x)]


def trace_costs(store: Store, seed: int = 0) -> Record:
    """The milliseconds of a gradient, an exact trace and one probe, by dimension as text.

    Each row also has the relative `error` of the probe, for a potential with random weights.
    """
    key = {"width": 64, "points": 512, "rounds": 10, "seed": seed}
    smoke = store.run == "smoke"
    rows = partial(_trace_row, seed=seed, points=64 if smoke else 512, rounds=1 if smoke else 10)
    return store.measure("trace", key, lambda: {str(d): rows(d) for d in DIMENSIONS})


def _trace_row(d: int, *, seed: int, points: int, rounds: int) -> dict[str, float]:
    phi = ResNetPotential(d, width=64, generator=seeded(seed, 0)).requires_grad_(False)
    y, eps = torch.randn(2, points, d, generator=seeded(seed, 0))

    def field(x: Tensor) -> Tensor:
        return phi.gradient(0.5, x).dx

    exact = phi.derivatives(0.5, y).laplacian
    one = hutchinson(field, y, eps.sign()).divergence
    runs: dict[str, Callable[[], Any]] = {
        "gradient": partial(phi.gradient, 0.5, y),
        "exact": partial(phi.derivatives, 0.5, y),
        "one probe": partial(hutchinson, field, y, eps.sign()),
    }
    found = instruments.interleaved_times(runs, rounds=rounds)
    error = (one - exact).square().mean() / exact.square().mean()
    return {name: 1e3 * s for name, s in found.items()} | {"error": error.sqrt().item()}
