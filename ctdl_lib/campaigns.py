"""Campaigns of many simulations, on any `concurrent.futures.Executor`, that lose nothing."""

import dataclasses
import functools
import hashlib
import json
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import closing
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt64
from torch import Tensor

from . import storage

# Tasks handed to an executor and not yet done: they keep hundreds of workers busy, and their
# arguments are all that is in memory twice.
WINDOW = 1024
_NOT_RUN = RuntimeError("it was not run")


class Simulated(NamedTuple):
    """What was observed of n simulations; rows that were not completed are NaN."""

    y: Float[Tensor, "n m"]
    completed: Bool[Tensor, " n"]


# (x, one 64-bit seed per row) ↦ Simulated. A row depends on its parameters and its seed alone, not
# on its neighbours, nor on what is set in one process only, such as torch's default dtype.
Simulator = Callable[[Float[Tensor, "n d"], UInt64[np.ndarray, " n"]], Simulated]


class SimulationError(RuntimeError):
    """Simulations failed; `partial` holds all others, `rows` the numbers of those that failed."""

    def __init__(self, message: str, rows: list[int], partial: Simulated):
        super().__init__(message)
        self.rows, self.partial = rows, partial


class TaskError(RuntimeError):
    """Tasks failed; `results` holds those of all others, and `failed` index ↦ exception."""

    def __init__(self, message: str, failed: Mapping[int, BaseException], results: list):
        super().__init__(message)
        self.failed, self.results = failed, results


def seeds(n: int, seed: int | Sequence[int]) -> UInt64[np.ndarray, " {n}"]:
    """The seeds of simulations 0, …, n − 1; those of fewer simulations are the first of them."""
    return np.random.SeedSequence(seed).generate_state(n, np.uint64)


def simulate(
    simulator: Simulator,
    x: Float[Tensor, "n d"],
    *,
    seed: int | Sequence[int],
    executor: Executor | None = None,
    chunk: int = 1000,
    folder: Path | None = None,
    progress: Callable[..., Iterable] = lambda chunks, total, desc: chunks,
) -> Simulated:
    """The simulations of all rows of x, the same bits for any executor, workers and chunk.

    A chunk in which the simulator raises is halved until the rows that fail are found: log₂(chunk)
    times its work where one row fails, and twice as much where all do so at once.

    Args:
        simulator: a function that other processes can import, or a method of a frozen dataclass.
        executor: this process by default; a pool of processes; on a cluster, `get_executor()` of a
            client of `dask.distributed`, which runs again what a dead worker has lost.
        chunk: the number of rows that a worker simulates at once.
        folder: finished chunks are written there, and a campaign that was killed goes on there.
        progress: `progress(chunks, total=…, desc=…)` wraps the chunks, as `tqdm` does.

    Raises:
        SimulationError: the simulator raised, returned NaN in a completed row, or its process died;
            all that could be simulated is in its `partial`, and in the folder.
        TypeError: the simulator returned something else than it should.
        ValueError: the folder belongs to another campaign.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    for row in (~x.isfinite().all(1)).nonzero()[:1, 0].tolist():
        raise ValueError(f"x must be finite, but its row {row} is {x[row].tolist()}")
    campaign = _Campaign(x.detach().cpu().numpy(), seeds(len(x), seed))
    if folder is not None:
        _claim(folder / "campaign.json", campaign.x, seed, chunk, _name(simulator))
    # No rows at all are one chunk, too: its simulation tells how wide an observation is.
    parts = [slice(a, min(a + chunk, len(x))) for a in range(0, max(len(x), 1), chunk)]
    with closing(_chunks(simulator, campaign, parts, executor, folder)) as chunks:
        for _ in progress(chunks, total=len(parts), desc="simulations"):
            pass
    simulated = campaign.simulated(x.device)
    if campaign.errors or campaign.pending.any():
        raise _simulation_error(campaign, simulated)
    return simulated


def run(
    function: Callable[..., Any],
    arguments: Sequence[Sequence],
    *,
    executor: Executor | None = None,
    progress: Callable[..., Iterable] = lambda tasks, total, desc: tasks,
) -> list:
    """The results function(*arguments[0]), function(*arguments[1]), …, in this order.

    A task that fails does not keep the others from being run.

    Args:
        executor, progress: as for `simulate`.

    Raises:
        TaskError: some failed; it holds the results of all others.
    """
    results: list = [None] * len(arguments)
    failed: dict[int, BaseException] = dict.fromkeys(range(len(arguments)), _NOT_RUN)
    with closing(_outcomes(function, arguments, executor)) as outcomes:
        for index, result, error in progress(outcomes, total=len(arguments), desc="tasks"):
            results[index] = result
            failed.pop(index)
            failed.update({index: error} if error is not None else {})
    if failed:
        first, cause, text = _first(failed)
        message = f"{len(failed)} of {len(arguments)} tasks failed; number {first}: {text}; "
        message += "the results of the others are in .results of this error"
        raise TaskError(message, failed, results) from cause
    return results


class _Rows(NamedTuple):
    """Simulated rows, by their numbers."""

    rows: np.ndarray
    y: np.ndarray
    completed: np.ndarray


class _Done(NamedTuple):
    """What could be simulated of some rows, and the first that could not, with its exception."""

    pieces: list[_Rows]
    failure: tuple[int, Exception] | None


class _ReturnError(TypeError):
    """A simulator does not keep to its form, so that no other row will do better."""


class _Campaign:
    """The state of a campaign: what its rows gave, and which of them are pending."""

    def __init__(self, x: np.ndarray, seeds: np.ndarray):
        self.x, self.seeds = x, seeds
        self.y: np.ndarray | None = None
        self.completed = np.zeros(len(x), dtype=bool)
        self.pending = np.ones(len(x), dtype=bool)
        self.errors: dict[int, BaseException] = {}  # by the first row that each kept pending

    def task(self, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = part.start + np.flatnonzero(self.pending[part])
        return self.x[rows], self.seeds[rows], rows

    def place(self, piece: _Rows) -> None:
        if self.y is None:
            self.y = np.full((len(self.x), piece.y.shape[1]), np.nan, dtype=piece.y.dtype)
        ours, theirs = ((y.shape[1], str(y.dtype)) for y in (self.y, piece.y))
        if ours != theirs:
            raise _ReturnError(
                f"the simulator returned {theirs[0]} columns of {theirs[1]} for row "
                f"{piece.rows[0]}, but {ours[0]} of {ours[1]} before: all rows must be alike"
            )
        self.y[piece.rows], self.completed[piece.rows] = piece.y, piece.completed
        self.pending[piece.rows] = False

    def keep(self, path: Path, part: slice) -> None:
        rows = part.start + np.flatnonzero(~self.pending[part])
        if len(rows) and self.y is not None:
            piece = rows, self.y[rows], self.completed[rows]
            storage.save(path, [torch.from_numpy(array) for array in piece])

    def simulated(self, device: torch.device) -> Simulated:
        y = np.full((len(self.x), 0), np.nan, self.x.dtype) if self.y is None else self.y
        return Simulated(*(torch.from_numpy(part).to(device) for part in (y, self.completed)))


def _chunks(
    simulator: Simulator,
    campaign: _Campaign,
    parts: list[slice],
    executor: Executor | None,
    folder: Path | None,
) -> Generator[int]:
    """The numbers of chunks as they are done, those that the folder already has first."""
    files = [None if folder is None else folder / f"{k:06d}.safetensors" for k in range(len(parts))]
    todo = []
    for k, (part, file) in enumerate(zip(parts, files, strict=True)):
        if file is not None and file.exists():
            campaign.place(_Rows(*(array.numpy() for array in storage.load(file))))
        if part.start < part.stop and not campaign.pending[part].any():
            yield k
        else:
            todo.append(k)
    tasks = ((simulator, *campaign.task(parts[k])) for k in todo)
    with closing(_outcomes(_simulate_rows, tasks, executor)) as outcomes:
        for index, done, error in outcomes:
            part, file = parts[todo[index]], files[todo[index]]
            if isinstance(error, _ReturnError):
                raise error
            if error is not None:
                campaign.errors[part.start] = error
                done = _Done([], None)
            if done.failure is not None:
                campaign.errors.update([done.failure])
            for piece in done.pieces:
                campaign.place(piece)
            if file is not None:
                campaign.keep(file, part)
            yield todo[index]


def _simulate_rows(
    simulator: Simulator, x: np.ndarray, seeds: np.ndarray, rows: np.ndarray
) -> _Done:
    """What the rows gave; where the simulator raises, what each half gives.

    Arrays travel between processes better than tensors, which torch would put into shared memory.
    """
    try:
        # a copy: what an executor hands over may be read-only
        returned, raised = simulator(torch.tensor(x), seeds), None
    except Exception as error:
        returned, raised = None, error
    if raised is None:
        y, completed = _checked(returned, rows)
        bad = completed & np.isnan(y).any(1)
        nan = ValueError("NaN in a completed row; of a failed simulation, completed is False")
        failure = (int(rows[bad][0]), nan) if bad.any() else None
        return _Done([_Rows(rows[~bad], y[~bad], completed[~bad])], failure)
    if len(rows) == 0:
        raise raised
    if len(rows) == 1:
        return _Done([], (int(rows[0]), _portable(raised)))
    a, b = (
        _simulate_rows(simulator, x[half], seeds[half], rows[half])
        for half in (slice(len(rows) // 2), slice(len(rows) // 2, None))
    )
    return _Done(a.pieces + b.pieces, a.failure or b.failure)


def _checked(returned: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The arrays y, with NaN in the rows that were not completed, and completed."""
    n = len(rows)
    got = [
        f"{type(part).__name__} {getattr(part, 'dtype', '')}{list(getattr(part, 'shape', []))}"
        for part in (returned if isinstance(returned, tuple) else (returned,))
    ]
    match returned:
        case (Tensor(ndim=2) as y, Tensor(dtype=torch.bool) as completed):
            if y.is_floating_point() and len(y) == n and completed.shape == (n,):
                y = y.detach().masked_fill(~completed[:, None], torch.nan)
                return y.cpu().numpy(), completed.cpu().numpy()
    raise _ReturnError(
        f"the simulator must return Simulated(y, completed): floating-point y of shape ({n}, m) "
        f"and torch.bool completed of shape ({n},); for rows {rows[:1]} to {rows[-1:]} it returned "
        f"{' and '.join(got)}"
    )


def _outcomes(
    function: Callable, arguments: Iterable[Sequence], executor: Executor | None
) -> Generator[tuple[int, Any, BaseException | None]]:
    """The triples (i, function(*arguments[i]) or None, its error or None) as tasks are done."""
    tasks = enumerate(arguments)
    if executor is None:
        for index, args in tasks:
            yield index, *_guarded(function, *args)
        return
    # concurrent.futures.wait would look at every pending task for each that is done
    arrived: SimpleQueue[Future] = SimpleQueue()
    pending: dict[Future, int] = {}
    try:
        while True:
            while len(pending) < WINDOW and (task := next(tasks, None)) is not None:
                try:
                    future = executor.submit(_guarded, function, *task[1])
                except BrokenExecutor as error:
                    tasks = iter(())
                    yield task[0], None, error
                else:
                    pending[future] = task[0]
                    future.add_done_callback(arrived.put)
            if not pending:
                return
            future = arrived.get()
            yield pending.pop(future), *_settled(future)
    finally:
        for future in pending:
            future.cancel()


def _guarded(function: Callable, *args) -> tuple[Any, Exception | None]:
    """The result of a task and None, or None and what it has raised."""
    try:
        return function(*args), None
    except Exception as error:
        return None, _portable(error)


def _settled(future: Future) -> tuple[Any, BaseException | None]:
    if future.cancelled():
        return None, CancelledError("the executor was closed")
    error = future.exception()
    return future.result() if error is None else (None, error)


def _portable(error: Exception) -> Exception:
    """The exception without its frames, which hold memory, but with their text as a note.

    One that cannot be made again elsewhere would end a whole pool of processes.
    """
    where = "".join(traceback.format_exception(error))
    try:
        error = ForkingPickler.loads(ForkingPickler.dumps(error))  # pyright: ignore
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"It was raised by a task:\n{where}")
    return error


def _simulation_error(campaign: _Campaign, partial: Simulated) -> SimulationError:
    rows = np.flatnonzero(campaign.pending).tolist()
    row, cause, text = _first(campaign.errors or {rows[0]: _NOT_RUN})
    named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    where = f"x = {campaign.x[row].tolist()} and seed {campaign.seeds[row]}" if rows else "no x"
    message = (
        f"{len(rows)} of {len(campaign.x)} simulations failed, rows {named or 'none'}; row {row}, "
        f"with {where}: {text}; the others are in .partial of this error"
    )
    error = SimulationError(message, rows, partial)
    error.__cause__ = cause
    return error


def _first(errors: Mapping[int, BaseException]) -> tuple[int, BaseException, str]:
    """The first error, also in words; before all others a broken pool, which did most harm."""
    broken = [index for index, error in errors.items() if isinstance(error, BrokenExecutor)]
    error = errors[first := min(broken or errors)]
    return first, error, f"{type(error).__name__}: {error}{_ADVICE if broken else ''}"


_ADVICE = (
    " A process of the pool died: killed, out of memory, or crashed. What was finished is kept; "
    "call again with a new executor, and with folder= to go on where this call ended"
)


def _name(simulator: Any) -> str:
    """What tells simulators apart: a function's name, with the values that are bound to it."""
    if isinstance(simulator, functools.partial):
        return f"{_name(simulator.func)} of {simulator.args} {simulator.keywords}"
    owner = getattr(simulator, "__self__", simulator)
    name = getattr(simulator, "__qualname__", type(simulator).__qualname__)
    values = f" of {owner}" if dataclasses.is_dataclass(owner) else ""
    return f"{simulator.__module__}.{name}{values}"


def _claim(path: Path, x: np.ndarray, seed: int | Sequence[int], chunk: int, name: str) -> None:
    """Write what the chunks depend on, or make sure that it is what was written there."""
    identity = {
        "simulator": name,
        "x": f"{x.dtype} of shape {x.shape}",
        "hash of x": hashlib.sha256(x.tobytes()).hexdigest(),
        "seed": np.asarray(seed).tolist(),
        "chunk": chunk,
    }
    if not path.exists():
        storage.write(path, (json.dumps(identity, indent=1) + "\n").encode())
    stored = json.loads(path.read_text())
    differing = [
        f"{key} is {stored.get(key)!r} there and {value!r} here"
        for key, value in identity.items()
        if stored.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"the folder {path.parent} belongs to another campaign: {', '.join(differing)}; "
            "choose another folder, or delete it to start afresh"
        )
