"""What the lecture on continuous normalizing flows draws, loaded or computed by one call."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ctdl_lib.dynamics import Transformed, divergence, integrate, standard_normal_log_prob
from ctdl_lib.generative import Flow
from ctdl_lib.problems.densities import TOYS, Mixture
from machinery import claims, plotting
from machinery.seeds import seeded
from machinery.store import Run, Store, device_of, results_folder

from ..ot_flow.densities import solved
from . import checks, training
from .evidence import CHAPTER

SENTENCES = (
    "cnf.log_det",
    "cnf.8gaussians.gap",
    "cnf.mean_density",
    "cnf.nfe.growth",
    "cnf.regularised.nfe",
    "cnf.hutchinson.gap",
)
SHOWN = (training.FIXED, training.REGULARIZED, training.ADAPTIVE)
SIDE = 4.2
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Results:
    """The stored flows, by density (one seed) and by kind of training, and the noise of probes."""

    seven: dict[str, Flow]
    trained: dict[str, list[Flow]]
    noise: checks.Noise
    nodes: int  # an axis in pictures of densities

    @property
    def first(self) -> Flow:
        """The flow of the eight Gaussians in the first picture."""
        return self.seven["8gaussians"]


def results(run: Run, device: str = "cpu", seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store, few = Store(CHAPTER, run), 1 if run == "smoke" else None
    seeds, device = [seed + s for s in training.SEEDS[:few]], device_of(device)

    def fit(kind: str, seed: int, density: str = "8gaussians") -> Flow:
        return training.fit(store, kind, seed, density, device)[0]

    return Results(
        seven={name: fit(training.REGULARIZED, seeds[0], name) for name in TOYS},
        trained={kind: [fit(kind, s) for s in seeds] for kind in SHOWN},
        noise=checks.noise(store, seeds),
        nodes=20 if run == "smoke" else 70,
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def plane(nodes: int, side: float = SIDE) -> tuple[Tensor, Tensor]:
    """The nodes of an axis, and all points of the plane over it."""
    axis = torch.linspace(-side, side, nodes)
    return axis, torch.cartesian_prod(axis, axis)


@torch.no_grad()
def density_at(flow: Flow, t: float, x: Tensor, steps: int = 16) -> Tensor:
    """The density at time t of data that move with the flow."""

    def rates(t: Tensor, s: Transformed) -> Transformed:
        return Transformed(*divergence(partial(flow.velocity, t), s.z))

    end = Transformed(x, x.new_zeros(len(x)))
    if t < 1:
        end = integrate(rates, end, t, 1.0, steps=steps)
    return (standard_normal_log_prob(end.z) + end.log_det).exp()


def draw_film(found: Results) -> None:
    """Draw the density and 200 points at five times on the way to the normal distribution."""
    _, axes = plt.subplots(1, len(TIMES), figsize=(8.6, 2.0), sharey=True)
    axis, x = plane(found.nodes)
    points = TOYS["8gaussians"].sample(200, seeded(1, 0))
    path = solved(found.first, steps=16)(points, save_at=TIMES)
    for ax, t, moved in zip(axes, TIMES, path, strict=True):
        p = density_at(found.first, t, x).reshape(len(axis), -1)
        ax.pcolormesh(axis, axis, p.T, rasterized=True)
        ax.plot(*moved.T, ".", ms=1.5, c="white")
        ax.set(xlabel=f"t = {t:g}", xticks=[], yticks=[], aspect="equal")
        ax.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE))


def draw_tubes() -> None:
    """Draw ten parts of equal mass on their way from a mixture on the line to N(0, 1)."""
    mixture = Mixture(
        torch.tensor([0.6, 0.4]), torch.tensor([[-1.4], [1.3]]), torch.tensor([[0.35], [0.6]])
    )
    y = torch.linspace(-4, 4, 2001)
    p = mixture.log_prob(y[:, None]).exp()
    mass = torch.cumsum(p, 0) / p.sum()
    levels = torch.linspace(0, 1, 11).clamp(0.002, 0.998)
    start = y[torch.searchsorted(mass, levels)]
    end = math.sqrt(2) * torch.erfinv(2 * levels - 1)
    _, (left, middle, right) = plt.subplots(
        1, 3, figsize=(8.0, 3.0), sharey=True, width_ratios=(1, 3, 1)
    )
    t = torch.linspace(0, 1, 50)
    for k in range(10):
        low, high = (start[j] + t * (end[j] - start[j]) for j in (k, k + 1))
        shade = plotting.COLORS[0 if k % 2 else 5]
        middle.fill_between(t, low, high, color=shade, alpha=0.6, lw=0)
    left.fill_betweenx(y, -p, color=plotting.COLORS[0], alpha=0.6, lw=0)
    normal = torch.exp(-y.square() / 2) / math.sqrt(2 * math.pi)
    right.fill_betweenx(y, normal, color=plotting.COLORS[0], alpha=0.6, lw=0)
    left.set(ylabel="x", xlabel="density of the data", xticks=[])
    middle.set(xlabel="time t", xlim=(0, 1), ylim=(-3, 3))
    right.set(xlabel="N(0, 1)", xticks=[])


@torch.no_grad()
def draw_live(curve: Sequence[float], flows: Sequence[Flow], least: float, true: float) -> None:
    """Draw the loss of a training, the least and the true one, and the densities of flows."""
    ratios = [1.6] + [1.0] * len(flows)
    _, axes = plt.subplots(1, 1 + len(flows), figsize=(7.6, 2.6), width_ratios=ratios)
    axes[0].plot(curve, lw=0.8)
    axes[0].axhline(least, ls="--", c="black", lw=0.8)
    axes[0].plot(len(curve), true, "X", c=plotting.COLORS[1], ms=7)
    axes[0].set(xlabel="step", ylabel="NLL (nats)")
    axis, x = plane(60)
    for ax, flow in zip(axes[1:], flows, strict=True):
        p = flow.log_prob(x).exp().reshape(len(axis), -1)
        ax.pcolormesh(axis, axis, p.T, vmin=0, vmax=0.3, rasterized=True)
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.set_xlabel(f"{flow.solver['steps']} solver steps")


@torch.no_grad()
def draw_seven(found: Results) -> None:
    """Draw data, the learned density and samples of the flow for each of seven densities."""
    _, axes = plt.subplots(3, 7, figsize=(8.6, 3.9))
    for column, (name, flow) in zip(axes.T, found.seven.items(), strict=True):
        axis, x = plane(found.nodes, SIDE if name in ("checkerboard", "circles") else 3.8)
        fine = solved(flow, steps=16)
        p = fine.log_prob(x).exp().reshape(len(axis), -1)
        data = training.held_out(name, 1500)
        for ax, dots in ((column[0], data), (column[2], fine.sample(1500, seeded(0, 0)))):
            ax.scatter(*dots.T, s=0.4, c="black", linewidths=0, rasterized=True)
        column[1].pcolormesh(axis, axis, p.T, rasterized=True)
        for ax in column:
            ax.set(xticks=[], yticks=[], aspect="equal")
            ax.set(xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]))
        column[0].set_title(name, fontsize=8)


def draw_trainings(found: Results) -> None:
    """Draw the gap and the evaluations of a likelihood during trainings, one line a seed."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.2))
    for i, kind in enumerate(SHOWN):
        for j, flow in enumerate(found.trained[kind]):
            style = {"c": plotting.COLORS[i], "lw": 1.2, "label": None if j else kind}
            seen = torch.arange(training.RECORDS) * training.STEPS // training.RECORDS
            axes[0].plot(seen, flow.get_buffer("gaps"), **style)
            axes[1].plot(seen, flow.get_buffer("evaluations"), **style)
    axes[0].set(xlabel="step", ylabel="gap (nats)", yscale="log")
    axes[1].set(xlabel="step", ylabel="evaluations of the velocity")
    axes[1].legend(fontsize=8)


def draw_noise(found: Results) -> None:
    """Draw evaluations against the tolerance, with one probe a solve and with fresh ones."""
    _, ax = plt.subplots(figsize=(5.6, 3.0))
    names = {"one probe a solve": found.noise.one, "a fresh probe each time": found.noise.fresh}
    for i, (name, seeds) in enumerate(names.items()):
        for j, counts in enumerate(seeds):
            style = {"c": plotting.COLORS[i], "marker": plotting.MARKERS[i]}
            label = None if j else name
            ax.loglog(checks.TOLS[: len(counts)], counts, lw=0.8, label=label, **style)
    ax.invert_xaxis()
    ax.set(xlabel="tolerance", ylabel="evaluations of the velocity")
    ax.legend()
