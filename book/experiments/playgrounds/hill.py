"""Round a hill in the wind (chapter 12): what the browser needs to know, and a still picture."""

from functools import cache
from typing import Any

import torch

from ctdl_lib.control import feedback, rollout
from ctdl_lib.potentials import PinnedPotential
from machinery import plotting
from machinery.seeds import seeded
from machinery.store import Store

from ..hjb_and_pontryagin import grids, training
from .drawing import squares
from .weights import weights

REACH = 3.0  # the half side of the square in which half of the starts of the training lie


@cache
def value_function() -> PinnedPotential:
    """The stored value function whose training has starts from the whole square, as in Fig. 1."""
    store = Store(training.CHAPTER, "saved")
    phi, _ = training.fit(store, "box", training.hill(), training.FIRST, training.BOX)
    assert isinstance(phi, PinnedPotential)
    return phi


def known() -> dict[str, Any]:
    """The numbers of the problem, the learned part of Φ, the first start and the plane."""
    problem = grids.PROBLEM
    lq = problem.linear_quadratic
    return {
        "problem": {
            "target": lq.target.tolist(),
            "weight": lq.weight,
            "sigma": torch.as_tensor(lq.diffusion).tolist(),
            "height": problem.height,
            "variance": problem.variance,
        },
        "correction": weights(value_function().correction),
        "from": list(grids.SIDE),
        "reach": REACH,
    }


def draw() -> None:
    """Draw Φ(0, ·), eight paths of the feedback, and the controls of its plan in the same wind."""
    (ax,), phi, lq = squares(1, REACH), value_function(), grids.PROBLEM.linear_quadratic
    axis = torch.linspace(-REACH, REACH, grids.NODES).tolist()
    values = phi(0.0, grids.box()).reshape(grids.NODES, -1).T
    ax.contourf(axis, axis, values.log(), levels=12, cmap="Greys", alpha=0.5)
    x = grids.point(grids.SIDE).expand(8, 2)
    policy, noise = feedback(grids.PROBLEM, phi), seeded(3)
    path = rollout(grids.PROBLEM, policy, x, steps=50, generator=noise)
    assert path.dW is not None
    calm = rollout(grids.PROBLEM, policy, x, steps=50, dW=torch.zeros_like(path.dW))
    blown = calm.x[1:] + (path.dW @ torch.as_tensor(lq.diffusion).T).cumsum(0)
    for points, color in ((blown, plotting.COLORS[0]), (path.x, plotting.COLORS[1])):
        ax.plot(*points.unbind(-1), lw=0.9, c=color)
    ax.plot(*grids.SIDE, "o", c="black")
    ax.plot(*lq.target, "*", c="black", ms=12)
