"""What the lecture on stable architectures draws, loaded or computed by one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from ctdl_lib import metrics
from ctdl_lib.networks.resnets import ResNet
from ctdl_lib.problems.classification import Samples
from machinery import claims, plotting
from machinery.store import Run, Store, results_folder

from . import attacks, evidence, growth, multilevel, reversal

STARTS = torch.tensor([[0.1, 0.1], [-0.1, 0.1], [-0.1, -0.1]], dtype=torch.float64)
SENTENCES = (
    "stable.layer.growth",
    "stable.antisymmetric.worst",
    "stable.antisymmetric.slow",
    "stable.parabolic.worst",
    "stable.peaks.antisymmetric",
    "stable.attack.linear",
    "stable.multilevel.saving",
)


@dataclass(frozen=True)
class Results:
    """What the chapter has trained and searched, over all seeds."""

    worst: dict[str, list[float]]
    attacks: dict[str, dict[str, Any]]
    races: list[multilevel.Race]


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, computed or tried out as `run` says.

    All networks are small and stay on the CPU.
    """
    store, few = Store(evidence.CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in attacks.SEEDS[:few]]
    return Results(
        worst=growth.worst(store, seeds),
        attacks=attacks.studies(store, seeds),
        races=multilevel.races(store, seeds),
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def growth_table() -> str:
    """How much a change of u = 0 grows through layers of three matrices, as a Markdown table."""
    lines = ["| layers | " + " | ".join(growth.MATRICES) + " |", "|---:|" + "---:|" * 3]
    for n in (10, 50, 100):
        factors = [growth.growth_at_rest(K, n) for K in growth.MATRICES.values()]
        lines.append(f"| {n} | " + " | ".join(f"{x:.2g}" for x in factors) + " |")
    return "\n".join(lines)


def draw_phases() -> None:
    """Draw paths through ten layers for three matrices, with their eigenvalues beneath."""
    _, axes = plt.subplots(2, 3, figsize=(8.4, 4.6), height_ratios=(2, 1), constrained_layout=True)
    for (name, K), (top, bottom) in zip(growth.MATRICES.items(), axes.T, strict=True):
        path = growth.path(K, 10, STARTS)
        reach = 1.1 * path.abs().max().item()
        axis = torch.linspace(-reach, reach, 11, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        arrows = torch.tanh(grid @ K.T)
        top.quiver(*grid.T.numpy(), *arrows.T.numpy(), color="0.6", width=0.004)
        for k, points in enumerate(path.unbind(1)):
            top.plot(*points.T.numpy(), color=plotting.COLORS[k])
            top.plot(*STARTS[k].numpy(), plotting.MARKERS[k], color=plotting.COLORS[k])
        top.locator_params(nbins=5)
        top.set(title=name, aspect="equal")
        values = torch.linalg.eigvals(K)
        bottom.axvline(0, color="0.6", lw=0.8)
        bottom.plot(values.real.numpy(), values.imag.numpy(), "o", color="black")
        bottom.set(xlim=(-2.6, 2.6), ylim=(-1.6, 1.6), xlabel="real part")
    axes[1, 0].set_ylabel("imaginary part")


def draw_swing() -> None:
    """Draw how a change grows if the biases take turns, and the path of a change."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0))
    for slow, label in ((False, "biases take turns"), (True, "biases stay")):
        layers = growth.swinging(evidence.CYCLES, slow=slow)
        norms = growth.growths(layers)
        left.semilogy((torch.arange(len(norms)) * layers.h).numpy(), norms.numpy(), label=label)
    left.set(xlabel="time", ylabel="growth of a change")
    left.legend(fontsize=7)
    layers = growth.swinging(1)
    change, path = torch.tensor([1.0, 0.0], dtype=torch.float64), []
    for slope in layers.slopes:
        path.append(change)
        change = change + layers.h * slope * (growth.ROTATION @ change)
    right.plot(*torch.stack(path).T.numpy(), color=plotting.COLORS[0])
    right.plot(1, 0, "o", color="black")
    right.set(xlabel="change of feature 1", ylabel="change of feature 2", aspect="equal")


def draw_worst(found: Results) -> None:
    """Draw the largest growth that a search over the weights has found, one dot a seed."""
    _, ax = plt.subplots(figsize=(7.0, 2.9))
    for k, values in enumerate(found.worst.values()):
        ax.semilogy([k] * len(values), values, "o", color=plotting.COLORS[k])
    for bound in (1, growth.HALF_RATE):
        ax.axhline(bound, color="0.6", lw=0.8)
    names = [kind.replace(" hamiltonian", "\nhamiltonian") for kind in found.worst]
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set_ylabel("largest growth found")


def draw_live(curve: Sequence[float], net: ResNet, data: Samples) -> None:
    """Draw the loss of a training, the classified plane, and what the backward pass keeps."""
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(8.6, 2.7))
    left.semilogy(curve)
    left.set(xlabel="step", ylabel="cross-entropy")
    plotting.regions(middle, lambda p: metrics.predict(net(p)), plotting.extent_of(data.y))
    plotting.scatter(middle, *data)
    _draw_memory(right)


def _draw_memory(ax: Axes) -> None:
    """Draw the bytes kept for the backward pass against the number of layers."""
    for reverse, label in ((False, "features stored"), (True, "features computed again")):
        ax.loglog(reversal.DEPTHS, reversal.kept_bytes(reverse), marker="o", label=label)
    ax.set(xlabel="layers", ylabel="bytes kept")
    ax.legend(fontsize=7)


def draw_attacks(found: Results) -> None:
    """Draw the accuracy under attack against the size of the attack, means over seeds."""
    _, ax = plt.subplots(figsize=(6.4, 3.2))
    for kind, marker in zip(attacks.KINDS, plotting.MARKERS, strict=False):
        curves = torch.tensor(found.attacks[kind]["curves"])
        sizes = attacks.SIZES[: curves.shape[1]]
        ax.plot(sizes, curves.mean(0), marker=marker, ms=4, label=kind)
    ax.set(xlabel="size ε of the attack", ylabel="accuracy in %")
    ax.legend(fontsize=7)


def draw_races(found: Results) -> None:
    """Draw the training loss against layer evaluations, one line a seed."""
    _, ax = plt.subplots(figsize=(6.4, 3.2))
    shown = {"many": "16 to 128 layers", "one": "128 layers", "coarse": "16 layers"}
    for race in found.races:
        for (name, label), color in zip(shown.items(), plotting.COLORS, strict=False):
            work, values = zip(*getattr(race, name), strict=True)
            ax.loglog(work, values, color=color, lw=0.9, label=label * (race is found.races[0]))
    ax.set(xlabel="layer evaluations", ylabel="loss")
    ax.legend(fontsize=7)
