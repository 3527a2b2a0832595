"""Measurements of the time, the memory and the memory traffic of a computation."""

import time
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def interleaved_times(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 10
) -> dict[str, float]:
    """The shortest wall time of each contender in seconds, over rounds that run them in turn.

    A slow period of the machine then affects all contenders, and the minimum excludes it. Before
    the first round each contender runs once without a measurement.
    """
    return {name: min(found) for name, found in interleaved_rounds(contenders, rounds).items()}


def interleaved_rounds(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """The seconds of each contender in each round of all in turn, after a round not measured."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def retained_bytes(compute: Callable[[], object]) -> int:
    """The bytes of all tensors created by `compute` that are alive when it has returned.

    For a forward pass these are its result and the tensors stored for the backward pass.
    """
    with _Storages() as made:
        result = compute()
    alive = sum(size for reference, size in made.sizes.values() if not reference.expired())
    del result
    return alive


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that tensors created by `compute` occupy at one time.

    For a forward and a backward pass these are the tensors stored for the latter, or those that it
    computes again. Tensors that an operation creates and frees inside of itself do not count.
    """
    with _Peak() as made:
        compute()
    return made.peak


def moved_bytes(compute: Callable[[], object]) -> int:
    """The bytes of all tensors that the operations within `compute` read and write.

    An operation that returns a view, such as a reshape without a copy, counts as zero bytes. The
    count ignores caches and repeated reads within one operation.
    """
    with _Traffic() as traffic:
        compute()
    return traffic.bytes


class _Storages(TorchDispatchMode):
    """The storages of all tensors that are created within the context, with their sizes."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in known:
                storage = x.untyped_storage()
                # while the weak reference exists, no other storage has the same identity
                self.sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result


class _Peak(_Storages):
    """The same, and the largest sum of the sizes that are alive after an operation."""

    def __init__(self):
        super().__init__()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.sizes = {k: made for k, made in self.sizes.items() if not made[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.sizes.values()))
        return result


class _Traffic(TorchDispatchMode):
    """The bytes read and written by the operations within the context."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        known = {x.untyped_storage()._cdata for x in read}
        is_view = func.is_view or all(x.untyped_storage()._cdata in known for x in written)
        if not is_view or func._schema.is_mutable:
            # an expanded tensor has fewer bytes than entries
            self.bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in read + written)
        return result
