"""Chapters run: in smoke from the first line to the last, and the tool that executes them works."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from machinery import chapters
from machinery.chapters import Chapter

ROOT = Path(__file__).parents[1]

RESULTS = chapters.BOOK / "results"
TEXT = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: A kernel nobody has
  language: python
  name: no-such-kernel
---

# Tiny

```{code-cell} ipython3
:tags: [parameters]

run = "saved"
device = "auto"
```

```{code-cell} ipython3
import sys
print(run, sys.executable)
```
"""


def fingerprint(folder: Path) -> dict[str, str]:
    """The content of every file that a reader would see."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")  # locks, and files half-written
    }


PAGES = chapters.with_evidence(chapters.all_chapters())
EVIDENCE = [page for page in PAGES if page.name.startswith("evidence/")]
BORDER = re.compile(r"(?<!\\)\|")
# The rows of 256 layers, of most numbers of steps, of more than two dimensions, and of most flights
# that plan anew, which a trial run does not try.
LEFT_OUT = {"pde.cost.d3", "pde.cost.d4"}
LEFT_OUT |= {f"resnet.digits.{row}.256" for row in ("skip_gain", "plain")}
LEFT_OUT |= {f"node.time.{when}.rk4.{n}" for when in ("at_first", "trained") for n in (60, 120)}
MPC_ROWS = ("mpc.cost", "gap_to_mpc", "blend.gap_to_mpc", "linear.gap_to_mpc")
WINDS = ("00.nt100", "00.nt200", "01.nt100", "02.nt100", "02.nt200", "04.nt50", "04.nt100")
LEFT_OUT |= {f"quad.{row}.sigma{wind}" for row in MPC_ROWS for wind in WINDS}


@pytest.mark.parametrize("chapter", PAGES, ids=lambda c: c.name)
def test_chapter_runs_in_smoke_and_saves_nothing(chapter, tmp_path):
    # a copy: beside this test, another worker may execute chapters, which write their claims
    results = shutil.copytree(RESULTS, tmp_path / "results")
    before = fingerprint(results)
    # not beside the results: a reader may start a notebook from anywhere
    (tmp_path / "elsewhere").mkdir()
    notebook = chapters.run_notebook(
        chapters.read_text(chapter),
        tmp_path / chapter.notebook.name,
        cwd=tmp_path / "elsewhere",
        run="smoke",
        device="cpu",
    )
    assert fingerprint(results) == before
    assert not list((tmp_path / "elsewhere").iterdir())
    for table in "\n\n".join(tables(notebook)).split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(BORDER.findall(line)) for line in rows}) <= 1
    if chapter in EVIDENCE:
        shown = "\n".join(tables(notebook))
        missing = {claim["id"] for claim in chapter.claims if f"`{claim['id']}`" not in shown}
        assert missing == LEFT_OUT & {claim["id"] for claim in chapter.claims}


def test_papermill_runs_a_chapter_from_another_folder(tmp_path):
    (page,) = (page for page in PAGES if page.name.startswith("13"))
    command = [sys.executable, "-m", "papermill", page.notebook, "out.ipynb", "-p", "run", "saved"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]
    found, kept = (nbformat.read(path, 4) for path in (tmp_path / "out.ipynb", page.notebook))
    assert tables(found) == tables(kept)
    assert tables(found)


def tables(notebook):
    """The Markdown that the cells of a notebook show."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [text for o in outputs if (text := o.get("data", {}).get("text/markdown"))]


# --- the tool -----------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Chapter:
    """A chapter of two cells."""
    chapter = Chapter("01_tiny", tmp_path)
    chapter.text.write_text(TEXT)
    return chapter


def printed(chapter: Chapter) -> str:
    return chapters.read_notebook(chapter).cells[-1].outputs[0].text.strip()


def test_execute_uses_this_python_and_records_what_it_ran_on(tiny):
    seconds = chapters.execute(tiny)
    assert printed(tiny) == f"saved {sys.executable}"
    assert chapters.check(tiny) == []
    assert tiny.execution["seconds"] == seconds
    parts = {"seconds", "python", "torch", "processor", "date", "cells"}
    assert set(tiny.execution) == parts


def test_executing_again_changes_no_byte_of_the_notebook(tiny):
    chapters.execute(tiny)
    first = tiny.notebook.read_bytes()
    tiny.notebook.unlink()
    chapters.execute(tiny)
    assert tiny.notebook.read_bytes() == first


def test_an_edit_leaves_the_ids_of_other_cells_alone(tiny):
    before = [cell.id for cell in chapters.read_text(tiny).cells]
    tiny.text.write_text(TEXT.replace("# Tiny", "# Tiny, edited"))
    after = [cell.id for cell in chapters.read_text(tiny).cells]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


def test_a_failing_cell_keeps_the_pair_and_shows_its_traceback(tiny, monkeypatch, capsys):
    chapters.execute(tiny)
    tiny.text.write_text(TEXT.replace("print(run", "print(undefined_name"))
    before = fingerprint(tiny.book)
    monkeypatch.setattr(chapters, "find_pages", lambda names: [tiny])
    assert chapters.main(["execute"]) == 1
    message = capsys.readouterr().err
    assert "print(undefined_name, sys.executable)" in message
    assert "NameError: name 'undefined_name' is not defined" in message
    assert fingerprint(tiny.book) == before


def test_execute_skips_what_is_up_to_date(tiny, monkeypatch, capsys):
    monkeypatch.setattr(chapters, "find_pages", lambda names: [tiny])
    assert chapters.main(["execute"]) == 0
    assert "done in" in capsys.readouterr().out
    assert chapters.main(["execute"]) == 0
    assert capsys.readouterr().out == "01_tiny: up to date\n"


def test_an_edited_notebook_is_never_overwritten(tiny, monkeypatch, capsys):
    monkeypatch.setattr(chapters, "find_pages", lambda names: [tiny])
    chapters.execute(tiny)
    notebook = nbformat.read(tiny.notebook, 4)
    notebook.cells.append(nbformat.v4.new_markdown_cell("MY NOTES"))
    nbformat.write(notebook, tiny.notebook)
    before = fingerprint(tiny.book)
    assert chapters.main(["execute"]) == 1
    message = capsys.readouterr().out
    assert "01_tiny.ipynb" in message
    assert "jupytext --sync" in message
    assert fingerprint(tiny.book) == before


def test_an_edited_text_is_executed_anew(tiny):
    chapters.execute(tiny)
    tiny.text.write_text(TEXT.replace("print(run", "print(2, run"))
    chapters.execute(tiny)
    assert printed(tiny) == f"2 saved {sys.executable}"


FIGURE = """
```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-tiny
---
import matplotlib.pyplot as plt
plt.plot([0, 1])
plt.show()
```
"""


def test_the_backend_of_the_shell_does_not_lose_pictures(tiny, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    tiny.text.write_text(TEXT + FIGURE)
    chapters.execute(tiny)
    assert chapters.check(tiny) == []


def test_a_figure_without_a_picture_is_a_fault(tiny):
    tiny.text.write_text(TEXT + FIGURE.replace("plt.plot([0, 1])", "plt.close()"))
    chapters.execute(tiny)
    (problem,) = chapters.check(tiny)
    assert problem == "01_tiny: its figures in code cells 3 have no picture"


def test_train_passes_its_parameters_and_leaves_the_pair_alone(tiny, monkeypatch):
    monkeypatch.setattr(chapters, "find_chapters", lambda names: [tiny])
    monkeypatch.setattr(chapters, "ROOT", tiny.book)
    before = fingerprint(tiny.book)
    assert chapters.main(["train", "01", "--device", "cpu"]) == 0
    output = tiny.book / "_build" / "papermill" / "01_tiny.ipynb"
    injected = json.loads(output.read_text())["cells"][2]
    assert injected["metadata"]["tags"] == ["injected-parameters"]
    assert {'run = "train"\n', 'device = "cpu"\n'} <= set(injected["source"])
    assert {k: v for k, v in fingerprint(tiny.book).items() if k in before} == before


def test_compare_takes_the_reference_from_git(tiny, monkeypatch, capsys):
    def git(*arguments):
        author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(("git", *author, *arguments), cwd=tiny.book, check=True, capture_output=True)

    def write(value):
        content = [{"id": "a", "ours": value, "spread": None}]
        tiny.claims_file.parent.mkdir(parents=True, exist_ok=True)
        tiny.claims_file.write_text(json.dumps(content))

    monkeypatch.setattr(chapters, "find_chapters", lambda names: [tiny])
    monkeypatch.setattr(chapters, "ROOT", tiny.book)
    git("init", "--quiet")
    write(1.0)
    git("add", ".")
    git("commit", "--quiet", "--message", "reference")
    write(1.001)
    assert chapters.main(["compare"]) == 0
    write(1.4)
    assert chapters.main(["compare"]) == 1
    assert "a: 1.4 instead of 1 ± 0.3" in capsys.readouterr().out
    assert chapters.main(["compare", "--revision", "no-such-revision"]) == 1
    assert "01_tiny: no claims to compare with" in capsys.readouterr().err


def test_unknown_chapter_is_named(capsys):
    assert chapters.main(["execute", "99"]) == 1
    assert "no chapter 99" in capsys.readouterr().err


def a_row(ours=1.0, spread=0.1, **more):
    return {"id": "a.b", "ours": ours, "spread": spread, "verdict": None, "unit": ""} | more


COMPARED = {
    "within three spreads": (a_row(), a_row(1.29), 0),
    "beyond three spreads": (a_row(), a_row(1.31), 1),
    "not a number": (a_row(), a_row(float("nan")), 1),
    "one value": (a_row(spread=None), a_row(1.29), 0),
    "one value far away": (a_row(spread=None), a_row(1.31), 1),
    "seeds": (a_row([1.0, 1.2], None), a_row([1.3, 1.0]), 0),
    "seeds far away": (a_row([1.0, 1.2], None), a_row([1.5, 1.0]), 1),
    "another number of seeds": (a_row([1.0, 1.2], None), a_row([1.0]), 1),
    "seconds": (a_row(unit="s"), a_row(5.0, unit="s"), 0),
    "a ratio of times": (a_row(unit="times"), a_row(5.0), 0),
    "a p-value": (a_row(id="a.pvalue"), a_row(5.0, id="a.pvalue"), 0),
    "rounding errors": (a_row(1e-12, None), a_row(5e-12), 0),
    "a verdict": (a_row(verdict="supported"), a_row(verdict="refuted"), 1),
    "an undecided verdict": (a_row(verdict="supported"), a_row(verdict="undecided"), 0),
    "a lost row": (a_row(), a_row(id="a.c"), 1),
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_retrained_row_may_differ_by_what_training_again_changes(name):
    reference, ours, count = COMPARED[name]
    assert len(chapters.disagreements([ours], [reference])) == count


def test_a_chapter_that_fails_does_not_keep_others_from_training(monkeypatch, capsys, tmp_path):
    names = ["01_first", "02_second", "03_third"]
    pages = [chapters.Chapter(name, tmp_path) for name in names]
    seen = []

    def run_notebook(text, output, **how):
        seen.append(output.stem)
        if "second" in output.stem:
            raise chapters.DeadKernelError("the kernel died")

    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    monkeypatch.setattr(chapters, "find_chapters", lambda names: pages)
    monkeypatch.setattr(chapters, "read_text", lambda chapter: None)
    monkeypatch.setattr(chapters, "run_notebook", run_notebook)
    assert chapters.main(["train"]) == 1
    assert seen == names
    assert "failed: 02_second" in capsys.readouterr().err


def test_an_unknown_device_is_refused_before_anything_is_trained(capsys):
    assert chapters.main(["train", "01", "--device", "banana"]) == 1
    assert "got 'banana'" in capsys.readouterr().err


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_pin_their_actions_and_grant_each_job_what_it_needs(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert job["permissions"]
        assert job["timeout-minutes"] <= 360
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"])
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


def test_code_of_a_fork_never_reaches_the_gpu_runner():
    jobs = yaml.safe_load((ROOT / ".github/workflows/gpu.yml").read_text())["jobs"]
    own = [name for name, job in jobs.items() if "GPU_RUNNER" in job["runs-on"]]
    assert own == ["train"]
    assert jobs["train"]["needs"] == "list"
    assert "pull_request.head.repo.full_name == github.repository" in jobs["list"]["if"]
    assert jobs["train"]["strategy"]["fail-fast"] is False
    assert "issues" not in jobs["train"]["permissions"]
