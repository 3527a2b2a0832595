"""What the evidence on quadcopters rests on, and the rows that follow from it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    below,
    below_control,
    columns,
    finding,
    line_of,
)
from machinery.store import Run, Store

from . import contests, plans, training, values
from .contests import (
    BLEND,
    BOUNDED,
    DETERMINISTIC,
    FLAT,
    LINEAR,
    MEAN,
    MPC,
    OPEN,
    SHARE,
    STOCHASTIC,
    SUM,
)
from .flights import DISTURBANCES, FIRST, SIGMAS, Costs, name_of
from .training import CHAPTER

BOOK, SLIDE = "this book", "slide Neural SOC, quadcopters"
SIAM = "Li et al. 2024, public weights"
LOST = 10_000.0  # four to five times the cost of the best plan without wind
SLUGS = {STOCHASTIC: "stochastic", LINEAR: "linear", MPC: "mpc", OPEN: "openloop"}
SLUGS |= {DETERMINISTIC: "deterministic", BLEND: "blend"}
PUBLISHED = {
    STOCHASTIC: {
        **{"0 100": 2590, "0.1 100": 2766, "0.2 50": 5454, "0.2 100": 3338, "0.2 200": 3344},
        **{"0.4 100": 10_385},
    },
    DETERMINISTIC: {
        **{"0 100": 3774, "0.1 100": 5143, "0.2 50": 15_845, "0.2 100": 10_149},
        **{"0.2 200": 9587, "0.4 100": 34_508},
    },
}
FROM_STARTS = {STOCHASTIC: 3614, DETERMINISTIC: 24_944}


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter."""

    winds: dict[str, list[Costs]]
    disturbed: dict[str, list[Costs]]
    first: dict[str, dict[str, float]]  # mean and deviation of 64 flights of MPC
    anew: list[float]
    scores: dict[str, dict[str, float]]
    heights: list[values.Heights]
    quadratic: list[float]  # errors of the quadratic form as a forecast, one a network
    clock: dict[str, float]
    seconds: list[float]  # of the trainings
    store: Store

    @property
    def seeds(self) -> int:
        """The number of networks of a kind."""
        return len(self.winds[STOCHASTIC])

    def has(self, condition: str, name: str = STOCHASTIC) -> bool:
        """Whether a controller has flown under this condition; a trial run makes few flights."""
        return condition in self.winds[name][0]


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store = Store(CHAPTER, run)
    kinds = {STOCHASTIC: "stochastic", DETERMINISTIC: "deterministic", FLAT: "flat"}
    nets = {name: training.trained(store, kind, seed) for name, kind in kinds.items()}
    held = contests.held(store, nets)
    heights = [values.heights(store, f) for f in nets[STOCHASTIC]]
    x, forecast = values.places(heights[0]), values.quadratic_value
    return Evidence(
        winds=held.winds,
        disturbed=held.disturbed,
        first=held.first,
        anew=held.anew,
        scores=held.scores,
        heights=heights,
        quadratic=[values.Heights(forecast(x), h.paid).error for h in heights],
        clock=values.clock(store, nets[STOCHASTIC][0]),
        seconds=[f.record.seconds for row in nets.values() for f in row],
        store=store,
    )


# --- means, and what may be compared ------------------------------------------------------------


def pooled(tables: Sequence[Costs], condition: str) -> float:
    """The mean cost over flights and seeds."""
    return fmean(fmean(table[condition]) for table in tables)


def by_thirds(
    tables: Sequence[Costs], condition: str, seeds: int, flights: int | None = None
) -> list[float]:
    """The mean cost for each seed on flights of its own, so that seeds and winds both differ.

    Of three seeds each has every third flight. A controller without seeds flies the same ones.
    """
    of = lambda i: tables[i % len(tables)][condition][:flights]  # noqa: E731
    return [fmean(of(i)[i::seeds]) for i in range(seeds)]


def percent_lost(tables: Sequence[Costs], condition: str, seeds: int) -> list[float]:
    """The percentage of flights that cost more than `LOST`, by thirds."""
    lost = [{condition: [100.0 * (cost > LOST) for cost in t[condition]]} for t in tables]
    return by_thirds(lost, condition, seeds)


def gaps(e: Evidence, name: str, condition: str) -> list[float]:
    """How many percent more than model predictive control is paid on the same flights."""
    flights = len(e.winds[MPC][0][condition])
    mean = lambda who: by_thirds(e.winds[who], condition, e.seeds, flights)  # noqa: E731
    return [100 * (a / b - 1) for a, b in zip(mean(name), mean(MPC), strict=True)]


@dataclass(frozen=True)
class Difference:
    """A mean difference of costs on the same flights, its standard error over flights, and the
    standard deviation over seeds."""

    mean: float
    error: float
    seeds: float


def difference(ours: Sequence[Costs], theirs: Sequence[Costs], condition: str) -> Difference:
    """What ours costs more than theirs, on the flights that both have made."""
    n = min(len(table[condition]) for table in (*ours, *theirs))
    mean = lambda tables: [fmean(row) for row in zip(*(t[condition][:n] for t in tables))]  # noqa: B905, E731
    apart = [a - b for a, b in zip(mean(ours), mean(theirs), strict=True)]
    each = [fmean(table[condition][:n]) for table in ours]
    spread = stdev(each) if len(each) > 1 else 0.0
    error = stdev(apart) / math.sqrt(n) if n > 1 else 0.0
    return Difference(fmean(apart), error, spread)


# --- rows ---------------------------------------------------------------------------------------


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_slide_rows(e),
        *_linear_rows(e),
        *_gap_rows(e),
        *_first_rows(e),
        *_step_rows(e),
        *_disturbance_rows(e),
        *_blend_rows(e),
        *_value_rows(e),
        *_cost_rows(e),
        *_other_rows(e),
    ]


def _id(what: str, sigma: float, steps: int) -> str:
    return f"quad.{what}.sigma{round(10 * sigma):02d}.nt{steps}"


def _slide_rows(e: Evidence) -> Iterator[Row]:
    for steps in plans.STEPS:
        if not e.has(at := name_of(0.2, steps)):
            continue
        is_theirs = steps == 200  # the table of the paper
        yield Claim(
            f"quad.beats_deterministic.nt{steps}",
            "A network trained with noise flies cheaper in the wind than one trained without: "
            f"mean cost at σ = 0.2, {steps} steps",
            f"{SLIDE}; {SIAM}" if is_theirs else BOOK,
            kind="claim" if is_theirs else "finding",
            ours=by_thirds(e.winds[STOCHASTIC], at, e.seeds),
            criterion=below_control(),
            control=Control(
                "the same network, starts and seeds without noise",
                by_thirds(e.winds[DETERMINISTIC], at, e.seeds),
            ),
            published=PUBLISHED[STOCHASTIC][at],
        )
    at = "0.2 100" if e.has("0.2 100") else "0.2 50"
    yield Claim(
        "quad.robust.sigma02",
        f"It is robust: at σ = 0.2 less than 1 % of its flights cost more than {LOST:,.0f}",
        SLIDE,
        ours=percent_lost(e.winds[STOCHASTIC], at, e.seeds),
        criterion=below(1),
        control=Control(
            "the same network, starts and seeds without noise",
            percent_lost(e.winds[DETERMINISTIC], at, e.seeds),
        ),
        unit="%",
    )


def _linear_rows(e: Evidence) -> Iterator[Row]:
    """The network against a rival that needs neither noise nor training."""
    for sigma, rival in ((0.2, LINEAR), (0.4, BOUNDED)):
        for steps in plans.STEPS:
            if not e.has(at := name_of(sigma, steps)):
                continue
            yield finding(
                _id("beats_linear", sigma, steps),
                "The network beats the linear feedback along the best plan without wind: "
                f"mean cost at σ = {sigma:g}, {steps} steps",
                ours=by_thirds(e.winds[STOCHASTIC], at, e.seeds),
                criterion=below_control(),
                control=Control(rival, by_thirds(e.winds[rival], at, e.seeds)),
            )
    at = "0.2 100" if e.has("0.2 100") else "0.2 50"
    yield finding(
        "quad.linear.robust",
        f"Without any noise in its design, the linear feedback is as robust: at σ = 0.2 less than "
        f"1 % of its flights cost more than {LOST:,.0f}",
        ours=percent_lost(e.winds[LINEAR], at, e.seeds),
        criterion=below(1),
        control=Control(OPEN, percent_lost(e.winds[OPEN], at, e.seeds)),
        unit="%",
    )


def _gap_rows(e: Evidence) -> Iterator[Row]:
    for sigma, bound, rival in ((0.2, 1.0, LINEAR), (0.4, 0.0, BOUNDED)):
        says = "less than 1 % more than" if bound else "less than"
        for steps in plans.STEPS:
            if not e.has(at := name_of(sigma, steps), MPC):
                continue
            yield finding(
                _id("gap_to_mpc", sigma, steps),
                f"At σ = {sigma:g} with {steps} steps the network pays {says} model predictive "
                f"control, on the same {len(e.winds[MPC][0][at])} flights",
                ours=gaps(e, STOCHASTIC, at),
                criterion=below(bound),
                control=Control(rival, gaps(e, rival, at)),
                unit="%",
            )


def _first_rows(e: Evidence) -> Iterator[Row]:
    """What is known of MPC by its mean alone, over the first 64 flights."""
    for sigma, steps in ((0.1, 100), (0.2, 200)):
        if (at := name_of(sigma, steps)) not in e.first:
            continue
        mpc, where = e.first[at], f"σ = {sigma:g}, {steps} steps"
        says = f"mean cost at {where}, MPC ({FIRST} flights, ± standard error)"
        error = mpc["std"] / math.sqrt(FIRST - 1)
        yield Measurement(_id("mpc.cost", sigma, steps), BOOK, says, mpc["mean"], spread=error)
        for name, what in ((STOCHASTIC, ""), (LINEAR, "linear."), (BLEND, "blend.")):
            paid = [100 * (fmean(t[at][:FIRST]) / mpc["mean"] - 1) for t in e.winds[name]]
            says = f"{where}: what is paid more than MPC on the same {FIRST} flights, {name}"
            yield Measurement.over_seeds(_id(f"{what}gap_to_mpc", sigma, steps), BOOK, says, paid)


def _step_rows(e: Evidence) -> Iterator[Row]:
    if e.has("0.2 200"):
        finer = lambda name: [  # noqa: E731
            a - b
            for a, b in zip(
                by_thirds(e.winds[name], "0.2 200", e.seeds),
                by_thirds(e.winds[name], "0.2 100", e.seeds),
                strict=True,
            )
        ]
        yield finding(
            "quad.finer_steps",
            "The network, trained with 100 steps, gets worse with 200, in the same wind: what they "
            "cost more",
            ours=finer(STOCHASTIC),
            criterion=above(0),
            control=Control(LINEAR, finer(LINEAR)),
        )
    at = "0.2 100"
    if not e.has(at):
        return
    few = len(e.winds[FLAT])
    yield finding(
        "quad.even_clock",
        "A clock that speeds up towards the end is worth it: mean cost at σ = 0.2, 100 steps",
        ours=by_thirds(e.winds[STOCHASTIC][:few], at, few),
        criterion=below_control(),
        control=Control(
            "the same network and seeds on an even clock", by_thirds(e.winds[FLAT], at, few)
        ),
    )


DISTURBED = {
    "gust": "a gust of the strength of gravity for a fifth of the time",
    "mass": "a mass that is 20 % larger",
    "rotor": "one rotor with 15 % less thrust",
}


def _disturbance_rows(e: Evidence) -> Iterator[Row]:
    for name, says in DISTURBED.items():
        yield finding(
            f"quad.disturbed.{name}",
            f"The network copes better than linear feedback with {says}, of which neither was "
            "told: mean cost",
            ours=by_thirds(e.disturbed[STOCHASTIC], name, e.seeds),
            criterion=below_control(),
            control=Control(LINEAR, by_thirds(e.disturbed[LINEAR], name, e.seeds)),
        )
    anew = [{"starts": e.anew}]
    for id, rival, theirs in (
        ("quad.disturbed.starts", "linear feedback along the plan of one start", None),
        ("quad.disturbed.own_plan", "linear feedback along a new plan for each start", anew),
    ):
        flights = len(e.anew) if theirs else None
        yield finding(
            id,
            "The network flies cheaper from random starts than " + rival,
            ours=by_thirds(e.disturbed[STOCHASTIC], "starts", e.seeds, flights),
            criterion=below_control(),
            control=Control(
                rival, by_thirds(theirs or e.disturbed[LINEAR], "starts", e.seeds, flights)
            ),
        )


def _blend_rows(e: Evidence) -> Iterator[Row]:
    """Linear feedback near the plan and the network far away, against the better of the two."""
    for sigma, rival in ((0.2, LINEAR), (0.4, BOUNDED)):
        for steps in plans.STEPS:
            if not e.has(at := name_of(sigma, steps)):
                continue
            either = {n: by_thirds(e.winds[n], at, e.seeds) for n in (STOCHASTIC, rival)}
            best = min(either, key=lambda n: fmean(either[n]))
            yield finding(
                _id("blend.beats_both", sigma, steps),
                "Linear feedback near the plan and the network far from it beat both, without more "
                f"training: mean cost at σ = {sigma:g}, {steps} steps",
                ours=by_thirds(e.winds[BLEND], at, e.seeds),
                criterion=below_control(),
                control=Control(f"the better one, {best}", either[best]),
            )
            if e.has(at, MPC):
                says = f"σ = {sigma:g}, {steps} steps: what the blend pays more than MPC"
                id, pair = _id("blend.gap_to_mpc", sigma, steps), gaps(e, BLEND, at)
                yield Measurement.over_seeds(id, BOOK, says, pair)
    if e.has("0.2 100"):
        yield finding(
            "quad.sum_of_values",
            "The feedback of a weighted mean of Φ and the quadratic form along the plan beats that "
            "of Φ: mean cost at σ = 0.2, 100 steps",
            ours=by_thirds(e.winds[SUM], "0.2 100", e.seeds),
            criterion=below_control(),
            control=Control(STOCHASTIC, by_thirds(e.winds[STOCHASTIC], "0.2 100", e.seeds)),
        )


def _value_rows(e: Evidence) -> Iterator[Row]:
    yield finding(
        "quad.value.error",
        "Φ knows what it will pay from random starts: mean relative error of Φ(0, x)",
        ours=[h.error for h in e.heights],
        criterion=below_control(),
        control=Control("the best constant", [h.constant for h in e.heights]),
        unit="%",
    )
    yield finding(
        "quad.value.beats_quadratic",
        "Φ(0, x) forecasts these costs better than the quadratic form along the one best plan",
        ours=[h.error for h in e.heights],
        criterion=below_control(),
        control=Control("the quadratic form, with the cost of the wind", e.quadratic),
        unit="%",
    )
    says = "correlation of Φ(0, x) with what is paid from x, over 60 starts"
    cor = [h.correlation for h in e.heights]
    yield Measurement.over_seeds("quad.value.correlation", BOOK, says, cor, "")


def _cost_rows(e: Evidence) -> Iterator[Row]:
    for name, slug in SLUGS.items():
        tables, published = e.winds[name], PUBLISHED.get(name, {})
        for sigma in SIGMAS:
            for steps in plans.STEPS:
                at = name_of(sigma, steps)
                if at not in tables[0]:
                    continue
                says = f"mean cost at σ = {sigma:g}, {steps} steps, {name}"
                source = SIAM if at in published else BOOK
                more = {"unit": "", "published": published.get(at)}
                yield _mean_row(_id(f"{slug}.cost", sigma, steps), source, says, tables, at, more)
    for name, number in FROM_STARTS.items():
        says, more = f"mean cost from random starts, {name}", {"unit": "", "published": number}
        id, tables = f"quad.{SLUGS[name]}.cost.starts", e.disturbed[name]
        yield _mean_row(id, SIAM, says, tables, "starts", more)


def _mean_row(
    id: str, source: str, says: str, tables: Sequence[Costs], at: str, more: dict
) -> Measurement:
    """The mean with its spread over seeds, or its standard error over flights."""
    if len(tables) > 1:
        return Measurement.over_seeds(id, source, says, [fmean(t[at]) for t in tables], **more)
    costs = tables[0][at]
    error = stdev(costs) / math.sqrt(len(costs)) if len(costs) > 1 else None
    says += f" ({len(costs)} flights, ± standard error)" if error else ""
    return Measurement(id, source, says, fmean(costs), spread=error, **more)


def _other_rows(e: Evidence) -> Iterator[Row]:
    for steps in plans.STEPS:
        says = f"cost of the best plan without wind, {steps} steps"
        yield Measurement(f"quad.plan.nt{steps}", BOOK, says, plans.best(steps).cost)
    says = "cost of the local optimum from the straight line, 100 steps"
    yield Measurement("quad.plan.trapped", BOOK, says, plans.trapped().cost)
    for kind, spent in e.clock.items():
        says = f"one control, one thread: {kind}"
        yield Measurement(f"quad.{kind}.control_time", BOOK, says, spent, unit="ms")
    says = "a training, mean of all"
    yield Measurement("quad.training_time", BOOK, says, fmean(e.seconds), unit="s")


# --- tables -------------------------------------------------------------------------------------


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) < 1e5 else "over 10⁵"


def cost_table(e: Evidence, sigma: float) -> str:
    """Mean and median costs, and lost flights, of all controllers in one strength of wind."""
    steps = [n for n in plans.STEPS if e.has(name_of(sigma, n))]
    heads = [f"{n} steps: mean" for n in steps] + [f"{n}: median" for n in steps]
    lines = []
    for name in (STOCHASTIC, MEAN, DETERMINISTIC, OPEN, LINEAR, BOUNDED, SHARE, BLEND, MPC):
        tables, cells = e.winds[name], []
        for mean in (fmean, median):
            for n in steps:
                at = name_of(sigma, n)
                has = at in tables[0]
                cells.append(_short(fmean(mean(t[at]) for t in tables)) if has else "–")
        lines.append([name, *cells])
    return columns((f"σ = {sigma:g}", *heads), lines)


def difference_table(e: Evidence) -> str:
    """What network and blend cost more than their rivals, flight by flight."""
    head = line_of("σ, steps", "ours", "rival", "flights", "difference", "± flights", "± seeds")
    lines = [head, "|---|---|---|---:|---:|---:|---:|"]
    for sigma, rival in ((0.2, LINEAR), (0.4, BOUNDED)):
        for steps in plans.STEPS:
            if not e.has(at := name_of(sigma, steps)):
                continue
            for ours in (STOCHASTIC, BLEND):
                for other in [rival, *([MPC] if e.has(at, MPC) else [])]:
                    d = difference(e.winds[ours], e.winds[other], at)
                    n = min(len(t[at]) for t in (*e.winds[ours], *e.winds[other]))
                    cells = (f"{x:,.0f}" for x in (d.mean, d.error, d.seeds))
                    lines.append(line_of(f"{sigma:g}, {steps}", ours, other, f"{n}", *cells))
    return "\n".join(lines)


def disturbance_table(e: Evidence) -> str:
    """Mean costs with each disturbance, at σ = 0.2 with 100 steps."""
    lines = []
    for name, tables in e.disturbed.items():
        has = [at in tables[0] for at in DISTURBANCES]
        cells = [
            _short(pooled(tables, at)) if there else "–"
            for at, there in zip(DISTURBANCES, has, strict=True)
        ]
        lines.append([name, *cells])
    lines.append(["linear feedback, own plan", *["–"] * 4, _short(fmean(e.anew))])
    return columns(("", *DISTURBANCES), lines)


def lost_table(e: Evidence) -> str:
    """The percentage of lost flights, by controller and wind, with 100 steps."""
    winds = [s for s in SIGMAS[1:] if e.has(name_of(s, 100))]
    lines = []
    for name in (STOCHASTIC, DETERMINISTIC, OPEN, LINEAR, BOUNDED, BLEND, MPC):
        tables, cells = e.winds[name], []
        for sigma in winds:
            at = name_of(sigma, 100)
            has = at in tables[0]
            share = fmean(percent_lost(tables, at, len(tables))) if has else 0.0
            cells.append(f"{share:.1f} %" if has else "–")
        lines.append([name, *cells])
    return columns(("lost flights, 100 steps", *(f"σ = {s:g}" for s in winds)), lines)


def choice_table(e: Evidence) -> str:
    """What was tried to choose the numbers of blends."""
    says = {
        "blend": "blend, by radius",
        "share": "mean of controls, by share of the network",
        "sum": "mean of values, by weight of Φ",
        "bound": "bounded linear feedback, by bound",
    }
    lines = [line_of("", "candidates: geometric mean cost"), "|---|---|"]
    for name, text in says.items():
        found = (f"{k}: {_short(math.exp(v))}" for k, v in e.scores[name].items())
        lines.append(line_of(text, ", ".join(found)))
    return "\n".join(lines)
