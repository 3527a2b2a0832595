"""Campaigns of many simulations, on any `concurrent.futures.Executor`, that lose nothing."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt64
from torch import Tensor

from ctdl_lib.learning import storage

from .tasks import NOT_RUN, LimitError, first_error, identity, outcomes, portable, within


class Simulated(NamedTuple):
    """What was observed of n simulations; rows that were not completed are NaN."""

    y: Float[Tensor, "n m"]
    completed: Bool[Tensor, " n"]


# (x, one 64-bit seed per row) ↦ Simulated. A row depends on its parameters and its seed alone, not
# on its neighbours, nor on what is set in one process only, such as torch's default dtype. Where x
# is NaN or infinite a simulator raises ValueError, where the seeds are not uint64 TypeError; what
# it cannot simulate it returns as not completed.
Simulator = Callable[[Float[Tensor, "n d"], UInt64[np.ndarray, " n"]], Simulated]


@dataclass(frozen=True)
class OneByOne:
    """A simulator that calls `one(x, generator)`, written in NumPy, for one row at a time::

        def decay(x, generator):
            return x[0] * np.exp(-x[1] * np.arange(5)) + generator.normal(size=5)

        y, completed = simulate(OneByOne(decay), torch.rand(100, 2), seed=0)

    `one` gets the parameters (d,) and a generator with the seed of the row, and returns the
    observation (m,), which takes the dtype of x; NaN in all entries says that it did not complete.
    """

    one: Callable[[Float[np.ndarray, " d"], np.random.Generator], np.ndarray]

    def __call__(self, x: Float[Tensor, "n d"], seeds: UInt64[np.ndarray, " n"]) -> Simulated:
        """The observations of all rows.

        Raises:
            ValueError: one of them is no array of numbers (m,), or not as long as the first.
        """
        rows = x.detach().cpu().numpy()
        found = [
            np.asarray(self.one(row, np.random.default_rng(seed)))
            for row, seed in zip(rows, seeds, strict=True)
        ]
        for y in found:
            if y.ndim != 1 or y.dtype.kind not in "fiub" or y.shape != found[0].shape:
                raise ValueError(
                    f"the observation of a row must be an array of numbers (m,) with one m for all "
                    f"rows, got {y.dtype} of shape {y.shape}"
                )
        y = torch.from_numpy(np.array(found or np.empty((0, 0)), rows.dtype)).to(x.device)
        return Simulated(y, ~y.isnan().all(1))


class SimulationError(RuntimeError):
    """Simulations failed; `partial` holds all others, `rows` the numbers of those that failed."""

    def __init__(self, message: str, rows: list[int], partial: Simulated):
        super().__init__(message)
        self.rows, self.partial = rows, partial


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
    limit: float | None = None,
    folder: Path | None = None,
    progress: Callable[..., Iterable] = lambda chunks, total, desc: chunks,
) -> Simulated:
    """The simulations of all rows of x, the same bits for any executor, workers and chunk.

    A chunk in which the simulator raises is halved until the rows that fail are found: log₂(chunk)
    times its work where one row fails, and twice as much where all do so at once. So is one that
    takes longer than `limit` seconds, until the rows that hang are cut and reported as failed.

    Args:
        simulator: a function that other processes can import, or a method of a frozen dataclass;
            `OneByOne` makes one of a function in NumPy for a single row.
        executor: this process by default; a pool of processes; on a cluster, `get_executor()` of a
            client of `dask.distributed`, which runs again what a dead worker has lost.
        chunk: the number of rows that a worker simulates at once.
        limit: the seconds that one call of the simulator may take; see `tasks.within`, which cannot
            cut what runs in threads or in workers of dask and says so.
        folder: finished chunks are written there, and a campaign that was killed goes on there,
            with any executor and chunk. The simulator's code is not compared: empty the folder when
            it changes.
        progress: `progress(chunks, total=…, desc=…)` wraps the chunks, as `tqdm` does.

    Raises:
        SimulationError: the simulator raised, or returned NaN or ±∞ in a completed row, or its
            process died; all that could be simulated is in its `partial`, and in the folder. Which
            row kills its process is found with chunk=1 and one worker; it should not complete.
        TypeError: the simulator returned something else than it should.
        ValueError: x is not finite; the folder belongs to another campaign, or a file of it is
            broken; with a folder, the simulator has no `tasks.identity`.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    for row in (~x.isfinite().all(1)).nonzero()[:1, 0].tolist():
        raise ValueError(f"x must be finite, but its row {row} is {x[row].tolist()}")
    campaign = _Campaign(x.detach().cpu().numpy(), seeds(len(x), seed))
    if folder is not None:
        _claim(folder / "campaign.json", campaign.x, seed, identity(simulator))
    # No rows at all are one chunk, too: its simulation tells how wide an observation is.
    parts = [slice(a, min(a + chunk, len(x))) for a in range(0, max(len(x), 1), chunk)]
    with closing(_chunks(simulator, campaign, parts, executor, limit, folder)) as chunks:
        for _ in progress(chunks, total=len(parts), desc="simulations"):
            pass
    simulated = campaign.simulated(x.device)
    if campaign.errors or campaign.pending.any():
        raise _simulation_error(campaign, simulated)
    return simulated


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
        self.lost: set[int] = set()  # those of these rows that need not be to blame themselves

    def task(self, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = part.start + np.flatnonzero(self.pending[part])
        return self.x[rows], self.seeds[rows], rows

    def lose(self, part: slice, error: BaseException) -> None:
        *_, rows = self.task(part)
        first = int(rows[0]) if len(rows) else part.start
        self.errors[first] = error
        self.lost.add(first)

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

    def keep(self, folder: Path, pieces: list[_Rows]) -> None:
        rows = np.concatenate([piece.rows for piece in pieces] or [np.empty(0, int)])
        if len(rows) and self.y is not None:
            # no row is ever simulated again, so that no file replaces another
            path = folder / f"{rows[0]:09d}-{rows[-1]:09d}.safetensors"
            piece = rows, self.y[rows], self.completed[rows]
            storage.save(path, [torch.from_numpy(array) for array in piece])

    def restore(self, folder: Path) -> None:
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self.place(_stored(storage.load(path), len(self.x)))
            except TypeError as error:
                raise ValueError(
                    f"{path} is no chunk of this campaign ({error}): delete it, and its rows are "
                    "simulated again"
                ) from error

    def simulated(self, device: torch.device) -> Simulated:
        y = np.full((len(self.x), 0), np.nan, self.x.dtype) if self.y is None else self.y
        return Simulated(*(torch.from_numpy(part).to(device) for part in (y, self.completed)))


def _chunks(
    simulator: Simulator,
    campaign: _Campaign,
    parts: list[slice],
    executor: Executor | None,
    limit: float | None,
    folder: Path | None,
) -> Generator[int]:
    """The numbers of chunks as they are done, those that the folder already has first."""
    if folder is not None:
        campaign.restore(folder)
    todo = []
    for k, part in enumerate(parts):
        if part.start < part.stop and not campaign.pending[part].any():
            yield k
        else:
            todo.append(k)
    tasks = ((simulator, limit, *campaign.task(parts[k])) for k in todo)
    with closing(outcomes(_simulate_rows, tasks, executor)) as chunks:
        for index, done, error in chunks:
            if isinstance(error, _ReturnError):
                raise error
            if error is not None:
                campaign.lose(parts[todo[index]], error)
                done = _Done([], None)
            if done.failure is not None:
                campaign.errors.update([done.failure])
            for piece in done.pieces:
                campaign.place(piece)
            if folder is not None:
                campaign.keep(folder, done.pieces)
            yield todo[index]


def _simulate_rows(
    simulator: Simulator,
    limit: float | None,
    x: np.ndarray,
    seeds: np.ndarray,
    rows: np.ndarray,
) -> _Done:
    """What the rows gave; where the simulator raises, what each half gives.

    Arrays travel between processes better than tensors, which torch would put into shared memory.
    """
    try:
        # a copy: what an executor hands over may be read-only
        returned, raised = within(limit, simulator, torch.tensor(x), seeds), None
    except LimitError:
        raise
    except Exception as error:
        returned, raised = None, error
    if raised is None:
        y, completed = _checked(returned, rows)
        bad = completed & ~np.isfinite(y).all(1)
        error = ValueError(
            "NaN or infinite in a completed row; of a failed simulation, completed is False"
        )
        failure = (int(rows[bad][0]), error) if bad.any() else None
        return _Done([_Rows(rows[~bad], y[~bad], completed[~bad])], failure)
    if len(rows) == 0:
        raise raised
    if len(rows) == 1:
        return _Done([], (int(rows[0]), portable(raised)))
    a, b = (
        _simulate_rows(simulator, limit, x[half], seeds[half], rows[half])
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


def _stored(piece: Any, n: int) -> _Rows:
    """The rows of a finished chunk, if it can be one of a campaign of n rows."""
    match piece:
        case [
            Tensor(ndim=1, dtype=torch.int64) as rows,
            Tensor(ndim=2) as y,
            Tensor(ndim=1, dtype=torch.bool) as completed,
        ]:
            good = len(rows) == len(y) == len(completed) and y.is_floating_point()
            if good and ((rows >= 0) & (rows < n)).all() and y[completed].isfinite().all():
                return _Rows(rows.numpy(), y.numpy(), completed.numpy())
    raise TypeError(f"it does not hold finite observations of some of the rows 0 to {n - 1}")


def _simulation_error(campaign: _Campaign, partial: Simulated) -> SimulationError:
    rows = np.flatnonzero(campaign.pending).tolist()
    row, cause, text = first_error(campaign.errors or {rows[0]: NOT_RUN})
    named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
    if row in campaign.lost:
        where = f"among the rows from {row} on"
    else:
        where = f"row {row}, with x = {campaign.x[row].tolist()} and seed {campaign.seeds[row]}"
    message = (
        f"{len(rows)} of {len(campaign.x)} simulations failed, rows {named or 'none'}; {where}: "
        f"{text}; the others are in .partial of this error"
    )
    error = SimulationError(message, rows, partial)
    error.__cause__ = cause
    return error


def _claim(path: Path, x: np.ndarray, seed: int | Sequence[int], name: str) -> None:
    """Write what the chunks depend on, or make sure that it is what was written there."""
    identity = {
        "simulator": name,
        "x": f"{x.dtype} of shape {x.shape}",
        "hash of x": hashlib.sha256(x.tobytes()).hexdigest(),
        "seed": np.asarray(seed).tolist(),
    }
    afresh = "choose another folder, or delete it to start afresh"
    if not path.exists():
        if any(path.parent.glob("*.safetensors")):
            raise ValueError(
                f"{path} is missing, which says whose the files beside it are: {afresh}"
            )
        storage.write(path, (json.dumps(identity, indent=1) + "\n").encode())
    try:
        stored = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is broken ({error}), so {path.parent} is lost: {afresh}"
        ) from error
    differing = [
        f"{key} is {stored.get(key)!r} there and {value!r} here"
        for key, value in identity.items()
        if stored.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"the folder {path.parent} belongs to another campaign: {', '.join(differing)}; "
            + afresh
        )
