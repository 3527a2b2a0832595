"""Fields of a reaction–diffusion equation: what an FNO draws of them on three grids."""

from typing import Any

import torch
from torch import Tensor

from ctdl_lib.generative import Denoiser
from ctdl_lib.learning import minibatches
from machinery.seeds import seeded
from machinery.store import Store

from .grids import Field, resample, squared_wave_numbers
from .judging import distances, hash_of
from .priors import Matern
from .random_fields import ReactionDiffusion
from .sampling import samples_of
from .training import COMMON, EVALUATION, fno_of, seeds_of, steps_of

TRAINED, FINEST = 32, 128
LEARNING: dict[str, Any] = COMMON | {"steps": 3000, "fields": 800, "std": 0.4}
EQUATION, START = ReactionDiffusion(), Matern(s=3.0, kappa=6.0).normalized(FINEST)
NOISE = Matern(s=2.0, kappa=3.0).normalized(TRAINED)
SHOWN = {32: 128, 64: 128, 128: 32}  # samples on each grid
LAGS = (1, 2, 4, 8, 16)  # of the structure functions, in pixels of the coarsest grid
WAVES = 24


def solutions(count: int, generator: torch.Generator) -> Field:
    """The field u at time 5 from smooth random starts, on 128 × 128 pixels."""
    parts = []
    for k in range(0, count, 50):
        u, v = (START.sample(min(50, count - k), FINEST, generator) for _ in range(2))
        parts.append(EQUATION.solve(u, v, 5.0, steps=60)[0])
    return torch.cat(parts)


def fitted(store: Store, seed: int = 0, device: str = "cpu") -> Denoiser:
    """The FNO that has learned 800 fields on 32 × 32 pixels."""
    s, small = seeds_of(store, seed)[0], store.run == "smoke"
    model = fno_of(s, LEARNING, LEARNING["std"])

    def training(steps, file):
        count = 8 if small else LEARNING["fields"]
        made = resample(solutions(count, seeded(seed, 0)), TRAINED)
        rows = minibatches(made, size=min(32, len(made)), seed=seed)

        def draw(k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            (x,) = rows(k)
            return x, NOISE.sample(len(x), TRAINED, generator)

        yield from steps_of(model, draw, LEARNING, s, steps, file, device)

    kept: dict[str, Any] = {"device": device, "dtype": torch.float16}
    store.fit("patterns", model, LEARNING | {"seed": s}, training, **kept)
    return model.cpu().requires_grad_(False)


def spectrum(u: Field, waves: int = WAVES) -> list[float]:
    """The mean power in the shells k − ½ ≤ |k| < k + ½, k = 1 … `waves`, of the grid's own."""
    n = u.shape[-1]
    power = (torch.fft.fft2(u.double(), norm="forward").abs() ** 2).mean(0)
    shell = squared_wave_numbers(n).sqrt().round()
    return [float(power[shell == k].sum()) for k in range(1, waves + 1)]


def structure(u: Field, order: int, lags: tuple[int, ...] = LAGS) -> list[float]:
    """The structure functions E|u(x + r) − u(x)|ᵖ along the axes, at lags of 1/32 of the side."""
    found, unit = [], u.shape[-1] // TRAINED
    for lag in lags:
        apart = [(u.roll(lag * unit, axis) - u).abs() ** order for axis in (1, 2)]
        found.append(float(torch.stack(apart).double().mean()))
    return found


def flatness(u: Field) -> list[float]:
    """The ratios S₄/S₂² at all lags, 3 for Gaussian fields."""
    return [b / a**2 for a, b in zip(structure(u, 2), structure(u, 4), strict=True)]


def scrambled(u: Field, generator: torch.Generator) -> Field:
    """Gaussian fields with the same mean power at each wave number."""
    n = u.shape[-1]
    root = (torch.fft.fft2(u.double()).abs() ** 2).mean(0).sqrt()
    z = torch.randn(u.shape, generator=generator, dtype=torch.float64)
    return torch.fft.ifft2(root * torch.fft.fft2(z) / n).real.to(u.dtype)


def statistics(u: Field) -> dict[str, list[float]]:
    """Spectrum, structure functions and flatness."""
    return {
        "spectrum": spectrum(u, min(WAVES, u.shape[-1] // 2 - 1)),
        "structure": structure(u, 2),
        "flatness": flatness(u),
    }


def judged(store: Store, model: Denoiser, seed: int = 0) -> dict[str, Any]:
    """The statistics of samples on three grids, of solutions, and of Gaussian fields like them.

    Solutions come in two lots, so that one may be judged against the other.
    """
    small = store.run == "smoke"
    steps = 2 if small else EVALUATION["steps"]
    counts = {n: 4 if small else count for n, count in SHOWN.items()}

    def compute() -> dict[str, Any]:
        count = counts[TRAINED]
        truth = solutions(2 * count, seeded(seed, 1))
        lots, found = (truth[:count], truth[count:]), {}
        for k, lot in enumerate(lots):
            found[f"real {k}"] = statistics(lot)
        found["gaussian"] = statistics(scrambled(lots[0], seeded(seed, 2)))
        for n, many in counts.items():
            x = samples_of(model, NOISE, n, seeds_of(store, seed)[0], many, steps)
            found[f"samples {n}"] = statistics(x)
            real = resample(lots[0][:many], n)
            found[f"distance {n}"] = distances(x, real, seed, small)
            found[f"distance {n} real"] = distances(resample(lots[1][:many], n), real, seed, small)
        return found

    key = LEARNING | EVALUATION | {"shown": list(counts.values()), "weights": hash_of(model)}
    return store.measure("patterns-judged", key, compute).numbers
