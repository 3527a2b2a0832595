"""The value functions of the chapter: settings of their trainings, and one routine for all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctdl_lib.control import ControlProblem, objective
from ctdl_lib.control.problem import Policy
from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.potentials import PinnedPotential, Potential, ResNetPotential
from ctdl_lib.problems.control import LinearQuadratic, obstacle
from ctdl_lib.problems.vehicles import Corridor
from machinery.seeds import seeded
from machinery.store import Record, Store

CHAPTER = "12_hjb_and_pontryagin"
FIRST, COUNT = 10, 5  # the seeds that are reported; settings were chosen with seeds 0 to 2
DOUBLE: dict[str, Any] = {"dtype": torch.float64}

HILL: dict[str, Any] = {
    "d": 2, "width": 32, "mean": [-1.5, -1.5], "std": 1.0, "batch": 64, "times": 20,
    "steps": 2000, "lr": 0.05, "weights": {"hjb": 1.0},
}  # fmt: skip
PLAIN: dict[str, Any] = HILL | {"mean": [-3.0, -3.0], "weights": {"hjb": 1.0, "terminal": 1.0}}
CALM: dict[str, Any] = HILL | {"steps": 1500, "lr": 0.03}
GATE: dict[str, Any] = HILL | {
    "d": 4, "mean": Corridor().start.tolist(), "batch": 128, "steps": 1500, "lr": 0.02,
    "weights": {"hjb": 0.02},
}  # fmt: skip
BOX: dict[str, Any] = HILL | {
    "weights": {"cost": 0.0, "hjb": 1.0}, "share": 0.5, "low": [-3.0, -3.0], "high": [3.0, 3.0],
    "layers": 3, "steps": 4000, "lr": 0.01,
}  # fmt: skip
SHALLOW: dict[str, Any] = BOX | {"layers": 2}
DEEP: dict[str, Any] = BOX | {"share": 0.0}

Terms = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """What is trained: a problem, what is known of its value function, and what drives the paths.

    `lq` is the linear–quadratic problem whose value function the potential contains; without it the
    network is on its own. Paths follow the feedback, or a `sampler`.
    """

    problem: ControlProblem
    lq: LinearQuadratic | None
    noise_free: bool = False
    sampler: Policy | None = None
    objective: Terms = objective


def seeds_of(store: Store, seed: int = 0, count: int = COUNT) -> list[int]:
    """The seeds that are reported; a trial run tries one."""
    return [seed + FIRST + k for k in range(1 if store.run == "smoke" else count)]


def untrained(task: Task, how: dict[str, Any], s: int) -> tuple[ResNetPotential, Potential]:
    """The network before its training, and the potential Φ that it is a part of."""
    size = {"width": how["width"], "layers": how.get("layers", 2)}
    net = ResNetPotential(how["d"], **size, generator=seeded(s))
    with torch.no_grad():
        net.w.fill_(0.1)
    return net, net if task.lq is None else PinnedPotential(task.lq.value(), net)


def starts(how: dict[str, Any], size: int, generator: torch.Generator) -> Tensor:
    """Normal starts; with a `share`, that of them is uniform in the box from `low` to `high`."""
    mean = torch.tensor(how["mean"])
    x = mean + how["std"] * torch.randn(size, len(mean), generator=generator)
    wide = round(how.get("share", 0.0) * size)
    if wide:
        low, high = torch.tensor(how["low"]), torch.tensor(how["high"])
        x[:wide] = low + (high - low) * torch.rand(wide, len(mean), generator=generator)
    return x


def steps_of(
    task: Task,
    how: dict[str, Any],
    s: int,
    net: ResNetPotential,
    phi: Potential,
    *,
    steps: int,
    size: int,
    file: Path | None = None,
) -> Iterator[Step]:
    """The steps of a training with `size` fresh starts in each."""

    def batch(k: int) -> tuple[Tensor, torch.Generator]:
        g = seeded(10_000 * s + k)
        return starts(how, size, g), g

    def loss(_: Any, batch: tuple[Tensor, torch.Generator]) -> dict[str, Tensor]:
        noise = {"method": "rk4"} if task.noise_free else {"generator": batch[1]}
        more = noise | how["weights"] | {"steps": how["times"], "sampler": task.sampler}
        return task.objective(task.problem, phi, batch[0], **more)

    more = {"steps": steps, "lr": cosine(how["lr"], steps), "max_grad_norm": 10.0}
    return train(net, loss, batch, checkpoint=file, **more)


def fit(
    store: Store, name: str, task: Task, s: int, how: dict[str, Any]
) -> tuple[Potential, Record]:
    """The trained potential in double precision, and its record."""
    net, phi = untrained(task, how, s)
    size = 16 if store.run == "smoke" else how["batch"]
    settings = how | {
        "known": task.lq is not None,
        "noise_free": task.noise_free,
        "seed": s,
        "walk": task.sampler is not None,
        "objective": task.objective.__name__,
    }

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        return steps_of(task, how, s, net, phi, steps=steps, size=size, file=file)

    record = store.fit(f"{name}-{s}", net, settings, training)
    return phi.double().requires_grad_(False), record


def hill(**changes: Any) -> Task:
    """The task of the hill; its problem contains a linear–quadratic one."""
    problem = obstacle()
    return Task(**{"problem": problem, "lq": problem.linear_quadratic} | changes)


def gate_lq() -> LinearQuadratic:
    """The gate's linear–quadratic part: no hills, and agents that ignore each other."""
    problem = Corridor()
    return LinearQuadratic(problem.target, problem.weight)


def gate() -> Task:
    """The task of the gate, without noise."""
    return Task(Corridor(), gate_lq(), noise_free=True)


def plain() -> tuple[LinearQuadratic, Task]:
    """The linear–quadratic problem, and the task of learning it with nothing known."""
    problem = LinearQuadratic(torch.zeros(2, **DOUBLE), 100.0, diffusion=0.4)
    return problem, Task(problem, None)


def calm() -> Task:
    """The task of the hill without noise."""
    problem = obstacle(noise=0.0)
    return Task(problem, problem.linear_quadratic, noise_free=True)
