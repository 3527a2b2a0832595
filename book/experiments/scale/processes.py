"""What two processes gain today: a training with data in parallel, and a campaign on a pool."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ctdl_lib.generative import Flow
from ctdl_lib.learning import train
from machinery.seeds import seeded
from machinery.store import Store

from ..simulation_based_inference.campaigns import simulate
from ..simulation_based_inference.lotka_volterra import StochasticLotkaVolterra
from .costs import BSDS300, flow_of

WORLDS = (1, 2)
ROUNDS = 3
TOGETHER = {"batch": 16, "steps": 5}  # of all processes together; the first step is not counted
CAMPAIGN = {"simulations": 40_000, "chunk": 1000}


class Objective(nn.Module):
    """The loss of OT-Flow as a forward call, which is what DistributedDataParallel wraps."""

    def __init__(self, flow: Flow, key: dict[str, Any]):
        super().__init__()
        self.flow, self.key = flow, key

    def forward(self, x: Tensor) -> Tensor:
        """The loss on the rows x."""
        key = self.key
        how = {"steps": key["rk4"], "likelihood": key["alpha"], "hjb": key["beta"]}
        return torch.stack(list(self.flow.objective(x, **how).values())).sum()


def member(rank: int, world: int, folder: str, key: dict[str, Any]) -> dict[str, list[float]]:
    """The "losses" of one of `world` processes, and its "clock" and "cpu" seconds, step by step."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    model = DistributedDataParallel(Objective(flow_of(key), key), find_unused_parameters=True)

    def batch(step: int) -> Tensor:
        x = torch.randn(key["batch"], key["d"], generator=seeded(step))
        return x[rank * len(x) // world : (rank + 1) * len(x) // world]

    found: dict[str, list[float]] = {"losses": [], "clock": [], "cpu": []}
    clock, cpu = time.perf_counter(), time.process_time()
    for step in train(model, lambda m, x: m(x), batch, steps=key["steps"], lr=1e-3):
        found["losses"].append(step.loss)
        found["clock"].append(time.perf_counter() - clock)
        found["cpu"].append(time.process_time() - cpu)
        clock, cpu = time.perf_counter(), time.process_time()
    distributed.destroy_process_group()
    return found


def together(world: int, key: dict[str, Any]) -> list[dict[str, list[float]]]:
    """What each of `world` processes found that train one flow, each with its share of a batch."""
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(world, mp_context=get_context("spawn")) as pool,
    ):
        started = [pool.submit(member, rank, world, folder, key) for rank in range(world)]
        return [process.result(timeout=600) for process in started]


class Training(NamedTuple):
    """The "clock" and "cpu" seconds of a step by number of processes; the load of the machine."""

    times: dict[int, dict[str, list[float]]]
    load: float


class Campaign(NamedTuple):
    """The seconds of a campaign by where it ran; the load of the machine."""

    times: dict[str, list[float]]
    load: float


def training(store: Store) -> Training:
    """What a step takes one and two processes, one number a round.

    A number is the median over the steps of a round; of two processes, that of the slower one.
    """
    smoke = store.run == "smoke"
    rounds = 1 if smoke else ROUNDS
    key = BSDS300 | TOGETHER | ({"width": 4, "rk4": 1, "steps": 2} if smoke else {})

    def compute() -> dict[str, Any]:
        load = os.getloadavg()[0]  # of others: ours has not begun
        found: dict[str, Any] = {str(w): {"clock": [], "cpu": []} for w in WORLDS}
        for _ in range(rounds):
            for world in WORLDS:
                made = together(world, key)
                for what, values in found[str(world)].items():
                    slowest = max(median(one[what][1:]) for one in made)
                    values.append(float(f"{slowest:.4g}"))
        return found | {"load": load}

    numbers = store.measure("training", key | {"rounds": rounds}, compute).numbers
    return Training({world: numbers[str(world)] for world in WORLDS}, numbers["load"])


# --- a campaign ---------------------------------------------------------------------------------


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool


@contextmanager
def _dask(workers: int) -> Iterator[Executor]:
    from dask.distributed import Client, LocalCluster  # a package of the tests, not of the book

    how: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(n_workers=workers, **how) as cluster, Client(cluster) as client:
        yield client.get_executor()


POOLS: dict[str, tuple[Callable[[int], Any], int] | None] = {
    "this process": None,
    "pool, 1 worker": (_pool, 1),
    "pool, 2 workers": (_pool, 2),
    "Dask, 1 worker": (_dask, 1),
    "Dask, 2 workers": (_dask, 2),
}


def campaign(store: Store) -> Campaign:
    """The seconds on the clock of one campaign, by where it ran, one a round.

    In smoke all of it runs in this process.
    """
    smoke = store.run == "smoke"
    rounds, n = (1, 50) if smoke else (ROUNDS, CAMPAIGN["simulations"])
    problem = StochasticLotkaVolterra()
    x = problem.prior.sample(n, seeded(0)).double()

    def seconds(executor: Executor | None, rows: Tensor) -> float:
        started = time.perf_counter()
        simulate(problem.simulate, rows, seed=0, executor=executor, chunk=CAMPAIGN["chunk"])
        return float(f"{time.perf_counter() - started:.4g}")

    def compute() -> dict[str, Any]:
        load = os.getloadavg()[0]
        with ExitStack() as stack:
            runs: dict[str, Executor | None] = {}
            for name, pool in POOLS.items():
                runs[name] = (
                    None if pool is None or smoke else stack.enter_context(pool[0](pool[1]))
                )
                seconds(runs[name], x[: n // 4])  # its workers start and load what is compiled
            times = {name: [] for name in runs}
            for _ in range(rounds):
                for name, executor in runs.items():
                    times[name].append(seconds(executor, x))
        return times | {"load": load}

    key = CAMPAIGN | {"simulations": n, "rounds": rounds, "pools": list(POOLS)}
    numbers = store.measure("campaign", key, compute).numbers
    return Campaign({name: numbers[name] for name in POOLS}, numbers["load"])


def gains(times: dict[Any, list[float]], one: Any, two: Any) -> list[float]:
    """How many times faster the second is than the first, round by round."""
    return [a / b for a, b in zip(times[one], times[two], strict=True)]
