"""What the lecture on mean-field games draws, loaded or computed by one call."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ctdl_lib.generative import transport
from ctdl_lib.potentials import Potential
from ctdl_lib.problems.densities import Mixture
from ctdl_lib.references.grids import Grid
from machinery import claims, plotting
from machinery.store import Run, Store, results_folder

from . import evidence, references, training
from .evidence import KINDS
from .games import (
    EntropicGame,
    crossing_crowds,
    crowd_motion,
    gaussian_solution,
    groups,
    ring_to_gaussian,
)
from .training import CHAPTER, DIMENSIONS, Learned

SENTENCES = (
    "mfg.gaussian.excess.d2",
    "mfg.gaussian.potential.d2",
    "mfg.ot.excess.d100",
    "mfg.eulerian_gap",
    "mfg.crowd.chosen",
    "mfg.ot.penalties.lbfgs",
)
STRIP = (0.0, 0.25, 0.5, 0.75, 1.0)
CORNER = (5.0, 3.0)  # of the pictures of two crowds
HILL = (1.0, 5.0, 9.0, 15.0)


@dataclass(frozen=True)
class Results:
    """The trained models of the games that are drawn, by dimension and seed."""

    crowd: dict[int, list[Learned]]
    crowd_costs: dict[int, list[float]]
    crossing: Learned
    ablation: dict[str, list[Learned]]
    side: int
    """How many nodes on an axis the densities are drawn with."""

    def chosen(self, d: int) -> int:
        """The number of the run with the lowest cost by a fine solve."""
        return evidence.lowest(self.crowd_costs[d])

    def dearest(self, d: int) -> int:
        """The number of the run with the highest true cost."""
        costs = self.crowd_costs[d]
        return costs.index(max(costs))


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store = Store(CHAPTER, run)
    crossing = evidence.crossed(store, seed)
    return Results(
        crowd={d: evidence.played(store, "crowd", d, seed) for d in DIMENSIONS},
        crowd_costs={
            d: evidence.values(evidence.judged(store, "crowd", d, seed)) for d in evidence.MANY
        },
        crossing=crossing[evidence.lowest(evidence.values(evidence.crossings(store, seed)))],
        ablation={kind: evidence.ablated(store, kind, seed) for kind in KINDS},
        side=21 if run == "smoke" else 61,
    )


def verdicts() -> str:
    """What the evidence says of the sentences of the talk and the paper, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def hill(
    ax: Axes, game: EntropicGame, corner: tuple[float, float], levels: Sequence[float]
) -> None:
    """Draw the contours of the obstacle."""
    grid = references.boxed(corner, 81)
    p = grid.points(dtype=torch.float64)
    Q = game.potential_energy(p).reshape(grid.shape)
    ax.contour(*mesh(grid), Q, levels=levels, linewidths=0.6, colors="gray")


def mesh(grid: Grid) -> Tensor:
    """The coordinates of the nodes of a grid in the plane."""
    return grid.points(dtype=torch.float64).T.reshape(2, *grid.shape)


def paths(phi: Potential, x: Tensor, steps: int = 32) -> Tensor:
    """The positions of agents at all steps."""
    times = torch.linspace(0, 1, steps + 1)
    return transport(phi, x, steps=steps, save_at=times).x


def sampled(game: EntropicGame, n: int, seed: int = 2) -> Tensor:
    """Some agents at their start, in double precision."""
    return game.initial.sample(n, torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_strip(found: Results) -> None:
    """Draw the densities of two crowds that cross, with the paths of some agents until then."""
    game, label = crossing_crowds(5.0), 5.0
    phi = training.double(found.crossing)
    grid = references.boxed(CORNER, found.side)
    p = grid.points(dtype=torch.float64)
    x = sampled(game, 24)
    path = paths(phi, x)
    _, axes = plt.subplots(1, len(STRIP), figsize=(8.6, 1.75), sharey=True)
    for ax, t in zip(axes, STRIP, strict=True):
        for sign, colors in ((1.0, "Blues"), (-1.0, "Oranges")):
            at = torch.cat([p, torch.full_like(p[:, :1], sign * label)], 1)
            rho = references.density(phi, game, t, at).sqrt().reshape(grid.shape)
            levels = [float(rho.max()) * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
            ax.contourf(*mesh(grid), rho, levels=levels, cmap=colors, alpha=0.7)
            some = path[: round(32 * t) + 1, x[:, 2] * sign > 0]
            color = plotting.COLORS[0 if sign > 0 else 1]
            ax.plot(some[..., 0], some[..., 1], color=color, lw=0.5)
            ax.plot(some[-1, :, 0], some[-1, :, 1], ".", color=color, ms=3)
        hill(ax, game, CORNER, HILL)
        ax.set(title=f"t = {t:g}", xlim=(-4.6, 4.6), ylim=(-2.6, 2.6), aspect="equal")
        ax.set(xticks=[], yticks=[])


def draw_two_ways() -> None:
    """Draw the exact game on a line: Φ comes from the right, the crowd from the left."""
    game = EntropicGame(groups([-2.0], variance=0.1), groups([2.0], variance=0.3), 0.5)
    exact = gaussian_solution(game)
    phi, times = exact.potential, torch.linspace(0, 1, 61).tolist()
    y = torch.linspace(-4, 4, 161).double()
    height = torch.stack([phi(t, y[:, None]) for t in times], 1)
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), sharey=True)
    left.contourf(times, y, height, levels=24)
    left.set(xlabel="time t", ylabel="position x", title="potential Φ(t, x)")
    first, last = game.initial, exact.end
    laws = [law_between(first, last, t) for t in times]  # the paths are straight
    rho = torch.stack([law.log_prob(y[:, None]).exp() for law in laws], 1)
    right.contourf(times, y, rho, levels=24, cmap="Blues")
    x = torch.linspace(-2.8, -1.2, 9).double()[:, None]
    right.plot(torch.linspace(0, 1, 5), paths(phi, x, 4)[..., 0], color="black", lw=0.7)
    right.set(xlabel="time t", title="density ρ(t, x) and paths")


def law_between(first: Mixture, last: Mixture, t: float) -> Mixture:
    """The normal density on straight paths between two: mean and deviation are linear in t."""
    mean = (1 - t) * first.means + t * last.means
    return Mixture(first.weights, mean, (1 - t) * first.std + t * last.std)


def draw_live(model: Learned, game: EntropicGame) -> None:
    """Draw the terms of a training, and what it has learned."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), width_ratios=(1.2, 1))
    for term in ("transport", "interaction", "terminal", "hjb"):
        left.semilogy(model.curve(term, 5).clamp(min=1e-3), label=term)
    left.set(xlabel="step", ylabel="term of the objective")
    left.legend(fontsize=7)
    phi, x = training.double(model), sampled(game, 60)
    path = paths(phi, x)
    corner = (5.0, 5.0)
    grid = references.boxed(corner, 61)
    target = game.target.log_prob(grid.points(dtype=torch.float64)).exp().reshape(grid.shape)
    right.contourf(*mesh(grid), target, levels=8, cmap="Greys", alpha=0.6)
    right.plot(path[..., 0], path[..., 1], color=plotting.COLORS[0], lw=0.6)
    right.plot(path[-1, :, 0], path[-1, :, 1], ".", color="black", ms=3)
    hill(right, game, corner, [1, 5, 9])
    right.set(xlim=(-5, 5), ylim=(-5, 5), xticks=[], yticks=[], aspect="equal")


def draw_crowds(found: Results) -> None:
    """Draw paths past the hill: a run that is stuck, the chosen run, and one in ℝ¹⁰⁰."""
    _, axes = plt.subplots(1, 3, figsize=(8.4, 3.6), sharey=True)
    last = DIMENSIONS[-1]
    shown = (
        (2, found.dearest(2), "dearest"),
        (2, found.chosen(2), "chosen"),
        (last, found.chosen(last), "chosen"),
    )
    for ax, (d, k, what) in zip(axes, shown, strict=True):
        path = paths(training.double(found.crowd[d][k]), sampled(crowd_motion(d), 40))
        hill(ax, crowd_motion(2), (4.0, 5.5), range(1, 12, 2))
        ax.plot(path[..., 0], path[..., 1], color=plotting.COLORS[0], lw=0.8)
        ax.plot(path[-1, :, 0], path[-1, :, 1], ".", color="black")
        ax.set(xlabel=f"$x_1$, d = {d}, {what} run", xlim=(-3, 3), ylim=(-5, 5))
    axes[0].set_ylabel("$x_2$")


def draw_ablation(found: Results) -> None:
    """Draw paths from the ring by the steps of the training, and by a fine solve."""
    _, axes = plt.subplots(1, 3, figsize=(8.4, 3.1), sharey=True)
    x = sampled(ring_to_gaussian(2), 24, seed=1)
    for ax, kind in zip(axes, (evidence.WITH_LBFGS, evidence.LBFGS, evidence.EIGHT), strict=True):
        phi = training.double(found.ablation[kind][0])
        for n, look in ((64, "-"), (KINDS[kind][1]["times"], "x:")):
            path = paths(phi, x, n)
            how = {"color": plotting.COLORS[n < 64], "linewidth": 0.8, "markersize": 3}
            ax.plot(path[..., 0], path[..., 1], look, **how)
        ax.set(xlabel=kind, xlim=(-6, 6), ylim=(-6, 6), aspect="equal")


def draw_objectives(found: evidence.Evidence) -> None:
    """Draw the excess of the true cost against the objective, one mark a run."""
    _, ax = plt.subplots(figsize=(5.6, 3.2))
    for d, marker, color in zip(DIMENSIONS, plotting.MARKERS, plotting.COLORS, strict=False):
        objectives = [o / found.least.of("crowd", d) for o in found.objectives["crowd"][d]]
        ax.plot(objectives, found.excess("crowd", d), marker, color=color, label=f"d = {d}")
    straight = found.least.excess("crowd", 2, [found.rivals["crowd straight"]["cost"]])
    ax.axhline(straight[0], ls="--", c="black", lw=0.8)
    ax.set(xlabel="objective over least cost", ylabel="excess of true cost (%)")
    ax.legend(fontsize=8)


def draw_densities(found: evidence.Evidence) -> None:
    """Draw the density of the crowd at three times, by the chosen network and on a grid."""
    k = evidence.lowest(found.excess("crowd", 2))
    model = evidence.played(found.store, "crowd", 2, found.seed)[k]
    phi, game = training.double(model), crowd_motion(2)
    shown = references.pictures(found.store)
    _, axes = plt.subplots(2, len(shown), figsize=(6.4, 5.6), sharex=True, sharey=True)
    for column, (t, rho) in zip(axes.T, shown.items(), strict=True):
        grid = references.boxed(references.BOXES["crowd"], len(rho))
        ours = references.density(phi, game, t, grid.points(dtype=torch.float64))
        for ax, values in zip(column, (ours.reshape(grid.shape), rho), strict=True):
            ax.pcolormesh(*mesh(grid), values.sqrt(), vmin=0, vmax=0.73, cmap="Blues")
            hill(ax, game, references.BOXES["crowd"], [1, 5, 9])
            ax.set(xticks=[], yticks=[], ylim=(-5, 5))
        column[0].set_title(f"t = {t:g}")
    axes[0, 0].set_ylabel("network")
    axes[1, 0].set_ylabel("grid")
