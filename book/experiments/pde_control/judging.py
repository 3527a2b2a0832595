"""What trained policies cost basin by basin, and what value functions know of the value."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.control import rollout
from machinery import instruments
from machinery.seeds import seeded
from machinery.store import Store

from .checks import quasi_newton
from .fits import Exam, Fit, Search, costs, exam
from .learners import AGENTS, STEPS, agent, draw, ledger
from .mitigation import best_openings, common_plan, quadratic
from .networks import picture, steering, untrained

OUTSIDE = (("speed", (1.0, 1.5)), ("strength", (1.5, 2.0)))
FRESH = 128  # basins of which single ratios are taken
TEST, OTHERS, BOX = "test basins", "fresh basins", "outside of the box"
PLACES = (OTHERS, BOX)
Costs = dict[str, dict[str, list[float]]]


def place(name: str, seed: int = 0, few: bool = False) -> Exam:
    """The basins of a place, with their least costs."""
    count = 8 if few else 64
    if name == OTHERS:
        return exam(seed + 300, 8 if few else FRESH)
    if name == BOX:
        return exam(seed + 79, count, box=OUTSIDE)
    return exam(seed + 77, count)


def rounded(values: Iterable[float] | Tensor) -> list[float]:
    """The numbers to six significant digits."""
    return [float(f"{float(value):.6g}") for value in values]


def weights_of(fits: Iterable[Fit]) -> dict[str, str]:
    """What the weights of fits are: the key of all that is measured on them."""
    return {f.name: (f.record.weights or "")[:12] for f in fits}


def costs_by_basin(store: Store, fits: list[Fit], seed: int = 0) -> Costs:
    """The costs in each basin of each place, of the best plan and of each fit."""
    few = store.run == "smoke"

    def compute() -> Costs:
        found = {}
        for name in PLACES:
            there = place(name, seed, few)
            row = {f.name: rounded(costs(f.kind, f.model, there.problem)) for f in fits}
            found[name] = {"best": rounded(there.best)} | row
        return found

    key = {"weights": weights_of(fits), "fresh": FRESH, "seed": seed}
    return store.measure("costs", key, compute).numbers


def mean_of_ratios(table: Mapping[str, list[float]], name: str) -> float:
    """The mean over basins of cost over least cost, less one, in percent."""
    pairs = zip(table[name], table["best"], strict=True)
    return 100 * (fmean(cost / best for cost, best in pairs) - 1)


def ratio_of_means(table: Mapping[str, list[float]], name: str) -> float:
    """The mean cost over the mean least cost, less one, in percent."""
    return 100 * (fmean(table[name]) / fmean(table["best"]) - 1)


def worst(table: Mapping[str, list[float]], name: str) -> float:
    """The greatest suboptimality in a single basin, in percent."""
    return 100 * (max(c / b for c, b in zip(table[name], table["best"], strict=True)) - 1)


# --- value functions ----------------------------------------------------------------------------


@torch.no_grad()
def value_at_start(f: Fit, judge: Exam) -> Tensor:
    """The values Φ(0, 0; y)."""
    problem = judge.problem
    return f.model.given(problem.images.float())(0.0, problem.start.float()).double()


def height_error(value: Tensor, best: Tensor) -> float:
    """The mean distance from the least cost over its mean, in percent."""
    return 100 * float((value - best).abs().mean() / best.mean())


@torch.no_grad()
def defects(f: Fit, judge: Exam) -> tuple[float, float]:
    """How far Φ is from Bellman's equation and from the terminal cost, in percent of the cost.

    The first number is the mean over own paths of Σₖ |Φₖ₊₁ − Φₖ + h Lₖ|, the second that of
    |Φ − G| at the end.
    """
    problem = judge.problem
    policy = steering(f.kind, f.model, problem)
    path = rollout(problem, policy, problem.start.float(), steps=STEPS)
    paid, t = ledger(problem, policy, path), path.t.repeat_interleave(len(problem.source))
    value = f.model.given(problem.images.float())(t, path.x.flatten(0, 1))
    value = value.view(paid.to_go.shape)
    along = (value.diff(dim=0) + paid.spent).abs().sum(0).mean()
    end = (value[-1] - paid.to_go[-1]).abs().mean()
    scale = 100 / judge.best.mean()
    return float(scale * along), float(scale * end)


def heights(store: Store, fits: list[Fit], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Of each value function: its values at the start, its errors, its defects."""
    few = store.run == "smoke"

    def compute() -> dict[str, Any]:
        judge = place(TEST, seed, few)
        found = {}
        for f in fits:
            value, (along, end) = value_at_start(f, judge), defects(f, judge)
            both = torch.stack([value, judge.best])
            found[f.name] = {
                "values": rounded(value),
                "error": height_error(value, judge.best),
                "correlation": float(torch.corrcoef(both)[0, 1]),
                "deviation": float(value.std()),
                "defects": along,
                "end": end,
            }
        return found

    key = {"weights": weights_of(fits), "seed": seed}
    return store.measure("heights", key, compute).numbers


def rivals_of_height(store: Store, seed: int = 0) -> dict[str, float]:
    """The errors of predictors without a network, which have seen 256 other basins.

    They are the constant, and the multiple of the square of the strength, that are best there.
    """
    few = store.run == "smoke"

    def compute() -> dict[str, float]:
        judge, other = place(TEST, seed, few), exam(seed + 400, 8 if few else 256)
        strengths = [e.problem.basins.strength.square() for e in (judge, other)]
        ratio = other.best / strengths[1]
        # the weighted median is the slope of least absolute error
        order = ratio.argsort()
        half = strengths[1][order].cumsum(0) >= strengths[1].sum() / 2
        slope = ratio[order][half][0]
        return {
            "constant": height_error(other.best.median().expand(len(judge.best)), judge.best),
            "square": height_error(slope * strengths[0], judge.best),
            "deviation": float(judge.best.std()),
        }

    return store.measure("rivals-of-height", {"others": 256, "seed": seed}, compute).numbers


# --- policies without a network -----------------------------------------------------------------


def plans(store: Store, seed: int = 0) -> dict[str, float]:
    """The suboptimality of one plan for all basins, found on 256 other basins, in percent.

    The plan is the same for all, or is multiplied by the strength of the source.
    """
    few = store.run == "smoke"

    def compute() -> dict[str, float]:
        judge, other = place(TEST, seed, few), exam(seed + 400, 8 if few else 256)
        here, there = quadratic(judge.problem), quadratic(other.problem)
        found = {"shut": float(here.constant.mean())}
        for name in ("same", "strength"):
            scales = [e.problem.basins.strength for e in (judge, other)]
            scales = [s if name == "strength" else torch.ones_like(s) for s in scales]
            plan, _ = common_plan(there, scales[1])
            found[name] = float(here(scales[0][:, None] * plan).mean())
        return {name: 100 * (cost / float(judge.best.mean()) - 1) for name, cost in found.items()}

    return store.measure("plans", {"others": 256, "seed": seed}, compute).numbers


def openings(store: Store, fits: list[Fit], seed: int = 0) -> dict[str, float]:
    """The mean of all openings of each fit over that of the best plans, in the test basins."""
    few = store.run == "smoke"

    @torch.no_grad()
    def compute() -> dict[str, float]:
        problem = place(TEST, seed, few).problem
        wanted, found = float(best_openings(problem).controls.mean()), {}
        for f in fits:
            policy = steering(f.kind, f.model, problem)
            path = rollout(problem, policy, problem.start.float(), steps=STEPS)
            pairs = zip(path.t[:-1], path.x[:-1], strict=True)
            given = torch.stack([policy(t, x) for t, x in pairs])
            found[f.name] = float(given.mean()) / wanted
        return found

    key = {"weights": weights_of(fits), "seed": seed}
    return store.measure("openings", key, compute).numbers


def reference(seed: int = 0, few: bool = False) -> dict[str, float]:
    """The mean least cost of the test basins, and that of drains that may also emit."""
    judge = place(TEST, seed, few)
    free = best_openings(judge.problem, closable=False)
    return {"best": float(judge.best.mean()), "free": float(free.cost.mean())}


# --- costs online, and inside of the solver -----------------------------------------------------


def online(store: Store, models: Mapping[str, Any], seed: int = 0) -> dict[str, float]:
    """Milliseconds for a control by each method, and for a plan by L-BFGS and exactly."""

    def compute() -> dict[str, float]:
        one, now = draw(1, seed + 90), torch.rand(1, 289, generator=seeded(seed))

        def call(kind: str) -> Any:
            policy = steering(kind, models[kind], one)
            return lambda: policy(0.5, now)

        contenders = {kind: call(kind) for kind in models}
        contenders |= {"lbfgs": lambda: quasi_newton(one), "exact": lambda: best_openings(one)}
        rounds = 2 if store.run == "smoke" else 20
        times = instruments.interleaved_times(contenders, rounds=rounds)
        return {name: 1000 * seconds for name, seconds in times.items()}

    return store.measure("online", {"rounds": 20, "ftol": 1e-10}, compute).numbers


def transposed_share(kind: str, seed: int = 0) -> float:
    """The share of the solves of a training that are with the transposed matrix, in percent."""
    problem = draw(4, seed)
    torch.manual_seed(seed)
    model = _Half() if kind in AGENTS else untrained(kind)
    path = rollout(problem, steering(kind, model, problem), problem.start.float(), steps=STEPS)
    if path.cost.requires_grad:  # an agent is told costs, and asks for no derivative
        path.cost.mean().backward()
    counted = problem.systems
    return 100 * counted.adjoint_solves / (counted.adjoint_solves + counted.solves)


class _Half:
    """An agent that keeps the drain half open."""

    def _predict(self, seen: Tensor, deterministic: bool) -> Tensor:
        return torch.zeros(len(seen), 1)


def look_inside(store: Store, found: Search, seed: int = 0) -> dict[str, float]:
    """What the critic and the actor of a lazy agent say at states of the test basins.

    `opens`: the share of basins in which the critic would rather open a little. `reacts`: the
    derivative of the actor's last layer.
    """
    few, how = store.run == "smoke", found.hows[0]

    def compute() -> dict[str, float]:
        torch.manual_seed(seed + 1)
        lazy = agent("td3", seed + 1, few=few, **how)
        lazy.learn(400 if few else 32_000)
        test = place(TEST, seed, few).problem
        path = rollout(test, lambda t, x: 0 * x[:, :1], test.start.float(), steps=STEPS)
        seen = picture(0.4, path.x[10], test.images)
        with torch.no_grad():
            actor, critic = lazy.actor, lazy.critic
            z = actor.mu[:-1](actor.extract_features(seen, actor.features_extractor))
            q = [critic.q1_forward(seen, torch.full_like(z, a)) for a in (-1.0, -0.8)]
        opens = float((q[1] > q[0]).double().mean())
        return {"opens": 100 * opens, "reacts": float((1 - z.tanh().square()).mean())}

    return store.measure("lazy", {"how": how, "seed": seed + 1}, compute).numbers
