"""The problem whose target is far away: references, trainings, and what they are judged by."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctdl_lib.control import feedback, objective, rollout
from ctdl_lib.control.problem import Policy
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.potentials import PinnedPotential, Potential, ResNetPotential, ScaledPotential
from machinery.seeds import seeded
from machinery.store import Store

from .radial import LogarithmicTarget, best_cost, stepwise_values
from .solvers import STEPS, Along, along, idle, noise_of, walk

CHAPTER = "13_stochastic_control"
D = 100
BATCH, CLIP, EVERY = 64, 1000.0, 50
TUNED_ON = 1  # the seed on which settings were chosen
SEEDS = (10, 11, 12)
PATHS, NOISE = 2000, 40  # that price a feedback
PENALTIES = {"bsde": 1.0, "terminal": 1.0, "terminal_gradient": 0.1}
COST = {"cost": 1.0}


def problem() -> LogarithmicTarget:
    """The problem of Li et al. with the target (3, …, 3)."""
    return LogarithmicTarget(torch.full((D,), 3.0, dtype=torch.float64), 0.4 * math.sqrt(2), 1000.0)


PROBLEM = problem()


def few(store: Store, seed: int) -> list[int]:
    """The seeds of the trainings, two of them in a trial run."""
    return [seed + s for s in (SEEDS[:2] if store.run == "smoke" else SEEDS)]


# --- references ---------------------------------------------------------------------------------


@torch.no_grad()
def price(policy: Policy, steps: int = STEPS, paths: int = PATHS) -> float:
    """The mean cost of a policy from the origin, on noise that is the same for all."""
    x = torch.zeros(paths, D, dtype=torch.float64)
    found = rollout(PROBLEM, policy, x, steps=steps, generator=seeded(NOISE))
    return float(found.cost.mean())


def exact_start() -> float:
    """The exact Φ(0, 0), in continuous time."""
    return float(PROBLEM.value()(0.0, torch.zeros(1, D, dtype=torch.float64)))


def bars(store: Store) -> dict[str, Any]:
    """The best costs with 20, 50 and 100 steps, those of known feedbacks, and of no control."""
    times, value = (20, 50, 100), PROBLEM.value()
    quadratic = PROBLEM.linear_quadratic().value()
    paths = 16 if store.run == "smoke" else PATHS

    def compute() -> dict[str, Any]:
        best = {str(n): best_cost(PROBLEM, 30.0, steps=n) for n in times}
        exact = {str(n): price(feedback(PROBLEM, value), n, paths) for n in times}
        linear = {str(n): price(feedback(PROBLEM, quadratic), n, paths) for n in times}
        return {"best": best, "exact": exact, "linear": linear, "idle": price(idle, paths=paths)}

    settings = {"times": list(times), "paths": PATHS, "s": NOISE}
    return store.measure("shifted-bars", settings, compute).numbers


# --- networks and losses ------------------------------------------------------------------------


def centred(seed: int, rank: int = D + 1) -> Potential:
    """The closed-form potential of x − x*, which starts as ½‖x − x*‖² if it has full rank."""
    net = ResNetPotential(D, width=64, rank=rank, generator=seeded(seed))
    with torch.no_grad():
        net.w.zero_()
        net.A.copy_(torch.eye(rank, D + 1))
    return ScaledPotential(net, height=1.0, center=PROBLEM.target, unit=torch.ones(D))


def pinned(seed: int) -> Potential:
    """The value function of the linear–quadratic problem plus a correction."""
    net = ResNetPotential(D, width=64, generator=seeded(seed))
    with torch.no_grad():
        net.w.zero_()
        net.A.mul_(0.01)
    return PinnedPotential(PROBLEM.linear_quadratic().value(), net)


Batch = tuple[Tensor, torch.Generator]
Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]


def batch(seed: int, k: int, count: int = BATCH) -> Batch:
    """The starts of the k-th step, and the generator of its noise."""
    return torch.zeros(count, D), seeded(10_000 * seed + k)


def own_loss(weights: Mapping[str, float], phi: Any, batch: Batch) -> dict[str, Tensor]:
    """All terms on the paths of the feedback."""
    x, generator = batch
    all_weights: dict[str, Any] = {"cost": 0.0, **weights}
    return objective(PROBLEM, phi, x, steps=STEPS, generator=generator, **all_weights)


def walk_loss(weights: Mapping[str, float], phi: Any, batch: Batch) -> dict[str, Tensor]:
    """The penalties on paths without control; the cost of the feedback needs paths of its own."""
    x, generator = batch
    how: dict[str, Any] = {"steps": STEPS, "generator": generator}
    kept = {name: weight for name, weight in weights.items() if name != "cost"}
    terms = objective(PROBLEM, phi, x, sampler=idle, cost=0.0, **kept, **how)
    if weights.get("cost"):
        terms |= objective(PROBLEM, phi, x, cost=weights["cost"], **how)
    return terms


@dataclass(frozen=True)
class Setting:
    """A training on the shifted problem: its name, network, weights, paths, steps and rate."""

    name: str
    kind: str
    weights: Mapping[str, float]
    walks: bool = False
    net: Callable[[int], Potential] = centred
    steps: int = 3000
    lr: float = 0.02

    @property
    def loss(self) -> Loss:
        """The loss of a batch."""
        return partial(walk_loss if self.walks else own_loss, self.weights)

    def key(self, seed: int) -> dict[str, Any]:
        """What the weights depend on."""
        how = {"steps": self.steps, "lr": self.lr, "weights": dict(self.weights), "clip": CLIP}
        more = {"seed": seed, "batch": BATCH, "times": STEPS, "walk": self.walks}
        return {"kind": self.kind} | how | more


OWN = Setting("shifted-0", "own feedback, full rank", COST)
RANK10 = Setting("shifted-1", "own feedback, rank 10", COST, net=partial(centred, rank=10))
LONG_WALK = Setting(
    "shifted-2", "random walk, full rank", {"cost": 0.0} | PENALTIES, walks=True, steps=3000
)
KNOWN = Setting(
    "shifted-3", "own feedback, linear–quadratic part", COST, net=pinned, steps=300, lr=0.01
)
# each with the better of the rates 0.02 and 0.005 on seed 1 after 500 steps
BOTH, SHORT = COST | PENALTIES, 500
OWN_COST = Setting("own-cost", "own paths, cost and penalties", BOTH, steps=SHORT)
OWN_PENALTIES = Setting("own-penalties", "own paths, penalties", PENALTIES, steps=SHORT)
WALK_COST = Setting(
    "walk-cost", "random walk, cost and penalties", BOTH, walks=True, steps=SHORT, lr=0.005
)
WALK_PENALTIES = Setting(
    "walk-penalties", "random walk, penalties", PENALTIES, walks=True, steps=SHORT, lr=0.005
)
CORNERS = {
    ("own", "with_cost"): OWN_COST,
    ("own", "penalties"): OWN_PENALTIES,
    ("walk", "with_cost"): WALK_COST,
    ("walk", "penalties"): WALK_PENALTIES,
}


# --- what a solver is judged by -----------------------------------------------------------------


class Judge:
    """What a solver says on walks, on the best paths and at the start, against the truth.

    `phi_*` are root mean squares of the errors of Φ over the nodes before the end, in percent of
    the standard deviation of the true Φ over walks and best paths together, so that the best
    constant has 100 %. `stepwise_*` take the value function of 20 steps for the truth.
    `gradient_*` are root mean squares of the errors of ∇Φ, in percent of that of ∇Φ. `start` is
    Φ(0, 0), and `cost` the mean cost of the feedback.
    """

    def __init__(self, paths: int = 256, seed: int = 77):
        self.dW = noise_of(paths, seed)
        x, half = torch.zeros(paths, D), paths // 2
        exact = PROBLEM.value()
        flown = rollout(
            PROBLEM, feedback(PROBLEM, exact), x[half:], steps=STEPS, dW=self.dW[:, half:]
        )
        self.nodes = {"walk": walk(PROBLEM, x[:half], self.dW[:, :half]), "best": flown.x}
        self.true = {name: along(exact, nodes.double()) for name, nodes in self.nodes.items()}
        table = stepwise_values(PROBLEM, 30.0, steps=STEPS)
        self.stepwise = {name: self._stepwise(table, nodes) for name, nodes in self.nodes.items()}
        self.scale = torch.cat([part.value[:STEPS] for part in self.true.values()]).std()

    @staticmethod
    def _stepwise(table: list, nodes: Tensor) -> Tensor:
        radius = (nodes.double() - PROBLEM.target).norm(dim=2)
        pairs = zip(table, radius, strict=True)
        return torch.stack([torch.as_tensor(v(r.numpy())) for v, r in pairs])

    def cost(self, policy: Policy) -> float:
        """The mean cost of a policy, on noise that is the same for all."""
        x = torch.zeros(self.dW.shape[1], D)
        return float(rollout(PROBLEM, policy, x, steps=STEPS, dW=self.dW).cost.mean())

    @torch.no_grad()
    def __call__(self, look: Callable[[Tensor], Along], policy: Policy) -> dict[str, float]:
        """The numbers of a solver, which gives Φ and ∇Φ on a path, and of its feedback."""
        found: dict[str, float] = {}
        for name, nodes in self.nodes.items():
            value, p = (part[:STEPS].double() for part in look(nodes))
            true = self.true[name]
            for kind, truth in (("phi", true.value), ("stepwise", self.stepwise[name])):
                error = (value - truth[:STEPS]).square().mean().sqrt()
                found[f"{kind}_{name}"] = float(100 * error / self.scale)
            off = (p - true.slope[:STEPS]).square().sum(2).mean().sqrt()
            size = true.slope[:STEPS].square().sum(2).mean().sqrt()
            found[f"gradient_{name}"] = float(100 * off / size)
            found["start"] = float(value[0].mean())
        return found | {"cost": self.cost(policy)}


@cache
def judge(paths: int = 256) -> Judge:
    """The judge of all solvers; its references take seconds."""
    return Judge(paths)


Curve = dict[str, list[float]]


class Recorder:
    """The steps of a training, judged every 50 of them, with the processor's seconds between."""

    def __init__(self, look: Callable[[], dict[str, float]], every: int = EVERY):
        self.look, self.every, self.rows, self.used = look, every, [], 0.0

    def __call__(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps."""
        began = time.process_time()
        for step in steps:
            if (step.index + 1) % self.every == 0:
                self.used += time.process_time() - began
                at = {"steps": step.index + 1, "seconds": round(self.used, 2)}
                self.rows.append({k: float(f"{v:.5g}") for k, v in (self.look() | at).items()})
                began = time.process_time()
            yield step

    @property
    def curve(self) -> Curve:
        """What was seen, by the names of the numbers."""
        return {key: [row[key] for row in self.rows] for key in self.rows[0]} if self.rows else {}


def _judged(phi: Potential, smoke: bool) -> dict[str, float]:
    """What the judge says of a potential."""
    return judge(16 if smoke else 256)(partial(along, phi), feedback(PROBLEM, phi))


def _steps(
    setting: Setting, phi: Potential, seed: int, steps: int, checkpoint: Path | None, count: int
) -> Iterator[Step]:
    rate = {"lr": cosine(setting.lr, steps), "max_grad_norm": CLIP}
    draw = partial(batch, seed, count=count)
    return train(phi, setting.loss, draw, steps=steps, checkpoint=checkpoint, **rate)


def fit(store: Store, setting: Setting, seed: int) -> tuple[Potential, Any, Curve]:
    """A trained potential, its record, and what a judge has seen on the way, if it was trained."""
    phi, smoke = setting.net(seed), store.run == "smoke"
    recorder = Recorder(lambda: _judged(phi, smoke), 2 if smoke else EVERY)

    def training(steps: int, checkpoint: Path | None) -> Iterator[Step]:
        found = _steps(setting, phi, seed, steps, checkpoint, 8 if smoke else BATCH)
        # a resumed training first repeats its records, and the weights are not those of then
        resumed = checkpoint is not None and checkpoint.exists()
        return found if resumed else recorder(found)

    name, key = f"{setting.name}-{seed}", setting.key(seed)
    record = store.fit(name, phi, key, training, dtype=torch.float16)
    return phi.requires_grad_(False), record, recorder.curve


def curve_of(setting: Setting, seed: int) -> Curve:
    """What the judge sees of a training every 50 iterations."""
    phi = setting.net(seed)
    recorder = Recorder(lambda: _judged(phi, False))
    for _ in recorder(_steps(setting, phi, seed, setting.steps, None, BATCH)):
        pass
    return recorder.curve


def cost_of(store: Store, setting: Setting, seed: int) -> float:
    """The cost of a learned feedback with 20 steps."""
    phi, record, _ = fit(store, setting, seed)
    paths = 16 if store.run == "smoke" else PATHS

    def pay() -> dict[str, float]:
        return {"20": price(feedback(PROBLEM, phi.double()), paths=paths)}

    key = {"weights": record.weights, "paths": PATHS, "s": NOISE}
    return store.measure(f"{setting.name}-{seed}-cost", key, pay).numbers["20"]


def costs(store: Store, setting: Setting, seed: int = 0) -> list[float]:
    """The costs of a feedback with 20 steps, one a seed."""
    return [cost_of(store, setting, s) for s in few(store, seed)]
