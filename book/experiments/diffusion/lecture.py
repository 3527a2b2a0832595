"""What the lecture on score-based diffusion draws, loaded or computed by one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ctdl_lib.generative import Flow
from ctdl_lib.problems.densities import TOYS, Mixture
from machinery import claims, plotting
from machinery.seeds import seeded
from machinery.store import Run, Store, device_of, results_folder

from . import control, family, learned, race, samplers, training
from .laws import DOUBLE, MixtureScore, Surprise, noisy
from .samplers import EULER, HEUN, LINE, MEAN, SUM

SENTENCES = (
    "sbdm.score.error",
    "sbdm.samples.distance",
    "sbdm.samples.spoiled",
    "sbdm.likelihood",
    "sbdm.control.cost",
    "sbdm.own_grids",
    "sbdm.grid.best",
    "sbdm.class.distance",
)
SHOWN = (EULER, SUM, MEAN, LINE, HEUN)
LINE_LAW = Mixture(  # the three parts of the pictures on the line
    torch.tensor([0.3, 0.5, 0.2], **DOUBLE),
    torch.tensor([[-1.5], [0.2], [1.4]], **DOUBLE),
    torch.tensor([[0.12], [0.2], [0.08]], **DOUBLE),
)
REACH = 2.8


@dataclass(frozen=True)
class Results:
    """The stored flows, one a density, the race of samplers and the smoke of a trial run."""

    flows: dict[str, Flow]
    race: race.Race
    smoke: bool


def results(run: Run, device: str = "cpu", seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store, first = Store(training.CHAPTER, run), seed + training.SEEDS[0]
    flows = {name: training.fit(store, name, first, device_of(device))[0] for name in TOYS}
    return Results(flows, race.race(store, seed), run == "smoke")


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{training.CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def shade(ax: Axes, p: Mixture, times: Tensor, laws: Sequence[Mixture]) -> None:
    """Fill the strip with the square root of a density that changes with time."""
    axis = torch.linspace(-REACH, REACH, 141, **DOUBLE)
    values = torch.stack([q.log_prob(axis[:, None]) for q in laws], 1).exp().sqrt()
    ax.pcolormesh(
        times.numpy(), axis.numpy(), values.numpy(), cmap="Greys", vmax=1.3, rasterized=True
    )
    ax.set(ylim=(-REACH, REACH), xlim=(0, 1), xlabel="t")
    ax.grid(False)


def draw_strip() -> None:
    """Draw the densities p_t, paths of noise going in, and paths of the reversed equation."""
    p, times = LINE_LAW, torch.linspace(0, 1, 121, **DOUBLE)
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.8), sharey=True)
    for ax in axes:
        shade(ax, p, times, [noisy(p, t) for t in times])
    steps, generator = 300, seeded(1, 0)
    t = torch.linspace(0, 1, steps + 1, **DOUBLE)
    x = [p.sample(8, generator, **DOUBLE)]
    for k in range(steps):
        keep = training.SCHEDULE.a(t[k + 1]) / training.SCHEDULE.a(t[k])
        noise = torch.randn(8, 1, generator=generator, **DOUBLE)
        x.append(keep * x[-1] + torch.sqrt(1 - keep**2) * noise)
    axes[0].plot(t, torch.cat(x, 1).T, lw=0.7, c=plotting.COLORS[0])
    start = torch.randn(8, 1, generator=seeded(2, 0), **DOUBLE)
    noise = lambda x: torch.randn(x.shape, generator=generator, **DOUBLE)  # noqa: E731
    for ax, name, color in zip(axes[1:], (EULER, HEUN), plotting.COLORS[1:], strict=False):
        grid = samplers.grid("√t", 300, 0.003)
        found = list(samplers.states(name, MixtureScore(p), start, grid, noise))
        path = torch.cat([x for _, x in found], 1)
        ax.plot([t for t, _ in found], path.T, lw=0.7, c=color)
    for ax, title in zip(axes, ("noise in →", "← noise out", "← probability flow"), strict=True):
        ax.set_title(title, fontsize=9)
    axes[0].set_ylabel("x")


def draw_live(curve: Sequence[float], data: Tensor, found: Sequence[Tensor]) -> None:
    """Draw the loss of a training, the data, and what the score of each label samples."""
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.5), width_ratios=(1.4, 1, 1))
    axes[0].plot(curve, lw=0.6, c="0.7")
    smooth = torch.tensor(curve).unfold(0, min(50, len(curve)), 1).mean(1)
    axes[0].plot(range(len(curve) - len(smooth), len(curve)), smooth)
    axes[0].set(xlabel="step", ylabel="loss", ylim=(0.3, 0.6))
    axes[1].scatter(*data.T, s=0.6, c="black", linewidths=0, rasterized=True)
    for k, dots in enumerate(found):
        style = {"s": 1.5, "c": plotting.COLORS[k], "linewidths": 0, "rasterized": True}
        axes[2].scatter(*dots.T, **style)
    for ax, title in zip(axes[1:], ("data", "samples, by label"), strict=True):
        ax.set(xticks=[], yticks=[], aspect="equal", xlabel=title, xlim=(-4, 4), ylim=(-3, 3))


def draw_control() -> None:
    """Draw the value function, and paths from one point by controls of three strengths."""
    p, times = LINE_LAW, torch.linspace(0.002, 1, 121, **DOUBLE)
    axis = torch.linspace(-REACH, REACH, 141, **DOUBLE)
    each = [Surprise(p)(t.expand(len(axis)), axis[:, None]) for t in times]
    phi = torch.stack(each, 1).clamp(max=6)
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.8), sharey=True)
    x = torch.full((200, 1), 0.8, **DOUBLE)
    for ax, scale in zip(axes, (0.5, 1.0, 1.5), strict=True):
        strip = times.numpy(), axis.numpy(), phi.numpy()
        drawn = ax.pcolormesh(*strip, cmap="cividis_r", rasterized=True)
        found = control.controlled(p, control.scaled(p, scale), x, seeded(3, 0), 400)
        ax.plot(found.t, found.x[:, :12, 0], lw=0.6, c="white")
        ax.plot(1, 0.8, "o", c=plotting.COLORS[1], ms=5)
        ax.set(xlim=(0, 1.02), ylim=(-REACH, REACH), xlabel="t")
        ax.set_title(f"{scale:g} × control: costs {found.excess.mean():.1f} more", fontsize=9)
        ax.grid(False)
    axes[0].set_ylabel("x")
    axes[0].figure.colorbar(drawn, ax=axes, label="Φ = −log p")


def draw_race(found: Results) -> None:
    """Draw the errors of samplers against evaluations: on equal steps, and on own grids."""
    race, budgets = found.race, found.race.budgets
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.3), sharey=True)
    for name, marker, color in zip(SHOWN, plotting.MARKERS, plotting.COLORS, strict=False):
        style = {"marker": marker, "c": color, "label": name}
        equal = [fmean(race.errors[name]["t"][n]) for n in budgets]
        axes[0].loglog(budgets, equal, **style)
        axes[1].loglog(budgets, [fmean(race.own(name, n)) for n in budgets], **style)
    for ax, title in zip(axes, ("steps even in t", "own grid"), strict=True):
        ax.axhline(fmean(race.floor), ls=":", c="black")
        ax.set(xlabel="evaluations of the score", title=title)
        ax.set_xticks(budgets, [f"{n}" for n in budgets])
        ax.minorticks_off()
    axes[0].set_ylabel("W₁")
    axes[0].legend(fontsize=7, loc="lower left")


@torch.no_grad()
def draw_seven(found: Results) -> None:
    """Draw data and samples of seven densities, by 31 evaluations of their learned scores."""
    _, axes = plt.subplots(2, 7, figsize=(8.6, 2.7))
    n = found.race.budgets[-1] if found.smoke else learned.BUDGET
    kind = found.race.chosen[HEUN][n]
    times = race.times_of(HEUN, kind, n, found.race.last[HEUN][kind][n])
    for column, (name, flow) in zip(axes.T, found.flows.items(), strict=True):
        score = training.score_of(flow)
        x = flow.data.inverse(learned.drawn(score, 1500, times, HEUN, 0))
        for ax, dots in zip(column, (TOYS[name].sample(1500, seeded(99, 0)), x), strict=True):
            ax.scatter(*dots.T, s=0.4, c="black", linewidths=0, rasterized=True)
            ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-4.2, 4.2), ylim=(-4.2, 4.2))
        column[0].set_title(name, fontsize=8)
    axes[0, 0].set_ylabel("data")
    axes[1, 0].set_ylabel("samples")


def draw_family() -> None:
    """Draw densities and paths of three interpolants that carry the same noise to the same data."""
    p, eta = LINE_LAW, torch.linspace(-1.9, 1.9, 11, **DOUBLE)[:, None]
    times = torch.linspace(0, 1, 121, **DOUBLE)
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.8), sharey=True)
    for ax, (name, path) in zip(axes, family.PATHS.items(), strict=True):
        laws = []
        for alpha, gamma in ((path.alpha(t), path.gamma(t)) for t in times):
            std = (alpha**2 * p.std**2 + gamma**2).sqrt()
            laws.append(Mixture(p.weights, alpha * p.means, std))
        shade(ax, p, times, laws)
        t, x = family.solved(name, MixtureScore(p), eta, save=120, tol=1e-6)
        ax.plot(t, x[:, :, 0], lw=0.9, c=plotting.COLORS[2])
        ax.set_title(name, fontsize=9)
    axes[0].set_ylabel("x")


def draw_copies(found: Results) -> None:
    """Draw samples by the perfect score of 30 points, of the density, and by a learned score."""
    name, flow = "moons", found.flows["moons"]
    few, times = TOYS[name].sample(30, seeded(5, 0), **DOUBLE), samplers.grid("√t", 40, 0.003)
    few = flow.data(few.float()).double()
    spots = Mixture(torch.full((30,), 1 / 30, **DOUBLE), few, torch.full((30, 2), 1e-4, **DOUBLE))
    scores = {
        "perfect score of 30 points": MixtureScore(spots),
        "learned score": lambda t, x: training.score_of(flow)(t, x.float()).double(),
    }
    _, axes = plt.subplots(1, 2, figsize=(6.6, 2.6), sharey=True)
    noise = torch.randn(400, 2, generator=seeded(6, 0), **DOUBLE)
    for ax, (title, score) in zip(axes, scores.items(), strict=True):
        x = samplers.sample(HEUN, score, noise, times)
        ax.plot(*few.T, "o", ms=7, mfc="none", c=plotting.COLORS[1], label="the 30 points")
        ax.plot(*x.T, ".", ms=2, c="black", label="400 samples")
        ax.set(xticks=[], yticks=[], aspect="equal", title=title)
    axes[0].legend(fontsize=7, loc="lower left")
