"""Independent tasks, on any `concurrent.futures.Executor`, of which no result is lost."""

import dataclasses
import functools
import hashlib
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import closing
from enum import Enum
from multiprocessing.reduction import ForkingPickler
from pathlib import Path, PurePath
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctdl_lib.learning import storage

# Tasks handed to an executor and not yet done: they keep hundreds of workers busy, and their
# arguments are all that is in memory twice.
WINDOW = 1024


NOT_RUN = RuntimeError("it was not run")


_PLAIN = bool, int, float, str, type(None)


# their repr says all there is to say of them
_WRITTEN_OUT = *_PLAIN, complex, bytes, range, slice, Enum, PurePath, np.generic, torch.dtype


class TaskError(RuntimeError):
    """Tasks failed; `results` holds those of all others, and `failed` index ↦ exception."""

    def __init__(self, message: str, failed: Mapping[int, BaseException], results: list):
        super().__init__(message)
        self.failed, self.results = failed, results


class LimitError(RuntimeError):
    """A time limit is no positive number, or was asked for where nothing can interrupt a task."""


def run(
    function: Callable[..., Any],
    arguments: Sequence[Sequence],
    *,
    executor: Executor | None = None,
    limit: float | None = None,
    folder: Path | None = None,
    progress: Callable[..., Iterable] = lambda tasks, total, desc: tasks,
) -> list:
    """The results of `function(*arguments[i])` for i = 0, 1, …, in this order.

    A task that fails does not keep the others from being run.

    Args:
        executor: this process by default; a pool of processes; on a cluster, `get_executor()` of a
            client of `dask.distributed`, which runs again what a dead worker has lost.
        limit: the seconds after which a task is cut and fails with TimeoutError; see `within`.
        folder: each result is written there when its task is done, and read there when the same
            function is to be called with the same arguments at the same place of the list, which
            may have grown. Results are then nests of numbers, strings, tensors, None, lists, tuples
            and dicts; tensors come back on the CPU. The code of the function is not compared: empty
            the folder when it changes.
        progress: `progress(tasks, total=…, desc=…)` wraps the tasks, as `tqdm` does.

    Raises:
        TaskError: some failed; it holds the results of all others.
        TypeError: with a folder, a result is something else; those finished before are there.
        ValueError: with a folder, the function or an argument has no `identity`.
    """
    results: list = [None] * len(arguments)
    failed: dict[int, BaseException] = dict.fromkeys(range(len(arguments)), NOT_RUN)
    with closing(_kept_outcomes(function, arguments, executor, limit, folder)) as done:
        for index, result, error in progress(done, total=len(arguments), desc="tasks"):
            results[index] = result
            failed.pop(index)
            failed.update({index: error} if error is not None else {})
    if failed:
        first, cause, text = first_error(failed)
        message = f"{len(failed)} of {len(arguments)} tasks failed; number {first}: {text}; "
        message += "the results of the others are in .results of this error"
        raise TaskError(message, failed, results) from cause
    return results


def within(limit: float | None, function: Callable, *args) -> Any:
    """The result of `function(*args)`; TimeoutError after `limit` seconds, where it is not None.

    An alarm of the operating system cuts the call, in this process or in a pool of processes. It
    waits for compiled code until that returns to Python.

    Raises:
        LimitError: the limit is not positive; this is Windows, or no main thread, as in pools of
            threads and workers of dask.
    """
    if limit is None:
        return function(*args)
    if not limit > 0:
        raise LimitError(f"limit must be a positive number of seconds or None, got {limit}")
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        raise LimitError(
            "limit= cuts tasks in the main thread of a process only, and not on Windows: use a "
            "pool of processes or no executor, or limit=None with threads and dask"
        )

    def stop(number, frame):
        raise TimeoutError(f"it was cut since it did not end within limit={limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def identity(value: Any) -> str:
    """The text that tells a value from others, in all processes alike.

    Arrays and tensors are told apart by their type, shape and a hash of their entries, functions
    and classes by name, not by their code, dataclasses and `functools.partial` by what they hold.

    Raises:
        ValueError: a function has no name of its own, or an object is none of these.
    """
    if isinstance(value, Tensor | np.ndarray):
        entries = hashlib.sha256(_bytes(value)).hexdigest()
        return f"{value.dtype} of shape {tuple(value.shape)}, hash {entries}"
    if isinstance(value, _WRITTEN_OUT):
        return repr(value)
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return f"{kind}({', '.join(map(identity, value))})"
    if isinstance(value, set | frozenset):
        return f"{kind}({', '.join(sorted(map(identity, value)))})"
    if isinstance(value, dict):
        pairs = (f"{identity(key)}: {identity(entry)}" for key, entry in value.items())
        return f"{kind}({', '.join(sorted(pairs))})"
    if isinstance(value, functools.partial):
        return f"{identity(value.func)} of {identity(value.args)}, {identity(value.keywords)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        fields = (f"{name}={identity(getattr(value, name))}" for name in names)
        return f"{identity(type(value))}({', '.join(fields)})"
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return f"{identity(owner)}.{value.__name__}"
    return _name(value)


def outcomes(
    function: Callable, arguments: Iterable[Sequence], executor: Executor | None
) -> Generator[tuple[int, Any, BaseException | None]]:
    """The triples (i, result, error) of `function(*arguments[i])` as they are done; one is None."""
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
                except RuntimeError as error:
                    # broken, or shut down, which has no exception of its own
                    tasks = iter(())
                    broken = isinstance(error, BrokenExecutor)
                    yield task[0], None, error if broken else BrokenExecutor(str(error))
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


def first_error(errors: Mapping[int, BaseException]) -> tuple[int, BaseException, str]:
    """The first error, also in words; before all others that of an executor, which does most harm.

    It comes as (index, exception, text).
    """
    broken = [index for index, error in errors.items() if isinstance(error, BrokenExecutor)]
    error = errors[first := min(broken or errors)]
    return first, error, f"{type(error).__name__}: {error}{_ADVICE if broken else ''}"


_ADVICE = (
    " (the executor was shut down, or a process of it died: killed, out of memory, or crashed; "
    "what was finished is kept: call again with a new executor, and with folder= to go on where "
    "this call ended)"
)


def _kept_outcomes(
    function: Callable,
    arguments: Sequence[Sequence],
    executor: Executor | None,
    limit: float | None,
    folder: Path | None,
) -> Generator[tuple[int, Any, BaseException | None]]:
    """The outcomes; those that the folder has come first, and others are written there."""
    limited = functools.partial(within, limit, function)
    if folder is None:
        yield from outcomes(limited, arguments, executor)
        return
    files = [_file(folder, index, function, args) for index, args in enumerate(arguments)]
    todo = []
    for index, file in enumerate(files):
        if file.exists():
            yield index, storage.load(file), None
        else:
            todo.append(index)
    with closing(outcomes(limited, (arguments[index] for index in todo), executor)) as done:
        for k, result, error in done:
            if error is None:
                for kind in _strangers(result):
                    raise TypeError(
                        f"a folder keeps numbers, strings, tensors, None, and lists, tuples and "
                        f"dicts of them, but task {todo[k]} returned a {kind}: convert it there"
                    )
                storage.save(files[todo[k]], result)
                # as it will be when it is read again
                result = storage.load(files[todo[k]])
            yield todo[k], result, error


def _file(folder: Path, index: int, function: Callable, args: Sequence) -> Path:
    what = hashlib.sha256(identity((function, *args)).encode()).hexdigest()
    return folder / f"{index:06d}-{what[:32]}.safetensors"


def _strangers(node: Any) -> Iterator[str]:
    """The types of all that would not come back from `storage` as it was."""
    if type(node) is dict:
        yield from (f"key of type {type(k).__name__}" for k in node if not isinstance(k, _PLAIN))
        node = list(node.values())
    if type(node) in (list, tuple):
        for entry in node:
            yield from _strangers(entry)
    elif not isinstance(node, (Tensor, *_PLAIN)):
        yield type(node).__name__


def _bytes(value: Tensor | np.ndarray) -> bytes:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    elif value.dtype.hasobject:
        return identity(value.tolist()).encode()
    return value.tobytes()


def _name(value: Any) -> str:
    """The name by which a function or class is imported."""
    name = getattr(value, "__qualname__", None)
    if name is None:
        raise ValueError(
            f"an object of {type(value).__module__}.{type(value).__qualname__} has no values that "
            "tell it from others: make it a frozen dataclass"
        )
    if "<lambda>" in name or "<locals>" in name:
        raise ValueError(
            f"{value.__module__}.{name} has no name that tells it from others: define it in a "
            "module"
        )
    return f"{value.__module__}.{name}"


def _guarded(function: Callable, *args) -> tuple[Any, Exception | None]:
    """The result of a task and None, or None and what it has raised."""
    try:
        return function(*args), None
    except Exception as error:
        return None, portable(error)


def _settled(future: Future) -> tuple[Any, BaseException | None]:
    if future.cancelled():
        return None, CancelledError("the executor was closed")
    error = future.exception()
    return future.result() if error is None else (None, error)


def portable(error: Exception) -> Exception:
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
