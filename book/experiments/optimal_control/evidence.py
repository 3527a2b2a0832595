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
SLIDE = "slide Optimal control framework"
IMPROVEMENTS = "slide Stable architectures, improvements"


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    checks: list[dict[str, principle.Judged]]
    limits: dict[str, list[principle.Limit]]
    steps: dict[str, list[principle.Steps]]
    sweeps: dict[str, Any]
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


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says.

    All networks are small, and all is in double precision on the CPU; `device` is there for the
    sake of the pages.
    """
    store, few = Store(CHAPTER, run), 2 if run == "smoke" else None
    seeds = [seed + s for s in principle.SEEDS[:few]]
    return Evidence(
        checks=principle.checks(store, seeds),
        limits={name: principle.limits(store, name, seeds) for name in principle.CASES},
        steps=principle.step_sizes(store, seeds),
        sweeps=sweeps.races(store, seeds),
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
        return [row[stage].gap / row["untrained"].gap for row in e.checks]

    def J(stage: str) -> list[float]:  # noqa: N802
        return [row[stage].J for row in e.checks]

    yield Claim(
        "control.pmp.gap",
        "Pontryagin: along a trained network the Hamiltonian is minimal (gap over that at first)",
        f"{SLIDE}; {IMPROVEMENTS}; Li et al. 2018",
        ours=gaps("trained"),
        criterion=below(0.01),
        control=Control("after twenty iterations", gaps("early")),
    )
    yield finding(
        "control.pmp.polish",
        "Minimisers of H find what the gradient does not: J after some layers are replaced by them",
        ours=J("polished"),
        criterion=below_control(),
        control=Control("random layers replaced, as long", J("kicked")),
    )
    yield finding(
        "control.pmp.kicks",
        "A stationary network is no optimal one: J after random layers are replaced",
        ours=J("kicked"),
        criterion=below_control(),
        control=Control("trained until the gradient vanishes", J("trained")),
    )
    largest = max(row["trained"].gradient for row in e.checks)
    yield Measurement(
        "control.pmp.gradient", BOOK, "largest ‖∂H/∂θₖ‖ of the trained networks", largest
    )


def _limit_rows(e: Evidence) -> Iterator[Row]:
    linear = e.limits["linear"]
    yield Claim(
        "control.hamiltonian.constant",
        "Along an optimal path the Hamiltonian is constant: order at which it flattens (linear)",
        f"{SLIDE}; Li et al. 2018",
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
        criterion=below(0.75),
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
    says = f"least J within {sweeps.BUDGET:,} propagations"
    source = f"{IMPROVEMENTS}; Li et al. 2018"
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
        for rival in ("gradient descent", "Adam", "L-BFGS"):
            short = f"{method.split()[0]}.{rival.replace(' ', '_').lower()}"
            yield Claim(
                f"control.msa.{short}",
                f"Optimality conditions train a network ({method}): {says}",
                source,
                ours=e.lowest(method),
                criterion=below_control(),
                control=Control(rival, e.lowest(rival)),
            )

    for rival in ("gradient descent", "Adam"):
        yield finding(
            f"control.msa.sweeps.{rival.replace(' ', '_').lower()}",
            f"Counted in sweeps, damped MSA is ahead of gradients: J after {sweeps.FEW} of either",
            ours=e.sweeps["ends"]["damped MSA"],
            criterion=below_control(),
            control=Control(rival, e.sweeps["ends"][rival]),
        )


def _bit_rows(e: Evidence) -> Iterator[Row]:
    source = f"{IMPROVEMENTS}; Li and Hao 2018"
    for kind, rival, short in (
        ("random", "random signs, real ends trained", "random"),
        ("rounded", "signs of a trained real network", "rounded"),
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
            control=Control("equal steps, trained as long", [row.longer.J for row in found]),
        )
    yield finding(
        "control.steps.equal",
        "The best step sizes make all Hamiltonians equal: (max − min)/mean of H (tanh)",
        ours=[row.learned.spread for row in e.steps["tanh"]],
        criterion=below(0.01),
        control=Control("equal steps", [row.longer.spread for row in e.steps["tanh"]]),
    )


def _mean(values: Sequence[float], digits: str = ".3g") -> str:
    return f"{fmean(values):{digits}} ± {spread_of(values):.1g}"


def stage_table(checks: Sequence[dict[str, principle.Judged]]) -> str:
    """Objective, gap and spread of H at all stages, as a Markdown table."""
    lines = ["| network | J | gap | (max − min)/mean of H |", "|---|---:|---:|---:|"]
    for stage in principle.STAGES:
        found = [row[stage] for row in checks]
        cells = [_mean([getattr(f, part) for f in found]) for part in ("J", "gap", "spread")]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweep_table(e: Evidence) -> str:
    """The chosen settings and the least objectives at two budgets, as a Markdown table."""
    few = 120
    names = {"damped MSA": "δ", "extended MSA": "ρ", "gradient descent": "rate", "Adam": "rate"}
    lines = [f"| | setting | least J, {few} propagations | {sweeps.BUDGET:,} |"]
    lines.append("|---|---:|---:|---:|")
    for method in sweeps.CHOICES:
        chosen = f"{names[method]} = {e.sweeps['chosen'][method]:g}" if method in names else ""
        cells = [_mean(e.lowest(method, budget)) for budget in (few, sweeps.BUDGET)]
        lines.append(f"| {method} | {chosen} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def race_table(e: Evidence) -> str:
    """The chosen rates, least losses and work to the target, as a Markdown table."""
    lines = ["| | rate or damping | least loss | work to 0.05 |", "|---|---:|---:|---:|"]
    for method in (*race.JOINT, *race.PROJECTED):
        rate = e.race["chosen"].get(method, "")
        cells = [_mean(e.loss(method)), _mean(e.work(method))]
        lines.append(f"| {method} | {rate} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
