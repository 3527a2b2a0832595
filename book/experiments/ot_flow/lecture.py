"""What the lecture on OT-Flow draws, loaded or trained by one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ctdl_lib.generative import Flow
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.densities import TOYS
from machinery import claims, plotting
from machinery.store import Run, Store, device_of, results_folder

from . import densities, race, steps

CHAPTER = "07_ot_flow"
COUNTS = (1, 2, 4, 8, 16)
SENTENCES = (
    "otflow.8gaussians.gap",
    "otflow.2spirals.gap",
    "otflow.rivals.otflow.bend",
    "otflow.rivals.otflow.beyond_potential",
    "otflow.hjb.straighter",
    "otflow.sampling_speedup_vs_ffjord",
)


@dataclass(frozen=True)
class Results:
    """The stored flows of one seed, and the gaps and the ablation over all seeds."""

    flows: dict[str, Flow]
    equally_likely: dict[str, Flow]
    gaps: list[densities.Gap]
    ablation: dict[str, list[steps.Row]]
    points: int

    @property
    def least_of_ablation(self) -> float:
        """The least possible NLL at the points on which the ablation is judged."""
        return densities.mean_nll(TOYS["8gaussians"], densities.held_out("8gaussians", self.points))

    def gap_table(self) -> str:
        """The gaps of all flows above the least possible NLL, as a Markdown table."""
        names = list(self.flows)
        found = {name: [row for row in self.gaps if row.density == name] for name in names}
        least = " | ".join(f"{rows[0].least:.2f}" for rows in found.values())
        means = " | ".join(f"{sum(r.gap for r in rows) / len(rows):.3f}" for rows in found.values())
        rule = "|---|" + "---:|" * len(names)
        head = f"| nats | {' | '.join(names)} |\n{rule}"
        return f"{head}\n| least NLL | {least} |\n| gap, mean over seeds | {means} |"


def results(run: Run, device: str = "cpu", seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store = Store(CHAPTER, run)
    device = device_of(device)
    few, points = (1, steps.SMOKE_POINTS) if run == "smoke" else (None, densities.POINTS)
    seeds = [seed + s for s in steps.SEEDS[:few]]
    names = ("FFJORD", "OT-Flow")
    return Results(
        flows={
            name: densities.fit(store, name, densities.seeds_of(name, seed)[0], device)
            for name in TOYS
        },
        equally_likely={name: race.compete(store, name, seeds[0])[0] for name in names},
        gaps=densities.gaps(store, seed, few, points, device),
        ablation=steps.ablation(store, seeds, device),
        points=points,
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def draw_straight(found: Results, x: Tensor) -> None:
    """Draw the paths of data points by two flows that explain the data nearly equally well."""
    _, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), sharey=True)
    for ax, (name, flow) in zip(axes, found.equally_likely.items(), strict=True):
        path = flow(x, save_at=torch.linspace(0, 1, 33))
        ax.plot(*path.permute(2, 0, 1), lw=0.7, c=plotting.COLORS[0])
        ax.plot(*path[0].T, "o", ms=2.5, c="black")
        ax.plot(*path[-1].T, ".", c=plotting.COLORS[1])
        ax.set(xlabel=name, xticks=[], yticks=[], aspect="equal")


def draw_exact() -> None:
    """Draw the potential −½x²/(1 + t) and its characteristics."""
    t, x = torch.linspace(0, 1, 60), torch.linspace(-2.4, 2.4, 121)
    fig, ax = plt.subplots(figsize=(6.4, 3.0))
    shades = ax.contourf(t, x, -0.5 * x[:, None] ** 2 / (1 + t), levels=24)
    for start in torch.linspace(-1.1, 1.1, 11):
        ax.plot(t, (1 + t) * start, c="white", lw=1.2)
    fig.colorbar(shades, label="potential")
    ax.set(xlabel="time t", ylabel="position x", ylim=(-2.4, 2.4))


def draw_live(
    curve: Sequence[Mapping[str, float]],
    snapshots: Mapping[int, Mapping[str, Tensor]],
    phi: ResNetPotential,
    least: float,
    weight: float = 30.0,
) -> None:
    """Draw the terms of the live training, and the densities of the potential on its way."""
    _, axes = plt.subplots(1, 4, figsize=(8.4, 2.5), width_ratios=(1.6, 1, 1, 1))
    for name in curve[0]:
        axes[0].plot([terms[name] for terms in curve], label=name)
    axes[0].axhline(weight * least, ls="--", c="black", lw=0.8)
    axes[0].set(xlabel="step", ylabel="term of the objective", yscale="log")
    axes[0].legend(fontsize=7)
    side = torch.linspace(-4, 4, 70)
    for ax, (k, state) in zip(axes[1:], snapshots.items(), strict=False):
        phi.load_state_dict(state)
        flow = Flow(phi.requires_grad_(False), 2, solver={"steps": 8}, standardize=False)
        density = flow.log_prob(torch.cartesian_prod(side, side)).exp().reshape(70, 70)
        ax.pcolormesh(side, side, density.T, rasterized=True)
        ax.set(xticks=[], yticks=[], xlabel=f"{k} steps", aspect="equal")


def paths(ax: Axes, flow: Flow, x: Tensor, times: Tensor) -> None:
    """Draw the paths of points to the reference, with a dot at their ends."""
    path = flow(x, save_at=times)
    ax.plot(*path.permute(2, 0, 1), lw=0.6, c=plotting.COLORS[0])
    ax.plot(*path[-1].T, ".", ms=2, c=plotting.COLORS[1])


def draw_densities(found: Results, seeded: Callable[[int], torch.Generator]) -> None:
    """Draw all learned densities side by side."""
    _, axes = plt.subplots(4, len(found.flows), figsize=(8.4, 5.1))
    for column, (name, flow) in zip(axes.T, found.flows.items(), strict=True):
        draw_density(column, name, flow, seeded)


def draw_density(
    column: Sequence[Axes] | np.ndarray,
    name: str,
    flow: Flow,
    seeded: Callable[[int], torch.Generator],
) -> None:
    """Draw samples of the data, the learned density, its samples, and paths to the reference."""
    R, side = (4.2 if name in ("checkerboard", "circles") else 3.8), 60
    axis = torch.linspace(-R, R, side)
    flow = densities.solved(flow, steps=16)
    density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(side, side)
    data = densities.held_out(name, 1500)
    for ax, dots in ((column[0], data), (column[2], flow.sample(1500, seeded(0)))):
        ax.scatter(*dots.T, s=0.4, c="black", linewidths=0, rasterized=True)
    column[1].pcolormesh(axis, axis, density.T, rasterized=True)
    paths(column[3], flow, data[:40], torch.linspace(0, 1, 9))
    for ax in column:
        ax.set(xlim=(-R, R), ylim=(-R, R), xticks=[], yticks=[], aspect="equal")
    column[0].xaxis.set_label_position("top")
    column[0].set_xlabel(name)


def draw_steps(found: Results) -> None:
    """Draw gaps against steps of a solve, and what training believed beside what is true."""
    _, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.0))
    x = densities.held_out("8gaussians", found.points)[:2000]
    least = densities.mean_nll(TOYS["8gaussians"], x)
    for (name, flow), marker in zip(found.equally_likely.items(), plotting.MARKERS, strict=False):
        rows = steps.by_steps([flow], x, COUNTS)
        gaps = [row.nll[0] - least for row in rows]
        left.plot(COUNTS, gaps, marker=marker, label=name)
    left.set(xlabel="Runge–Kutta steps", ylabel="gap (nats)", xscale="log")
    left.set_xticks(COUNTS, [str(n) for n in COUNTS])
    left.legend()
    _draw_beliefs(right, found.ablation, found.least_of_ablation)


def _draw_beliefs(ax: Axes, ablation: dict[str, list[steps.Row]], least: float) -> None:
    labels: list[str] = []
    for i, (name, rows) in enumerate(item for item in ablation.items() if "steps" in item[0]):
        labels.append(name.replace(" steps", "").replace(", ", "\n"))
        for j, row in enumerate(rows):
            at: dict[str, Any] = {"label": None if i or j else "believed in training"}
            ax.plot(i - 0.12, row.believed - least, plotting.MARKERS[0], c=plotting.COLORS[0], **at)
            at = {"label": None if i or j else "by a fine solve"}
            ax.plot(i + 0.12, row.true - least, plotting.MARKERS[1], c=plotting.COLORS[1], **at)
    ax.axhline(0, c="black", lw=0.8)
    ax.set_xticks(range(len(labels)), labels)
    ax.set(yscale="symlog", ylabel="gap (nats)", xlabel="penalty β and steps in training")
    ax.legend()
