"""What the evidence on neural ODEs rests on, gathered by one call, and the rows that follow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10
from statistics import fmean
from typing import Any

from torch import nn

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
from machinery.store import Run, Store

from . import adaptive, augmentation, duels, flows, gradients, implicit, memory, spiral, turbulence

CHAPTER = "03_neural_odes"
BOOK = "this book"
SLIDE = "slide Neural ODEs"
IMPROVEMENTS = "slide Neural ODEs, improvements"
PRECURSORS = "slide ResNet, discussion"
LOST = 1e3  # a round trip that returns to no state counts as this error
RATE = gradients.RATES[-1]
INVERSIONS = 20
BEYOND = 20.0  # times a contraction, which is none then


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    works: list[adaptive.Work]
    distances: dict[str, list[spiral.Distances]]
    misses: gradients.Misses
    trips: dict[int, list[float]]
    contracting: dict[str, dict[int, list[float]]]
    memory: memory.Study
    duels: dict[tuple[str, str], list[duels.Result]]
    races: dict[str, dict[str, Any]]
    annuli: dict[str, list[augmentation.History]]
    flows: dict[str, list[float]]
    roulettes: list[float]
    predictions: dict[tuple[str, str], list[float]]
    waves: dict[str, list[float]]
    rates: dict[str, list[float]]
    seeds: list[int]
    store: Store


PREDICTED = (
    *(("stiff", rule) for rule in implicit.STEPS),
    ("mild", implicit.TRAPEZOID),
    ("mild", "RK4"),
)
KINDS = (
    turbulence.IMPLICIT,
    turbulence.REGRESSION,
    turbulence.DIFFERENCES,
    turbulence.EXPLICIT,
)


def gather(run: Run, seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says.

    All networks are small and stay on the CPU.
    """
    store, few = Store(CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in spiral.SEEDS[:few]]
    nets = trained(store, seeds)
    return Evidence(
        works=adaptive.works(store, seeds),
        distances={kind: spiral.all_distances(store, kind, seeds) for kind in spiral.KINDS},
        misses=gradients.all_misses(store, nets, seeds),
        trips={c: [round_trip(c, s) for s in seeds] for c in (0, RATE)},
        contracting=gradients.contraction(store, seeds),
        memory=memory.study(store),
        duels=duels.duels(store, seeds),
        races=gradients.races(store, nets[0], seeds[0] - spiral.SEEDS[0]),
        annuli={kind: augmentation.histories(store, kind, seeds) for kind in augmentation.KINDS},
        flows=densities(store, seeds),
        roulettes=flows.roulettes(store, seeds),
        predictions={
            (name, rule): implicit.prediction_errors(store, name, rule, seeds)
            for name, rule in PREDICTED
        },
        waves={k: turbulence.study(store, k, seeds) for k in (*KINDS, turbulence.STILL)},
        rates={
            kind: [turbulence.rate_error(turbulence.fit(store, kind, s)) for s in seeds]
            for kind in KINDS
        },
        seeds=seeds,
        store=store,
    )


def trained(store: Store, seeds: Sequence[int]) -> list[nn.Module]:
    """The networks of the spiral, in double precision."""
    return [spiral.fit(store, "spiral", s).double() for s in seeds]


def round_trip(c: float, seed: int) -> float:
    """The error of the way to t = 3 and back for the contracting velocity, at most 1000."""
    f = gradients.Contracting(c, seed)
    return min(LOST, gradients.round_trip(f, f.x, 3.0, 1e-6))


def densities(store: Store, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The negative log-likelihoods of the moons: of the flow, its rivals, and the truth."""
    return {
        "flow": [flows.negative_log_likelihood(flows.fit(store, s), s) for s in seeds],
        "gaussian": [flows.gaussian(s) for s in seeds],
        "mixture": [flows.mixture(s) for s in seeds],
        "floor": [flows.floor(s) for s in seeds],
    }


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_gradient_rows(e),
        *_spiral_rows(e),
        *_time_rows(e),
        *_backward_rows(e),
        *_checkpoint_rows(e),
        *_duel_rows(e),
        *_augmentation_rows(e),
        *_flow_rows(e),
        *_flow_measurements(e),
        *_implicit_rows(e),
        *_wave_rows(e),
    ]


def _gradient_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "node.adaptive.work",
        "Adaptive steps need fewer evaluations than equal ones (Van der Pol, μ = 5)",
        SLIDE,
        ours=[work.adaptive for work in e.works],
        criterion=below_control(),
        control=Control("equal steps of the same method, as exact", [w.equal for w in e.works]),
    )
    ode, own = e.misses.ode, e.misses.own
    yield Claim(
        "node.gradient.adjoint",
        "The adjoint equation gives the gradient: relative error, tolerance 1e-7",
        SLIDE,
        ours=ode["adjoint, tol 1e-7"],
        criterion=below(0.01),
        control=Control("with the tolerance 1e-2", ode["adjoint, tol 1e-2"]),
    )
    yield finding(
        "node.gradient.own",
        "With tolerance 1e-2 the adjoint is not the gradient of the loss that was computed",
        ours=own["adjoint, tol 1e-2"],
        criterion=above(0.1),
        control=Control("recompute, 30 steps", own["recompute, 30 steps"]),
    )
    for against, errors in (("ODE", ode), ("computed loss", own)):
        for name, found in errors.items():
            short = f"{against.split()[0].lower()}.{name.replace(', ', '.').replace(' ', '_')}"
            says = f"{name}: relative error against the gradient of the {against}"
            yield Measurement.over_seeds(f"node.gradient.error.{short}", BOOK, says, found, "")


def _spiral_rows(e: Evidence) -> Iterator[Row]:
    beyond = {kind: [d.beyond for d in found] for kind, found in e.distances.items()}
    for rival, words in (
        ("linear", "a linear ODE in x"),
        ("plain", "the same network of x"),
        ("cubes", "a linear ODE in x³, the form of the truth"),
    ):
        yield finding(
            f"node.spiral.{rival}",
            "A neural ODE that sees x³ extrapolates the spiral: mean distance beyond the data",
            ours=beyond["spiral"],
            criterion=below_control(),
            control=Control(f"{words}, fitted alike", beyond[rival]),
        )


def _time_rows(e: Evidence) -> Iterator[Row]:
    for when, slow in (
        ("at first", f"{gradients.ADJOINT}|1e-07"),
        ("trained", f"{gradients.ADJOINT}|1e-05"),
        ("trained", f"{gradients.ODEINT}|1e-05"),
    ):
        name = slow.replace("|", ", ")
        short = name.replace(", ", ".").replace(" ", "_")
        yield Measurement.over_seeds(
            f"node.time.{when.replace(' ', '_')}.{short}",
            BOOK,
            f"time of {name} over that of our fixed steps, equal error, {when} (repetitions)",
            gradients.equally_exact(e.races[when], slow),
            "times",
        )
    one, many = (f"{name}|1e-07" for name in (gradients.ONE_OUTPUT, gradients.ADJOINT))
    for when, work in e.races.items():
        short = when.replace(" ", "_")
        yield Measurement.over_seeds(
            f"node.time.outputs.{short}",
            BOOK,
            f"time of odeint_adjoint with thirty outputs over that with one, {when} (repetitions)",
            [seconds[many] / seconds[one] for seconds in work["seconds"]],
            "times",
        )
        for n in gradients.ON_GRID:
            ours, theirs = (f"{name}|{n}" for name in ("ours, RK4", gradients.THEIR_RK4))
            if theirs not in work["error"]:
                continue  # a trial run has few settings
            yield Measurement.over_seeds(
                f"node.time.{short}.rk4.{n}",
                BOOK,
                f"time of torchdiffeq's rk4 over ours, {n} steps, {when} (repetitions)",
                [seconds[theirs] / seconds[ours] for seconds in work["seconds"]],
                "times",
            )


def _growth(peaks: Sequence[int]) -> list[float]:
    return [peaks[-1] / peaks[0]]


def _backward_rows(e: Evidence) -> Iterator[Row]:
    first, last = e.memory.steps[0], e.memory.steps[-1]
    says = f"peak with {last} steps over that with {first}"
    yield Claim(
        "node.memory.adjoint",
        f"Recomputing the state backward in time saves memory: {says}",
        SLIDE,
        ours=_growth(e.memory.peaks["adjoint"]),
        criterion=within(0.9, 1.1),
        control=Control("through", _growth(e.memory.peaks["through"])),
        unit="times",
    )
    yield Claim(
        "node.reverse.lost",
        f"That recomputation can be unstable: error of x(0), there and back, c = {RATE}",
        IMPROVEMENTS,
        ours=e.trips[RATE],
        criterion=above(0.9),
        control=Control("c = 0", e.trips[0]),
    )
    through, adjoint, _ = (found[RATE] for found in e.contracting.values())
    yield Claim(
        "node.reverse.gradient",
        f"So its gradient fails: relative error, c = {RATE}, tolerance 1e-4",
        IMPROVEMENTS,
        ours=adjoint,
        criterion=above(0.5),
        control=Control("through the same steps", through),
    )


def _checkpoint_rows(e: Evidence) -> Iterator[Row]:
    _, adjoint, snapshots = (found[RATE] for found in e.contracting.values())
    first, last = e.memory.steps[0], e.memory.steps[-1]
    says = f"peak with {last} steps over that with {first}"
    yield Claim(
        "node.checkpointing.gradient",
        f"Checkpointing cures it: relative error of the gradient, c = {RATE}, 50 steps",
        f"{IMPROVEMENTS}; Gholami et al. 2019",
        ours=snapshots,
        criterion=below(0.01),
        control=Control("adjoint, tolerance 1e-4", adjoint),
    )
    yield Claim(
        "node.checkpointing.memory",
        f"Checkpointing in √N blocks saves memory: {says}",
        f"{IMPROVEMENTS}; Gholami et al. 2019",
        ours=_growth(e.memory.peaks["recompute, √N states"]),
        criterion=below(2),
        control=Control("all N states kept", _growth(e.memory.peaks["recompute, all states"])),
        unit="times",
    )
    for name, counts in e.memory.evaluations.items():
        short = name.replace(", ", ".").replace(" ", "_")
        yield Measurement(
            f"node.checkpointing.work.{short}",
            BOOK,
            f"{name}: evaluations of both passes over those of the forward pass, {last} steps",
            counts[-1],
        )


def _duel_rows(e: Evidence) -> Iterator[Row]:
    def losses(name: str, way: str) -> list[float]:
        return [result.loss for result in e.duels[name, way]]

    for name, says in (("stiff", "c = 10"), ("mild", "c = 0")):
        yield finding(
            f"node.duel.{name}",
            f"Discretise–optimise ends with a lower loss than optimise–discretise ({says})",
            ours=losses(name, duels.FIRST_DISCRETE),
            criterion=below_control(),
            control=Control(duels.TIGHT, losses(name, duels.TIGHT)),
        )
        yield finding(
            f"node.duel.{name}.work",
            f"It needs fewer evaluations of the velocity ({says})",
            ours=[result.evaluations for result in e.duels[name, duels.FIRST_DISCRETE]],
            criterion=below_control(),
            control=Control(duels.LOOSE, [r.evaluations for r in e.duels[name, duels.LOOSE]]),
        )
    yield finding(
        "node.duel.stiff.steps",
        "The gradient decides, not the steps (c = 10): loss with adaptive steps, through",
        ours=losses("stiff", duels.SAME),
        criterion=below_control(),
        control=Control("adjoint, the same tolerance", losses("stiff", duels.LOOSE)),
    )


def _augmentation_rows(e: Evidence) -> Iterator[Row]:
    def ends(kind: str, what: str) -> list[float]:
        return [getattr(history, what)[-1] for history in e.annuli[kind]]

    yield finding(
        "anode.accuracy",
        "A flow of the plane cannot tell a disc from the ring around it: accuracy below 99 %",
        ours=ends(augmentation.PLAIN, "accuracy"),
        criterion=below(99),
        control=Control("five zeros", ends(augmentation.FIVE, "accuracy")),
        unit="%",
    )
    for kind in (augmentation.ONE, augmentation.FIVE):
        short = f"p{augmentation.KINDS[kind][0]}"
        yield Claim(
            f"anode.loss.{short}",
            f"Augmentation lowers the loss ({kind}, 40 epochs)",
            f"{IMPROVEMENTS}; Dupont et al. 2019",
            ours=ends(kind, "loss"),
            criterion=below_control(),
            control=Control("no zeros, more hidden units", ends(augmentation.WIDER, "loss")),
        )
    yield Claim(
        "anode.evaluations",
        "Augmentation lowers the evaluations that a solver needs (five zeros, 40 epochs)",
        f"{IMPROVEMENTS}; Dupont et al. 2019",
        ours=ends(augmentation.FIVE, "evaluations"),
        criterion=below_control(),
        control=Control("no zeros", ends(augmentation.PLAIN, "evaluations")),
    )
    yield finding(
        "anode.stretch",
        "A flow of the plane pays by stretching: log₁₀ of the largest singular value of ∂x(1)/∂y",
        ours=[log10(history.stretch) for history in e.annuli[augmentation.PLAIN]],
        criterion=above_control(),
        control=Control(
            "five zeros", [log10(history.stretch) for history in e.annuli[augmentation.FIVE]]
        ),
    )


def _flow_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "iresnet.inverse",
        f"Fixed-point iteration inverts a contraction (L = 0.9): error, {INVERSIONS} iterations",
        f"{IMPROVEMENTS}; Behrmann et al. 2019",
        ours=[flows.network_error(s, INVERSIONS) for s in e.seeds],
        criterion=below(1e-6),
        control=Control(
            f"{BEYOND} times the same networks",
            [flows.network_error(s, INVERSIONS, BEYOND) for s in e.seeds],
        ),
    )
    gap = {k: _minus(e.flows[k], e.flows["floor"]) for k in ("flow", "gaussian", "mixture")}
    yield Claim(
        "iresnet.gap",
        "Residual networks give a likelihood (two moons): nats above the entropy",
        f"{IMPROVEMENTS}; Chen et al. 2019",
        ours=gap["flow"],
        criterion=below_control(),
        control=Control("a Gaussian", gap["gaussian"]),
        unit="nats",
    )
    yield finding(
        "iresnet.mixture",
        "A residual flow is closer than a mixture of 16 Gaussians: nats above the entropy",
        ours=gap["flow"],
        criterion=below_control(),
        control=Control("the mixture, fitted to the same points", gap["mixture"]),
        unit="nats",
    )
    exact = flows.exact_log_det()
    cut = flows.cut_log_det(4) - exact
    yield Claim(
        "iresnet.roulette",
        f"A series that ends at random gives log det without bias (exact {exact:.2f}): error",
        f"{IMPROVEMENTS}; Chen et al. 2019",
        ours=[mean - exact for mean in e.roulettes],
        criterion=within(-0.05, 0.05),
        control=Control("the first four terms", [cut] * len(e.roulettes)),
    )


def _flow_measurements(e: Evidence) -> Iterator[Row]:
    rates = [flows.measured_rate(s) for s in e.seeds]
    says = "a network bounded by 0.9: factor by which the error of the inverse falls in a step"
    yield Measurement.over_seeds("iresnet.rate", BOOK, says, rates, "")
    for name in ("flow", "floor"):
        says = f"negative log-likelihood of two moons: {name}"
        yield Measurement.over_seeds(f"iresnet.nll.{name}", BOOK, says, e.flows[name], "nats")


def _implicit_rows(e: Evidence) -> Iterator[Row]:
    says = "mean distance of predictions until t = 6"
    for name, words in (("stiff", "κ = 100"), ("mild", "κ = 2")):
        yield Claim(
            f"node.implicit.{name}",
            f"An implicit step finds the equation better than an explicit one ({words}): {says}",
            f"{PRECURSORS}; Rico-Martínez et al. 1992",
            ours=e.predictions[name, implicit.TRAPEZOID],
            criterion=below_control(),
            control=Control("one step of RK4", e.predictions[name, "RK4"]),
        )
    yield finding(
        "node.implicit.stiff.work",
        f"It is better than eight explicit steps, which take as long (κ = 100): {says}",
        ours=e.predictions["stiff", implicit.TRAPEZOID],
        criterion=below_control(),
        control=Control("eight steps of RK4", e.predictions["stiff", "RK4, eight steps"]),
    )
    still = [implicit.still(implicit.KAPPA["stiff"], s) for s in e.seeds]
    yield Measurement.over_seeds(
        "node.implicit.still", BOOK, f"nothing moves (κ = 100): {says}", still, ""
    )


def _wave_rows(e: Evidence) -> Iterator[Row]:
    for kind, short, words in (
        (turbulence.EXPLICIT, "explicit", "one step of RK4 an interval"),
        (turbulence.DIFFERENCES, "differences", "central differences of the data"),
    ):
        yield Claim(
            f"node.waves.{short}",
            "The trapezoidal rule finds a partial differential equation in data: valid time",
            f"{PRECURSORS}; González-García et al. 1998",
            ours=e.waves[turbulence.IMPLICIT],
            criterion=above_control(),
            control=Control(words, e.waves[kind]),
        )
    yield finding(
        "node.waves.regression",
        "Steps that are solved find a better equation than a regression of the rule: valid time",
        ours=e.waves[turbulence.IMPLICIT],
        criterion=above_control(),
        control=Control("regression alone", e.waves[turbulence.REGRESSION]),
    )
    still = e.waves[turbulence.STILL]
    yield Measurement.over_seeds("node.waves.still", BOOK, "valid time if nothing moves", still, "")
    for kind, errors in e.rates.items():
        yield Measurement.over_seeds(
            f"node.waves.rates.{kind}",
            BOOK,
            f"largest error of the growth rates k² − k⁴ for k ≤ 1.5, {kind}",
            errors,
            "",
        )


def _minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _mean(values: Sequence[float], digits: str = ".2g") -> str:
    return f"{fmean(values):{digits}} ± {spread_of(values):.1g}"


def duel_table(e: Evidence) -> str:
    """Losses, evaluations and lost iterations of both ways, as a Markdown table."""
    lines = ["| problem | gradient | loss | on fresh points | evaluations | without a gradient |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for (name, way), results in e.duels.items():
        loss, test = (_mean([getattr(r, k) for r in results]) for k in ("loss", "test"))
        count = fmean(r.evaluations for r in results)
        lost = fmean(r.lost for r in results)
        lines.append(f"| {name} | {way} | {loss} | {test} | {count:,.0f} | {lost:g} |")
    return "\n".join(lines)


def annuli_table(e: Evidence) -> str:
    """Loss, accuracy, evaluations and stretch by additional dimensions, as a Markdown table."""
    middle = len(e.annuli[augmentation.PLAIN][0].loss) // 2 - 1
    lines = ["| | loss, epoch 20 | epoch 40 | accuracy, % | evaluations | log₁₀ stretch |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for kind, found in e.annuli.items():
        cells = [
            _mean([h.loss[middle] for h in found]),
            _mean([h.loss[-1] for h in found]),
            _mean([h.accuracy[-1] for h in found], ".2f"),
            f"{fmean(h.evaluations[-1] for h in found):.0f}",
            _mean([log10(h.stretch) for h in found], ".2f"),
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
