"""A training loop as a generator: the caller decides what to log and when to stop."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..dynamics.deferral import deferred
from . import storage


class TrainingError(ArithmeticError):
    """A loss or a gradient is not finite; the parameters are those before that step."""


@dataclass(frozen=True)
class Step:
    """The record of a step: the loss before its update, the terms of the loss, and ‖gradient‖."""

    index: int
    loss: float
    terms: dict[str, float]
    grad_norm: float
    seconds: float  # since the start of training, without interruptions


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]],
    batches: Callable[[int], Any] | Iterable[Any],
    *,
    steps: int,
    lr: float | Callable[[int], float] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    max_grad_norm: float | Callable[[Sequence[Step]], float] | None = None,
    average: float | None = None,
    checkpoint: Path | None = None,
    every: int = 100,
    compiled: bool = False,
) -> Iterator[Step]:
    """The records of the steps k = 0, …, steps − 1, where step k minimises loss(model, batches(k)).

    `loss` returns a scalar, or a mapping of names to scalars whose sum is minimised. All randomness
    of step k must be in `batches(k)`, which depends on k alone. A killed run can then continue from
    `checkpoint`: it first yields the stored records, and on a CPU it ends bit-identical to an
    uninterrupted run.

    On a device, the host waits once a step, for the numbers of its record. Checks of numbers inside
    of `loss` are put off until then. If one fails, the loss is computed again to raise its error.

    The caller's loop validates, stops early and keeps the best weights::

        for step in train(flow, loss, batches, steps=5000):
            if step.index % 100 == 0 and (error := validate(flow)) < best:
                best, weights = error, copy.deepcopy(flow.state_dict())

    Args:
        batches: a function k ↦ batch of step k, such as `minibatches`, or an iterable of batches,
            such as a `DataLoader`, which is started again when it ends. A checkpoint needs a
            function, so that a continued run sees the same batches.
        lr: a number, or a schedule step ↦ lr (see `cosine`); 1e-3 by default.
        optimizer: an optimizer over the parameters of `model`, such as L-BFGS; Adam by default. The
            rates of its parameter groups hold. An `lr` beside it is a factor of each of them.
        max_grad_norm: the largest norm of the gradient; a longer gradient is scaled down to it. It
            is a number, or a function of the records of the steps before (see `autoclip`).
        average: the weight a ∈ [0, 1) of the exponential average θ̄ ← a θ̄ + (1 − a) θ of the
            parameters. It starts at the initial θ, and replaces θ after the last step.
        checkpoint: a file that is written atomically after every `every` steps and at the end.
        compiled: the loss and its gradient are compiled by `torch.compile` in the first step, on a
            GPU into a CUDA graph. This takes a C++ compiler and a minute or more, and again for
            each new shape of a batch and each number in it. Numbers agree up to rounding. Checks of
            numbers inside of `loss` are left out, and made if the loss is not finite. A loss that
            binds a context is compiled in parts.

    Raises:
        TrainingError: a term or the gradient is not finite. The step changes nothing, and the last
            checkpoint stays.
        ValueError: the checkpoint belongs to another model, optimizer or number of steps,
            `average` is not in [0, 1), the model has no parameter to train, the loss has no
            gradient, or the batches have ended and cannot be started again.
    """
    if average is not None and not 0 <= average < 1:
        raise ValueError(f"{average=} must be in [0, 1), or None for the last parameters")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter of the model requires gradients: .requires_grad_() thaws it")
    if checkpoint is not None and not callable(batches):
        raise ValueError("checkpoint= needs batches as a function k ↦ batch, such as minibatches")
    batch = batches if callable(batches) else _restarted(batches)
    if lr is None:
        lr = 1e-3 if optimizer is None else 1.0
    schedule = lr if callable(lr) else lambda step: lr
    fast = torch.compile(loss, dynamic=False, mode="reduce-overhead") if compiled else loss
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    done: list[Step] = []
    mean = None if average is None else _copies(model)
    if checkpoint is not None:
        done = _restore(checkpoint, model, optimizer, steps, mean)
        if len(done) == steps:
            _replace(model, mean)
        yield from tuple(done)
    elapsed, started = (done[-1].seconds if done else 0.0), time.monotonic()
    for index in range(len(done), steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(index)
        drawn = batch(index)
        longest = max_grad_norm(done) if callable(max_grad_norm) else max_grad_norm
        try:
            evaluated = _update(model, fast, drawn, index, optimizer, longest)
        except TrainingError:
            if compiled:
                loss(model, drawn)  # raises the error of the check that fails
            raise
        for name, value in (mean or {}).items():
            value.lerp_(model.get_parameter(name).detach(), 1 - (average or 0.0))
        done.append(Step(index, *evaluated, seconds=elapsed + time.monotonic() - started))
        if checkpoint is not None and ((index + 1) % every == 0 or index + 1 == steps):
            _keep(checkpoint, model, optimizer, steps, done, mean)
        if index + 1 == steps:
            _replace(model, mean)  # before the yield, since the caller may not resume the loop
        yield done[-1]


def cosine(lr: float, steps: int, *, floor: float = 0.0) -> Callable[[int], float]:
    """The schedule step ↦ floor + (lr − floor)(1 + cos(π step/steps))/2."""
    return lambda step: floor + 0.5 * (lr - floor) * (1 + math.cos(math.pi * step / steps))


def autoclip(factor: float = 2.0, *, window: int = 1000) -> Callable[[Sequence[Step]], float]:
    """The bound `factor` times the median of ‖gradient‖ over the last `window` steps.

    It is a value of `max_grad_norm` for losses whose gradient explodes now and then, and it needs
    no number in the units of the loss. The first step has no bound.

    Reference: seetharaman2020autoclip, who take a percentile of all steps in place of the median.
    """

    def bound(done: Sequence[Step]) -> float:
        norms = [step.grad_norm for step in done[-window:]]
        return factor * float(np.median(norms)) if norms else math.inf

    return bound


def minibatches(*data: Tensor, size: int, seed: int) -> Callable[[int], tuple[Tensor, ...]]:
    """The function k ↦ batch of step k, drawn without replacement within an epoch.

    Each epoch is shuffled with a seed made of `seed` and its number. It leaves out the samples that
    do not fill a batch of `size`.

    Raises:
        ValueError: `size` is not in 1..n, or the tensors of `data` differ in length.
    """
    n = data[0].shape[0]
    if not 1 <= size <= n or any(part.shape[0] != n for part in data):
        lengths = [part.shape[0] for part in data]
        raise ValueError(f"size={size} must be in 1..n for data of one length n, got {lengths}")
    per_epoch = n // size

    def batch(step: int) -> tuple[Tensor, ...]:
        epoch, k = divmod(step, per_epoch)
        state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])
        generator = torch.Generator().manual_seed(state)
        rows = torch.randperm(n, generator=generator)[k * size : (k + 1) * size]
        return tuple(part[rows.to(part.device)] for part in data)

    return batch


def _restarted(batches: Iterable[Any]) -> Callable[[int], Any]:
    """The function that returns the next of the batches, which start again when they end."""
    running = [iter(batches)]

    def batch(step: int) -> Any:
        for _ in range(2):
            for found in running[0]:
                return found
            running[0] = iter(batches)
        raise ValueError(
            f"the batches ended before step {step} and cannot be started again: give a DataLoader,"
            " a list, or a function k ↦ batch in place of a generator"
        )

    return batch


def _update(model, loss, batch, index, optimizer, max_grad_norm):
    """The loss, its terms and the gradient norm before the step of the optimizer that is taken."""
    evaluations = []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def closure() -> float:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        terms, checks = _terms(model, loss, batch)
        total = torch.stack(list(terms.values())).sum()
        if total.device.type == "cpu" or not total.requires_grad:
            _finite_terms(terms, _numbers(list(terms.values())), index)
        if not total.requires_grad:
            raise ValueError(
                "the loss has no gradient: it does not depend on a parameter that requires one."
                " Look for a frozen model, torch.no_grad(), .detach() or .item()"
            )
        total.backward()
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        # on a device, the one moment of the step at which the host waits
        numbers = _numbers([*terms.values(), total, norm, *checks])
        if not all(numbers[len(terms) + 2 :]):
            loss(model, batch)  # raises the error of the check that failed
            raise TrainingError(f"the loss of step {index} is not the same when it is repeated")
        values = _finite_terms(terms, numbers, index)
        value, length = numbers[len(terms) : len(terms) + 2]
        if not math.isfinite(length):
            raise TrainingError(f"the gradient is not finite at step {index}; {_ADVICE}")
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        evaluations.append((value, values, length))
        return value

    optimizer.step(closure)
    return evaluations[0]


def _terms(model, loss, batch) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The terms of the loss, and the checks of numbers on a device that were put off."""
    with deferred() as checks:
        try:
            terms = loss(model, batch)
        except Exception:  # perhaps caused by what a check that was put off would have refused
            if all(map(bool, checks)):
                raise
            terms = None
    if terms is None:
        terms, checks = loss(model, batch), []
    if not isinstance(terms, Tensor | Mapping):
        kind = type(terms).__name__
        raise TypeError(f"loss must return a tensor or a mapping to tensors, got a {kind}")
    return {"loss": terms} if isinstance(terms, Tensor) else dict(terms), checks


def _numbers(tensors: list[Tensor]) -> list[float]:
    """The values of tensors of one element, in a single copy from their device."""
    where = next((x.device for x in tensors if x.device.type != "cpu"), None)
    if where is None:
        return [x.item() for x in tensors]
    return torch.stack([x.detach().to(where).reshape(()) for x in tensors]).tolist()


def _finite_terms(terms: dict[str, Tensor], numbers: list[float], index: int) -> dict[str, float]:
    """The first of the numbers by the names of the terms, after a check that they are finite."""
    values = dict(zip(terms, numbers, strict=False))
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"term {name!r} of the loss is {value} at step {index}; {_ADVICE}")
    return values


_ADVICE = "lower lr, set max_grad_norm, or look at that batch"


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@torch.no_grad()
def _replace(model: nn.Module, mean: dict[str, Tensor] | None) -> None:
    for name, value in (mean or {}).items():
        model.get_parameter(name).copy_(value)


def _keep(path: Path, model, optimizer, steps: int, done: list[Step], mean) -> None:
    names = list(done[0].terms)
    rows = [[s.loss, s.grad_norm, s.seconds, *(s.terms[name] for name in names)] for s in done]
    history = {"terms": names, "rows": torch.tensor(rows, dtype=torch.float64)}
    storage.save(
        path,
        {
            "steps": steps,
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "kind": type(optimizer).__name__,
            "history": history,
        }
        | ({} if mean is None else {"average": mean}),
    )


def _restore(path: Path, model, optimizer, steps: int, mean) -> list[Step]:
    try:
        kept, before = storage.load(path), copy.deepcopy(model.state_dict())
    except FileNotFoundError:  # not asked before: another process may delete it in between
        return []
    try:
        if kept["steps"] != steps:
            raise ValueError(f"it was made for steps={kept['steps']}, not {steps}")
        if kept["kind"] != type(optimizer).__name__:
            raise ValueError(f"it was made by {kept['kind']}, not by {type(optimizer).__name__}")
        done = _steps(kept["history"])
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        for name, value in (mean or {}).items():
            value.copy_(kept["average"][name])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        model.load_state_dict(before)
        raise ValueError(
            f"the checkpoint {path} belongs to another run ({error}): delete it and run again"
        ) from error
    return done


def _steps(history: dict[str, Any]) -> list[Step]:
    """The records of a history that `_keep` has written."""
    return [
        Step(i, loss, dict(zip(history["terms"], terms, strict=True)), norm, seconds)
        for i, (loss, norm, seconds, *terms) in enumerate(history["rows"].tolist())
    ]
