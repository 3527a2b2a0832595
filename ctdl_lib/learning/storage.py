"""Files that are whole or absent: nested results in safetensors, never unpickled."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor


def write(path: Path, data: bytes) -> None:
    """Write the file in one atomic replacement: readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, tree: Any) -> None:
    """Write a nest of dicts, lists, tensors, numbers, strings and None to a safetensors file."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_describe(tree, tensors))
    write(path, safetensors_bytes(tensors, metadata={"tree": skeleton}))


def load(path: Path) -> Any:
    """Read what `save` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or no safetensors file of this library.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error})") from error
    if "tree" not in metadata:
        raise ValueError(f"{path} is a safetensors file, but none that this library has written")
    return _rebuild(json.loads(metadata["tree"]), tensors)


def _describe(node: Any, tensors: dict[str, Tensor]) -> list:
    """The node as JSON, with its tensors put aside; dicts as pairs, since JSON keys are strings."""
    if isinstance(node, Tensor):
        tensors[f"{len(tensors):06d}"] = node.detach().cpu().contiguous().clone()
        return ["tensor", f"{len(tensors) - 1:06d}"]
    if isinstance(node, dict):
        return ["dict", [[key, _describe(value, tensors)] for key, value in node.items()]]
    if isinstance(node, list | tuple):
        return [type(node).__name__, [_describe(value, tensors) for value in node]]
    if node is None or isinstance(node, bool | int | float | str):
        return ["value", node]
    raise TypeError(f"cannot store a {type(node).__name__}: convert it to tensors, numbers or text")


def _rebuild(node: list, tensors: dict[str, Tensor]) -> Any:
    kind, content = node
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _rebuild(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        rebuilt = [_rebuild(value, tensors) for value in content]
        return rebuilt if kind == "list" else tuple(rebuilt)
    return content
