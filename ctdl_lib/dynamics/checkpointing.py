"""Many steps whose backward pass keeps few states and computes the others again."""

import math
from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from .stepping import Tensors


def forgetting(function: Callable[..., Any], *args: Any) -> Any:
    """The value of the function, of which the backward pass keeps the arguments alone.

    Inside of another such call, not even those are kept that are tensors.
    """
    return checkpoint(function, *args, use_reentrant=False, determinism_check="none")


def sparse_steps(
    step: Callable[[int, Tensors], Tensors], x: Tensors, first: int, last: int, snapshots: int
) -> Tensors:
    """The state after the steps first, …, last − 1, of which the backward pass keeps few.

    After the forward pass, s = `snapshots` + 1 states are kept, x among them. Let r be the least
    number with C(s + r, r) ≥ n, for n steps. They are evaluated (r + 1)n + 1 − C(s + r, r − 1)
    times in all, and no schedule for s states needs fewer. The backward pass holds 2s + r − 1
    states at most, because PyTorch lets some go late, and the stages of one step.

    Reference: griewank2000algorithm.
    """
    # tensors inside of a tuple would be kept
    if last - first == 1:
        return forgetting(lambda *x: step(first, x), *x)
    middle = first + _first_part(last - first, snapshots)
    state = forgetting(lambda *x: sparse_steps(step, x, first, middle, snapshots), *x)
    return sparse_steps(step, state, middle, last, max(snapshots - 1, 0))


def _first_part(n: int, snapshots: int) -> int:
    """How many of n steps come before the next state that is kept."""
    s, r = snapshots + 1, 0
    while math.comb(s + r, s) < n:
        r += 1
    rest = math.comb(s + r - 2, s - 1) if r > 1 else 1
    return max(1, min(math.comb(s + r - 1, s), n - rest, n - 1))
