"""The field's benchmark at the origin: three solvers, judged against the exact value function."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from ctdl_lib.control import feedback, objective, rollout
from ctdl_lib.learning import Step, cosine, train
from machinery.seeds import seeded
from machinery.store import Store

from .radial import LogarithmicTarget
from .shifted import BATCH, SEEDS, Curve, D, few
from .solvers import FBSNN, STEPS, WEIGHTS, DeepBSDE, Ours, Solver, along, idle, noise_of, walk

Make = Callable[[int, LogarithmicTarget], Solver]
DIMENSIONS = (10, 25, 50, 100, 200)


@dataclass(frozen=True)
class Method:
    """How to make a solver, its learning rate, and whether that falls like a cosine."""

    make: Make
    lr: float
    falls: bool = True


DEEP, RAISSI, LOW, OURS = "DeepBSDE", "FBSNN", "ours, rank 10", "ours"
METHODS = {
    DEEP: Method(DeepBSDE, 0.01, falls=False),
    RAISSI: Method(FBSNN, 0.001),
    LOW: Method(partial(Ours, rank=10), 0.01),
    OURS: Method(Ours, 0.003),
}


def problem(d: int = D) -> LogarithmicTarget:
    """The benchmark in ℝᵈ, with the target at the origin."""
    return LogarithmicTarget(torch.zeros(d, dtype=torch.float64))


def best_value(d: int = D) -> float:
    """The least cost Φ(0, 0)."""
    return float(problem(d).value()(0.0, torch.zeros(1, d, dtype=torch.float64)))


def idle_cost(d: int = D) -> float:
    """The cost of no control, E log ½(1 + 2χ²)."""
    return float(chi2(d).expect(lambda r: torch.log(torch.tensor(0.5 + r)).item()))


def judging(problem: LogarithmicTarget, seed: int = 0) -> Callable[[Solver], dict[str, float]]:
    """What measures a solver on 256 fresh paths without control, relative to the truth.

    `phi0` is the error of Φ at the start, `path` its mean along the paths, `gradient` that of ∇Φ in
    the mean norm, and `saving` the share of the possible saving that the feedback attains.
    """
    exact, x = problem.value(), torch.zeros(256, len(problem.target))
    dW = noise_of(len(x), seed + 77, x.shape[1])
    nodes = walk(problem, x, dW)
    true, slope = along(exact, walk(problem, x.double(), dW.double()))
    fly = partial(rollout, problem, x=x, steps=len(dW), dW=dW)
    optimal = fly(policy=feedback(problem, exact)).cost.mean()
    nothing = fly(policy=idle).cost.mean()

    def judge(model: Solver) -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            value, p = model.along(nodes)
            saving = (nothing - fly(policy=model.policy).cost.mean()) / (nothing - optimal)
        model.train()
        sizes = slope[:STEPS].norm(dim=2).mean()
        off = (p[:STEPS] - slope[:STEPS]).norm(dim=2).mean() / sizes
        wrong = (value / true - 1).abs()
        parts = {"phi0": wrong[0].mean(), "path": wrong[:STEPS].mean(), "gradient": off}
        return {k: float(v) for k, v in (parts | {"saving": saving}).items()}

    return judge


def history(
    method: Method, seed: int, steps: int, problem: LogarithmicTarget, *, smoke: bool = False
) -> Curve:
    """What the judge says every 100 iterations, and the processor's seconds of training."""
    model, rows, n = method.make(seed, problem), [], len(problem.target)
    judge = judging(problem)

    def batch(k: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(BATCH, n), noise_of(BATCH, 10_000 * seed + k, n)

    steps, used, began = 4 if smoke else steps, 0.0, time.process_time()
    rate = cosine(method.lr, steps) if method.falls else method.lr
    for step in train(model, lambda _, b: model.loss(*b), batch, steps=steps, lr=rate):
        if (step.index + 1) % (2 if smoke else 100) == 0:
            used += time.process_time() - began
            rows.append(judge(model) | {"steps": step.index + 1, "seconds": used})
            began = time.process_time()
    return {key: [row[key] for row in rows] for key in rows[0]}


def curves(store: Store, seed: int = 0) -> dict[str, list[Curve]]:
    """The curves of all methods, one a seed."""
    found: dict[str, list[Curve]] = {}
    for name, method in METHODS.items():
        kind = name.replace(", ", "-").replace(" ", "")
        key: dict[str, Any] = {"method": name, "lr": method.lr, "steps": 2000, "batch": BATCH}
        key |= {"times": STEPS, "paths": 256, "every": 100}
        key |= {"weights": WEIGHTS} if "ours" in name else {}
        key |= {} if method.falls else {"scales": [0.1, 0.5], "falls": False}
        smoke = store.run == "smoke"
        found[name] = [
            store.measure(
                f"{kind}-{s}",
                key | {"seed": s},
                partial(history, method, s, 2000, problem(), smoke=smoke),
            ).numbers
            for s in few(store, seed)
        ]
    return found


def at_seconds(curve: Curve, key: str, seconds: float) -> float:
    """The number when training had used so many seconds, or the last one."""
    pairs = zip(curve[key], curve["seconds"], strict=True)
    return next((v for v, used in pairs if used >= seconds), curve[key][-1])


def least_seconds(curves: dict[str, list[Curve]]) -> float:
    """The seconds of the quickest training."""
    return min(curve["seconds"][-1] for each in curves.values() for curve in each)


# --- random starts and other dimensions ---------------------------------------------------------


def random_starts(count: int, generator: torch.Generator) -> Tensor:
    """Starts of the law 𝒩(0, ¼I)."""
    return 0.5 * torch.randn(count, D, generator=generator)


def from_random_starts(store: Store, seed: int = 0) -> list[dict[str, float]]:
    """The errors of potentials that were trained from random starts, one a seed."""
    count, found = 8 if store.run == "smoke" else BATCH, []
    plain: dict[str, Any] = {"steps": 2000, "lr": 0.003, "weights": WEIGHTS, "clip": None}
    for s in few(store, seed):
        phi = Ours(s, problem()).phi

        def training(
            steps: int, checkpoint: Path | None, phi: Any = phi, s: int = s
        ) -> Iterator[Step]:
            def loss(_: Any, g: torch.Generator) -> dict[str, Tensor]:
                x = random_starts(count, g)
                return objective(problem(), phi, x, steps=STEPS, generator=g, **WEIGHTS)

            rate = cosine(0.003, steps)
            draw = lambda k: seeded(10_000 * s + k)  # noqa: E731
            return train(phi, loss, draw, steps=steps, checkpoint=checkpoint, lr=rate)

        key = {"rank": D + 1, "width": 64} | plain
        key |= {"seed": s, "batch": BATCH, "times": STEPS, "walk": False}
        record = store.fit(f"random-{s}", phi, key, training, dtype=torch.float16)
        judge = partial(_random_errors, phi.requires_grad_(False).double(), seed)
        key = {"weights": record.weights, "paths": 256}
        found.append(store.measure(f"random-{s}-judged", key, judge).numbers)
    return found


def _random_errors(phi: Any, seed: int) -> dict[str, float]:
    x, dW = random_starts(256, seeded(seed + 5)).double(), noise_of(256, seed + 6).double()
    nodes = walk(problem(), x, dW)
    (value, p), (true, slope) = along(phi, nodes), along(problem().value(), nodes)
    off = (p - slope)[:STEPS].norm(dim=2).mean() / slope[:STEPS].norm(dim=2).mean()
    return {"path": float((value / true - 1)[:STEPS].abs().mean()), "gradient": float(off)}


def growth(store: Store, seed: int = 0) -> dict[int, dict[str, float]]:
    """Seconds an iteration and error of ∇Φ after 1,000 iterations, by the dimension."""
    smoke, found = store.run == "smoke", {}
    first = seed + SEEDS[0]
    for d in DIMENSIONS:
        key = {"d": d, "steps": 1000, "lr": 0.003, "seed": first, "weights": WEIGHTS}
        key |= {"batch": BATCH, "times": STEPS}

        def compute(d: int = d) -> dict[str, float]:
            rows = history(METHODS[OURS], first, 1000, problem(d), smoke=smoke)
            seconds = rows["seconds"][-1] / rows["steps"][-1]
            return {"seconds": seconds, "gradient": rows["gradient"][-1]}

        found[d] = store.measure(f"dimension-{d}", key, compute).numbers
    return found
