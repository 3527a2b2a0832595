"""What the evidence on score-based diffusion rests on, and the rows that follow from it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from ctdl_lib.problems.densities import TOYS
from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above_control,
    below,
    below_control,
    finding,
    within,
)
from machinery.store import Run, Store, device_of, results_folder

from ..ot_flow import densities
from ..ot_flow.evidence import GAUSSIAN, gaussian_gaps
from . import control, family, learned, race
from .samplers import EULER, FLOW, GRIDS, HEUN, HEUN_LEVEL, LINE, MEAN, SAMPLERS, SUM
from .training import CHAPTER

BOOK = "this book"
SLIDE = "slide Score-based diffusion"
SONG, BERNER = "Song et al. 2021", "Berner et al. 2024"
AT = 32  # evaluations at which samplers are compared
SCORE_BOUND, DISTANCE_BOUND, GAP_BOUND = 2.0, 1.5, 0.1

Table = dict[str, list[float]]


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    race: race.Race
    orders: Table
    widths: dict[str, dict[float, list[float]]]
    score: dict[str, list[list[float]]]
    samples: dict[str, Table]
    learned: dict[str, dict[int, list[float]]]
    likelihood: Table
    gaps: Table
    gaussian: Table
    ot_flow: Table
    hjb: list[tuple[float, float]]
    control: Table
    guided: dict[float, list[float]]
    classes: Table
    family: Table
    interpolants: dict[str, dict[int, list[float]]]
    copies: Table
    seconds: float  # of a training
    store: Store

    def at(self, budget: int) -> int:
        """A budget of the race; in smoke, the largest that was tried."""
        return budget if budget in self.race.budgets else self.race.budgets[-1]


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store = Store(CHAPTER, run)
    flows, found = learned.flows(store, seed, device_of(device)), race.race(store, seed)
    seeds = learned.few(store, seed)
    points = 50 if run == "smoke" else learned.HELD_OUT
    return Evidence(
        race=found,
        orders=race.orders(store, seed),
        widths=race.widths(store, found, seed),
        score=learned.score_errors(store, flows, seed),
        samples=learned.samples(store, flows, found, seed),
        learned=learned.budgets(store, flows, found, seed),
        likelihood=learned.likelihood(store, seed),
        gaps=learned.gaps(store, flows, seed),
        gaussian={
            name: gaussian_gaps(p, densities.held_out(name, points), seeds)
            for name, p in TOYS.items()
            if name != "checkerboard"  # a Gaussian has mass where the board has none
        },
        ot_flow=ot_flow_gaps(len(seeds)),
        hjb=control.hjb(store, seed),
        control=control.excess_costs(store, seed),
        guided=learned.guided(store, seed),
        classes=learned.classes(store, found, seed),
        family=family.apart(store, seed),
        interpolants=family.budgets(store, seed),
        copies=learned.copies(store, seed),
        seconds=learned.seconds(store, seed),
        store=store,
    )


def ot_flow_gaps(count: int) -> Table:
    """The gaps of OT-Flow on the same densities, as the chapter on it has stored them."""
    stored = Store(densities_chapter(), "saved", folder=results_folder())
    table: Table = {}
    for gap in densities.gaps(stored):
        table.setdefault(gap.density, []).append(gap.gap)
    return {name: row[:count] for name, row in table.items()}


def densities_chapter() -> str:
    """The chapter whose store has OT-Flow's gaps."""
    return "07_ot_flow"


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_learned_rows(e),
        *_spoiled_rows(e),
        *_likelihood_rows(e),
        *_control_rows(e),
        *_sampler_rows(e),
        *_order_rows(e),
        *_class_rows(e),
        *_family_rows(e),
        *_copy_rows(e),
    ]


def by_seed(tables: Sequence[Sequence[float]]) -> list[float]:
    """The means over tables, seed by seed."""
    return [fmean(row) for row in zip(*tables, strict=True)]


def logs(values: Sequence[float]) -> list[float]:
    """The logarithms with base 10."""
    return [math.log10(value) for value in values]


def score_percent(e: Evidence, name: str) -> list[float]:
    """The relative square error of learned scores, mean over times, in percent, one a seed."""
    return [100 * fmean(row) for row in e.score[name]]


def ratios(e: Evidence, what: str) -> list[float]:
    """Distances to data over that of data to data, mean over seven densities, one a seed."""
    return by_seed(
        [[a / fmean(table["real"]) for a in table[what]] for table in e.samples.values()]
    )


def _learned_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "sbdm.score.error",
        "Denoising learns the score, known exactly for five densities: mean square error over mean "
        f"square is below {SCORE_BOUND:g} %",
        SLIDE,
        ours=by_seed([score_percent(e, name) for name in learned.KNOWN]),
        criterion=below(SCORE_BOUND),
        control=Control(
            "the score of a Gaussian with the data's moments, one a density",
            score_percent(e, "linear"),
        ),
        unit="%",
    )
    yield Claim(
        "sbdm.samples.distance",
        "With the learned score the reversed process samples the data: sliced distance at most "
        f"{DISTANCE_BOUND:g} times that of data to data, mean of seven densities",
        SLIDE,
        ours=ratios(e, "samples"),
        criterion=below(DISTANCE_BOUND),
        control=Control("samples of a Gaussian", ratios(e, "Gaussian")),
        unit="times",
    )


def _spoiled_rows(e: Evidence) -> Iterator[Row]:
    """What the distance of samples can see, and the errors of all scores."""
    shifted, widened = learned.SPOILED
    yield finding(
        "sbdm.samples.spoiled",
        "Samples are nearer to the data than data that are moved by a twentieth of their deviation",
        ours=ratios(e, "samples"),
        criterion=below_control(),
        control=Control(f"data {shifted}", ratios(e, shifted)),
        unit="times",
    )
    yield Measurement.over_seeds(
        "sbdm.power.widened",
        BOOK,
        f"power of this distance: data {widened} of the deviation, over data to data",
        ratios(e, widened),
        "times",
    )
    for name in learned.KNOWN:
        says = f"relative square error of the learned score, {name}"
        yield Measurement.over_seeds(f"sbdm.score.{name}", BOOK, says, score_percent(e, name))


def _likelihood_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "sbdm.likelihood",
        "The probability flow has the likelihood of the data: mean |log q − log p|, exact "
        "scores of mixtures in ℝ³",
        SONG,
        ours=e.likelihood["exact"],
        criterion=below(1e-3),
        control=Control("the score of a Gaussian with the same moments", e.likelihood["Gaussian"]),
        unit="nats",
    )
    yield finding(
        "sbdm.toys.nll_gap",
        f"Learned models come within {GAP_BOUND:g} nats of the least NLL: mean of six densities",
        ours=by_seed([e.gaps[name] for name in e.gaussian]),
        criterion=below(GAP_BOUND),
        control=Control(GAUSSIAN, by_seed(list(e.gaussian.values()))),
        unit="nats",
    )
    for name, gaps in e.gaps.items():
        says = f"{name}: nats above the least NLL"
        yield Measurement.over_seeds(f"sbdm.gap.{name}", BOOK, says, gaps, "nats")
    yield Measurement.over_seeds(
        "sbdm.gap.ot_flow",
        BOOK,
        "OT-Flow (chapter 7) on the same six densities, with smaller networks and longer training",
        by_seed([e.ot_flow[name] for name in e.gaussian]),
        "nats",
    )
    yield Measurement("sbdm.seconds", BOOK, "a training, mean of 21", e.seconds, "s")


def _control_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "sbdm.hjb.residual",
        "−log p solves a Hamilton–Jacobi–Bellman equation: largest residual over largest ∂ₜΦ",
        BERNER,
        ours=[full for full, _ in e.hjb],
        criterion=below(1e-9),
        control=Control("the equation without noise", [without for _, without in e.hjb]),
    )
    yield Claim(
        "sbdm.control.cost",
        "√β times the score is the control whose cost is the value: what it costs more",
        BERNER,
        ours=e.control["1"],
        criterion=within(-0.2, 0.2),
        control=Control("a control stronger by a quarter", e.control["1.25"]),
        unit="nats",
    )
    for name, key in (("0.5", "half"), ("0.75", "weaker"), (control.GAUSSIAN, "gaussian")):
        says = name if key == "gaussian" else f"the best control times {name}"
        yield Measurement.over_seeds(
            f"sbdm.control.{key}", BOOK, f"cost above the value: {says}", e.control[name], "nats"
        )


def _sampler_rows(e: Evidence) -> Iterator[Row]:
    r, n = e.race, e.at(AT)
    heun = {kind: logs(r.errors[HEUN][kind][n]) for kind in GRIDS}
    yield _less(
        "sbdm.grid.log",
        f"Heun's method errs less with steps even in log(s/a) than with steps even in t: "
        f"log₁₀ W₁, {AT} evaluations",
        (heun["log σ"], "even in t", heun["t"]),
    )
    yield _less(
        "sbdm.grid.best",
        f"Steps even in log(s/a) are the best for Heun's method: log₁₀ W₁, {AT} evaluations",
        (heun["log σ"], "even in √t", heun["√t"]),
    )
    yield _less(
        "sbdm.own_grids",
        "Each on its own grid, Heun's method needs at most half of Euler–Maruyama's evaluations to "
        "come below the distance of 100,000 exact samples (log₂)",
        (r.needed(HEUN), EULER, r.needed(EULER)),
        by=0.99,
    )
    yield from _frozen_rows(e, n)
    yield _less(
        "sbdm.learned.sampler",
        "With learned scores of the eight Gaussians, too, Heun's method is nearer to the data than "
        "Euler–Maruyama at 16 evaluations: sliced distance",
        (e.learned[HEUN][16], EULER, e.learned[EULER][16]),
    )
    for name in SAMPLERS:
        says = f"{name}: log₂ of the evaluations that come below the floor, own grid"
        yield Measurement.over_seeds(f"sbdm.needed.{SLUGS[name]}", BOOK, says, r.needed(name), "")
    says = "W₁ of 100,000 exact samples to their law: the floor"
    yield Measurement.over_seeds("sbdm.floor", BOOK, says, r.floor, "")


def _less(
    id: str, says: str, pair: tuple[list[float], str, list[float]], *, by: float = 0.0
) -> Row:
    """The finding that ours is less than a rival's, seed by seed; the pair has his name between."""
    ours, rival, theirs = pair
    control = Control(rival, theirs)
    return finding(id, says, ours=ours, criterion=below_control(by), control=control)


def _frozen_rows(e: Evidence, n: int) -> Iterator[Row]:
    r, narrow = e.race, min(e.widths[MEAN])
    yield _less(
        "sbdm.freeze.sde",
        "A reversed equation that freezes the mean errs less than one that freezes x + S: "
        f"log₁₀ W₁, {AT} evaluations, own grids",
        (logs(r.own(MEAN, n)), "x + S frozen", logs(r.own(SUM, n))),
    )
    yield _less(
        "sbdm.freeze.narrow",
        f"It does so where the data are narrow, parts of width {narrow:g}",
        (logs(e.widths[MEAN][narrow]), "x + S frozen", logs(e.widths[SUM][narrow])),
    )
    yield _less(
        "sbdm.freeze.line",
        "Along the flow, the mean on a line through its last two values errs less than the frozen "
        f"mean: log₁₀ W₁, {AT} evaluations, own grids",
        (logs(r.own(LINE, n)), "mean frozen", logs(r.own(FLOW, n))),
    )


SLUGS = {
    EULER: "euler",
    SUM: "sum",
    MEAN: "mean",
    FLOW: "flow",
    LINE: "line",
    HEUN: "heun",
    HEUN_LEVEL: "heun_level",
}


def _order_rows(e: Evidence) -> Iterator[Row]:
    first = [name for name, s in SAMPLERS.items() if s.order == 1]
    for name, sampler in SAMPLERS.items():
        other = HEUN if name in first else FLOW
        bounds = (0.75, 1.25) if name in first else (1.6, 2.4)
        yield finding(
            f"sbdm.order.{SLUGS[name]}",
            f"{name} has order {sampler.order}: slope of log W₁ over log steps",
            ours=e.orders[name],
            criterion=within(*bounds),
            control=Control(other, e.orders[other]),
        )


def _class_rows(e: Evidence) -> Iterator[Row]:
    ratio = lambda what: [a / fmean(e.classes["real"]) for a in e.classes[what]]  # noqa: E731
    yield finding(
        "sbdm.class.distance",
        "A score that has seen labels samples one class without guidance: sliced distance to the "
        f"class at most {DISTANCE_BOUND:g} times that of data to data",
        ours=ratio("samples"),
        criterion=below(DISTANCE_BOUND),
        control=Control("samples of all classes", ratio("all")),
        unit="times",
    )
    yield finding(
        "sbdm.class.guidance",
        "Guidance with weight 2 moves samples away from the law of the class: log₁₀ W₁, "
        "exact scores",
        ours=logs(e.guided[2.0]),
        criterion=above_control(),
        control=Control("the score of the class itself", logs(e.guided[1.0])),
    )
    for what in ("share", "share of real"):
        says = f"probability of the wanted class, {'real data' if 'real' in what else 'samples'}"
        key = "real_share" if "real" in what else "share"
        values = [100 * share for share in e.classes[what]]
        yield Measurement.over_seeds(f"sbdm.class.{key}", BOOK, says, values)


def _family_rows(e: Evidence) -> Iterator[Row]:
    yield finding(
        "sbdm.family.map",
        "Diffusion, flow matching along straight lines and an interpolant along quarter circles "
        "map noise to the same data: root mean square distance",
        ours=[
            max(pair) for pair in zip(e.family[family.LINEAR], e.family[family.CIRCLE], strict=True)
        ],
        criterion=below(1e-4),
        control=Control("another map between the same laws, by a mirror", e.family["mirror"]),
    )
    n = 16 if 16 in e.interpolants[family.LINEAR] else 8
    straight = logs(e.interpolants[family.LINEAR][n])
    yield finding(
        "sbdm.family.even",
        f"With equal steps in its own time the straight path errs less than the diffusion: "
        f"log₁₀ W₁, {n} evaluations of Heun's method",
        ours=straight,
        criterion=below_control(),
        control=Control("diffusion, even in t", logs(e.interpolants[family.DIFFUSION][n])),
    )
    yield finding(
        "sbdm.family.straight",
        f"It still does if the diffusion takes its best grid: log₁₀ W₁, {n} evaluations",
        ours=straight,
        criterion=below_control(),
        control=Control("diffusion, own grid", logs(e.race.own(HEUN, e.at(n)))),
    )


def _copy_rows(e: Evidence) -> Iterator[Row]:
    yield finding(
        "sbdm.copies",
        "The perfect score of 30 points samples these points: median distance to the nearest",
        ours=e.copies["points"],
        criterion=below(0.001),
        control=Control("the perfect score of the density", e.copies["density"]),
    )


# --- tables -------------------------------------------------------------------------------------


def thousandths(values: Sequence[float]) -> str:
    """The mean of some errors times 1,000, to two digits."""
    return f"{float(f'{1000 * fmean(values):.2g}'):g}"


def race_table(e: Evidence) -> str:
    """The errors of all samplers on their own grids, means over mixtures, in thousandths."""
    lines = ["| W₁ · 1000 | " + " | ".join(f"{n}" for n in e.race.budgets) + " |"]
    lines.append("|---|" + "---:|" * len(e.race.budgets))
    for name in SAMPLERS:
        cells = [thousandths(e.race.own(name, n)) for n in e.race.budgets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def grid_table(e: Evidence) -> str:
    """The grid that each sampler chose for each budget, with its last level."""
    lines = ["| own grid | " + " | ".join(f"{n}" for n in e.race.budgets) + " |"]
    lines.append("|---|" + "---|" * len(e.race.budgets))
    for name in SAMPLERS:
        cells = []
        for n in e.race.budgets:
            kind = e.race.chosen[name][n]
            cells.append(f"{kind}, {e.race.last[name][kind][n]:g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kinds_table(e: Evidence) -> str:
    """The errors of Heun's method and Euler–Maruyama's by the kind of the grid, in thousandths."""
    budgets = [n for n in e.race.budgets if n <= 128]
    lines = ["| W₁ · 1000 | even in | " + " | ".join(f"{n}" for n in budgets) + " |"]
    lines.append("|---|---|" + "---:|" * len(budgets))
    for name in (EULER, LINE, HEUN):
        for kind in GRIDS:
            cells = [thousandths(e.race.errors[name][kind][n]) for n in budgets]
            lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gap_table(e: Evidence) -> str:
    """Nats above the least NLL for each density: learned, OT-Flow's and a Gaussian's."""
    lines = ["| nats | diffusion | OT-Flow | Gaussian |", "|---|---|---|---|"]
    for name in e.gaps:
        rows = (e.gaps[name], e.ot_flow[name], e.gaussian.get(name, []))
        cells = [", ".join(f"{gap:.3f}" for gap in row) or "–" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def learned_table(e: Evidence) -> str:
    """The sliced distances of samples of the eight Gaussians by learned scores."""
    budgets = list(e.learned[EULER])
    lines = ["| sliced distance | " + " | ".join(f"{n}" for n in budgets) + " |"]
    lines.append("|---|" + "---:|" * len(budgets))
    for name, found in e.learned.items():
        cells = [f"{fmean(found[n]):.3f}" for n in budgets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    real = fmean(e.samples["8gaussians"]["real"])
    lines.append("| data | " + " | ".join(f"{real:.3f}" for _ in budgets) + " |")
    return "\n".join(lines)


def width_table(e: Evidence) -> str:
    """The errors with 32 evaluations by the width of the parts, in thousandths."""
    widths = list(next(iter(e.widths.values())))
    lines = ["| W₁ · 1000 | " + " | ".join(f"width {w:g}" for w in widths) + " |"]
    lines.append("|---|" + "---:|" * len(widths))
    for name, found in e.widths.items():
        cells = [thousandths(found[w]) for w in widths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interpolant_table(e: Evidence) -> str:
    """The errors of Heun's method with equal steps in the time of three interpolants."""
    budgets = list(e.interpolants[family.LINEAR])
    lines = ["| W₁ · 1000 | " + " | ".join(f"{n}" for n in budgets) + " |"]
    lines.append("|---|" + "---:|" * len(budgets))
    for name, found in e.interpolants.items():
        cells = [thousandths(found[n]) for n in budgets]
        lines.append(f"| {name}, equal steps | " + " | ".join(cells) + " |")
    cells = [thousandths(e.race.own(HEUN, e.at(n))) for n in budgets]
    lines.append("| diffusion, own grid | " + " | ".join(cells) + " |")
    return "\n".join(lines)
