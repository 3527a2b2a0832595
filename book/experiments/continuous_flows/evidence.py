"""What the evidence on continuous normalizing flows rests on, and the rows that follow from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log10
from statistics import fmean

from ctdl_lib.problems.densities import TOYS
from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    above_control,
    below,
    below_control,
    finding,
    within,
)
from machinery.store import Run, Store, device_of

from ..ot_flow.evidence import GAUSSIAN, gaussian_gaps
from . import checks, costs, peers, trace, training

CHAPTER = "06_continuous_normalizing_flows"
BOOK = "this book"
SLIDE = "slide Continuous normalizing flows"
FFJORD = "Grathwohl et al. 2019"
WITHIN = 0.05  # nats above the entropy: as close as a density has to be learned
RIVALS = {peers.SPLINES: "splines"}
KINDS = (training.ADAPTIVE, training.FIXED, training.REGULARIZED, training.MEAN_DENSITY)


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    finishes: dict[str, list[training.Finish]]
    seconds: dict[str, list[float]]
    growth: list[tuple[int, int]]  # evaluations before and after a training with adaptive steps
    rates: dict[str, dict[str, float]]
    gaussian: dict[int, list[float]]  # by dimension
    others: dict[str, training.Finish]
    checked: list[checks.Checks]
    variances: dict[tuple[int, str], list[trace.Variance]]
    traces: dict[str, trace.Outcome]
    rivals: dict[str, peers.Study]
    noise: checks.Noise
    ratios: costs.Costs
    store: Store

    def gaps(self, kind: str) -> list[float]:
        """The gaps of a kind of training."""
        return [f.gap for f in self.finishes[kind]]

    def evaluations(self, kind: str) -> list[float]:
        """The evaluations of a likelihood after a kind of training, with tolerance 1e-5."""
        return [float(f.evaluations) for f in self.finishes[kind]]


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says.

    The flows of the first comparison train on `device`; all else runs on the CPU.
    """
    store, few = Store(CHAPTER, run), 1 if run == "smoke" else None
    seeds, device = [seed + s for s in training.SEEDS[:few]], device_of(device)
    fits = {kind: [training.fit(store, kind, s, device=device) for s in seeds] for kind in KINDS}
    finishes = {kind: training.finishes(store, kind, seeds) for kind in KINDS}
    first = [int(flow.get_buffer("evaluations")[0]) for flow, _ in fits[training.ADAPTIVE]]
    last = [f.evaluations for f in finishes[training.ADAPTIVE]]
    return Evidence(
        finishes=finishes,
        seconds={kind: [record.seconds for _, record in found] for kind, found in fits.items()},
        growth=list(zip(first, last, strict=True)),
        rates={kind: training.rates(store, kind) for kind in KINDS if kind != training.ADAPTIVE},
        gaussian={
            2: gaussian_gaps(TOYS["8gaussians"], training.held_out("8gaussians"), seeds),
            8: gaussian_gaps(trace.Rotated(trace.PLANES), trace.held_out(store), seeds),
        },
        others={
            name: training.finishes(store, training.REGULARIZED, seeds[:1], name)[0]
            for name in TOYS
            if name != "8gaussians"
        },
        checked=checks.checks(store, seeds),
        variances=trace.variances(store, seeds),
        traces={kind: trace.outcome(store, kind, seeds) for kind in trace.TRAININGS},
        rivals={name: peers.study(store, name, seeds) for name in RIVALS},
        noise=checks.noise(store, seeds),
        ratios=costs.costs(store, seeds),
        store=store,
    )


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_density_rows(e),
        *_check_rows(e),
        *_solver_rows(e),
        *_variance_rows(e),
        *_trace_rows(e),
        *_noise_rows(e),
        *_peer_rows(e),
        *_cost_rows(e),
    ]


def _density_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "cnf.8gaussians.gap",
        f"A velocity that maximises the likelihood learns a density, to {WITHIN} nats above its "
        "entropy",
        SLIDE,
        ours=e.gaps(training.ADAPTIVE),
        criterion=below(WITHIN),
        control=Control(GAUSSIAN, e.gaussian[2]),
        unit="nats",
    )
    yield finding(
        "cnf.regularised.gap",
        f"Eight fixed steps are enough with two penalties: at most {WITHIN} nats above the entropy",
        ours=e.gaps(training.REGULARIZED),
        criterion=below(WITHIN),
        control=Control("without the penalties", e.gaps(training.FIXED)),
        unit="nats",
    )
    for kind, name in ((training.FIXED, "fixed"), (training.REGULARIZED, "regularised")):
        says = f"what the training with {kind} believes its gap to be"
        yield Measurement.over_seeds(
            f"cnf.{name}.believed", BOOK, says, [f.believed for f in e.finishes[kind]], "nats"
        )
    yield finding(
        "cnf.mean_density",
        "The mean of densities, read literally from the slide, learns worse than the mean of their "
        "logarithms: ten times the gap (log₁₀)",
        ours=[log10(gap) for gap in e.gaps(training.MEAN_DENSITY)],
        criterion=above_control(1),
        control=Control(
            "the mean of logarithms", [log10(gap) for gap in e.gaps(training.REGULARIZED)]
        ),
    )
    for name, found in e.others.items():
        says = f"the same training on {name}: nats above the entropy"
        yield Measurement(f"cnf.{name}.gap", BOOK, says, found.gap, "nats")


def _check_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "cnf.log_det",
        "The integral of tr ∇v along a path is the log-determinant of the flow",
        SLIDE,
        ours=[c.log_det for c in e.checked],
        criterion=below(1e-5),
        control=Control(
            "Hutchinson's estimate with one probe", [c.log_det_probe for c in e.checked]
        ),
    )
    yield finding(
        "cnf.integral",
        "The density of a trained flow integrates to 1: distance from it",
        ours=[c.mass for c in e.checked],
        criterion=below(1e-3),
        control=Control("without the log-determinant", [c.mass_without for c in e.checked]),
    )
    yield finding(
        "cnf.zuko_gap",
        "zuko computes the same log density of the same velocity: largest difference",
        ours=[c.zuko for c in e.checked],
        criterion=below(1e-5),
        control=Control("eight fixed steps", [c.zuko_coarse for c in e.checked]),
        unit="nats",
    )
    yield Measurement.over_seeds(
        "cnf.inverse_error",
        BOOK,
        "mean distance after forward and back with tolerance 1e-5",
        [f.inverse_error for f in e.finishes[training.REGULARIZED]],
        "",
    )


def _solver_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "cnf.nfe.growth",
        "A likelihood takes more and more evaluations while the flow is trained",
        FFJORD,
        ours=[float(last) for _, last in e.growth],
        criterion=above_control(),
        control=Control("before the training", [float(first) for first, _ in e.growth]),
        unit="evaluations",
    )
    yield Claim(
        "cnf.regularised.nfe",
        "Penalties on speed and Jacobian make a flow cheaper to solve",
        "Finlay et al. 2020",
        ours=e.evaluations(training.REGULARIZED),
        criterion=below_control(),
        control=Control("adaptive steps without penalties", e.evaluations(training.ADAPTIVE)),
        unit="evaluations",
    )
    for kind, name in (
        (training.ADAPTIVE, "adaptive"),
        (training.FIXED, "fixed"),
        (training.REGULARIZED, "regularised"),
    ):
        yield Measurement.over_seeds(
            f"cnf.{name}.seconds", BOOK, f"training with {kind}", e.seconds[kind], "s"
        )
        if kind != training.REGULARIZED:  # a claim says that of the others
            yield Measurement.over_seeds(
                f"cnf.{name}.nfe", BOOK, f"evaluations after {kind}", e.evaluations(kind), ""
            )


def _differences(ours: list[float], theirs: list[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _variance_rows(e: Evidence) -> Iterator[Row]:
    ratios = [
        fmean(a / b for a, b in zip(row.measured, row.theory, strict=True))
        for found in e.variances.values()
        for row in found
    ]
    normal, signs = (e.variances[2, kind] for kind in (trace.NORMAL, trace.SIGNS))
    wrong = [s.measured[0] / n.theory[0] for n, s in zip(normal, signs, strict=True)]
    yield finding(
        "cnf.hutchinson.variance",
        "The variance of Hutchinson's estimate is that of the formula: measured over formula",
        ours=ratios,
        criterion=within(0.95, 1.05),
        control=Control("signs over the formula for normal probes, d = 2", wrong),
    )
    slopes = [trace.slope(row.measured) for found in e.variances.values() for row in found]
    yield Measurement.over_seeds(
        "cnf.hutchinson.slope", BOOK, "slope of log variance over log probes", slopes, ""
    )


def _trace_rows(e: Evidence) -> Iterator[Row]:
    exact, normal, longer = (e.traces[kind].gaps for kind in trace.TRAININGS)
    yield finding(
        "cnf.hutchinson.gap",
        "Training by one probe loses little in eight dimensions, at equal steps",
        ours=_differences(normal, exact),
        criterion=below(WITHIN),
        control=Control("a Gaussian", _differences(e.gaussian[8], exact)),
        unit="nats",
    )
    yield finding(
        "cnf.hutchinson.longer",
        "One probe and three times the steps do better than the exact divergence",
        ours=longer,
        criterion=below_control(),
        control=Control("exact divergence", exact),
        unit="nats",
    )
    for kind, name in zip(trace.TRAININGS, ("exact", "normal", "longer"), strict=True):
        says = f"training in eight dimensions, {kind}"
        yield Measurement.over_seeds(
            f"cnf.trace.{name}.seconds", BOOK, says, e.traces[kind].seconds, "s"
        )


def _noise_rows(e: Evidence) -> Iterator[Row]:
    at = checks.TOLS.index(1e-3) if len(e.noise.one[0]) > 1 else 0

    def ratio(which: list[list[float]]) -> list[float]:
        return [a[at] / b[at] for a, b in zip(which, e.noise.one, strict=True)]

    yield finding(
        "cnf.fresh_noise",
        "Probes drawn anew at each evaluation multiply the evaluations (tolerance 1e-3)",
        ours=ratio(e.noise.fresh),
        criterion=above(10),
        control=Control("another probe that is kept", ratio(e.noise.another)),
    )


def _peer_rows(e: Evidence) -> Iterator[Row]:
    for name, id in RIVALS.items():
        yield finding(
            f"cnf.{id}.gap",
            f"Our flow is closer to the entropy than {name} with as many parameters",
            ours=e.gaps(training.REGULARIZED),
            criterion=below_control(),
            control=Control(name, e.rivals[name].gaps),
            unit="nats",
        )
        yield Measurement.over_seeds(
            f"cnf.{id}.seconds", BOOK, f"training of {name}", e.rivals[name].seconds, "s"
        )


def _cost_rows(e: Evidence) -> Iterator[Row]:
    yield Measurement.over_seeds(
        "cnf.zuko_speed",
        BOOK,
        "zuko's time over ours for a likelihood with its gradient, same velocity",
        e.ratios.zuko,
        "times",
    )
    yield Measurement.over_seeds(
        "cnf.sampling_speed",
        BOOK,
        "the time of a likelihood over that of a sample",
        e.ratios.likelihood,
        "times",
    )
    for d, exact, probe in zip(costs.DIMS, e.ratios.exact, e.ratios.probe, strict=True):
        says = f"the time of an exact divergence over that of one probe, d = {d}"
        yield Measurement(f"cnf.divergence.d{d}", BOOK, says, exact / probe, "times")


def training_table(e: Evidence) -> str:
    """Gap, evaluations and seconds of each kind of training, as a Markdown table."""
    lines = ["| training | rate | gap (nats) | believed | evaluations | seconds |"]
    lines.append("|---|---:|---|---|---|---:|")
    for kind, found in e.finishes.items():
        gaps = ", ".join(f"{f.gap:.3f}" for f in found)
        believed = ", ".join(f"{f.believed:.3f}" for f in found)
        counts = ", ".join(str(f.evaluations) for f in found)
        rate = f"{training.settings(e.store, kind).lr:g}"
        seconds = f"{fmean(e.seconds[kind]):.0f}"
        lines.append(f"| {kind} | {rate} | {gaps} | {believed} | {counts} | {seconds} |")
    for name, study in e.rivals.items():
        gaps = ", ".join(f"{gap:.3f}" for gap in study.gaps)
        lines.append(f"| {name} | {study.rate:g} | {gaps} | | | {fmean(study.seconds):.0f} |")
    return "\n".join(lines)


def search_table(e: Evidence) -> str:
    """The gap on seed 0 at each rate, as a Markdown table."""
    rates = next(iter(e.rates.values()))
    lines = ["| gap (nats), seed 0 | " + " | ".join(f"rate {r}" for r in rates) + " |"]
    lines.append("|---|" + "---:|" * len(rates))
    for kind, found in e.rates.items():
        lines.append(f"| {kind} | " + " | ".join(f"{gap:.3f}" for gap in found.values()) + " |")
    return "\n".join(lines)


def trace_table(e: Evidence) -> str:
    """Gap and seconds of trainings in eight dimensions, as a Markdown table."""
    lines = ["| divergence | rate | gap (nats) | seconds |", "|---|---:|---|---:|"]
    for kind, found in e.traces.items():
        gaps = ", ".join(f"{gap:.3f}" for gap in found.gaps)
        lines.append(f"| {kind} | {found.rate:g} | {gaps} | {fmean(found.seconds):.0f} |")
    return "\n".join(lines)
