"""What the lecture on value functions draws, loaded or computed by one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from torch import Tensor

from ctdl_lib.control import feedback, rollout
from ctdl_lib.control.problem import ControlProblem, Policy
from ctdl_lib.potentials import Potential
from ctdl_lib.references.grids import Grid
from ctdl_lib.references.transcription import Plan
from machinery import claims, plotting
from machinery.seeds import seeded
from machinery.store import Run, Store, results_folder

from . import characteristics, corridor, gate, grids, hill, training
from .corridor import AT, GATE, NAMED, Filtered
from .training import BOX, CHAPTER, DOUBLE, HILL

SENTENCES = (
    "hjb.residual",
    "soc2d.characteristics",
    "corridor.kink",
    "soc2d.value_error.t00",
    "soc2d.cost",
    "soc2d.sampling",
    "corridor.shock.minor",
    "corridor.shock.major",
    "corridor.collisions",
)
COLD, WARM, GREEN = plotting.COLORS[:3]
TIMES = (0.0, 0.5, 0.9)


@dataclass(frozen=True)
class Results:
    """The stored value functions of the first seed, the reference, and the best plan of the gate.

    `near` learned at the starts of the publication, `wide` also all over the box.
    """

    near: Potential
    wide: Potential
    plane: dict
    gate: Potential
    plan: Plan
    smoke: bool


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store, s = Store(CHAPTER, run), seed + training.FIRST
    fit = partial(training.fit, store)
    return Results(
        fit("hill", training.hill(), s, HILL)[0],
        fit("box", training.hill(), s, BOX)[0],
        grids.plane(store),
        fit("gate", training.gate(), s, training.GATE)[0],
        gate.best(store),
        run == "smoke",
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def shade_hill(ax: Axes) -> None:
    """Fill the plane with the cost of the hill, and mark the target."""
    axis = np.linspace(-3, 3, 61)
    hills = grids.PROBLEM.hill(grids.box()).reshape(61, 61).T
    ax.contourf(axis, axis, hills, levels=5, cmap="Greys", alpha=0.6)
    ax.plot(1.5, 1.5, "*", c="black", ms=9)
    ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    ax.grid(False)


def draw_values(found: Results) -> None:
    """Draw Φ and its feedback at three times, and the paths so far."""
    phi, points = found.wide, grids.box()
    x = grids.point(grids.START).expand(8, 2)
    path = rollout(grids.PROBLEM, feedback(grids.PROBLEM, phi), x, steps=200, generator=seeded(3))
    arrows = Grid((-2.6, -2.6), (2.6, 2.6), 10).points(**DOUBLE)
    _, axes = plt.subplots(1, 3, figsize=(8.6, 3.2), sharey=True)
    for ax, t in zip(axes, TIMES, strict=True):
        shade_hill(ax)
        axis, value = np.linspace(-3, 3, 61), phi(t, points).reshape(61, 61).T
        levels = np.geomspace(1, 300, 12)
        ax.contour(axis, axis, value, levels=levels, cmap="cividis", linewidths=0.9)
        u = -phi.gradient(t, arrows).dx
        u = u / u.norm(dim=1, keepdim=True) * u.norm(dim=1, keepdim=True).sqrt()
        style = {"color": "0.35", "width": 0.004, "angles": "xy", "scale_units": "xy", "scale": 8}
        ax.quiver(*arrows.T, *u.T, **style)
        k = round(200 * t)
        ax.plot(*path.x[: k + 1].unbind(-1), lw=0.9, c=WARM)
        ax.plot(*path.x[k].T, "o", c=WARM, ms=4)
        ax.set_title(f"t = {t:g}", fontsize=9)


def draw_characteristics(found: Results) -> None:
    """Draw the fan of characteristics that end at the target, and Φ across the diagonal."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.6))
    shade_hill(axes[0])
    angles = 1.25 * np.pi + torch.linspace(-0.62, 0.62, 41, **DOUBLE)
    x = characteristics.fan(angles)[..., :2]
    for k, color in enumerate(np.where(angles < 1.25 * np.pi, COLD, WARM)):
        axes[0].plot(*x[:, k].T, lw=0.7, c=color)
    axes[0].plot([-3, 1.5], [-3, 1.5], ls=":", c="black", lw=1)
    axes[0].set_title("characteristics without noise", fontsize=9)
    s = np.linspace(-1.5, 1.5, grids.ACROSS)
    for (share, value), color in zip(found.plane["slices"].items(), plotting.COLORS, strict=False):
        axes[1].plot(s, value, c=color, label=f"{float(share):g} σ")
    axes[1].set(xlabel="distance from the diagonal", ylabel="Φ(0, ·) behind the hill")
    axes[1].legend(title="noise", fontsize=8)


def draw_live(curve: Sequence[float], problem: ControlProblem, policies: dict[str, Policy]) -> None:
    """Draw the loss of a training, and paths of two feedbacks on the river."""
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.7))
    axes[0].plot(curve, lw=0.6, c="0.7")
    smooth = torch.tensor(curve).unfold(0, min(30, len(curve)), 1).mean(1)
    axes[0].plot(range(len(curve) - len(smooth), len(curve)), smooth)
    axes[0].set(xlabel="step", title="loss", ylim=(0, 1.2 * max(curve[len(curve) // 20 :])))
    y = torch.linspace(-2.2, 2.2, 9, **DOUBLE)
    for ax, (name, policy) in zip(axes[1:], policies.items(), strict=True):
        x = torch.tensor([[0.0, -2.0]], **DOUBLE).expand(200, 2)
        path = rollout(problem, policy, x, steps=100, generator=seeded(1))
        ax.plot(*path.x[:, :12].unbind(-1), lw=0.7, c=COLD)
        river = torch.stack([torch.zeros_like(y), y], 1)
        flow = problem.drift(0.0, river, torch.zeros_like(river))
        ax.quiver(0 * y - 1.4, y, *flow.T, color="0.5", width=0.006)
        ax.plot(0, 2, "*", c="black", ms=9)
        ax.set(xlim=(-1.5, 2.5), ylim=(-2.4, 2.4))
        ax.set_title(f"{name}: cost {path.cost.mean():.1f}", fontsize=9)


def draw_box(found: Results) -> None:
    """Draw the errors over the box, and where nine of ten states of the training lie."""
    known = torch.tensor(found.plane["known"], **DOUBLE)
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.7), sharey=True)
    pairs = ((found.near, HILL, "starts near (−1.5, −1.5)"), (found.wide, BOX, "half from the box"))
    axis = np.linspace(-3, 3, grids.NODES)
    for ax, (phi, how, title) in zip(axes, pairs, strict=True):
        wrong = hill.relative(known, phi).abs().reshape(grids.NODES, -1).T.clamp(min=1e-2)
        norm = LogNorm(0.01, 200)
        image = ax.pcolormesh(axis, axis, wrong, norm=norm, cmap="cividis", rasterized=True)
        x = hill.visited(phi, how)
        count, edges, _ = np.histogram2d(*x.T.numpy(), bins=30, range=[(-3, 3), (-3, 3)])
        middle = (edges[1:] + edges[:-1]) / 2
        level = np.sort(count.ravel())
        level = level[np.searchsorted(np.cumsum(level), 0.1 * count.sum())]
        ax.contour(middle, middle, count.T, levels=[max(level, 1.0)], colors="white")
        ax.plot(1.5, 1.5, "*", c=WARM, ms=9)
        ax.set(aspect="equal")
        ax.set_title(f"{title}: mean {wrong.mean():.2g} %", fontsize=9)
        ax.grid(False)
    axes[0].figure.colorbar(image, ax=axes, label="error of Φ(0, ·) in %")


def draw_gate(found: Results) -> None:
    """Draw the path of the feedback undisturbed and after two shocks, and the best plans."""
    policy, best = gate.policy_of(found.gate), found.plan
    _, axes = plt.subplots(1, 3, figsize=(8.6, 3.4), sharey=True)
    box = Grid((-6.0, -6.0), (6.0, 6.0), 121)
    hills = GATE.obstacles(box.points(**DOUBLE)).reshape(box.shape).T
    for ax, name in zip(axes, ("undisturbed", *NAMED), strict=True):
        axis = np.linspace(-6, 6, 121)
        ax.contourf(axis, axis, hills, levels=5, cmap="Greys", alpha=0.6)
        paths: dict[str, Tensor] = {"-": corridor.undisturbed(policy).x[:, 0]}
        if name in NAMED:
            x = best.x[AT] + torch.tensor(NAMED[name], **DOUBLE)
            after = (corridor.after(p, x[None]).x[:, 0] for p in (policy, Filtered(policy)))
            paths = dict(zip(("-", "--"), after, strict=True))
            for i in (0, 2):
                jump = torch.stack([best.x[AT], x])[:, i : i + 2]
                ax.plot(*jump.T, ls=":", lw=1, c="0.4")
        _draw_agents(ax, paths)
        ax.set(aspect="equal", xlim=(-5, 4), ylim=(-5.6, 3), xlabel=name)


def _draw_agents(ax: Axes, paths: dict[str, Tensor]) -> None:
    """Draw the paths of two agents by line style, and where they collide."""
    for style, path in paths.items():
        for i, color in enumerate((COLD, WARM)):
            ax.plot(*path[:, 2 * i : 2 * i + 2].T, ls=style, c=color)
        close = GATE.distance(path) < corridor.contact()
        if close.any():
            k = int(close.int().argmax())
            ax.plot(*path[k].reshape(2, 2).T, "X", c="black", ms=8)
    for i, color in enumerate((COLD, WARM)):
        ax.plot(*GATE.target[2 * i : 2 * i + 2], "*", c=color, ms=9)


def draw_shocks(found: Results) -> None:
    """Draw the least distances after shocks, with and without the filter, and what they cost."""
    policy, count = gate.policy_of(found.gate), 8 if found.smoke else 300
    x, _ = corridor.shocked(found.plan, count, gate.SEED)
    plain, kept = (corridor.after(p, x) for p in (policy, Filtered(policy)))
    _, axes = plt.subplots(1, 2, figsize=(8.6, 2.8))
    bins = np.linspace(0, 3, 31)
    for outcome, color, name in ((plain, WARM, "feedback"), (kept, COLD, "with filter")):
        axes[0].hist(
            outcome.nearest.clamp(max=3).numpy(), bins=bins, color=color, alpha=0.6, label=name
        )
    axes[0].axvline(corridor.contact(), c="black", ls=":")
    axes[0].set(xlabel="least distance of the agents", ylabel="shocks")
    axes[0].legend()
    axes[1].loglog(plain.cost, kept.cost, "o", c=COLD, ms=2.5)
    hit = plain.collides
    axes[1].loglog(plain.cost[hit], kept.cost[hit], "X", c=WARM, ms=5, label="collided without")
    ends = [float(plain.cost.min()), float(plain.cost.max())]
    axes[1].plot(ends, ends, c="black", lw=0.8, ls=":")
    ticks = [50, 100, 200, 400, 800]
    for scale in (axes[1].set_xticks, axes[1].set_yticks):
        scale(ticks, [f"{tick}" for tick in ticks])
    axes[1].minorticks_off()
    axes[1].set(xlabel="cost of the feedback", ylabel="cost with filter")
    axes[1].legend()
