"""Training from few layers to many, against training all layers from the start."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.networks import resnets
from ctdl_lib.networks.architectures import architectures
from ctdl_lib.problems.classification import peaks
from machinery.store import Store

SEEDS = (10, 11, 12, 13, 14)
LEVELS = {16: 150, 32: 40, 64: 20, 128: 10}  # layers, and iterations of L-BFGS
FINEST, ALONE = 128, 250


@dataclass(frozen=True)
class Settings:
    """The problem: Hamiltonian networks on the five classes of the peaks."""

    horizon: float = 5.0
    width: int = 8
    scale: float = 0.3
    smooth: float = 1e-3
    decay: float = 1e-5
    points: int = 200


@dataclass(frozen=True)
class Race:
    """Pairs (layer evaluations so far, loss) of one seed.

    `many` comes from coarse to fine, `one` from the finest level alone, and `coarse` from the
    coarsest level alone, with as much work as `many`. `start` is the loss with which the finest
    level begins, and `prolonged` that of the coarsest level prolonged to the finest.
    """

    many: list[list[float]]
    one: list[list[float]]
    coarse: list[list[float]]
    start: float
    prolonged: float


def network(key: Settings, layers: int, seed: int) -> resnets.ResNet:
    """The network with the given number of layers before its training, in float64."""
    return resnets.ResNet(
        2,
        5,
        layers=layers,
        width=key.width,
        horizon=key.horizon,
        scale=key.scale,
        architecture=architectures()["hamiltonian"],
        generator=torch.Generator().manual_seed(seed),
    ).double()


def loss(key: Settings, net: resnets.ResNet, y: Tensor, label: Tensor) -> Tensor:
    """The cross-entropy with both penalties."""
    change = torch.stack([resnets.time_smoothness(theta, net.h) for theta in net.theta]).sum()
    decay = key.decay * resnets.tikhonov(*net.parameters())
    return metrics.cross_entropy(net(y), label) + decay + key.smooth * change


def minimise(
    key: Settings, net: resnets.ResNet, data: Any, iterations: int, work: list[list[float]]
) -> None:
    """Run L-BFGS, and add pairs (layer evaluations so far, loss) to `work`."""
    y, label = data.y.double(), data.label
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=iterations,
        max_eval=10**9,
        history_size=20,
        tolerance_change=0.0,
        tolerance_grad=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(key, net, y, label)
        value.backward()
        work.append([net.layers + (work[-1][0] if work else 0), value.item()])
        return value

    optimizer.step(closure)


def race(key: Settings, seed: int, levels: dict[int, int], alone: int) -> Race:
    """All three trainings of one seed."""
    data = peaks(seed, train=key.points).train

    def value(net: resnets.ResNet) -> float:
        return loss(key, net, data.y.double(), data.label).item()

    (first, *others), finest = levels, max(levels)
    net, start = network(key, first, seed), 0.0
    many: list[list[float]] = []
    minimise(key, net, data, levels[first], many)
    for layers in others:
        net = net.refined(layers)
        start = value(net)
        minimise(key, net, data, levels[layers], many)
    one: list[list[float]] = []
    minimise(key, network(key, finest, seed), data, alone, one)
    net, coarse = network(key, first, seed), []
    evaluations = many[-1][0] // first
    minimise(key, net, data, int(evaluations / 1.1), coarse)  # 1.1 evaluations an iteration
    return Race(many, one, coarse, start, value(net.refined(finest)))


def races(store: Store, seeds: Sequence[int]) -> list[Race]:
    """The trainings of all seeds."""
    smoke = store.run == "smoke"
    levels, alone = ({2: 1, 4: 1}, 1) if smoke else (LEVELS, ALONE)
    settings = asdict(Settings()) | {"levels": list(map(list, LEVELS.items())), "alone": ALONE}
    found = []
    for seed in seeds:

        def compute(seed: int = seed) -> dict[str, Any]:
            return asdict(race(Settings(), seed, levels, alone))

        found.append(store.measure(f"multilevel-{seed}", settings | {"seed": seed}, compute))
    return [Race(**record.numbers) for record in found]


def saving(found: Race, target: float | None = None) -> float:
    """The work of the finest level alone until it reaches a loss, over the work of `many`.

    The loss is that of `many` at its end, or `target`. If the finest level alone never gets there,
    all of its work counts, and the saving is larger.
    """
    spent, reached = found.many[-1]
    target = reached if target is None else target
    work = next((k for k, value in found.one if value <= target), found.one[-1][0])
    return work / spent
