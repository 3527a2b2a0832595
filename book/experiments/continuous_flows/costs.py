"""What a likelihood, a sample, a training step and a divergence cost, as ratios of times."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import zuko
from torch import Tensor

from ctdl_lib.dynamics import divergence, hutchinson, standard_normal_log_prob
from ctdl_lib.generative import Flow
from ctdl_lib.networks import ConcatSquash
from machinery.instruments import interleaved_times
from machinery.seeds import seeded
from machinery.store import Store

from ..ot_flow.densities import solved
from . import training
from .trace import SIGNS, probes

DIMS = (2, 16, 64)
ROUNDS = 10


@dataclass(frozen=True)
class Costs:
    """Times over times, one a seed; for divergences one a dimension, over that of the velocity."""

    likelihood: list[float]  # over that of as many samples
    zuko: list[float]  # zuko's training step over ours
    exact: list[float]
    probe: list[float]


def costs(store: Store, seeds: Sequence[int]) -> Costs:
    """All ratios, measured once and kept."""
    rounds = 1 if store.run == "smoke" else ROUNDS
    key = asdict(training.settings(store, training.REGULARIZED)) | {"seeds": list(seeds)}
    key |= {"dims": list(DIMS), "rounds": ROUNDS, "zuko": zuko.__version__}

    def compute() -> dict[str, Any]:
        flows = [training.fit(store, training.REGULARIZED, s)[0] for s in seeds]
        pairs = [divergences(d, rounds) for d in DIMS]
        return {
            "likelihood": [likelihood_over_sample(flow, rounds) for flow in flows],
            "zuko": [zuko_over_ours(flow, rounds) for flow in flows],
            "exact": [exact for exact, _ in pairs],
            "probe": [probe for _, probe in pairs],
        }

    return Costs(**store.measure("costs", key, compute).numbers)


@torch.no_grad()
def likelihood_over_sample(flow: Flow, rounds: int) -> float:
    """The time of 1,000 likelihoods over that of 1,000 samples, with tolerance 1e-5."""
    flow, x = solved(flow, **training.COUNTED), training.held_out("8gaussians", 1000)
    g = seeded(0, 0)
    t = interleaved_times(
        {"likelihood": lambda: flow.log_prob(x), "sample": lambda: flow.sample(1000, g)},
        rounds=rounds,
    )
    return t["likelihood"] / t["sample"]


def zuko_over_ours(flow: Flow, rounds: int) -> float:
    """The time of zuko's likelihood of 250 points with its gradient over ours, tolerance 1e-5."""
    velocity = flow.velocity.requires_grad_(True)
    flow, x = solved(flow, **training.COUNTED), training.held_out("8gaussians", 250)
    theirs = zuko.transforms.FreeFormJacobianTransform(
        velocity, 0.0, 1.0, atol=1e-5, rtol=1e-5, phi=tuple(velocity.parameters())
    )

    def step(log_prob: Tensor) -> None:
        velocity.zero_grad()
        log_prob.mean().backward()

    def peer() -> None:
        z, log_det = theirs.call_and_ladj(x)
        step(standard_normal_log_prob(z) + log_det)

    t = interleaved_times({"ours": lambda: step(flow.log_prob(x)), "zuko": peer}, rounds=rounds)
    velocity.requires_grad_(False)
    return t["zuko"] / t["ours"]


@torch.no_grad()
def divergences(d: int, rounds: int) -> tuple[float, float]:
    """The times of an exact divergence and of one probe over that of the velocity, 250 points."""
    g = seeded(d, 0)
    v = partial(ConcatSquash(d, width=64, hidden=3, generator=g), torch.tensor(0.5))
    x, eps = torch.randn(250, d, generator=g), probes(SIGNS, 250, d, g)
    contenders = {
        "velocity": lambda: v(x),
        "exact": lambda: divergence(v, x),
        "probe": lambda: hutchinson(v, x, eps),
    }
    t = interleaved_times(contenders, rounds=rounds)
    return t["exact"] / t["velocity"], t["probe"] / t["velocity"]
