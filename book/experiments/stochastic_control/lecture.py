"""What the lecture on control in a hundred dimensions draws, loaded or computed by one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ctdl_lib.control import feedback, rollout
from ctdl_lib.control.problem import Policy
from ctdl_lib.potentials import Potential
from machinery import claims, plotting
from machinery.store import Record, Run, Store, results_folder

from . import benchmark, evidence, shifted
from .benchmark import DEEP, LOW, OURS, RAISSI
from .evidence import LOSS, WHERE, Evidence
from .shifted import CHAPTER, CORNERS, PROBLEM, SEEDS, D
from .solvers import STEPS, idle, noise_of

SENTENCES = (
    "soc100.faster.fbsnn",
    "soc100shift.faster.equal_seconds",
    "soc100shift.half.phi.fbsnn",
    "soc100shift.half.cost.fbsnn",
    "soc100shift.sampling.penalties",
    "soc100shift.sampling.with_cost",
    "soc100shift.disguise",
)
LOOK: dict[str, int] = dict(
    zip((DEEP, RAISSI, LOW, OURS), range(4), strict=True)
)  # colours and markers


@dataclass(frozen=True)
class Results:
    """The numbers of the evidence, the corners with the first seed, and a corner's records."""

    evidence: Evidence
    corners: dict[tuple[str, str], Potential]
    walks: list[Record]  # of penalties on random walks, one a seed


def results(run: Run, device: str = "cpu", seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store, first = Store(CHAPTER, run), seed + SEEDS[0]
    corners = {at: shifted.fit(store, setting, first)[0] for at, setting in CORNERS.items()}
    walks = [shifted.fit(store, shifted.WALK_PENALTIES, s)[1] for s in shifted.few(store, seed)]
    return Results(evidence.gather(run, device, seed), corners, walks)


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def style(name: str) -> dict[str, Any]:
    """The colour and marker of a method."""
    k = LOOK[name]
    return {"color": plotting.COLORS[k], "marker": plotting.MARKERS[k], "markevery": 4}


# --- pictures that need no results --------------------------------------------------------------


def paths(problem: Any, policy: Policy, count: int, steps: int = STEPS, seed: int = 3) -> Tensor:
    """The nodes of some paths from the origin."""
    dW = noise_of(count, seed, steps=steps)
    return rollout(problem, policy, torch.zeros(count, D), steps=steps, dW=dW).x


def draw_two_problems() -> None:
    """Draw the distance to the target along paths without control and with the best one."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.1))
    problems = {"benchmark: target at the start": benchmark.problem(), "modified problem": PROBLEM}
    for ax, (title, problem) in zip(axes, problems.items(), strict=True):
        best = feedback(problem, problem.value())
        for k, (name, policy) in enumerate({"no control": idle, "best control": best}.items()):
            x = paths(problem, policy, 25, 100)
            far = (x - problem.target).norm(dim=2)
            t = torch.linspace(0, 1, len(x))
            look = {"color": plotting.COLORS[k], "lw": 0.7, "ls": ("-", "--")[k]}
            ax.plot(t, far[:, 1:], alpha=0.6, **look)
            ax.plot(t, far[:, 0], label=name, **look)
        ax.set(xlabel="t", title=title, ylim=(0, None))
        ax.title.set_fontsize(9)
    axes[0].set_ylabel("distance to the target in ℝ¹⁰⁰")
    axes[0].legend(fontsize=8)


def draw_value() -> None:
    """Draw the exact value functions over the distance to the target, at several times."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.0))
    reach, titles = (18.0, 36.0), ("benchmark", "modified problem")
    problems = (benchmark.problem(), PROBLEM)
    for ax, problem, top, title in zip(axes, problems, reach, titles, strict=True):
        value, r = problem.value(), torch.linspace(0, top, 181, dtype=torch.float64)
        x = problem.target.clone().repeat(len(r), 1)
        x[:, 0] += r
        for k, t in enumerate((0.0, 0.5, 0.9, 1.0)):
            look = {"color": plotting.COLORS[k], "marker": plotting.MARKERS[k], "markevery": 30}
            ax.plot(r, value(t, x), label=f"t = {t:g}", **look)
        ax.set(xlabel="distance to the target", title=title)
        ax.title.set_fontsize(9)
    axes[0].set_ylabel("Φ")
    axes[0].legend(fontsize=8)


def draw_live(losses: Sequence[float], phi: Potential, best: float) -> None:
    """Draw the cost while a feedback is trained, and distances to the target under it."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 2.9))
    axes[0].semilogy(losses, color=plotting.COLORS[3], label="its feedback")
    axes[0].axhline(best, color="black", ls="--", label="best of 20 steps")
    axes[0].set(xlabel="iteration", ylabel="cost")
    axes[0].legend(fontsize=8)
    exact = feedback(PROBLEM, PROBLEM.value())
    with torch.no_grad():
        for name, policy, k in (("learned", feedback(PROBLEM, phi), 3), ("best", exact, 1)):
            far = (paths(PROBLEM, policy, 64) - PROBLEM.target).norm(dim=2).mean(1)
            look = {"color": plotting.COLORS[k], "marker": plotting.MARKERS[k], "markevery": 4}
            axes[1].plot(torch.linspace(0, 1, len(far)), far, label=name, **look)
    axes[1].set(xlabel="t", ylabel="mean distance to the target", ylim=(0, None))
    axes[1].legend(fontsize=8)


# --- pictures of results ------------------------------------------------------------------------


def banded(ax: Axes, curves: Sequence[dict[str, list[float]]], key: str, name: str) -> None:
    """Draw the mean of curves over seeds in percent, with their extremes shaded."""
    values = 100 * torch.tensor([curve[key] for curve in curves], dtype=torch.float64)
    steps, look = curves[0]["steps"], style(name)
    ax.plot(steps, values.mean(0), label=name, **look)
    ax.fill_between(steps, values.amin(0), values.amax(0), color=look["color"], alpha=0.15, lw=0)


def draw_benchmark(found: Results) -> None:
    """Draw what is usually shown of the benchmark, and what it hides."""
    e = found.evidence
    _, axes = plt.subplots(1, 3, figsize=(9.6, 3.2))
    for name, curves in e.curves.items():
        for ax, key in zip(axes, ("phi0", "gradient", "saving"), strict=True):
            banded(ax, curves, key, name)
    axes[0].axhline(100 * (e.idle / e.best - 1), color="black", ls="--", label="doing nothing")
    axes[1].axhline(100, color="black", ls="--")
    axes[2].axhline(0, color="black", ls="--")
    axes[0].set(yscale="log", ylabel="error of Φ(0, 0) in %", ylim=(0.002, 100))
    axes[1].set(yscale="log", ylabel="error of ∇Φ in %")
    axes[2].set(ylabel="saving attained in %", ylim=(-100, 105))
    for ax in axes:
        ax.set_xlabel("iterations")
    axes[0].legend(fontsize=7)


def draw_corners(found: Results) -> None:
    """Draw the distances to the target under the feedbacks of the two-by-two table."""
    _, axes = plt.subplots(2, 2, figsize=(8.0, 4.6), sharex=True, sharey=True)
    exact = feedback(PROBLEM, PROBLEM.value())
    best = (paths(PROBLEM, exact, 16) - PROBLEM.target).norm(dim=2)
    t = torch.linspace(0, 1, len(best))
    for ax, ((where, loss), phi) in zip(axes.T.flat, found.corners.items(), strict=True):
        with torch.no_grad():
            x = paths(PROBLEM, feedback(PROBLEM, phi), 16)
        far = (x - PROBLEM.target).norm(dim=2)
        ax.plot(t, best, color=plotting.COLORS[1], lw=0.6, ls="--", alpha=0.7)
        ax.plot(t, far, color=plotting.COLORS[3 if where == "own" else 0], lw=0.7)
        cost = fmean(found.evidence.corners[where, loss])
        ax.set_title(f"{WHERE[where]}, {LOSS[loss]}: costs {cost:.0f}", fontsize=9)
        ax.set(ylim=(0, 60))
    for ax in axes[1]:
        ax.set_xlabel("t")
    for ax in axes[:, 0]:
        ax.set_ylabel("distance to target")


def draw_race(found: Results) -> None:
    """Draw cost and error of Φ on the modified problem against iterations and seconds."""
    e = found.evidence
    _, axes = plt.subplots(1, 3, figsize=(9.6, 3.2))
    best = e.bars["best"]["20"]
    for name, curves in e.tuned.items():
        mean = lambda key, curves=curves: torch.tensor([c[key] for c in curves]).mean(0)  # noqa: E731
        phi = torch.tensor([evidence.phi_errors(curve) for curve in curves]).mean(0)
        axes[0].plot(mean("steps"), mean("cost"), label=name, **style(name))
        axes[1].plot(mean("seconds"), mean("cost"), label=name, **style(name))
        axes[2].plot(mean("steps"), phi, label=name, **style(name))
    for ax, label in zip(axes, ("iterations", "seconds of training", "iterations"), strict=True):
        ax.set(yscale="log", xlabel=label)
    for ax in axes[:2]:
        ax.axhline(best, color="black", ls="--", label="best")
        ax.axhline(e.bars["idle"], color="grey", ls=":", label="doing nothing")
        ax.set_ylabel("cost of the feedback")
    axes[2].axhline(100, color="black", ls="--")
    axes[2].set_ylabel("error of Φ in %")
    axes[1].legend(fontsize=7)


def draw_disguise(found: Results) -> None:
    """Draw costs by the number of steps: best, exact and linear–quadratic feedback, learned."""
    e = found.evidence
    _, ax = plt.subplots(figsize=(6.4, 3.0))
    n = [int(key) for key in e.bars["best"]]
    for k, (kind, says) in enumerate(
        {"best": "best", "exact": "exact Φ", "linear": "linear–quadratic"}.items()
    ):
        look = {"color": plotting.COLORS[k], "marker": plotting.MARKERS[k], "ms": 9 - 2 * k}
        ax.plot(n, list(e.bars[kind].values()), label=says, **look)
    ax.plot(20, fmean(e.costs[shifted.OWN.name]), "D", color=plotting.COLORS[3], label="learned")
    ax.axhline(shifted.exact_start(), color="black", ls="--", label="Φ(0, 0), time continuous")
    ax.set(xlabel="steps", ylabel="cost", xticks=n)
    ax.legend(fontsize=8)


def cost(problem: Any, policy: Policy, count: int = 200) -> float:
    """The mean cost of a policy from the origin with 20 steps, on the same noise for all."""
    x, dW = torch.zeros(count, D), noise_of(count, 5)
    return float(rollout(problem, policy, x, steps=STEPS, dW=dW).cost.mean())


def draw_trap(found: Results) -> None:
    """Draw how the penalties on random walks fall, and what the feedback costs meanwhile."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 2.9))
    curves = found.evidence.corner_curves["walk", "penalties"]
    for k, (record, curve) in enumerate(zip(found.walks, curves, strict=True)):
        iterations = record.every * (torch.arange(len(record.losses)) + 0.5)
        axes[0].plot(iterations, record.losses, color=plotting.COLORS[0], alpha=1 - 0.25 * k)
        look = {"marker": plotting.MARKERS[k], "alpha": 1 - 0.25 * k}
        axes[1].plot(curve["steps"], curve["cost"], color=plotting.COLORS[0], **look)
    axes[1].axhline(found.evidence.bars["idle"], color="grey", ls=":", label="doing nothing")
    axes[0].set(xlabel="iterations", ylabel="penalties", ylim=(0, None))
    axes[1].set(xlabel="iterations", ylabel="cost of the feedback", ylim=(0, None))
    axes[1].legend(fontsize=8)
