"""A leak in a basin (chapter 15): what the browser needs to know, and a still picture."""

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from machinery import plotting
from machinery.store import Store

from ..pde_control import fits, lecture
from ..pde_control.mitigation import Basins, SourceMitigation, best_openings
from ..pde_control.networks import steering
from .drawing import squares
from .weights import as_received, weights

# The coefficients of the streams to choose from: four whirls, two side by side or above each other,
# and one.
STREAMS = {
    "four": [[0, 0], [0, 1]],
    "beside": [[0, 0], [1, 0]],
    "above": [[0, 1], [0, 0]],
    "one": [[1, 0], [0, 0]],
}
SPEED, STRENGTH, SOURCE, SINK = 0.8, 1.0, (0.3, 0.35), (0.5, 0.3)


@cache
def policy() -> nn.Module:
    """The stored direct policy of the first seed, as received."""
    store = Store(fits.CHAPTER, "saved")
    how = fits.search(store, "policy").chosen
    return as_received(fits.fit(store, "policy", fits.SEEDS[0], how).model)


def problem(
    stream: str = "four",
    speed: float = SPEED,
    strength: float = STRENGTH,
    source: tuple[float, float] = SOURCE,
    sink: tuple[float, float] = SINK,
) -> SourceMitigation:
    """The problem of one basin."""
    parts = STREAMS[stream], speed, source, strength, sink
    return SourceMitigation(Basins(*(torch.tensor([p], dtype=torch.float64) for p in parts)))


def known() -> dict[str, Any]:
    """The numbers of the problem, the weights of the policy, and the first basin."""
    like = problem()
    return {
        "constants": {
            "nodes": like.nodes,
            "steps": like.steps,
            "diffusivity": like.diffusivity,
            "alpha": like.control_weight,
            "gamma": like.terminal_weight,
            "radius": like.radius,
            "horizon": like.horizon,
        },
        "streams": STREAMS,
        "weights": weights(policy()),
        "first": {"source": list(SOURCE), "sink": list(SINK)},
    }


def draw() -> None:
    """Draw the first basin at the end, with the drain shut and steered, and the openings."""
    like = problem()
    shut, _ = lecture.steered(like, lambda t, x: 0 * x[:, :1])
    single = copy.deepcopy(policy()).float()
    x, a = lecture.steered(like, steering("policy", single, like))
    *fields, last = squares(3)
    for ax, u in zip(fields, (shut[-1], x[-1]), strict=True):
        lecture.draw_field(ax, like, u, float(shut.max()))
    t, best = np.arange(like.steps) / like.steps, best_openings(like).controls[0]
    last.set(xlim=(0, 1), ylim=(0, 1.1 * float(best.max())), aspect="auto")
    last.step(t, best, where="post", c="black")
    last.step(t, a, where="post", c=plotting.COLORS[1])
