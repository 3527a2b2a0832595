"""Checks of the arguments of public functions and methods, made from their annotations.

Wrong arguments get an error that names the argument, what came and what was wanted. Only the call
of the user is checked: what the library and the functions it was given call meanwhile is not, so
that inner loops cost nothing. The environment variable CTDL_CHECKS=0 leaves all checks out.
"""

import functools
import inspect
import math
import numbers
import os
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from torch import Tensor

ENABLED = os.environ.get("CTDL_CHECKS", "1") != "0"
MOST = 10**8  # of any count: more is a slip, and would run for days
# Whole numbers that may be zero. All others are counts, of which there is at least one.
FROM_ZERO = {"augment", "axis", "context_dim", "evaluations", "hidden", "index", "seed"}
FROM_ZERO |= {"accepted", "rejected", "backward_evaluations"}
ENTRIES = {"Float": "floating point", "Int": "integers", "Bool": "bool", "Shaped": "numbers"}

GUARDED = "__guarded__"

Sizes = dict[str, Any]
Fault = tuple[type[Exception], str]
Rule = Callable[[Any, Sizes], Fault | None]


class _Thread(threading.local):
    inside = False


_thread = _Thread()


def guard(name: str) -> None:
    """Set checks on what the module `name` defines, or on what the package `name` exports."""
    module, root = sys.modules[name], __name__.split(".")[0] + "."
    exported = getattr(module, "__all__", None)
    for key, value in list(vars(module).items()) if ENABLED else ():
        own = getattr(value, "__module__", None) == name if exported is None else key in exported
        if not own or key.startswith("_"):
            continue
        if inspect.isfunction(value):
            checked = _checked(value, key)
            checked.__module__ = name  # where pickle finds it
            setattr(module, key, checked)
        elif inspect.isclass(value) and not issubclass(value, tuple | Exception):
            for cls in value.__mro__:
                if cls.__module__.startswith(root) and not getattr(cls, "_is_protocol", False):
                    _guard_class(cls)


def _guard_class(cls: type) -> None:
    for key, member in list(vars(cls).items()):
        public = not key.startswith("_") or key in ("__init__", "__call__")
        abstract = getattr(member, "__isabstractmethod__", False)
        guarded = hasattr(member, GUARDED)
        if public and inspect.isfunction(member) and not (abstract or guarded):
            shown = cls.__name__ if key == "__init__" else f"{cls.__name__}.{key}"
            setattr(cls, key, _checked(member, shown))


def _checked(function: Callable[..., Any], shown: str) -> Callable[..., Any]:
    """The function with checks of its arguments, if they are not made by one that is running."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    is_method = "." in function.__qualname__.split("<locals>.")[-1] and function.__name__[0] != "_"
    rules = {p.name: (p, _rule(p.annotation, p.name)) for p in parameters}

    @functools.wraps(function)
    def call(*args, **kwargs):
        if _thread.inside or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        _thread.inside = True
        try:
            _check(args, kwargs)
            return function(*args, **kwargs)
        finally:
            _thread.inside = False

    def _check(args, kwargs) -> None:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return  # Python names the argument that is missing or unknown
        sizes = _Sizes(args[0] if is_method else None)
        for name, value in given.items():
            p, rule = rules[name]
            if rule is None or (p.default is None and value is None):
                continue
            for part in value if p.kind == p.VAR_POSITIONAL else (value,):
                fault = rule(part, sizes)
                if fault is not None:
                    raise fault[0](f"{shown}: {name}{fault[1]}")

    call.__dict__[GUARDED] = True
    return call


class _Sizes(dict):
    """The sizes of named dimensions in a call; a method starts with those its object knows."""

    def __init__(self, owner: Any):
        super().__init__()
        self.owner = owner

    def __missing__(self, name: str) -> int | None:
        size = getattr(self.owner, name, None)
        return size if type(size) is int else None


def _rule(hint: Any, name: str) -> Rule | None:
    """The rule that an annotation makes for the argument `name`, or None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and hasattr(hint, "dim_str"):
        entries = ENTRIES.get(hint.dtype.__name__, "numbers")
        return functools.partial(_array, hint, hint.dim_str.split(), entries)
    if hint is int:
        return functools.partial(_count, 0 if name in FROM_ZERO else 1, name)
    if hint is float:
        return _number
    if origin in (typing.Union, types.UnionType):
        rules = [_rule(arg, name) for arg in args if not (arg is int and float in args)]
        known = [rule for rule in rules if rule is not None]
        return functools.partial(_any_of, hint, known) if len(known) == len(rules) else None
    if origin is Literal:
        return functools.partial(_word, args)
    if origin is Callable:
        return functools.partial(_function, len(args[0]) if isinstance(args[0], list) else None)
    if origin in (Sequence, tuple, list):
        same = origin is not tuple or args[1:] == (...,)
        return functools.partial(_row, _rule(args[0], name) if same else None)
    if getattr(hint, "_is_protocol", False) and hint is not SupportsIndex:
        return functools.partial(_parts, hint)
    kind = origin or (type(None) if hint is None else hint)
    if not inspect.isclass(kind) or kind in (inspect.Parameter.empty, object, Any, SupportsIndex):
        return None
    return functools.partial(_instance, kind)


def _array(hint: Any, names: list[str], entries: str, value: Any, sizes: Sizes) -> Fault | None:
    shown = [str(n if sizes[n] is None else sizes[n]) for n in names]
    wanted = f"({', '.join(shown)}{',' * (len(names) == 1)})"
    if not isinstance(value, hint.array_type):
        kind = "an array" if hint.array_type is np.ndarray else "a tensor"
        return TypeError, f" must be {kind} of shape {wanted}, got {_what(value)}"
    tensor = isinstance(value, Tensor)
    if tensor and not _has(value, entries):
        return TypeError, f" must be {entries} of shape {wanted}, got {_what(value)}"
    known = {}
    if not _fits(names, tuple(value.shape), sizes, known):
        return ValueError, f" must have shape {wanted}, got {_what(value)}"
    sizes.update(known)
    if tensor and value.is_meta:
        return ValueError, f" must have values, got {_what(value)}"
    if entries == "floating point" and not _finite(value):
        bad = (~value.isfinite()).reshape(len(value) if value.dim() else 1, -1).any(1)
        said = f"{int(bad.sum())} of {len(bad)} rows have NaN or infinite entries"
        return ValueError, f" must be finite, but {said} (first row {int(bad.nonzero()[0])})"
    return None


def _fits(names: list[str], shape: tuple[int, ...], sizes: Sizes, known: Sizes) -> bool:
    """The answer whether a shape has the named sizes; new ones are entered in `known`."""
    rest = [i for i, n in enumerate(names) if n == "..." or n.startswith("*")]
    if rest:
        i, after = rest[0], len(names) - rest[0] - 1
        if len(shape) < len(names) - 1:
            return False
        middle, name = shape[i : len(shape) - after], names[i]
        if name != "..." and known.setdefault(name, sizes.get(name, middle)) != middle:
            return False
        names, shape = names[:i] + names[i + 1 :], shape[:i] + shape[len(shape) - after :]
    if len(names) != len(shape):
        return False
    for name, size in zip(names, shape, strict=True):
        wanted = int(name) if name.isdigit() else known.get(name, sizes[name])
        if wanted is not None and wanted != size:
            return False
        known[name] = size
    return True


def _has(x: Tensor, entries: str) -> bool:
    if entries == "floating point":
        return x.is_floating_point()
    whole = not (x.is_floating_point() or x.is_complex())
    return (entries == "numbers") or (whole and (x.dtype == torch.bool) == (entries == "bool"))


def _finite(x: Tensor) -> bool:
    # looking would stop the queue of a GPU, and a mode that counts or traces sees only the call
    if x.device.type != "cpu" or torch._C._len_torch_dispatch_stack():
        return True
    try:
        return bool(x.detach().isfinite().all())  # unseen by hooks on what autograd saves
    except RuntimeError:  # inside torch.func.vmap a tensor has no single truth value
        return True


def _count(least: int, name: str, value: Any, sizes: Sizes) -> Fault | None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        wanted = f" must be an integer and must be at least {least}, got "
        if whole:
            return ValueError, f"{wanted}{name}={value}"
        return TypeError, wanted + _what(value)
    if value > MOST and least:
        return ValueError, f" must be at most {MOST}, got {value}"
    return None


def _number(value: Any, sizes: Sizes) -> Fault | None:
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
        return (ValueError, " must have a value, not be on meta") if value.is_meta else None
    if not isinstance(value, numbers.Real):
        return TypeError, f" must be a number, got {_what(value)}"
    return (ValueError, " must be a number, got nan") if math.isnan(value) else None


def _word(words: tuple[Any, ...], value: Any, sizes: Sizes) -> Fault | None:
    if isinstance(value, str | int) and value in words:
        return None
    listed = " or ".join((", ".join(f'"{w}"' for w in words[:-1]), f'"{words[-1]}"'))
    return ValueError, f" must be {listed}, got {value!r}"


def _function(count: int | None, value: Any, sizes: Sizes) -> Fault | None:
    if not callable(value):
        return TypeError, f" must be a function, got {_what(value)}"
    if count is None or isinstance(value, torch.nn.Module):
        return None
    try:
        inspect.signature(value).bind(*[None] * count)
    except TypeError as error:
        return TypeError, f" must be a function of {count} positional arguments: {error}"
    except ValueError:  # a function of C has no signature
        return None
    return None


def _row(rule: Rule | None, value: Any, sizes: Sizes) -> Fault | None:
    rows = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not rows and not (isinstance(value, Tensor | np.ndarray) and value.ndim == 1):
        return TypeError, f" must be a sequence, got {_what(value)}"
    for k, part in enumerate(value):
        fault = rule(part, sizes) if rule else None
        if fault is not None:
            return fault[0], f"[{k}]{fault[1]}"
    return None


def _parts(protocol: Any, value: Any, sizes: Sizes) -> Fault | None:
    names = [n for n in vars(protocol) if not n.startswith("_")]
    lacking = [n for n in names if not hasattr(value, n)]
    said = f" must be a {protocol.__name__}, but {type(value).__name__} lacks {', '.join(lacking)}"
    return (TypeError, said) if lacking else None


def _instance(kind: type, value: Any, sizes: Sizes) -> Fault | None:
    if isinstance(value, kind):
        lost = isinstance(value, Tensor) and value.is_meta
        return (ValueError, f" must have values, got {_what(value)}") if lost else None
    return TypeError, f" must be a {kind.__name__}, got {_what(value)}"


def _any_of(hint: Any, rules: Iterable[Rule], value: Any, sizes: Sizes) -> Fault | None:
    faults = []
    for rule in rules:  # the first that fits alone, since it also binds the sizes of the call
        faults.append(rule(value, sizes))
        if faults[-1] is None:
            return None
    # the one that has gone furthest says most: a wrong value rather than a wrong type
    found = [fault for fault in faults if fault]
    return next((f for f in found if f[0] is ValueError), None) or (
        TypeError,
        f" must be {_hint(hint)}, got {_what(value)}",
    )


def _hint(hint: Any) -> str:
    def one(arg: Any) -> str:
        if hasattr(arg, "dim_str"):
            return f"a tensor of shape ({arg.dim_str.strip()})"
        name = getattr(arg, "__name__", str(arg))
        return {"NoneType": "None", "float": "a number", "Tensor": "a tensor"}.get(name, name)

    return " or ".join(dict.fromkeys(one(a) for a in typing.get_args(hint) if a is not int))


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        where = " on meta" if value.is_meta else ""
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}{where}"
    if isinstance(value, str | numbers.Number | None):
        return repr(value)
    return f"a {type(value).__name__}" if not isinstance(value, Mapping) else "a mapping"
