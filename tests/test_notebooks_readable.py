"""The notebooks as JupyterLab shows them, without Sphinx: nothing raw, no failed formula."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from playwright.sync_api import Browser, sync_playwright

from machinery import chapters
from machinery.printing import BROWSERS

PAGES = chapters.find_pages([])
RAW = re.compile(r"```\{|:::|\{[a-z:]+\}`|^:[a-z]+:|^\([a-z-]+\)=", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda c: c.name)


def markdown(notebook: NotebookNode) -> str:
    """All that is prose."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def definitions() -> str:
    """The macros of _config.yml as a line of TeX. Unlike newcommand, def clashes with nothing."""
    config = yaml.safe_load((chapters.ROOT / "_config.yml").read_text("utf-8"))
    macros = config["sphinx"]["config"]["mathjax3_config"]["tex"]["macros"]
    return f"${''.join(definition(name, macro) for name, macro in macros.items())}$"


def definition(name: str, macro: Any) -> str:
    """One macro, written as MathJax's settings have it: its text, or that and its arguments."""
    text, count = (macro, 0) if isinstance(macro, str) else macro
    return rf"\def\{name}{''.join(f'#{i + 1}' for i in range(count))}{{{text}}}"


@each_page
def test_the_first_cell_defines_the_macros_of_the_book(page):
    assert definitions() in chapters.read_text(page).cells[0].source.splitlines()


@each_page
def test_nothing_is_left_raw(page):
    assert RAW.findall(markdown(chapters.read_notebook(page))) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium: install it, e.g. `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@each_page
def test_a_browser_typesets_every_formula(browser, page, tmp_path):
    notebook = chapters.read_notebook(page)
    failed, displayed = typeset(browser, notebook, tmp_path / "notebook.html")
    assert failed == []
    assert displayed == len(re.findall(r"\$\$", markdown(notebook))) // 2


def typeset(browser: Browser, notebook: NotebookNode, path: Path) -> tuple[list[str], int]:
    """The formulas that fail in a notebook's prose, and how many are displayed."""
    notebook = notebook.copy()
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    assert package is not None
    assert package.origin is not None
    mathjax = Path(package.origin).with_name("static") / "mathjax" / "tex-chtml-full.js"
    html, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    # The template asks the network for its scripts and for MathJax 2: here is MathJax 3 instead.
    html = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    settings = "MathJax = {tex: {inlineMath: [['$', '$'], ['\\\\(', '\\\\)']]}}"
    scripts = f'<script>{settings}</script><script src="{mathjax.as_uri()}"></script>'
    path.write_text(html.replace("</head>", f"{scripts}</head>"), "utf-8")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    tab.evaluate("() => MathJax.startup.promise")
    failed = tab.evaluate(
        """() => [...document.querySelectorAll('mjx-merror, mjx-container [style*="color: red"]')]
            .map(e => e.getAttribute('data-mjx-error') || e.textContent)"""
    )
    displayed = tab.locator("mjx-container[display=true]").count()
    tab.close()
    return failed, displayed
