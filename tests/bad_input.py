"""The replay of every working call with bad arguments, one at a time, as a user runs it.

An error is clear if the library raises it on purpose or if it names the argument, and obscure
otherwise. A call without an error is accepted. `make bad-input` prints the whole table.
"""

import inspect
import json
import linecache
import math
import random
import re
import signal
import sys
import traceback
import typing
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from working_calls import CALLS, COLUMNS, DIMENSIONS, INTEGERS, NOTHING

import ctdl_lib

LIBRARY = str(Path(ctdl_lib.__file__).parent)
SECONDS = 2.0  # of each call
SHAPES = ("tensor: one dimension less", "tensor: one dimension more", "tensor: one column more")


class TooSlow(BaseException):
    """A call that has not ended in time."""


def parameters_of(function):
    return inspect.signature(inspect.unwrap(function)).parameters


def bad_values(value, parameter, free):
    """The pairs of a category and a bad value, in place of a value that works."""
    hint, may_be_none = parameter.annotation, parameter.default is None
    if NOTHING in free:
        return
    if not may_be_none and type(None) not in typing.get_args(hint):
        yield "None", None
    if isinstance(value, bool):
        return
    if isinstance(value, Tensor):
        scalar = parameter.name == "t"  # one time for all samples is right as well
        yield from bad_tensors(value, free, scalar)
    elif isinstance(value, int):
        yield from (("count 2.5 or NaN", 2.5), ("count 2.5 or NaN", math.nan), ("count '3'", "3"))
        if parameter.name != "seed":
            yield "count -1", -1
    elif isinstance(value, float):
        yield from (("number NaN", math.nan), ("number as text", "1.0"))
    elif isinstance(value, str):
        yield "unknown word", "banana"
    elif callable(value) and not isinstance(value, torch.nn.Module):
        yield "callable returns a number", lambda *args: 0.5
        yield "callable returns None or takes nothing", lambda *args: None
        if typing.get_args(hint)[:1] != ([],):
            yield "callable returns None or takes nothing", lambda: 0.5


def bad_tensors(x, free, scalar):
    if x.is_floating_point():
        for number in (math.nan, math.inf):
            spoiled = x.clone()
            spoiled.view(-1)[0] = number
            yield "tensor: NaN or infinite entry", spoiled
        if INTEGERS not in free:
            yield "tensor: int in place of float", x.round().long()
    yield "tensor: meta device", x.to("meta")
    if DIMENSIONS not in free:
        if not scalar:
            yield SHAPES[0], x[0]
        yield SHAPES[1], x[None]
    if COLUMNS not in free:
        yield SHAPES[2], torch.cat([x, x[..., :1]], -1)


def outcome(function, arguments, name):
    """The category of what a call does: clear, obscure or accepted, and what was seen."""

    def stop(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = function(**arguments)
        return "accepted", describe(result)
    except TooSlow:
        return "hang", f"more than {SECONDS} s"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = linecache.getline(last.filename, last.lineno).strip()
        ours = last.filename.startswith(LIBRARY) and line.startswith("raise ")
        ours = ours and isinstance(error, ValueError | TypeError | ArithmeticError)
        named = re.search(rf"(?<![\w']){re.escape(name)}(?!\w)", str(error))
        said = f"{type(error).__name__}: {str(error)[:90]!r} ({Path(last.filename).name})"
        return ("clear" if ours or named else "obscure"), said
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def describe(result):
    if isinstance(result, Tensor):
        bad = "" if result.is_meta or bool(result.isfinite().all()) else " with NaN or ∞"
        return f"{tuple(result.shape)}{bad}"
    return type(result).__name__


def replay(share=1.0, seed=0):
    """One row for each bad call, or for a share of them: function, argument, category, outcome."""
    chosen = random.Random(seed)
    for function, arguments, free in CALLS:
        shown = getattr(inspect.unwrap(function), "__qualname__", repr(function))
        for name, value in arguments.items():
            parameter = parameters_of(function).get(name, PLAIN)
            for category, bad in bad_values(value, parameter, free.get(name, ())):
                if chosen.random() < share:
                    torch.manual_seed(0)
                    found = outcome(function, {**arguments, name: bad}, name)
                    yield (shown, name, category, *found)


PLAIN = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY)


def table(rows):
    """The table of outcomes by category, in text."""
    lines = [f"{'what must fail':42s} calls  clear  obscure  accepted  hang"]
    for category in [*sorted({row[2] for row in rows}), None]:
        found = Counter(row[3] for row in rows if category in (None, row[2]))
        clear, obscure, accepted = (
            100 * found[kind] / found.total() for kind in ("clear", "obscure", "accepted")
        )
        lines.append(
            f"{category or 'all':42s}{found.total():6d}{clear:6.1f}%{obscure:8.1f}%{accepted:9.1f}%"
            f"{found['hang']:6d}"
        )
    return "\n".join(lines)


def main(share):
    for function, arguments, _ in CALLS:
        function(**arguments)  # the table's calls work
    rows = list(replay(share))
    print(table(rows))
    return rows


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    rows = main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
    for row in rows if len(sys.argv) < 2 else ():
        print("" if row[3] == "clear" else "; ".join(row), end="" if row[3] == "clear" else "\n")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(rows))
