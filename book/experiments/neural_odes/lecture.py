"""What the lecture on neural ODEs draws, loaded or computed by one call."""

from dataclasses import dataclass
from typing import Any

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
    flows,
    gradients,
    implicit,
    memory,
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
    """The stored networks of one seed, and the studies over all seeds."""

    neural: nn.Module
    linear: nn.Module
    duels: dict[tuple[str, str], list[duels.Result]]
    races: dict[str, dict[str, Any]]
    tolerances: dict[str, list[float]]
    contraction: dict[str, dict[int, list[float]]]
    memory: memory.Study
    nets: dict[str, models.NeuralODE]
    annuli: dict[str, list[augmentation.History]]
    flow: Any
    stiff: dict[str, nn.Module]
    predictions: dict[str, list[float]]
    waves: dict[str, turbulence.Stencil]
    times: dict[str, list[float]]
    seeds: list[int]

    @property
    def seed(self) -> int:
        """The seed of the networks that are drawn."""
        return self.seeds[0]

    def wave_table(self) -> str:
        """How long predictions of waves stay near the truth, as a Markdown table."""
        names = {
            turbulence.IMPLICIT: "trapezoidal rule, solved in the end",
            turbulence.REGRESSION: "trapezoidal rule, regression alone",
            turbulence.DIFFERENCES: "central differences",
            turbulence.EXPLICIT: "one step of RK4",
        }
        lines = ["| found by | valid time |", "|---|---:|"]
        for kind, times in self.times.items():
            mean, spread = sum(times) / len(times), claims.spread_of(times)
            lines.append(f"| {names[kind]} | {mean:.1f} ± {spread:.1f} |")
        return "\n".join(lines)


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says.

    All networks are small and stay on the CPU.
    """
    store, few = Store(evidence.CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in spiral.SEEDS[:few]]
    first = seeds[0]
    neural = spiral.fit(store, "spiral", first).double()
    return Results(
        neural=neural,
        linear=spiral.fit(store, "linear", first).double(),
        duels=duels.duels(store, seeds),
        races=gradients.races(store, neural, seed),
        tolerances=gradients.tolerance_study(store, neural, first),
        contraction=gradients.contraction(store, seeds),
        memory=memory.study(store),
        nets={k: augmentation.fit(store, k, first) for k in (augmentation.PLAIN, augmentation.ONE)},
        annuli={k: augmentation.histories(store, k, seeds) for k in augmentation.KINDS},
        flow=flows.fit(store, first),
        stiff={
            rule: implicit.fit(store, implicit.Settings(implicit.KAPPA["stiff"], rule), first)
            for rule in implicit.STEPS
        },
        predictions={
            rule: implicit.prediction_errors(store, "stiff", rule, seeds) for rule in implicit.STEPS
        },
        waves={kind: turbulence.fit(store, kind, first) for kind in evidence.KINDS},
        times={kind: turbulence.study(store, kind, seeds) for kind in evidence.KINDS},
        seeds=seeds,
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


def draw_tolerances(found: Results) -> None:
    """Draw errors of gradients against the tolerance, and Taylor tests."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3))
    colors = {"adjoint": plotting.COLORS[0], "through": plotting.COLORS[1]}
    for name, errors in found.tolerances.items():
        way, is_own = name.split()[-1], name.startswith("own")
        label = f"{way}, against {'its own loss' if is_own else 'the ODE'}"
        style = {"color": colors[way], "ls": "--" if is_own else "-", "marker": "^s"[is_own]}
        left.loglog(gradients.TOLERANCES[: len(errors)], errors, label=label, **style)
    left.set(xlabel="tolerance", ylabel="relative error of the gradient")
    left.legend(fontsize=7)
    for k, (name, how) in enumerate(gradients.WAYS.items()):
        errors = gradients.taylor(found.neural, how, found.seed)
        style = {"marker": plotting.MARKERS[k], "ls": "--" if k == 1 else "-", "ms": 3}
        right.loglog(errors.h.numpy(), errors.first.numpy(), label=name, **style)
    h = torch.tensor([0.5**k for k in range(20)]).numpy()
    right.loglog(h, h**2, color="0.6", lw=1, label="slope 2")
    right.set(xlabel="size of the change", ylabel="error of first-order Taylor")
    right.legend(fontsize=7)


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


def draw_memory(found: Results) -> None:
    """Draw the peak of the memory and the evaluations against the number of steps."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3))
    steps = found.memory.steps
    for k, (way, peaks) in enumerate(found.memory.peaks.items()):
        left.loglog(steps, peaks, plotting.MARKERS[k] + "-", label=way)
    for k, (way, counts) in enumerate(found.memory.evaluations.items()):
        right.semilogx(steps, counts, plotting.MARKERS[k] + "-", label=way)
    for ax in (left, right):
        ax.set_xticks(steps, [str(n) for n in steps])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("steps N")
    left.set_ylabel("bytes at the peak")
    right.set_ylabel("evaluations / forward pass")
    left.legend(fontsize=6)


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


def draw_race(found: Results) -> None:
    """Draw the error of the gradient against the time that it takes."""
    _, ax = plt.subplots(figsize=(6.6, 3.6))
    work = found.races["trained"]
    names = dict.fromkeys(key.split("|")[0] for key in work["error"] if "one" not in key)
    for k, name in enumerate(names):
        keys = [key for key in work["error"] if key.split("|")[0] == name]
        points = [(1e3 * min(r[key] for r in work["seconds"]), work["error"][key]) for key in keys]
        ax.loglog(*zip(*points, strict=True), marker=plotting.MARKERS[k], label=name)
    ax.set(xlabel="milliseconds", ylabel="error of the gradient")
    ax.legend(fontsize=7)


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


def draw_annuli(found: Results) -> None:
    """Draw loss and evaluations over the epochs, one line a seed."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.0))
    for k, (kind, histories) in enumerate(found.annuli.items()):
        for history in histories:
            epochs = [2 * (i + 1) for i in range(len(history.loss))]
            label = kind * (history is histories[0])
            left.semilogy(epochs, history.loss, color=plotting.COLORS[k], lw=0.9, label=label)
            right.plot(epochs, history.evaluations, color=plotting.COLORS[k], lw=0.9)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="evaluations")
    left.legend(fontsize=7)


def draw_flow(found: Results) -> None:
    """Draw the density of the moons, that of the residual flow, and errors of its inverse."""
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(8.8, 2.6))
    a, b = torch.linspace(-1.6, 2.6, 121), torch.linspace(-1.1, 1.6, 81)
    plane = torch.cartesian_prod(a, b)
    with torch.no_grad():
        learned = flows.log_density(found.flow, plane).exp()
    for ax, density, title in (
        (left, flows.true_density(plane), "true density"),
        (middle, learned, "residual flow"),
    ):
        ax.pcolormesh(a, b, density.view(121, 81).T, vmin=0, vmax=0.6, rasterized=True)
        ax.set(title=title, xticks=[], yticks=[], aspect="equal")
        ax.grid(False)
    counts = range(1, 41, 3)
    for factor, label in ((0.5, "L = 0.45"), (1.0, "L = 0.9"), (1.2, "L = 1.08")):
        errors = [flows.inverse_error(found.seed, n, factor) for n in counts]
        right.semilogy(list(counts), errors, label=label)
    right.set(xlabel="iterations", ylabel="error of the inverse")
    right.legend(fontsize=7)


def draw_stiff(found: Results) -> None:
    """Draw predictions of the slow-fast system, and their errors, one dot a seed."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.1))
    kappa, x = implicit.KAPPA["stiff"], implicit.points(8, found.seed + 5000)[:1]
    count = round(implicit.LONG / implicit.INTERVAL)
    times = torch.linspace(0, implicit.LONG, count + 1).tolist()
    truth = torch.cat([implicit.solution(kappa, x, t) for t in times])
    left.plot(times, truth[:, 2].numpy(), color="0.75", lw=4, label="truth")
    for k, (rule, net) in enumerate(found.stiff.items()):
        how = {"steps": 10 * count, "save_at": times}  # fine enough for the rates that were found
        with torch.no_grad():
            shown = integrate(net, x, 0.0, implicit.LONG, **how)[:, 0, 2].numpy()
        left.plot(times, shown, color=plotting.COLORS[k], lw=1.2, label=rule)
        values = found.predictions[rule]
        right.semilogy([k] * len(values), values, plotting.MARKERS[k], color=plotting.COLORS[k])
    left.set(xlabel="time", ylabel="$x_3$")
    left.legend(fontsize=7)
    right.set_xticks(range(len(found.stiff)), [r.replace(", ", ",\n") for r in found.stiff])
    right.tick_params(axis="x", labelsize=7)
    right.set(ylabel="mean distance until t = 6", xlim=(-0.5, len(found.stiff) - 0.5))


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
