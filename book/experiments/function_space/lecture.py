"""What the lecture on diffusion in function space draws, loaded or computed by one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from ctdl_lib.generative import Denoiser, Score
from machinery import claims, plotting
from machinery.seeds import seeded
from machinery.store import Run, Store, device_of, results_folder

from . import digits, dimension, factorial, mixture
from .evidence import Evidence
from .grids import Field, resample
from .judging import BEST, FIXED, Table, comparison
from .sampling import ancestral, coupled
from .training import (
    CHAPTER,
    LAWS,
    PIXELS,
    PRIORS,
    RECIPES,
    SCHEDULE,
    fitted,
    fno_of,
    seeds_of,
    steps_of,
)

SENTENCES = (
    "diffusion.dimension.slope.laplacian",
    "diffusion.factorial.architecture",
    "diffusion.factorial.prior",
    "diffusion.multilevel.work_saving",
    "diffusion.metric_power.energy",
    "diffusion.digits.sure",
)
NAMES = {"fno": "FNO", "unet": "U-Net"}
INK: dict[str, Any] = {"vmin": -0.9, "vmax": 1.0, "interpolation": "nearest"}
FEW_COLORS = 12  # fewer colours make smaller pages


@dataclass(frozen=True)
class Results:
    """What the chapter has trained and measured, as far as the lecture draws it."""

    models: dict[tuple[str, str], Denoiser]
    table: Table
    small: bool

    @property
    def steps(self) -> int:
        """The evaluations that a sample in a figure takes."""
        return 2 if self.small else BEST["steps"] // 2


def results(run: Run, device: str, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store, device = Store(CHAPTER, run), device_of(device)
    return Results(
        models={
            (kind, prior): fitted(store, kind, prior, seed, device)
            for kind in RECIPES
            for prior in PRIORS
        },
        table=comparison(store, seed, device),
        small=run == "smoke",
    )


def verdicts() -> str:
    """What the evidence says of the sentences of the talk and our own, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def show(ax: Axes, x: Tensor, label: str = "", cmap: str = "gray", **how: Any) -> None:
    """Draw a field without ticks."""
    how = INK | how
    ax.imshow(x, cmap=plt.get_cmap(cmap, FEW_COLORS), **how)
    ax.set(xticks=[], yticks=[], ylabel=label)
    ax.grid(False)


def grids_on(ax: Axes, grids: Sequence[int]) -> None:
    """Label the axis of pixels with the grids that were used."""
    ax.minorticks_off()
    ax.set_xticks(grids, [str(n) for n in grids])
    ax.set_xlabel("pixels n on a side")


def sheet(x: Field, columns: int) -> Tensor:
    """Fields side by side, `columns` in a row."""
    rows, n = len(x) // columns, x.shape[-1]
    return x.reshape(rows, columns, n, n).permute(0, 2, 1, 3).reshape(rows * n, columns * n)


def drawn(found: Results, net: str, prior: str, n: int, count: int, k: int = 77) -> Field:
    """Samples on a grid; where the prior has a limit, those on all grids start from one noise."""
    Q, model = LAWS[prior], found.models[net, prior]
    if prior == "standard":
        generator = seeded(0, k)
        return ancestral(model, lambda: Q.sample(count, n, generator), found.steps)
    return ancestral(model, coupled(Q, n, 4 * PIXELS, count, 0, k), found.steps)


def draw_strip(found: Results) -> None:
    """Draw samples of three pairs of network and noise on finer and finer grids."""
    pairs = (("fno", "laplacian"), ("fno", "standard"), ("unet", "laplacian"))
    fig, axes = plt.subplots(3, 1, figsize=(8.0, 2.5))
    for ax, (net, prior) in zip(axes, pairs, strict=True):
        grids = (28, 56, 112) if net == "fno" else (28, 56)
        finest = [resample(drawn(found, net, prior, n, 4, k=81), 112) for n in grids]
        if net == "unet":
            finest.append(torch.full_like(finest[0], 1.0))  # left out: it takes long
        show(ax, sheet(torch.cat(finest), 12), f"{NAMES[net]},\n{prior}")
        for border in (447.5, 895.5):
            ax.axvline(border, color=plotting.COLORS[4], lw=2)
    axes[0].set_title(
        "28²                                   56²                                 112²"
    )
    fig.align_ylabels(axes)


def draw_priors() -> None:
    """Draw a sample of each prior on three grids."""
    _, axes = plt.subplots(3, 4, figsize=(7.6, 5.8))
    for column, (name, Q) in zip(axes.T, PRIORS.items(), strict=True):
        fine = Q.sample(1, 112, seeded(3, 0))
        for ax, n in zip(column, (28, 56, 112), strict=True):
            x = Q.sample(1, n, seeded(3, 0)) if name == "standard" else resample(fine, n)
            show(ax, x[0], f"n = {n}" if name == "standard" else "", "cividis", vmin=-2.5, vmax=2.5)
        column[0].set_title(name, fontsize=10)


def draw_traces() -> None:
    """Draw E‖η‖² of the priors on finer and finer grids, and how far the laws are apart."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1))
    shown = ("white", "log", "laplacian", "matern", "standard")
    for i, name in enumerate(shown):
        look: dict[str, Any] = {"color": plotting.COLORS[i], "marker": plotting.MARKERS[i]}
        label = {"log": "Laplacian, ν = 1"}.get(name, name)
        grids = (28, 56, 112, 224)
        left.loglog(grids, [LAWS[name].trace(n) for n in grids], label=label, **look)
        refined = dimension.refinement(name)
        right.loglog(dimension.GRIDS[:-1], refined.path, **look)
        if name in ("white", "matern"):
            right.loglog(dimension.GRIDS[:-1], refined.sample, ls=":", **look)
    left.set(ylabel="trace of Q on n² pixels")
    right.set(ylabel="squared distance, n to 2n")
    grids_on(left, (28, 56, 112, 224))
    grids_on(right, dimension.GRIDS[:-1])
    left.legend(fontsize=7)


# --- the live training --------------------------------------------------------------------------

LIVE: dict[str, Any] = {"modes": 6, "width": 12, "layers": 3, "batch": 32, "lr": 1e-2}
LIVE_GRIDS = (16, 24, 32, 48, 64)


def learned(
    law: mixture.FieldMixture, *, steps: int, seed: int, device: str
) -> tuple[Denoiser, list[float]]:
    """A small FNO trained on 16 × 16 pixels of a law, and its losses."""
    how = LIVE | {"steps": steps}
    model = fno_of(seed, how, 5**0.5)

    def draw(k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = law.sample(how["batch"], 16, generator)
        return x, law.covariance.sample(len(x), 16, generator)

    training = steps_of(model, draw, how, seed, steps, device=device_of(device))
    losses = [step.loss for step in training]
    return model.requires_grad_(False), losses


@torch.no_grad()
def errors(model: Denoiser, name: str, count: int = 64) -> dict[float, list[float]]:
    """The relative errors of the score on each of LIVE_GRIDS, early and late."""
    score = Score(model, SCHEDULE)
    laws = {n: mixture.mixture_of(name, n, 16) for n in LIVE_GRIDS}
    return {
        t: [mixture.score_error(score, law, t, n, count, 5) for n, law in laws.items()]
        for t in (0.3, 0.9)
    }


def draw_live(losses: dict[str, Sequence[float]], off: dict[str, dict[float, list[float]]]) -> None:
    """Draw the losses of the live trainings, and the errors of their scores on all grids."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0))
    for i, (name, values) in enumerate(losses.items()):
        color, marker = plotting.COLORS[i], plotting.MARKERS[i]
        window = min(10, len(values))
        left.plot(torch.tensor(values).unfold(0, window, 1).mean(1), color=color, label=name)
        for (t, row), line in zip(off[name].items(), ("-", ":"), strict=True):
            look: dict[str, Any] = {"color": color, "marker": marker, "ls": line}
            right.semilogy(LIVE_GRIDS, row, label=f"{name}, t = {t:g}", **look)
    left.set(xlabel="step", ylabel="loss")
    right.set(ylabel="relative error of the score")
    grids_on(right, LIVE_GRIDS)
    left.legend(fontsize=8)
    right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


# --- samples and effects ------------------------------------------------------------------


def draw_grid(found: Results) -> None:
    """Draw samples of all pairs at 28 and at 56."""
    _, axes = plt.subplots(4, 4, figsize=(8.4, 5.8))
    for row, (net, n) in enumerate((net, n) for net in RECIPES for n in (28, 56)):
        for ax, prior in zip(axes[row], PRIORS, strict=True):
            label = f"{NAMES[net]}, {n}²" if prior == "standard" else ""
            show(ax, sheet(drawn(found, net, prior, n, 6), 3), label)
            if row == 0:
                ax.set_title(prior, fontsize=10)


def draw_warning(found: Results) -> None:
    """Draw the loss and the distance at 56² over those at 28², for the pairs of the talk."""
    _, ax = plt.subplots(figsize=(5.6, 3.2))
    for i, net in enumerate(RECIPES):
        for k, prior in enumerate(PRIORS):
            runs = found.table[net, prior]
            loss, far = ([r["56"][w] / r["28"][w] for r in runs] for w in ("loss", "sw"))
            look: dict[str, Any] = {"color": plotting.COLORS[k], "marker": plotting.MARKERS[i]}
            ax.plot(loss, far, ls="", label=f"{NAMES[net]}, {prior}", **look)
    ax.set(xlabel="loss at 56² over that at 28²", ylabel="sliced distance, 56² over 28²")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def draw_factorial(found: Evidence) -> None:
    """Draw the 2 × 4 design: distances to images at 28 and at 56, with their spread."""
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.3))
    numbers = factorial.of_table(found.table), factorial.of_judged(found.judged)
    real = fmean(row["28"]["sw"] for row in found.baseline), fmean(found.real())
    labels = "sliced Wasserstein distance", "Fréchet distance"
    for ax, number, level, label in zip(axes, numbers, real, labels, strict=True):
        for i, net in enumerate(RECIPES):
            for k, prior in enumerate(PRIORS):
                values = [number(net, prior, n) for n in (28, 56)]
                look: dict[str, Any] = {"color": plotting.COLORS[k], "ls": ("-", "--")[i]}
                ends = [claims.spread_of(v) for v in values]
                look |= {"marker": plotting.MARKERS[i], "label": f"{NAMES[net]}, {prior}"}
                ax.errorbar((0, 1), [fmean(v) for v in values], yerr=ends, **look)
        ax.axhline(level, ls=":", c="black", lw=0.8)
        ax.set(yscale="log", ylabel=label)
        ax.set_xticks((0, 1), ("28²", "56²"))
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def draw_sheets(found: Evidence) -> None:
    """Draw the first samples that were judged, and frame those that are doubtful."""
    store, small = found.store, found.store.run == "smoke"
    net = digits.classifier(store, found.seed)
    _, axes = plt.subplots(1, 2, figsize=(8.4, 2.4))
    for ax, kind in zip(axes, RECIPES, strict=True):
        model, s = fitted(store, kind, "laplacian", found.seed), seeds_of(store, found.seed)[0]
        generator, Q = seeded(s, 10_000 + PIXELS), LAWS["laplacian"]
        noise = lambda Q=Q, g=generator: Q.sample(32, PIXELS, g)  # noqa: E731
        x = ancestral(model, noise, 2 if small else BEST["steps"])
        show(ax, sheet(x, 8))
        with torch.no_grad():
            unsure = (net(x).softmax(1).amax(1) <= digits.SURE).nonzero().flatten().tolist()
        for k in unsure:
            corner = (k % 8 * PIXELS, k // 8 * PIXELS)
            frame = Rectangle(corner, 26.5, 26.5, fill=False, ec=plotting.COLORS[1], lw=1.5)
            ax.add_patch(frame)
        ax.set_title(f"{NAMES[kind]}, {len(unsure)} of 32 framed", fontsize=9)


def draw_repaired(found: Results) -> None:
    """Draw samples of the FNO trained with pixel noise: at 56² with its noise, and with FIXED."""
    model, generator = found.models["fno", "standard"], seeded(0, 77)
    _, axes = plt.subplots(1, 2, figsize=(7.6, 0.9))
    for ax, Q in zip(axes, (LAWS["standard"], FIXED), strict=True):
        x = ancestral(model, lambda Q=Q: Q.sample(8, 2 * PIXELS, generator), found.steps)
        show(ax, sheet(x, 8))
    axes[0].set_title("pixels of variance 1", fontsize=9)
    axes[1].set_title("noise of the coarse grid", fontsize=9)


def log_densities(seed: int) -> str:
    """The mean log density per pixel of Laplacian noise on three grids, as a Markdown table."""
    Q, rows = LAWS["laplacian"], ["| n | log density per pixel |", "|---:|---:|"]
    for n in (28, 56, 112):
        mean = Q.log_prob(Q.sample(20, n, seeded(seed, 4)).double()).mean() / n**2
        rows.append(f"| {n} | {mean:.2f} |")
    return "\n".join(rows)
