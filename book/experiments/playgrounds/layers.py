"""The layers of trained ResNets (chapter 1): what the browser has to know, and a still picture."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.networks.resnets import ResNet
from ctdl_lib.problems.classification import Samples
from machinery import plotting
from machinery.store import Store

from ..resnets import planar
from .drawing import squares
from .weights import weights

CHAPTER = "01_resnets"
NAMES = ("ellipses", "swiss roll")  # of two classes
POINTS = 240


@cache
def network(name: str) -> ResNet:
    """The stored network of a data set, of the first seed."""
    store, key = Store(CHAPTER, "saved"), planar.RECIPES[name]
    return planar.fit(store, name.replace(" ", "-"), key, planar.SEEDS[0], "cpu")


def points(name: str) -> Samples:
    """Some points that are evenly picked from the data of the validation."""
    y, label = planar.data_of(name, planar.SEEDS[0]).val
    picked = torch.linspace(0, len(y) - 1, min(POINTS, len(y))).long()
    return Samples(y[picked], label[picked])


def axes(name: str) -> Tensor:
    """Two directions of the features that show the classes best, (2, width)."""
    net = network(name)
    plane = plotting.feature_plane(net.features(points(name).y), net.K_out, net.b_out)
    return plane.project(torch.eye(net.width)).T.detach()


def plane_of(name: str) -> dict[str, Any]:
    """The weights of a network, its time, data with labels, and the sizes of both planes."""
    net, (y, label), shown = network(name), points(name), axes(name)
    data = [
        [*(round(v, 3) for v in point), int(c)]
        for point, c in zip(y.tolist(), label.tolist(), strict=True)
    ]
    return {
        "weights": weights(net),
        "horizon": net.horizon,
        "axes": [[round(v, 6) for v in axis] for axis in shown.tolist()],
        "data": data,
        "reach": 1.1 * float(y.abs().max()),
        "features": 1.1 * float((net.path(y) @ shown.T).abs().max()),
    }


def known() -> dict[str, Any]:
    """What the browser needs to know of each data set."""
    return {"nets": {name: plane_of(name) for name in NAMES}}


def draw() -> None:
    """Draw the ellipses, and what the layers make of them."""
    net, (y, label), shown = network("ellipses"), points("ellipses"), axes("ellipses")
    for ax, x in zip(squares(2), (y, net.features(y) @ shown.T), strict=True):
        reach = 1.1 * float(x.abs().max())
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
        for c in (0, 1):
            ax.plot(*x[label == c].detach().T, ".", c=plotting.COLORS[c])
