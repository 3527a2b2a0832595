"""Gives each notebook that readers download a first cell that finds what it imports.

The notebooks of the repository stay as they are. In the file behind the button for downloads one
cell more stands below the title. Where packages are missing, it says in one line how to get them;
in Colab it gets them, if the repository has an address.
"""

import ast
import os
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx

from machinery.chapters import BOOK, code_cells, find_pages, read_notebook
from machinery.pages import FIRST_CELL

BRANCH = "notebooks"  # of the repository: what Colab opens, written by the workflow `pages`
IMPORTS = (ast.Import, ast.ImportFrom)
COMES_ALONG = {"IPython", "ctdl_lib", "numpy", "torch"}  # with the kernel, and with the library
CELL = '''\
# Finds what this notebook imports, or says how to get it.
import importlib.util
import sys

NEEDED = @names@
INSTALL = "@line@"


class Missing(Exception):
    """Ends the notebook with one line in place of a traceback."""

    def _render_traceback_(self):
        return [str(self)]


def missing():
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]

@colab@
if missing():
    names = ", ".join(missing())
    raise Missing(f"{names}: not installed. @where@ {INSTALL}, then restart the kernel.")
'''
COLAB = """
if missing() and "google.colab" in sys.modules:
    import site
    import subprocess

    subprocess.run(INSTALL, shell=True, check=True)
    importlib.invalidate_caches()
    for folder in site.getsitepackages():
        site.addsitedir(folder)  # this Python started before they were there
"""


def imported(notebook: NotebookNode) -> set[str]:
    """The packages of the first cell with imports that are no part of Python, and the library."""
    for cell in code_cells(notebook):
        imports = [x for x in ast.parse(cell.source).body if isinstance(x, IMPORTS)]
        if imports:
            modules = [getattr(x, "module", None) or x.names[0].name for x in imports]
            packages = {module.split(".")[0] for module in modules}
            return (packages | {"ctdl_lib"}) - sys.stdlib_module_names
    return set()


def install_line(names: set[str], address: str) -> str:
    """The line of a shell that installs packages, in the repository or from its address."""
    start, place = (f"git clone --depth 1 {address} ctdl && ", "./ctdl") if address else ("", ".")
    if "machinery" in names:
        return f"{start}pip install --editable {place} --editable {place}/book"
    return f"{start}pip install {place} {' '.join(sorted(names - COMES_ALONG))}"


def prepared(notebook: NotebookNode, address: str) -> NotebookNode:
    """A notebook with the cell that finds what it imports, below its title."""
    names = imported(notebook)
    parts = {
        "names": repr(sorted(names)),
        "line": install_line(names, address),
        "colab": COLAB if address else "",
        "where": "Run:" if address else "In the folder of the book's repository run:",
    }
    source = CELL.rstrip("\n")
    for name, text in parts.items():
        source = source.replace(f"@{name}@", text)
    cell = nbformat.v4.new_code_cell(source, id=FIRST_CELL, metadata={"tags": ["hide-input"]})
    made = deepcopy(notebook)
    made.cells.insert(1, cell)
    return made


def write(app: Sphinx, error: Exception | None) -> None:
    """Put the prepared notebooks in the place of the copies that Sphinx has made."""
    if error or app.builder.format != "html":
        return
    address = os.environ.get("REPOSITORY", "").rstrip("/")
    for page in find_pages([]):
        path = Path(app.outdir) / "_sources" / page.notebook.relative_to(BOOK.parent)
        nbformat.write(prepared(read_notebook(page), address), path)


def open_prepared(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Let the button of Colab open the prepared notebook."""
    groups = [button.get("buttons", []) for button in context.get("header_buttons", [])]
    for button in (button for group in groups for button in group):
        if button.get("text") == "Colab":
            button["url"] = button["url"].replace("/blob/main/", f"/blob/{BRANCH}/")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("html-page-context", open_prepared, priority=900)  # after the theme
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
