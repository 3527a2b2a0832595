"""What the evidence on value functions rests on, and the rows that follow from it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch

from ctdl_lib.problems.control import LinearQuadratic
from machinery.claims import (
    ROUND_OFF,
    Claim,
    Control,
    Measurement,
    Row,
    above,
    below,
    below_control,
    columns,
    finding,
)
from machinery.seeds import seeded
from machinery.store import Run, Store

from . import characteristics, corridor, gate, grids, hill, training
from .characteristics import Gap
from .gate import Named, Shocks
from .hill import FULL, Box, Judged
from .training import CHAPTER, DOUBLE, seeds_of

BOOK = "this book"
PMP, SOC = "slide HJB and PMP", "slide Neural SOC"
SIAM, TCST = "Li et al. 2024", "Onken et al. 2022"
PUBLISHED = {"t00": 2.16, "t05": 7.0, "t09": 16.6}
HEIGHT = 2.16  # percent, published
AIMS = {"mean": 0.5, "max": 5.0, "tests": 0.3}  # percent, written down before the trainings
GAP, SHOCK = 2.0, 5.0  # percent above a plan
WITHOUT = "the value function without the hill"


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    residual: tuple[float, float]
    plain: list[float]
    phi0: dict[str, float]
    plane: dict[str, Any]
    by_noise: dict[str, float]
    best: dict[str, float]
    straight_cost: float  # of the feedback that does not know the hill
    judged: list[Judged]
    tests: dict[str, list[float]]  # errors at the starts of the test
    boxes: dict[str, list[Box]]  # near starts, the residual alone from there, box
    committees: dict[str, Box]  # of the means over seeds
    ablation: dict[str, list[Judged]]
    halved: list[Judged]
    gaps: list[Gap]
    optimum: float
    passing: list[tuple[float, float]]  # cost and least distance, undisturbed
    straight: tuple[float, float]  # the same without the hills and the other agent
    shocks: list[Shocks]
    at_once: float
    open_loop: dict[str, float]
    named: dict[str, list[Named]]
    kink: dict[str, float]
    clock: dict[str, float]
    store: Store


NEAR, DEEP = "starts near (−1.5, −1.5)", "the same, three layers, residual alone"
WIDE, SHALLOW = "half from the box, three layers", "half from the box, two layers"


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store = Store(CHAPTER, run)
    plane, found, wide = grids.plane(store), hill.fits(store, seed), hill.wide_fits(store, seed)
    shallow = hill.wide_fits(store, seed, name="shallow", how=training.SHALLOW)
    deep = hill.wide_fits(store, seed, name="deep", how=training.DEEP)
    known, tests = torch.tensor(plane["known"], **DOUBLE), hill.at_tests(store, seed)
    boxes = {
        name: [hill.over_box(known, phi) for phi, _ in fits]
        for name, fits in ((NEAR, found), (DEEP, deep), (SHALLOW, shallow), (WIDE, wide))
    }
    return Evidence(
        residual=residuals(seed),
        plain=hill.plain_errors(store, seed),
        phi0=grids.at_start(store),
        plane=plane,
        by_noise=grids.by_noise(store),
        best=grids.best_price(store, seed),
        straight_cost=grids.straight_price(store, seed),
        judged=hill.judged(store, "hill", found, seed),
        tests={
            WIDE: [hill.error_at_tests(tests, phi, seed) for phi, _ in wide],
            WITHOUT: [hill.error_at_tests(tests, grids.PROBLEM.linear_quadratic.value(), seed)],
        },
        boxes=boxes,
        committees={
            NEAR: hill.committee(known, [phi for phi, _ in found]),
            WIDE: hill.committee(known, [phi for phi, _ in wide]),
        },
        ablation=hill.ablation(store, seed),
        halved=hill.judged(store, "halved", hill.halved_fits(store, seed), seed),
        gaps=[characteristics.gap(phi) for phi in characteristics.fits(store, seed)],
        **_gate(store, seed),
        store=store,
    )


def _gate(store: Store, seed: int) -> dict[str, Any]:
    """The numbers of the gate."""
    plan, fits = gate.best(store), gate.fits(store, seed)
    policies = [gate.policy_of(phi) for phi, _ in fits]
    costs = gate.replanned(store, plan, policies)
    again, (x, at_once) = gate.named_plans(store, plan), gate.shocked(store, plan)
    runs = zip(seeds_of(store, seed, 3), fits, policies, strict=True)
    straight = corridor.undisturbed(gate.policy_of(training.gate_lq().value()))
    free = [corridor.undisturbed(policy) for policy in policies]
    return {
        "optimum": plan.cost,
        "passing": [(float(o.cost), float(o.nearest)) for o in free],
        "straight": (float(straight.cost), float(straight.nearest)),
        "shocks": [
            gate.judge(store, f"gate-{s}", record, policy, plan, costs)
            for s, (_, record), policy in runs
        ],
        "at_once": at_once,
        "open_loop": gate.open_loop(plan, x, costs, again),
        "named": gate.named(plan, policies, again),
        "kink": gate.kink(store),
        "clock": gate.clock(store, policies[0], plan),
    }


def residuals(seed: int = 0, points: int = 200) -> tuple[float, float]:
    """The largest residual of the HJB equation over the largest ∂ₜΦ, with noise and without.

    The problem is linear–quadratic and Φ its closed form.
    """
    problem: LinearQuadratic = training.plain()[0]
    g = seeded(seed)
    x, t = torch.randn(points, 2, generator=g, **DOUBLE), torch.rand(points, generator=g, **DOUBLE)
    at = problem.value().derivatives(t, x, problem.diffusion)
    calm = at.dt - 0.5 * at.dx.square().sum(1)
    size = at.dt.abs().max()
    full, without = (float(r.abs().max() / size) for r in (calm + 0.5 * at.laplacian, calm))
    return max(full, ROUND_OFF), without


def over(costs: Sequence[float], best: float) -> list[float]:
    """By how many percent costs exceed the best one."""
    return [100 * (cost / best - 1) for cost in costs]


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_value_rows(e),
        *_objective_rows(e),
        *_box_rows(e),
        *_gate_rows(e),
        *_shock_rows(e),
        *_hill_measurements(e),
        *_gate_measurements(e),
    ]


def _value_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "hjb.residual",
        "The value function solves the HJB equation: largest residual over largest ∂ₜΦ, "
        "linear–quadratic problem",
        PMP,
        ours=[e.residual[0]],
        criterion=below(1e-9),
        control=Control("the equation without its second-order term", [e.residual[1]]),
    )
    yield Claim(
        "soc2d.characteristics",
        "Without noise the gradient of the value function is the costate: error along a path, "
        "learned Φ against Pontryagin's boundary value problem",
        PMP,
        ours=[gap.costate for gap in e.gaps],
        criterion=below(3.0),
        control=Control(WITHOUT, [gap.straight for gap in e.gaps]),
        unit="%",
    )
    yield Claim(
        "corridor.kink",
        "Regularity is a challenge: where either agent may go first, the best costate jumps by "
        "more than a tenth of its size",
        PMP,
        ours=[e.kink["start"]],
        criterion=above(0.1),
        control=Control("a start with one agent ahead", [e.kink["aside"]]),
    )
    yield Claim(
        "soc2d.value_error.t00",
        f"In two dimensions the value at t = 0 has a relative error below {HEIGHT:g} %, at the "
        "starts of the publication",
        SOC,
        ours=[row.t00 for row in e.judged],
        criterion=below(HEIGHT),
        control=Control(WITHOUT, e.tests[WITHOUT]),
        published=PUBLISHED["t00"],
        unit="%",
    )


def _objective_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "soc2d.cost",
        "The feedback of the learned value function is optimal: its cost above that of the finest "
        "grid's feedback, same noise",
        SOC,
        ours=over([row.cost for row in e.judged], e.best["cost"]),
        criterion=below(1.0),
        control=Control(f"feedback of {WITHOUT}", over([e.straight_cost], e.best["cost"])),
        unit="%",
    )
    yield from _ablation_rows(e)


def _ablation_rows(e: Evidence) -> Iterator[Row]:
    """What is left of the height when a term of the objective, or its noise, is missing."""
    yield Claim(
        "soc2d.penalty",
        "With the HJB loss beside the cost, Φ has the right height: error at t = 0",
        SOC,
        ours=[row.t00 for row in e.ablation[FULL]],
        criterion=below(HEIGHT),
        control=Control("the cost alone", [row.t00 for row in e.ablation["cost alone"]]),
        unit="%",
    )
    yield Claim(
        "soc2d.sampling",
        "Sampling as PMP suggests, on paths of the own feedback, serves the residual: error at "
        "t = 0, residual alone",
        SOC,
        ours=[row.t00 for row in e.ablation["hjb alone"]],
        criterion=below(HEIGHT),
        control=Control(
            "residual alone, on random walks",
            [row.t00 for row in e.ablation["hjb alone, random walk"]],
        ),
        unit="%",
    )
    yield finding(
        "soc2d.value_error.halved",
        "Half of the noise in the penalty, as in the published code, spoils Φ: error at t = 0",
        ours=[row.t00 for row in e.halved],
        criterion=above(HEIGHT),
        control=Control("all of the noise", [row.t00 for row in e.judged[: len(e.halved)]]),
        unit="%",
    )


def _box_rows(e: Evidence) -> Iterator[Row]:
    says = {
        "mean": "mean error of Φ(0, ·) over the box (−3, 3)²",
        "max": "largest error over the box",
    }
    for part, words in says.items():
        yield finding(
            f"soc2d.box_error.{part}",
            f"Half of the starts drawn from the box: {words} at most {AIMS[part]:g} %",
            ours=[getattr(box, part) for box in e.boxes[WIDE]],
            criterion=below(AIMS[part]),
            control=Control(DEEP, [getattr(box, part) for box in e.boxes[DEEP]]),
            unit="%",
        )
    for id, says, log, rival in (
        ("tenth", "It lowers the mean error to a tenth or less: log₁₀", math.log10, DEEP),
        ("depth", "A third layer halves the mean error over the box: log₂", math.log2, SHALLOW),
    ):
        yield finding(
            f"soc2d.box_error.{id}",
            f"{says} of the error in percent",
            ours=[log(box.mean) for box in e.boxes[WIDE]],
            criterion=below_control(1.0),
            control=Control(rival, [log(box.mean) for box in e.boxes[rival]]),
        )
    yield finding(
        "soc2d.box_error.tests",
        f"It keeps the error at the starts of the test at most {AIMS['tests']:g} %",
        ours=e.tests[WIDE],
        criterion=below(AIMS["tests"]),
        control=Control(WITHOUT, e.tests[WITHOUT]),
        unit="%",
    )


def _gate_rows(e: Evidence) -> Iterator[Row]:
    yield Claim(
        "corridor.cost",
        "Two agents pass the gate at nearly the least cost: above the best plan",
        TCST,
        ours=over([cost for cost, _ in e.passing], e.optimum),
        criterion=below(GAP),
        control=Control("feedback that knows no obstacle", over([e.straight[0]], e.optimum)),
        unit="%",
    )
    yield Claim(
        "corridor.distance",
        "They do not collide on the way: least distance above 1",
        TCST,
        ours=[distance for _, distance in e.passing],
        criterion=above(corridor.contact()),
        control=Control("feedback that knows no obstacle", [e.straight[1]]),
    )
    for name, shocked in e.named.items():
        yield Claim(
            f"corridor.shock.{name}",
            f"The feedback reacts well to the {name} shock: cost above that of a new plan at most "
            f"{SHOCK:g} %",
            TCST,
            ours=over([row.ratio for row in shocked], 1.0),
            criterion=below(SHOCK),
            control=Control("the old controls go on", over([e.open_loop[name]], 1.0)),
            unit="%",
        )


def _shock_rows(e: Evidence) -> Iterator[Row]:
    stored = e.shocks
    yield finding(
        "corridor.collisions",
        "With the filter no shock of 1,000 lets the agents collide",
        ours=[row.filtered for row in stored],
        criterion=below(1),
        control=Control("the same networks without it", [row.plain for row in stored]),
    )
    yield finding(
        "corridor.filter",
        f"The filter adds at most {GAP:g} % to the mean cost",
        ours=[row.filter for row in stored],
        criterion=below(GAP),
        control=Control("a filter that brakes earlier (rate 5)", [row.slow for row in stored]),
        unit="%",
    )
    yield finding(
        "corridor.gap",
        f"After shocks the filtered feedback costs at most {GAP:g} % more than new plans",
        ours=[row.gap for row in stored],
        criterion=below(GAP),
        control=Control("the old controls go on", [100 * (e.open_loop["shocks"] - 1)]),
        unit="%",
    )


def _hill_measurements(e: Evidence) -> Iterator[Row]:
    sizes = list(e.phi0)
    yield Measurement(
        "soc2d.reference.phi0",
        BOOK,
        "Φ(0, (−1.5, −1.5)) by finite differences; the spread is the difference of the two finest "
        "grids",
        e.phi0[sizes[-1]],
        spread=abs(e.phi0[sizes[-1]] - e.phi0[sizes[-2]]),
    )
    for name, says in (("finer", "a finer grid"), ("wider", "the same grid on a larger square")):
        words = f"largest difference of the reference over the box from {says}"
        yield Measurement(f"soc2d.reference.{name}", BOOK, words, 100 * e.plane["other"][name], "%")
    says = "error of Φ(0, ·), linear–quadratic problem, network on its own"
    yield Measurement.over_seeds("lqr.value_error", BOOK, says, e.plain)
    for key, at in (("t05", "0.5"), ("t09", "0.9")):
        values = [getattr(row, key) for row in e.judged]
        says = f"error of Φ along paths at t = {at}"
        yield Measurement.over_seeds(
            f"soc2d.value_error.{key}", SIAM, says, values, published=PUBLISHED[key]
        )
    costs = [row.cost for row in e.judged]
    says = "cost of the feedback, 200 steps"
    yield Measurement.over_seeds("soc2d.cost.nt200", SIAM, says, costs, "", published=15.33)
    says = "cost of the finest grid's feedback, 200 steps, with its standard error"
    yield Measurement("soc2d.cost.reference", BOOK, says, e.best["cost"], spread=e.best["error"])
    yield from _box_measurements(e)
    for label, row in e.ablation.items():
        name = label.replace(" + ", "_").replace(", ", "_").replace(" ", "_")
        yield Measurement.over_seeds(
            f"soc2d.ablation.{name}.t00", BOOK, f"error at t = 0: {label}", [r.t00 for r in row]
        )
    yield Measurement(
        "soc2d.noise.order",
        BOOK,
        "powers of the noise with which it adds to the value, from halvings",
        orders(e.by_noise),
    )


def _box_measurements(e: Evidence) -> Iterator[Row]:
    for slug, name in (("near", NEAR), ("deep", DEEP), ("shallow", SHALLOW), ("box", WIDE)):
        at_target = [box.target for box in e.boxes[name]]
        says = f"error at the target: {name}"
        yield Measurement.over_seeds(f"soc2d.target_error.{slug}", BOOK, says, at_target, "%")
        if name != WIDE:
            values, says = [box.mean for box in e.boxes[name]], f"mean error over the box: {name}"
            yield Measurement.over_seeds(f"soc2d.box_error.{slug}", BOOK, says, values, "%")
    for part in ("mean", "max"):
        says = (
            f"error over the box of the mean of the networks with half of the starts there, {part}"
        )
        value = getattr(e.committees[WIDE], part)
        yield Measurement(f"soc2d.committee.{part}", BOOK, says, value, "%")


def orders(by_noise: dict[str, float]) -> list[float]:
    """The logarithms with base 2 of what noise adds, over what half of it adds."""
    values = list(by_noise.values())
    added = [value - values[-1] for value in values[:-1]]
    return [math.log2(a / b) if a * b > 0 else 0.0 for a, b in pairwise(added)]


def _gate_measurements(e: Evidence) -> Iterator[Row]:
    says = "best plan of 200 steps by CasADi and IPOPT"
    yield Measurement("corridor.optimum", BOOK, says, e.optimum)
    yield Measurement(
        "corridor.at_once", BOOK, "shocks that throw the agents into each other, left out",
        100 * e.at_once, "%",
    )  # fmt: skip
    for part, says, unit in PARTS:
        values = [float(getattr(row, part)) for row in e.shocks]
        yield Measurement.over_seeds(f"corridor.{part}", BOOK, says, values, unit)
    for name, rows in e.named.items():
        for part, says in (("nearest", ""), ("filtered_nearest", ", with the filter")):
            values = [getattr(row, part) for row in rows]
            words = f"least distance after the {name} shock{says}"
            yield Measurement.over_seeds(f"corridor.shock.{name}.{part}", TCST, words, values, "")
    yield Measurement(
        "corridor.control_time",
        TCST,
        "one control, one thread; published on another machine",
        e.clock["feedback"],
        unit="ms",
        published=4.4,
    )
    yield Measurement(
        "corridor.plan_time", BOOK, "one plan of 50 steps", e.clock["plan"], unit="ms"
    )


PARTS = (
    ("plain", "collisions after 1,000 shocks, no filter", ""),
    ("filtered", "collisions after 1,000 shocks, filter", ""),
    ("nearest", "least distance after 1,000 shocks, filter", ""),
    ("median", "median over shocks of the cost above that of a new plan", "%"),
)


def box_table(e: Evidence) -> str:
    """The errors over the box, by where the starts are drawn."""
    names = ("mean", "median", "max", "target")
    lines = []
    for name, boxes in e.boxes.items():
        means = [fmean(getattr(box, part) for box in boxes) for part in names]
        lines.append(
            [name, str(len(boxes)), *(f"{m:.2g} %" if m < 10 else f"{m:.0f} %" for m in means)]
        )
    return columns(("starts", "seeds", "mean", "median", "largest", "at the target"), lines)


def ablation_table(e: Evidence) -> str:
    """The errors at three times, and the cost above the best, by the terms of the objective."""
    lines = []
    for label, found in e.ablation.items():
        means = [fmean(column) for column in zip(*found, strict=True)]
        errors = [f"{m:.2g} %" if m < 100 else f"{m:.0f} %" for m in means[:3]]
        lines.append([label, *errors, f"{100 * (means[3] / e.best['cost'] - 1):.2g} %"])
    return columns(("terms", "error at 0", "at 0.5", "at 0.9", "cost above the best"), lines)


def shock_table(e: Evidence) -> str:
    """What 1,000 shocks do, one line a network."""
    lines = []
    for k, row in enumerate(e.shocks):
        numbers = [f"{row.plain}", f"{row.filtered}", f"{row.nearest:.3f}", f"{row.filter:+.1f} %"]
        costs = [f"{row.gap:+.0f} %", f"{row.median:+.1f} %"]
        lines.append([f"seed {training.FIRST + k}", *numbers, *costs])
    head = ("network", "collisions", "with filter", "least distance", "filter costs")
    return columns((*head, "above plans: mean", "median"), lines)
