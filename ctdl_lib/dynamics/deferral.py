"""Checks of numbers on a device, put off until a training step fetches all its numbers at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_put_off: ContextVar[list[Tensor] | None] = ContextVar("put_off", default=None)


@contextmanager
def deferred() -> Iterator[list[Tensor]]:
    """The checks of numbers on a device that were made inside and put off.

    To look at a number on a device, the host waits until all work before it is done. A training
    step would wait dozens of times, and the device be idle in between. Checks of numbers on a CPU
    are never put off.
    """
    checks: list[Tensor] = []
    token = _put_off.set(checks)
    try:
        yield checks
    finally:
        _put_off.reset(token)


def holds(condition: Tensor) -> bool:
    """The answer whether all entries are true, or True if the check is put off."""
    if torch.compiler.is_compiling():  # numbers do not exist yet; `train` looks at its loss
        return True
    checks, everywhere = _put_off.get(), condition.all()
    # what a transform of torch.func computes cannot be looked at after its end
    if checks is None or condition.device.type == "cpu" or in_transform():
        return bool(everywhere)
    checks.append(everywhere)
    return True


def in_transform() -> bool:
    """The answer whether a transform of torch.func is running, such as vjp or vmap."""
    stack = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return stack is not None
