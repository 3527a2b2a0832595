"""What the lecture on optimal control draws, loaded or computed by one call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ctdl_lib.problems.classification import ellipses
from machinery import claims, plotting
from machinery.store import Run, Store, results_folder

from . import bits, evidence, pontryagin, principle, solvers, sweeps

SENTENCES = (
    "control.pmp.gap",
    "control.pmp.polish",
    "control.hamiltonian.constant",
    "control.msa.extended.accuracy",
    "control.msa.extended.adam",
    "control.bits.rounded",
    "control.bits.straight_through",
    "control.varpro.lbfgs",
    "control.steps.tanh",
)


@dataclass(frozen=True)
class Results:
    """What the chapter has trained, over all seeds."""

    checks: list[dict[str, principle.Judged]]
    linear: list[principle.Limit]
    sweeps: dict[str, Any]
    bits: dict[str, list[float]]
    seed: int
    quick: bool


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, computed or tried out as `run` says.

    All networks are small and stay on the CPU.
    """
    store, few = Store(evidence.CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in principle.SEEDS[:few]]
    return Results(
        checks=principle.checks(store, seeds),
        linear=principle.limits(store, "linear", seeds),
        sweeps=sweeps.races(store, seeds),
        bits=bits.accuracies(store, seeds),
        seed=seeds[0],
        quick=few is not None,
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def trained(seed: int, iterations: int) -> tuple[pontryagin.TrainingProblem, Tensor]:
    """A ResNet of 16 layers in ℝ³, trained by L-BFGS."""
    problem = principle.pose(pontryagin.tanh_layer, seed, 16, 5.0)
    start = principle.noise(seed, 1).repeat(16, 1, 1)
    return problem, solvers.solve(problem, start, iterations=iterations)


def gap_table(problem: pontryagin.TrainingProblem, weights: Mapping[str, Tensor], seed: int) -> str:
    """The objectives and gaps of some controls, as a Markdown table."""
    lines = ["| weights | J | gap |", "|---|---:|---:|"]
    for name, theta in weights.items():
        found = principle.judge(problem, theta, seed)
        lines.append(f"| {name} | {found.J:.2f} | {found.gap:.2f} |")
    return "\n".join(lines)


def damping_table(runs: Mapping[float, Sequence[float]]) -> str:
    """The first, largest and last objective of sweeps with each damping, as a Markdown table."""
    lines = ["| δ | objective at first | largest of eight sweeps | last |"]
    lines.append("|---:|---:|---:|---:|")
    for damping, losses in runs.items():
        cells = losses[0], max(losses[1:]), losses[-1]
        lines.append(f"| {damping:g} | " + " | ".join(f"{J:.1f}" for J in cells) + " |")
    return "\n".join(lines)


def draw_panels(found: Results) -> None:
    """Draw data, features on their way with costates, and the classified plane."""
    problem, theta = trained(found.seed, 5 if found.quick else 150)
    data = ellipses(found.seed, train=200).train
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(8.8, 3.0))
    plotting.scatter(left, data.y, data.label)
    left.set(xlabel="data")
    u, p = (part[..., (1, 2)] for part in pontryagin.costates(problem, theta))
    for label in (0, 1):
        for k in (data.label == label).nonzero()[:60:5, 0].tolist():
            color = plotting.COLORS[label]
            middle.plot(*u[:, k].T, color=color, lw=0.8)
            middle.plot(*u[-1, k], plotting.MARKERS[label], color=color, ms=4)
            few = slice(0, None, 5)
            middle.quiver(
                *u[few, k].T, *-p[few, k].T, color=color, width=0.004, scale=60, headwidth=5
            )
    middle.axhline(0, color="black", lw=0.8)
    middle.set(xlabel="features on their way, $u_2$ and $u_3$")

    def classify(y: Tensor) -> Tensor:
        u = y.double() @ torch.eye(2, 3, dtype=torch.float64)
        for K in theta:
            u = u + problem.h * pontryagin.tanh_layer(u, K)
        return (u[:, 2] > 0).long()

    plotting.regions(right, classify, plotting.extent_of(data.y))
    plotting.scatter(right, data.y, data.label)
    right.set(xlabel="classes")


def draw_needles(found: Results) -> None:
    """Draw H of the layer with the largest gap between its own weights and better ones."""
    _, ax = plt.subplots(figsize=(6.0, 2.8))
    problem, theta = trained(found.seed, 5 if found.quick else 1000)
    extremal = pontryagin.costates(problem, theta)
    starts = (theta, *principle.others(theta, found.seed))
    trials = [pontryagin.minimize_hamiltonian(problem, extremal, s).theta for s in starts]
    H = torch.stack([pontryagin.hamiltonian(problem, extremal, trial) for trial in trials])
    layer = int((pontryagin.hamiltonian(problem, extremal, theta) - H.amin(0)).argmax())
    best = trials[int(H[:, layer].argmin())]
    line = torch.linspace(-0.3, 1.3, 161, dtype=torch.float64)
    values = []
    for s in line.tolist():
        mixed = theta + s * (best - theta)
        values.append(pontryagin.hamiltonian(problem, extremal, mixed)[layer].item())
    ax.plot(line, values)
    for s, marker, label in ((0, "o", "trained"), (1, "^", "least value found")):
        value = values[int((line - s).abs().argmin())]
        ax.plot(s, value, marker, ms=7, color=plotting.COLORS[1 + s], label=label)
    ax.set(xlabel="from the trained weights to better ones", ylabel=f"$H_{{{layer}}}$")
    ax.legend(fontsize=7)


def draw_hamiltonians(found: Results) -> None:
    """Draw the Hamiltonians along the layers of linear velocities and of ResNets."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.0))
    for net in found.linear[0].nets:
        left.plot(_times(net.H, 1.0), net.H, ".-", label=f"N = {len(net.H)}")
    for name in ("early", "trained", "polished"):
        H = found.checks[0][name].H
        right.plot(_times(H, 5.0), H, "o-", ms=3, label=name)
    for ax, title in ((left, "$f = K\\tanh(u) + b$"), (right, "$f = \\tanh(Ku + b)$")):
        ax.set(xlabel="time", title=title)
        ax.legend(fontsize=7)
    left.set_ylabel("$H_k$")


def _times(H: Sequence[float], horizon: float) -> list[float]:
    return [horizon * (k + 0.5) / len(H) for k in range(len(H))]


def draw_sweeps(found: Results) -> None:
    """Draw the median of J over seeds against work, with its range."""
    _, ax = plt.subplots(figsize=(6.8, 3.6))
    for k, (method, curves) in enumerate(found.sweeps["curves"].items()):
        best = method != "plain MSA"
        band(ax, curves, plotting.COLORS[k], method, best=best)
    ax.set(xlabel="propagations", ylabel="objective J", yscale="log", xscale="log")
    ax.legend(fontsize=7, ncols=2)


def band(ax: Axes, curves: Sequence[Any], color: str, label: str, *, best: bool = True) -> None:
    """Draw the median over seeds of the lowest value so far, or of the last one, and its range."""
    most = max(curve[-1][0] for curve in curves)
    grid = torch.logspace(0.5, torch.log10(torch.tensor(float(max(most, 4)))).item(), 80)
    lines = torch.stack([_sampled(curve, grid, best) for curve in curves])
    ax.plot(grid, lines.median(0).values, color=color, label=label)
    ax.fill_between(grid, lines.amin(0), lines.amax(0), color=color, alpha=0.15, lw=0)


def _sampled(curve: Sequence[Any], grid: Tensor, best: bool) -> Tensor:
    work, values = torch.tensor(curve, dtype=torch.float64).T.contiguous()
    values = values.cummin(0).values if best else values
    index = torch.searchsorted(work, grid.double(), right=True) - 1
    return values[index.clamp(min=0)]


def draw_bits(found: Results) -> None:
    """Draw the accuracies of networks with weights of one bit, one dot a seed."""
    _, ax = plt.subplots(figsize=(6.4, 3.0))
    names = {"MSA": "maximum\nprinciple", "straight-through": "straight-\nthrough"}
    for k, kind in enumerate(bits.KINDS):
        values = found.bits[kind]
        ax.plot([k] * len(values), values, plotting.MARKERS[k], color=plotting.COLORS[k])
    ax.set_xticks(range(len(bits.KINDS)), [names.get(kind, kind) for kind in bits.KINDS])
    ax.set(ylabel="accuracy in %", xlim=(-0.5, len(bits.KINDS) - 0.5))
