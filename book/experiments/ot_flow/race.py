"""OT-Flow, FFJORD and three rivals on the eight Gaussians, trained until all are equally likely."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.dynamics import Statistics
from ctdl_lib.generative import Flow, flow_matching, ot_flow
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.networks import ConcatSquash
from ctdl_lib.potentials import Potential, ResNetPotential
from ctdl_lib.problems.densities import TOYS
from machinery import instruments
from machinery.seeds import seeded
from machinery.store import Record, Store

from . import rivals
from .densities import mean_nll, solved
from .rivals import Draw
from .steps import bend_of, detour_of, paths

DENSITY = "8gaussians"
SEEDS = (10, 11, 12, 13, 14)  # learning rates were chosen on seed 0
RACE = {"target": 0.05, "check": 25, "checked": 5000, "seed": 0}
OURS = {"width": 32, "layers": 2, "batch": 512, "rk4": 4}
OT_FLOW = OURS | {"lr": 0.1, "steps": 400, "density": DENSITY, "alpha": 30, "beta": 1}
FFJORD = {"width": 64, "hidden": 3, "tol": 1e-5, "batch": 512, "lr": 0.01, "steps": 400}
MONGE_AMPERE = OURS | {"lr": 0.1, "steps": 400}
GENERATOR = OURS | {"lr": 0.1, "steps": 3000, "hjb": 0.01}
GENERATOR |= {"bandwidths": [0.25, 0.5, 1.0, 2.0], "distance": 10.0}
RNODE = {"width": 64, "hidden": 3, "rk4": 8, "batch": 512, "lr": 0.1, "steps": 400}
RNODE |= {"kinetic": 0.01, "jacobian": 0.01}
ENTRANTS: dict[str, dict[str, Any]] = {
    "OT-Flow": OT_FLOW,
    "FFJORD": FFJORD,
    "RNODE": RNODE,
    "Monge–Ampère flow": MONGE_AMPERE,
    "potential flow generator": GENERATOR,
}
COMPARED = ("OT-Flow", "FFJORD")
FINE = 16  # Runge–Kutta steps by which those that train with fixed steps are checked
RATES = (0.01, 0.03, 0.1)  # tried for each entrant on seed 0
TOL = 1e-5  # of the adaptive solver whose evaluations are counted
LOOSE = (0.1, 0.01, 1e-3, 1e-4)  # tolerances that FFJORD may take to be as close as OT-Flow
SAMPLES = 10_000


@dataclass(frozen=True)
class Finish:
    """Where an entrant stopped, and how it got there.

    `gap` is its NLL above the least, `bend` the extra length of its paths, `detour` their extra
    transport cost, and `evaluations` those of an adaptive solver with tolerance 1e-5, from data to
    reference with the likelihood. `bend_before` is the bend before any training.
    """

    steps: int
    seconds: float
    gap: float
    bend: float
    detour: float
    evaluations: int
    bend_before: float


def checked() -> Tensor:
    """The points on which all are checked while they train."""
    return TOYS[DENSITY].sample(RACE["checked"], seeded(RACE["seed"] + 97, 0))


def until(steps: Iterator[Step], reached: Callable[[], bool]) -> Iterator[Step]:
    """The steps until a check every 25 steps says stop, with a clock that excludes the checks."""
    clock = 0.0
    while True:
        started = time.perf_counter()
        step = next(steps, None)
        clock += time.perf_counter() - started
        if step is None:
            return
        yield replace(step, seconds=clock)
        if (step.index + 1) % RACE["check"] == 0:
            with torch.no_grad():
                if reached():
                    return


def built(name: str, seed: int) -> Flow:
    """The entrant before its training.

    FFJORD and RNODE share a tanh network with three layers of width 64. The other three share the
    potential of OT-Flow.
    """
    key = ENTRANTS[name]
    if "hidden" in key:
        net = ConcatSquash(2, width=key["width"], hidden=key["hidden"], generator=seeded(seed, 0))
        adaptive = {"tol": FFJORD["tol"], "backprop": "adjoint"}
        solver = adaptive if name == "FFJORD" else {"steps": FINE}
        return Flow(net, 2, solver=solver, standardize=False)
    shape = {part: key[part] for part in ("width", "layers")}
    phi: Potential = ResNetPotential(2, **shape, generator=seeded(seed, 0))
    if name == "Monge–Ampère flow":
        phi = rivals.Stationary(phi)
    return Flow(phi, 2, solver={"steps": FINE}, standardize=False)


def objective(name: str, key: Mapping[str, Any], flow: Any, draw: Draw) -> Any:
    """The loss of an entrant on what a step has drawn."""
    if name == "OT-Flow":
        weights = {"likelihood": key["alpha"], "hjb": key["beta"]}
        return ot_flow(flow.velocity, draw.x, steps=key["rk4"], **weights)
    if name == "RNODE":
        weights = {part: key[part] for part in ("kinetic", "jacobian")}
        return rivals.rnode_loss(flow, draw, key["rk4"], **weights)
    if name == "Monge–Ampère flow":
        return rivals.monge_ampere_loss(flow, draw, key["rk4"])
    if name == "potential flow generator":
        weights = {part: key[part] for part in ("bandwidths", "distance", "hjb")}
        return rivals.generator_loss(flow, draw, key["rk4"], **weights)
    return -flow.log_prob(draw.x).mean()


def steps_of(
    name: str, key: Mapping[str, Any], flow: Flow, seed: int, steps: int, file: Path | None = None
) -> Iterator[Step]:
    """The steps of an entrant's training until it is at the goal, at most `steps`."""
    x = checked()
    goal = mean_nll(TOYS[DENSITY], x) + RACE["target"]

    def draw(k: int) -> Draw:
        generator, n = seeded(seed, k + 1), key["batch"]
        return Draw(TOYS[DENSITY].sample(n, generator), torch.randn(n, 2, generator=generator))

    lr, loss = cosine(key["lr"], key["steps"]), partial(objective, name, key)
    run = train(flow, loss, draw, steps=steps, lr=lr, checkpoint=file)
    yield from until(run, lambda: mean_nll(flow, x) <= goal)


def compete(store: Store, name: str, seed: int) -> tuple[Flow, Record]:
    """The entrant where it stopped: at 0.05 nats above the least NLL, or after all its steps."""
    flow = built(name, seed)
    training = partial(steps_of, name, ENTRANTS[name], flow, seed)
    key = ENTRANTS[name] | RACE | {"seed": seed}
    record = store.fit(f"race-{_file(name)}-{seed}", flow, key, training)
    return flow.requires_grad_(False), record


def _file(name: str) -> str:
    """The name of an entrant in those of files."""
    return name.replace("–", "-").replace("è", "e").replace(" ", "-")


def finish(store: Store, name: str, seed: int) -> Finish:
    """What the flow of an entrant is worth, by where it stopped."""
    flow, record = compete(store, name, seed)
    x, count = checked(), Statistics()
    solved(flow, tol=TOL).transform(x, statistics=count)
    path, before = paths(flow, x), paths(built(name, seed).requires_grad_(False), x)
    return Finish(
        steps=record.steps,
        seconds=record.seconds,
        gap=mean_nll(flow, x) - mean_nll(TOYS[DENSITY], x),
        bend=bend_of(path),
        detour=detour_of(path),
        evaluations=count.evaluations,
        bend_before=bend_of(before),
    )


def searched(store: Store, name: str) -> Record:
    """What each learning rate gave an entrant on seed 0: its steps, its seconds and its gap."""
    smoke = store.run == "smoke"
    key = {part: value for part, value in ENTRANTS[name].items() if part != "lr"}

    def row(lr: float) -> list[float]:
        flow = built(name, 0)
        few = 3 if smoke else key["steps"]
        try:
            history = list(steps_of(name, key | {"lr": lr}, flow, 0, few))
        except ArithmeticError:
            return [math.inf] * 3
        x = checked()
        with torch.no_grad():
            gap = mean_nll(flow, x) - mean_nll(TOYS[DENSITY], x)
        return [len(history), history[-1].seconds, gap]

    rates = key | RACE | {"rates": list(RATES)}
    return store.measure(
        f"race-search-{_file(name)}", rates, lambda: {str(lr): row(lr) for lr in RATES}
    )


def race(store: Store, seeds: Sequence[int] = SEEDS) -> dict[str, list[Finish]]:
    """Where all entrants stopped, one a seed."""
    key = {"entrants": ENTRANTS, "race": RACE, "seeds": list(seeds), "tol": TOL, "fine": FINE}
    key |= {"measured": [field.name for field in fields(Finish)], "error": "of the worst sample"}

    def compute() -> dict[str, list[dict[str, Any]]]:
        return {name: [asdict(finish(store, name, seed)) for seed in seeds] for name in ENTRANTS}

    found = store.measure("race", key, compute).numbers
    return {name: [Finish(**row) for row in rows] for name, rows in found.items()}


def table(raced: Mapping[str, Sequence[Finish]]) -> str:
    """Where each entrant stopped, with the range over seeds, as a Markdown table."""
    lines = [
        "| | gap (nats) | bend (%) | detour (%) | evaluations | seconds | steps | bend at first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in raced.items():
        columns = (
            [f"{f.gap:.3f}" for f in found],
            [f"{100 * f.bend:.2f}" for f in found],
            [f"{100 * f.detour:.1f}" for f in found],
            [f"{f.evaluations}" for f in found],
            [f"{f.seconds:.0f}" for f in found],
            [f"{f.steps}" for f in found],
            [f"{100 * f.bend_before:.1f}" for f in found],
        )
        cells = (_range(column) for column in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _range(values: Sequence[str]) -> str:
    low, high = min(values, key=float), max(values, key=float)
    return low if low == high else f"{low} to {high}"


def search_table(searched: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The seconds to the goal with each learning rate, or the gap where that was missed."""
    lines = [
        f"| seed 0 | {' | '.join(map(str, RATES))} | chosen |",
        "|---|" + "---:|" * (len(RATES) + 1),
    ]
    for name, found in searched.items():
        cells = (
            f"{seconds:.0f} s" if gap <= RACE["target"] else f"gap {gap:.2f}"
            for _, seconds, gap in found.values()
        )
        lines.append(f"| {name} | {' | '.join(cells)} | {ENTRANTS[name]['lr']} |")
    return "\n".join(lines)


def clocks(store: Store, seeds: Sequence[int] = SEEDS) -> Record:
    """The milliseconds of a training step of 512 points and of 10,000 samples, taken by turns.

    FFJORD samples with its own tolerance, and with the loosest one whose samples are as close to
    those of an accurate solve as OT-Flow's are ("as close").
    """
    smoke = store.run == "smoke"
    n = 200 if smoke else SAMPLES
    key = {"entrants": {name: ENTRANTS[name] for name in COMPARED}, "race": RACE}
    key |= {"seeds": list(seeds), "points": n, "rounds": 5}

    def compute() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for seed in seeds:
            ours, theirs = (compete(store, name, seed)[0] for name in COMPARED)
            runs = _runs(ours, theirs, n)
            best = instruments.interleaved_times(runs, rounds=1 if smoke else 5)
            for name, seconds in best.items():
                found.setdefault(name, []).append(1e3 * seconds)
        return found

    return store.measure("clocks", key, compute)


def _runs(ours: Flow, theirs: Flow, n: int) -> dict[str, Callable[[], Any]]:
    """What is timed on one pair of trained flows."""
    z = torch.randn(n, 2, generator=seeded(0, 0))
    x = TOYS[DENSITY].sample(min(n, 512), seeded(99, 0))
    t = torch.rand(len(x), generator=seeded(0, 0))

    def error(flow: Flow, **solver: Any) -> float:
        exact = solved(flow, tol=1e-6).inverse(z[:1000])
        return (solved(flow, **solver).inverse(z[:1000]) - exact).norm(dim=1).mean().item()

    def step(velocity: nn.Module, loss: Callable[[Any], Any]) -> None:
        velocity.requires_grad_(True).zero_grad()
        loss(velocity).backward()

    def adaptive(v: nn.Module, **how: Any) -> Tensor:
        return (
            -Flow(v, 2, solver={"tol": FFJORD["tol"]} | how, standardize=False).log_prob(x).mean()
        )

    wanted = error(ours, steps=4)
    loose = next((tol for tol in LOOSE if error(theirs, tol=tol) <= wanted), FFJORD["tol"])
    samplers = {
        "sample OT-Flow": solved(ours, steps=4),
        "sample FFJORD": solved(theirs, tol=FFJORD["tol"]),
        "sample FFJORD, as close": solved(theirs, tol=loose),
    }
    weights = {"likelihood": 30, "hjb": 1}
    steps: dict[str, Callable[[Any], Any]] = {
        "OT-Flow": lambda v: sum(ot_flow(v, x, steps=4, **weights).values()),
        "FFJORD": partial(adaptive, backprop="adjoint"),
        "FFJORD, through": adaptive,
        "flow matching": lambda v: flow_matching(v, x, z[: len(x)], t),
    }
    runs: dict[str, Callable[[], Any]] = {k: partial(f.inverse, z) for k, f in samplers.items()}
    for name, loss in steps.items():
        velocity = (ours if name == "OT-Flow" else theirs).velocity
        runs["train " + name] = partial(step, velocity, loss)
    return runs
