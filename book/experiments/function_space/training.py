"""The digits, the networks and the trainings of the chapter on diffusion in function space."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.generative import Denoiser, Schedule, denoising
from ctdl_lib.learning import Step, cosine, minibatches, train
from ctdl_lib.networks import FNO
from ctdl_lib.problems.datasets import as_fields, idx, mnist
from machinery.seeds import seeded
from machinery.store import Store

from .priors import (
    Covariance,
    Laplacian,
    Matern,
    PixelNoise,
    SpectralNoise,
    Sum,
    WhiteNoise,
)
from .unets import UNet

CHAPTER = "11_function_space"
SEEDS = (10, 11, 12)  # settings were chosen with seed 0
PIXELS = 28  # the grid of training
STD = 0.6  # of the pixels, divided by that of the noise
FILES: tuple[Path, Path] | None = None  # IDX files, images and labels, in place of the 5,000
SCHEDULE = Schedule()
SHAPE = {"modes": 10, "width": 16, "layers": 4}
COMMON: dict[str, Any] = SHAPE | {"batch": 32, "lr": 1e-2}
RECIPES: dict[str, dict[str, Any]] = {
    "fno": COMMON | {"steps": 3000},
    "unet": {"width": 16, "factors": [1, 2, 2], "batch": 32, "lr": 5e-3, "steps": 1600},
}
# Not stored yet. Both networks see as many images, their weights are averaged, and they train long.
LONG: dict[str, dict[str, Any]] = {
    "fno": COMMON | {"width": 32, "lr": 5e-3, "steps": 30_000, "average": 0.999},
    "unet": RECIPES["unet"] | {"width": 32, "lr": 2e-3, "steps": 30_000, "average": 0.999},
}
EVALUATION = {"samples": 128, "steps": 64}  # of the first comparison, on three seeds

PRIORS: dict[str, Covariance] = {
    "standard": PixelNoise(),
    "laplacian": Laplacian(s=1.1).normalized(PIXELS),
    "fno": SpectralNoise(modes=14).normalized(PIXELS),
    "combined": Sum(
        (Laplacian(s=1.1).normalized(PIXELS), SpectralNoise(modes=14).normalized(PIXELS)), 0.5
    ),
}
OTHERS: dict[str, Covariance] = {
    "matern": Matern(s=2.0, kappa=3.0).normalized(PIXELS),
    "white": WhiteNoise().normalized(PIXELS),
    "log": Laplacian(s=1.0).normalized(PIXELS),
}
LAWS = PRIORS | OTHERS
LIMITS = ("laplacian", "fno", "combined")  # the priors of the talk that have a limit
CASES = [(net, prior) for net in RECIPES for prior in PRIORS]
CASES.insert(len(PRIORS), ("fno", "matern"))

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def seeds_of(store: Store, seed: int = 0) -> list[int]:
    """The seeds of trainings; one in smoke."""
    return [seed + s for s in SEEDS[: 1 if store.run == "smoke" else 3]]


@cache
def images(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """4,000 images to learn from and their labels, then 1,000 that are held out, and theirs."""
    digits = idx(*FILES) if FILES else mnist()
    order = torch.randperm(len(digits.image), generator=seeded(seed, 0))[:5000]
    image = as_fields(digits.image.float())[order]
    label = digits.label[order]
    return image[1000:], label[1000:], image[:1000], label[:1000]


def steps_of(
    denoiser: Denoiser,
    draw: Draw,
    how: dict[str, Any],
    seed: int,
    steps: int,
    checkpoint: Path | None = None,
    device: str = "cpu",
) -> Iterator[Step]:
    """The steps of a training; `draw` makes the clean fields and the noise of a step.

    `how` has the keys lr and steps, the length of the schedule of the rate, and perhaps average.
    """

    def batch(k: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = seeded(seed, k + 1)
        x, eta = draw(k, generator)
        t = torch.rand(len(x), generator=generator)
        return x.to(device), eta.to(device), t.to(device)

    def loss(model: nn.Module, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, eta, t = drawn
        return denoising(model, x, eta, t, SCHEDULE)

    options: dict[str, Any] = {"lr": cosine(how["lr"], how["steps"]), "checkpoint": checkpoint}
    options |= {"average": how.get("average"), "max_grad_norm": 1.0, "every": 500}
    yield from train(denoiser.to(device), loss, batch, steps=steps, **options)
    denoiser.cpu()  # what was learned is judged there


def fno_of(seed: int, how: dict[str, Any], std: float) -> Denoiser:
    """A denoiser whose network is an FNO, with random weights."""
    sizes = {key: how[key] for key in SHAPE}
    return Denoiser(FNO(**sizes, generator=seeded(seed, 0)), std=std, schedule=SCHEDULE)


def model_of(net: str, seed: int, how: dict[str, Any]) -> Denoiser:
    """A denoiser of digits with random weights."""
    if net == "fno":
        return fno_of(seed, how, STD)
    torch.manual_seed(seed)
    return Denoiser(UNet(width=how["width"], factors=how["factors"]), std=STD, schedule=SCHEDULE)


def training_of(
    model: Denoiser, how: dict[str, Any], prior: str, seed: int, device: str, data: int = 0
) -> Callable[[int, Path | None], Iterator[Step]]:
    """The training of a denoiser on digits of 28 × 28 pixels, as the store wants it."""
    learned, Q = images(data)[0], LAWS[prior]
    rows = minibatches(Q.check(learned), size=how["batch"], seed=seed)

    def draw(k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        (x,) = rows(k)
        return x, Q.sample(len(x), PIXELS, generator)

    return lambda steps, file=None: steps_of(model, draw, how, seed, steps, file, device)


def settings_of(net: str, prior: str, seed: int, how: dict[str, Any]) -> dict[str, Any]:
    """What the weights of a network depend on."""
    found = how | {"net": net, "prior": repr(LAWS[prior]), "seed": seed}
    return found | ({"data": [str(file) for file in FILES]} if FILES else {})


def fitted(store: Store, net: str, prior: str, seed: int = 0, device: str = "cpu") -> Denoiser:
    """The network of the first seed, whose weights are kept."""
    s, how = seeds_of(store, seed)[0], RECIPES[net]
    model = model_of(net, s, how)
    training = training_of(model, how, prior, s, device, seed)
    kept: dict[str, Any] = {"device": device, "dtype": torch.float16}
    store.fit(f"{net}-{prior}-{s}", model, settings_of(net, prior, s, how), training, **kept)
    return model.cpu().requires_grad_(False)


def long(store: Store, net: str, prior: str, seed: int, device: str = "cpu") -> Denoiser:
    """The same network trained as LONG says, for hours of a core; nothing of it is stored yet.

    `long(Store(CHAPTER, "train"), "fno", "laplacian", 10)` trains one and keeps it.
    """
    how = LONG[net]
    model = model_of(net, seed, how)
    training = training_of(model, how, prior, seed, device)
    kept: dict[str, Any] = {"device": device, "dtype": torch.float16}
    name = f"long-{net}-{prior}-{seed}"
    store.fit(name, model, settings_of(net, prior, seed, how), training, **kept)
    return model.cpu().requires_grad_(False)


def count_of(model: nn.Module) -> int:
    """The number of weights."""
    return sum(p.numel() for p in model.parameters())
