"""What the lecture on neural ODEs draws, loaded or computed by one call."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import nn

from ctdl_lib.dynamics import integrate
from ctdl_lib.dynamics.stepping import hermite
from machinery import claims, plotting
from machinery.store import Run, Store, results_folder

from . import (
    adaptive,
    augmentation,
    duels,
    evidence,
    gradients,
    implicit,
    models,
    problems,
    spiral,
    turbulence,
)

SENTENCES = (
    "node.adaptive.work",
    "node.memory.adjoint",
    "node.reverse.gradient",
    "node.checkpointing.gradient",
    "anode.accuracy",
    "anode.loss.p5",
    "node.implicit.stiff",
    "node.implicit.stiff.work",
    "node.waves.explicit",
    "node.waves.differences",
)
SHOWN = (5, 2)  # two of the six solutions
LOOSE = 1e-2  # the tolerance in the picture of adaptive steps


@dataclass(frozen=True)
class Results:
    """The stored networks of one `seed`, and the studies over all seeds."""

    neural: nn.Module
    linear: nn.Module
    duels: dict[tuple[str, str], list[duels.Result]]
    contraction: dict[str, dict[int, list[float]]]
    nets: dict[str, models.NeuralODE]
    stiff: nn.Module
    waves: dict[str, turbulence.Stencil]
    seed: int


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says.

    All networks are small and stay on the CPU.
    """
    store, few = Store(evidence.CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in spiral.SEEDS[:few]]
    first, rule = seeds[0], implicit.Settings(implicit.KAPPA["stiff"], implicit.TRAPEZOID)
    return Results(
        neural=spiral.fit(store, "spiral", first).double(),
        linear=spiral.fit(store, "linear", first).double(),
        duels=duels.duels(store, seeds),
        contraction=gradients.contraction(store, seeds),
        nets={k: augmentation.fit(store, k, first) for k in (augmentation.PLAIN, augmentation.ONE)},
        stiff=implicit.fit(store, rule, first),
        waves={kind: turbulence.fit(store, kind, first) for kind in evidence.KINDS},
        seed=first,
    )


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def draw_spiral(found: Results) -> None:
    """Draw two solutions with observations in the plane, and one of them against time."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    later = torch.linspace(0, spiral.LONG, 241, dtype=torch.float64)
    x, series = spiral.starts(torch.float64), spiral.observed(found.seed)
    with torch.no_grad():
        paths = {
            "truth": problems.observe(problems.spiral_velocity, x, later).x,
            "linear ODE": integrate(found.linear, x, 0.0, spiral.LONG, steps=240, save_at=later),
            "neural ODE": integrate(found.neural, x, 0.0, spiral.LONG, steps=240, save_at=later),
        }
    colors = {"truth": "0.75", "neural ODE": plotting.COLORS[1], "linear ODE": plotting.COLORS[0]}
    for name, path in paths.items():
        style = {"color": colors[name], "lw": 4 if name == "truth" else 1.2}
        if name != "linear ODE":
            for k in SHOWN:
                left.plot(*path[:, k].T.numpy(), **style)
        right.plot(later.numpy(), path[:, SHOWN[0], 0].numpy(), label=name, **style)
    for k, marker in zip(SHOWN, ("o", "^"), strict=True):
        left.plot(*series.x[:, k].T.numpy(), marker, ms=3, color="black")
    left.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    right.plot(series.t.numpy(), series.x[:, SHOWN[0], 0].numpy(), "o", ms=3, color="black")
    right.axvline(spiral.OBSERVED, color="black", lw=0.8, ls=":")
    right.set(xlabel="time", ylabel="$x_1$", ylim=(-2.6, 3.4))
    right.legend(fontsize=7, ncols=3, loc="upper center")


def draw_adaptive() -> None:
    """Draw the steps of the embedded pair on an oscillator of Van der Pol, and their sizes."""
    _, (top, bottom) = plt.subplots(2, 1, figsize=(7.4, 4.0), sharex=True)
    f = problems.van_der_pol(adaptive.STIFFNESS)
    x = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    trials = adaptive.adaptive(f, x, adaptive.LONG, LOOSE)
    for trial in trials:
        if trial.accepted:
            slopes = f(trial.t, x), f(trial.t + trial.h, trial.end)
            inside = [
                hermite(trial.h, (x,), (trial.end,), (slopes[0],), (slopes[1],), s / 20)[0][0, 0]
                for s in range(21)
            ]
            times = [trial.t + trial.h * s / 20 for s in range(21)]
            top.plot(times, inside, color=plotting.COLORS[0], lw=1)
            top.plot(trial.t + trial.h, trial.end[0, 0], "o", ms=3, color=plotting.COLORS[0])
            x = trial.end
        color = plotting.COLORS[0 if trial.accepted else 1]
        bottom.semilogy(trial.t, trial.h, "o" if trial.accepted else "x", ms=4, color=color)
    bottom.plot([], [], "o", color=plotting.COLORS[0], label="accepted")
    bottom.plot([], [], "x", color=plotting.COLORS[1], label="rejected")
    top.set(ylabel="$x_1$")
    bottom.set(xlabel="time", ylabel="step size")
    bottom.legend(fontsize=7)


def draw_contraction(found: Results) -> None:
    """Draw the error of the gradient against the rate of contraction, dots and their median."""
    _, ax = plt.subplots(figsize=(6.4, 3.0))
    for k, (name, by_rate) in enumerate(found.contraction.items()):
        errors = [sorted(values) for values in by_rate.values()]
        style = {"color": plotting.COLORS[k], "marker": plotting.MARKERS[k]}
        ax.semilogy(list(by_rate), [e[len(e) // 2] for e in errors], label=name, **style)
        ax.semilogy(list(by_rate), errors, ls="", **style)
    ax.set(xlabel="rate of contraction c", ylabel="error of the gradient")
    ax.legend(fontsize=7)


def draw_duels(found: Results) -> None:
    """Draw the losses of both ways against their evaluations, one dot a seed."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3), sharey=True)
    for ax, name in ((left, "mild"), (right, "stiff")):
        for k, way in enumerate(duels.WAYS):
            pairs = [(r.evaluations / 1000, r.loss) for r in found.duels[name, way]]
            ax.semilogy(*zip(*pairs, strict=True), plotting.MARKERS[k], label=way)
        ax.set(xlabel="thousand evaluations of the velocity", title=f"c = {duels.RATES[name]:g}")
    left.set_ylabel("loss after training")
    right.legend(fontsize=7)


def draw_film(found: Results) -> None:
    """Draw how a flow of the plane, and one with a third dimension, move a disc and its ring."""
    _, axes = plt.subplots(2, 5, figsize=(8.6, 3.8))
    data = problems.annuli(found.seed).val
    times = torch.linspace(0, 1, 5)
    for row, (kind, net) in zip(axes, found.nets.items(), strict=True):
        with torch.no_grad():
            path = net.features(data.y, save_at=times)
        shown = (0, 1) if net.augment == 0 else (0, 2)
        for ax, t, x in zip(row, times.tolist(), path, strict=True):
            plotting.scatter(ax, x[:, shown], data.label)
            ax.set(xticks=[], yticks=[], title=f"t = {t:.2g}" if net.augment == 0 else "")
        row[0].set_ylabel(f"{kind}\n" + ("$x_1$, $x_2$" if net.augment == 0 else "$x_1$, $x_3$"))


def draw_waves(found: Results) -> None:
    """Draw the truth, two predictions, and the rates at which waves grow."""
    _, axes = plt.subplots(1, 4, figsize=(8.8, 3.2), width_ratios=(1, 1, 1, 1.5))
    horizon = 60.0
    u = turbulence.solutions(found.seed + 5000, 8, horizon)
    panels = {"truth": u[:, 0]}
    for kind in (turbulence.IMPLICIT, turbulence.DIFFERENCES):
        panels[kind] = turbulence.predict(found.waves[kind], u[0], len(u) - 1)[:, 0]
    for ax, (title, panel) in zip(axes, panels.items(), strict=False):
        extent = (0, turbulence.LENGTH, 0, (len(panel) - 1) * turbulence.INTERVAL)
        how = {"origin": "lower", "aspect": "auto", "cmap": "RdBu_r", "vmin": -3, "vmax": 3}
        ax.imshow(panel.numpy(), extent=extent, **how)
        ax.set(title=title, xlabel="x", ylim=(0, horizon))
        ax.grid(False)
        if ax is not axes[0]:
            ax.tick_params(labelleft=False)
    axes[0].set_ylabel("time")
    k = turbulence.wave_numbers()
    few = k <= 2
    axes[3].plot(k[few], (k**2 - k**4)[few], color="0.75", lw=4, label="$k^2 - k^4$")
    for i, (kind, net) in enumerate(found.waves.items()):
        rates = turbulence.growth_rates(net)
        axes[3].plot(k[few], rates[few], plotting.MARKERS[i], ms=4, label=kind)
    axes[3].set(xlabel="wave number k", ylabel="growth rate", ylim=(-4, 0.6), xlim=(0, 1.6))
    axes[3].legend(fontsize=7)
