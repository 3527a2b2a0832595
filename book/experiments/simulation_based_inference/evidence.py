"""What the evidence on simulation-based inference rests on, and the rows that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2
from statistics import fmean
from typing import Any

import torch

from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    below,
    below_control,
    finding,
    line_of,
    spread_of,
    within,
)
from machinery.store import Record, Run, Store

from . import benchmark, checks, gaussian, maps, references
from .maps import (
    COT,
    COT_LONG,
    COT_READS,
    COT_WIDE,
    NPE,
    PCP,
    SHORT,
    Key,
)
from .predators import LENGTHS, SIZES, Campaign, chosen
from .references import Gap

BOOK = "this book"
SLIDE = "slide Simulation-based inference"
PREDATORS = "slide Stochastic Lotka–Volterra"
MEAN, STD, TOLD, MUCH = 0.25, 30.0, 60.0, 10.0  # bounds: σ, percent, percent, times
SMALL, LARGE = SIZES[2], SIZES[3]  # the numbers of simulations on the slide
REJECTION = "rejection ABC with a linear regression, from the same simulations"
C2ST_BOUNDS = {"two_moons": 55.0, "gaussian_mixture": 55.0, "slcp": 75.0}


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    errors: gaussian.Errors
    smc: dict[str, Record]
    second: list[dict[str, Key]]
    matches: dict[tuple[str, int], list[list[Key]]]
    zoom: list[list[Key]]
    rejections: dict[int, list[list[Key]]]
    power: list[dict[str, Key]]
    nll: dict[tuple[str, int], dict[str, list[float]]]
    seconds: dict[tuple[str, int], list[float]]
    zoom_seconds: list[float]
    pilots: list[Key]
    ranks: dict[tuple[str, int], checks.Ranks]
    narrow: dict[tuple[str, int], checks.Ranks]
    outside: dict[tuple[str, int], list[float]]
    solver: dict[str, checks.SolverErrors]
    inside: list[int]
    c2st: benchmark.Scores
    c2st_controls: dict[str, dict[str, float]]
    clocks: dict[str, dict[str, float]]
    speedup: float
    given_up: float
    campaign: Campaign
    store: Store

    def reference(self, index: int) -> Key:
        """Mean and deviation of the reference: SMC-ABC with the adapted distance."""
        return references.last(self.smc[f"theta{index + 1}-adapted"])

    def gap(self, row: Key, index: int) -> Gap:
        """How far a posterior is from the reference."""
        return references.gap(row, self.reference(index))

    def gaps(self, rows: Sequence[Sequence[Key]], index: int) -> list[Gap]:
        """The gaps of all seeds."""
        return [self.gap(row, index) for row in rows[index]]

    def misses(self, rows: Sequence[Sequence[Key]]) -> list[float]:
        """The logarithm log₂ of the worst gap over its bound, at both observations, one a seed."""
        pairs = zip(self.gaps(rows, 0), self.gaps(rows, 1), strict=True)
        worst = (max(max(gap.mean / MEAN, gap.std / STD) for gap in pair) for pair in pairs)
        return [log2(value) for value in worst]

    def rivals_at(self, index: int, *, adapted: bool = False) -> list[Record]:
        """The runs of SMC-ABC with the published distance, or with the adapted one."""
        ends = ("-adapted",) if adapted else ("", "-half")
        return [self.smc[f"theta{index + 1}{end}"] for end in ends]

    def savings(
        self, rows: Sequence[Sequence[Key]], n: int, index: int, *, adapted: bool = False
    ) -> list[float]:
        """How many times n simulations SMC-ABC needs to come as near to the reference."""
        runs, ref = self.rivals_at(index, adapted=adapted), self.reference(index)
        found = (references.needed(runs, ref, gap)[0] for gap in self.gaps(rows, index))
        return [simulations / n for simulations in found]

    @property
    def pilot_seconds(self) -> float:
        """The seconds of all pilot runs."""
        return sum(row["seconds"] for row in self.pilots)

    def likelihood(self, name: str, n: int) -> list[float]:
        """The NLL of new pairs by the finest solve."""
        return list(self.nll[name, n].values())[-1]


def gather(run: Run, seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store = Store(maps.CHAPTER, run)
    campaign = Campaign(store, seed)
    sizes = [(name, n) for name in LENGTHS for n in campaign.sizes(name)]
    ranked = {place: checks.calibrated(campaign, *place) for place in checks.JUDGED}
    return Evidence(
        errors=gaussian.errors(store, seed),
        smc=references.records(store, seed),
        second=[references.second_references(store, i, seed) for i in (0, 1)],
        matches=checks.all_matches(campaign),
        zoom=checks.match_zoomed(campaign),
        rejections={n: checks.rejections(campaign, n) for n in (SMALL, LARGE)},
        power=checks.power(campaign),
        nll={place: checks.likelihoods(campaign, *place) for place in sizes},
        seconds={place: [f.record.seconds for f in campaign.fits(*place)] for place in sizes},
        zoom_seconds=[f.record.seconds for i in (0, 1) for f in campaign.zooms(i)],
        pilots=campaign.pilots,
        ranks={place: ranks for place, (ranks, _) in ranked.items()},
        narrow={p: checks.calibrated_narrow(campaign, *p) for p in checks.JUDGED},
        outside={place: outside for place, (_, outside) in ranked.items()},
        solver=checks.solver_errors(campaign),
        inside=[row["inside"] for row in checks.predictive(campaign)],
        c2st=benchmark.scores(store, seed),
        c2st_controls=benchmark.controls(store, seed),
        clocks=checks.clocks(campaign),
        speedup=checks.speedup(campaign),
        given_up=checks.given_up(campaign),
        campaign=campaign,
        store=store,
    )


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_gaussian_rows(e),
        *_match_rows(e),
        *_part_rows(e),
        *_cost_rows(e),
        *_smc_rows(e),
        *_reference_rows(e),
        *_likelihood_rows(e),
        *_calibration_rows(e),
        *_step_rows(e),
        *_benchmark_rows(e),
        *_moment_rows(e),
        *_other_rows(e),
    ]


def _gaussian_rows(e: Evidence) -> Iterator[Row]:
    says = "KL from the exact posteriors of a linear problem"
    for name in (COT, PCP):
        yield Claim(
            "sbi.gaussian.kl" + ("" if name == COT else f".{SHORT[name]}"),
            f"Conditional optimal transport learns posteriors from pairs, {name}: {says}",
            SLIDE,
            ours=e.errors.kl[name],
            criterion=below(0.02),
            control=Control("product of the exact marginals", [e.errors.margins]),
            unit="nats",
        )
    yield Measurement.over_seeds(
        "sbi.gaussian.kl.npe", BOOK, f"NPE: {says}", e.errors.kl[NPE], "nats"
    )
    for name in (COT, PCP):
        yield Claim(
            f"sbi.gaussian.map.{SHORT[name]}",
            "The learned map is that of optimal transport for each observation:"
            f" relative distance, {name}, linear problem",
            SLIDE,
            ours=e.errors.map[name],
            criterion=below(5),
            control=Control("NPE, which pays for no transport", e.errors.map[NPE]),
            unit="%",
        )
    yield Claim(
        "sbi.gaussian.hjb",
        "The learned potential obeys the HJB equation for each observation: residual over"
        " transport cost, linear problem",
        SLIDE,
        ours=e.errors.hjb,
        criterion=below(10),
        control=Control("a potential that is constant in time", [100.0]),
        unit="%",
    )


def _match_rows(e: Evidence) -> Iterator[Row]:
    """All gaps of COT-Flow from the reference in one number a seed."""
    for n, id in ((LARGE, "cot"), (SMALL, "cot50k")):
        yield Claim(
            f"lv.{id}.match",
            "Samples closely match SMC at both observations, in means and deviations: log₂ of"
            f" the worst gap over its bound, {chosen(COT, n)}, {n:,} simulations",
            PREDATORS,
            ours=e.misses(e.matches[chosen(COT, n), n]),
            criterion=below(0),
            control=Control(REJECTION, e.misses(e.rejections[n])),
        )
    yield finding(
        "lv.zoom.match",
        "A second training near each observation matches SMC, in means and deviations: log₂ of"
        " the worst gap over its bound, 150,000 simulations for each",
        ours=e.misses(e.zoom),
        criterion=below(0),
        control=Control("the first training", e.misses(e.matches[COT, SMALL])),
    )


PARTS = {
    "mean_gap": ("worst difference of a mean of log θ", MEAN, "σ"),
    "std_gap": ("worst error of a standard deviation", STD, "%"),
    "c2st": ("accuracy of a classifier (C2ST)", TOLD, "%"),
}


def _parts(e: Evidence, rows: Sequence[Sequence[Key]], index: int) -> dict[str, list[float]]:
    """The numbers of all `PARTS`, one a seed."""
    gaps = e.gaps(rows, index)
    found = {"mean_gap": [gap.mean for gap in gaps], "std_gap": [gap.std for gap in gaps]}
    return found | {"c2st": [row["c2st"] for row in rows[index]]}


def _part_rows(e: Evidence) -> Iterator[Row]:
    """Means, deviations and C2ST of COT-Flow at each observation, and of second trainings."""
    for n, id in ((LARGE, "cot"), (SMALL, "cot50k")):
        for i in (0, 1):
            ours, rival = _parts(e, e.matches[chosen(COT, n), n], i), _parts(e, e.rejections[n], i)
            for part, (says, bound, unit) in PARTS.items():
                yield Claim(
                    f"lv.{id}.theta{i + 1}.{part}",
                    f"Samples closely match SMC: {says}, {chosen(COT, n)}, {n:,} simulations,"
                    f" observation {i + 1}",
                    PREDATORS,
                    ours=ours[part],
                    criterion=below(bound),
                    control=Control(REJECTION, rival[part]),
                    unit=unit,
                )
    for i in (0, 1):
        ours, first = _parts(e, e.zoom, i), _parts(e, e.matches[COT, SMALL], i)
        for part, what in (("mean_gap", "means"), ("std_gap", "deviations")):
            _, bound, unit = PARTS[part]
            yield finding(
                f"lv.zoom.theta{i + 1}.{part}",
                f"A second training near one observation comes close to SMC: {what},"
                f" observation {i + 1}, 150,000 simulations",
                ours=ours[part],
                criterion=below(bound),
                control=Control("the first training", first[part]),
                unit=unit,
            )


def _cost_rows(e: Evidence) -> Iterator[Row]:
    """Simulations at equal accuracy, and seconds."""
    for n, id in ((LARGE, "cot"), (SMALL, "cot50k")):
        for i in (0, 1):
            yield Claim(
                f"lv.{id}.theta{i + 1}.saving",
                "Much fewer simulations than SMC-ABC with the published distance: those of SMC-ABC"
                f" for an equal match (at least) over those of {chosen(COT, n)},"
                f" {n:,} simulations, observation {i + 1}",
                PREDATORS,
                ours=e.savings(e.matches[chosen(COT, n), n], n, i),
                criterion=above(MUCH),
                control=Control(REJECTION, e.savings(e.rejections[n], n, i)),
                unit="times",
            )
            yield finding(
                f"lv.{id}.theta{i + 1}.saving_adapted",
                "Much fewer simulations than SMC-ABC with the adapted distance, whose preparation"
                " is not counted: those of SMC-ABC for an equal match over those of"
                f" {chosen(COT, n)}, {n:,} simulations, observation {i + 1}",
                ours=e.savings(e.matches[chosen(COT, n), n], n, i, adapted=True),
                criterion=above(MUCH),
                control=Control(REJECTION, e.savings(e.rejections[n], n, i, adapted=True)),
                unit="times",
            )
    for i in (0, 1):
        seconds = [e.pilot_seconds + s for s in e.seconds[COT, SMALL]]
        smc = e.smc[f"theta{i + 1}"].seconds
        yield Claim(
            f"lv.cot50k.theta{i + 1}.seconds",
            "Much lower computational cost than SMC-ABC, in seconds with this compiled simulator:"
            f" 100 pilot runs and one training without encoder, observation {i + 1}",
            PREDATORS,
            ours=seconds,
            criterion=below_control(),
            control=Control("SMC-ABC to the published tolerance", [smc] * len(seconds)),
            unit="s",
        )


def _smc_rows(e: Evidence) -> Iterator[Row]:
    """What the published numbers count, and what the published distance sees."""
    for i, wanted in enumerate(references.PUBLISHED):
        run = e.smc[f"theta{i + 1}"]
        yield finding(
            f"lv.smc.theta{i + 1}.counter",
            f"The slide's {wanted} million simulations of SMC count most of them many times: sum"
            f" of our counters of all rounds over this number, observation {i + 1}",
            ours=[references.summed(run) / 1e6 / wanted],
            criterion=within(0.8, 1.25),
            control=Control(
                "each simulation counted once", [references.completed(run) / 1e6 / wanted]
            ),
            unit="times",
        )
        adapted = e.smc[f"theta{i + 1}-adapted"].numbers["rounds"]
        yield finding(
            f"lv.smc.theta{i + 1}.distance",
            "SMC-ABC with the published distance and tolerance is not yet the posterior of all"
            f" nine statistics: shift of a mean, observation {i + 1}",
            ours=[e.gap(references.last(run), i).mean],
            criterion=above(MEAN),
            control=Control("the reference, one round earlier", [e.gap(adapted[-2], i).mean]),
            unit="σ",
        )
        yield Measurement(
            f"lv.smc.theta{i + 1}.simulations",
            PREDATORS,
            f"completed simulations of SMC-ABC to the published tolerance, observation {i + 1}",
            references.completed(run) / 1e6,
            unit="million",
            published=references.PUBLISHED[i],
        )


def _reference_rows(e: Evidence) -> Iterator[Row]:
    """How far other references are from the first one."""
    for i in (0, 1):
        published = e.gap(references.last(e.smc[f"theta{i + 1}"]), i)
        for name, row in e.second[i].items():
            found, id = e.gap(row, i), name.split()[0]
            for part, (_, bound, unit) in list(PARTS.items())[:2]:
                which = part.removesuffix("_gap")
                yield finding(
                    f"lv.reference.theta{i + 1}.{id}.{part}",
                    f"Another reference, by {name}, agrees with SMC-ABC with the adapted distance:"
                    f" worst difference of a {which}, observation {i + 1}",
                    ours=[getattr(found, which)],
                    criterion=below(bound),
                    control=Control(
                        "SMC-ABC with the published distance", [getattr(published, which)]
                    ),
                    unit=unit,
                )


def _likelihood_rows(e: Evidence) -> Iterator[Row]:
    for name, n in e.nll:
        yield _against_npe(e, name, n)
        if maps.base_of(name) == COT and name != COT_WIDE:
            yield _deceived(e, name, n)
    encoder = "An encoder of the statistics lowers the NLL, in the same training"
    average = "A longer training with average and autoclip lowers the NLL"
    weights = "An encoder lowers the NLL more than as many weights in a wider potential"
    wider = "A wider potential lowers the NLL, in the same training"
    compared = [
        ("cot.encoder.weights", weights, COT_READS, COT_WIDE),
        ("cot.wide", wider, COT_WIDE, COT_LONG),
    ]
    for base, reads, long in zip(maps.METHODS, maps.READERS, maps.LONG, strict=True):
        compared.append((f"{SHORT[base]}.encoder", encoder, reads, long))
        compared.append((f"{SHORT[base]}.average", average, long, base))
    for id, says, name, rival in compared:
        yield finding(
            f"lv.{id}",
            f"{says}: {name}, {SMALL:,} simulations",
            ours=e.likelihood(name, SMALL),
            criterion=below_control(),
            control=Control(rival, e.likelihood(rival, SMALL)),
            unit="nats",
        )


def id_of(name: str, n: int) -> str:
    """The part of an id that names a method: "cot" if it is judged, else "cot.plain" and so on."""
    base, _, variant = name.partition("+")
    return SHORT[base] + ("" if name == chosen(base, n) else f".{variant or 'plain'}")


def _against_npe(e: Evidence, name: str, n: int) -> Row:
    """The NLL of a method: against NPE, if that was trained alike, or as a measurement."""
    base, ours, id = maps.base_of(name), e.likelihood(name, n), f"lv.{id_of(name, n)}.nll.n{n}"
    other = name.replace(base, NPE)
    if base == NPE or (other, n) not in e.nll:
        says = f"NLL of new pairs, {name}, {n:,} simulations"
        return Measurement.over_seeds(id, BOOK, says, ours, "nats")
    rival = e.likelihood(other, n)
    return finding(
        id,
        f"{base} predicts new pairs better than NPE: NLL, {name}, {n:,} simulations",
        ours=ours[: len(rival)],
        criterion=below_control(),
        control=Control(other, rival),
        unit="nats",
    )


def _deceived(e: Evidence, name: str, n: int) -> Row:
    """What the few steps of COT-Flow's training overlook."""
    found = e.nll[name, n]
    return finding(
        f"lv.{id_of(name, n)}.deceived.n{n}",
        "The four Runge–Kutta steps of the training judge the likelihood right: NLL by 32"
        f" steps less that by 4, {name}, {n:,} simulations",
        ours=[b - a for a, b in zip(found["4"], found["32"], strict=True)],
        criterion=below(0.01),
        control=Control(
            "by 2 steps", [b - a for a, b in zip(found["2"], found["32"], strict=True)]
        ),
        unit="nats",
    )


def _calibration_rows(e: Evidence) -> Iterator[Row]:
    narrow = f"samples with {100 * checks.NARROW:.0f} % of the width"
    for (name, n), ranks in e.ranks.items():
        id = f"lv.{id_of(name, n)}" + ("50k" if (name, n) == checks.JUDGED[1] else "")
        for what, kind, p, control in (
            ("sbc_worst_pvalue", "SBC", ranks.sbc_pvalue, e.narrow[name, n].sbc_pvalue),
            ("tarp_pvalue", "TARP", ranks.tarp_pvalue, e.narrow[name, n].tarp_pvalue),
        ):
            yield finding(
                f"{id}.{what}",
                f"{name}, {n:,} simulations, is right on average over observations: {kind},"
                " least p-value with Holm's correction",
                ours=[p],
                criterion=above(0.01),
                control=Control(narrow, [control]),
            )


def _step_rows(e: Evidence) -> Iterator[Row]:
    """Errors of few Runge–Kutta steps, by two measures."""
    found = e.solver[COT]
    for k, n in enumerate(checks.COUNTS):
        values = [row[k] for row in found.percent]
        if n != 4:
            says = f"error of samples by {n} Runge–Kutta steps, COT-Flow, relative to their norm"
            yield Measurement.over_seeds(f"lv.cot.steps_error.{n}", BOOK, says, values)
            continue
        two = checks.COUNTS.index(2)
        yield finding(
            "lv.cot.steps_error.4",
            "Four Runge–Kutta steps suffice for samples: error relative to their norm",
            ours=values,
            criterion=below(1),
            control=Control("two steps", [row[two] for row in found.percent]),
            unit="%",
        )
        yield finding(
            "lv.cot.steps_sigma.4",
            "Four Runge–Kutta steps suffice for samples: error of the worst parameter",
            ours=[row[k] for row in found.sigma],
            criterion=below(0.1),
            control=Control("two steps", [row[two] for row in found.sigma]),
            unit="σ",
        )


def _benchmark_rows(e: Evidence) -> Iterator[Row]:
    for task, methods in e.c2st.items():
        for name, values in methods.items():
            id = f"sbibm.{task}.c2st.{SHORT[name]}"
            says = f"{benchmark.TITLES[task]}, {name}, 20,000 simulations (C2ST)"
            if name not in (COT, PCP):
                yield Measurement.over_seeds(id, BOOK, f"accuracy of a classifier: {says}", values)
                continue
            yield Claim(
                id,
                f"Widely applicable: a classifier hardly tells samples from the posterior, {says}",
                SLIDE,
                ours=values,
                criterion=below(C2ST_BOUNDS[task]),
                control=Control(
                    "Gaussian with the moments of the posterior",
                    [e.c2st_controls[task]["Gaussian"]],
                ),
                unit="%",
            )


def _moment_rows(e: Evidence) -> Iterator[Row]:
    """The means and deviations themselves."""
    shown = ((chosen(COT, LARGE), LARGE, "cot"), (chosen(COT, SMALL), SMALL, "cot50k"))
    shown += ((chosen(PCP, SMALL), SMALL, "pcp"), (chosen(NPE, SMALL), SMALL, "npe"))
    for name, n, id in shown:
        for i in (0, 1):
            for part, what in (("mean", "means"), ("std", "standard deviations")):
                values = torch.tensor([row[part] for row in e.matches[name, n][i]])
                yield Measurement(
                    f"lv.{id}.theta{i + 1}.log_{part}",
                    BOOK,
                    f"{what} of log θ, {name}, {n:,} simulations, observation {i + 1}"
                    " (± the largest of four)",
                    values.mean(0).tolist(),
                    spread=values.std(0).max().item() if len(values) > 1 else None,
                    seeds=len(values),
                )
    for i in (0, 1):
        for end, how in (("half", "half the published tolerance"), ("adapted", "adapted distance")):
            last = references.last(e.smc[f"theta{i + 1}-{end}"])
            id = f"lv.smc.theta{i + 1}" + (".adapted" if end == "adapted" else "")
            at = f"SMC-ABC, {how}, observation {i + 1}"
            yield Measurement(f"{id}.log_mean", BOOK, f"means of log θ, {at}", last["mean"])
            yield Measurement(f"{id}.log_std", BOOK, f"deviations of log θ, {at}", last["std"])
            yield Measurement(f"{id}.tolerance", BOOK, f"tolerance, {at}", last["tolerance"])
            total = last["simulations"] / 1e6
            yield Measurement(f"{id}.total", BOOK, f"all simulations, {at}", total, unit="million")


def _other_rows(e: Evidence) -> Iterator[Row]:
    for name, n in e.matches:
        if name == chosen(COT, n):  # it has claims
            continue
        id = id_of(name, n) + ("500k" if n == LARGE else "")
        for i in (0, 1):
            found, at = e.gaps(e.matches[name, n], i), f"{name}, {n:,}, observation {i + 1}"
            says = f"worst difference of a mean from the reference, {at}"
            values = [gap.mean for gap in found]
            yield Measurement.over_seeds(f"lv.{id}.theta{i + 1}.mean_gap", BOOK, says, values, "σ")
            says = f"worst error of a standard deviation, {at}"
            values = [gap.std for gap in found]
            yield Measurement.over_seeds(f"lv.{id}.theta{i + 1}.std_gap", BOOK, says, values)
    for i, count in enumerate(e.inside):
        yield Measurement(
            f"lv.cot.theta{i + 1}.predictive",
            BOOK,
            "observed statistics, of nine, within the middle 90 % of those of new simulations,"
            f" COT-Flow, 500,000, observation {i + 1}",
            count,
        )
    yield Measurement(
        "lv.cot.sampling",
        BOOK,
        "2,000 samples for one observation, COT-Flow, 8 Runge–Kutta steps",
        e.clocks["samples"][COT_READS] / 1e3,
        unit="s",
    )
    yield Measurement(
        "lv.simulator.speedup",
        BOOK,
        "speed of the compiled simulator over that of a loop in NumPy",
        e.speedup,
        unit="times",
    )
    says = "simulations given up, of 50,000 draws of the prior"
    yield Measurement("lv.abort_fraction", BOOK, says, e.given_up, unit="%")


# tables -----------------------------------------------------------------------------------------


def pilot_table(e: Evidence) -> str:
    """The four best pilot runs and the worst one, as Markdown."""
    head = "| width | steps | batch | rate | α | β | NLL after one epoch |"
    lines = [head, "|---:|" + "---:|" * 6]
    for row in [*e.pilots[:4], e.pilots[-1]]:
        cells = [f"{row[name]:g}" for name in ("width", "rk4", "batch", "lr", "alpha", "beta")]
        lines.append("| " + " | ".join([*cells, f"{row['nll']:.2f}"]) + " |")
    return "\n".join(lines)


def match_table(e: Evidence) -> str:
    """How far all methods are from the reference, a table an observation, as Markdown."""
    return "\n\n".join(_match_table(e, i) for i in (0, 1))


def _match_table(e: Evidence, index: int) -> str:
    head = f"| observation {index + 1} | simulations | seconds |"
    lines = [head + " mean (σ) | deviations (%) | C2ST (%) |", "|---|" + "---:|" * 5]
    for (name, n), rows in e.matches.items():
        seconds = f"{fmean(e.seconds[name, n]):.0f}"
        lines.append(line_of(name, f"{n:,}", seconds, *_cells(e, rows, index)))
    name, seconds = "COT-Flow, second training", f"{fmean(e.zoom_seconds):.0f}"
    lines.append(line_of(name, "150,000", seconds, *_cells(e, e.zoom, index)))
    for n, rows in e.rejections.items():
        lines.append(line_of("rejection ABC, regression", f"{n:,}", "", *_cells(e, rows, index)))
    return "\n".join(lines)


def _cells(e: Evidence, rows: Sequence[Sequence[Key]], index: int) -> list[str]:
    gaps, scores = e.gaps(rows, index), [row["c2st"] for row in rows[index]]
    narrow, wide = fmean(gap.narrow for gap in gaps), fmean(gap.wide for gap in gaps)
    spread = f" ± {spread_of([gap.mean for gap in gaps]):.1f}" if len(gaps) > 1 else ""
    mean = f"{fmean(gap.mean for gap in gaps):.1f}{spread}"
    return [mean, f"{narrow:+.0f} to {wide:+.0f}", f"{fmean(scores):.0f}"]


def power_table(e: Evidence) -> str:
    """What the measures say of laws that are known to be right or wrong, as Markdown."""
    head = "| law | observation | mean (σ) | deviations (%) | C2ST (%) |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for name in e.power[0]:
        for i, found in enumerate(e.power):
            gap = e.gap(found[name], i)
            cells = [f"{gap.mean:.1f}", f"{gap.narrow:+.0f} to {gap.wide:+.0f}"]
            lines.append(line_of(name, str(i + 1), *cells, f"{found[name]['c2st']:.0f}"))
    return "\n".join(lines)


def smc_table(e: Evidence) -> str:
    """The runs of SMC-ABC, with simulations counted once and as published, and their gaps."""
    head = "| run | tolerance | completed | given up | sum of counters | ESS | seconds |"
    lines, gaps = [head, "|---|" + "---:|" * 6], ["| run | mean (σ) | deviations (%) |"]
    gaps.append("|---|---:|---:|")
    for name, run in e.smc.items():
        last, index = references.last(run), references.RUNS[name]["index"]
        million = [references.completed(run), sum(r["aborted"] for r in run.numbers["rounds"])]
        million.append(references.summed(run))
        cells = [f"{value / 1e6:.2f}" for value in million]
        times = [f"{last['ess']:.0f}", f"{run.seconds:.0f}"]
        lines.append(line_of(name, f"{last['tolerance']:.4f}", *cells, *times))
        gap = e.gap(last, index)
        far = [f"{gap.mean:.1f}", f"{gap.narrow:+.0f} to {gap.wide:+.0f}"]
        gaps.append(line_of(name, *(["reference"] * 2 if name.endswith("adapted") else far)))
    return "\n".join([*lines, "", *gaps])


def settling_table(e: Evidence) -> str:
    """The last rounds of the reference, as Markdown."""
    head = "| observation | tolerance | simulations (million) | mean (σ) | deviations (%) |"
    lines = [head, "|---:|---:|---:|---:|---:|"]
    for i in (0, 1):
        for row in e.smc[f"theta{i + 1}-adapted"].numbers["rounds"][-5:]:
            gap = e.gap(row, i)
            far = f"{gap.narrow:+.0f} to {gap.wide:+.0f}"
            cells = [f"{row['tolerance']:.2f}", f"{row['simulations'] / 1e6:.2f}"]
            lines.append(line_of(str(i + 1), *cells, f"{gap.mean:.2f}", far))
    return "\n".join(lines)


def reference_table(e: Evidence) -> str:
    """How far other references are from SMC-ABC with the adapted distance, as Markdown."""
    head = "| reference | observation | mean (σ) | deviations (%) | effective sample |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for i in (0, 1):
        for name, row in e.second[i].items():
            gap, size = e.gap(row, i), f"{row['ess']:.0f}"
            far = f"{gap.narrow:+.0f} to {gap.wide:+.0f}"
            lines.append(line_of(name, str(i + 1), f"{gap.mean:.2f}", far, size))
    return "\n".join(lines)


def saving_table(e: Evidence) -> str:
    """The simulations of SMC-ABC that give as good a match, as Markdown."""
    head = "| method | simulations | observation | published distance | adapted distance |"
    lines = [head, "|---|---:|---:|---|---|"]
    found: list[tuple[str, int, Any]] = [
        (name, n, e.matches[name, n])
        for base in (COT, NPE)
        for n in (SMALL, LARGE)
        for name in (chosen(base, n),)
    ]
    found += [("rejection ABC, regression", n, e.rejections[n]) for n in (SMALL, LARGE)]
    for name, n, rows in found:
        for i in (0, 1):
            cells = []
            for adapted in (False, True):
                runs, ref = e.rivals_at(i, adapted=adapted), e.reference(i)
                needed = [references.needed(runs, ref, gap) for gap in e.gaps(rows, i)]
                counts = [f"{'' if met else '> '}{count / 1e6:.2f}" for count, met in needed]
                cells.append(", ".join(counts))
            lines.append(line_of(name, f"{n:,}", str(i + 1), *cells))
    return "\n".join(lines)


def likelihood_table(e: Evidence) -> str:
    """The NLL of new pairs, as Markdown; COT-Flow by three solves."""
    sizes = [n for n in SIZES if (COT, n) in e.nll]
    lines = ["| method | " + " | ".join(f"{n:,}" for n in sizes) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    for name in LENGTHS:
        ours = maps.base_of(name) == COT
        for steps in checks.STEPS if ours else (maps.SOLVED,):
            row = [name + (f", {steps} steps" if ours else "")]
            for n in sizes:
                values = e.nll.get((name, n), {}).get(str(steps))
                row.append("–" if values is None else _mean(values))
            lines.append(line_of(*row))
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {spread_of(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def calibration_table(e: Evidence) -> str:
    """p-values of both tests with their power, and leakage, as Markdown."""
    head = "| method | simulations | SBC | TARP | SBC, narrow | TARP, narrow | outside (%) |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    for (name, n), ranks in e.ranks.items():
        narrow = e.narrow[name, n]
        values = [ranks.sbc_pvalue, ranks.tarp_pvalue, narrow.sbc_pvalue, narrow.tarp_pvalue]
        cells = [f"{p:.3f}" if p >= 1e-3 else "< 0.001" for p in values]
        lines.append(line_of(name, f"{n:,}", *cells, f"{100 * fmean(e.outside[name, n]):.1f}"))
    return "\n".join(lines)


def solver_table(e: Evidence) -> str:
    """Errors by steps of COT-Flow, and bounds of those by tolerance of PCP-Map, as Markdown."""
    lines = ["| samples | error (% of the norm) | error of the worst parameter (σ) |"]
    lines.append("|---|---:|---:|")
    for name, kinds, word in (
        (COT, checks.COUNTS, "steps"),
        (PCP, checks.TOLERANCES, "tolerance"),
    ):
        found = e.solver[name]
        for k, value in enumerate(kinds):
            parts = [[row[k] for row in rows] for rows in found]
            cells = [f"{fmean(part):.2g}" for part in parts]
            if name == PCP:  # rounding decides how far Newton's last step goes
                cells = [f"< {_power_above(max(part)):.0e}" for part in parts]
            lines.append(line_of(f"{name}, {word} {value:g}", *cells))
    return "\n".join(lines)


def _power_above(value: float) -> float:
    return next(10.0**k for k in range(-9, 9) if 10.0**k > value)


def benchmark_table(e: Evidence) -> str:
    """The C2ST of all tasks and methods with their controls, as Markdown."""
    names = list(benchmark.SETTINGS)
    kinds = ("Gaussian", "prior", "itself")
    lines = ["| task | " + " | ".join([*names, *kinds]) + " |"]
    lines.append("|---|" + "---:|" * (len(names) + len(kinds)))
    for task, methods in e.c2st.items():
        cells = [f"{fmean(methods[n]):.0f} ± {spread_of(methods[n]):.0f}" for n in names]
        cells += [f"{e.c2st_controls[task][kind]:.0f}" for kind in kinds]
        lines.append(line_of(benchmark.TITLES[task], *cells))
    return "\n".join(lines)


def clock_table(e: Evidence) -> str:
    """Milliseconds of a training step and of 2,000 samples, as Markdown."""
    lines = ["| method | training step (ms) | 2,000 samples (ms) |", "|---|---:|---:|"]
    for name, step in e.clocks["step"].items():
        samples = e.clocks["samples"].get(name)
        lines.append(line_of(name, f"{step:.0f}", "–" if samples is None else f"{samples:.0f}"))
    return "\n".join(lines)
