"""Convolutional layers that are steps of partial differential equations, in three stages."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.learning import cosine, minibatches, train
from ctdl_lib.networks.architectures import EULER, LEAPFROG, SYMPLECTIC, Architecture, Field
from ctdl_lib.networks.resnets import reversible, time_smoothness
from ctdl_lib.problems.classification import Samples
from machinery import instruments
from machinery.store import Store

from ..resnets.convolutional import PIXELS, SPLIT, accuracy, images

SEEDS = (10, 11, 12, 13, 14)
TRIED = 0  # the seed on which settings are chosen
GRID = tuple(product((3e-3, 1e-2), (1.0, 4.0)))  # learning rates and final times of a stage
NOISE = 0.5  # standard deviation, that of the pixels is 1
RESNET, PARABOLIC, SECOND, HAMILTONIAN = "resnet", "parabolic", "second-order", "hamiltonian"
KINDS = (RESNET, PARABOLIC, SECOND, HAMILTONIAN)


@dataclass(frozen=True)
class Settings:
    """The settings of one network: the `kind` and number of its layers, and its training."""

    kind: str
    layers: int = 6
    widths: tuple[int, int, int] = (8, 16, 32)
    batch: int = 128
    steps: int = 300
    smooth: float = 1e-4


# --- layers -------------------------------------------------------------------------------------
# Features are (batch, pixels, pixels, channels), so that the schemes split channels in halves.


def _convolved(u: Tensor, K: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(nn.functional.conv2d(u.movedim(-1, 1), K, b, padding=1).movedim(1, -1))


def _descent(u: Tensor, K: Tensor, b: Tensor) -> Tensor:
    """The velocity −Kᵀσ(Ku + b), where Kᵀ is the transposed convolution."""
    inner = _convolved(u, K, b).movedim(-1, 1)
    return -nn.functional.conv_transpose2d(inner, K, padding=1).movedim(1, -1)


def _square(width: int) -> dict[str, tuple[int, ...]]:
    return {"K": (width, width, 3, 3), "b": (width,)}


def _two_halves(width: int) -> dict[str, tuple[int, ...]]:
    return {name: (2, *shape) for name, shape in _square(width // 2).items()}


HALVES = (
    lambda z, K, b: -_descent(z, K[0], b[0]),
    lambda y, K, b: _descent(y, K[1], b[1]),
)
ARCHITECTURES = {
    RESNET: Architecture(Field((_convolved,), _square), EULER),
    PARABOLIC: Architecture(Field((_descent,), _square), EULER),
    SECOND: Architecture(Field((_descent,), _square), LEAPFROG),
    HAMILTONIAN: Architecture(Field(HALVES, _two_halves), SYMPLECTIC),
}


class Stage(nn.Module):
    """Layers of one architecture at one resolution, from u₀ to u_N with the step T/N.

    With `reverse`, the backward pass computes the features again from the last ones.

    Reference: ruthotto2020pde.
    """

    def __init__(self, kind: str, width: int, layers: int, horizon: float, reverse: bool = False):
        super().__init__()
        self.architecture, self.h, self.reverse = ARCHITECTURES[kind], horizon / layers, reverse
        shapes = self.architecture.shapes(width)
        fan = 9 * shapes["K"][-3]
        self.K = nn.Parameter(torch.randn(shapes["K"]).expand(layers, *shapes["K"]) / fan**0.5)
        self.b = nn.Parameter(torch.zeros(layers, *shapes["b"]))

    def forward(self, u: Tensor) -> Tensor:
        """The features u_N, (batch, pixels, pixels, channels)."""
        field, scheme = self.architecture.field, self.architecture.scheme
        state = scheme.start(field, u, self.h, (self.K[0], self.b[0]))
        if self.reverse:
            return scheme.end(reversible(self.architecture, self.h, state, (self.K, self.b)))
        for theta in zip(self.K, self.b, strict=True):
            state = scheme.step(field, state, self.h, theta)
        return scheme.end(state)


class Last(nn.Module):
    """A module for features (batch, pixels, pixels, channels), applied with the channels second."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, u: Tensor) -> Tensor:
        """The features of the module, with the channels last."""
        return self.module(u.movedim(-1, 1)).movedim(1, -1)


def network(key: Settings, horizon: float, seed: int, *, reverse: bool = False) -> nn.Sequential:
    """The network before its training, from images (batch, 196) to ten logits.

    Between two stages a convolution with one pixel doubles the channels, and means over 2 × 2
    pixels halve the resolution.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[nn.Module] = [nn.Unflatten(1, (PIXELS, PIXELS, 1))]
        parts.append(Last(nn.Conv2d(1, key.widths[0], 3, padding=1)))
        parts.append(Stage(key.kind, key.widths[0], key.layers, horizon, reverse))
        for before, width in pairwise(key.widths):
            narrow = nn.Sequential(nn.Conv2d(before, width, 1), nn.AvgPool2d(2))
            parts += [Last(narrow), Stage(key.kind, width, key.layers, horizon, reverse)]
        pixels = PIXELS // 2 ** (len(key.widths) - 1)
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(pixels**2 * key.widths[-1], 10))


def objective(key: Settings, net: Any, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """The cross-entropy, and the smoothness of the weights of each stage in time."""
    stages = [part for part in net if isinstance(part, Stage)]
    change = torch.stack([time_smoothness(stage.K, stage.h) for stage in stages]).sum()
    return {
        "cross-entropy": metrics.cross_entropy(net(batch[0]), batch[1]),
        "smoothness": key.smooth * change,
    }


def trained(key: Settings, data: Samples, seed: int, rate: float, horizon: float) -> nn.Sequential:
    """The network after its training by Adam, whose rate falls along a cosine."""
    net = network(key, horizon, seed).to(data.y.device)
    batches = minibatches(*data, size=key.batch, seed=seed)
    how: dict[str, Any] = {"steps": key.steps, "lr": cosine(rate, key.steps)}
    for _ in train(net, partial(objective, key), batches, **how):
        pass
    return net


@dataclass(frozen=True)
class Study:
    """What a kind of network reaches at its best rate and final time, one number a seed.

    The shares of right labels, in percent, are those of test images, of the same with noise, and
    of the same after a mean over 3 × 3 pixels.
    """

    rate: float
    horizon: float
    parameters: int
    clean: list[float]
    noisy: list[float]
    blurred: list[float]


def disturbed(samples: Samples, seed: int) -> dict[str, Samples]:
    """The images as they are, with noise, and blurred."""
    y, label = samples
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    square = y.view(-1, 1, PIXELS, PIXELS)
    blur = nn.functional.avg_pool2d(square, 3, stride=1, padding=1, count_include_pad=False)
    parts = {"clean": y, "noisy": y + NOISE * noise, "blurred": blur.flatten(1)}
    return {name: Samples(part, label) for name, part in parts.items()}


def study(store: Store, kind: str, seeds: Sequence[int], device: str = "cpu") -> Study:
    """What a kind of network reaches at settings that are best on training images kept apart."""
    smoke, key = store.run == "smoke", Settings(kind)
    tried = replace(key, layers=2, steps=2) if smoke else key
    grid = GRID[:1] if smoke else GRID

    def on_images_kept_apart(chosen: tuple[float, float]) -> float:
        data = images(TRIED)[0].to(device)
        kept, rest = (Samples(*(part[rows] for part in data)) for rows in SPLIT)
        return accuracy(trained(tried, rest, TRIED, *chosen), kept)

    def compute() -> dict[str, Any]:
        best = max(grid, key=on_images_kept_apart)
        found: dict[str, list[float]] = {"clean": [], "noisy": [], "blurred": []}
        for seed in seeds:
            data, test = images(seed)
            net = trained(tried, data.to(device), seed, *best)
            for name, samples in disturbed(test, seed).items():
                found[name].append(accuracy(net, samples.to(device)))
        parameters = sum(p.numel() for p in network(tried, 1.0, TRIED).parameters())
        return {"rate": best[0], "horizon": best[1], "parameters": parameters, **found}

    settings = asdict(key) | {"grid": [list(pair) for pair in GRID], "seeds": list(seeds)}
    settings |= {"tried": TRIED, "noise": NOISE}
    found = store.measure(f"images-{kind}", settings, compute, device=device)
    return Study(**found.numbers)


def studies(store: Store, seeds: Sequence[int], device: str = "cpu") -> dict[str, Study]:
    """The studies of all kinds."""
    return {kind: study(store, kind, seeds, device) for kind in KINDS}


def kept_bytes(reverse: bool, depths: Sequence[int] = (6, 24)) -> list[int]:
    """The bytes alive between the forward and the backward pass, for numbers of layers a stage."""
    y = torch.randn(16, PIXELS**2, dtype=torch.float32)
    nets = [network(Settings(HAMILTONIAN, n), 4.0, 0, reverse=reverse).float() for n in depths]
    return [instruments.retained_bytes(lambda net=net: net(y)) for net in nets]
