"""The denoisers of the chapter: one for each of seven densities, and those that see a label."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.generative import Denoiser, Flow, ProbabilityFlow, Score, denoising
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.networks import MLP
from ctdl_lib.networks.embeddings import Time, times_like
from ctdl_lib.problems.densities import TOYS, Mixture
from machinery.seeds import seeded
from machinery.store import Record, Store

from .laws import SCHEDULE

CHAPTER = "10_score_based_diffusion"
SEEDS = (10, 11, 12)  # settings were chosen with seed 0
COMMON: dict[str, Any] = {"width": 128, "hidden": 3, "batch": 512, "lr": 1e-2, "steps": 8000}
LABELLED: dict[str, Any] = COMMON | {"batch": 256, "steps": 3000}
CLASSES = {"moons": 2, "circles": 2}  # the parts of a mixture, in this order, are the classes
LIVE: dict[str, Any] = LABELLED | {"width": 64, "hidden": 2, "steps": 600}


class OnLogNoise(nn.Module):
    """A network that sees log(s/a)/4, not t: evenly spread levels of noise."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, t: Time, x: Tensor, *y: Tensor) -> Tensor:
        """The value of the network."""
        t = times_like(t, x).clamp(min=1e-4)
        return self.net(0.25 * torch.log(SCHEDULE.s(t) / SCHEDULE.a(t)), x, *y)


class Given(nn.Module):
    """A network F(t, x, y) with one context y (batch, m), or (1, m) for all samples."""

    def __init__(self, net: nn.Module, y: Tensor):
        super().__init__()
        self.net, self.y = net, y

    def forward(self, t: Time, x: Tensor) -> Tensor:
        """The value F(t, x, y)."""
        return self.net(t, x, self.y.expand(len(x), -1))


def network(key: dict[str, Any], seed: int, context_dim: int = 0) -> OnLogNoise:
    """The network before its training."""
    how = {"width": key["width"], "hidden": key["hidden"], "activation": nn.functional.silu}
    generator = seeded(seed, 0)
    return OnLogNoise(MLP(2, context_dim=context_dim, generator=generator, **how))


def denoiser(net: nn.Module, y: Tensor | None = None) -> Denoiser:
    """The denoiser of a network, for standardized data; with y, that of a label."""
    return Denoiser(net if y is None else Given(net, y), std=1.0, schedule=SCHEDULE)


def noise_and_times(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal noise, and squares of uniform times: small ones, where the score is hard, are many."""
    eta = torch.randn(x.shape, generator=generator)
    return eta, torch.rand(len(x), generator=generator) ** 2


def fit(store: Store, name: str, seed: int, device: str = "cpu") -> tuple[Flow, Record]:
    """The trained probability flow of a density of the plane, in the units of the data."""
    key = COMMON | {"density": name, "seed": seed}
    model, p = denoiser(network(key, seed)), TOYS[name]
    x = p.sample(10_000, seeded(seed, 0))
    mean, spread = x.mean(0), x.std(0)

    def batch(k: int) -> tuple[Tensor, ...]:
        generator = seeded(seed, k + 1)
        x = (p.sample(key["batch"], generator) - mean) / spread
        return tuple(part.to(device) for part in (x, *noise_and_times(x, generator)))

    def loss(model: nn.Module, drawn: tuple[Tensor, ...]) -> Tensor:
        x, eta, t = drawn
        return denoising(model, x, eta, t, SCHEDULE)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        how = {"steps": steps, "lr": cosine(key["lr"], key["steps"]), "every": 1000}
        yield from train(model.to(device), loss, batch, checkpoint=file, **how)
        model.cpu()

    how = {"device": device, "dtype": torch.float16}
    record = store.fit(f"{name}-{seed}", model, key, training, **how)
    score = Score(model.requires_grad_(False).cpu(), SCHEDULE)
    flow = Flow(ProbabilityFlow(score, SCHEDULE), 2, solver={"tol": 1e-4})
    return flow.standardize(x), record


def score_of(flow: Flow) -> Score:
    """The learned score of a flow, of standardized data."""
    assert isinstance(flow.velocity, ProbabilityFlow)
    assert isinstance(flow.velocity.score, Score)
    return flow.velocity.score


def parts(name: str) -> list[Mixture]:
    """The laws of the classes of a density, in the units of the data; all are equally likely."""
    p = TOYS[name]
    assert isinstance(p, Mixture)
    pieces = zip(*(x.chunk(CLASSES[name]) for x in (p.weights, p.means, p.std)), strict=True)
    return [Mixture(w / w.sum(), means, std) for w, means, std in pieces]


@dataclass(frozen=True)
class Labelled:
    """A network that has seen labels, and the units of its data."""

    net: OnLogNoise
    mean: Tensor
    std: Tensor
    classes: int

    def score(self, label: int) -> Score:
        """The score of one class, of data in the units of `mean` and `std`."""
        y = nn.functional.one_hot(torch.tensor([label]), self.classes).float()
        return Score(denoiser(self.net, y), SCHEDULE)


def labelled_batch(
    laws: list[Mixture], n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As many samples of each class, with one-hot labels."""
    each = n // len(laws)
    x = torch.cat([p.sample(each, generator) for p in laws])
    y = torch.arange(len(laws)).repeat_interleave(each)
    return x, nn.functional.one_hot(y, len(laws)).float()


def labelled_steps(
    model: Labelled,
    laws: list[Mixture],
    key: dict[str, Any],
    seed: int,
    steps: int,
    file: Path | None = None,
) -> Iterator[Step]:
    """The steps of a training on samples with labels."""

    def batch(k: int) -> tuple[Tensor, ...]:
        generator = seeded(seed, k + 1)
        x, y = labelled_batch(laws, key["batch"], generator)
        x = (x - model.mean) / model.std
        return (y, x, *noise_and_times(x, generator))

    def loss(net: nn.Module, drawn: tuple[Tensor, ...]) -> Tensor:
        y, x, eta, t = drawn
        return denoising(denoiser(net, y), x, eta, t, SCHEDULE)

    how = {"steps": steps, "lr": cosine(key["lr"], key["steps"]), "every": 1000}
    return train(model.net, loss, batch, checkpoint=file, **how)


def untrained_labelled(laws: list[Mixture], key: dict[str, Any], seed: int) -> Labelled:
    """A network that takes labels, before its training, with the units of 10,000 samples."""
    x, _ = labelled_batch(laws, 10_000, seeded(seed, 0))
    net = network(key, seed, context_dim=len(laws))
    return Labelled(net, x.mean(0), x.std(0), len(laws))


def fit_labelled(store: Store, name: str, seed: int) -> Labelled:
    """The trained network that takes labels, for one of the densities with classes."""
    key, laws = LABELLED | {"density": name, "seed": seed, "labels": CLASSES[name]}, parts(name)
    model = untrained_labelled(laws, key, seed)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        return labelled_steps(model, laws, key, seed, steps, file)

    store.fit(f"{name}-labels-{seed}", model.net, key, training, dtype=torch.float16)
    model.net.requires_grad_(False)
    return model
