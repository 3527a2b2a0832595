"""What a step or a sample costs at several sizes, and what that says of larger ones.

A measurement runs in a process of its own, on one thread. Its seconds are those that the processor
works for this process, in the program and in the system, which other programs disturb less than the
clock. Its bytes are the peak of the resident memory above what the process held before.
"""

import gc
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from ctdl_lib.generative import Denoiser, Flow, Schedule, denoising
from ctdl_lib.learning import train
from ctdl_lib.networks import FNO
from ctdl_lib.potentials import ResNetPotential
from machinery.seeds import seeded
from machinery.store import Store

from ..function_space.priors import Laplacian
from ..simulation_based_inference.campaigns import simulate
from ..simulation_based_inference.lotka_volterra import StochasticLotkaVolterra

ROUNDS = 3

# --- what is measured ---------------------------------------------------------------------------

# OT-Flow on BSDS300 as its authors train it; batches of 300 in 120,000 iterations.
BSDS300: dict[str, Any] = {"d": 63, "width": 512, "rk4": 14, "alpha": 2000.0, "beta": 800.0}
BATCH, ITERATIONS, ROWS = 300, 120_000, 1_000_000
FEW = 64  # rows of the batch where the dimension varies
FIELDS = 32  # of a batch, as in the chapter on function space
OPERATOR: dict[str, int] = {"modes": 10, "width": 16, "layers": 4}
STEPS = 1200  # of the chapter's training on the fine grid


def flow_of(key: dict[str, Any]) -> Flow:
    """OT-Flow before its training, with the dimension, width and steps of `key`."""
    phi = ResNetPotential(key["d"], width=key["width"], generator=seeded(0))
    flow = Flow(phi, key["d"], solver={"steps": key["rk4"]})
    return flow.standardize(torch.randn(100, key["d"], generator=seeded(1)))


def _flow_step(rows: int, d: int) -> Callable[[], Any]:
    """A step of training of OT-Flow on so many rows of dimension d."""
    key = BSDS300 | {"d": d}
    flow: Any = flow_of(key)
    x = torch.randn(rows, d, generator=seeded(2))
    how = {"steps": key["rk4"], "likelihood": key["alpha"], "hjb": key["beta"]}

    def loss(model: Any, x: Tensor) -> Any:
        return model.objective(x, **how)

    return lambda: list(train(flow, loss, [x], steps=1, lr=1e-3))


def _rows(rows: int) -> Callable[[], object]:
    return _flow_step(rows, BSDS300["d"])


def _dimension(d: int) -> Callable[[], object]:
    return _flow_step(FEW, d)


def _campaign(n: int) -> Callable[[], object]:
    """So many simulations with parameters of the prior."""
    problem = StochasticLotkaVolterra()
    x = problem.prior.sample(n, seeded(0)).double()
    return lambda: simulate(problem.simulate, x, seed=0)


def _operator(n: int) -> Callable[[], object]:
    """A step of training of an FNO on a batch of fields of n × n pixels."""
    schedule = Schedule()
    net = Denoiser(FNO(**OPERATOR, generator=seeded(0)), std=1.0, schedule=schedule)
    x, eta = torch.randn(2, FIELDS, n, n, generator=seeded(1))
    batch: Any = (x, eta, torch.rand(FIELDS, generator=seeded(2)))

    def loss(model: Any, batch: Any) -> Tensor:
        x, eta, t = batch
        return denoising(model, x, eta, t, schedule)

    return lambda: list(train(net, loss, [batch], steps=1, lr=1e-3))


def _fields(n: int) -> Callable[[], object]:
    """A batch of Gaussian fields of n × n pixels."""
    prior = Laplacian(s=1.1).normalized(28)
    return lambda: prior.sample(FIELDS, n, seeded(0))


def _linear(n: float) -> float:
    return n


def _pixels(n: float) -> float:
    return n**2


def _fft(n: float) -> float:
    return n**2 * math.log2(n)


@dataclass(frozen=True)
class Workload:
    """A computation whose cost grows with a size by a law known up to an offset and a slope.

    Args of the constructor: what the `size` is; the `sizes` that are fitted, one that is `held_out`
    of the fit, and the `target`; the size of a `tiny` run, which also warms up a process; what else
    the cost depends on.
    """

    says: str
    size: str
    prepare: Callable[[int], Callable[[], object]]
    law: Callable[[float], float]
    formula: str
    sizes: tuple[int, ...]
    held_out: int
    target: int
    tiny: int
    key: dict[str, Any]


WORKLOADS = {
    "rows": Workload(
        *("a step of OT-Flow, d = 63", "rows", _rows, _linear, "a + b n"),
        *((16, 32, 48, 64), 128, BATCH, 1, BSDS300),
    ),
    "dimension": Workload(
        *("a step of OT-Flow, 64 rows", "dimensions", _dimension, _linear, "a + b d"),
        *((4, 8, 16, 32), 63, BSDS300["d"], 2, BSDS300 | {"rows": FEW}),
    ),
    "campaign": Workload(
        *("a campaign of Lotka–Volterra", "simulations", _campaign, _linear, "a + b n"),
        *((50_000, 100_000, 200_000), 800_000, 10**8, 100, {}),
    ),
    "operator": Workload(
        *("a step of an FNO, 32 fields", "pixels a side", _operator, _pixels, "a + b n²"),
        *((128, 160, 192, 224), 384, 1024, 20, OPERATOR | {"batch": FIELDS}),
    ),
    "fields": Workload(
        *("32 Gaussian fields", "pixels a side", _fields, _fft, "a + b n² log n"),
        *((64, 128, 192, 256), 1024, 1024, 20, {"batch": FIELDS}),
    ),
}

# --- measuring ----------------------------------------------------------------------------------


class Cost(NamedTuple):
    """Seconds of the processor, and bytes at the peak."""

    seconds: float
    bytes: float


def cost(name: str, size: int) -> Cost:
    """The cost of a workload at a size, in this process: its second run, and the peak of both."""
    torch.set_num_threads(1)
    work = WORKLOADS[name]
    work.prepare(work.tiny)()  # compiles, and loads what is loaded once
    gc.collect()  # else what is freed meanwhile would be taken off the peak
    before = _peak(reset=True)
    run = work.prepare(size)
    run()
    started = time.process_time()
    run()
    return Cost(time.process_time() - started, max(_peak() - before, 1.0))


def _peak(reset: bool = False) -> float:
    """The peak of the resident memory in bytes, since the last reset where Linux can do that."""
    status = Path("/proc/self/status")
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    if status.is_file():
        return next(
            1024.0 * int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a new process, which ends afterwards.

    It allocates memory as glibc does by itself, and not as the environment may tell this process.
    """
    told = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MALLOC_")}
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.update(told)


def memory_of_machine() -> float:
    """The bytes of memory that this machine has."""
    return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


# --- fitting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """The cost offset + slope · law(n), neither negative."""

    law: Callable[[float], float]
    offset: float
    slope: float

    def at(self, n: float) -> float:
        """The cost at the size n."""
        return self.offset + self.slope * self.law(n)

    def reaches(self, value: float) -> float:
        """The size at which the cost is the given value, by bisection; ∞ if it never is."""
        low, high = 2.0, 1e18
        if self.at(high) < value:
            return math.inf
        for _ in range(200):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.at(middle) < value else (low, middle)
        return high


def fitted(law: Callable[[float], float], sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """The fit with the least sum of squared relative errors."""
    v = np.asarray(values, dtype=float)
    columns = np.stack([1 / v, np.array([law(n) for n in sizes]) / v], 1)
    scale = columns.max(0)  # else rows of millions and of ones would stand side by side
    offset, slope = nnls(columns / scale, np.ones(len(v)))[0] / scale
    return Fit(law, float(offset), float(slope))


@dataclass(frozen=True)
class Series:
    """The costs of a workload: by size, what each round measured."""

    work: Workload
    rounds: dict[int, list[Cost]]
    sizes: tuple[int, ...]
    held_out: int

    def measured(self, what: str, n: int) -> float:
        """The median over rounds of the "seconds" or "bytes" at a size."""
        return median(getattr(found, what) for found in self.rounds[n])

    def fit(self, what: str, sizes: Sequence[int] | None = None) -> Fit:
        """The fit of the medians, without the size held out."""
        sizes = self.sizes if sizes is None else sizes
        return fitted(self.work.law, sizes, [self.measured(what, n) for n in sizes])

    def ratios(self, what: str) -> list[float]:
        """What each round predicts at the size held out, over what it measures there."""
        found = []
        for k, last in enumerate(self.rounds[self.held_out]):
            values = [getattr(self.rounds[n][k], what) for n in self.sizes]
            predicted = fitted(self.work.law, self.sizes, values).at(self.held_out)
            found.append(predicted / getattr(last, what))
        return found

    def naive(self, what: str) -> list[float]:
        """The same by the smallest size alone, as if the law had no offset."""
        least = min(self.sizes)
        factor = self.work.law(self.held_out) / self.work.law(least)
        pairs = zip(self.rounds[least], self.rounds[self.held_out], strict=True)
        return [factor * getattr(a, what) / getattr(b, what) for a, b in pairs]


class Costs(NamedTuple):
    """The costs of all workloads, and the bytes of memory of the machine that measured them."""

    series: dict[str, Series]
    memory: float


def measured(store: Store) -> Costs:
    """The costs of all workloads; each round goes over the sizes, so that all share slow times."""
    machine = store.measure("machine", {}, lambda: {"memory": memory_of_machine()}).numbers
    return Costs({name: _series(store, name) for name in WORKLOADS}, machine["memory"])


def _series(store: Store, name: str) -> Series:
    work, smoke = WORKLOADS[name], store.run == "smoke"
    tiny = tuple(k * work.tiny for k in (1, 2, 3))
    sizes = tiny if smoke else (*work.sizes, work.held_out)
    rounds = 1 if smoke else ROUNDS

    def compute() -> dict[str, Any]:
        found: dict[str, Any] = {str(n): [] for n in sizes}
        for _ in range(rounds):
            for n in sizes:
                made = cost(name, n) if smoke else in_child(cost, name, n)
                found[str(n)].append([float(f"{value:.5g}") for value in made])
        return found

    key = work.key | {"sizes": sizes, "rounds": rounds}
    numbers = store.measure(f"costs-{name}", key, compute).numbers
    costs = {int(n): [Cost(*pair) for pair in pairs] for n, pairs in numbers.items()}
    return Series(work, costs, sizes[:-1], sizes[-1])
