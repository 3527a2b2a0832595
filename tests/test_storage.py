import json

import pytest
import torch
from safetensors.torch import save_file

from ctdl_lib.learning import storage

TREE = {
    "weights": {"K": torch.randn(3, 2), 0: torch.arange(4)},
    "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "name": "all", "on": True}],
    "scalar": torch.tensor(2.5),
    "empty": {},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_what_is_saved_is_loaded(tmp_path):
    storage.save(tmp_path / "a" / "tree.safetensors", TREE)
    assert same(storage.load(tmp_path / "a" / "tree.safetensors"), TREE)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "tree.safetensors"
    storage.save(path, TREE)
    with pytest.raises(TypeError, match="cannot store a set"):
        storage.save(path, {"bad": {1, 2}})
    assert same(storage.load(path), TREE)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_whole_file_of_ours_is_refused_and_never_unpickled(tmp_path):
    path = tmp_path / "tree.safetensors"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        storage.load(path)
    storage.save(path, TREE)
    whole = path.read_bytes()
    for cut in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="truncated or no safetensors"):
            storage.load(path)
    torch.save({"K": torch.ones(1)}, path)  # a pickle
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        storage.load(path)
    save_file({"K": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="none that this library has written"):
        storage.load(path)


def test_the_skeleton_is_plain_json(tmp_path):
    path = tmp_path / "tree.safetensors"
    storage.save(path, {"a": 1})
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["tree"]) == ["dict", [["a", ["value", 1]]]]
