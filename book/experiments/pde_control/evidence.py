"""What the evidence on amortized PDE control rests on, and the rows that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

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
)
from machinery.store import Run, Store

from . import checks, fits, judging
from .fits import CHAPTER, LATER, LONG, NAMES, SEEDS, Fit, Search

BOOK = "this book"
SLIDE = "slide Amortized PDE control"
HEIGHT_BOUND, LOSS_BOUND, AMORTIZED = 10.0, 2.5, 5.0  # percent, set before the run
# of a training of both networks at once: the first four are those of the search
JOINT: dict[str, Any] = {
    "lr": 0.00054,
    "batch": 4,
    "beta": 0.1,
    "clip": 0.5,
    "decay": LONG,
    "height_lr": 0.003,
    "replays": 4,
}


VALUED = {
    "hjb": "one network",
    "bare": "one network, no penalties",
    "split": "height fitted afterwards",
    "joint": "height fitted along the way",
}


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    searches: dict[str, Search]
    fitted: dict[str, list[Fit]]
    costs: judging.Costs
    heights: dict[str, dict[str, Any]]
    constant: dict[str, float]
    plans: dict[str, float]
    openings: dict[str, float]  # of TD3, over those of the best plans
    online: dict[str, float]
    lazy: dict[str, float]
    reference: dict[str, float]
    refined: dict[str, float]
    orders: dict[str, float]
    gradient: float
    store: Store

    def last_four(self, kind: str, solves: int = LONG) -> list[float]:
        """The mean of the last four exams until then, one a seed."""
        return [f.last_four(solves) for f in self.fitted[kind]]

    def at(self, kind: str, solves: int) -> list[float]:
        """The exam after so many solves, one a seed."""
        return [f.at(solves) for f in self.fitted[kind]]

    def ratios(self, kind: str, place: str = judging.OTHERS) -> list[float]:
        """The means of single ratios, one a seed."""
        return [judging.mean_of_ratios(self.costs[place], f.name) for f in self.fitted[kind]]

    def height(self, kind: str, what: str = "error") -> list[float]:
        """A number on the height of each value function."""
        return [self.heights[f.name][what] for f in self.fitted[kind]]


def trained(store: Store, searches: dict[str, Search], seed: int = 0) -> dict[str, list[Fit]]:
    """All fits with stored weights, by method."""
    seeds = [seed + s for s in (SEEDS[:2] if store.run == "smoke" else SEEDS)]
    later = [s for s in seeds if s - seed in LATER]
    found = {
        kind: [
            fits.fit(store, kind, s, search.chosen, solves=fits.solves_of(kind, s, seed), base=seed)
            for s in seeds
        ]
        for kind, search in searches.items()
    }
    bare = searches["hjb"].chosen | {"beta": 0.0}
    found["bare"] = [fits.fit(store, "hjb", s, bare, name="bare", base=seed) for s in later]
    found["split"] = [
        fits.fit_height(store, f, s) for f, s in zip(found["hjb"], seeds, strict=True)
    ]
    found["joint"] = [fits.fit(store, "split", s, JOINT, base=seed) for s in later]
    return found


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store, few = Store(CHAPTER, run), run == "smoke"
    searches = {kind: fits.search(store, kind, seed) for kind in fits.SPACES}
    fitted = trained(store, searches, seed)
    valued = [f for kind in VALUED for f in fitted[kind]]
    judged = [f for kind in NAMES for f in fitted[kind]]
    return Evidence(
        searches=searches,
        fitted=fitted,
        costs=judging.costs_by_basin(store, judged, seed),
        heights=judging.heights(store, valued, seed),
        constant=judging.rivals_of_height(store, seed),
        plans=judging.plans(store, seed),
        openings=judging.openings(store, fitted["td3"], seed),
        online=judging.online(store, {k: fitted[k][0].model for k in NAMES}, seed),
        lazy=judging.look_inside(store, searches["td3"], seed),
        reference=judging.reference(seed, few),
        refined=store.measure("refined", {"seed": seed}, partial(checks.refined, seed)).numbers,
        orders=checks.orders(),
        gradient=checks.gradient_error(seed),
        store=store,
    )


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_accuracy_rows(e),
        *_solve_rows(e),
        *_intrusive_rows(),
        *_tuning_rows(e),
        *_amortized_rows(e),
        *_height_rows(e),
        *_split_rows(e),
        *_joint_rows(e),
        *_policy_rows(e),
        *_swing_rows(e),
        *_curve_rows(e),
        *_place_rows(e),
        *_reference_rows(e),
    ]


# --- the five sentences of the slide ------------------------------------------------------------


def _accuracy_rows(e: Evidence) -> Iterator[Row]:
    exam = "suboptimality after 100,000 solves, mean of the last four exams"
    for kind in ("ppo", "td3"):
        yield Claim(
            f"pdecontrol.accuracy.{kind}",
            f"The HJB approach is more accurate than {NAMES[kind]} at equal solves: {exam}",
            SLIDE,
            ours=e.last_four("hjb"),
            criterion=below_control(),
            control=Control(NAMES[kind], e.last_four(kind)),
            unit="%",
        )
    yield Claim(
        "pdecontrol.accuracy.ratios",
        "It is so basin by basin: mean of ratios over 128 fresh basins",
        SLIDE,
        ours=e.ratios("hjb"),
        criterion=below_control(),
        control=Control("PPO, three of five with 600,000 solves", e.ratios("ppo")),
        unit="%",
    )


def _solve_rows(e: Evidence) -> Iterator[Row]:
    for kind in ("ppo", "td3"):
        yield Claim(
            f"pdecontrol.fewer.{kind}",
            f"The HJB approach needs fewer solves: after 20,000 it is better than {NAMES[kind]} "
            "after 100,000",
            SLIDE,
            ours=e.at("hjb", 20_000),
            criterion=below_control(),
            control=Control(f"{NAMES[kind]} after 100,000", e.last_four(kind)),
            unit="%",
        )


def _intrusive_rows() -> Iterator[Row]:
    yield Claim(
        "pdecontrol.intrusive",
        "The HJB approach is intrusive: more than a tenth of its solves need the transposed matrix "
        "of the solver",
        SLIDE,
        ours=[judging.transposed_share("hjb")],
        criterion=above(10),
        control=Control("PPO and TD3", [judging.transposed_share("ppo")]),
        unit="%",
    )
    yield Measurement(
        "pdecontrol.intrusive.policy",
        BOOK,
        "share of the transposed solves of a direct policy",
        judging.transposed_share("policy"),
        unit="%",
    )


def loss_of_settings(search: Search) -> list[float]:
    """How many times more than the best a setting loses (log₂), in order, after 32,000 solves."""
    ends = sorted(fmean(curve[-4:]) for curve in search.curves)
    return [float(np.log2(end / ends[0])) for end in ends]


def _tuning_rows(e: Evidence) -> Iterator[Row]:
    lost = {kind: loss_of_settings(search) for kind, search in e.searches.items()}
    pairs = [("ppo", "hjb"), ("td3", "hjb"), ("ppo", "policy"), ("td3", "policy")]
    for kind, other in pairs:
        yield Claim(
            f"pdecontrol.tuning.{kind}.{other}",
            f"{NAMES[kind]} is harder to tune than the {NAMES[other]}: log₂ of what a random "
            "setting loses over the best of eight, in order of rank",
            SLIDE,
            ours=lost[kind],
            criterion=above_control(),
            control=Control(NAMES[other], lost[other]),
        )
    for kind, search in e.searches.items():
        ends = [curve[-1] for curve in search.curves]
        yield Measurement(
            f"pdecontrol.{kind}.search",
            BOOK,
            f"{NAMES[kind]}: suboptimality of eight settings: least, median, greatest",
            [min(ends), median(ends), max(ends)],
            unit="%",
        )


def _amortized_rows(e: Evidence) -> Iterator[Row]:
    for kind in ("hjb", "policy"):
        yield Claim(
            f"pdecontrol.{kind}.amortized",
            f"One network controls all basins: {NAMES[kind]} within {AMORTIZED:g} % of the best "
            "after 60,000 solves",
            SLIDE,
            ours=e.last_four(kind, 60_000),
            criterion=below(AMORTIZED),
            control=Control("one plan times the strength of the source", [e.plans["strength"]]),
            unit="%",
        )
    for name, says in (("same", "one plan for all"), ("shut", "the drain stays shut")):
        yield Measurement(
            f"pdecontrol.plan.{name}", BOOK, f"suboptimality: {says}", e.plans[name], unit="%"
        )


# --- value functions ----------------------------------------------------------------------------


def _height_rows(e: Evidence) -> Iterator[Row]:
    says = "mean distance of Φ(0, 0; y) from the least cost"
    yield Claim(
        "pdecontrol.hjb.height",
        f"The HJB approach learns the value function: {says} is below {HEIGHT_BOUND:g} %",
        SLIDE,
        ours=e.height("hjb"),
        criterion=below(HEIGHT_BOUND),
        control=Control("the best constant", [e.constant["constant"]]),
        unit="%",
    )
    n = len(e.fitted["hjb"])
    yield finding(
        "pdecontrol.hjb.height.constant",
        f"This network knows more of the height than a constant, by five points: {says}",
        ours=e.height("hjb"),
        criterion=below_control(5),
        control=Control("the best constant", [e.constant["constant"]] * n),
        unit="%",
    )
    yield Measurement(
        "pdecontrol.height.square",
        BOOK,
        f"{says}: the best multiple of the strength squared",
        e.constant["square"],
        unit="%",
    )
    spread = [100 * d / e.constant["deviation"] for d in e.height("hjb", "deviation")]
    yield Measurement.over_seeds(
        "pdecontrol.hjb.height.spread",
        BOOK,
        "deviation of Φ(0, 0; y) over basins, over that of the least costs",
        spread,
    )
    says = f"{says}, without penalties"
    yield Measurement.over_seeds("pdecontrol.bare.height", BOOK, says, e.height("bare"))


def _split_rows(e: Evidence) -> Iterator[Row]:
    yield finding(
        "pdecontrol.split.height",
        "With a network of its own for the height, Φ is the value function at the start: mean "
        f"distance from the least cost is below {HEIGHT_BOUND:g} %",
        ours=e.height("split"),
        criterion=below(HEIGHT_BOUND),
        control=Control("the best multiple of the strength squared", [e.constant["square"]]),
        unit="%",
    )
    yield finding(
        "pdecontrol.split.residual",
        "It solves the HJB equation better: defects of Bellman's equation along own paths, over "
        "the least cost",
        ours=e.height("split", "defects"),
        criterion=below_control(),
        control=Control("one network", e.height("hjb", "defects")),
        unit="%",
    )
    yield finding(
        "pdecontrol.hjb.loss",
        f"The feedback loses less than {LOSS_BOUND:g} % after 100,000 solves, mean of four exams",
        ours=e.last_four("hjb"),
        criterion=below(LOSS_BOUND),
        control=Control("PPO", e.last_four("ppo")),
        unit="%",
    )
    for kind, name in VALUED.items():
        for what, says, unit in (
            ("correlation", "correlation of Φ(0, 0; y) with the least cost", ""),
            ("end", "|Φ − G| at the end", "%"),
        ):
            yield Measurement.over_seeds(
                f"pdecontrol.{kind}.{what}", BOOK, f"{says}: {name}", e.height(kind, what), unit
            )


def _joint_rows(e: Evidence) -> Iterator[Row]:
    says = "both networks trained at once, rates falling to zero"
    yield finding(
        "pdecontrol.joint.height",
        f"The height costs no further solve, {says}: distance from the least cost",
        ours=e.height("joint"),
        criterion=below(HEIGHT_BOUND),
        control=Control("the best multiple of the strength squared", [e.constant["square"]]),
        unit="%",
    )
    yield finding(
        "pdecontrol.joint.loss",
        f"Its feedback loses less than {LOSS_BOUND:g} % after 100,000 solves, mean of four exams",
        ours=e.last_four("joint"),
        criterion=below(LOSS_BOUND),
        control=Control("one network, constant rate", e.last_four("hjb")),
        unit="%",
    )
    yield finding(
        "pdecontrol.joint.over_one",
        "It loses less than one network with a constant rate, at equal solves",
        ours=e.last_four("joint"),
        criterion=below_control(),
        control=Control("one network", e.last_four("hjb")[: len(e.fitted["joint"])]),
        unit="%",
    )


def _policy_rows(e: Evidence) -> Iterator[Row]:
    yield finding(
        "pdecontrol.hjb.over_policy",
        "The value function is more accurate than a direct policy at 100,000 solves",
        ours=e.last_four("hjb"),
        criterion=below_control(),
        control=Control("direct policy", e.last_four("policy")),
        unit="%",
    )
    yield finding(
        "pdecontrol.policy.over_hjb.ratios",
        "Basin by basin a direct policy is more accurate: mean of ratios, 128 fresh basins",
        ours=e.ratios("policy"),
        criterion=below_control(),
        control=Control("value function", e.ratios("hjb")),
        unit="%",
    )


def swing(exams: Sequence[float]) -> float:
    """The mean step between the last ten exams, in points."""
    last = exams[-10:]
    return fmean(abs(b - a) for a, b in pairwise(last))


def _swing_rows(e: Evidence) -> Iterator[Row]:
    curves = {k: [f.exams[: LONG // fits.SLICE] for f in e.fitted[k]] for k in ("td3", "hjb")}
    yield finding(
        "pdecontrol.td3.swings",
        "Exams of TD3 swing more than those of the value function: mean step between the last ten",
        ours=[swing(curve) for curve in curves["td3"]],
        criterion=above_control(),
        control=Control("value function", [swing(curve) for curve in curves["hjb"]]),
        unit="points",
    )
    for name, values in (
        ("last", [curve[-1] for curve in curves["td3"]]),
        ("best", [min(curve) for curve in curves["td3"]]),
    ):
        says = f"TD3: the {name} of 25 exams, one a seed"
        yield Measurement(f"pdecontrol.td3.exam.{name}", BOOK, says, values, unit="%")


# --- measurements -------------------------------------------------------------------------------


def _curve_rows(e: Evidence) -> Iterator[Row]:
    for kind, name in NAMES.items():
        yield Measurement.over_seeds(
            f"pdecontrol.{kind}.suboptimality.solves20k",
            BOOK,
            f"suboptimality of the {name} after 20,000 solves, one exam",
            e.at(kind, 20_000),
        )
        for mark, solves in (("60k", 60_000), ("100k", LONG)):
            yield Measurement.over_seeds(
                f"pdecontrol.{kind}.suboptimality.solves{mark}",
                BOOK,
                f"suboptimality of the {name} after {solves:,} solves, mean of four exams",
                e.last_four(kind, solves),
            )
    long = [f.last_four(600_000) for f in e.fitted["ppo"] if len(f.exams) > LONG // fits.SLICE]
    long = long or e.last_four("ppo", LONG)  # a trial run has short trainings only
    says = "suboptimality of PPO after 600,000 solves, mean of four exams"
    yield Measurement.over_seeds("pdecontrol.ppo.suboptimality.solves600k", BOOK, says, long)


def _place_rows(e: Evidence) -> Iterator[Row]:
    slugs = {judging.OTHERS: "fresh", judging.BOX: "out_of_box"}
    for kind, name in NAMES.items():
        for place, slug in slugs.items():
            table = e.costs[place]
            values = [judging.ratio_of_means(table, f.name) for f in e.fitted[kind]]
            says = f"suboptimality of the {name}, {place}"
            yield Measurement.over_seeds(
                f"pdecontrol.{kind}.suboptimality.{slug}", BOOK, says, values
            )
        says = f"{name}: mean of ratios, {judging.OTHERS}"
        yield Measurement.over_seeds(f"pdecontrol.{kind}.ratios", BOOK, says, e.ratios(kind))


def _reference_rows(e: Evidence) -> Iterator[Row]:
    best, free = e.reference["best"], e.reference["free"]
    named = (
        ("order.space", "order of the finite elements in space", e.orders["space"]),
        ("order.time", "order of implicit Euler in time", e.orders["time"]),
        ("adjoint_error", "the gradient is off by less than", max(e.gradient, 1e-10)),
        ("reference.cost", "mean of the least costs of 64 basins", best),
        ("reference.unconstrained", "the same, if drains may emit", free),
    )
    for name, says, value in named:
        yield Measurement(f"pdecontrol.{name}", BOOK, says, value)
    base = next(iter(e.refined.values()))
    for k, (mesh, cost) in enumerate(e.refined.items()):
        if k:
            says = f"least cost on {mesh}, over that on 17 nodes, 25 steps, less one"
            yield Measurement(
                f"pdecontrol.refined.{k}", BOOK, says, 100 * (cost / base - 1), unit="%"
            )
    speedups = [e.online["lbfgs"] / (25 * e.online[kind]) for kind in ("hjb", "policy")]
    yield Measurement(
        "pdecontrol.online_speedup_vs_lbfgs",
        BOOK,
        "times as fast as L-BFGS on a new basin: value function, direct policy",
        speedups,
        unit="times",
    )


# --- tables -------------------------------------------------------------------------------------


def cell(values: Sequence[float], digits: int = 1) -> str:
    """Mean and deviation over seeds."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.{digits}f} ± {spread:.{digits}f}"


def counting_table(e: Evidence) -> str:
    """Suboptimality of each method, counted in several ways."""
    head = ("%", "last exam", "last four", "ratio of means", "mean of ratios", "worst basin")
    fresh, lines = e.costs[judging.OTHERS], []
    for kind, name in NAMES.items():
        each = e.fitted[kind]
        ends = [judging.ratio_of_means(fresh, f.name) for f in each]
        bad = [judging.worst(fresh, f.name) for f in each]
        counts = (e.at(kind, LONG), e.last_four(kind), ends, e.ratios(kind), bad)
        lines.append([name, *(cell(count) for count in counts)])
    return columns(head, lines)


def height_table(e: Evidence) -> str:
    """What each value function knows of the value."""
    head = ("", "off by %", "correlation", "deviation", "defects %", "at the end %")
    lines = []
    for kind, name in VALUED.items():
        row = [cell(e.height(kind)), cell(e.height(kind, "correlation"), 2)]
        row += [cell(e.height(kind, "deviation"), 3)]
        row += [cell(e.height(kind, what)) for what in ("defects", "end")]
        lines.append([name, *row])
    lines.append(["best constant", f"{e.constant['constant']:.1f}", *["–"] * 4])
    lines.append(["multiple of the strength squared", f"{e.constant['square']:.1f}", *["–"] * 4])
    lines.append(["least costs", "0", "1", f"{e.constant['deviation']:.3f}", "–", "–"])
    return columns(head, lines)


def td3_table(e: Evidence) -> str:
    """The end of TD3's trainings, seed by seed."""
    head = ("%", "mean of four", "last exam", "best exam", "mean step", "opening over best")
    lines = []
    for f in e.fitted["td3"]:
        exams = f.exams[: LONG // fits.SLICE]
        row = (f.last_four(LONG), exams[-1], min(exams), swing(exams), e.openings[f.name])
        lines.append([f.name.replace("-", ", seed "), *(f"{value:.1f}" for value in row)])
    return columns(head, lines)


def search_table(e: Evidence) -> str:
    """What the search has found."""
    head = ("%", "least", "median", "greatest", "best three, longer")
    lines = []
    for kind, search in e.searches.items():
        ends = [fmean(curve[-4:]) for curve in search.curves]
        row = [f"{value:.1f}" for value in (min(ends), median(ends), max(ends))]
        longer = ", ".join(f"{fmean(curve[-4:]):.1f}" for curve in search.longer)
        lines.append([NAMES[kind], *row, longer])
    return columns(head, lines)


def cost_table(e: Evidence) -> str:
    """What trainings and answers cost."""
    head = ("", "s for 100,000 solves", "ms a control")
    lines = []
    for kind, name in NAMES.items():
        pace = fmean(LONG / fits.SLICE * f.record.seconds / len(f.exams) for f in e.fitted[kind])
        quick = f"{e.online[kind]:.2f}" if kind in e.online else "–"
        lines.append([name, f"{pace:.0f}", quick])
    plan = (
        f"ms for a plan of 25: {e.online['lbfgs']:.0f} by L-BFGS, {e.online['exact']:.1f} exactly"
    )
    return columns(head, lines) + f"\n\n{plan}."
