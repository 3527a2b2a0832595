"""The page of theorems, algorithms and figures: what its lines name exists."""

import importlib
import sys
import tomllib

import pytest

from machinery import chapters

sys.path.insert(0, str(chapters.BOOK / "_ext"))

import finder

TABLES = tomllib.loads(finder.ROWS.read_text("utf-8"))
ROWS = [row for table in TABLES.values() for row in table]
TEXTS = {chapter: chapter.text.read_text("utf-8") for chapter in chapters.all_chapters()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_formula_code_and_test_of_a_line_exist(row):
    assert [c.name for c in TEXTS if f"$$ ({row['equation']})" in TEXTS[c]]
    path, name = row["test"].split("::")
    assert f"def {name}(" in (chapters.ROOT / path).read_text("utf-8")
    module, _, attribute = row["code"].rpartition(".")
    if module.startswith("ctdl_lib"):
        assert callable(getattr(importlib.import_module(module), attribute))
    else:
        assert (chapters.BOOK / f"{row['code'].replace('.', '/')}.py").is_file()


def test_every_chapter_with_formulas_has_lines_and_names_are_told_once():
    found = {c.name for c in TEXTS for row in ROWS if f"$$ ({row['equation']})" in TEXTS[c]}
    without = {c.name[:2] for c in TEXTS} - {name[:2] for name in found}
    assert without == {"14", "16"}  # which apply what others derive
    assert len({row["name"] for row in ROWS}) == len(ROWS)


def test_all_figures_of_the_lectures_are_listed():
    lines = finder.figure_lines()
    for chapter, text in TEXTS.items():
        names = [name for name, _ in finder.figures(chapter)]
        assert len(names) == text.count("    name: fig-") + text.count("(_static/diagrams/")
        assert [name for name in names if not any(f"`{name}`" in line for line in lines)] == []


def test_a_line_leads_to_the_repository_only_if_that_is_known(monkeypatch):
    monkeypatch.delenv("REPOSITORY", raising=False)
    assert finder.source("tests/a.py", "b") == "b (`tests/a.py`)"
    monkeypatch.setenv("REPOSITORY", "https://example.org/ctdl/")
    assert finder.source("tests/a.py", "b") == "[b](https://example.org/ctdl/blob/main/tests/a.py)"
