"""Checkpoints in files that are replaced atomically and loaded without running any code in them."""

import io
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts import guard


def write(path: Path, data: bytes) -> None:
    """Write the file in one atomic replacement: a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None to a file.

    Raises:
        TypeError: the tree contains an object of another type. The file stays as it was.
    """
    data = io.BytesIO()
    torch.save({"ctdl_lib": _portable(tree)}, data)
    write(path, data.getvalue())


def load(path: Path) -> Any:
    """Read what `save` has written, with all tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or `save` has not written it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    # Read once: a second read might find the file replaced.
    data = io.BytesIO(path.read_bytes())
    try:
        return torch.load(data, map_location="cpu", weights_only=True)["ctdl_lib"]
    except Exception as error:  # torch raises many types for bytes that it cannot read
        raise ValueError(
            f"{path} is truncated or was not written by this library: delete it and run again"
        ) from error


def _portable(node: Any) -> Any:
    """The tree with copies of its tensors: torch.save stores the whole memory behind a view."""
    if isinstance(node, Tensor):
        return node.detach().cpu().contiguous().clone()
    if isinstance(node, dict):
        return {key: _portable(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return (list if isinstance(node, list) else tuple)(map(_portable, node))
    if isinstance(node, np.generic):
        return node.item()
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"cannot store a {type(node).__name__}: convert it to tensors, numbers or text")


guard(__name__)
