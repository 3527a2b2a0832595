"""What the evidence on the PDE perspective rests on, and the rows that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10
from statistics import fmean

from ctdl_lib import metrics
from machinery.claims import (
    Claim,
    Control,
    Measurement,
    Row,
    above,
    above_control,
    below,
    finding,
    within,
)
from machinery.store import Run, Store, device_of

from . import moons, schemes

CHAPTER = "05_pde_perspective"
BOOK = "this book"
SLIDE = "slide PDE perspective"
COURANT = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Evidence:
    """All numbers of the chapter. Lists have one entry a seed."""

    orders: dict[str, list[float]]
    densities: list[list[float]]
    lost: dict[bool, list[float]]
    accuracies: list[float]
    linear: list[float]
    agreement: dict[str, list[list[float]]]
    costs: dict[int, list[schemes.Contest]]
    seeds: list[int]
    sizes: Sequence[int]
    store: Store


def gather(run: Run, device: str = "cpu", seed: int = 0) -> Evidence:
    """The numbers of the chapter: loaded, computed or tried out as `run` says.

    The networks train on `device`; all else is in double precision on the CPU.
    """
    store, few = Store(CHAPTER, run), 1 if run == "smoke" else None
    seeds, sizes = [seed + s for s in moons.SEEDS[:few]], schemes.sizes(run)
    nets = [moons.fit(store, s, device_of(device)) for s in seeds]
    return Evidence(
        orders={name: schemes.orders(name, seeds, sizes) for name in schemes.SCHEMES},
        densities=[schemes.density_errors(s, sizes) for s in seeds],
        lost={c: [schemes.lost_mass(s, c) for s in seeds] for c in (True, False)},
        accuracies=[moons.accuracy(net, s) for net, s in zip(nets, seeds, strict=True)],
        linear=[moons.linear_accuracy(s) for s in seeds],
        agreement=moons.agreements(store, nets, seeds),
        costs=schemes.contests(store, seeds),
        seeds=seeds,
        sizes=sizes,
        store=store,
    )


def rows(e: Evidence) -> list[Row]:
    """All claims, findings and measurements of the chapter."""
    return [*_transport_rows(e), *_scheme_rows(e), *_density_rows(e), *_cost_rows(e)]


def _transport_rows(e: Evidence) -> Iterator[Row]:
    def finest(scheme: str) -> list[float]:
        return [values[-1] for values in e.agreement[scheme]]

    yield Claim(
        "pde.transport",
        "Classification is transport of a function along characteristics: equal decisions",
        f"{SLIDE}; Li and Shi 2017",
        ours=finest(moons.SEMI_LAGRANGIAN),
        criterion=above(99.9),
        control=Control("the network's f, time not turned", finest(moons.UNTURNED)),
        unit="%",
    )
    yield finding(
        "pde.transport.upwind",
        "A scheme that knows nothing of layers decides as the network does (257² nodes)",
        ours=finest(moons.UPWIND),
        criterion=above(99),
        control=Control("33² nodes", [values[0] for values in e.agreement[moons.UPWIND]]),
        unit="%",
    )
    yield Measurement.over_seeds(
        "pde.transport.flow",
        BOOK,
        "the flow of the differential equation decides as the network",
        finest(moons.FLOW),
    )
    yield finding(
        "pde.val_accuracy",
        "A flow of the plane separates two moons",
        ours=e.accuracies,
        criterion=above_control(5),
        control=Control("logistic regression", e.linear),
        unit="%",
    )


def _scheme_rows(e: Evidence) -> Iterator[Row]:
    semi, upwind = e.orders["semi-Lagrangian"], e.orders["upwind"]
    for name, ours, ends, other, theirs in (
        ("semilagrangian", semi, (1.8, 2.2), "upwind", upwind),
        ("upwind", upwind, (0.8, 1.2), "semi-Lagrangian", semi),
    ):
        yield finding(
            f"pde.order.{name}",
            f"The {name.replace('semilag', 'semi-Lag')} scheme has order {round(ends[0])}",
            ours=ours,
            criterion=within(*ends),
            control=Control(f"the {other} scheme", theirs),
        )
    measured = [schemes.spread_of_peak(courant) for courant in COURANT]
    yield finding(
        "pde.diffusion",
        "Upwind differences add the diffusion |f|h(1 − ν)/2: measured over formula, five ν",
        ours=[value / (1 - courant) for value, courant in zip(measured, COURANT, strict=True)],
        criterion=within(0.99, 1.01),
        control=Control("over |f|h/2", measured),
    )


def _density_rows(e: Evidence) -> Iterator[Row]:
    spacings = [schemes.spacing(m) for m in e.sizes]
    order = [metrics.observed_orders(errors, spacings)[-1] for errors in e.densities]
    yield Measurement.over_seeds(
        "pde.order.continuity", BOOK, "order of finite volumes for a density", order, ""
    )
    yield finding(
        "pde.mass",
        "Fluxes keep the mass of a density: relative change",
        ours=e.lost[True],
        criterion=below(1e-12),
        control=Control("differences of the density", e.lost[False]),
    )


def _cost_rows(e: Evidence) -> Iterator[Row]:
    d = max(d for d in e.costs if d < 4)
    yield finding(
        "pde.cost.error",
        f"In {d} dimensions a grid of 21 nodes an axis errs ten times as much as paths (log₁₀)",
        ours=[log10(c.grid_error) for c in e.costs[d]],
        criterion=above_control(1),
        control=Control("paths", [log10(c.path_error) for c in e.costs[d]]),
    )
    for d, contests in e.costs.items():
        ratios = [c.grid_time / c.path_time for c in contests]
        yield Measurement.over_seeds(
            f"pde.cost.d{d}", BOOK, f"time of a grid over that of 1,000 paths, d = {d}", ratios, ""
        )


def cost_table(costs: dict[int, list[schemes.Contest]]) -> str:
    """Values, velocities, times and errors of grids and paths, as a Markdown table."""
    lines = ["| d | nodes | velocities, grid | paths | time, grid / paths | error, grid | paths |"]
    lines.append("|---:|" + "---:|" * 6)
    for d, contests in costs.items():
        grid, paths = schemes.evaluations(d)
        ratio = fmean(c.grid_time / c.path_time for c in contests)
        wrong = max(c.grid_error for c in contests), max(c.path_error for c in contests)
        cells = [f"{schemes.NODES**d:,}", f"{grid:,}", f"{paths:,}", f"{ratio:.2g}"]
        lines.append(f"| {d} | " + " | ".join([*cells, *(f"{w:.0e}" for w in wrong)]) + " |")
    return "\n".join(lines)


def agreement_table(e: Evidence) -> str:
    """How many points the schemes decide as the network does, as a Markdown table."""
    lines = ["| % | " + " | ".join(f"{m}² nodes" for m in e.sizes) + " |"]
    lines.append("|---|" + "---:|" * len(e.sizes))
    for scheme, values in e.agreement.items():
        means = (fmean(column) for column in zip(*values, strict=True))
        lines.append(f"| {scheme} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(lines)
