import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

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
    storage.save(tmp_path / "a" / "tree", TREE)
    assert same(storage.load(tmp_path / "a" / "tree"), TREE)


def test_what_is_loaded_has_plain_types_and_its_own_memory(tmp_path):
    whole = torch.randn(100_000, requires_grad=True)
    tree = {"view": whole[:2], "number": np.float64(0.5)}
    storage.save(tmp_path / "tree", tree)
    assert (tmp_path / "tree").stat().st_size < 10_000
    found = storage.load(tmp_path / "tree")
    assert torch.equal(found["view"], whole[:2])
    assert not found["view"].requires_grad
    assert type(found["number"]) is float


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "tree"
    storage.save(path, TREE)
    with pytest.raises(TypeError, match="cannot store a set"):
        storage.save(path, {"bad": {1, 2}})
    assert same(storage.load(path), TREE)
    assert list(tmp_path.iterdir()) == [path]


REFUSED = "tree is truncated or was not written by this library: delete it"


def test_truncated_files_are_refused_with_the_remedy(tmp_path):
    path = tmp_path / "tree"
    with pytest.raises(FileNotFoundError, match="tree does not exist"):
        storage.load(path)
    storage.save(path, TREE)
    whole = path.read_bytes()
    for cut in (0, 1, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=REFUSED):
            storage.load(path)


class Trap:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, new_format):
    path, mark = tmp_path / "tree", tmp_path / "mark"
    torch.save({"ctdl_lib": Trap(mark)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=REFUSED):
        storage.load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the trap works where nothing guards against it


@pytest.mark.parametrize("foreign", [{"K": torch.ones(1)}, torch.ones(2), [1, 2]])
def test_files_of_other_programs_are_refused(tmp_path, foreign):
    path = tmp_path / "tree"
    torch.save(foreign, path)
    with pytest.raises(ValueError, match=REFUSED):
        storage.load(path)
    path.write_bytes(b"a text of another program")
    with pytest.raises(ValueError, match=REFUSED):
        storage.load(path)


WRITER = """
import sys
from pathlib import Path
import torch
from ctdl_lib.learning import storage

path, k = Path(sys.argv[1]), 0
while True:
    k += 1
    storage.save(path, {"k": k, "tensors": [torch.full((64 * (1 + k % 7),), float(k))] * 3})
"""


def test_a_reader_beside_a_writer_sees_whole_files_only(tmp_path):
    """One process replaces the file again and again while another loads it for eight seconds."""
    path = tmp_path / "tree"
    with subprocess.Popen([sys.executable, "-c", WRITER, path]) as writer:
        try:
            while not path.exists():
                assert writer.poll() is None
                time.sleep(0.05)
            seen, end = [], time.monotonic() + 8
            while time.monotonic() < end:
                tree = storage.load(path)
                k = tree["k"]
                assert [len(x) for x in tree["tensors"]] == [64 * (1 + k % 7)] * 3
                assert all(bool((x == k).all()) for x in tree["tensors"])
                seen.append(k)
        finally:
            writer.kill()
    assert len(set(seen)) > 20  # the file was replaced between the loads
    assert seen == sorted(seen)
