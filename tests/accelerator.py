"""A pretend accelerator: its tensors compute on the CPU, but obey the rules of a device.

An operation on tensors of two devices is an error, as on a GPU, and so are a CPU generator and a
conversion to NumPy. Copies between the devices and waits of the host are counted. So a machine
without a GPU can show that an algorithm runs on one, and how often it would stop it:

    with accelerator.enabled() as counts:
        x = torch.randn(3).to(accelerator.device())
        x.sum().item()
    assert counts == Counts(to_device=1, to_host=1, waits=1)

The device is torch's PrivateUse1 under the name "accel". Its tensors are a subclass that wraps a
CPU tensor. Every operation arrives below autograd in `_dispatch`, which unwraps the arguments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "accel"


@dataclass
class Counts:
    """The traffic between host and device.

    `to_device` and `to_host` count copies. `waits` counts the times when the host waits for the
    device: for a copy, for a number, or for a size that depends on the data, as in `nonzero`.
    """

    to_device: int = 0
    to_host: int = 0
    waits: int = 0


@cache  # torch can rename its device only once in a process
def device() -> torch.device:
    """The pretend device, which is registered by the first call."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    return torch.device(NAME, 0)


@contextmanager
def enabled() -> Iterator[Counts]:
    """The counts of what is done inside, where tensors can be on the pretend device.

    Autograd works in the caller's thread, since torch.func knows its transforms in that one alone.
    """
    device()
    counts = Counts()
    made = torch.tensor, torch.as_tensor
    torch.tensor, torch.as_tensor = (_moved_afterwards(function) for function in made)
    try:
        with torch.autograd.set_multithreading_enabled(False), _Mode(counts):
            yield counts
    finally:
        torch.tensor, torch.as_tensor = made


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks of the module of a device, apart from what the dummy knows."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None) -> None:
        torch.set_rng_state(state)


class OnDevice(torch.Tensor):
    """A tensor on the pretend device, whose numbers are those of the CPU tensor `raw`."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=device(),
            requires_grad=False,
            dispatch_sizes_strides_policy="sizes",  # in-place operations may change them
        )
        self.raw = raw
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        counts = _Mode.active[-1].counts if _Mode.active else Counts()
        return _dispatch(counts, func, args, kwargs or {})

    def tolist(self) -> Any:  # torch's own reads memory, which a wrapper has not
        return self.cpu().tolist()

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False) -> torch.Tensor:
        made = torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)
        return made.requires_grad_(requires_grad)

    def numpy(self, *, force: bool = False):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy: use .cpu() first")

    def __array__(self, *_: Any):
        self.numpy()

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"{self.raw!r} on {NAME}:0"


class _Mode(TorchDispatchMode):
    """The mode that also sees operations without tensors, such as torch.zeros."""

    active: tuple["_Mode", ...] = ()

    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __enter__(self):
        _Mode.active = (*_Mode.active, self)
        return super().__enter__()

    def __exit__(self, *error):
        _Mode.active = _Mode.active[:-1]
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(self.counts, func, args, kwargs or {})


aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten.to.device, aten.to.dtype_layout}
PUTS = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
INDEXING = PUTS | {aten.index.Tensor, aten._unsafe_index.Tensor}
WAITING = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
SHAPES = {  # what torch asks a tensor subclass about its memory
    aten.sym_size.default: lambda x: x.size(),
    aten.size.default: lambda x: x.size(),
    aten.sym_size.int: lambda x, d: x.size(d),
    aten.sym_stride.default: lambda x: x.stride(),
    aten.stride.default: lambda x: x.stride(),
    aten.dim.default: lambda x: x.dim(),
    aten.sym_numel.default: lambda x: x.numel(),
    aten.numel.default: lambda x: x.numel(),
    aten.sym_storage_offset.default: lambda x: x.storage_offset(),
    aten.storage_offset.default: lambda x: x.storage_offset(),
    aten.is_contiguous.default: lambda x: x.is_contiguous(),
    aten.is_contiguous.memory_format: lambda x, f: x.is_contiguous(memory_format=f),
    aten.sym_is_contiguous.default: lambda x, *f: x.is_contiguous(),
    aten.is_strides_like_format.default: lambda x, f: False,
    aten.is_non_overlapping_and_dense.default: lambda x: x.is_contiguous(),
}


def _dispatch(counts: Counts, func, args, kwargs) -> Any:
    """The result of an operation, on the device of its arguments."""
    if func is aten._efficientzerotensor.default:
        func = aten.zeros.default  # a tensor without memory cannot be wrapped
    if func in SHAPES:
        x = args[0]
        return SHAPES[func](x.raw if isinstance(x, OnDevice) else x, *args[1:])
    leaves = tree_leaves((args, kwargs))
    ours = [x for x in leaves if isinstance(x, OnDevice)]
    wanted = kwargs.get("device")
    on_device = bool(ours) if wanted is None else torch.device(wanted).type == NAME
    if func is aten.copy_.default:
        on_device = isinstance(args[0], OnDevice)
    _refuse_mixtures(func, args, leaves, ours, on_device)
    _count(counts, func, args, ours, on_device)
    known = {id(x.raw): x for x in ours}  # in-place operations return their argument itself
    args, kwargs = tree_map(_raw, (args, kwargs))

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, OnDevice) or not on_device:
            return x
        return known.get(id(x)) if id(x) in known else OnDevice(x)

    return tree_map(wrapped, func(*args, **kwargs))


def _raw(x: Any) -> Any:
    if isinstance(x, torch.device) and x.type == NAME:
        return torch.device("cpu")
    return x.raw if isinstance(x, OnDevice) else x


def _refuse_mixtures(func, args, leaves, ours, on_device: bool) -> None:
    """Refuse tensors of two devices and generators of the CPU; a GPU takes the exceptions too."""
    if (ours or on_device) and any(isinstance(x, torch.Generator) for x in leaves):
        raise RuntimeError(f"{func}: expected a generator on {NAME}, but found one on cpu")
    if not ours or func in COPIES:
        return
    others = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)]
    foreign = [tuple(x.shape) for x in others if x.dim()]  # numbers of the CPU are allowed
    if func in INDEXING and isinstance(args[0], OnDevice):  # and so are its indices
        values = [args[2]] if func in PUTS else []
        foreign = [tuple(x.shape) for x in values if x.dim() and not isinstance(x, OnDevice)]
    if foreign:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found {NAME}:0 and cpu,"
            f" of shapes {foreign}"
        )


def _count(counts: Counts, func, args, ours, on_device: bool) -> None:
    """Count what an operation moves between host and device, and whether the host waits."""
    if func in COPIES:
        source = args[1] if func is aten.copy_.default else args[0]
        before = isinstance(source, OnDevice)
        counts.to_device += on_device and not before
        counts.to_host += before and not on_device
        counts.waits += before and not on_device
    elif ours and func in INDEXING:
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, torch.Tensor)]
        counts.to_device += sum(not isinstance(x, OnDevice) for x in indices)
        counts.waits += any(x.dtype == torch.bool for x in indices)
    elif ours and (WAITING & set(func.tags) or func is aten._linalg_check_errors.default):
        counts.waits += 1
        counts.to_host += func is aten._local_scalar_dense.default


def _moved_afterwards(make):
    """The function torch.tensor or torch.as_tensor, which fill memory, as a copy to the device."""

    def moved(data, *, dtype=None, device=None, requires_grad=False):
        if device is None or torch.device(device).type != NAME or isinstance(data, torch.Tensor):
            how = {"requires_grad": requires_grad} if requires_grad else {}
            return make(data, dtype=dtype, device=device, **how)
        return make(data, dtype=dtype).to(device).requires_grad_(requires_grad)

    return moved
