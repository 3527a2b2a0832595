"""The rules of layering, inheritance and size, checked instead of remembered."""

import ast
import importlib
import inspect
import pkgutil
import re
import statistics
from pathlib import Path

import pytest

import ctdl_lib

ROOT = Path(ctdl_lib.__file__).parent
# imports go only downwards: a package imports from the lines above its own
LAYERS = [
    {"contracts", "extras"},
    {"dynamics", "metrics"},
    {"networks"},
    {"learning", "potentials"},
    {"generative", "control", "references"},
    {"problems"},
]
LEVEL = {package: level for level, layer in enumerate(LAYERS) for package in layer}
FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py")
SCRIPTS = sorted((ROOT.parent / "book/_static/playground").rglob("*.js"))
FORBIDDEN = {"utils", "helpers", "misc", "core", "base", "common"}


def package_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """What a file imports from the library, a package inside of it by its own name."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) + 1 - node.level]
            for name in [node.module] if node.module else [a.name for a in node.names]:
                yield (*above, *name.split("."))[0]


def functions():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def classes():
    for info in pkgutil.walk_packages(ctdl_lib.__path__, "ctdl_lib."):
        for _, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if cls.__module__ == info.name:
                yield cls


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_package_has_its_layer_and_imports_point_down(path):
    for name in imports(path):
        if name != package_of(path):
            assert LEVEL[name] < LEVEL[package_of(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_module_is_named_by_its_noun_and_fits_on_a_few_screens(path):
    assert path.stem not in FORBIDDEN
    assert len(path.read_text().splitlines()) <= 400


def test_functions_are_short():
    def body(node):
        first = node.body[0]
        is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        start = first.end_lineno + 1 if is_docstring else first.lineno
        return max(0, node.end_lineno - start + 1)

    lengths = sorted(body(node) for _, node in functions())
    assert statistics.median(lengths) <= 10
    assert lengths[-1] <= 40


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_functions_of_the_playgrounds_are_short(path):
    start = 0  # of a function at the margin, or of a method
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        if re.match(r"(export )?(const|function|class) |  \w+\(.*\) \{$", line):
            start = number
        assert not line.startswith("}") or number - start < 40, f"{path.name}, line {start + 1}"


def test_the_library_does_not_print_plot_seed_globally_or_choose_a_device():
    banned = {"print", "manual_seed_all", "seed", "set_default_dtype", "set_default_device"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name.split(".")[-1] not in banned, f"{path.name}: {name}"
                assert name not in ("torch.manual_seed", "torch.cuda.is_available", "plt.show")
                assert "pickle" not in name
                assert name not in ("torch.load", "torch.save") or path.stem == "storage"
                if name == "torch.load":
                    assert "weights_only=True" in [ast.unparse(k) for k in node.keywords]


def test_torchdiffeq_has_one_door():
    doors = [p.stem for p in FILES if "torchdiffeq import" in p.read_text()]
    assert doors == ["integration"]


@pytest.mark.parametrize("cls", sorted(set(classes()), key=str), ids=lambda c: c.__name__)
def test_classes_are_abstract_or_final(cls):
    ours = [base for base in cls.__mro__[1:] if base.__module__.startswith("ctdl_lib")]
    ours = [base for base in ours if not issubclass(base, Exception)]
    assert all(inspect.isabstract(base) for base in ours)
    for base in ours:
        for name, member in vars(base).items():
            is_concrete = inspect.isfunction(member) and not getattr(
                member, "__isabstractmethod__", False
            )
            if is_concrete and not name.startswith("_"):
                assert name not in vars(cls), f"{cls.__name__}.{name} overrides a concrete method"
