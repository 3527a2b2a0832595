"""The chapters as files: text and notebook agree, and both keep the rules of the book."""

import ast
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nbval.plugin import IPyNbCell

from machinery import chapters, claims
from machinery.chapters import Chapter

CHAPTERS = chapters.all_chapters()
NUMBERED = chapters.with_evidence(CHAPTERS)
PAGES = [*NUMBERED, *chapters.guides()]
MAX_LINES = 400
MAX_COLUMNS = 84  # what a page shows without scrolling

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
each_page = pytest.mark.parametrize("chapter", PAGES, ids=lambda c: c.name)


def image_cells(chapter: Chapter) -> list:
    """The code cells whose outputs hold a picture."""
    return [
        cell
        for cell in chapters.code_cells(chapters.read_notebook(chapter))
        if any(kind.startswith("image/") for out in cell.outputs for kind in out.get("data", ()))
    ]


def all_claims() -> list[dict]:
    return [claim for chapter in CHAPTERS for claim in chapter.claims]


# --- rules of the book --------------------------------------------------------------------------


@each_page
def test_notebook_is_the_executed_text(chapter):
    assert chapters.check(chapter) == []


def test_every_notebook_has_a_text():
    found = [*chapters.BOOK.glob("*.ipynb"), *chapters.BOOK.glob("evidence/*.ipynb")]
    assert set(found) == {page.notebook for page in PAGES}


def test_every_chapter_is_in_the_table_of_contents():
    toc = (chapters.ROOT / "_toc.yml").read_text()
    assert [page.name for page in PAGES if f"file: book/{page.name}\n" not in toc] == []


@each_page
def test_every_figure_has_caption_name_and_alt_text(chapter):
    for cell in image_cells(chapter):
        options = cell.metadata.get("mystnb", {})
        figure = options.get("figure", {})
        assert figure.get("caption"), f"no caption: {cell.source}"
        assert figure.get("name"), f"no name: {cell.source}"
        assert options.get("image", {}).get("alt"), f"no alternative text: {cell.source}"


@each_page
def test_no_cell_ends_with_a_semicolon(chapter):
    """It hides no output when nbval runs the cell, which then fails: end with plt.show()."""
    cells = chapters.code_cells(chapters.read_text(chapter))
    assert [cell.source for cell in cells if cell.source.rstrip().endswith(";")] == []


@pytest.mark.parametrize("chapter", NUMBERED, ids=lambda c: c.name)
def test_first_code_cell_holds_the_parameters(chapter):
    cells = chapters.code_cells(chapters.read_text(chapter))
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == cells[:1]
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(tagged[0].source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert values == {"run": "saved", "device": "auto", "seed": 0}


@each_chapter
def test_chapter_is_short(chapter):
    """What a reader reads: prose and code, without blank lines, options and folded cells."""
    cells = chapters.read_text(chapter).cells
    cells = [c for c in cells if "hide-input" not in c.metadata.get("tags", [])]
    assert sum(bool(line.strip()) for c in cells for line in c.source.splitlines()) <= MAX_LINES


@each_page
def test_code_fits_on_the_page(chapter):
    lines = [
        line
        for cell in chapters.code_cells(chapters.read_text(chapter))
        for line in cell.source.splitlines()
    ]
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


@each_chapter
def test_claims_are_complete(chapter):
    rows = claims.read(chapter.claims_file)  # refuses wrong keys, and a verdict of its own
    assert rows, f"{chapter.claims_file} is missing or empty"
    for row in rows:
        assert row.id, chapter.claims_file
        assert row.statement, row.id
        assert row.source, row.id


LECTURES = [c for c in CHAPTERS if c.evidence]  # the others are to be rewritten


@pytest.mark.parametrize("chapter", LECTURES, ids=lambda c: c.name)
def test_a_lecture_is_short_and_shows_a_picture_before_its_first_code(chapter):
    cells = chapters.read_text(chapter).cells
    shown = [c for c in cells if "hide-input" not in c.metadata.get("tags", [])]
    code = [c.source.splitlines() for c in shown if c.cell_type == "code"]
    assert sum(bool(line.strip()) for c in shown for line in c.source.splitlines()) <= 250
    assert sum(map(len, code)) <= 120
    assert max(map(len, code)) <= 25
    figures = [c for c in cells if c.metadata.get("mystnb", {}).get("figure")]
    assert len(figures) >= 5
    first_code = [c for c in shown if c.cell_type == "code"][1]  # after the parameters
    assert cells.index(figures[0]) < cells.index(first_code)
    exercises = [c for c in shown if "### Exercise" in c.source]
    assert sum(c.source.count("### Exercise") for c in exercises) >= 4
    text = "\n".join(c.source for c in shown)
    head, end = text.split("## What the evidence says")
    assert head.index("**You will be able to** ") < head.index("**Prerequisites.** ")
    assert end.index("**In short.** ") < end.index("**Next.** ")


def test_claim_ids_are_unique():
    counts = Counter(claim["id"] for claim in all_claims())
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_results_without_a_chapter():
    names = {chapter.name for chapter in [*CHAPTERS, *chapters.guides()]}
    results = chapters.BOOK / "results"
    files = [*results.glob("claims/*.json"), *results.glob("executions/*.json")]
    assert {path.stem.removesuffix(".evidence") for path in files} <= names


# --- the checks themselves ----------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Chapter:
    """A copy of the first chapter that a test may spoil."""
    source, target = CHAPTERS[0], Chapter(CHAPTERS[0].name, tmp_path)
    target.text.write_bytes(source.text.read_bytes())
    target.notebook.write_bytes(source.notebook.read_bytes())
    return target


def edit_notebook(chapter: Chapter, change) -> None:
    """Apply a change to the JSON of a notebook."""
    content = json.loads(chapter.notebook.read_text())
    change(content)
    chapter.notebook.write_text(json.dumps(content))


def test_check_accepts_a_fresh_pair_and_names_a_missing_notebook(copy):
    assert chapters.check(copy) == []
    copy.notebook.unlink()
    assert "no notebook" in chapters.check(copy)[0]


def test_check_finds_an_edited_text(copy):
    text = copy.text.read_text().replace("# ", "# Edited: ", 1)
    copy.text.write_text(text)
    assert "cell 1 differs" in chapters.check(copy)[0]


def test_check_finds_an_edited_notebook(copy):
    edit_notebook(copy, lambda nb: nb["cells"][-1].update(source="edited"))
    number = len(chapters.read_notebook(copy).cells)
    assert f"cell {number} differs" in chapters.check(copy)[0]


def test_check_finds_a_missing_cell(copy):
    edit_notebook(copy, lambda nb: nb["cells"].pop())
    number = len(chapters.read_text(copy).cells)
    assert f"cell {number} differs" in chapters.check(copy)[0]


@pytest.mark.parametrize("count", [None, 7])
def test_check_finds_cells_not_executed_in_order(copy, count):
    def spoil(notebook):
        code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
        code["execution_count"] = count

    edit_notebook(copy, spoil)
    assert "not all executed once and in order" in chapters.check(copy)[0]


def test_check_finds_a_large_notebook(copy):
    edit_notebook(copy, lambda nb: nb["metadata"].update(padding="x" * chapters.MAX_BYTES))
    assert "at most 1,500,000 are wanted" in chapters.check(copy)[0]


def test_check_goes_by_content_and_not_by_time(copy):
    copy.text.touch()
    assert chapters.check(copy) == []


def test_chapters_are_found_by_name_and_number():
    first = CHAPTERS[0]
    for name in (first.name, first.name[:2], first.name[:2].lstrip("0")):
        assert chapters.find_chapters([name]) == [first]
    assert chapters.find_chapters([]) == chapters.find_chapters(["all"]) == CHAPTERS
    with pytest.raises(ValueError, match=f"no chapter 99; there are {first.name}"):
        chapters.find_chapters(["99"])


def test_commands_find_guides_by_name_and_with_all_pages():
    guide = chapters.guides()[0]
    assert guide.key == guide.name
    assert chapters.find_pages([guide.name]) == [guide]
    assert chapters.find_pages(["1", guide.name]) == [*NUMBERED[:2], guide]
    assert chapters.find_pages([]) == chapters.find_pages(["all"]) == PAGES


def test_progress_bars_are_not_kept():
    """Their times would change the notebook with each execution."""
    for guide in chapters.guides():
        cells = chapters.code_cells(chapters.read_notebook(guide))
        kinds = {output.get("name") for cell in cells for output in cell.outputs}
        assert "stderr" not in kinds


@pytest.mark.parametrize(
    ("printed", "reference", "agree"),
    [
        ("loss 0.1251", "loss 0.1250", True),  # one unit of the last decimal
        ("loss 0.1252", "loss 0.1250", False),
        ("1.00001e-5", "1.00002e-5", True),
        ("1.2e-5", "1.4e-5", False),
        ("-0.000", "0.000", True),
        ("123456", "123457", True),  # 1e-4
        ("51 minima", "50 minima", False),
        ("loss 1.0", "cost 1.0", False),
        ("1 2", "1 2 3", False),
        ("nan", "1.0", False),
    ],
)
def test_notebooks_are_compared_up_to_the_last_digits(printed, reference, agree):
    cell: Any = SimpleNamespace(parent=SimpleNamespace(sanitize_patterns={}))
    new, stored = (IPyNbCell.sanitize(cell, text) for text in (printed, reference))
    assert (stored == new) == agree
    assert (stored != new) != agree  # the operator that nbval uses


def claim(ours: object, spread: object = 0.0, **others: object) -> dict:
    return {"id": "a", "ours": ours, "spread": spread, **others}


@pytest.mark.parametrize(
    ("ours", "reference", "agrees"),
    [
        (claim(1.009), claim(1.0), True),  # 1 %
        (claim(1.011), claim(1.0), False),
        (claim(1.29), claim(1.0, spread=0.1), True),  # 3 spreads
        (claim(1.31), claim(1.0, spread=0.1), False),
        (claim(9.0), claim(1.0, unit="times"), True),  # speed depends on the machine
        (claim(9.0), claim(1.0, unit="%"), False),
        (claim([1.0, 2.0]), claim([1.0, 2.01]), True),
        (claim([1.0, 2.0]), claim([1.0, 2.5], spread=[0.0, 0.2]), True),
        (claim([1.0, 2.0]), claim([1.0, 2.5], spread=[0.2, 0.0]), False),
        (claim([1.0]), claim([1.0, 2.0]), False),
        (claim(float("nan")), claim(1.0), False),
    ],
)
def test_claims_are_compared_with_their_tolerance(ours, reference, agrees):
    assert (chapters.disagreements([ours], [reference]) == []) == agrees


def test_a_claim_that_was_not_computed_disagrees():
    assert chapters.disagreements([], [claim(1.0)]) == ["a: this run did not compute it"]
