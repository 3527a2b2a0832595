"""Two moons (chapter 9): what the browser needs to know, and a still picture."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.generative import Flow
from ctdl_lib.generative.scaling import BoxScaling
from machinery import plotting
from machinery.store import Store

from ..simulation_based_inference import campaigns
from ..simulation_based_inference.problems import TwoMoons
from .drawing import squares
from .weights import as_received, weights

TASK = TwoMoons()
REACH = 1.8  # the half side of the square of observations
FROM = (-0.1, 0.2)  # the first observation
SHOWN = 300


@cache
def flow() -> Flow:
    """The stored COT-Flow of the two moons, as received."""
    from ..simulation_based_inference import benchmark, maps  # which wait seconds for sbi

    stored = benchmark.two_moons(Store(maps.CHAPTER, "saved")).model
    assert isinstance(stored, Flow)
    found = copy.deepcopy(stored).double()
    found.velocity = as_received(stored.velocity)
    return found


def observations() -> Tensor:
    """Some of the observations that the simulator makes of the prior."""
    x = TASK.prior.sample(SHOWN, torch.Generator().manual_seed(0))
    return TASK.simulate(x, campaigns.seeds(SHOWN, 0)).y


def known() -> dict[str, Any]:
    """The network, the scales of its observations, the box of the prior, and some observations."""
    learned = flow()
    assert isinstance(learned.data, BoxScaling)
    return {
        "weights": weights(learned.velocity),
        "mean": learned.conditions.mean.tolist(),
        "std": learned.conditions.std.tolist(),
        "low": learned.data.low.tolist(),
        "high": learned.data.high.tolist(),
        "data": [[round(v, 3) for v in row] for row in observations().tolist()],
        "from": list(FROM),
        "reach": REACH,
    }


def draw() -> None:
    """Draw some observations, and the exact posterior of one beside the sample of the network."""
    left, right = squares(2)
    for ax, reach in ((left, REACH), (right, 1.04)):
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    left.plot(*observations().T, ".", c="0.7", ms=3)
    left.plot(*FROM, "o", c="black", ms=8)
    axis = torch.linspace(-1, 1, 400, dtype=torch.float64)
    x, y = torch.cartesian_prod(axis, axis), torch.tensor([FROM], dtype=torch.float64)
    likelihood = TASK.log_likelihood(x, y).exp().reshape(400, 400).T
    right.imshow(likelihood, cmap="Greys", origin="lower", extent=(-1, 1, -1, 1))
    drawn = flow().given(y[0]).sample(SHOWN, torch.Generator().manual_seed(0))
    right.plot(*drawn.T, ".", c=plotting.COLORS[1], ms=3)
    for ax, name in ((left, "observations"), (right, "parameters")):
        ax.set_xlabel(name)
