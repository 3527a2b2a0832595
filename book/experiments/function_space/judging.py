"""The stored models of digits, judged: which sampler, at which grid, and against which rivals."""

from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib import metrics
from ctdl_lib.generative import denoising
from machinery.seeds import seeded
from machinery.store import Store

from . import comparisons, digits
from .digits import Classifier, quality, split
from .grids import Field, resample
from .priors import BandNoise, Covariance
from .sampling import ancestral, coupled, samples_of
from .training import (
    CASES,
    EVALUATION,
    LAWS,
    PIXELS,
    RECIPES,
    SCHEDULE,
    fitted,
    images,
    model_of,
    seeds_of,
    settings_of,
    training_of,
)

COUNT = 500  # samples of each model
FEWER = 200  # of the U-Net, which takes three times as long
FEW = 100  # on 112 × 112 pixels
BEST: dict[str, Any] = {"sampler": "ancestral", "steps": 64}
FINEST = ("laplacian",)  # the priors whose FNO is sampled on 112 × 112 pixels
TRIED = (
    ("equal", 64),
    ("ancestral", 64),
    ("ancestral", 128),
    ("heun", 32),
)
# The noise of 28² pixels as a prior with a limit: the same variance at the same wave numbers.
FIXED = BandNoise(modes=13, level=PIXELS**-2)

Quality = dict[str, float]


def over_splits(net: Classifier, x: Field, seed: int = 0) -> list[Quality]:
    """The numbers of samples against half of the held-out images, one a split."""
    halves = (split(k, seed, min(len(x), digits.HALF))[1] for k in range(digits.SPLITS))
    return [quality(net, x, real, seed) for real in halves]


def judge(
    store: Store,
    name: str,
    net: Classifier,
    model: nn.Module,
    Q: Covariance,
    n: int,
    seed: int = 0,
    *,
    count: int = COUNT,
    **how: Any,
) -> list[Quality]:
    """The numbers of a model on a grid, one a split, kept in the store."""
    small = store.run == "smoke"
    how = BEST | how | {"count": count}
    if small:
        how |= {"steps": 2, "count": 8}
    settings = how | {"n": n, "prior": repr(Q), "seed": seed, "weights": hash_of(model)}
    settings |= {"classifier": hash_of(net)}

    def compute() -> dict[str, Any]:
        chosen = {key: how[key] for key in ("count", "steps", "sampler")}
        x = samples_of(model, Q, n, seeds_of(store, seed)[0], **chosen)
        return {"rows": over_splits(net, x, seed)}

    return store.measure(f"quality-{name}-n{n}", settings, compute).numbers["rows"]


def hash_of(model: nn.Module) -> str:
    """A short name of the weights of a model, as far as half precision tells."""
    total = sum(float(p.double().abs().sum()) for p in model.parameters())
    return f"{total:.6g}"


# --- all stored models --------------------------------------------------------------------------

Judged = dict[str, list[Quality]]


def judged(store: Store, net: Classifier, seed: int = 0, device: str = "cpu") -> Judged:
    """The numbers of all models by "net.prior.n", one a split of the held-out images.

    "fixed" is the FNO with pixel noise, sampled with the noise of the grid of training.
    """
    found = {}
    for kind, prior in CASES:
        model = fitted(store, kind, prior, seed, device)
        for n in (PIXELS, 2 * PIXELS):
            count = FEWER if kind == "unet" else COUNT
            of = store, f"{kind}-{prior}", net, model, LAWS[prior], n, seed
            found[f"{kind}.{prior}.{n}"] = judge(*of, count=count)
    fixed = fitted(store, "fno", "standard", seed, device)
    found["fixed.56"] = judge(store, "fno-fixed", net, fixed, FIXED, 2 * PIXELS, seed)
    for prior in FINEST:
        model = fitted(store, "fno", prior, seed, device)
        name, n = f"fno-{prior}", 4 * PIXELS
        found[f"fno.{prior}.{n}"] = judge(store, name, net, model, LAWS[prior], n, seed, count=FEW)
    return found


def tried(store: Store, net: Classifier, seed: int = 0, device: str = "cpu") -> Judged:
    """The numbers of the FNO with the Laplacian prior by several samplers, at 28."""
    model, Q, found = fitted(store, "fno", "laplacian", seed, device), LAWS["laplacian"], {}
    for sampler, steps in TRIED:
        name = f"{sampler}-{steps}"
        how: dict[str, Any] = {"sampler": sampler, "steps": steps}
        file = "fno-laplacian" if how == BEST else f"sampler-{name}"
        found[name] = judge(store, file, net, model, Q, PIXELS, seed, **how)
    return found


def real_rows(net: Classifier, count: int, seed: int = 0) -> list[Quality]:
    """The numbers of as many held-out images against the others."""
    rows = []
    for k in range(digits.SPLITS):
        a, b = split(k, seed, min(count, digits.HALF))
        rows.append(quality(net, a, b, seed))
    return rows


def apart(store: Store, seed: int = 0, device: str = "cpu") -> dict[str, dict[str, float]]:
    """How far samples from the same noise differ between grids, relative to their size in L²."""
    small = store.run == "smoke"
    count, steps = (2, 2) if small else (16, 32)
    grids = (PIXELS, 2 * PIXELS, 4 * PIXELS)

    def compute() -> dict[str, Any]:
        found = {}
        for prior in ("laplacian", "fno", "matern"):
            model, Q = fitted(store, "fno", prior, seed, device), LAWS[prior]
            x = {n: ancestral(model, coupled(Q, n, grids[-1], count, seed), steps) for n in grids}
            found[prior] = {}
            for n in grids[:2]:
                u, v = resample(x[n], 2 * n), x[2 * n]
                found[prior][str(n)] = float((u - v).norm() / v.norm())
        return found

    key = {"count": count, "steps": steps, "grids": grids, "seed": seed}
    key["weights"] = hash_of(fitted(store, "fno", "laplacian", seed, device))
    return store.measure("apart", key, compute).numbers


# --- the first comparison: three seeds, without a classifier ------------------------------------


def real_fields(n: int, seed: int = 0, small: bool = False) -> Field:
    """The held-out images that samples were compared with, on n × n pixels."""
    return resample(images(seed)[2][128 : 136 if small else 628], n)


@torch.no_grad()
def denoising_loss(
    model: nn.Module, Q: Covariance, n: int, seed: int = 0, small: bool = False
) -> float:
    """The loss of denoising on held-out images, relative to the power of the noise."""
    generator, count = seeded(seed, 50), 4 if small else 500
    x, eta = resample(images(seed)[2][:count], n), Q.sample(count, n, generator)
    t = torch.rand(count, generator=generator)
    parts = zip(x.split(100), eta.split(100), t.split(100), strict=True)
    losses = [denoising(model, a, b, c, SCHEDULE).item() for a, b, c in parts]
    return sum(losses) / len(losses) / eta.square().mean().item()


def distances(x: Tensor, real: Tensor, seed: int = 0, small: bool = False) -> dict[str, float]:
    """Sliced Wasserstein distance, energy distance in L², and the Vendi score."""
    x, real = x.flatten(1), real.flatten(1)
    how: dict[str, Any] = {"projections": 200 if small else 1000, "generator": seeded(seed, 0)}
    return {
        "sw": metrics.sliced_wasserstein(x, real[: len(x)], **how),
        "energy": comparisons.energy_distance(x / x.shape[1] ** 0.5, real / x.shape[1] ** 0.5),
        "vendi": comparisons.vendi(x + 1),
    }


def compared(
    store: Store, net: str, prior: str, s: int, seed: int = 0, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """The distances and losses of one network, trained with one seed, at 28 and 56."""
    small, how, Q = store.run == "smoke", RECIPES[net], LAWS[prior]
    key = settings_of(net, prior, s, how) | EVALUATION
    count, steps = (4, 2) if small else (EVALUATION["samples"], EVALUATION["steps"])

    def compute() -> dict[str, Any]:
        if s == seeds_of(store, seed)[0]:
            model = fitted(store, net, prior, seed, device)
        else:
            model = model_of(net, s, how)
            steps_of_training = training_of(model, how, prior, s, device, seed)
            list(steps_of_training(3 if small else how["steps"], None))
        model.requires_grad_(False)
        found = {}
        for n in (PIXELS, 2 * PIXELS):
            x = samples_of(model, Q, n, s, count, steps)
            found[str(n)] = distances(x, real_fields(n, seed, small), seed, small)
            found[str(n)]["loss"] = denoising_loss(model, Q, n, seed, small)
        return found

    return store.measure(f"judged-{net}-{prior}-{s}", key, compute, device=device).numbers


Table = dict[tuple[str, str], list[dict[str, dict[str, float]]]]


def comparison(store: Store, seed: int = 0, device: str = "cpu") -> Table:
    """The numbers of all pairs of network and prior, one a seed."""
    seeds = seeds_of(store, seed)
    return {case: [compared(store, *case, s, seed, device) for s in seeds] for case in CASES}


def baseline(store: Store, seed: int = 0) -> list[dict[str, dict[str, float]]]:
    """The distances of as many learned images, in place of samples, one a seed."""
    small, seeds = store.run == "smoke", seeds_of(store, seed)
    learned, count = images(seed)[0], 4 if small else EVALUATION["samples"]

    def compute() -> dict[str, Any]:
        rows = []
        for s in seeds:
            chosen = learned[torch.randperm(4000, generator=seeded(s, 0))[:count]]
            how = seed, small
            row = {
                str(n): distances(resample(chosen, n), real_fields(n, *how), *how)
                for n in (PIXELS, 2 * PIXELS)
            }
            rows.append(row)
        return {"rows": rows}

    return store.measure("real", EVALUATION | {"seeds": seeds}, compute).numbers["rows"]
