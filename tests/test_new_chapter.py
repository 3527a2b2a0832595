"""A new chapter gets its rooms, and a list of what it lacks."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from machinery import chapters, new_chapter
from machinery.chapters import Chapter

STEM = "17_travelling_waves"
LACKS = [
    f"_toc.yml has no line with - file: book/{STEM}",
    f"_toc.yml has no line with - file: book/evidence/{STEM}",
    f"book/intro.md has no line with {STEM}: ",
    f"README.md has no line with (book/{STEM}.ipynb)",
    f"book/machinery/stubs.toml has no line with [[{STEM}]]",
    f"{STEM}: it has no notebook; run: python -m machinery.chapters execute 17",
    f"evidence/{STEM}: it has no notebook; run: python -m machinery.chapters execute 17",
    f"book/results/claims/{STEM}.json has no rows: write claims, and execute",
    f"book/{STEM}.myst.md says FILL IN",
    f"book/evidence/{STEM}.myst.md says FILL IN",
    "book/experiments/travelling_waves/__init__.py says FILL IN",
    "book/experiments/travelling_waves/evidence.py says FILL IN",
    "book/experiments/travelling_waves/lecture.py says FILL IN",
    "the lecture has 1 figures, and at least 5 are wanted",
    "the lecture has 1 exercises, and at least 4 are wanted",
    "tests/test_experiments_travelling_waves.py tests no result",
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What of the repository a new chapter looks at."""
    stubs = "book/machinery/stubs.toml"
    for name in ("_toc.yml", "README.md", "book/intro.md", "book/01_resnets.myst.md", stubs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(new_chapter.ROOT / name, tmp_path / name)
    return tmp_path


def test_a_new_chapter_lists_what_it_lacks(copy):
    paths = new_chapter.write("17", "travelling_waves", copy)
    assert all(path.is_file() for path in paths)
    found = new_chapter.missing(STEM, copy)
    assert len(found) == len(LACKS)
    for said, wanted in zip(found, LACKS, strict=True):
        assert said.startswith(wanted)


def test_what_is_done_leaves_the_list(copy):
    new_chapter.write("17", "travelling_waves", copy)
    with (copy / "_toc.yml").open("a") as file:
        file.write(f"      - file: book/{STEM}\n")
    with (copy / "tests" / "test_experiments_travelling_waves.py").open("a") as file:
        file.write("\n\ndef test_the_speed_is_that_of_the_closed_form():\n    pass\n")
    assert len(new_chapter.missing(STEM, copy)) == len(LACKS) - 2


def test_a_finished_chapter_lacks_nothing():
    assert new_chapter.missing("07_ot_flow") == []


def test_the_rooms_are_well_formed_and_their_code_runs(copy, monkeypatch):
    paths = new_chapter.write("17", "travelling_waves", copy)
    code = [str(path) for path in paths if path.parent.name == "travelling_waves"]
    config = ["--config", str(new_chapter.ROOT / "pyproject.toml")]
    for command in (["check", *config], ["format", "--check", *config]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *code], capture_output=True)
        assert done.returncode == 0, done.stdout
    lecture = chapters.read_text(Chapter(STEM, copy / "book"))
    assert lecture.cells[0].source.startswith("# Travelling waves\n")
    assert chapters.code_cells(lecture)[0].metadata["tags"] == ["parameters"]
    mpl.use("Agg")
    package = copy / "book" / "experiments" / "travelling_waves"
    monkeypatch.chdir(copy)
    _, rows = runpy.run_path(str(package / "evidence.py"))["gather"]("smoke", 0)
    assert [row.id for row in rows] == ["travelling_waves.example"]
    drawing = runpy.run_path(str(package / "lecture.py"))
    drawing["draw_idea"](drawing["results"]("smoke", 0))


@pytest.mark.parametrize(
    ("number", "name", "says"),
    [
        ("all", "waves", "want a number of two digits"),
        ("17", "Two Waves", "a name in small letters"),
        ("01", "waves", "there is a chapter 01_resnets"),
        ("17", "resnets", "there is a chapter 01_resnets"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_written(copy, number, name, says):
    before = sorted(copy.rglob("*"))
    with pytest.raises(ValueError, match=says):
        new_chapter.write(number, name, copy)
    assert sorted(copy.rglob("*")) == before
