"""What becomes of a ResNet as layers are added: its features, and its optimal weights."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.learning import train
from ctdl_lib.networks import resnets
from ctdl_lib.problems.classification import ellipses
from machinery.store import Store

LAYERS = (8, 16, 32, 64)
DRAWS = (30, 31, 32, 33, 34)  # of the data and of the noise in the start
SMOOTHED, UNSMOOTHED = "smoothed", "unsmoothed"
KINDS = {SMOOTHED: True, UNSMOOTHED: False}


@dataclass(frozen=True)
class Settings:
    """The problem whose only unknown is the control θ(t) = (K(t), b(t)) of width 3.

    With `smooth`, the penalty is α/2 ∫‖θ‖² + α/2 ∫‖∂ₜθ‖²; without it, α/2 Σ‖θₖ‖² as printed.
    """

    layers: int
    smooth: bool
    draw: int
    alpha: float = 1e-2
    horizon: float = 5.0
    points: int = 200
    noise: float = 0.03


def noise(n: int, seed: int) -> Tensor:
    """Independent normal numbers for the weights of n layers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 4, generator=generator, dtype=torch.float64)


def objective(key: Settings, control: Any, batch: Any) -> dict[str, Tensor]:
    """The cross-entropy and the penalties of a control; both ends of the network are fixed."""
    y, label = ellipses(key.draw, train=key.points).train
    theta, h = control(), control.h
    u0 = y.double() @ torch.eye(2, 3, dtype=torch.float64)
    u = resnets.propagate(u0, theta[..., :3].contiguous(), theta[..., 3].contiguous(), h)
    size = key.alpha * (h if key.smooth else 1.0)
    terms = {"cross-entropy": metrics.cross_entropy(10 * u[:, 2:], label)}
    terms["decay"] = size * resnets.tikhonov(theta)
    if key.smooth:
        terms["smoothness"] = key.alpha * resnets.time_smoothness(theta, h)
    return terms


def learned(key: Settings, start: Tensor, steps: int) -> Tensor:
    """The control that L-BFGS finds from `start`."""
    control = resnets.Control(start, key.horizon / len(start), float(key.smooth))
    search: dict[str, Any] = {"tolerance_change": 1e-12, "line_search_fn": "strong_wolfe"}
    lbfgs = torch.optim.LBFGS(control.parameters(), history_size=50, **search)
    for _ in train(
        control, partial(objective, key), lambda k: k, steps=steps, lr=1.0, optimizer=lbfgs
    ):
        pass
    return control().detach()


def controls(store: Store, draw: int) -> dict[str, list[Tensor]]:
    """The learned controls with and without the smoothness penalty, as the layers double.

    Each number of layers starts from the control learned with half as many, with new noise that is
    independent in every layer. So all belong to one branch of minimisers.
    """
    smoke = store.run == "smoke"
    layers = LAYERS[:2] if smoke else LAYERS

    def chain(smooth: bool, theta: Tensor) -> Iterator[list[Any]]:
        for n in layers:
            key = Settings(n, smooth, draw)
            rough = resnets.prolongate(theta, n) + key.noise * noise(n, 1000 * draw + n)
            theta = learned(key, rough, 1 if smoke else 30)
            yield theta.tolist()

    def compute() -> dict[str, list[Any]]:
        first = Settings(LAYERS[0], True, draw)
        constant = 0.5 * noise(1, draw).expand(first.layers, -1, -1)
        start = learned(first, constant, 1 if smoke else 50)
        return {kind: list(chain(smooth, start)) for kind, smooth in KINDS.items()}

    settings = asdict(Settings(0, True, draw)) | {"layers": list(LAYERS)}
    numbers = store.measure(f"controls-{draw}", settings, compute).numbers
    found = numbers.items()
    return {k: [torch.tensor(theta, dtype=torch.float64) for theta in v] for k, v in found}


def change(thetas: Sequence[Tensor], horizon: float = Settings.horizon) -> list[float]:
    """The distances in L² of θ(t) from one number of layers to the next."""
    steps = [resnets.prolongate(a, len(b)) - b for a, b in pairwise(thetas)]
    return [(d.square().sum() * horizon / len(d)).sqrt().item() for d in steps]


def euler_errors(seed: int, layers: Sequence[int], *, afresh: bool = False) -> list[float]:
    """The errors of the features of N layers against those of many, for random weights.

    The weights are constant in time on 20 intervals. With `afresh`, every layer has weights of its
    own, which belong to no function of time; the errors are then those to twice as many layers.
    """
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(50, 3, generator=generator, dtype=torch.float64)

    def weights(n: int) -> tuple[Tensor, Tensor]:
        K = torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
        return K, torch.randn(n, 3, generator=generator, dtype=torch.float64)

    def features(K: Tensor, b: Tensor) -> Tensor:
        return resnets.propagate(u, K, b, 2.0 / len(K))

    if afresh:
        ends = [features(*weights(n)) for n in (*layers, 2 * max(layers))]
        return [(a - b).norm().item() for a, b in pairwise(ends)]
    K, b = weights(20)

    def refined(n: int) -> Tensor:
        return features(*(w.repeat_interleave(n // 20, 0) for w in (K, b)))

    exact = 2 * refined(20 * 2**9) - refined(20 * 2**8)  # extrapolated
    return [(refined(n) - exact).norm().item() for n in layers]


def order(errors: Sequence[float], layers: Sequence[int]) -> float:
    """The order of convergence between the last two numbers of layers."""
    return metrics.observed_orders(list(errors), [1 / n for n in layers])[-1]
