"""What the chapter shows: its tables, its figure, and the rows of its claims."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from machinery import plotting
from machinery.claims import Control, Measurement, Row, above, finding, within
from machinery.store import Run, Store

from . import costs, processes
from .costs import Series

CHAPTER = "16_past_one_machine"
DAY = 24 * 3600
WEEK = 7 * DAY  # what a training may take until time counts as a wall
CLOSE = within(0.8, 1.25)  # predicted over measured
GB = 1e9
DRAWN = ("rows", "campaign", "operator", "fields")
QUANTITIES = {"seconds": "seconds", "bytes": "memory"}


@dataclass(frozen=True)
class Need:
    """What a computation needs: `repeats` times the cost of the target of a workload."""

    says: str
    workload: str
    repeats: int
    series: Series

    @property
    def seconds_each(self) -> float:
        """The seconds of one step, or of the whole where there is only one."""
        return self._of("seconds")

    @property
    def seconds(self) -> float:
        """The seconds of the whole on one core."""
        return self.repeats * self.seconds_each

    @property
    def bytes(self) -> float:
        """The memory at the peak."""
        return self._of("bytes")

    @property
    def is_measured(self) -> bool:
        """Whether the target itself was measured, and not extrapolated."""
        return self.series.held_out == self.series.work.target

    def _of(self, what: str) -> float:
        target = self.series.work.target
        if self.is_measured:
            return self.series.measured(what, target)
        return self.series.fit(what).at(target)

    def processes(self, memory: float) -> int:
        """How many machines of so much memory and one core finish within a week, at best."""
        return max(math.ceil(self.seconds / WEEK), math.ceil(self.bytes / memory))

    def wall(self, memory: float) -> str:
        """What stops it first on one machine with so much memory."""
        if self.bytes > memory:
            return "memory"
        return "time" if self.seconds > WEEK else "none"

    def full(self, memory: float) -> float:
        """The size at which the memory is full."""
        return self.series.fit("bytes").reaches(memory)


@dataclass(frozen=True)
class Results:
    """All that was measured, and the bytes of memory of the machine that did it."""

    series: dict[str, Series]
    memory: float
    training: dict[int, dict[str, list[float]]]
    campaign: dict[str, list[float]]
    load: float  # before the trainings: that of others
    next_load: float  # before the campaigns

    @property
    def needs(self) -> list[Need]:
        """What the three computations need, and the noise of the third."""
        named = {
            "rows": ("OT-Flow on BSDS300", costs.ITERATIONS),
            "campaign": ("10⁸ simulations", 1),
            "operator": ("an FNO on 1024² pixels", costs.STEPS),
            "fields": ("Gaussian fields on 1024² pixels", 1),
        }
        return [Need(says, key, n, self.series[key]) for key, (says, n) in named.items()]


def results(run: Run) -> Results:
    """The stored measurements, or with run="train" new ones."""
    store = Store(CHAPTER, run)
    found = costs.measured(store)
    trained, simulated = processes.training(store), processes.campaign(store)
    times = trained.times, simulated.times
    return Results(found.series, found.memory, *times, trained.load, simulated.load)


# --- tables -------------------------------------------------------------------------------------


def check_lines(found: Results) -> Iterator[str]:
    """The lines of a Markdown table: what the small sizes predict of the size held out."""
    yield "| | size held out | | measured | predicted | ratio | by one size alone |"
    yield "|---|---:|---|---:|---:|---:|---:|"
    for one in found.series.values():
        for what in QUANTITIES:
            n = one.held_out
            measured, predicted = one.measured(what, n), one.fit(what).at(n)
            says = f"{one.work.says} | {n:,} {one.work.size}" if what == "seconds" else " | "
            cells = (f"{_amount(what, v)}" for v in (measured, predicted))
            ratios = (f"{predicted / measured:.2f}", f"{median(one.naive(what)):.2f}")
            yield f"| {says} | {QUANTITIES[what]} | {' | '.join((*cells, *ratios))} |"


def need_lines(found: Results) -> Iterator[str]:
    """The lines of a Markdown table of what each computation needs."""
    needs, memory = found.needs, found.memory
    yield "| | " + " | ".join(need.says for need in needs) + " |"
    yield "|---|" + "---:|" * len(needs)
    rows = {
        "numbers are": lambda n: "measured" if n.is_measured else "extrapolated",
        "memory": lambda n: _amount("bytes", n.bytes),
        "one step": lambda n: _amount("seconds", n.seconds_each) if n.repeats > 1 else "–",
        "steps": lambda n: f"{n.repeats:,}",
        "whole, on one core": lambda n: _amount("seconds", n.seconds),
        "processes for a week, at best": lambda n: f"{n.processes(memory):,}",
        "first wall here": lambda n: n.wall(memory),
        "memory is full at": lambda n: f"{_rounded(n.full(memory))} {n.series.work.size}",
    }
    for says, cell in rows.items():
        yield f"| {says} | " + " | ".join(cell(need) for need in needs) + " |"


def gain_lines(found: Results) -> Iterator[str]:
    """The lines of a Markdown table of what one and two processes take."""
    yield "| | where | seconds, median | least | times faster than one |"
    yield "|---|---|---:|---:|---:|"
    for what, says in {"clock": "a step, by the clock", "cpu": "a step, of each core"}.items():
        times = {world: one[what] for world, one in found.training.items()}
        for world, values in times.items():
            where = "1 process" if world == 1 else f"{world} processes"
            gain = "" if world == 1 else f"{median(processes.gains(times, 1, world)):.2f}"
            yield _gain_line(says, where, values, gain)
    for name, values in found.campaign.items():
        start = f"{name.split(',')[0]}, 1 worker"  # the same pool with one
        alone = name in (start, "this process")
        gain = "" if alone else f"{median(processes.gains(found.campaign, start, name)):.2f}"
        yield _gain_line("a campaign, by the clock", name, values, gain)


def load_line(found: Results) -> str:
    """A sentence on how busy the machine was."""
    return (
        f"The load of the machine was {found.load:.1f} before the trainings, and"
        f" {found.next_load:.1f} when they had ended and the campaigns began."
    )


def _gain_line(says: str, where: str, values: Sequence[float], gain: str) -> str:
    return f"| {says} | {where} | {median(values):.2f} | {min(values):.2f} | {gain} |"


def _amount(what: str, value: float) -> str:
    """A number of bytes or seconds with its unit."""
    if what == "bytes":
        return f"{value / GB:.1f} GB" if value >= GB else f"{value / 1e6:.0f} MB"
    if value >= 2 * DAY:
        return f"{value / DAY:.0f} days"
    if value >= 2 * 3600:
        return f"{value / 3600:.0f} h"
    if value >= 120:
        return f"{value / 60:.0f} min"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _rounded(n: float) -> str:
    """A size with two digits."""
    return f"{float(f'{n:.2g}'):,.0f}"


# --- figure -------------------------------------------------------------------------------------


def draw(found: Results) -> Figure:
    """The costs over the sizes: measured, held out, and the line that is extrapolated."""
    figure, axes = plt.subplots(2, len(DRAWN), figsize=(8.4, 4.6), sharex="col", squeeze=False)
    for column, name in enumerate(DRAWN):
        for row, what in enumerate(QUANTITIES):
            _panel(axes[row, column], found, name, what)
        axes[0, column].set_title(found.series[name].work.says, fontsize=8)
        one = found.series[name]
        axes[1, column].set_xlabel(one.work.size)
        ticks = sorted({one.sizes[0], one.held_out, one.work.target})
        axes[1, column].set_xticks(ticks, [_tick(n) for n in ticks])
        axes[1, column].xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("seconds on one core")
    axes[1, 0].set_ylabel("memory (GB)")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=4)
    return figure


def _tick(n: int) -> str:
    """A size as a label of an axis."""
    digits = len(str(n)) - 1
    return f"{n:,}" if n < 10_000 else rf"${n // 10**digits}\cdot 10^{{{digits}}}$"


def _panel(ax: Axes, found: Results, name: str, what: str) -> None:
    """One cost of one workload, and the memory of the machine where that is the cost."""
    one = found.series[name]
    unit = GB if what == "bytes" else 1.0
    fit, ends = one.fit(what), (min(one.sizes), max(one.work.target, one.held_out))
    n = np.geomspace(*ends, 60)
    ax.loglog(n, [fit.at(float(k)) / unit for k in n], c="black", lw=0.8, label="fit")
    blue, orange, green = plotting.COLORS[:3]
    fitted = [one.measured(what, k) / unit for k in one.sizes]
    ax.plot(one.sizes, fitted, plotting.MARKERS[0], c=blue, label="measured, fitted")
    held = one.measured(what, one.held_out) / unit
    ax.plot(one.held_out, held, plotting.MARKERS[1], c=orange, ms=6, label="measured, held out")
    if one.held_out != one.work.target:
        target = fit.at(one.work.target) / unit
        ax.plot(
            one.work.target, target, plotting.MARKERS[2], c=green, mfc="none", label="extrapolated"
        )
    if what == "bytes":
        ax.axhline(found.memory / unit, ls="--", c="black", lw=0.8)


# --- claims -------------------------------------------------------------------------------------


def rows(found: Results) -> list[Row]:
    """Whether small sizes predict a large one and two processes gain, and what is needed."""
    made: list[Row] = []
    for name, one in found.series.items():
        for what, says in QUANTITIES.items():
            made.append(
                finding(
                    f"scale.{name}.{what}_predicted",
                    f"The {says} of {one.work.says} at {one.held_out:,} {one.work.size} follow from"
                    f" {one.sizes[0]:,} to {one.sizes[-1]:,}: predicted over measured",
                    ours=one.ratios(what),
                    criterion=CLOSE,
                    control=Control("the smallest size alone", one.naive(what)),
                    unit="times",
                )
            )
    made += [_gain(found, "clock"), _gain(found, "cpu"), _campaign_gain(found)]
    for need in found.needs:
        how = "measured" if need.is_measured else "extrapolated"
        for what, value, unit in (
            ("seconds", need.seconds, "s"),
            ("memory_in_gb", need.bytes / GB, "GB"),
        ):
            says = f"{need.says}: {what.split('_')[0]} on one core, {how}"
            made.append(
                Measurement(f"scale.{need.workload}.{what}", "this book", says, value, unit)
            )
    return made


def _gain(found: Results, what: str) -> Row:
    """That two processes share the work of a step, by the clock or by the seconds of each core."""
    times = {world: one[what] for world, one in found.training.items()}
    says = {
        "clock": "By the clock, two processes take a step of OT-Flow faster than one, on the same"
        " batch: times faster",
        "cpu": "In a step of OT-Flow, each of two processes works less than one alone: times less",
    }[what]
    return finding(
        f"scale.training.{what}_gain",
        says,
        ours=processes.gains(times, 1, 2),
        criterion=above(1.5),
        control=Control("one process in the next round", _again(times[1])),
        unit="times",
    )


def _campaign_gain(found: Results) -> Row:
    """That two workers of Dask simulate faster than one."""
    one, two = "Dask, 1 worker", "Dask, 2 workers"
    return finding(
        "scale.campaign.dask_gain",
        "By the clock, two workers of Dask finish a campaign faster than one: times faster",
        ours=processes.gains(found.campaign, one, two),
        criterion=above(1.5),
        control=Control("one worker in the next round", _again(found.campaign[one])),
        unit="times",
    )


def _again(values: Sequence[float]) -> list[float]:
    """Each value over that of the next round."""
    return [a / b for a, b in zip(values, [*values[1:], values[0]], strict=True)]
