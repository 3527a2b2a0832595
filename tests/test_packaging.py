"""The wheel holds the library alone, needs little, and says its version once."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from ipykernel.kernelspec import get_kernel_dict

import ctdl_lib
from ctdl_lib.extras import needed
from machinery import chapters

sys.path.insert(0, str(chapters.BOOK / "_ext"))
import downloads

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# Lets Python find no package that is `missing`.
HIDES = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in {missing!r}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
# Imports every module of the library, where only its own requirements can be found, and uses it.
ALONE = """
import importlib, pkgutil

sys.path.insert(0, {place!r})
import ctdl_lib
assert ctdl_lib.__file__.startswith({place!r}), ctdl_lib.__file__
for info in pkgutil.walk_packages(ctdl_lib.__path__, "ctdl_lib."):
    try:
        importlib.import_module(info.name)
    except ModuleNotFoundError as error:
        print(info.name, error, sep=": ")

import torch
from ctdl_lib.generative import Flow
from ctdl_lib.learning import train
from ctdl_lib.potentials import ResNetPotential

x = torch.randn(50, 2)
flow = Flow(ResNetPotential(2, width=4), 2, solver=dict(steps=2)).standardize(x)
loss = lambda flow, x: flow.objective(x, steps=2, likelihood=1.0, hjb=1.0)
assert len(list(train(flow, loss, lambda k: x, steps=2, lr=0.01))) == 2
assert flow.log_prob(x).isfinite().all()
"""


# What a guide asks its reader to install beside the library, and what runs notebooks.
BESIDE = {"matplotlib", "tqdm", "papermill", "ipykernel"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the library, built from a copy of what it needs."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ctdl_lib", source / "ctdl_lib")
    (source / "book").mkdir()  # beside the library lies what is no part of it
    (source / "book" / "machinery.py").touch()
    how = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *how, "--wheel-dir", source, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = source.glob("*.whl")
    return found


def test_the_wheel_holds_the_library_alone_and_says_that_it_is_typed(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ctdl_lib").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "ctdl_lib/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ctdl_lib"}


def extras() -> set[str]:
    """The packages that the library does not require, by the names under which one imports them."""
    others = [name for extra in ("control", "data", "pages", "book") for name in EXTRAS[extra]]
    missing = {re.split(r"[<>=\[]", name)[0].replace("-", "_") for name in others} - {"ctdl_lib"}
    return missing | {"sklearn", "skfem", "machinery", "experiments"}


def test_the_library_works_with_its_own_requirements_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = HIDES.format(missing=extras()) + ALONE.format(place=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    says = "casadi is needed here: pip install casadi, or 'ctdl_lib[control]'"
    wanting = ("ctdl_lib.problems.symbolic", "ctdl_lib.references.transcription")
    assert done.stdout.splitlines() == [f"{name}: {says}" for name in wanting]


@pytest.mark.parametrize("guide", chapters.guides(), ids=lambda guide: guide.name)
def test_a_guide_runs_in_an_empty_folder_with_the_library_alone(guide, wheel, tmp_path):
    """Its own assertions judge its numbers."""
    (library := tmp_path / "library").mkdir()
    (empty := tmp_path / "empty").mkdir()
    zipfile.ZipFile(wheel).extractall(library)
    hides = HIDES.format(missing=extras() - BESIDE)
    (library / "sitecustomize.py").write_text(hides)  # every Python runs it when it starts
    notebook = chapters.read_text(guide)
    where = f"import ctdl_lib\nassert ctdl_lib.__file__.startswith({str(library)!r})\n"
    notebook.cells[1].source = where + notebook.cells[1].source
    nbformat.write(notebook, tmp_path / "guide.ipynb")
    command = [sys.executable, "-m", "papermill", tmp_path / "guide.ipynb", tmp_path / "out.ipynb"]
    (kernel := tmp_path / "kernels" / "this").mkdir(parents=True)  # not the user's python3
    (kernel / "kernel.json").write_text(json.dumps(get_kernel_dict()))
    done = subprocess.run(
        [*command, "--kernel", "this"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(library), "JUPYTER_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(empty.iterdir()) == []


# Runs cells as a notebook does, and marks where the output of each ends.
SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance(colors="nocolor")
for source in json.load(sys.stdin):
    shell.run_cell(source)
    print("end")
"""


@pytest.mark.parametrize("address", ["", "https://example.org/ctdl"])
def test_the_first_cell_of_a_download_says_in_one_line_what_is_missing(tmp_path, address):
    pages = chapters.find_pages([])
    made = [downloads.prepared(chapters.read_notebook(page), address) for page in pages]
    cells = json.dumps([notebook.cells[1].source for notebook in made])

    def outputs(before: str) -> list[str]:
        command = [sys.executable, "-c", before + SHELL]
        how: Any = {"cwd": tmp_path, "capture_output": True, "text": True}
        done = subprocess.run(command, input=cells, **how)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("end\n")[:-1]

    assert outputs("") == [""] * len(pages)
    start = f"Run: git clone --depth 1 {address} ctdl && " if address else "In the folder of"
    hidden = HIDES.format(missing=extras() | {"ctdl_lib"})
    for page, said in zip(pages, outputs(hidden), strict=True):
        assert said.count("\n") == 1
        assert said.startswith("ctdl_lib, ")
        assert f"not installed. {start}" in said
        assert ("--editable" in said) == (page not in chapters.guides())
        assert "pip install" in said


def test_a_missing_extra_is_named_and_a_missing_part_of_it_is_not_hidden(tmp_path, monkeypatch):
    with pytest.raises(ModuleNotFoundError, match=r"pip install absent, or 'ctdl_lib\[data\]'"):
        needed("absent.part", "data")
    (tmp_path / "present.py").write_text("import absent_too")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'absent_too'"):
        needed("present", "data")


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert ctdl_lib.__version__ == PROJECT["version"] == cited


def test_every_requirement_is_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    groups = [PROJECT["dependencies"], *EXTRAS.values()]
    for name in {re.split(r"[<>=\[]", entry)[0] for group in groups for entry in group}:
        assert name == "ctdl_lib" or name.lower().replace("_", "-") in pinned, name
