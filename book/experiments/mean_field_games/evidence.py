"""What the evidence on mean-field games rests on, and the rows that follow from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    below,
    below_control,
    finding,
    within,
)
from machinery.store import Run, Store

from . import references, timing, training
from .games import crossing_crowds, gaussian_solution, ring_to_gaussian
from .references import Least
from .training import (
    CHAPTER,
    CROSSING,
    DIMENSIONS,
    FREE,
    LAMBDA,
    SEEDS,
    SLOT,
    STRONG,
    TRANSPORTING,
    UNLABELLED,
    WALKING,
)

BOOK = "this book"
SLIDE = "slide OT-Flow as a mean-field game"
ABSTRACT = "Ruthotto et al. 2020, abstract"
SIGNIFICANCE = "Ruthotto et al. 2020, significance"
TWO, EIGHT, LBFGS = "Adam, 2 steps, none", "Adam, 8 steps, none", "L-BFGS, 2 steps, none"
WITH_TWO, WITH_LBFGS = "Adam, 2 steps, penalties", "L-BFGS, 2 steps, penalties"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    WITH_TWO: ("ring-d2", TRANSPORTING),
    TWO: ("ring-2-free", TRANSPORTING | FREE),
    EIGHT: ("ring-8-free", TRANSPORTING | FREE | {"times": 8}),
    WITH_LBFGS: ("ring-lbfgs", STRONG),
    LBFGS: ("ring-lbfgs-free", STRONG | FREE),
}
HOW = {"ring": TRANSPORTING, "crowd": WALKING}
MANY = (2, 100)  # the dimensions in which the ring has five seeds; else there are three
BOUND = {"ring": 5.0, "crowd": 1.0}  # percent above the least cost

Costs = dict[str, float]


class Gaussians(NamedTuple):
    """The games between Gaussians, by dimension: what is off, in percent, and their controls."""

    excess: dict[int, list[float]]
    detour: dict[int, float]
    potential: dict[int, list[float]]
    loose: dict[int, list[float]]


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    gaussians: Gaussians
    games: dict[str, dict[int, list[Costs]]]
    objectives: dict[str, dict[int, list[float]]]
    least: Least
    grids: dict[str, dict[str, Any]]
    rivals: dict[str, Costs]
    believed: dict[str, list[Costs]]
    true: dict[str, list[Costs]]
    slot: Costs
    slot_believed: float
    high: list[float]
    crossing: list[Costs]
    unlabelled: list[Costs]
    checks: dict[str, Any]
    many: timing.Times
    times: timing.Times
    automatic: dict[str, timing.Times]
    seed: int
    store: Store

    def excess(self, name: str, d: int) -> list[float]:
        """By how many percent the costs of a game exceed the least one."""
        return self.least.excess(name, d, [row["cost"] for row in self.games[name][d]])

    def chosen(self, name: str, *, believed: bool = False) -> list[float]:
        """The excess of the run with the lowest cost by a fine solve, one a dimension.

        With `believed` the run has the lowest objective, as its training saw it.
        """
        found = []
        for d in DIMENSIONS:
            costs = self.excess(name, d)
            k = lowest(self.objectives[name][d] if believed else costs)
            found.append(costs[k])
        return found

    def crossing_excess(self, cost: float) -> float:
        """The same for two crowds that cross."""
        return 100 * (cost / self.least.crossing - 1)


def seeds_of(store: Store, seed: int, count: int = 3) -> list[int]:
    """The seeds of trainings; one in smoke."""
    return [seed + s for s in SEEDS[: 1 if store.run == "smoke" else count]]


def count_of(name: str, d: int) -> int:
    """How many seeds a game in ℝᵈ has."""
    return 5 if name == "ring" and d in MANY else 3


def objective(model: training.Learned) -> float:
    """The mean of the objective over the last 20 steps of a training."""
    return float(model.history[-20:].sum(1).mean())


def believed_cost(model: training.Learned) -> float:
    """The mean cost over the last 20 steps of a training, as that saw it."""
    return float(model.history[-20:, :3].sum(1).mean())


def lowest(found: Sequence[float]) -> int:
    """The number of the lowest value."""
    return found.index(min(found))


def played(store: Store, name: str, d: int, seed: int = 0) -> list[training.Learned]:
    """The models of a game in ℝᵈ."""
    seeds, make = seeds_of(store, seed, count_of(name, d)), references.MAKE[name]
    return [training.fit(store, f"{name}-d{d}", make(d), s, HOW[name]) for s in seeds]


def judged(store: Store, name: str, d: int, seed: int = 0) -> list[Costs]:
    """The true costs of a game in ℝᵈ."""
    seeds = seeds_of(store, seed, count_of(name, d))
    pairs = zip(seeds, played(store, name, d, seed), strict=True)
    judge, make = partial(training.evaluate, store), references.MAKE[name]
    return [judge(f"{name}-d{d}-{s}", m, make, d, seed=seed) for s, m in pairs]


def ablated(store: Store, kind: str, seed: int = 0) -> list[training.Learned]:
    """The models of the ring in the plane that were trained in one way."""
    name, how = KINDS[kind]
    seeds = seeds_of(store, seed, 5)
    by: dict[str, Any] = {"lbfgs": kind.startswith("L")}
    return [training.fit(store, name, ring_to_gaussian(2), s, how, **by) for s in seeds]


def ablation(store: Store, seed: int = 0) -> tuple[dict[str, list[Costs]], dict[str, list[Costs]]]:
    """The costs by the steps of the training, and by a fine solve, for all kinds of training."""
    believed: dict[str, list[Costs]] = {kind: [] for kind in KINDS}
    true: dict[str, list[Costs]] = {kind: [] for kind in KINDS}
    for kind, (name, how) in KINDS.items():
        models = ablated(store, kind, seed)
        for s, model in zip(seeds_of(store, seed, 5), models, strict=True):
            judge = partial(training.evaluate, store, make=ring_to_gaussian, d=2, seed=seed)
            coarse = judge(f"{name}-{s}-coarse", model, steps=how["times"])
            believed[kind].append(coarse)
            true[kind].append(judge(f"{name}-{s}", model))
    return believed, true


def crossed(store: Store, seed: int = 0, *, label: bool = True) -> list[training.Learned]:
    """The models of two crowds that cross, or of the same game without labels."""
    how = CROSSING if label else UNLABELLED
    name, game = "crossing" if label else "crossing-unlabelled", crossing_crowds(how["label"])
    return [training.fit(store, name, game, s, how) for s in seeds_of(store, seed)]


def crossings(store: Store, seed: int = 0, *, label: bool = True) -> list[Costs]:
    """The true costs of two crowds that cross, and how many agents change the side."""
    name, game = ("crossing", crossing_crowds(5.0)) if label else ("unlabelled", crossing_crowds(0))
    models = crossed(store, seed, label=label)
    seeds = seeds_of(store, seed)
    judge = partial(training.sampled, store, game=game, seed=seed)
    return [judge(f"{name}-{s}", model=m) for s, m in zip(seeds, models, strict=True)]


def mistaken(store: Store, seed: int = 0) -> training.Learned:
    """The model of the ring whose training reads the wrong slot, of one seed."""
    wrong: Any = {"objective": training.wrong_slot}
    return training.fit(store, "ring-slot", ring_to_gaussian(2), seed + SEEDS[0], SLOT, **wrong)


def gaussians(store: Store, seed: int = 0) -> Gaussians:
    """The learned flows against the closed form."""
    found = Gaussians({}, {}, {}, {})
    for d in (2, 10):
        game = references.gaussian_game(d)
        exact, best = gaussian_solution(game), references.gaussian_best(store, d, seed=seed)
        found.detour[d] = 100 * (references.all_the_way(game) / exact.cost - 1)
        for errors in (found.excess, found.potential, found.loose):
            errors[d] = []
        for s in seeds_of(store, seed):
            model = training.fit(store, f"gaussian-d{d}", game, s, TRANSPORTING)
            make, name = references.gaussian_game, f"gaussian-d{d}-{s}"
            cost = training.evaluate(store, name, model, make, d, seed=seed)["cost"]
            found.excess[d].append(100 * (cost - best) / exact.cost)
            free = training.fit(store, f"gaussian-d{d}-free", game, s, TRANSPORTING | FREE)
            for errors, learned in ((found.potential, model), (found.loose, free)):
                phi = training.double(learned)
                errors[d].append(references.potential_error(phi, exact, game, seed))
    return found


def gather(run: Run, seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store = Store(CHAPTER, run)
    believed, true = ablation(store, seed)
    slot = mistaken(store, seed)
    ring = ablated(store, WITH_TWO, seed)[0]
    return Evidence(
        gaussians=gaussians(store, seed),
        games={
            name: {d: judged(store, name, d, seed) for d in DIMENSIONS} for name in references.MAKE
        },
        objectives={
            name: {
                d: [objective(model) for model in played(store, name, d, seed)] for d in DIMENSIONS
            }
            for name in references.MAKE
        },
        least=references.least(store),
        grids=references.grids(store),
        rivals=references.rivals(store),
        believed=believed,
        true=true,
        slot=training.evaluate(store, "ring-slot", slot, ring_to_gaussian, 2, seed=seed),
        slot_believed=believed_cost(slot),
        high=[believed_cost(model) for model in played(store, "ring", DIMENSIONS[-1], seed)],
        crossing=crossings(store, seed),
        unlabelled=crossings(store, seed, label=False),
        checks=references.checks(store, ring),
        many=timing.many_times(store),
        times=timing.step_times(store),
        automatic=timing.automatic_times(store),
        seed=seed,
        store=store,
    )


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_gaussian_rows(e),
        *_cost_rows(e),
        *_choice_rows(e),
        *_penalty_rows(e),
        *_step_rows(e),
        *_entropy_rows(e),
        *_crossing_rows(e),
        *_time_rows(e),
        *_other_rows(e),
    ]


def values(found: Sequence[Mapping[str, float]], term: str = "cost") -> list[float]:
    """A term of all seeds."""
    return [row[term] for row in found]


def _gaussian_rows(e: Evidence) -> Iterator[Row]:
    for d, excess in e.gaussians.excess.items():
        yield Claim(
            f"mfg.gaussian.excess.d{d}",
            "The gradient of a learned potential moves a crowd at the least cost: excess over the"
            f" closed form, d = {d}",
            SLIDE,
            ours=excess,
            criterion=below(1),
            control=Control("optimal transport all the way to the target", [e.gaussians.detour[d]]),
            unit="%",
        )
    for d, errors in e.gaussians.potential.items():
        yield Claim(
            f"mfg.gaussian.potential.d{d}",
            "The HJB equation with its terminal condition determines the potential, with its"
            f" constant: error of Φ(0, ·), d = {d}",
            SLIDE,
            ours=errors,
            criterion=below(5),
            control=Control("trained without the two penalties", e.gaussians.loose[d]),
            unit="%",
        )


SAYS = {
    "ring": "optimal transport from a ring to a Gaussian",
    "crowd": "motion of a crowd past a hill",
}
MOVES = {
    "ring": "the linear map for a Gaussian with the ring's covariance",
    "crowd": "straight lines through the hill",
}
IDS = {"ring": "ot", "crowd": "crowd"}


def _cost_rows(e: Evidence) -> Iterator[Row]:
    """The costs of the ring and of the crowd above the least ones."""
    for name, id in IDS.items():
        for d in DIMENSIONS:
            straight = e.rivals[f"{name} straight"]["cost"]
            if name == "crowd":
                straight += (d - 2) * e.least.resting
            in_plane = "mfg.eulerian_gap" + (".ot" if name == "ring" else "")
            agrees = (
                f"The learned costs agree with those of an Eulerian solver: {SAYS[name]}, d = 2"
            )
            yield Claim(
                in_plane if d == 2 else f"mfg.{id}.excess.d{d}",
                agrees if d == 2 else f"The method solves {SAYS[name]} in d = {d}: excess of cost",
                ABSTRACT,
                ours=e.excess(name, d),
                criterion=below(BOUND[name]),
                control=Control(MOVES[name], e.least.excess(name, d, [straight])),
                unit="%",
            )


def _choice_rows(e: Evidence) -> Iterator[Row]:
    """The runs that were chosen among several, and what the ring costs."""
    how = {
        "chosen": (False, "cost by a fine solve"),
        "believed": (True, "objective as the training saw it"),
    }
    for name, id in IDS.items():
        plane = e.rivals[f"{name} straight"]["cost"]
        for rule, (believed, by) in how.items():
            yield finding(
                f"mfg.{id}.{rule}",
                f"Of several runs, the one with the lowest {by} solves the game: {SAYS[name]},"
                " excess of cost, one value for each of four dimensions",
                ours=e.chosen(name, believed=believed),
                criterion=below(BOUND[name]),
                control=Control(MOVES[name], e.least.excess(name, 2, [plane])),
                unit="%",
            )
    for d in DIMENSIONS:
        yield Measurement.over_seeds(
            f"mfg.ot.transport_cost.d{d}",
            BOOK,
            f"two steps move a ring to a Gaussian; transport cost, d = {d}",
            values(e.games["ring"][d], "transport"),
            "",
        )


def _penalty_rows(e: Evidence) -> Iterator[Row]:
    says = "Penalties of the HJB equation increase the accuracy of two time steps: true cost, {}"
    for id, ours, control in (("", WITH_LBFGS, LBFGS), (".adam", WITH_TWO, TWO)):
        name = ours.split(",")[0]
        yield Claim(
            f"mfg.ot.penalties{id or '.lbfgs'}",
            says.format(name),
            SIGNIFICANCE,
            ours=values(e.true[ours]),
            criterion=below_control(),
            control=Control("trained without penalties", values(e.true[control])),
        )
        gain = [b - a for a, b in zip(values(e.true[ours]), values(e.true[control]), strict=True)]
        yield Measurement.over_seeds(
            f"mfg.ot.hjb_gain{id}", BOOK, f"true cost that the penalties save, {name}", gain, ""
        )


def _step_rows(e: Evidence) -> Iterator[Row]:
    """What penalties do to the work, to the residual, and to what a training believes."""

    def over_eight(kind: str) -> list[float]:
        pairs = zip(values(e.true[kind]), values(e.true[EIGHT]), strict=True)
        return [100 * (a / b - 1) for a, b in pairs]

    yield Claim(
        "mfg.ot.two_steps",
        "Penalties of the HJB equation save work: the cost of two steps over that of eight without"
        " penalties",
        SIGNIFICANCE,
        ours=over_eight(WITH_TWO),
        criterion=within(-1, 1),
        control=Control("two steps without penalties", over_eight(TWO)),
        unit="%",
    )
    yield Claim(
        "mfg.ot.residual",
        "Penalising the HJB equation enforces it: mean residual along the paths, Adam, two steps",
        ABSTRACT,
        ours=values(e.true[WITH_TWO], "hjb"),
        criterion=below_control(),
        control=Control("trained without penalties", values(e.true[TWO], "hjb")),
    )
    yield finding(
        "mfg.ot.impossible",
        "Without penalties L-BFGS believes in a cost that no flow can have: believed less least",
        ours=[cost - e.least.ring for cost in values(e.believed[LBFGS])],
        criterion=below(0),
        control=Control(
            "with penalties", [cost - e.least.ring for cost in values(e.believed[WITH_LBFGS])]
        ),
    )


def _entropy_rows(e: Evidence) -> Iterator[Row]:
    """The relative entropies at the end."""
    standing = e.rivals["crowd standing"]["terminal"] / LAMBDA["crowd"]
    for d in DIMENSIONS:
        yield finding(
            f"mfg.crowd.kl.d{d}",
            f"The relative entropy of the crowd falls to a hundredth of its first 60 nats, d = {d}",
            ours=[end / LAMBDA["crowd"] for end in values(e.games["crowd"][d], "terminal")],
            criterion=below(0.6),
            control=Control("the crowd that stands still", [standing]),
            unit="nats",
        )
    yield finding(
        "mfg.ot.kl",
        "With the log-determinant in its place the relative entropy of the ring falls below half"
        " a nat",
        ours=[end / LAMBDA["ring"] for end in values(e.true[WITH_TWO], "terminal")],
        criterion=below(0.5),
        control=Control(
            "transport cost in its place, one seed", [e.slot["terminal"] / LAMBDA["ring"]]
        ),
        unit="nats",
    )


def _crossing_rows(e: Evidence) -> Iterator[Row]:
    straight = e.rivals["lone straight"]["cost"] - e.least.lone + e.least.crossing
    yield finding(
        "mfg.crossing.excess",
        "Three lines solve a new game, two crowds that cross: cost above that of grids",
        ours=[e.crossing_excess(cost) for cost in values(e.crossing)],
        criterion=below(BOUND["crowd"]),
        control=Control("straight lines through the hill", [e.crossing_excess(straight)]),
        unit="%",
    )
    yield finding(
        "mfg.crossing.moved",
        "With a label for each crowd, the agents change sides",
        ours=values(e.crossing, "moved"),
        criterion=above(99),
        control=Control("the same game without labels", values(e.unlabelled, "moved")),
        unit="%",
    )
    yield Measurement.over_seeds(
        "mfg.crossing.kl",
        BOOK,
        "relative entropy at the end of two crowds that cross",
        [end / 5 for end in values(e.crossing, "terminal")],
        "nats",
    )


def _time_rows(e: Evidence) -> Iterator[Row]:
    def growth(times: timing.Times, d: int) -> list[float]:
        return [b / a for a, b in zip(times[2], times[d], strict=True)]

    yield finding(
        "mfg.step_time.closed",
        "The closed-form Laplacian grows less with d than automatic differentiation: time of a"
        " step, d = 100 over d = 2",
        ours=growth(e.automatic["closed"], 100),
        criterion=below_control(),
        control=Control("automatic differentiation", growth(e.automatic["automatic"], 100)),
        unit="times",
    )
    for times, d in ((e.times, 100), (e.many, 1000)):
        says = f"time of a step, d = {d} over d = 2"
        yield Measurement.over_seeds(f"mfg.step_time.d{d}", BOOK, says, growth(times, d), "times")


def _other_rows(e: Evidence) -> Iterator[Row]:
    for nodes, (m, apart) in zip((41, 81, 121), e.checks["misplaced"].items(), strict=False):
        yield Measurement(
            f"mfg.density.n{nodes}",
            BOOK,
            f"mass that finite volumes with {m}² nodes put elsewhere than characteristics, t = 1/2",
            100 * apart,
            "%",
        )
    yield Measurement.over_seeds(
        "mfg.ot.assignment",
        BOOK,
        "½W₂² of the ring by assignments of 1,000 samples",
        e.checks["assigned"],
        "",
    )
    says = "½W₂² of the ring: transport cost on a grid, λ = 250"
    yield Measurement("mfg.ot.strict", BOOK, says, e.checks["strict"])
    yield Measurement(
        "mfg.slot.believed", BOOK, "cost believed with the wrong slot, one seed", e.slot_believed
    )
    says = "true cost with the wrong slot, one seed"
    yield Measurement("mfg.slot.true", BOOK, says, e.slot["cost"])


# tables -----------------------------------------------------------------------------------------


def cost_table(e: Evidence, name: str) -> str:
    """The costs of a game with their parts, and the least ones in the plane, as Markdown."""
    lines = ["| d | seeds | cost | transport | on the way | end | HJB residual | terminal gap |"]
    lines.append("|---:|" + "---:|" * 7)
    for d, found in e.games[name].items():
        terms = ("cost", "transport", "interaction", "terminal", "hjb", "terminal condition")
        cells = [f"{fmean(values(found, term)):.2f}" for term in terms]
        lines.append(f"| {d} | {len(found)} | " + " | ".join(cells) + " |")
    for kind in ("straight", "standing"):
        row = e.rivals[f"{name} {kind}"]
        cells = [f"{row[term]:.2f}" for term in ("cost", "transport", "interaction", "terminal")]
        lines.append(f"| 2 | {kind} | " + " | ".join(cells) + " | | |")
    return "\n".join(lines)


def grid_table(e: Evidence) -> str:
    """The costs of both games on grids as Markdown."""
    lines = ["| game | ε | cost | transport | end |", "|---|---:|---:|---:|---:|"]
    for name, found in e.grids.items():
        for epsilon, parts in found["costs"].items():
            cells = " | ".join(f"{part:.3f}" for part in parts)
            lines.append(f"| {name} | {epsilon} | {cells} |")
        lines.append(f"| {name} | → 0 | {found['limit']:.3f} | | |")
    return "\n".join(lines)


def excess_table(e: Evidence) -> str:
    """By how many percent each run exceeds the least cost, as Markdown."""
    lines = ["| game | d | excess of each seed (%) |", "|---|---:|---|"]
    for name in references.MAKE:
        for d in DIMENSIONS:
            cells = ", ".join(f"{value:.2f}" for value in e.excess(name, d))
            lines.append(f"| {name} | {d} | {cells} |")
    cells = ", ".join(f"{e.crossing_excess(cost):.2f}" for cost in values(e.crossing))
    return "\n".join([*lines, f"| crossing | 3 | {cells} |"])


def ablation_table(e: Evidence) -> str:
    """What the trainings from the ring believe and what is true, as Markdown."""
    lines = ["| training | believed cost | true cost |", "|---|---|---|"]
    for kind in KINDS:
        cells = (
            ", ".join(f"{cost:.2f}" for cost in values(found[kind]))
            for found in (e.believed, e.true)
        )
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def high_table(e: Evidence) -> str:
    """What the trainings of the ring in the highest dimension believe, and what is true."""
    d = DIMENSIONS[-1]
    lines = [f"| ring, d = {d} | cost of each seed |", "|---|---|"]
    for what, costs in (("believed", e.high), ("true", values(e.games["ring"][d]))):
        lines.append(f"| {what} | " + ", ".join(f"{cost:.2f}" for cost in costs) + " |")
    return "\n".join(lines)


def time_table(e: Evidence) -> str:
    """Weights and milliseconds of a step by dimension, and the nodes of a grid, as Markdown."""
    lines = ["| d | weights | ms a step | nodes of a grid, 32 an axis |", "|---:|---:|---:|---:|"]
    for d, times in e.many.items():
        weights = sum(p.numel() for p in training.Learned(d, 16, 1, 0).phi.parameters())
        exponent = f"$32^{{{d}}}$"
        lines.append(f"| {d} | {weights:,} | {min(times):.0f} | {exponent} |")
    return "\n".join(lines)
