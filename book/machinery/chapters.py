"""Execute, check, train and compare the chapters of the book.

A chapter has a lecture, NN_name, and may have a page of evidence, evidence/NN_name. Pages called
use_name are guides: they show the library on a problem of one's own. Each page is a pair: the text
.myst.md, which people write, and the notebook .ipynb, the same cells with their outputs. Whether
the two agree is decided by their content, never by the times of the files, which mean nothing after
a clone.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import stdev
from typing import Any

import jupytext
import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from ctdl_lib.learning.storage import write

BOOK = Path(__file__).resolve().parents[1]
ROOT = BOOK.parent
MAX_BYTES = 1_500_000
CELL_TIMEOUT = 600  # seconds, for a machine that is busy: a whole chapter is meant to take 60
INLINE = "module://matplotlib_inline.backend_inline"
CLOCK = ("times", "s", "ms")  # units of rows that a clock has measured
SINGLE = 0.3  # relative: what one value that is trained again may differ by
NOISE = 1e-6  # sizes of rounding errors are not compared
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Chapter:
    """The files of a lecture "NN_name", a page "evidence/NN_name" or a guide "use_name"."""

    name: str
    book: Path = BOOK

    @property
    def text(self) -> Path:
        """The source that people write."""
        return self.book / f"{self.name}.myst.md"

    @property
    def notebook(self) -> Path:
        """The same cells with their outputs."""
        return self.book / f"{self.name}.ipynb"

    @property
    def stem(self) -> str:
        """The chapter's name without the folder of the page."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def key(self) -> str:
        """What commands know the page by: the number of its chapter, or its name."""
        return self.stem[:2] if self.stem[:2].isdigit() else self.stem

    @property
    def is_evidence(self) -> bool:
        """Whether this page is the evidence of a chapter and not its lecture."""
        return self.stem != self.name

    @property
    def evidence(self) -> "Chapter | None":
        """The page of evidence that belongs to this lecture, None if there is none."""
        page = Chapter(f"evidence/{self.stem}", self.book)
        return page if page.text.exists() and not self.is_evidence else None

    @property
    def claims_file(self) -> Path:
        """The rows of the chapter's claims, which its pages write."""
        return self.book / "results" / "claims" / f"{self.stem}.json"

    @property
    def execution_file(self) -> Path:
        """When, where and in how many seconds its outputs were computed."""
        suffix = ".evidence.json" if self.is_evidence else ".json"
        return self.book / "results" / "executions" / f"{self.stem}{suffix}"

    @property
    def title(self) -> str:
        """Its first heading."""
        heading = re.search(r"^# (.+)$", self.text.read_text("utf-8"), re.MULTILINE)
        return heading.group(1).strip() if heading else self.name

    @property
    def claims(self) -> list[dict[str, Any]]:
        """Its claims, none if they have not been written yet."""
        return read_json(self.claims_file) or []

    @property
    def execution(self) -> dict[str, Any]:
        """Its execution record, empty if there is none yet."""
        return read_json(self.execution_file) or {}


class ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs this script, whatever kernels the user has registered."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel of `sys.executable`."""
        # This book's packages are found also where the notebook is executed in another folder.
        path = os.pathsep.join(filter(None, [str(BOOK), os.environ.get("PYTHONPATH")]))
        env = {"PYTHONPATH": path, "MPLBACKEND": INLINE}  # a shell's backend would draw nothing
        return KernelSpec(resource_dir="", env=env, **get_kernel_dict())


# --- finding chapters ---------------------------------------------------------------------------


def all_chapters(book: Path = BOOK) -> list[Chapter]:
    """Every chapter of the book, in order."""
    return [
        Chapter(path.name.removesuffix(".myst.md"), book)
        for path in sorted(book.glob("[0-9][0-9]_*.myst.md"))
    ]


def with_evidence(chapters: list[Chapter]) -> list[Chapter]:
    """The pages of these chapters: each lecture, followed by its evidence if it has one."""
    return [page for c in chapters for page in (c, c.evidence) if page is not None]


def guides(book: Path = BOOK) -> list[Chapter]:
    """The pages that use the library alone, without a number, stored results and parameters."""
    found = sorted(book.glob("use_*.myst.md"))
    return [Chapter(path.name.removesuffix(".myst.md"), book) for path in found]


def find_pages(names: list[str], book: Path = BOOK) -> list[Chapter]:
    """The guides and the pages of the chapters with these names; all for none or "all"."""
    known = {guide.name: guide for guide in guides(book)}
    numbered = [name for name in names if name not in known]
    everything = names in ([], ["all"])
    chapters = find_chapters(numbered, book) if numbered or everything else []
    wanted = known.values() if everything else (known[name] for name in names if name in known)
    return [*with_evidence(chapters), *wanted]


def find_chapters(names: list[str], book: Path = BOOK) -> list[Chapter]:
    """The chapters with these names or numbers ("01_resnets", "01", "1"); all for none or "all"."""
    chapters = all_chapters(book)
    if not names or names == ["all"]:
        return chapters
    known = {key: c for c in chapters for key in (c.name, c.name[:2], c.name[:2].lstrip("0"))}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"no chapter {', '.join(unknown)}; there are {', '.join(c.name for c in chapters)}"
        )
    return [known[name] for name in names]


def write_each(
    make: Callable[[Chapter], Path | None],
    folder: Path,
    about: str | None,
    arguments: list[str] | None = None,
) -> int:
    """The exit status of a command that writes one file for each of the chapters it names."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("names", nargs="*", metavar="NAME", help='such as "07"; default: all')
    try:
        chapters = find_chapters(parser.parse_args(arguments).names)
        folder.mkdir(parents=True, exist_ok=True)
        for path in filter(None, map(make, chapters)):
            print(path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


# --- text and notebook --------------------------------------------------------------------------


def read_text(chapter: Chapter) -> NotebookNode:
    """The chapter's text as a notebook without outputs."""
    notebook = jupytext.read(chapter.text)
    notebook.metadata = NotebookNode(kernelspec=dict(KERNELSPEC))
    notebook.nbformat, notebook.nbformat_minor = 4, 5  # the first version whose cells have ids
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        # Ids that follow from the content keep the diff of a re-run to what really changed.
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        cell.id = f"{digest}-{seen[digest]}"
        seen[digest] += 1
    return notebook


def read_notebook(chapter: Chapter) -> NotebookNode:
    """The chapter's notebook as it is stored."""
    return nbformat.read(chapter.notebook, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells that contain something."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def pair_problems(chapter: Chapter) -> Iterator[str]:
    """Say what is out of date in a chapter's notebook: nothing, if it need not be executed."""
    if not chapter.notebook.exists():
        yield "it has no notebook"
        return
    written, stored = read_text(chapter), read_notebook(chapter)
    number = first_difference(written, stored)
    if number is not None:
        yield f"cell {number} differs between {chapter.text.name} and {chapter.notebook.name}"
    counts = [cell.execution_count for cell in code_cells(stored)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"its code cells were not all executed once and in order: they are numbered {counts}"


def first_difference(one: NotebookNode, other: NotebookNode) -> int | None:
    """The number, from 1, of the first cell in which two notebooks differ, outputs aside."""
    cells, others = ([cell_content(cell) for cell in nb.cells] for nb in (one, other))
    if cells == others:
        return None
    same = (a == b for a, b in zip(cells, others, strict=False))
    return 1 + next((i for i, equal in enumerate(same) if not equal), min(len(cells), len(others)))


def cell_content(cell: NotebookNode) -> tuple[Any, ...]:
    """What a cell says: the parts that both files of a pair hold."""
    tags = cell.metadata.get("tags") or []
    return cell.cell_type, cell.source.rstrip(), list(tags), cell.metadata.get("mystnb") or {}


def check(chapter: Chapter) -> list[str]:
    """Everything that keeps a chapter from being published, one sentence each."""
    problems = list(pair_problems(chapter))
    if problems:
        problems[-1] += f"; run: python -m machinery.chapters execute {chapter.key}"
    if chapter.notebook.exists():
        if (size := chapter.notebook.stat().st_size) > MAX_BYTES:
            problems.append(f"its notebook has {size:,} bytes, at most {MAX_BYTES:,} are wanted")
        missing = [str(n) for n, cell in figure_cells(chapter) if not has_picture(cell)]
        if missing:
            problems.append(f"its figures in code cells {', '.join(missing)} have no picture")
    return [f"{chapter.name}: {problem}" for problem in problems]


def figure_cells(chapter: Chapter) -> Iterator[tuple[int, NotebookNode]]:
    """The code cells of a notebook that draw a figure, with their numbers from 1."""
    for number, cell in enumerate(code_cells(read_notebook(chapter)), start=1):
        if "figure" in (cell.metadata.get("mystnb") or {}):
            yield number, cell


def has_picture(cell: NotebookNode) -> bool:
    """Whether an output of the cell is an image or a film."""
    kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
    return any(kind.startswith(("image/", "video/", "text/html")) for kind in kinds)


# --- execution ----------------------------------------------------------------------------------


def run_notebook(
    notebook: NotebookNode,
    output: Path | None = None,
    *,
    cwd: Path = BOOK,
    timeout: int | None = CELL_TIMEOUT,
    verbose: bool = False,
    **parameters: str,
) -> NotebookNode:
    """The notebook with its outputs; also written to `output`, even when a cell fails."""
    return papermill.execute_notebook(
        notebook,
        output,
        parameters,
        cwd=cwd,
        kernel_manager_class=ThisPython,
        extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it talks over TCP
        start_timeout=120,
        execution_timeout=timeout,
        progress_bar=False,
        log_output=verbose,
    )


def execute(chapter: Chapter) -> float:
    """Recompute a chapter's notebook from its text and return the seconds it took.

    Nothing is written unless every cell succeeds.

    Raises:
        ValueError: the notebook was edited since its last execution.
    """
    refuse_edited(chapter)
    start = time.perf_counter()
    notebook = run_notebook(read_text(chapter), cwd=chapter.text.parent)
    seconds = round(time.perf_counter() - start, 1)
    write(chapter.notebook, (nbformat.writes(without_noise(notebook)) + "\n").encode())
    record = execution_record(seconds) | {"cells": fingerprint(chapter)}
    record = json.dumps(record, indent=2) + "\n"
    write(chapter.execution_file, record.encode())
    return seconds


def fingerprint(chapter: Chapter) -> str:
    """A hash of the cells of a chapter's notebook, outputs aside."""
    cells = [cell_content(cell) for cell in read_notebook(chapter).cells]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:16]


def refuse_edited(chapter: Chapter) -> None:
    """Refuse to overwrite a notebook whose cells are no longer those that were executed."""
    recorded = chapter.execution.get("cells")
    if recorded is None or not chapter.notebook.exists():
        return
    if first_difference(read_text(chapter), read_notebook(chapter)) is None:
        return
    if fingerprint(chapter) != recorded:
        path = chapter.notebook.relative_to(chapter.book.parent).as_posix()
        raise ValueError(
            f"{chapter.notebook.name} was edited since it was executed, and executing"
            f" {chapter.text.name} would delete the edit. Carry it over with"
            f" `jupytext --sync {path}`, or delete the notebook"
        )


def without_noise(notebook: NotebookNode) -> NotebookNode:
    """Drop what a run tells about itself, so that equal runs give equal files."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "remove-stderr" in cell.metadata.get("tags", []):  # progress bars, with their times
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
    return notebook


def execution_record(seconds: float) -> dict[str, Any]:
    """What the book tells about an execution."""
    return {
        "seconds": seconds,
        "python": platform.python_version(),
        "torch": version("torch"),
        "processor": processor(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def processor() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name.group(1) if name else platform.processor() or platform.machine()


def read_json(path: Path) -> Any:
    """The content of a JSON file, None if there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


# --- comparison with published claims -----------------------------------------------------------


def disagreements(ours: list[dict[str, Any]], reference: list[dict[str, Any]]) -> list[str]:
    """Say which of our claims differ from the reference by more than their tolerance."""
    ours_by_id = {claim["id"]: claim for claim in ours}
    found = []
    for claim in reference:
        if claim["id"] not in ours_by_id:
            found.append(f"{claim['id']}: this run did not compute it")
        elif is_comparable(claim):
            found += difference(ours_by_id[claim["id"]], claim)
    return found


def is_comparable(claim: dict[str, Any]) -> bool:
    """False for times, p-values and rounding errors, which differ between machines and runs."""
    is_p_value = "pvalue" in claim["id"] or claim.get("unit") == "p-value"
    size = max((abs(value) for value in numbers(claim["ours"])), default=0.0)
    return claim.get("unit") not in CLOCK and not is_p_value and size > NOISE


def difference(ours: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """At most one sentence: where the values of a claim, or its verdicts, are too far apart."""
    values, expected = numbers(ours["ours"]), numbers(reference["ours"])
    if len(values) != len(expected):
        return [f"{reference['id']}: {len(values)} numbers instead of {len(expected)}"]
    verdicts = ours.get("verdict"), reference.get("verdict")
    if None not in verdicts and "undecided" not in verdicts and verdicts[0] != verdicts[1]:
        return [f"{reference['id']}: {verdicts[0]} instead of {verdicts[1]}"]
    for value, wanted, allowed in zip(values, expected, tolerances(reference), strict=True):
        if not abs(value - wanted) <= allowed:  # written so that NaN is a disagreement
            return [f"{reference['id']}: {value:.6g} instead of {wanted:.6g} ± {allowed:.2g}"]
    return []


def tolerances(claim: dict[str, Any]) -> list[float]:
    """What each number of a claim may differ by after a training on another machine.

    That is 3 spreads over seeds or 1 %, the larger. Seeds that are listed one by one have the
    spread of the list. A single value without a spread may differ by 30 %.
    """
    expected = numbers(claim["ours"])
    spreads = [] if claim["spread"] is None else numbers(claim["spread"])
    if not spreads and len(expected) > 1:
        spreads = [stdev(expected)]
    if not spreads:
        return [SINGLE * abs(value) for value in expected]
    spreads = spreads if len(spreads) == len(expected) else [max(spreads)] * len(expected)
    return [max(3 * s, 0.01 * abs(e)) for s, e in zip(spreads, expected, strict=True)]


def numbers(value: float | list[float]) -> list[float]:
    """A claim's value as a list, which it is when the claim is about several numbers."""
    return value if isinstance(value, list) else [value]


def committed_claims(chapter: Chapter, revision: str) -> list[dict[str, Any]]:
    """The chapter's claims as they are in a git revision."""
    path = chapter.claims_file.relative_to(ROOT).as_posix()
    shown = subprocess.run(
        ["git", "show", f"{revision}:{path}"], cwd=ROOT, capture_output=True, text=True
    )
    if shown.returncode != 0:  # to agree with nothing would be no agreement
        raise ValueError(f"{chapter.name}: no claims to compare with. {shown.stderr.strip()}")
    return json.loads(shown.stdout)


# --- commands -----------------------------------------------------------------------------------


def execute_command(arguments: argparse.Namespace) -> int:
    """Execute the chapters whose notebook is out of date, or all that are named."""
    # Evidence first: it writes the verdicts that its lecture shows.
    for chapter in sorted(find_pages(arguments.names), key=lambda c: (c.stem, not c.is_evidence)):
        reasons = list(pair_problems(chapter))
        if not reasons and not arguments.all:
            print(f"{chapter.name}: up to date")
            continue
        print(f"{chapter.name}: executing, {reasons[0] if reasons else 'as asked'}", flush=True)
        try:
            print(f"{chapter.name}: done in {execute(chapter):.1f} s")
        except ValueError as error:
            print(f"{chapter.name}: {error}")
            return 1
    return 0


def check_command(arguments: argparse.Namespace) -> int:
    """Fail if a pair disagrees, was not executed in order or is too large."""
    problems = [problem for page in find_pages(arguments.names) for problem in check(page)]
    print("\n".join(problems) or "all pairs agree")
    return bool(problems)


def train_command(arguments: argparse.Namespace) -> int:
    """Run chapters with run="train", into _build/papermill: the pair is not touched.

    Where a chapter has evidence, that page does all of its training. A chapter that fails does not
    keep the others from being trained.
    """
    if not re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d+)?", arguments.device):
        raise ValueError(f"--device must be auto, cpu, cuda, mps or xpu, got {arguments.device!r}")
    failed = []
    for chapter in (c.evidence or c for c in find_chapters(arguments.names)):
        output = ROOT / "_build" / "papermill" / chapter.notebook.name
        output.parent.mkdir(parents=True, exist_ok=True)
        print(f"{chapter.name}: training, executed notebook in {output}", flush=True)
        try:
            run_notebook(
                read_text(chapter),
                output,
                cwd=chapter.text.parent,
                timeout=None,
                verbose=True,
                run="train",
                device=arguments.device,
            )
        except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(plain(error), file=sys.stderr)
            failed.append(chapter.name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def compare_command(arguments: argparse.Namespace) -> int:
    """Fail if the claims on disk differ from those of a git revision beyond their tolerances."""
    found = [
        line
        for chapter in find_chapters(arguments.names)
        for line in disagreements(chapter.claims, committed_claims(chapter, arguments.revision))
    ]
    print("\n".join(found) or f"every claim agrees with {arguments.revision}")
    return bool(found)


def table_command(arguments: argparse.Namespace) -> int:
    """Print where the book is, and its chapters with seconds and claims by verdict."""
    print(ROOT / "_build" / "html" / "index.html")
    chapters = find_chapters(arguments.names)
    width = max((len(chapter.title) for chapter in chapters), default=0)
    for chapter in chapters:
        seconds = chapter.execution.get("seconds")
        verdicts = Counter(claim["verdict"] or claim["kind"] for claim in chapter.claims)
        print(
            f"{chapter.name[:2]}  {chapter.title:<{width}}",
            f"{seconds:6.1f} s" if seconds is not None else "     – s",
            ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "no claims",
            sep="  ",
        )
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command and its options."""
    parser = argparse.ArgumentParser(description="Execute, check, train and compare the chapters.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    functions = (execute_command, check_command, train_command, compare_command, table_command)
    for function in functions:
        name = function.__name__.removesuffix("_command")
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.add_argument("names", nargs="*", metavar="NAME", help='such as "01"; default: all')
        command.set_defaults(function=function)
        if name == "execute":
            command.add_argument("--all", action="store_true", help="also those up to date")
        if name == "train":
            command.add_argument("--device", default="auto", help="auto, cpu or cuda")
        if name == "compare":
            command.add_argument("--revision", default="HEAD", help="git revision to compare with")
    return parser.parse_args(arguments)


def plain(error: Exception) -> str:
    """An error's message, without colours where nobody could see them."""
    message = str(error)
    return message if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", message)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parsed = parse_arguments(arguments)
    try:
        return parsed.function(parsed)
    except (PapermillExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
        print(plain(error), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
