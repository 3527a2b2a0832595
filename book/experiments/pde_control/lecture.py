"""What the lecture on amortized PDE control draws, loaded or computed by one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ctdl_lib.control import rollout
from machinery import claims, plotting
from machinery.store import Run, Store, results_folder

from . import evidence, fits, judging
from .fits import CHAPTER, NAMES, SLICE, Fit, Search
from .learners import STEPS
from .mitigation import SourceMitigation, best_openings
from .networks import Policy, steering

SENTENCES = (
    "pdecontrol.accuracy.ppo",
    "pdecontrol.fewer.ppo",
    "pdecontrol.intrusive",
    "pdecontrol.tuning.ppo.hjb",
    "pdecontrol.hjb.height",
    "pdecontrol.split.height",
)
COLORS = dict(zip(NAMES, plotting.COLORS, strict=False))
TICKS = (2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Results:
    """The fits by method, and the values at the start of all value functions."""

    fitted: dict[str, list[Fit]]
    heights: dict[str, dict[str, Any]]
    judge: fits.Exam

    def model(self, kind: str) -> Any:
        """The model of the first seed."""
        return self.fitted[kind][0].model


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store = Store(CHAPTER, run)
    searches = {kind: fits.search(store, kind, seed) for kind in fits.SPACES}
    fitted = evidence.trained(store, searches, seed)
    valued = [f for kind in evidence.VALUED for f in fitted[kind]]
    heights = judging.heights(store, valued, seed)
    return Results(fitted, heights, fits.final_exam(seed, run == "smoke"))


def verdicts() -> str:
    """What the evidence says of the slide's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


# --- one basin ----------------------------------------------------------------------------------


def shown(found: Results) -> tuple[int, SourceMitigation]:
    """The test basin in which the best plan halves the cost, most nearly."""
    problem = found.judge.problem
    shut = rollout(problem, _shut, problem.start, steps=STEPS).cost
    k = int((found.judge.best / shut - 0.5).abs().argmin())
    basins = type(problem.basins)(*(part[k : k + 1] for part in problem.basins))
    return k, SourceMitigation(basins)


def _shut(t: Any, x: Tensor) -> Tensor:
    return 0 * x[:, :1]


@torch.no_grad()
def steered(problem: SourceMitigation, policy: Policy) -> tuple[Tensor, Tensor]:
    """The states (26, n), and the openings (25), of a policy in one basin."""
    path = rollout(problem, policy, problem.start.float(), steps=STEPS)
    pairs = zip(path.t[:-1], path.x[:-1], strict=True)
    return path.x[:, 0], torch.cat([policy(t, x)[:, 0] for t, x in pairs])


def rows_of(field: Tensor) -> np.ndarray:
    """The nodal values as an image whose rows are y: the nodes of the mesh run along y first."""
    return field.detach().view(17, 17).T.numpy()


def draw_field(ax: Axes, problem: SourceMitigation, x: Tensor, top: float) -> None:
    """Draw a concentration, the stream, the source (triangle) and the drain (circle)."""
    look: dict[str, Any] = {"origin": "lower", "extent": (0, 1, 0, 1), "vmin": 0, "vmax": top}
    ax.imshow(rows_of(x), cmap="Blues", interpolation="bicubic", **look)
    s = np.linspace(0, 1, 17)
    along, across = map(rows_of, problem.images[0, :2].reshape(2, -1))
    style = {"color": "0.45", "density": 0.45, "linewidth": 0.5, "arrowsize": 0.5}
    ax.streamplot(s, s, along, across, **style)
    ax.plot(*problem.basins.source[0], "^", c=plotting.COLORS[1], ms=6)
    ax.plot(*problem.basins.sink[0], "o", c="black", ms=5)
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
    ax.grid(False)


def draw_strip(found: Results) -> None:
    """Draw a basin over time with the drain shut, with the drain steered, and its opening."""
    _, problem = shown(found)
    still, _ = steered(problem, _shut)
    x, a = steered(problem, steering("hjb", found.model("hjb"), problem))
    top, nodes = float(still.max()), (3, 8, 13, 19, 25)
    fig = plt.figure(figsize=(8.2, 4.6))
    grid = fig.add_gridspec(3, len(nodes), height_ratios=(1, 1, 0.5))
    for row, (name, states) in enumerate((("drain shut", still), ("steered", x))):
        for column, k in enumerate(nodes):
            ax = fig.add_subplot(grid[row, column])
            draw_field(ax, problem, states[k], top)
            if row == 0:
                ax.set_title(f"t = {k / STEPS:.2f}", fontsize=9)
            if column == 0:
                ax.set_ylabel(name)
    ax = fig.add_subplot(grid[2, :])
    ax.step(np.arange(STEPS) / STEPS, a, where="post", c=plotting.COLORS[0])
    for k in nodes:
        ax.axvline(k / STEPS, c="0.7", lw=0.8, ls=":")
    ax.set(xlabel="t", ylabel="opening a", xlim=(0, 1.005), ylim=(0, 1.1 * float(a.max())))


def draw_openings(found: Results) -> None:
    """Draw the best plan of a basin and what the policies do there."""
    _, problem = shown(found)
    t = np.arange(STEPS) / STEPS
    _, axes = plt.subplots(1, 2, figsize=(8.2, 2.9), sharey=True)
    plan = best_openings(problem).controls[0]
    for ax, kinds in zip(axes, (("policy", "hjb"), ("ppo", "td3")), strict=True):
        ax.step(t, plan, where="post", c="black", lw=2, label="best plan")
        for kind in kinds:
            _, a = steered(problem, steering(kind, found.model(kind), problem))
            ax.step(t, a, where="post", c=COLORS[kind], lw=1.2, label=NAMES[kind])
        ax.set_xlabel("t")
        ax.legend(fontsize=7)
    axes[0].set_ylabel("opening a")


# --- learning -----------------------------------------------------------------------------------


def draw_live(spent: Sequence[float], exams: Sequence[tuple[int, float]]) -> None:
    """Draw the costs of a training, basin by basin, and its exams."""
    _, axes = plt.subplots(1, 2, figsize=(8.2, 2.6))
    axes[0].plot(spent, lw=0.8, c=COLORS["policy"])
    axes[0].set(xlabel="iteration", ylabel="mean cost of 8 basins", yscale="log")
    axes[1].plot(*zip(*exams, strict=True), "-o", c=COLORS["policy"])
    axes[1].set(xlabel="PDE solves", ylabel="suboptimality in %", yscale="log")
    _percent(axes[1])


def _percent(ax: Axes) -> None:
    ax.set_yticks(TICKS, [f"{tick}" for tick in TICKS])
    ax.minorticks_off()


def parts(curves: Sequence[Sequence[float]]) -> list[tuple[int, np.ndarray]]:
    """The curves of all seeds as far as all go, then of those that go on, with their beginning."""
    short = min(map(len, curves))
    found = [(0, np.array([curve[:short] for curve in curves]))]
    further = [curve[short - 1 :] for curve in curves if len(curve) > short]
    return [*found, (short - 1, np.array(further))] if further else found


def draw_curves(found: Results) -> None:
    """Draw suboptimality against solves: means over seeds, and bands between the extremes."""
    _, ax = plt.subplots(figsize=(7.4, 3.8))
    for kind, name in NAMES.items():
        for begin, rows in parts([f.exams for f in found.fitted[kind]]):
            solves = SLICE * (1 + begin + np.arange(rows.shape[1]))
            label = None if begin else name
            ax.plot(solves, rows.mean(0), c=COLORS[kind], label=label)
            ax.fill_between(solves, rows.min(0), rows.max(0), color=COLORS[kind], alpha=0.18, lw=0)
    problem = found.judge.problem
    shut = rollout(problem, _shut, problem.start, steps=STEPS).cost.double()
    ax.axhline(fits.suboptimality(shut, found.judge.best), c="black", ls="--", lw=1)
    ax.set(xscale="log", yscale="log", xlabel="PDE solves", ylabel="suboptimality in %")
    _percent(ax)
    ax.legend(fontsize=8)


def draw_heights(found: Results) -> None:
    """Draw the learned values at the start against the least costs."""
    best = found.judge.best
    _, axes = plt.subplots(1, 2, figsize=(7.4, 3.3), sharey=True, sharex=True)
    for ax, (kind, title) in zip(
        axes, (("hjb", "one network"), ("split", "height apart")), strict=True
    ):
        ax.plot([0, 2.6], [0, 2.6], c="black", lw=0.8)
        for f, marker in zip(found.fitted[kind], plotting.MARKERS, strict=False):
            row = found.heights[f.name]
            ax.plot(best, row["values"], marker, ms=3, label=f.name.split("-")[-1], alpha=0.7)
        error = fmean(found.heights[f.name]["error"] for f in found.fitted[kind])
        ax.set(xlabel="least cost", title=f"{title}: off by {error:.0f} %")
        ax.legend(fontsize=7, title="seed")
    axes[0].set_ylabel("Φ(0, 0; y)")


def draw_search(searches: dict[str, Search]) -> None:
    """Draw what eight random settings of each method lose after 32,000 solves."""
    _, ax = plt.subplots(figsize=(6.2, 3.0))
    for i, (kind, name) in enumerate(NAMES.items()):
        marks = sorted(fmean(curve[-4:]) for curve in searches[kind].curves)
        spots = i + np.linspace(-0.2, 0.2, len(marks))
        ax.plot(spots, marks, plotting.MARKERS[i], color=COLORS[kind], label=name)
    ax.set(yscale="log", ylabel="suboptimality in %")
    ax.set_xticks(range(4), list(NAMES.values()))
    _percent(ax)
