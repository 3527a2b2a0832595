"""Numbers that judge a result."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Spread(NamedTuple):
    """Mean and standard deviation over repetitions."""

    mean: float
    std: float


def accuracy(logits: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]) -> float:
    """The percentage of samples whose class is recognised; one logit means class 1 where > 0."""
    return 100 * int((predict(logits) == label).sum()) / len(label)


def cross_entropy(
    logits: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """The mean of −log(probability of the right class), by softmax; of one logit, by sigmoid."""
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], label.to(logits))
    return functional.cross_entropy(logits, label)


def predict(logits: Float[Tensor, "batch classes"]) -> Int[Tensor, " batch"]:
    """The most probable class; of one logit, class 1 where it is positive."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def spread(values: Sequence[float]) -> Spread:
    """The mean and the standard deviation √(Σ(x − mean)²/(n − 1))."""
    if len(values) < 2:
        raise ValueError(f"a spread needs at least two values, got {len(values)}")
    mean = math.fsum(values) / len(values)
    return Spread(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)))


def observed_orders(errors: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """The slopes log(eₖ/eₖ₊₁)/log(sₖ/sₖ₊₁) between consecutive step sizes s."""
    pairs = zip(errors[:-1], errors[1:], sizes[:-1], sizes[1:], strict=True)
    return [math.log(e0 / e1) / math.log(s0 / s1) for e0, e1, s0, s1 in pairs]


def interleaved_times(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 10
) -> dict[str, float]:
    """The shortest wall time of each contender in seconds, over rounds in which all run by turns.

    Interleaving lets a slow moment of the machine hit all contenders; the minimum forgets it. Each
    runs once unmeasured first.
    """
    for run in contenders.values():
        run()
    best = dict.fromkeys(contenders, math.inf)
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def retained_bytes(compute: Callable[[], object]) -> int:
    """The bytes of all tensors made by `compute` that are still alive when it has returned.

    For a forward pass they are its result and what is stored for the way back, wherever it is kept.
    """
    with _Storages() as made:
        result = compute()
    alive = sum(size for reference, size in made.sizes.values() if not reference.expired())
    del result
    return alive


class _Storages(TorchDispatchMode):
    """The storages of all tensors that are made inside of the context, with their sizes."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in known:
                storage = x.untyped_storage()
                # a weak reference keeps the identity from being used again
                self.sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result
