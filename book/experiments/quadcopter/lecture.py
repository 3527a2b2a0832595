"""What the lecture on quadcopters draws, loaded or computed by one call."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ctdl_lib.control import rollout
from ctdl_lib.control.problem import Policy
from machinery import claims, plotting
from machinery.store import Run, Store, results_folder

from . import contests, plans, training
from .blends import best_of, blended
from .contests import (
    BLEND,
    BOUNDED,
    DETERMINISTIC,
    FLAT,
    LINEAR,
    MPC,
    OPEN,
    STOCHASTIC,
    Contests,
)
from .flights import DISTURBANCES, FIRST, linear, name_of, network, open_loop, wind
from .training import CHAPTER, Fitted

SENTENCES = (
    "quad.beats_deterministic.nt200",
    "quad.robust.sigma02",
    "quad.linear.robust",
    "quad.beats_linear.sigma02.nt50",
    "quad.beats_linear.sigma02.nt100",
    "quad.beats_linear.sigma02.nt200",
    "quad.beats_linear.sigma04.nt100",
    "quad.gap_to_mpc.sigma02.nt100",
    "quad.disturbed.rotor",
    "quad.disturbed.own_plan",
    "quad.blend.beats_both.sigma02.nt100",
    "quad.blend.beats_both.sigma04.nt100",
)
STYLES = {  # colour and marker of each controller
    name: (plotting.COLORS[i], plotting.MARKERS[i])
    for i, name in enumerate((STOCHASTIC, LINEAR, BLEND, DETERMINISTIC, OPEN, BOUNDED, MPC))
}
BOX = {"xlim": (-2, 3), "ylim": (-2, 3), "zlim": (-2, 3)}


@dataclass(frozen=True)
class Results:
    """The stored networks and contests, and whether this is a trial run."""

    nets: dict[str, list[Fitted]]
    contests: Contests
    smoke: bool

    def controllers(self, steps: int) -> dict[str, Policy]:
        """The controllers that lectures and films show, those of the first seed."""
        phi = {name: row[0].phi for name, row in self.nets.items()}
        radius = best_of(self.contests.scores["blend"])
        return {
            OPEN: open_loop(steps),
            DETERMINISTIC: network(phi[DETERMINISTIC])(steps),
            LINEAR: linear(steps),
            STOCHASTIC: network(phi[STOCHASTIC])(steps),
            BLEND: partial(blended, phi[STOCHASTIC], radius)(steps),
        }


def results(run: Run, device: str = "cpu", seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store = Store(CHAPTER, run)
    kinds = {STOCHASTIC: "stochastic", DETERMINISTIC: "deterministic", FLAT: "flat"}
    nets = {name: training.trained(store, kind, seed) for name, kind in kinds.items()}
    plans.kept(store)  # for the playground, which shall not wait for a solver
    return Results(nets, contests.held(store, nets), run == "smoke")


def verdicts() -> str:
    """What the evidence says of the talk's sentences, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


def paths(policy: Policy, sigma: float, flights: int, steps: int = 100) -> Tensor:
    """The states of the first flights in the common winds, (steps + 1, flights, 12)."""
    x = plans.QUAD.start.expand(flights, 12)
    problem = plans.Quadcopter(diffusion=sigma)
    return rollout(problem, policy, x, steps=steps, dW=wind(steps, flights)).x


def arms(x: Tensor, size: float = 0.35) -> Tensor:
    """The ends of the two arms of a copter with the state x, (2 arms, 2 ends, 3)."""
    (s1, s2, s3), (c1, c2, c3) = x[3:6].sin(), x[3:6].cos()
    first = torch.stack([c1 * c2, s1 * c2, -s2])
    second = torch.stack([c1 * s2 * s3 - s1 * c3, s1 * s2 * s3 + c1 * c3, c2 * s3])
    ends = size * torch.stack([first, second])
    return x[:3] + torch.stack([ends, -ends], 1)


def draw_copter(ax: Axes, x: Tensor, color: str) -> None:
    """Draw the two arms of a copter."""
    for ends in arms(x):
        ax.plot(*ends.T, lw=2, color=color, solid_capstyle="round")


def space(fig: Figure, columns: int, k: int) -> Axes:
    """An axes in space, with start and target."""
    ax = fig.add_subplot(1, columns, k + 1, projection="3d")
    ax.plot(*plans.QUAD.start[:3, None], "ko", ms=4)
    ax.plot(*plans.QUAD.target[:3, None], "k*", ms=9)
    ax.set(**BOX, xticks=(-1, 2), yticks=(-1, 2), zticks=(-1, 2))
    ax.set_box_aspect((1, 1, 1), zoom=1.2)  # pyright: ignore[reportArgumentType]
    ax.tick_params(labelsize=8, pad=-2)
    return ax


def draw_flights(found: Results) -> None:
    """Draw six flights of four controllers in the same wind."""
    fig = plt.figure(figsize=(9.6, 2.9))
    shown = found.controllers(100)
    for k, name in enumerate((OPEN, DETERMINISTIC, LINEAR, STOCHASTIC)):
        ax = space(fig, 4, k)
        ax.plot(*plans.best(100).x[:, :3].T, color="0.6", lw=2)
        for flight in paths(shown[name], 0.2, 6)[:, :, :3].unbind(1):
            ax.plot(*flight.T, lw=0.9, color=STYLES[name][0])
        ax.set_title(name, fontsize=9)


def draw_live(
    curve: Sequence[float], before: Tensor, after: Tensor, start: Tensor, target: Tensor
) -> None:
    """Draw the loss of the live training, and flights before it and after it."""
    _, axes = plt.subplots(1, 3, figsize=(8.6, 2.6), width_ratios=(1.3, 1, 1))
    axes[0].semilogy(curve)
    axes[0].set(xlabel="step", ylabel="cost")
    for ax, x, title in zip(axes[1:], (before, after), ("before", "after"), strict=True):
        ax.plot(x[:, :, 0], x[:, :, 1], lw=0.8, c=plotting.COLORS[0])
        ax.plot(*start[:2], "ko")
        ax.plot(*target[:2], "k*", ms=10)
        ax.set(xlabel="place", title=title, xlim=(-3, 4), ylim=(-4, 4))
    axes[1].set_ylabel("height")


def gain_of(policy: Policy, steps: int) -> list[float]:
    """The Frobenius norm of ∂u/∂x on the best plan at each step, by central differences."""
    eye, eps, norms = torch.eye(12, dtype=torch.float64), 1e-5, []
    for k, x in enumerate(plans.best(steps).x[:-1]):
        up, down = policy(k / steps, x + eps * eye), policy(k / steps, x - eps * eye)
        norms.append(float(((up - down) / (2 * eps)).norm()))
    return norms


def draw_gains(found: Results) -> None:
    """Draw how strongly the controllers react to a deviation from the plan."""
    _, ax = plt.subplots(figsize=(6.4, 2.8))
    for steps, style in zip(plans.STEPS, (":", "--", "-"), strict=True):
        times = [k / steps for k in range(steps)]
        gains = plans.along(steps).K[:, 0].flatten(1).norm(dim=1)
        color = STYLES[LINEAR][0]
        ax.semilogy(times, gains, style, c=color, label=f"linear feedback, {steps} steps")
    times = [k / 100 for k in range(100)]
    gains = gain_of(network(found.nets[STOCHASTIC][0].phi)(100), 100)
    ax.semilogy(times, gains, c=STYLES[STOCHASTIC][0], lw=2, label="network, any steps")
    ax.set(xlabel="t", ylabel="gain ‖∂u/∂x‖")
    ax.legend(fontsize=7)


def excess(found: Results, name: str, condition: str) -> tuple[float, float]:
    """What is paid more than by MPC on the same flights, and its standard error, in percent.

    Where only a mean of MPC is known, the error is not, and is zero.
    """
    tables = found.contests.winds[name]
    bar = found.contests.winds[MPC][0].get(condition)
    flights = FIRST if bar is None else len(bar)
    each = (table[condition][:flights] for table in tables)
    mine = [fmean(row) for row in zip(*each, strict=True)]
    if bar is None:
        return 100 * (fmean(mine) / found.contests.first[condition]["mean"] - 1), 0.0
    apart = [100 * (a - b) / fmean(bar) for a, b in zip(mine, bar, strict=True)]
    return fmean(apart), stdev(apart) / math.sqrt(len(apart))


def draw_gaps(found: Results) -> None:
    """Draw what controllers pay more than MPC, by steps and strength of the wind."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.0))
    shown = {0.2: (STOCHASTIC, LINEAR, BLEND), 0.4: (STOCHASTIC, BOUNDED, BLEND)}
    there = {**found.contests.winds[MPC][0], **found.contests.first}
    for ax, (sigma, names) in zip(axes, shown.items(), strict=True):
        steps = [n for n in plans.STEPS if name_of(sigma, n) in there]
        for shift, name in zip((-0.12, 0, 0.12), names, strict=True):
            pairs = [excess(found, name, name_of(sigma, n)) for n in steps]
            color, marker = STYLES[name]
            means, errors = [p[0] for p in pairs], [2 * p[1] for p in pairs]
            at = [i + shift for i in range(len(steps))]
            style = {"color": color, "marker": marker, "ls": "", "ms": 6, "capsize": 3}
            ax.errorbar(at, means, errors, label=name, **style)
        ax.axhline(0, c="black", lw=1)
        ax.set_xticks(range(len(steps)), [f"{n} steps" for n in steps])
        ax.set_title(f"σ = {sigma:g}", fontsize=9)
        ax.legend(fontsize=7, loc="upper center")
    axes[0].set_ylabel("percent above MPC")
    axes[1].set_yscale("symlog", linthresh=30)


def draw_disturbed(found: Results) -> None:
    """Draw the mean costs of controllers under disturbances that none was told of."""
    _, ax = plt.subplots(figsize=(8.6, 3.0))
    names = (STOCHASTIC, LINEAR, BLEND, DETERMINISTIC, OPEN)
    for i, name in enumerate(names):
        tables = found.contests.disturbed[name]
        means = [fmean(fmean(t[at]) for t in tables) for at in DISTURBANCES]
        at = [k + (i - 2) * 0.16 for k in range(len(means))]
        ax.bar(at, means, 0.15, color=STYLES[name][0], label=name)
    ax.set(yscale="log", ylim=(2000, None), ylabel="mean cost")
    ax.set_xticks(range(len(DISTURBANCES)), DISTURBANCES)
    ax.legend(fontsize=7, ncols=2)


def draw_tumble(found: Results) -> None:
    """Draw sorted costs in strong wind, and how the worst linear flight turns over."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.0))
    at = "0.4 100"
    for name in (STOCHASTIC, LINEAR, BOUNDED, BLEND, MPC):
        row = found.contests.winds[name][0].get(at, [2000.0])
        share = torch.linspace(0, 1, len(row))
        axes[0].plot(sorted(row), share, c=STYLES[name][0], label=name)
    axes[0].set(xscale="log", xlim=(2500, 1e6), xlabel="cost", ylabel="share of flights")
    axes[0].legend(fontsize=7)
    flights = 8 if found.smoke else 200
    shown = found.controllers(100)
    x = paths(shown[LINEAR], 0.4, flights)
    worst = int((x[-1] - plans.QUAD.target).square().sum(1).argmax())
    times = torch.linspace(0, 1, 101)
    for name in (LINEAR, STOCHASTIC, BLEND):
        path = x if name == LINEAR else paths(shown[name], 0.4, flights)
        up = path[:, worst, 4].cos() * path[:, worst, 5].cos()
        tilt = torch.rad2deg(torch.arccos(up.clamp(-1, 1)))
        axes[1].plot(times, tilt, c=STYLES[name][0], label=name)
    axes[1].axhline(90, c="black", lw=0.8, ls=":")
    axes[1].set(xlabel="t", ylabel="tilt in degrees", ylim=(0, 185))


def frames(found: Results) -> Iterator[Figure]:
    """The pictures of a film: four copters in the same wind, one of the first six."""
    shown = found.controllers(100)
    flown = {name: paths(shown[name], 0.2, 6) for name in (OPEN, DETERMINISTIC, LINEAR, STOCHASTIC)}
    missed = (flown[DETERMINISTIC][-1] - plans.QUAD.target).square().sum(1)
    one = int(missed.argmax())  # where training without noise is seen to miss
    for k in [*range(0, 100, 50 if found.smoke else 8), 100]:
        fig = plt.figure(figsize=(6.8, 4.6))
        ax = space(fig, 1, 0)
        for name, x in ((name, x[:, one]) for name, x in flown.items()):
            color = STYLES[name][0]
            ax.plot(*x[: k + 1, :3].T, lw=1.2, color=color, label=name)
            draw_copter(ax, x[k], color)
        ax.set_title(f"t = {k / 100:.2f}", fontsize=10)
        ax.legend(fontsize=9, loc="upper left")
        yield fig


def film(found: Results) -> str:
    """The film as HTML, with its description."""
    story = (
        "Four quadcopters in the same wind fly to a star. The one on a plan drifts off, the one "
        "trained without noise misses the star. The linear feedback and the network trained with "
        "noise arrive."
    )
    return plotting.film(frames(found), story, dpi=100)
