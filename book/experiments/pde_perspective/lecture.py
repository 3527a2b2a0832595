"""What the lecture on the PDE perspective draws, loaded or computed by one call."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ctdl_lib import metrics
from ctdl_lib.dynamics import integrate
from ctdl_lib.networks.resnets import ResNet
from ctdl_lib.references import advection
from ctdl_lib.references.advection import Grid, semi_lagrangian, upwind
from machinery import claims, plotting
from machinery.store import Run, Store, device_of, results_folder

from . import evidence, moons, schemes

SENTENCES = (
    "pde.transport",
    "pde.transport.upwind",
    "pde.val_accuracy",
    "pde.diffusion",
    "pde.cost.error",
)
STRIP = (2.0, 1.25, 0.5, 0.0)
SHOWN = 129  # nodes an axis in the strip


@dataclass(frozen=True)
class Results:
    """The trained network of one seed with its data, and what a grid costs."""

    net: ResNet
    y: Tensor
    label: Tensor
    costs: dict[int, list[schemes.Contest]]
    sizes: tuple[int, ...]

    def cost_table(self) -> str:
        """What a grid costs, as a Markdown table."""
        return evidence.cost_table(self.costs)


def results(run: Run, device: str = "cpu", seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store, few = Store(evidence.CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in moons.SEEDS[:few]]
    return Results(
        moons.fit(store, seeds[0], device_of(device)),
        *moons.moons(seeds[0]),
        costs=schemes.contests(store, seeds),
        sizes=schemes.sizes(run),
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def mesh(grid: Grid) -> Tensor:
    """The coordinates of the nodes of a grid in the plane."""
    return grid.points(dtype=schemes.DOUBLE).T.reshape(2, *grid.shape)


def wave(t: object, x: Tensor) -> Tensor:
    """The field on the line of the first picture, whose characteristics gather at ±π/2."""
    return torch.sin(2 * x)


def draw_line() -> None:
    """Draw u(t, x) for a field on the line, with characteristics on it."""
    _, ax = plt.subplots(figsize=(6.8, 3.4))
    times = torch.linspace(0, 1, 101, dtype=schemes.DOUBLE)
    x = torch.linspace(-2.4, 2.4, 201, dtype=schemes.DOUBLE)[:, None]
    u = [
        torch.tanh(integrate(wave, x, t, 1.0, steps=50)[:, 0] if t < 1 else x[:, 0])
        for t in times.tolist()
    ]
    how = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "rasterized": True}
    ax.pcolormesh(times, x[:, 0], torch.stack(u, 1), **how)
    ax.contour(times, x[:, 0], torch.stack(u, 1), levels=[0.0], colors="black", linewidths=1.5)
    start = torch.linspace(-2.2, 2.2, 17, dtype=schemes.DOUBLE)[:, None]
    path = integrate(wave, start, 0.0, 1.0, steps=50, save_at=times)[:, :, 0]
    ax.plot(times, path, color="black", lw=0.7)
    ax.set(xlabel="time t", ylabel="feature x", ylim=(-2.4, 2.4))
    ax.grid(False)


def draw_strip(found: Results) -> None:
    """Draw the score and the features on the way from t = T to t = 0."""
    _, axes = plt.subplots(1, len(STRIP), figsize=(8.6, 2.5), sharey=True)
    grid, net = moons.square(SHOWN if len(found.sizes) > 2 else 33), found.net
    u = moons.score(net, grid.points(dtype=schemes.DOUBLE)).reshape(grid.shape)
    path, before = net.path(found.y), moons.T
    for ax, t in zip(axes, STRIP, strict=True):
        if t < before:
            steps = round((before - t) / net.h)
            u = semi_lagrangian(net.velocity, u, grid, before, t, steps=steps, method="euler")
        before = t
        how = {"vmin": -16, "vmax": 16, "cmap": "RdBu_r", "alpha": 0.4, "rasterized": True}
        ax.contour(*mesh(grid), u, levels=[0.0], colors="black", linewidths=1.2)
        ax.pcolormesh(*mesh(grid), u, **how)
        plotting.scatter(ax, path[round(t / net.h)], found.label)
        ax.set(xlabel=f"t = {t:g}", xlim=(-2.5, 3.5), ylim=(-2.75, 3.25), xticks=[], yticks=[])


def draw_boundaries(found: Results) -> None:
    """Draw the network's decision, and the zero level by both schemes on two grids."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), sharey=True)
    for ax, m in ((left, found.sizes[0]), (right, found.sizes[-1])):
        classify = lambda x: metrics.predict(found.net(x.double()))  # noqa: E731
        plotting.regions(ax, classify, (-1.5, 2.5, -1.25, 1.75))
        plotting.scatter(ax, found.y, found.label)
        looks = ("black", "--"), (plotting.COLORS[3], "-")
        for name, (color, dash) in zip(schemes.SCHEMES, looks, strict=True):
            u = moons.on_grid(found.net, m, name)
            ax.contour(*mesh(moons.square(m)), u, levels=[0.0], colors=color, linestyles=dash)
            ax.plot([], [], color=color, linestyle=dash, label=name)
        ax.set(xlabel=f"{m} × {m} nodes", xlim=(-1.5, 2.5), ylim=(-1.25, 1.75))
    right.legend(handles=right.get_lines(), loc="upper left", frameon=True, fontsize=7)


def draw_peaks() -> None:
    """Draw what upwind differences make of a step, for three Courant numbers."""
    _, ax = plt.subplots(figsize=(6.4, 2.8))
    grid, distance = Grid((0.0,), (60.0,), 61), 30
    x = grid.points(dtype=schemes.DOUBLE)[:, 0]
    ones = lambda t, x: torch.ones_like(x)  # noqa: E731
    for courant, marker in zip((1.0, 0.5, 0.1), plotting.MARKERS, strict=False):
        steps = round(distance / courant)
        u = upwind(ones, (x < 10).double(), grid, 0.0, float(distance), steps=steps)
        ax.plot(x, u, marker + "-", ms=3, label=f"ν = {courant:g}")
    ax.set(xlabel="x", ylabel="u", xlim=(22, 58))
    ax.legend(fontsize=7)


def draw_densities(found: Results) -> None:
    """Draw a density on a grid, with particles, before and after a random layer."""
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.8), sharey=True)
    f, x = schemes.random_layer(moons.SEEDS[0])
    grid = schemes.box(found.sizes[-1])
    start = schemes.bump(grid.points(dtype=schemes.DOUBLE)).reshape(grid.shape)
    for ax, t in zip(axes, (0.0, 1.0, 2.0), strict=True):
        rho, end = start, x
        if t:
            rho = advection.continuity(f, start, grid, 0.0, t, steps=round(t * grid.nodes / 2))
            end = schemes.carry(f, x, t, 64).x
        ax.pcolormesh(*mesh(grid), rho, rasterized=True)
        ax.plot(*end[:150].T, ".", ms=2, color="white")
        ax.set(title=f"t = {t:g}", xlim=(-2.2, 2.8), ylim=(-1.5, 2.2), xticks=[], yticks=[])
        ax.grid(False)


def peak_table() -> str:
    """A peak that upwind differences have carried over six nodes, as a Markdown table."""
    line = Grid((0.0,), (16.0,), 17)
    peak = (line.points(dtype=schemes.DOUBLE)[:, 0] == 4).double()
    ones = lambda t, x: torch.ones_like(x)  # noqa: E731
    rows = ["| x | " + " | ".join(str(k) for k in range(6, 13)) + " |", "|---|" + "---:|" * 7]
    for steps in (6, 12):
        u = upwind(ones, peak, line, 0.0, 6.0, steps=steps)
        cells = " | ".join(f"{value:.2f}" for value in u[6:13])
        rows.append(f"| ν = {6 / steps:g} | {cells} |")
    return "\n".join(rows)


def mean_scores() -> str:
    """The mean score under a moving density at both ends of time, as a Markdown table."""
    layer, _ = schemes.random_layer(moons.SEEDS[0])
    W = torch.tensor([1.0, 0.5], dtype=schemes.DOUBLE)
    rows = ["| nodes | at the end | at the start |", "|---:|---:|---:|"]
    for m in (33, 65, 129):
        grid = schemes.box(m)
        x = grid.points(dtype=schemes.DOUBLE)
        last, rho = (x @ W).reshape(grid.shape), schemes.bump(x).reshape(grid.shape)
        moved = advection.continuity(layer, rho, grid, 0.0, 1.0, steps=m // 2)
        first = semi_lagrangian(layer, last, grid, 1.0, 0.0, steps=m // 4)
        means = [(u * r).sum() / r.sum() for u, r in ((last, moved), (first, rho))]
        rows.append(f"| {m} | {means[0]:.3f} | {means[1]:.3f} |")
    return "\n".join(rows)
