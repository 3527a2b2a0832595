"""Notebooks for a class: what they lack, and what they say to right and wrong lines."""

import json
import re
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from machinery import chapters, classroom, stubs
from machinery.stubs import Block, Stub, blocks_of, stubs_of

LECTURES = [chapter for chapter in chapters.all_chapters() if chapter.evidence]
# Their first cells take a second, and their formula needs no cell between.
QUICK = ["05", "08"]

each_lecture = pytest.mark.parametrize("lecture", LECTURES, ids=lambda c: c.name)


def parts_of(lecture: chapters.Chapter) -> dict[int, Stub]:
    """The stubs of a lecture."""
    return stubs_of(chapters.read_text(lecture), blocks_of(lecture))


@each_lecture
def test_a_stub_lacks_the_solution_and_with_it_is_the_lecture(lecture):
    notebook, blocks = chapters.read_text(lecture), blocks_of(lecture)
    parts = parts_of(lecture)
    assert sum(part.task.count("...\n") + part.task.endswith("...") for part in parts.values()) == (
        len(blocks)
    )
    for number, part in parts.items():
        source = notebook.cells[number].source
        assert without_blank(f"{part.solution}\n{part.check}") == without_blank(source)
        assert "assert" in part.check
        removed = [line for block in blocks for line in lines_of(block, part.solution)]
        assert removed
        assert [line for line in removed if line in part.task.splitlines()] == []
        left = [line for line in part.solution.splitlines() if line not in removed]
        assert [line for line in left if line not in part.task.splitlines()] == []
        assert max(map(len, part.task.splitlines())) <= stubs.COLUMNS


def without_blank(source: str) -> list[str]:
    """The lines of a source that are not empty."""
    return [line for line in source.splitlines() if line.strip()]


def lines_of(block: Block, source: str) -> list[str]:
    """The lines of a block in a source, none where it belongs to another cell."""
    is_here = re.search(rf"^{re.escape(block.after)}", source, re.MULTILINE)
    return source.splitlines()[block.lines(source)] if is_here else []


def test_every_row_of_the_table_is_of_a_lecture():
    table = stubs.tomllib.loads(stubs.TABLE.read_text("utf-8"))
    assert list(table) == [lecture.name for lecture in LECTURES]


def test_a_row_that_fits_nowhere_is_named():
    notebook = new_notebook(cells=[new_code_cell("def f(x):\n    return x\n\nassert f(1) == 1")])
    with pytest.raises(ValueError, match=r"0 cells have 'def g': correct stubs\.toml"):
        stubs_of(notebook, [Block("def g", "return", "say x")])
    with pytest.raises(ValueError, match=r"no line begins with 'yield': correct stubs\.toml"):
        stubs_of(notebook, [Block("def f", "yield", "say x")])


def test_the_command_writes_notebooks_whose_links_lead_somewhere(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "stubs"
    monkeypatch.setattr(stubs, "FOLDER", folder)
    assert stubs.main(["2", "16"]) == 0
    (path,) = folder.iterdir()
    assert capsys.readouterr().out.split() == [str(path)]
    notebook = json.loads(path.read_text("utf-8"))
    texts = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    assert "the lines of one cell are missing" in texts[1]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    assert len(links) > 10
    assert [link for link in links if not (folder / link).exists()] == []
    assert stubs.main(["99"]) == 1
    assert "no chapter 99" in capsys.readouterr().err


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.usefixtures("as_the_book_computes")
def test_the_solution_passes_the_check_and_the_gap_does_not(name, monkeypatch):
    (lecture,) = chapters.find_chapters([name])
    monkeypatch.chdir(chapters.BOOK)
    names: dict = {}
    for cell in chapters.code_cells(chapters.read_text(lecture))[:2]:
        exec(cell.source, names)
    (part,) = parts_of(lecture).values()
    exec(part.solution, names)
    check = stubs.checking_cell(part.check, "check").source
    exec(check, names)
    exec(part.task, names)
    with pytest.raises(classroom.NotYetError, match="Not yet"):
        exec(check, names)


def test_a_notebook_tells_a_student_what_is_wrong():
    """In a kernel: the gap, two wrong ways to fill it, and the right one."""
    (lecture,) = chapters.find_chapters(["02"])
    first = chapters.code_cells(chapters.read_text(lecture))[:2]
    (part,) = parts_of(lecture).values()
    check = stubs.checking_cell(part.check, "check").source
    wrong = part.solution.replace("z - h", "z + h"), part.solution.replace("K_k.T", "K_j.T")
    tries = [part.task, *wrong, part.solution]
    cells = [new_code_cell(source) for attempt in tries for source in (attempt, check)]
    notebook = new_notebook(cells=[*first, *cells])
    how = {"kernel_manager_class": chapters.ThisPython, "allow_errors": True}
    resources = {"metadata": {"path": str(chapters.BOOK)}}
    NotebookClient(notebook, resources=resources, **how).execute()
    gap, sign, name, right = [said(cell) for cell in notebook.cells[3::2]]
    line = "    assert torch.allclose(by_hand, net.features(y), atol=1e-14)"
    for text in (gap, sign):
        assert re.fullmatch(r"Not yet. This check fails, its sides differ by [\d.e-]+:", text[0])
        assert text[1:] == [line, classroom.HELP]
    start = (
        "Not yet. There is an error, NameError: name 'K_j' is not defined. It comes from the line"
    )
    assert name == [start, "    y = y + h * torch.tanh(z @ K_j.T + b_k)", classroom.HELP]
    assert right == ["Right: your lines pass every check of the lecture."]


def said(cell: NotebookNode) -> list[str]:
    """The lines of what a cell prints, or of its error."""
    (output,) = cell.outputs
    return output.get("text", "").splitlines() or output["traceback"]


def test_a_failed_comparison_of_other_things_shows_the_line(tmp_path, monkeypatch):
    path = Path(tmp_path) / "lines.py"
    path.write_text("def check():\n    assert 1 > 2, 'never'\n")
    monkeypatch.syspath_prepend(tmp_path)
    from lines import check  # pyright: ignore[reportMissingImports]

    with pytest.raises(classroom.NotYetError) as caught, classroom.checked():
        check()
    assert str(caught.value).splitlines()[1] == "    assert 1 > 2, 'never'"
