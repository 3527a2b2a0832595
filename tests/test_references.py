"""Every reference in a docstring of the library or the experiments is in the bibliography."""

import re

from pybtex.database import parse_file

from machinery import chapters

ENTRIES = parse_file(str(chapters.BOOK / "references.bib")).entries
REFERENCE = re.compile(r"^\s*Reference: (.*)", re.MULTILINE)
KEY = re.compile(r"\b[a-z]+\d{4}[a-z]+\b")
REQUIRED = ("title", "year")


def test_references_in_docstrings_are_in_the_bibliography():
    unknown = [
        f"{path.relative_to(chapters.ROOT)}: {line}"
        for folder in (chapters.ROOT / "ctdl_lib", chapters.BOOK / "experiments")
        for path in sorted(folder.rglob("*.py"))
        for line in REFERENCE.findall(path.read_text("utf-8"))
        if not (keys := KEY.findall(line)) or any(key not in ENTRIES for key in keys)
    ]
    assert unknown == []


def test_keys_have_one_form():
    """Author, year and a word of the title: haber2017stable."""
    assert [key for key in ENTRIES if not KEY.fullmatch(key)] == []


def test_entries_have_author_title_and_year():
    bad = [
        key
        for key, entry in ENTRIES.items()
        if "author" not in entry.persons or any(field not in entry.fields for field in REQUIRED)
    ]
    assert bad == []
