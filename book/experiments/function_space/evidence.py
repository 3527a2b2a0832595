"""What the evidence on diffusion in function space rests on, and the rows that follow from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

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
    spread_of,
    within,
)
from machinery.seeds import seeded
from machinery.store import Run, Store, device_of

from . import digits, dimension, factorial, judging, mixture, multilevel, operators, patterns
from .judging import FEW, FEWER, Judged, Quality, Table
from .training import CASES, CHAPTER, LAWS, LIMITS, fitted

BOOK = "this book"
SLIDE = "slide Score-based diffusion, infinite-dimensional"
FNO_PAPER = "Li et al. 2021"
TRACED = ("standard", "laplacian", "fno", "combined", "matern", "white")
POWERFUL = 3.0  # standard deviations of real images
WORST = "spliced"


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed, or one a split of the images."""

    accuracy: float
    powers: dict[str, list[Quality]]
    judged: Judged
    tried: Judged
    few: list[Quality]
    fewer: list[Quality]
    table: Table
    baseline: list[dict[str, dict[str, float]]]
    refined: dict[str, dimension.Refinement]
    traces: dict[str, dict[int, list[float]]]
    gaps: tuple[list[float], float]
    trained_gaps: dict[str, list[float]]
    known: dict[str, list[dict[str, list[float]]]]
    climbed: dict[str, list[dict[str, Any]]]
    apart: dict[str, dict[str, float]]
    fields: dict[str, Any]
    store: Store
    seed: int

    def of(self, name: str, what: str = "frechet") -> list[float]:
        """A number of a model on a grid, one a split."""
        return [row[what] for row in self.judged[name]]

    def real(self, what: str = "frechet") -> list[float]:
        """The same number of real images against the others."""
        return [row[what] for row in self.powers["real"]]


def measured_trace(name: str, n: int, seed: int, count: int) -> float:
    """The mean square of sampled noise, a check of the sum of its eigenvalues."""
    return float(LAWS[name].sample(count, n, seeded(seed, n)).square().mean())


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store, device = Store(CHAPTER, run), device_of(device)
    net, small = digits.classifier(store, seed, device), run == "smoke"
    laplacian = fitted(store, "fno", "laplacian", seed, device)
    refined = (*dimension.LIMITED, "log", *dimension.UNLIMITED)
    seeds = [seed + s for s in (10, 11, 12)]
    return Evidence(
        accuracy=digits.accuracy(net, seed),
        powers=digits.powers(store, net, seed),
        judged=judging.judged(store, net, seed, device),
        tried=judging.tried(store, net, seed, device),
        few=judging.real_rows(net, FEW, seed),
        fewer=judging.real_rows(net, FEWER, seed),
        table=judging.comparison(store, seed, device),
        baseline=judging.baseline(store, seed),
        refined={name: dimension.refinement(name) for name in refined},
        traces={
            name: {
                n: [measured_trace(name, n, s, 10 if small else 100) for s in seeds]
                for n in (28, 56, 112)
            }
            for name in TRACED
        },
        gaps=operators.gaps(seed),
        trained_gaps=operators.trained_gaps(laplacian, seed),
        known=mixture.all_errors(store, seed, device),
        climbed=multilevel.climbs(store, seed, device),
        apart=judging.apart(store, seed, device),
        fields=patterns.judged(store, patterns.fitted(store, seed, device), seed),
        store=store,
        seed=seed,
    )


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_dimension_rows(e),
        *_factorial_rows(e),
        *_multilevel_rows(e),
        *_operator_rows(e),
        *_power_rows(e),
        *_digit_rows(e),
        _sampler_row(e),
        *_resolution_rows(e),
        *_field_rows(e),
        *_measured_rows(e),
        *_table_rows(e),
    ]


def _dimension_rows(e: Evidence) -> Iterator[Row]:
    way = {name: dimension.slopes(found.path) for name, found in e.refined.items()}
    says = (
        "Trace-class noise makes the laws of a sampler converge as d → ∞: exponent of their squared"
        " distance between n² and (2n)² pixels, one value for each n; noise: "
    )
    for name in dimension.LIMITED:
        yield Claim(
            f"diffusion.dimension.slope.{name}",
            says + name,
            SLIDE,
            ours=way[name],
            criterion=below(-0.1),
            control=Control("white noise, Q = I", way["white"]),
        )
    for name in ("log", *dimension.UNLIMITED):
        yield Measurement(
            f"diffusion.dimension.slope.{name}",
            BOOK,
            "the same exponents with noise that is not trace class: "
            + {"log": "Laplacian with ν = 1", "white": "Q = I"}.get(name, "pixels of variance 1"),
            way[name],
        )
    yield finding(
        "diffusion.dimension.samples.white",
        "With the exact score the samples converge even with white noise, and only the way to them"
        " does not: exponent of the squared distance of samples, one value for each n",
        ours=dimension.slopes(e.refined["white"].sample),
        criterion=below(-0.1),
        control=Control("the largest distance on the way", way["white"]),
    )
    yield Measurement(
        "diffusion.dimension.modes.standard",
        BOOK,
        "pixels of variance 1: change of the variance of a wave number up to 4 between n² and (2n)²"
        " pixels, in the samples, the largest, for n = 16 to 256",
        [100 * v for v in e.refined["standard"].modes],
        unit="%",
    )


FACTORS = {
    "architecture": (
        factorial.architecture,
        "the U-Net in place of the FNO, with priors that have a limit,",
    ),
    "prior": (
        factorial.prior,
        "pixel noise in place of priors that have a limit, with the FNO,",
    ),
}


def _factorial_rows(e: Evidence) -> Iterator[Row]:
    sliced, frechet = factorial.of_table(e.table), factorial.of_judged(e.judged)
    for id, number, least, name in (
        ("", sliced, 2, "sliced Wasserstein distance, three trainings"),
        (".frechet", frechet, 3, "Fréchet distance, one training and five splits of the images"),
    ):
        for factor, (change, says) in FACTORS.items():
            yield Claim(
                f"diffusion.factorial.{factor}{id}",
                f"The {factor} is important to generalise to a higher resolution: by which factor"
                f" {says} makes samples at 56² worse; {name}",
                SLIDE,
                ours=change(number, 56),
                criterion=above(least),
                control=Control("the same at 28²", change(number, 28)),
            )
    yield finding(
        "diffusion.factorial.prior_unet",
        "A prior with a limit does not help the U-Net at 56²: factor of pixel noise on the sliced"
        " Wasserstein distance",
        ours=factorial.prior(sliced, 56, "unet"),
        criterion=within(0.67, 1.5),
        control=Control("the same for the FNO", factorial.prior(sliced, 56)),
    )
    for name, values in factorial.effects(sliced, 56).items():
        yield Measurement.over_seeds(
            f"diffusion.factorial.effect.{name}",
            BOOK,
            f"2 × 2 design at 56², sliced Wasserstein distance: {name}, in doublings",
            values,
            "",
        )


def _multilevel_rows(e: Evidence) -> Iterator[Row]:
    curves, plans = e.climbed, (multilevel.BOTH, multilevel.SHORT)
    yield Claim(
        "diffusion.multilevel.work_saving",
        "Training can start on a coarse grid: work of the fine grid alone over that of coarse to"
        " fine, at equal loss at 56²",
        SLIDE + ", towards multilevel training",
        ours=multilevel.savings(curves),
        criterion=above(1),
        control=Control("the fine grid alone, by itself", [1.0] * len(curves[multilevel.BOTH])),
        unit="times",
    )
    for what, name in (("curve", "loss"), ("energy", "energy")):
        ours, control = (multilevel.last(curves[plan], what) for plan in plans)
        scale = 100 if what == "curve" else 1e3
        yield finding(
            f"diffusion.multilevel.{name}",
            "At equal work, coarse to fine ends with a lower "
            + ("loss at 56²" if what == "curve" else "energy distance of 64 samples"),
            ours=[scale * v for v in ours],
            criterion=below_control(),
            control=Control("the fine grid alone", [scale * v for v in control]),
            unit="%" if what == "curve" else "10⁻³",
        )


def _operator_rows(e: Evidence) -> Iterator[Row]:
    ours, unet = e.gaps
    yield Claim(
        "fno.resolution_gap",
        "An FNO is one operator on all grids: relative gap between 28² pixels and 50², 56², 61²,"
        " smooth input, random weights",
        FNO_PAPER,
        ours=ours,
        criterion=below(0.01),
        control=Control("a U-Net, 28² and 56²", [unet]),
    )
    yield Claim(
        "fno.resolution_gap_trained",
        "The same of the trained FNO (Laplacian prior), 28² and 56², at four times",
        FNO_PAPER,
        ours=e.trained_gaps["28 and 56"],
        criterion=below(0.01),
        control=Control("a U-Net with random weights", [unet]),
    )
    ratios = {
        name: [sum(v["64"]) / sum(v["32"]) for v in values] for name, values in e.known.items()
    }
    yield finding(
        "sbdm.field_mixture.score_error",
        "A network trained on 32² pixels has the same error of the score on 64²: quotient of the"
        " errors, where the score is known (Matérn prior)",
        ours=ratios["matern"],
        criterion=within(0.8, 1.25),
        control=Control("pixels of noise", ratios["standard"]),
        unit="times",
    )


def deviations_of(powers: dict[str, list[Quality]], what: str, kind: str) -> list[float]:
    """How far worse images are from real ones, in standard deviations of real ones over splits."""
    real = [row[what] for row in powers["real"]]
    unit = max(spread_of(real), 1e-6)
    return [abs(row[what] - fmean(real)) / unit for row in powers[kind]]


NAMES = {
    "frechet": "Fréchet distance in the features of a classifier",
    "sure": "share of images of which the classifier is sure",
    "precision": "precision",
    "coverage": "coverage",
    "nearest": "distance to the nearest image that was learned",
    "sliced": "sliced Wasserstein distance",
    "energy": "energy distance",
}


def _power_rows(e: Evidence) -> Iterator[Row]:
    for what, name in NAMES.items():
        # for the distance to learned images, these are no control: it is zero there
        other = "real" if what == "nearest" else "copied"
        says = {"real": "the other half of the images", "copied": "500 learned images, all real"}
        yield finding(
            f"diffusion.metric_power.{what}",
            f"The {name} notices that half of the images are no digits: it puts them farther from"
            " held-out images than other real images are, in deviations of real ones",
            ours=deviations_of(e.powers, what, WORST),
            criterion=above_control(1.0),
            control=Control(says[other], deviations_of(e.powers, what, other)),
        )


def _digit_rows(e: Evidence) -> Iterator[Row]:
    real, spliced = fmean(e.real()), [row["frechet"] for row in e.powers[WORST]]
    best = min((f"{net}.{prior}.28" for net, prior in CASES), key=lambda name: fmean(e.of(name)))
    yield finding(
        "diffusion.digits.quality",
        "The best stored network draws digits at 28²: Fréchet distance over that of real images",
        ours=[value / real for value in e.of(best)],
        criterion=below(2.5),
        control=Control("images of which half are no digits", [v / real for v in spliced]),
        unit="times",
    )
    sure = [fmean(e.of(f"{net}.{prior}.28", "sure")) for net, prior in CASES]
    yield finding(
        "diffusion.digits.sure",
        "The classifier takes the samples at 28² for digits: share of which it is sure, one value a"
        " network",
        ours=sure,
        criterion=above(90),
        control=Control(
            "images of which half are no digits", [row["sure"] for row in e.powers[WORST]]
        ),
        unit="%",
    )
    held = fmean(e.real("nearest"))
    copied = [row["nearest"] / held for row in e.powers["copied"]]
    yield finding(
        "diffusion.digits.copies",
        "No network copies: distance to the nearest learned image, over that of held-out images,"
        " one value a network",
        ours=[fmean(e.of(f"{net}.{prior}.28", "nearest")) / held for net, prior in CASES],
        criterion=above(0.9),
        control=Control("images that were learned", copied),
    )


def _sampler_row(e: Evidence) -> Row:
    ancestral, equal = (f"{name}-64" for name in ("ancestral", "equal"))
    return finding(
        "diffusion.sampler.log_steps",
        "Steps even in log σ give better digits than steps even in t, 64 evaluations (FNO,"
        " Laplacian): Fréchet distance",
        ours=[row["frechet"] for row in e.tried[ancestral]],
        criterion=below_control(),
        control=Control("steps even in t", [row["frechet"] for row in e.tried[equal]]),
    )


def _resolution_rows(e: Evidence) -> Iterator[Row]:
    ratio = lambda name, base: [  # noqa: E731
        a / b for a, b in zip(e.of(f"{name}.56"), e.of(f"{base}.28"), strict=True)
    ]
    for prior in LIMITS:
        yield finding(
            f"diffusion.resolution.fno.{prior}",
            f"An FNO with the {prior} prior draws at 56² as well as at 28²: quotient of the Fréchet"
            " distances",
            ours=ratio(f"fno.{prior}", f"fno.{prior}"),
            criterion=below(1.5),
            control=Control("pixel noise", ratio("fno.standard", "fno.standard")),
            unit="times",
        )
    priors = (*LIMITS, "matern")
    yield finding(
        "diffusion.resolution.interpolated",
        "Sampling at 56² is better than interpolating samples of 28²: Fréchet distance of the FNO,"
        " one value a prior",
        ours=[fmean(e.of(f"fno.{prior}.56")) for prior in priors],
        criterion=below_control(),
        control=Control(
            "samples of 28², interpolated", [fmean(e.of(f"fno.{prior}.28")) for prior in priors]
        ),
    )
    yield finding(
        "diffusion.resolution.fixed",
        "Pixel noise fails by its variance at 56² and not by the training: with the noise of the"
        " coarse grid, the same FNO draws at 56² as well as at 28²",
        ours=ratio("fixed", "fno.standard"),
        criterion=below(1.5),
        control=Control("pixels of variance 1 at 56²", ratio("fno.standard", "fno.standard")),
        unit="times",
    )


def flatness_error(e: Evidence, name: str) -> list[float]:
    """The relative errors of the flatness, in percent, one a lag."""
    truth, found = e.fields["real 0"]["flatness"], e.fields[name]["flatness"]
    return [100 * abs(a / b - 1) for a, b in zip(found, truth, strict=True)]


def _field_rows(e: Evidence) -> Iterator[Row]:
    for n in (32, 64, 128):
        yield finding(
            f"diffusion.fields.flatness.n{n}",
            "The FNO draws more than spectra: error of S₄/S₂² of reaction–diffusion fields at"
            f" {n}², one value a lag",
            ours=flatness_error(e, f"samples {n}"),
            criterion=below(15),
            control=Control(
                "Gaussian fields with the right spectrum", flatness_error(e, "gaussian")
            ),
            unit="%",
        )
    truth, samples = (sum(e.fields[key]["spectrum"][15:]) for key in ("real 0", "samples 128"))
    yield Measurement(
        "diffusion.fields.excess.n128",
        BOOK,
        "power of samples of fields at 128² over that of solutions, wave numbers 16 to 24",
        samples / max(truth, 1e-12),
        "times",
    )


def _measured_rows(e: Evidence) -> Iterator[Row]:
    yield Measurement(
        "diffusion.classifier.accuracy", BOOK, "accuracy of the classifier", e.accuracy, "%"
    )
    for n in (28, 56):
        yield Measurement.over_seeds(
            f"diffusion.real_vs_real.frechet.n{n}",
            BOOK,
            f"Fréchet distance of half of the held-out images to the others, {n}² pixels",
            e.real(),
            "",
        )
    for id, count, found in ((".n112", FEW, e.few), (".fewer", FEWER, e.fewer)):
        yield Measurement.over_seeds(
            f"diffusion.real_vs_real.frechet{id}",
            BOOK,
            f"the same of {count} images",
            [row["frechet"] for row in found],
            "",
        )
    for name, found in e.judged.items():
        *case, n = name.split(".")
        label = ".".join(case)
        yield Measurement.over_seeds(
            f"diffusion.{label}.frechet.n{n}",
            BOOK,
            f"Fréchet distance of samples: {' '.join(case)}, {n}² pixels"
            + (f" ({FEWER} samples)" if label.startswith("unet") else ""),
            [row["frechet"] for row in found],
            "",
        )


def _table_rows(e: Evidence) -> Iterator[Row]:
    for case, runs in e.table.items():
        for n in ("28", "56"):
            yield Measurement.over_seeds(
                f"diffusion.{'.'.join(case)}.sw.n{n}",
                BOOK,
                f"sliced Wasserstein distance of 128 samples: {' '.join(case)}, {n}² pixels",
                [row[n]["sw"] for row in runs],
                "",
            )
    for name, by_grid in e.traces.items():
        for n, values in by_grid.items():
            yield Measurement.over_seeds(
                f"fields.trace.{name}.n{n}",
                BOOK,
                f"E‖η‖² of the prior {name} on {n}² pixels, by 100 samples",
                values,
                "",
            )


# --- tables -------------------------------------------------------------------------------------


def table_of(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table with numbers to the right."""
    text = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*text, *("| " + " | ".join(line) + " |" for line in lines)])


KINDS = {
    "real": "real images",
    "blurred": "blurred by a pixel",
    "shifted": "moved by three pixels",
    "resampled": "through 10² pixels",
    "spliced": "half are no digits",
    "repeated": "50 images, repeated",
    "copied": "learned images",
}


def short(value: float) -> str:
    """A number to three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def power_table(e: Evidence) -> str:
    """What each metric says of real and of worse images, and which of these it notices."""
    lines = []
    for kind, name in KINDS.items():
        cells = [name]
        for what in digits.METRICS:
            value = fmean(row[what] for row in e.powers[kind])
            seen = kind != "real" and fmean(deviations_of(e.powers, what, kind)) > POWERFUL
            text = f"{value:.2f}" if abs(value) < 1 else f"{value:.0f}"
            cells.append(f"**{text}**" if seen else text)
        lines.append(cells)
    return table_of(
        ["images", "Fréchet", "sure, %", "prec.", "cov.", "near", "SW", "energy"], lines
    )


def judged_table(e: Evidence) -> str:
    """The stored networks on all grids: a mean over the splits of the images."""
    columns = ("frechet", "sure", "precision", "coverage", "nearest", "beyond")
    lines = [["real images", *(f"{fmean(e.real(w)):.3g}" for w in columns)]]
    for name in e.judged:
        *case, n = name.split(".")
        cells = [f"{' '.join(case)}, {n}²"]
        cells += [short(fmean(e.of(name, what))) for what in columns]
        lines.append(cells)
    return table_of(["", "Fréchet", "sure, %", "prec.", "cov.", "near", "beyond, %"], lines)


def sampler_table(e: Evidence) -> str:
    """The FNO with the Laplacian prior at 28² by several samplers."""
    lines = []
    for name, found in e.tried.items():
        sampler, steps = name.split("-")
        calls = 2 * int(steps) - 1 if sampler == "heun" else int(steps)
        columns = ("frechet", "sure", "coverage", "nearest")
        means = [fmean(row[what] for row in found) for what in columns]
        lines.append([sampler, steps, str(calls), *(f"{v:.3g}" for v in means)])
    return table_of(
        ["sampler", "steps", "evaluations", "Fréchet", "sure, %", "cov.", "near"], lines
    )


def factorial_table(e: Evidence) -> str:
    """The sliced Wasserstein and energy distances, three trainings, and the loss in percent."""
    lines = []
    for case, runs in {**e.table, ("real",): e.baseline}.items():
        cells = [" ".join(case)]
        for what, scale, form in (("sw", 1, ".3f"), ("energy", 1e3, ".0f"), ("loss", 100, ".1f")):
            for n in ("28", "56"):
                values = [scale * row[n].get(what, 0.0) for row in runs]
                text = f"{fmean(values):{form}} ± {spread_of(values):{form}}"
                cells.append(text if what in runs[0][n] else "")
        lines.append(cells)
    head = ["", "SW 28²", "SW 56²", "energy 28²", "energy 56²", "loss 28²", "loss 56²"]
    return table_of(head, lines)


def dimension_table(e: Evidence) -> str:
    """The squared distances between the laws on n² and on (2n)² pixels."""
    lines = []
    for name, found in e.refined.items():
        for what, values in (("on the way", found.path), ("samples", found.sample)):
            lines.append([f"{name}, {what}", *(short(v) for v in values)])
    head = ["noise", *(f"n = {n}" for n in dimension.GRIDS[:-1])]
    return table_of(head, lines)


def plan_table(e: Evidence) -> str:
    """The plans of training, their work and where they end."""
    lines = []
    for name, curves in e.climbed.items():
        loss, energy = multilevel.last(curves), multilevel.last(curves, "energy")
        seconds = [row["curve"][-1][0] for row in curves]
        lines.append(
            [
                name,
                f"{multilevel.WORK[name]:.0f}",
                f"{fmean(seconds):.0f}",
                f"{100 * fmean(loss):.2f} ± {100 * spread_of(loss):.2f}",
                f"{1e3 * fmean(energy):.1f} ± {1e3 * spread_of(energy):.1f}",
            ]
        )
    return table_of(["plan", "work", "CPU seconds", "loss, %", "energy, 10⁻³"], lines)


def field_table(e: Evidence) -> str:
    """Distances of samples of fields, and the flatness at all lags."""
    lines = []
    shown = {"real 0": "solutions", "real 1": "other solutions", "gaussian": "Gaussian fields"}
    shown |= {f"samples {n}": f"samples at {n}²" for n in (32, 64, 128)}
    for key, name in shown.items():
        lines.append([name, *(f"{v:.2f}" for v in e.fields[key]["flatness"])])
    return table_of(["S₄/S₂² at the lag", *(f"{lag}/32" for lag in patterns.LAGS)], lines)


def apart_table(e: Evidence) -> str:
    """How far samples from the same noise differ between grids, in percent of their norm."""
    lines = [
        [prior, *(f"{100 * value:.1f} %" for value in found.values())]
        for prior, found in e.apart.items()
    ]
    return table_of(["prior (FNO)", "28² and 56²", "56² and 112²"], lines)
