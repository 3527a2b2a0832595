"""The pages of the library: all of its modules, and an example of each package that is executed."""

import pkgutil
import re

import pytest

import ctdl_lib
from machinery import chapters

PAGES = sorted((chapters.BOOK / "api").glob("*.md"))
EXAMPLE = re.compile(r"^## Example\n\n```python\n(.+?)^```$", re.MULTILINE | re.DOTALL)
INTERNAL = {
    f"ctdl_lib.{name}" for name in ("contracts", "extras", "dynamics.checkpointing")
}  # needed by the rest


def test_every_module_of_the_library_is_on_one_page():
    texts = [path.read_text("utf-8") for path in PAGES]
    shown = [name for text in texts for name in re.findall(r"automodule:: (\S+)", text)]
    modules = {info.name for info in pkgutil.walk_packages(ctdl_lib.__path__, "ctdl_lib.")}
    assert sorted(shown) == sorted(modules - INTERNAL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_example_of_a_package_holds(path):
    (code,) = EXAMPLE.findall(path.read_text("utf-8"))
    assert f"from ctdl_lib.{path.stem}" in code
    assert "assert" in code
    assert max(map(len, code.splitlines())) <= 84
    exec(compile(code, path.name, "exec"), {})
