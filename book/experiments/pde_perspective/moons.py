"""A ResNet in the plane, and the transport equation of its velocity on grids."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import make_moons
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.learning import cosine, train
from ctdl_lib.learning.training import Step
from ctdl_lib.networks import resnets
from ctdl_lib.references import advection
from ctdl_lib.references.advection import Grid, characteristics, semi_lagrangian, upwind
from machinery.store import Store

from .schemes import DOUBLE, SIZES

SEEDS = (10, 11, 12, 13, 14)


@dataclass(frozen=True)
class Settings:
    """The network, whose K_in is fixed, and its training."""

    layers: int = 32
    horizon: float = 2.0
    scale: float = 0.3
    smooth: float = 1e-3
    decay: float = 1e-5
    lr: float = 0.05
    steps: int = 500
    points: int = 400
    noise: float = 0.1


KEY = Settings()
T = KEY.horizon


def moons(seed: int, count: int = 600) -> tuple[Tensor, Tensor]:
    """Points of two moons and their labels; the first 400 are for training."""
    points, label = make_moons(count, noise=KEY.noise, random_state=seed)
    return torch.as_tensor(points).double(), torch.as_tensor(label)


def network(seed: int) -> resnets.ResNet:
    """The network before its training, in double precision."""
    shape = {"layers": KEY.layers, "horizon": KEY.horizon, "scale": KEY.scale}
    generator = torch.Generator().manual_seed(seed)
    net = resnets.ResNet(2, 1, width=2, **shape, generator=generator).double()
    net.K_in.requires_grad_(False)
    return net


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """The cross-entropy, the weight decay, and the smoothness of θ(t)."""
    assert isinstance(net, resnets.ResNet)
    change = resnets.time_smoothness(net.K, net.h) + resnets.time_smoothness(net.b, net.h)
    return {
        "cross-entropy": metrics.cross_entropy(net(batch[0]), batch[1]),
        "decay": KEY.decay * resnets.tikhonov(*net.parameters()),
        "smoothness": KEY.smooth * change,
    }


def fit(store: Store, seed: int, device: str = "cpu") -> resnets.ResNet:
    """The network of one seed: loaded, trained or tried out, as the store's `run` says."""
    y, label = moons(seed)
    net, n = network(seed).to(device), KEY.points
    batch = y[:n].to(device), label[:n].to(device)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        schedule = cosine(KEY.lr, steps)
        return train(net, loss, lambda k: batch, steps=steps, lr=schedule, checkpoint=file)

    store.fit(f"moons-{seed}", net, asdict(KEY) | {"seed": seed}, training, device=device)
    return net.cpu().requires_grad_(False)


def accuracy(net: resnets.ResNet, seed: int) -> float:
    """The accuracy on the points kept apart, in percent."""
    y, label = moons(seed)
    return metrics.accuracy(net(y[KEY.points :]), label[KEY.points :])


def linear_accuracy(seed: int) -> float:
    """The control: the same for a logistic regression."""
    y, label = moons(seed)
    model = LogisticRegression().fit(y[: KEY.points].numpy(), label[: KEY.points].numpy())
    return 100 * float(model.score(y[KEY.points :].numpy(), label[KEY.points :].numpy()))


def score(net: resnets.ResNet, x: Tensor) -> Tensor:
    """The score Wx + μ of features."""
    return (x @ net.K_out.T + net.b_out)[:, 0]


def square(nodes: int) -> Grid:
    """The square around the moons, with a margin of T = 2, since |tanh| < 1."""
    return Grid((-3.5, -3.75), (4.5, 4.25), nodes)


def inner_points(nodes: int = 201) -> Tensor:
    """Points of the square of the moons themselves."""
    return Grid((-1.5, -1.75), (2.5, 2.25), nodes).points(dtype=DOUBLE)


SEMI_LAGRANGIAN, UPWIND, FLOW, UNTURNED = "semi-Lagrangian", "upwind", "flow", "time not turned"


def on_grid(net: resnets.ResNet, nodes: int, scheme: str) -> Tensor:
    """The solution u(0, ·) of the transport equation of the trained velocity, on `square`.

    The semi-Lagrangian scheme follows Euler's method, one step a layer. With "time not turned" it
    solves ∂ₜu + f·∇u = 0 from u(0, x) = Wx + μ to t = T instead: the slide's equation with the
    network's f.
    """
    grid = square(nodes)
    u = score(net, grid.points(dtype=DOUBLE)).reshape(grid.shape)
    if scheme == UPWIND:  # |f| < 1 in both directions and h = 8/(m − 1)
        steps = ceil(1.1 * T * (nodes - 1) / 4)  # no multiple of the layers
        return upwind(net.velocity, u, grid, T, 0.0, steps=steps)
    ends = (0.0, T) if scheme == UNTURNED else (T, 0.0)
    return semi_lagrangian(net.velocity, u, grid, *ends, steps=KEY.layers, method="euler")


def flow_score(net: resnets.ResNet, x: Tensor) -> Tensor:
    """The score of the flow of the differential equation, by fine steps."""
    how = {"steps": 8 * KEY.layers, "method": "midpoint"}
    return characteristics(net.velocity, partial(score, net), x, T, 0.0, **how)


def agreement(net: resnets.ResNet, scheme: str, nodes: int, x: Tensor) -> float:
    """The points at which the sign of u(0, ·) is the network's decision, in percent."""
    if scheme == FLOW:
        u = flow_score(net, x)
    else:
        u = advection.interpolate(on_grid(net, nodes, scheme), square(nodes), x)
    return 100 * ((u > 0) == (net(x)[:, 0] > 0)).double().mean().item()


def agreements(
    store: Store, nets: Sequence[resnets.ResNet], seeds: Sequence[int]
) -> dict[str, list[list[float]]]:
    """The agreements by scheme, seed and grid, measured once."""
    smoke = store.run == "smoke"
    sizes, x = (SIZES[:2], inner_points(11)) if smoke else (SIZES, inner_points())

    def compute() -> dict[str, Any]:
        return {
            scheme: [[agreement(net, scheme, m, x) for m in sizes] for net in nets]
            for scheme in (SEMI_LAGRANGIAN, UPWIND, FLOW, UNTURNED)
        }

    settings = asdict(KEY) | {"sizes": list(SIZES), "points": 201**2, "seeds": list(seeds)}
    settings |= {"upwind": 1.1}
    return store.measure("agreement", settings, compute).numbers
