"""Quadcopters in the wind (chapter 14): what the browser needs to know, and a still picture."""

from functools import cache
from typing import Any

import torch

from ctdl_lib.control import feedback, rollout
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import ScaledPotential
from machinery import plotting
from machinery.seeds import seeded
from machinery.store import Store

from ..quadcopter import plans, training
from .drawing import squares
from .weights import as_received, encoded, received, weights

REACH = 3.0
STEPS = 100


@cache
def value_function() -> ScaledPotential:
    """The stored value function that was trained with noise, of the first seed, as received."""
    store = Store(training.CHAPTER, "saved")
    phi = as_received(training.fit(store, "stochastic", training.SEEDS[0]).phi)
    assert isinstance(phi, ScaledPotential)
    return phi


@cache
def expansion() -> plans.Expansion:
    """The stored plan and its gains, as received; what no feedback needs is left out."""
    found = plans.kept(Store(training.CHAPTER, "saved"), STEPS)
    shapes = {"x": (STEPS + 1, 1, 12), "u": (STEPS, 1, 4), "K": (STEPS, 1, 4, 12)}
    x, u, K = (received(torch.tensor(found[k])).view(shape) for k, shape in shapes.items())
    return plans.Expansion(x, u, K, torch.zeros(0), torch.zeros(0))


def policies() -> dict[str, Policy]:
    """The controllers by their names."""
    return {
        "open loop": expansion().planned(),
        "linear feedback": expansion().linear(),
        "network": feedback(plans.QUAD, value_function()),
    }


def known() -> dict[str, Any]:
    """The numbers of the problem, the network in its units, the plan with its gains, the start."""
    phi, along, quad = value_function(), expansion(), plans.QUAD
    return {
        "problem": {
            "gravity": quad.gravity,
            "weight": quad.weight,
            "target": quad.target.tolist(),
        },
        "frame": {
            "height": phi.height,
            "center": phi.center.tolist(),
            "unit": phi.unit.tolist(),
            "layer": phi.layer,
        },
        "weights": weights(phi.potential),
        "plan": encoded(x=along.x, u=along.u, K=along.K),
        "from": quad.start.tolist(),
        "reach": REACH,
    }


def draw() -> None:
    """Draw four flights of each controller in the same wind, from the side and from above."""
    x, noise = plans.QUAD.start.expand(4, 12), seeded(1)
    dW = torch.randn(STEPS, 4, 12, generator=noise, dtype=torch.float64) / STEPS**0.5
    colors = dict(zip(policies(), ("0.3", *plotting.COLORS[:2]), strict=True))
    sights = squares(2, REACH)
    for name, policy in policies().items():
        path = rollout(plans.QUAD, policy, x, steps=STEPS, dW=dW).x
        for ax, second in zip(sights, (2, 1), strict=True):
            ax.plot(path[..., 0], path[..., second], lw=0.9, c=colors[name])
    for ax in sights:
        ax.plot(-1.5, -1.5, "o", c="black")
        ax.plot(2, 2, "*", c="black", ms=12)
