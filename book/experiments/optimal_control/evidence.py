"""What the evidence on optimal control rests on, gathered by one call, and the rows that follow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Any

from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above_control,
    below,
    below_control,
    finding,
    spread_of,
    within,
)
from machinery.store import Run, Store

from . import bits, principle, race, sweeps

CHAPTER = "04_optimal_control"
BOOK = "this book"
IMPROVEMENTS = "slide Stable architectures, improvements"


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    checks: list[dict[str, principle.Judged]]
    limits: dict[str, list[principle.Limit]]
    steps: dict[str, list[principle.Steps]]
    sweeps: dict[str, Any]
    linear: list[float]
    bits: dict[str, list[float]]
    race: dict[str, Any]
    store: Store

    def lowest(self, method: str, budget: float = inf) -> list[float]:
        """The least objectives of a method of `sweeps` within a budget."""
        return [sweeps.lowest(curve, budget) for curve in self.sweeps["curves"][method]]

    def work(self, method: str) -> list[float]:
        """The work of a method of `race` until the target."""
        return [race.work_to(curve) for curve in self.race["curves"][method]]

    def loss(self, method: str) -> list[float]:
        """The least losses of a method of `race`."""
        return [race.lowest(curve) for curve in self.race["curves"][method]]


def gather(run: Run, seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says.

    All networks are small, and all is in double precision on the CPU.
    """
    store, few = Store(CHAPTER, run), 1 if run == "smoke" else None
    seeds = [seed + s for s in principle.SEEDS[:few]]
    return Evidence(
        checks=principle.checks(store, seeds),
        limits={name: principle.limits(store, name, seeds) for name in principle.CASES},
        steps=principle.step_sizes(store, seeds),
        sweeps=sweeps.races(store, seeds),
        linear=[sweeps.linear_accuracy(s) for s in seeds],
        bits=bits.accuracies(store, seeds),
        race=race.races(store, [seed + s for s in race.SEEDS[:few]]),
        store=store,
    )


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_principle_rows(e),
        *_limit_rows(e),
        *_sweep_rows(e),
        *_bit_rows(e),
        *_race_rows(e),
        *_step_rows(e),
    ]


def _principle_rows(e: Evidence) -> Iterator[Row]:
    def gaps(stage: str) -> list[float]:
        return [row[stage].gap / row[stage].J for row in e.checks]

    def J(stage: str) -> list[float]:  # noqa: N802
        return [row[stage].J for row in e.checks]

    yield Claim(
        "control.pmp.gap",
        "Pontryagin: along a trained network the Hamiltonian is minimal (gap over objective)",
        f"{IMPROVEMENTS}; Benning et al. 2019, Li et al. 2018",
        ours=gaps("trained"),
        criterion=below(0.05),
        control=Control("after twenty iterations", gaps("early")),
    )
    yield finding(
        "control.pmp.polish",
        "Minimisers of H find what the gradient does not: J after some layers are replaced by them",
        ours=J("polished"),
        criterion=below_control(),
        control=Control("random layers replaced, equal work", J("kicked")),
    )
    for stage in ("polished", "kicked"):
        gains = [100 * (1 - a / b) for a, b in zip(J(stage), J("trained"), strict=True)]
        yield Measurement.over_seeds(
            f"control.pmp.gain.{stage}", BOOK, f"{stage}: J is lower than trained, by", gains
        )
    yield Measurement(
        "control.pmp.gradient",
        BOOK,
        "largest ‖∂H/∂θₖ‖ of the trained networks, over all seeds",
        max(row["trained"].gradient for row in e.checks),
    )


def _limit_rows(e: Evidence) -> Iterator[Row]:
    linear = e.limits["linear"]
    yield Claim(
        "control.hamiltonian.constant",
        "Along an optimal path the Hamiltonian is constant: order at which it flattens (linear)",
        f"{IMPROVEMENTS}; Benning et al. 2019, Li et al. 2018",
        ours=[principle.flattening([net.spread for net in limit.nets]) for limit in linear],
        criterion=within(0.8, 1.2),
        control=Control(
            "a smooth control, not optimal", [principle.flattening(limit.other) for limit in linear]
        ),
    )

    def ratio(name: str) -> list[float]:
        return [limit.change[-1] / limit.change[0] for limit in e.limits[name]]

    yield finding(
        "control.limit.linear",
        "Where H is convex, weights converge without a penalty on ∂ₜθ: change, N doubled again",
        ours=ratio("linear"),
        criterion=below_control(),
        control=Control("tanh(Ku + b)", ratio("tanh")),
    )
    yield Claim(
        "control.limit.smooth",
        "With a penalty on ∂ₜθ weights converge (tanh): change from 16 to 32 layers",
        f"{IMPROVEMENTS}; Thorpe and van Gennip 2018",
        ours=[limit.change[-1] for limit in e.limits["tanh, smooth"]],
        criterion=below_control(),
        control=Control("without", [limit.change[-1] for limit in e.limits["tanh"]]),
    )


def _sweep_rows(e: Evidence) -> Iterator[Row]:
    yield finding(
        "control.msa.plain",
        "Plain successive approximations do not converge: last J",
        ours=[curve[-1][1] for curve in e.sweeps["curves"]["plain MSA"]],
        criterion=above_control(),
        control=Control(
            "gradient descent", [c[-1][1] for c in e.sweeps["curves"]["gradient descent"]]
        ),
    )
    for method in ("damped MSA", "extended MSA"):
        name = method.split()[0]
        yield Claim(
            f"control.msa.{name}.accuracy",
            f"Optimality conditions train a network ({method}): validation accuracy",
            f"{IMPROVEMENTS}; Li et al. 2018" if name == "extended" else IMPROVEMENTS,
            ours=e.sweeps["accuracies"][method],
            criterion=above_control(10),
            control=Control("logistic regression", e.linear),
            unit="%",
        )
        for rival in ("gradient descent", "Adam", "L-BFGS"):
            yield finding(
                f"control.msa.{name}.{rival.replace(' ', '_').lower()}",
                f"{name.capitalize()} MSA ends lower than {rival} at equal work: least J",
                ours=e.lowest(method),
                criterion=below_control(),
                control=Control(rival, e.lowest(rival)),
            )
            yield finding(
                f"control.msa.{name}.{rival.replace(' ', '_').lower()}.sweeps",
                f"{name.capitalize()} MSA is ahead of {rival} after {sweeps.FEW} sweeps: least J",
                ours=e.sweeps["ends"][method],
                criterion=below_control(),
                control=Control(rival, e.sweeps["ends"][rival]),
            )


def _bit_rows(e: Evidence) -> Iterator[Row]:
    source = f"{IMPROVEMENTS}; Li and Hao 2018"
    for kind, rival, short in (
        ("random", "random signs, real ends trained", "random"),
        ("rounded", "signs of a trained real network, ends trained on", "rounded"),
    ):
        yield Claim(
            f"control.bits.{short}",
            "The maximum principle trains weights of one bit: accuracy",
            source,
            ours=e.bits["MSA"],
            criterion=above_control(),
            control=Control(rival, e.bits[kind]),
            unit="%",
        )
    yield finding(
        "control.bits.straight_through",
        "It trains them better than the straight-through estimator, in as many steps: accuracy",
        ours=e.bits["MSA"],
        criterion=above_control(),
        control=Control("straight-through estimator", e.bits["straight-through"]),
        unit="%",
    )
    yield Measurement.over_seeds(
        "control.bits.float", BOOK, "real weights: accuracy", e.bits["float"]
    )


def _race_rows(e: Evidence) -> Iterator[Row]:
    says = f"work until the loss is {race.TARGET}"
    for method in ("L-BFGS", "Gauss–Newton"):
        short = "lbfgs" if method == "L-BFGS" else "newton"
        yield Claim(
            f"control.varpro.{short}",
            f"To eliminate the readout saves work ({method}): {says}",
            "Newman et al. 2021",
            ours=e.work(f"{method}, projected"),
            criterion=below_control(),
            control=Control("readout free", e.work(method)),
            unit="propagations",
        )
    yield Claim(
        "control.varpro.adam",
        f"Gauss–Newton with the readout eliminated needs less work than Adam: {says}",
        "Newman et al. 2021",
        ours=e.work("Gauss–Newton, projected"),
        criterion=below_control(),
        control=Control("Adam, best of four rates", e.work("Adam")),
        unit="propagations",
    )
    for method, rival in (("Adam", "SGD"), ("L-BFGS", "Adam"), ("Gauss–Newton", "L-BFGS")):
        short = method.replace("–", "_").replace("-", "").lower()
        yield finding(
            f"control.optimisers.{short}",
            f"{method} ends lower than {rival} after {race.BUDGET} propagations: least loss",
            ours=e.loss(method),
            criterion=below_control(),
            control=Control(rival, e.loss(rival)),
        )


def _step_rows(e: Evidence) -> Iterator[Row]:
    for name, found in e.steps.items():
        yield Claim(
            f"control.steps.{name}",
            f"Learned step sizes lower the objective ({name}, four layers): J",
            f"{IMPROVEMENTS}; Benning et al. 2019",
            ours=[row.learned.J for row in found],
            criterion=below_control(),
            control=Control("equal steps, the same start", [row.equal.J for row in found]),
        )
        gains = [100 * (1 - row.onwards.J / row.equal.J) for row in found]
        says = f"learned steps, from the network with equal ones: J is lower, by ({name})"
        yield Measurement.over_seeds(f"control.steps.{name}.onwards", BOOK, says, gains)
        spreads = [row.onwards.spread for row in found]
        says = f"learned steps: (max − min)/max of H ({name})"
        yield Measurement.over_seeds(f"control.steps.{name}.spread", BOOK, says, spreads, "")


def _mean(values: Sequence[float], digits: str = ".3g") -> str:
    return f"{fmean(values):{digits}} ± {spread_of(values):.1g}"


def stage_table(checks: Sequence[dict[str, principle.Judged]]) -> str:
    """Objective, gap and spread of H at all stages, as a Markdown table."""
    lines = ["| network | J | gap | (max − min)/max of H |", "|---|---:|---:|---:|"]
    for stage in principle.STAGES:
        found = [row[stage] for row in checks]
        cells = [_mean([getattr(f, part) for f in found]) for part in ("J", "gap", "spread")]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweep_table(e: Evidence) -> str:
    """The chosen settings and the least objectives by both counts, as a Markdown table."""
    names = {"damped MSA": "δ", "extended MSA": "ρ", "gradient descent": "rate", "Adam": "rate"}

    def words(method: str, setting: Sequence[float]) -> str:
        value, inner = setting
        said = [f"{names[method]} = {value:g}"] if method in names else []
        return ", ".join([*said, *([f"n = {inner:g}"] if inner else [])])

    lines = [f"| | setting | least J, equal work | setting | least J, {sweeps.FEW} sweeps |"]
    lines.append("|---|---|---:|---|---:|")
    for method in sweeps.CHOICES:
        cells = [words(method, e.sweeps["chosen"][method]), _mean(e.lowest(method))]
        cells += [words(method, e.sweeps["few"][method]), _mean(e.sweeps["ends"][method])]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def race_table(e: Evidence) -> str:
    """The chosen rates, least losses and work to the target, as a Markdown table."""
    lines = ["| | rate or damping | least loss | work to 0.05 |", "|---|---:|---:|---:|"]
    for method in (*race.JOINT, *race.PROJECTED):
        rate = e.race["chosen"].get(method, "")
        cells = [_mean(e.loss(method)), _mean(e.work(method))]
        lines.append(f"| {method} | {rate} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
