"""What the evidence on control in a hundred dimensions rests on, and the rows that follow."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ctdl_lib.control import feedback
from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    above_control,
    below,
    below_control,
    columns,
    finding,
    within,
)
from machinery.store import Run, Store

from . import benchmark, race, shifted
from .benchmark import DEEP, LOW, OURS, RAISSI, at_seconds, least_seconds
from .shifted import CHAPTER, CORNERS, KNOWN, LONG_WALK, OWN, RANK10, Curve

BOOK, SLIDE = "this book", "slide Neural SOC"
LI, HAN = "Li et al. 2024", "Han et al. 2018"
SHORT = {OURS: "ours", LOW: "rank10", RAISSI: "fbsnn", DEEP: "deepbsde"}
PLAIN = {RAISSI: race.RAISSI_PLAIN, DEEP: race.DEEP_PLAIN}
WHERE = {"own": "own paths", "walk": "random walk"}
LOSS = {"with_cost": "cost + penalties", "penalties": "penalties"}

Corner = tuple[str, str]


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    curves: dict[str, list[Curve]]
    random: list[dict[str, float]]
    growth: dict[int, dict[str, float]]
    best: float
    idle: float
    bars: dict[str, Any]
    start: float  # what the feedback costs that every training on the shifted problem starts from
    costs: dict[str, list[float]]
    corners: dict[Corner, list[float]]
    corner_curves: dict[Corner, list[Curve]]
    rivals: dict[str, list[Curve]]
    store: Store

    @property
    def race(self) -> dict[str, list[Curve]]:
        """The curves of the solvers of the shifted problem, ours first."""
        return {OURS: self.corner_curves["own", "with_cost"]} | self.rivals

    @property
    def tuned(self) -> dict[str, list[Curve]]:
        """The curves of the solvers that have three seeds."""
        return {name: self.race[name] for name in (OURS, RAISSI, DEEP)}


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says.

    The networks are so small that everything runs on the CPU, whatever `device` says.
    """
    store = Store(CHAPTER, run)
    curves = race.corner_curves(store, seed)
    return Evidence(
        curves=benchmark.curves(store, seed),
        random=benchmark.from_random_starts(store, seed),
        growth=benchmark.growth(store, seed),
        best=benchmark.best_value(),
        idle=benchmark.idle_cost(),
        bars=shifted.bars(store),
        start=start_cost(16 if run == "smoke" else shifted.PATHS),
        costs={
            setting.name: shifted.costs(store, setting, seed)
            for setting in (OWN, RANK10, LONG_WALK, KNOWN)
        },
        corners={at: shifted.costs(store, setting, seed) for at, setting in CORNERS.items()},
        corner_curves=curves,
        rivals=race.rivals(store, seed),
        store=store,
    )


def start_cost(paths: int) -> float:
    """The cost of the feedback of ½‖x − x*‖², from which trainings start."""
    start = shifted.centred(0).double()
    return shifted.price(feedback(shifted.PROBLEM, start), paths=paths)


# --- numbers of the rows ------------------------------------------------------------------------


def final(curves: Sequence[Curve], key: str, factor: float = 1.0) -> list[float]:
    """The last number of each curve."""
    return [factor * curve[key][-1] for curve in curves]


def timed(curves: Sequence[Curve], key: str, seconds: float, factor: float = 1.0) -> list[float]:
    """The number of each curve when training had used so many seconds."""
    return [factor * at_seconds(curve, key, seconds) for curve in curves]


def phi_errors(curve: Curve, kind: str = "phi") -> list[float]:
    """The errors of Φ on walks and best paths together, one for each time it was judged."""
    pairs = zip(curve[f"{kind}_walk"], curve[f"{kind}_best"], strict=True)
    return [math.sqrt(0.5 * (a * a + b * b)) for a, b in pairs]


def phi_error(curves: Sequence[Curve], kind: str = "phi") -> list[float]:
    """The last errors of Φ on walks and best paths together, in percent, one a seed."""
    return [phi_errors(curve, kind)[-1] for curve in curves]


def log2(values: Sequence[float]) -> list[float]:
    """The logarithms with base 2."""
    return [math.log2(value) for value in values]


def excess(e: Evidence, costs: Sequence[float]) -> list[float]:
    """The log₂ of costs above the least of 20 steps."""
    return log2([max(cost - e.bars["best"]["20"], 1e-3) for cost in costs])


def judged_excess(
    e: Evidence, curves: Sequence[Curve], seconds: float | None = None
) -> list[float]:
    """The log₂ of costs above the least, at the end or after so many seconds."""
    found = final(curves, "cost") if seconds is None else timed(curves, "cost", seconds)
    return excess(e, found)


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_faster_rows(e),
        *_half_rows(e),
        *_sampling_rows(e),
        *_benchmark_rows(e),
        *_disguise_rows(e),
        *_benchmark_numbers(e),
        *_shifted_numbers(e),
    ]


def _less(
    id: str,
    says: str,
    pair: tuple[Sequence[float], str, Sequence[float]],
    *,
    by: float = 0.0,
    source: str | None = SLIDE,
    unit: str = "",
) -> Claim:
    """The claim that ours is less than a rival's, seed by seed; a finding without a source."""
    ours, rival, theirs = pair
    row: dict[str, Any] = {"ours": ours, "criterion": below_control(by), "unit": unit}
    row["control"] = Control(rival, theirs)
    return finding(id, says, **row) if source is None else Claim(id, says, source, **row)


def _faster_rows(e: Evidence) -> Iterator[Row]:
    """Faster convergence, on the benchmark and on the shifted problem."""
    for name in (RAISSI, DEEP):
        rival, theirs = SHORT[name], e.curves[name]
        yield _less(
            f"soc100.faster.{rival}",
            f"Own paths converge faster than {name} on the benchmark: error of ∇Φ after 2,000 "
            "iterations each",
            (final(e.curves[OURS], "gradient", 100), name, final(theirs, "gradient", 100)),
            unit="%",
        )
    seconds = least_seconds(e.curves)
    gradient = lambda name: timed(e.curves[name], "gradient", seconds, 100)  # noqa: E731
    better = [min(pair) for pair in zip(gradient(RAISSI), gradient(DEEP), strict=True)]
    yield _less(
        "soc100.faster.equal_seconds",
        "They do so in equal seconds, those of the quickest method",
        (gradient(OURS), "the better of FBSNN and DeepBSDE", better),
        unit="%",
    )
    yield _less(
        "soc100.faster.rank10",
        "They do so with the published network, whose quadratic part has rank 10",
        (final(e.curves[LOW], "gradient", 100), RAISSI, final(e.curves[RAISSI], "gradient", 100)),
        unit="%",
    )
    yield from _faster_shifted_rows(e)


def _faster_shifted_rows(e: Evidence) -> Iterator[Row]:
    cost = lambda curves: judged_excess(e, curves)  # noqa: E731
    ours, seconds = e.race[OURS], least_seconds(e.tuned)
    for name in (RAISSI, DEEP):
        yield Claim(
            f"soc100shift.faster.{SHORT[name]}",
            f"Own paths converge faster than {name} on the modified problem: log₂ of the cost "
            f"above the best after {ours[0]['steps'][-1]:g} iterations each",
            SLIDE,
            ours=cost(ours),
            criterion=below_control(),
            control=nearest(e, name, cost),
        )
    pairs = zip(*(judged_excess(e, e.race[n], seconds) for n in (RAISSI, DEEP)), strict=True)
    yield _less(
        "soc100shift.faster.equal_seconds",
        "They do so in equal seconds, those of the quickest method",
        (
            judged_excess(e, ours, seconds),
            "the better of FBSNN and DeepBSDE",
            [min(pair) for pair in pairs],
        ),
    )


def nearest(e: Evidence, name: str, numbers: Callable[[Sequence[Curve]], list[float]]) -> Control:
    """A rival with the better of two settings, seed by seed; those of the benchmark ran once."""
    (plain,) = numbers(e.race[PLAIN[name]])
    best = [min(value, plain) for value in numbers(e.race[name])]
    return Control(f"{name}, the better of two settings", best)


def _half_rows(e: Evidence) -> Iterator[Row]:
    """Half of the error on the modified problem, for three meanings of error."""
    phi = lambda curves: log2(phi_error(curves))  # noqa: E731
    stepwise = lambda curves: log2(phi_error(curves, "stepwise"))  # noqa: E731
    cost = lambda curves: judged_excess(e, curves)  # noqa: E731
    meanings = {
        "phi": ("the error of Φ", phi),
        "stepwise": (
            "the error of Φ, with the value function of 20 steps for the truth,",
            stepwise,
        ),
        "cost": ("the cost above the best", cost),
    }
    for kind, (words, numbers) in meanings.items():
        for name in (RAISSI, DEEP):
            yield Claim(
                f"soc100shift.half.{kind}.{SHORT[name]}",
                f"On the modified problem {words} is at most half of {name}'s: log₂",
                SLIDE,
                ours=numbers(e.race[OURS]),
                criterion=below_control(1.0),
                control=nearest(e, name, numbers),
            )
    yield finding(
        "soc100shift.value",
        "What own paths learn is the value function: error of Φ on walks and best paths below 20 %",
        ours=phi_error(e.race[OURS]),
        criterion=below(20.0),
        control=Control("the best constant", [100.0]),
        unit="%",
    )


def _sampling_rows(e: Evidence) -> Iterator[Row]:
    """The effects of the paths at equal loss, and of the loss at equal paths."""
    at = {corner: excess(e, costs) for corner, costs in e.corners.items()}
    for loss, words in LOSS.items():
        yield _less(
            f"soc100shift.sampling.{loss}",
            f"Sampling informed by the maximum principle helps at equal loss ({words}): log₂ of "
            "the cost above the best",
            (at["own", loss], "penalties on random walks", at["walk", loss]),
        )
    for where, words in WHERE.items():
        yield _less(
            f"soc100shift.loss.{where}",
            f"The cost of the feedback in the objective helps at equal paths ({words}): log₂ of "
            "the cost above the best",
            (at[where, "with_cost"], "penalties alone", at[where, "penalties"]),
            source=None,
        )
    yield from _loss_rows(e, at)


def _loss_rows(e: Evidence, at: Mapping[Corner, list[float]]) -> Iterator[Row]:
    """What own paths learn, and how much the loss and the paths gain each."""
    on_best = [final(e.race[OURS], f"stepwise_{where}") for where in ("best", "walk")]
    yield finding(
        "soc100shift.value.own",
        "They learn the value function of 20 steps where they go: error of Φ on best paths below "
        "20 %",
        ours=on_best[0],
        criterion=below(20.0),
        control=Control("the same on walks", on_best[1]),
        unit="%",
    )
    yield finding(
        "soc100shift.loss_over_sampling",
        "The cost in the objective matters more than the paths: log₂ of the factor it gains on own "
        "paths is larger by 1",
        ours=_gain(at["own", "penalties"], at["own", "with_cost"]),
        criterion=above_control(1.0),
        control=Control(
            "what own paths gain with penalties alone",
            _gain(at["walk", "penalties"], at["own", "penalties"]),
        ),
    )
    count = len(e.corners["walk", "penalties"])
    yield _less(
        "soc100shift.walk.idle",
        "Penalties on random walks learn a feedback that is better than doing nothing: cost",
        (e.corners["walk", "penalties"], "doing nothing", [e.bars["idle"]] * count),
        source=None,
    )


def _gain(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """What is gained between two lists, seed by seed."""
    return [a - b for a, b in zip(before, after, strict=True)]


def _benchmark_rows(e: Evidence) -> Iterator[Row]:
    trivial = 100 * (e.idle / e.best - 1)
    yield Claim(
        "soc100.phi0",
        "Φ(0, 0) of the benchmark has an error below 0.1 % (after 2,000 iterations; published "
        "after 100,000)",
        LI,
        ours=final(e.curves[OURS], "phi0", 100),
        criterion=below(0.1),
        control=Control("the cost of doing nothing", [trivial]),
        published=0.024,
        unit="%",
    )
    yield finding(
        "soc100.deceived",
        "DeepBSDE finds Φ(0, 0) to 0.25 %, and its feedback costs more than doing nothing: share "
        "of the possible saving",
        ours=final(e.curves[DEEP], "saving", 100),
        criterion=below(0.0),
        control=Control(RAISSI, final(e.curves[RAISSI], "saving", 100)),
        unit="%",
    )
    yield from _saving_rows(e)


def _saving_rows(e: Evidence) -> Iterator[Row]:
    yield finding(
        "soc100.saving",
        "The feedback of own paths attains at least 95 % of the possible saving",
        ours=final(e.curves[OURS], "saving", 100),
        criterion=above(95.0),
        control=Control("rank 10", final(e.curves[LOW], "saving", 100)),
        unit="%",
    )
    yield _less(
        "soc100.rank",
        "Rank 10 is what hurts: with full rank the error of ∇Φ is at most half (log₂)",
        (
            log2(final(e.curves[OURS], "gradient", 100)),
            "rank 10",
            log2(final(e.curves[LOW], "gradient", 100)),
        ),
        by=1.0,
        source=None,
    )


def _disguise_rows(e: Evidence) -> Iterator[Row]:
    exact, linear = e.bars["exact"]["20"], e.bars["linear"]["20"]
    above = lambda costs: [100 * (cost / exact - 1) for cost in costs]  # noqa: E731
    yield finding(
        "soc100shift.disguise",
        "The modified problem is linear–quadratic control: that feedback costs as much as the "
        "exact one, 20 steps",
        ours=above([linear]),
        criterion=within(-0.1, 0.1),
        control=Control("learned on own paths, 3,000 iterations", above(e.costs[OWN.name])),
        unit="%",
    )
    known, count = e.costs[KNOWN.name], len(e.costs[KNOWN.name])
    yield _less(
        "soc100shift.known",
        "Training improves a network that starts from the linear–quadratic value function: cost",
        (known, "the start", [linear] * count),
        source=None,
    )
    yield finding(
        "soc100shift.learned",
        "A network that does not know it comes within 15 % of the exact feedback's cost",
        ours=above(e.costs[OWN.name]),
        criterion=within(-1.0, 15.0),
        control=Control("its start, the slope of ½‖x − x*‖²", above([e.start])),
        unit="%",
    )
    yield finding(
        "soc100shift.rank",
        "Rank 10 costs more than full rank: log₂ of the cost above the best is more by 1",
        ours=excess(e, e.costs[RANK10.name]),
        criterion=above_control(1.0),
        control=Control("full rank", excess(e, e.costs[OWN.name])),
    )


# --- numbers without a verdict ------------------------------------------------------------------


def _over(id: str, says: str, values: Sequence[float], unit: str = "%", **more: Any) -> Row:
    return Measurement.over_seeds(id, more.pop("source", BOOK), says, values, unit, **more)


def _benchmark_numbers(e: Evidence) -> Iterator[Row]:
    seconds = least_seconds(e.curves)
    for name, short in SHORT.items():
        curves = e.curves[name]
        says = f"error of ∇Φ along paths, {name}, 2,000 iterations"
        yield _over(f"soc100.{short}.gradient_error", says, final(curves, "gradient", 100))
        says = f"error of ∇Φ at equal seconds, {name}"
        values = timed(curves, "gradient", seconds, 100)
        yield _over(f"soc100.{short}.gradient_error.equal_seconds", says, values)
        says = f"share of the possible saving attained, {name}"
        yield _over(f"soc100.{short}.saving", says, final(curves, "saving", 100))
        says = f"error of Φ along paths, {name}"
        yield _over(f"soc100.{short}.path_error", says, final(curves, "path", 100))
    says = "error of ∇Φ from random starts, ours"
    yield _over("soc100.random.gradient_error", says, [100 * r["gradient"] for r in e.random])
    for d, found in e.growth.items():
        says = f"error of ∇Φ after 1,000 iterations, d = {d}"
        yield Measurement(f"soc100.growth.d{d}", BOOK, says, 100 * found["gradient"], "%")
        says = f"an iteration, d = {d}"
        yield Measurement(f"soc100.growth.d{d}.ms", BOOK, says, 1000 * found["seconds"], "ms")


PUBLISHED = {RANK10.name: 1953.0, LONG_WALK.name: 5406.0}
SAYS = {
    OWN.name: ("cost.nt20", "own paths, cost alone, full rank"),
    RANK10.name: ("rank10.cost.nt20", "own paths, cost alone, rank 10"),
    LONG_WALK.name: ("random_walk.cost.nt20", "random walk, penalties, 3,000 iterations"),
    KNOWN.name: ("known.cost.nt20", "own paths, linear–quadratic part known"),
}


def _shifted_numbers(e: Evidence) -> Iterator[Row]:
    best, phi0 = e.bars["best"]["20"], shifted.exact_start()
    yield Measurement("soc100shift.optimum.nt20", BOOK, "best cost with 20 steps", best)
    yield Measurement("soc100shift.phi0", BOOK, "exact Φ(0, 0) in continuous time", phi0)
    yield Measurement("soc100shift.idle", BOOK, "cost of doing nothing", e.bars["idle"])
    yield Measurement("soc100shift.start", BOOK, "cost of the feedback x* − x", e.start)
    for (where, loss), costs in e.corners.items():
        says = f"cost with 20 steps: {WHERE[where]}, {LOSS[loss]}"
        yield _over(f"soc100shift.{where}.{loss}.cost", says, costs, "")
    for name, (id, words) in SAYS.items():
        row = {"published": PUBLISHED.get(name), "source": LI if name in PUBLISHED else BOOK}
        says = f"cost with 20 steps: {words}"
        yield _over(f"soc100shift.{id}", says, e.costs[name], "", **row)
    for name, curves in e.tuned.items():
        short = SHORT[name]
        says = f"error of Φ on walks and best paths, {name}"
        yield _over(f"soc100shift.{short}.phi_error", says, phi_error(curves))
        says = f"error of Φ, value function of 20 steps for the truth, {name}"
        yield _over(f"soc100shift.{short}.stepwise_error", says, phi_error(curves, "stepwise"))
        for where, words in (("walk", "walks"), ("best", "best paths")):
            says = f"error of ∇Φ on {words}, {name}"
            values = final(curves, f"gradient_{where}")
            yield _over(f"soc100shift.{short}.gradient_error.{where}", says, values)
    for name, plain in PLAIN.items():
        says = f"cost with 20 steps: {plain}"
        yield _over(f"soc100shift.{SHORT[name]}.plain", says, final(e.race[plain], "cost"), "")


# --- tables -------------------------------------------------------------------------------------


def _cell(values: Sequence[float]) -> str:
    mean = fmean(values)
    spread = "" if len(values) < 2 else f" ± {float(f'{max(values) - min(values):.2g}'):g}"
    return f"{float(f'{mean:.3g}'):g}{spread}"


def benchmark_table(e: Evidence) -> str:
    """The errors of four methods on the benchmark, in percent: mean ± range over seeds."""
    keys = ("phi0", "path", "gradient", "saving")
    lines = [
        [name, *(_cell(final(curves, key, 100)) for key in keys)]
        for name, curves in e.curves.items()
    ]
    return columns(("percent", "Φ(0, 0)", "Φ", "∇Φ", "saving"), lines)


def race_table(e: Evidence) -> str:
    """What all solvers of the shifted problem say on common states: mean ± range over seeds."""
    numbers: dict[str, Callable[[Sequence[Curve]], list[float]]] = {
        "Φ(0, 0)": lambda curves: final(curves, "start"),
        "Φ": phi_error,
        "Φ, 20": lambda curves: phi_error(curves, "stepwise"),
        "∇Φ, walks": lambda curves: final(curves, "gradient_walk"),
        "∇Φ, best": lambda curves: final(curves, "gradient_best"),
        "cost": lambda curves: final(curves, "cost"),
    }
    lines = [
        [name, *(_cell(values(curves)) for curves in e.race.values())]
        for name, values in numbers.items()
    ]
    return columns(("", *e.race), lines)


def seconds_table(e: Evidence) -> str:
    """The same at equal seconds, those of the quickest solver, and the seconds of all."""
    seconds = least_seconds(e.tuned)
    lines = [
        [name, _cell(timed(curves, "cost", seconds)), _cell(final(curves, "seconds"))]
        for name, curves in e.race.items()
    ]
    return columns(("", f"cost after {seconds:.0f} s", "seconds in all"), lines)


def corner_table(e: Evidence) -> str:
    """The costs of the two-by-two table, with 20 steps: mean ± range over seeds."""
    lines = [
        [words, *(_cell(e.corners[where, loss]) for loss in LOSS)] for where, words in WHERE.items()
    ]
    return columns(("paths of the penalties", *LOSS.values()), lines)


def bar_table(e: Evidence) -> str:
    """The best costs by the number of steps, and what known feedbacks cost."""
    lines = ["| steps | best | feedback of exact Φ | linear–quadratic |", "|---:|---:|---:|---:|"]
    for n, best in e.bars["best"].items():
        pair = (e.bars[kind][n] for kind in ("exact", "linear"))
        lines.append(f"| {n} | {best:.1f} | " + " | ".join(f"{cost:.1f}" for cost in pair) + " |")
    return "\n".join(lines)
