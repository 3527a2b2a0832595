"""What the evidence on OT-Flow rests on, gathered by one call, and the rows that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.problems.densities import TOYS
from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    below,
    below_control,
    finding,
)
from machinery.seeds import seeded
from machinery.store import Run, Store, device_of

from . import densities, helped, images, race, steps, tabular

CHAPTER = "07_ot_flow"
BOOK = "this book"
GAUSSIAN = "a Gaussian with the mean and covariance of the data"
PAPER = "Onken et al. 2021, abstract"
HARD = ("checkerboard", "2spirals")
OTHERWISE = {"fixed": "twelve solver steps for each batch", "stronger": "α = 100"}
WITHIN = 0.05  # nats above the entropy: as close as a density has to be learned


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    gaps: list[densities.Gap]
    gaussian: dict[str, list[float]]
    beliefs: list[densities.Belief]
    inside: list[float]
    by_steps: dict[str, list[steps.BySteps]]
    ablation: dict[str, list[steps.Row]]
    tried: helped.Curves
    started: helped.Curves
    raced: dict[str, list[race.Finish]]
    searched: dict[str, dict[str, list[float]]]
    clock: dict[str, list[float]]
    trace: dict[str, dict[str, float]]
    tables: tabular.Found
    latent: dict[str, float]
    apart: dict[str, float]
    store: Store

    def gap_of(self, name: str) -> list[float]:
        """The gaps of one density."""
        return [row.gap for row in self.gaps if row.density == name]

    def ratio(self, over: str, under: str) -> list[float]:
        """How many times longer one timed computation takes than another."""
        return [a / b for a, b in zip(self.clock[over], self.clock[under], strict=True)]

    @property
    def seconds(self) -> dict[str, list[float]]:
        """The seconds of training to the goal."""
        return {name: [f.seconds for f in found] for name, found in self.raced.items()}

    @property
    def bends(self) -> dict[str, list[float]]:
        """The extra length of paths at equal likelihood, in percent."""
        return {name: [100 * f.bend for f in found] for name, found in self.raced.items()}

    @property
    def detours(self) -> dict[str, list[float]]:
        """The extra transport cost at equal likelihood, in percent."""
        return {name: [100 * f.detour for f in found] for name, found in self.raced.items()}

    @property
    def evaluations(self) -> dict[str, list[float]]:
        """The evaluations of an adaptive solver at equal likelihood."""
        return {name: [float(f.evaluations) for f in v] for name, v in self.raced.items()}


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says."""
    store, device = Store(CHAPTER, run), device_of(device)
    few = 1 if run == "smoke" else None
    others = [seed + s for s in steps.SEEDS[:few]]
    points = 200 if run == "smoke" else densities.POINTS
    racing = [seed + s for s in race.SEEDS[: 1 if run == "smoke" else None]]
    x = densities.held_out(race.DENSITY, points)[:1000]
    compared = {
        name: [race.compete(store, name, s)[0] for s in racing[:3]] for name in race.COMPARED
    }
    found = images.latent(store, seed)
    return Evidence(
        gaps=densities.gaps(store, seed, few, points, device),
        gaussian={
            name: gaussian_gaps(
                TOYS[name], densities.held_out(name, points), densities.seeds_of(name, seed, few)
            )
            for name in TOYS
        },
        beliefs=beliefs(store, seed, few, points, device),
        inside=densities.inside(store, seed, few, device),
        by_steps={name: steps.by_steps(flows, x) for name, flows in compared.items()},
        ablation=steps.ablation(store, others, device),
        tried=helped.helped(store),
        started=helped.starts(store, [seed + s for s in densities.SEEDS[:few]]),
        raced=race.race(store, racing),
        searched={name: race.searched(store, name).numbers for name in race.ENTRANTS},
        clock=race.clocks(store, racing).numbers,
        trace=steps.trace_costs(store, seed).numbers,
        tables=tabular.records(store, others),
        latent=images.distances(found),
        apart=images.told_apart(store, found),
        store=store,
    )


def beliefs(
    store: Store, seed: int, few: int | None, points: int, device: str
) -> list[densities.Belief]:
    """What the trainings of the two hard densities believed at their end, and what is true."""
    cases = [(name, "", densities.seeds_of(name, seed, few)) for name in HARD]
    cases[1:1] = [
        (HARD[0], variant, [seed + s for s in seeds[:few]])
        for variant, seeds in densities.VARIANT_SEEDS.items()
    ]
    keys = [densities.settings(name, **densities.VARIANTS[variant]) for name, variant, _ in cases]
    settings = {"trainings": list(map(asdict, keys)), "seeds": [seeds for *_, seeds in cases]}
    settings |= {"points": points, "fine": densities.JUDGED}

    def compute() -> dict[str, Any]:
        found = [
            densities.belief(store, name, s, densities.held_out(name, points), device, variant=kind)
            for name, kind, seeds in cases
            for s in seeds
        ]
        return {"rows": list(map(asdict, found))}

    rows = store.measure("beliefs", settings, compute, device=device).numbers["rows"]
    return [densities.Belief(**row) for row in rows]


def gaussian_gaps(density: Any, x: Tensor, seeds: Sequence[int]) -> list[float]:
    """The control: the gap of a Gaussian with the mean and covariance of 5,000 samples a seed.

    `density` has a `sample` and a `log_prob`. The gap is the mean over the points x.
    """

    def gap(seed: int) -> float:
        data: Tensor = density.sample(5000, seeded(seed, 1))
        normal = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov())
        return (density.log_prob(x) - normal.log_prob(x)).mean().item()

    return [gap(seed) for seed in seeds]


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [
        *_density_rows(e),
        *_step_rows(e),
        *_race_rows(e),
        *tabular.rows(e.tables),
        *_other_rows(e),
    ]


def _density_rows(e: Evidence) -> list[Row]:
    claims: list[Row] = [
        Claim(
            f"otflow.{name}.gap",
            f"OT-Flow learns the density of {name}, to {WITHIN} nats above its entropy",
            "slide OT-Flow, examples in two dimensions",
            ours=e.gap_of(name),
            criterion=below(WITHIN),
            control=Control(GAUSSIAN, e.gaussian[name]),
            unit="nats",
        )
        for name in e.gaussian
    ]
    ends = {name: helped.last_gaps(curves) for name, curves in e.started.items()}
    spread = ends.pop(helped.SPREAD)
    best = min(ends, key=lambda name: sum(ends[name]))
    start = finding(
        "otflow.start.gap",
        f"A first layer that is spread over the data learns {helped.STARTED} faster: gap after"
        f" {helped.STEPS:,} iterations",
        ours=spread,
        criterion=below_control(),
        control=Control(f"the best of three rates for the first layer {best}", ends[best]),
        unit="nats",
    )
    whole = e.gap_of(HARD[0])
    edges = finding(
        f"otflow.{HARD[0]}.inside",
        f"Most of the gap of the {HARD[0]} comes from points within {densities.EDGE:g} of an edge:"
        " the part of the gap of all others",
        ours=e.inside,
        criterion=below_control(),
        control=Control(
            "the part of the points at an edge",
            [a - b for a, b in zip(whole, e.inside, strict=True)],
        ),
        unit="nats",
    )
    return [*claims, start, edges, *_belief_rows(e.beliefs)]


def _belief_rows(found: list[densities.Belief]) -> Iterator[Row]:
    """What trainings of the hard densities believed, and the truth of the variants."""
    over: Any = Measurement.over_seeds
    for name in HARD:
        says = f"the gap of {name} by the Runge–Kutta steps of its training"
        values = [b.believed for b in found if b.density == name and not b.variant]
        yield over(f"otflow.{name}.believed", BOOK, says, values, unit="nats")
    for variant, how in OTHERWISE.items():
        tried = [b for b in found if b.variant == variant]
        says, id = f"{HARD[0]}, {how}: the gap", f"otflow.{HARD[0]}.{variant}"
        believed = [b.believed for b in tried]
        yield over(f"{id}.believed", BOOK, f"{says} that it believes", believed, "nats")
        yield over(f"{id}.gap", BOOK, says, [b.gap for b in tried], "nats")
    drawn, fixed = (
        [abs(b.believed - b.gap) for b in found if (b.density, b.variant) == (HARD[0], variant)]
        for variant in ("", "fixed")
    )
    yield finding(
        f"otflow.{HARD[0]}.drawn.deceived",
        "With a number of solver steps drawn for each batch, a training of the checkerboard"
        " believes what is true: believed minus true gap, in size",
        ours=drawn,
        criterion=below(WITHIN),
        control=Control("the same trainings with twelve steps for each batch", fixed),
        unit="nats",
    )


def _step_rows(e: Evidence) -> list[Row]:
    def change(name: str) -> list[float]:
        few, many = (row.nll for row in e.by_steps[name] if row.steps in (4, 16))
        return [abs(a - b) for a, b in zip(few, many, strict=True)]

    def deceived(beta: int) -> list[float]:
        return [row.true - row.believed for row in e.ablation.get(f"β={beta}, 2 steps", NOTHING)]

    def bends(beta: int) -> list[float]:
        return [100 * row.bend for row in e.ablation.get(f"β={beta}, 4 steps", NOTHING)]

    return [
        Claim(
            "otflow.steps.nll_change",
            "Four Runge–Kutta steps give the same likelihood as sixteen, to 0.01 nats",
            "slide OT-Flow: cheaper time integration",
            ours=change("OT-Flow"),
            criterion=below(0.01),
            control=Control("FFJORD at equal likelihood", change("FFJORD")),
            unit="nats",
        ),
        Claim(
            "otflow.hjb.straighter",
            "The HJB penalty straightens the paths (4 steps in training; extra length)",
            "Onken et al. 2021, the penalty R",
            ours=bends(1),
            criterion=below_control(),
            control=Control("the same training without the penalty", bends(0)),
            unit="%",
        ),
        finding(
            "otflow.hjb.two_steps",
            "With the penalty, two steps in training do not deceive: true less believed NLL",
            ours=deceived(1),
            criterion=below(WITHIN),
            control=Control("without the penalty", deceived(0)),
            unit="nats",
        ),
    ]


NOTHING = [steps.Row(0.0, 0.0, 0.0, 0.0)] * len(
    densities.SEEDS
)  # of variants that smoke leaves out


def _race_rows(e: Evidence) -> list[Row]:
    ours, theirs = (e.seconds[name] for name in ("OT-Flow", "FFJORD"))
    faster = [a / b for a, b in zip(theirs, ours, strict=True)]
    share = e.ratio("train FFJORD, through", "train FFJORD")
    through = [a * b for a, b in zip(faster, share, strict=True)]
    sampling = e.ratio("sample FFJORD", "sample OT-Flow")
    as_close = e.ratio("sample FFJORD, as close", "sample OT-Flow")
    return [
        *_rival_rows(e),
        Claim(
            "otflow.training_speedup_vs_ffjord",
            "Training to equal likelihood is at least eight times faster than FFJORD's",
            f"{PAPER}: five data sets on a GPU; here one density on a CPU",
            ours=faster,
            criterion=above(8),
            control=Control("FFJORD differentiated through its steps", through),
            published=8.0,
            unit="times",
        ),
        Claim(
            "otflow.sampling_speedup_vs_ffjord",
            "Sampling is at least 24 times faster than FFJORD's",
            f"{PAPER}: five data sets on a GPU; here one density on a CPU",
            ours=sampling,
            criterion=above(24),
            control=Control("FFJORD with a tolerance as loose as four steps", as_close),
            published=24.0,
            unit="times",
        ),
        Measurement.over_seeds(
            "otflow.flow_matching.step_ratio",
            BOOK,
            "a training step of OT-Flow over one of flow matching",
            e.ratio("train OT-Flow", "train flow matching"),
            "times",
        ),
    ]


RIVALS = {
    "otflow": ("OT-Flow", "slide OT-Flow: cheaper time integration"),
    "monge_ampere": ("Monge–Ampère flow", "slide OT-Flow; Zhang et al. 2018"),
    "potential_generator": ("potential flow generator", "slide OT-Flow; Yang and Karniadakis 2020"),
    "rnode": ("RNODE", "slide OT-Flow; Finlay et al. 2020"),
}


def _rival_rows(e: Evidence) -> list[Row]:
    """Whether each method is at the goal, and is straighter and cheaper to solve than FFJORD."""
    found = [
        row for key, (name, source) in RIVALS.items() for row in _against(e, key, name, source)
    ]
    found.append(
        finding(
            "otflow.rivals.otflow.beyond_potential",
            "The detour (extra transport cost) of OT-Flow's paths is below that of a potential"
            " trained without transport cost",
            ours=e.detours["OT-Flow"],
            criterion=below_control(),
            control=Control("Monge–Ampère flow", e.detours["Monge–Ampère flow"]),
            unit="%",
        )
    )
    for key, name in {"otflow": "OT-Flow", "ffjord": "FFJORD"}.items():
        before = [100 * f.bend_before for f in e.raced[name]]
        says = f"{name} before any training: bend"
        found.append(
            Measurement.over_seeds(f"otflow.rivals.{key}.bend_before", BOOK, says, before, "%")
        )
    peer = {
        "nll": ([f.gap for f in e.raced["FFJORD"]], "nats above the least"),
        "bend": (e.bends["FFJORD"], "%"),
        "detour": (e.detours["FFJORD"], "%"),
        "nfe": (e.evaluations["FFJORD"], "evaluations"),
        "seconds": (e.seconds["FFJORD"], "s"),
    }
    for part, (values, unit) in peer.items():
        id, says = f"otflow.rivals.ffjord.{part}", f"FFJORD on the eight Gaussians: {part}"
        found.append(Measurement.over_seeds(id, BOOK, says, values, unit))
    return found


def _against(e: Evidence, key: str, name: str, source: str) -> list[Row]:
    """The rows of one method: at the goal, two comparisons with FFJORD, and its seconds."""
    id, gaps = f"otflow.rivals.{key}", [f.gap for f in e.raced[name]]
    goal = f"{name} comes within {WITHIN} nats of the entropy of the eight Gaussians"
    straighter = f"The paths of {name} are straighter than those of FFJORD at equal likelihood"
    thriftier = f"The detour of the paths of {name}, their extra transport cost, is below FFJORD's"
    cheaper = f"{name} needs fewer evaluations of an adaptive solver than FFJORD"

    def paired(part: str, says: str, values: dict[str, list[float]], unit: str) -> Claim:
        control = Control("FFJORD", values["FFJORD"])
        how = {"ours": values[name], "criterion": below_control(), "control": control}
        return Claim(f"{id}.{part}", says, source, **how, unit=unit)

    normal = Control(GAUSSIAN, e.gaussian[race.DENSITY])
    return [
        Claim(f"{id}.nll", goal, source, gaps, below(WITHIN), normal, unit="nats"),
        paired("bend", straighter, e.bends, "%"),
        paired("detour", thriftier, e.detours, "%"),
        paired("nfe", cheaper, e.evaluations, "evaluations"),
        Measurement.over_seeds(f"{id}.seconds", BOOK, f"{name}: training", e.seconds[name], "s"),
    ]


def _other_rows(e: Evidence) -> list[Row]:
    inverse = max(row.inverse_error[0] for row in e.by_steps["OT-Flow"] if row.steps == 8)
    trace = e.trace["43"]
    over: Any = Measurement.over_seeds
    concrete = e.tables["concrete"]
    nll, gap = tabular.tested(concrete, "OT-Flow"), tabular.above_best(concrete, "OT-Flow", ["NSF"])
    middle = 100 * (1 - e.latent["reference"] / e.latent["codes"])
    return [
        Measurement(
            "otflow.8gaussians.inverse_error",
            BOOK,
            "distance of x from the inverse of its image, 8 steps in float32, first seed",
            inverse,
        ),
        Measurement(
            "otflow.trace.ratio",
            "slide Value-function network",
            "an exact trace over one Hutchinson probe, d = 43, width 64, one CPU core",
            trace["exact"] / trace["one probe"],
            "times",
        ),
        over("otflow.concrete.nll", BOOK, "test NLL of concrete", nll, "nats"),
        over("otflow.concrete.gap", BOOK, "the same less that of a spline flow", gap, "nats"),
        Measurement(
            "otflow.latent.middle",
            BOOK,
            "halfway between two digits, the reference's line is nearer to the data by",
            middle,
            "%",
        ),
    ]
