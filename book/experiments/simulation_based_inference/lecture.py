"""What the pages on simulation-based inference draw, loaded or computed by one call."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ctdl_lib.dynamics import integrate
from ctdl_lib.generative import Flow
from machinery import claims, plotting
from machinery.seeds import seeded
from machinery.store import Record, Run, Store, results_folder

from . import benchmark, calibration, checks, maps, references
from .campaigns import seeds as spawned
from .evidence import LARGE, MEAN, SMALL, Evidence
from .lotka_volterra import rate_equations
from .maps import CHAPTER, COT, COT_READS, Key
from .predators import LENGTHS, OBSERVED, PROBLEM, TRUE, Campaign, chosen, features, inside
from .problems import LinearGaussian

SENTENCES = (
    "sbi.gaussian.kl",
    "lv.cot.match",
    "lv.cot50k.match",
    "lv.cot50k.theta2.saving",
    "lv.cot50k.theta2.saving_adapted",
    "lv.cot50k.theta1.seconds",
    "lv.cot.nll.n50000",
    "sbibm.two_moons.c2st.cot",
)
STRIP = (1.0, 0.75, 0.5, 0.25, 0.0)
SHOWN = checks.JUDGED[1], checks.JUDGED[0], *checks.JUDGED[2:]
ABC = (
    ("", "SMC-ABC, published distance", "-"),
    ("-half", "the same, fewer particles", "--"),
    ("-adapted", "SMC-ABC, adapted distance", "-."),
)
SPECIES = ("predators", "prey")
SHARE = 0.9  # of the mass in a region


@dataclass(frozen=True)
class Results:
    """What has been learned about predators and prey, and what it is compared with."""

    campaign: Campaign
    smc: dict[str, Record]
    matches: dict[tuple[str, int], list[list[Key]]]
    rejections: dict[int, list[list[Key]]]

    def model(self, name: str, n: int, k: int = 0) -> Any:
        """The map of the seed number k."""
        return self.campaign.fits(name, n)[k].model


def results(run: Run, seed: int = 0) -> Results:
    """The results that the lecture shows: loaded, trained or tried out as `run` says."""
    store = Store(CHAPTER, run)
    campaign = Campaign(store, seed)
    benchmark.two_moons(store, seed)  # for the playground
    return Results(
        campaign=campaign,
        smc=references.records(store, seed),
        matches=checks.all_matches(campaign),
        rejections={n: checks.rejections(campaign, n) for n in (SMALL, LARGE)},
    )


def verdicts() -> str:
    """What the evidence says of the sentences of the talk, as a Markdown list."""
    rows = claims.read(results_folder() / "claims" / f"{CHAPTER}.json")
    return claims.sentences(rows, SENTENCES)


# predators and prey -----------------------------------------------------------------------------


def draw_strip(found: Results) -> None:
    """Draw how one network moves the same noise to the posteriors of two observations."""
    model = maps.by_steps(found.model(chosen(COT, LARGE), LARGE), 32)
    _, axes = plt.subplots(1, len(STRIP), figsize=(8.6, 2.5), sharey=True)
    for index, color in enumerate(plotting.COLORS[:2]):
        bound = model.given(features(OBSERVED[[index]]))
        z = bound.reference(120, seeded(found.campaign.seed, 0))
        with torch.no_grad():
            path = bound.inverse(z, save_at=torch.linspace(1, 0, 33))
        for ax, t in zip(axes, STRIP, strict=True):
            until = path[: round(32 * (1 - t)) + 1, :, :2]
            ax.plot(until[:, :24, 0], until[:, :24, 1], color=color, lw=0.4, alpha=0.7)
            ax.plot(until[-1, :, 0], until[-1, :, 1], ".", color=color, ms=2)
    for index in (0, 1):
        x = references.thinned(found.smc[f"theta{index + 1}-adapted"])
        scaled = model.data(x.float())
        axes[-1].plot(scaled[:, 0], scaled[:, 1], "x", color="black", ms=2, alpha=0.35, zorder=0)
    for ax, t in zip(axes, STRIP, strict=True):
        ax.set(title=f"t = {t:g}", xlim=(-3.0, 3.0), ylim=(-3.0, 3.0), aspect="equal")
        ax.set(xlabel="$\\bar x_1$")
    axes[0].set_ylabel("$\\bar x_2$")


def draw_paths(seed: int = 0) -> None:
    """Draw simulated paths for both true parameters, and the limit of large populations."""
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.0))
    for index, ax in enumerate(axes):
        states = PROBLEM.paths(TRUE[[index]].expand(3, 4), spawned(3, seed)).states
        start = torch.tensor(PROBLEM.start).double()
        velocity, times = rate_equations(TRUE[index]), PROBLEM.times
        limit = integrate(velocity, start, 0, 29.8, tol=1e-6, save_at=times)
        for k, (name, color) in enumerate(zip(SPECIES, plotting.COLORS, strict=False)):
            ax.plot(PROBLEM.times, states[..., k].T, c=color, lw=0.7)
            ax.plot(PROBLEM.times, limit[:, k], "--", c=color, label=name)
            ax.axhline(float(OBSERVED[index, k]), ls=":", c=color)
        ax.set(xlabel="time", title=f"parameters of observation {index + 1}")
    axes[0].set_ylabel("individuals")
    axes[0].legend()


def draw_marginals(found: Results) -> None:
    """Draw the marginals of the posteriors of both observations."""
    _, axes = plt.subplots(2, 4, figsize=(8.6, 4.0))
    places = [(COT, SMALL), (COT_READS, SMALL), (COT_READS, LARGE)]
    for index, row in enumerate(axes):
        smc = references.resampled(found.smc[f"theta{index + 1}-adapted"], 5000)
        n = 300 if found.campaign.smoke else 5000
        drawn = [inside(found.model(*place), OBSERVED[index], n) for place in places]
        for j, ax in enumerate(row):
            low, high = (torch.cat([smc[:, j], *(x[:, j] for x in drawn)]).quantile(q).item()
                         for q in (0.002, 0.998))  # fmt: skip
            bins = np.linspace(low, high, 41)
            how = {"bins": bins, "density": True}
            ax.hist(smc[:, j].numpy(), **how, color="0.75", label="SMC-ABC")
            for (name, size), x, color in zip(places, drawn, plotting.COLORS, strict=False):
                label = f"{name}, {size // 1000}k"
                ax.hist(x[:, j].numpy(), **how, histtype="step", color=color, label=label)
            ax.axvline(float(TRUE[index, j]), c="black", lw=0.8)
            ax.set(yticks=[], xlabel=f"log θ{j + 1}" if index else "")
        row[0].set_ylabel(f"observation {index + 1}")
    axes[0, 3].legend(fontsize=6.5)


def look_of(name: str) -> tuple[str, str]:
    """The marker of how a map was trained, and the colour of its method."""
    base, _, variant = name.partition("+")
    marker = {"": "o", "average": "^", "wide": "v", "encoder": "s"}[variant]
    return marker, plotting.COLORS[maps.METHODS.index(base)]


def draw_quality(nll: dict[tuple[str, int], dict[str, list[float]]]) -> None:
    """Draw the NLL of new pairs against the number of simulations."""
    _, ax = plt.subplots(figsize=(8.0, 3.4))
    for name in sorted(LENGTHS, key=lambda name: maps.METHODS.index(maps.base_of(name))):
        marker, color = look_of(name)
        sizes = [n for k, n in nll if k == name]
        rows = [torch.tensor(list(nll[name, n].values())[-1]) for n in sizes]
        bars = [row.std().item() if len(row) > 1 else 0.0 for row in rows]
        means = [row.mean().item() for row in rows]
        how = {"marker": marker, "color": color, "label": name, "capsize": 3}
        ax.errorbar(sizes, means, bars, **how)
    ax.set(xscale="log", xlabel="simulations", ylabel="NLL of new pairs (nats)")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_costs(found: Results) -> None:
    """Draw how near a posterior is to the reference against the simulations that it took."""
    _, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), sharey=True)
    for index, ax in enumerate(axes):
        ref = references.last(found.smc[f"theta{index + 1}-adapted"])
        for end, label, look in ABC:
            rounds = list(references.approaches(found.smc[f"theta{index + 1}{end}"], ref))
            shown = [(n, gap.mean) for n, gap in rounds if gap.mean > 0]  # 0: the reference
            counts, shift = zip(*shown, strict=True)
            ax.plot(counts, shift, look, c="0.4", lw=1, label=label)
        rivals = {n: found.rejections[n] for n in found.rejections}
        _mark(ax, rivals, ref, index, ("rejection ABC", "X", "0.4"))
        for name in (name for name in LENGTHS if name not in (*maps.LONG, maps.COT_WIDE)):
            own = {n: rows for (k, n), rows in found.matches.items() if k == name}
            _mark(ax, own, ref, index, (name, *look_of(name)))
        ax.axhline(MEAN, ls=":", c="black", lw=0.8)
        ax.set(xscale="log", yscale="log", xlabel="simulations", title=f"observation {index + 1}")
        ax.set(xlim=(2e4, 4e7), ylim=(0.04, 20))
    axes[0].set_ylabel("worst error of a mean (σ)")
    axes[1].legend(fontsize=6.5, ncols=2, loc="upper right")


def _mark(
    ax: Axes, rows: dict[int, list[list[Key]]], ref: Key, index: int, look: tuple[str, str, str]
) -> None:
    """Marks of all seeds."""
    label, marker, color = look
    for k, (n, found) in enumerate(rows.items()):
        shift = [references.gap(row, ref).mean for row in found[index]]
        ax.plot([n] * len(shift), shift, marker, c=color, label=None if k else label, ls="")


def draw_calibration(own: checks.Ranks, narrow: checks.Ranks) -> None:
    """Draw the coverage of ranks: of COT-Flow, and of the same samples made too narrow."""
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.0), sharey=True)
    alpha: Any = None
    for ax, ranks, title in zip(
        axes, (own, narrow), ("COT-Flow", "its samples, 20 % narrower"), strict=True
    ):
        for j in range(4):
            column = ranks.sbc[0][:, j]
            alpha, share = calibration.rank_coverage(column, checks.DRAWN)
            ax.plot(alpha, share - alpha, label=f"log θ{j + 1}")
        ax.set(xlabel="level", title=title)
    n, some = len(own.sbc[0]), alpha[1:-1:3]
    band = calibration.rank_band(n, some, level=0.95)
    for ax in axes:
        ax.fill_between(some, band.low - some, band.high - some, color="0.85", zorder=0)
    axes[0].set_ylabel("share below, less level")
    axes[1].legend(fontsize=8)


# problems with known posteriors -----------------------------------------------------------------


class Answer(NamedTuple):
    """The mean and the standard deviation of a coordinate."""

    mean: Tensor
    std: Tensor


def ellipse(mean: Tensor, covariance: Tensor, share: float = SHARE) -> Tensor:
    """The curve around a Gaussian in the plane that holds a share of its mass."""
    angle = torch.linspace(0, 2 * torch.pi, 100, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    radius = (-2 * torch.tensor(1 - share).log()).sqrt()
    return mean + radius * circle @ torch.linalg.cholesky(covariance).T


def draw_live(flow: Flow, problem: LinearGaussian, seed: int = 0) -> None:
    """Draw learned samples and exact regions for three observations, and all log-densities."""
    _, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for y, color in zip((-2.0, 0.0, 2.0), plotting.COLORS, strict=False):
        at = torch.tensor([[y]], dtype=torch.float64)
        x = flow.given(at.float()).sample(200, seeded(seed, 0))
        left.plot(x[:, 0], x[:, 1], ".", c=color, ms=2, alpha=0.6)
        mean, covariance = problem.posterior(at)
        curve = ellipse(mean[0], covariance)
        left.plot(curve[:, 0], curve[:, 1], c=color, label=f"y = {y:g}")
    left.set(xlabel="$x_1$", ylabel="$x_2$", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), aspect="equal")
    left.legend(fontsize=8)
    x = problem.prior.sample(400, seeded(seed, 1), dtype=torch.float64)
    y, _ = problem.simulate(x, spawned(400, seed + 1))
    with torch.no_grad(), maps.quietly():
        ours = flow.given(y.float()).log_prob(x.float())
    exact = problem.posterior_log_prob(x, y)
    right.plot(exact, ours, ".", c=plotting.COLORS[0], ms=3)
    ends = [float(exact.min()), float(exact.max())]
    right.plot(ends, ends, c="black", lw=0.8)
    right.set(xlabel="exact log-density", ylabel="learned log-density")


def answer(flow: Flow, y: float, n: int = 2000, seed: int = 0) -> Answer:
    """What a flow says of the first coordinate for one observation, without its warning."""
    with warnings.catch_warnings(action="ignore"):
        x = flow.given(torch.tensor([[y]])).sample(n, seeded(seed, 0))[:, 0]
    return Answer(x.mean(), x.std())


def draw_outside(flow: Flow, problem: LinearGaussian, farthest: float = 14.0) -> None:
    """Draw the learned and the exact posterior of x₁ for observations in and out of the data."""
    _, ax = plt.subplots(figsize=(6.0, 3.2))
    y = torch.linspace(-farthest, farthest, 29, dtype=torch.float64)
    exact, covariance = problem.posterior(y[:, None])
    std = covariance[0, 0].sqrt()
    ax.fill_between(y, exact[:, 0] - 2 * std, exact[:, 0] + 2 * std, color="0.8", label="exact")
    found = [answer(flow, value) for value in y.tolist()]
    mean, width = (torch.stack(part) for part in zip(*found, strict=True))
    how = {"c": plotting.COLORS[0], "fmt": ".", "capsize": 2, "lw": 0.8, "label": "learned"}
    ax.errorbar(y, mean, 2 * width, **how)
    seen = flow.seen[0] * flow.conditions.std + flow.conditions.mean
    for end in seen.tolist():
        ax.axvline(end, c="black", ls=":", lw=0.8)
    ax.set(xlabel="observation y", ylabel="$x_1$, mean ± 2 deviations")
    ax.legend(fontsize=8)


def on_line(log_likelihood: Callable[[Tensor, Tensor], Tensor], y: float, points: Tensor) -> Tensor:
    """The posterior density on an even grid of a line, with the prior N(0, 1)."""
    log = log_likelihood(points, torch.tensor(y)) - points**2 / 2
    density = (log - log.max()).exp()
    return density / torch.trapezoid(density, points)


def draw_on_line(
    flow: Flow,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    observations: Sequence[float],
) -> None:
    """Draw learned and exact densities on a line for some observations."""
    _, axes = plt.subplots(1, len(observations), figsize=(8.4, 2.6), sharey=True)
    points = torch.linspace(-3.5, 3.5, 281)
    for ax, y in zip(axes, observations, strict=True):
        ax.fill_between(points, on_line(log_likelihood, y, points), color="0.8", label="exact")
        with torch.no_grad(), maps.quietly():
            bound = flow.given(torch.tensor([[y]]))
            ax.plot(points, bound.log_prob(points[:, None]).exp(), label="learned")
        ax.set(xlabel="x", title=f"y = {y:g}")
    axes[0].set_ylabel("density")
    axes[0].legend(fontsize=8)


# for the page of evidence -----------------------------------------------------------------------


def region(ax: Axes, x: Tensor, **how: Any) -> None:
    """Draw the smallest set of a smoothed histogram that holds a share of the samples."""
    (a, b), bounds = x.T.numpy(), (ax.get_xlim(), ax.get_ylim())
    counts, u, v = np.histogram2d(a, b, bins=40, range=bounds)
    counts = gaussian_filter(counts, 1.5)
    ordered = np.sort(counts.ravel())[::-1]
    level = ordered[np.searchsorted(ordered.cumsum(), SHARE * ordered.sum())]
    centres = (u[1:] + u[:-1]) / 2, (v[1:] + v[:-1]) / 2
    if "colors" in how:
        ax.contour(*centres, counts.T, levels=[level], **how)
    else:
        ax.contourf(*centres, counts.T, levels=[level, counts.max() * 1.01], **how)


def draw_corner(found: Evidence, index: int) -> None:
    """Draw the posteriors of one observation: marginals, and regions of each pair."""
    n = 300 if found.campaign.smoke else 5000
    smc = references.resampled(found.smc[f"theta{index + 1}-adapted"], 5000)
    best = checks.modes(found.campaign)[index]
    drawn = {place: inside(found.campaign.fits(*place)[0].model, OBSERVED[index], n).double()
             for place in SHOWN}  # fmt: skip
    low = torch.stack([x.quantile(0.002, 0) for x in (smc, *drawn.values())]).amin(0)
    high = torch.stack([x.quantile(0.998, 0) for x in (smc, *drawn.values())]).amax(0)
    figure, axes = plt.subplots(4, 4, figsize=(8.0, 7.2))
    for i, j in np.ndindex(4, 4):
        ax = axes[i, j]
        if j > i:
            ax.set_axis_off()
            continue
        ax.set_xlim(float(low[j]), float(high[j]))
        if j < i:
            ax.set_ylim(float(low[i]), float(high[i]))
            region(ax, smc[:, [j, i]], cmap="Greys", vmin=-1e9, vmax=2e9)
        else:
            bins = np.linspace(float(low[j]), float(high[j]), 31)
            ax.hist(smc[:, j].numpy(), bins, density=True, color="0.75", label="SMC-ABC")
        for ((name, size), x), color in zip(drawn.items(), plotting.COLORS, strict=False):
            if j < i:
                region(ax, x[:, [j, i]], colors=[color], linewidths=1)
                mode = best[f"{name}-{size}"]
                ax.plot(mode[j], mode[i], ".", c=color)
            else:
                how = {"density": True, "histtype": "step", "color": color}
                ax.hist(x[:, j].numpy(), bins, label=f"{name}, {size // 1000}k", **how)
        if j < i:
            ax.plot(*TRUE[index, [j, i]].tolist(), "x", c="black", ms=7)
        else:
            ax.axvline(float(TRUE[index, j]), c="black", lw=0.8)
            ax.set_yticks([])
        ax.tick_params(labelsize=8, labelbottom=i == 3, labelleft=0 == j < i)
        ax.set_xlabel(f"log θ{j + 1}" if i == 3 else "")
        ax.set_ylabel(f"log θ{i + 1}" if j == 0 < i else "")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right")


def draw_predictive(found: Evidence) -> None:
    """Draw the middle 90 % of new simulations with parameters that COT-Flow has drawn."""
    _, axes = plt.subplots(1, 2, figsize=(8.4, 3.0))
    for index, (ax, row) in enumerate(zip(axes, checks.predictive(found.campaign), strict=True)):
        for k, (name, color) in enumerate(zip(SPECIES, plotting.COLORS, strict=False)):
            low, middle, high = row["bands"][k]
            ax.fill_between(PROBLEM.times, low, high, color=color, alpha=0.25, lw=0)
            ax.plot(PROBLEM.times, middle, c=color, label=name)
            ax.axhline(float(OBSERVED[index, k]), ls=":", c=color)
        ax.set(xlabel="time", title=f"observation {index + 1}")
    axes[0].set_ylabel("individuals")
    axes[0].legend()


def draw_settling(found: Evidence) -> None:
    """Draw the moments of SMC-ABC round by round, with both distances."""
    figure, axes = plt.subplots(2, 4, figsize=(8.6, 4.4), sharex=True)
    for index, row in enumerate(axes):
        for end, label, color in (
            ("", "published distance", plotting.COLORS[1]),
            ("-half", "the same, to half of the tolerance", plotting.COLORS[4]),
            ("-adapted", "adapted distance", plotting.COLORS[0]),
        ):
            rounds = found.smc[f"theta{index + 1}{end}"].numbers["rounds"]
            counts = [r["simulations"] for r in rounds]
            for j, ax in enumerate(row):
                mean, std = (np.array([r[part][j] for r in rounds]) for part in ("mean", "std"))
                ax.plot(counts, mean, c=color, label=label)
                ax.fill_between(counts, mean - std, mean + std, color=color, alpha=0.15, lw=0)
                ax.set(xscale="log", title=f"log θ{j + 1}" if index == 0 else "")
        row[0].set_ylabel(f"observation {index + 1}")
        for ax in row if index else ():
            ax.set_xlabel("simulations")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3, fontsize=8)
