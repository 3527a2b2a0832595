"""What the book needs from Sphinx: a scoreboard, repository links, pages without faults."""

import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

from experiments import playgrounds
from machinery import benchmarking, claims
from machinery.chapters import BOOK, Chapter, all_chapters
from machinery.store import Record

BIBLIOGRAPHY_KEY = re.compile(r"\b[a-z]+\d{4}[a-z]+\b")
SENTENCES = BOOK / "machinery" / "sentences.toml"
GPU = BOOK / "results" / "gpu"
KINDS = ("claim", "finding", "measurement")
EXERCISE = re.compile(r"(Exercise|Solution) \d+")
# Links to what Sphinx numbers: the start of their target, and the role whose text they get.
NUMBERED = {"eq-": ("math", "eq"), "fig-": ("std", "numref")}
LAUNCH = {
    "colab_url": "https://colab.research.google.com",
    "binderhub_url": "https://mybinder.org",
    "notebook_interface": "jupyterlab",
}


class Scoreboard(SphinxDirective):
    """The sentences of the talk with their verdicts, and below them every row of every chapter."""

    def run(self) -> list[nodes.Node]:
        """The page's content."""
        for path in result_files(Path(self.env.srcdir)):
            self.env.note_dependency(path)
        self.env.note_dependency(SENTENCES.relative_to(self.env.srcdir).as_posix())
        chapters = all_chapters()
        found = [row for chapter in chapters for row in claims.read(chapter.claims_file)]
        total = f"All {len(found)} rows of the book: {counted(found)}."
        lines = [*sentence_lines(chapters), "", gpu_line(), "", total, ""]
        lines += [*filter_lines(chapters), ""]
        for chapter in chapters:
            lines += chapter_lines(chapter)
        node = nodes.container()
        self.state.nested_parse(StringList(lines, str(SENTENCES)), 0, node)
        return node.children


class Benchmarks(SphinxDirective):
    """The rows of the benchmarks that were run last."""

    def run(self) -> list[nodes.Node]:
        """The page's content."""
        kept = benchmarking.KEPT
        self.env.note_dependency(kept.relative_to(self.env.srcdir).as_posix())
        lines = benchmarking.page()
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Verdicts(SphinxDirective):
    """Sentences with the verdicts on them, from lines that name a claim and what it says."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """A list of the sentences, each with its verdict and a link to its chapter."""
        rows = {
            row.id: (row, chapter)
            for chapter in all_chapters()
            for row in claims.read(chapter.claims_file)
            if isinstance(row, claims.Claim)
        }
        lines = []
        for line in filter(None, self.content):
            id, _, says = line.partition(": ")
            if id not in rows:
                raise self.error(f"there is no claim {id}")
            row, chapter = rows[id]
            self.env.note_dependency(str(chapter.claims_file))
            where = f"[chapter {int(chapter.name[:2])}]({chapter.name}.ipynb)"
            lines.append(f"- {says} *{row.verdict.capitalize()}* ({where}).")
        return self.parse_text_to_nodes("\n".join(lines))


class Playground(SphinxDirective):
    """A figure that a reader can touch, by its name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The figure's HTML."""
        static = "../" * self.env.docname.count("/") + "_static"
        return [nodes.raw("", playgrounds.html(self.arguments[0], static), format="html")]


def sentence_lines(chapters: list[Chapter]) -> list[str]:
    """The table of the talk's sentences, slide by slide."""
    found = [row for chapter in chapters for row in claims.read(chapter.claims_file)]
    rows = {row.id: row for row in found if isinstance(row, claims.Claim)}
    lines = ["| Slide | The talk says | Verdict | Number, and its control |", "|---|---|---|---|"]
    for sentence in tomllib.loads(SENTENCES.read_text("utf-8"))["sentence"]:
        judges = [rows[id] for id in sentence.get("claims", [])]
        page = f"evidence/{sentence['chapter']}" if judges else sentence["chapter"]
        link = f"[{int(sentence['chapter'][:2])}]({page}.ipynb)"
        verdict = claims.combined([judge.verdict for judge in judges])
        deciding = next((judge for judge in judges if judge.verdict == verdict), None)
        shown = f"{claims.value(deciding)}; {claims.control(deciding)}" if deciding else ""
        where = f"{sentence['slide']} ({link})"
        lines.append(claims.line_of(where, sentence["says"], f"*{verdict}*", shown))
    return lines


def gpu_line() -> str:
    """Which GPU has run the algorithms and the chapters, and what came out."""
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(GPU.glob("*.json"))]
    if not reports:
        return (
            "**Not run on a GPU.** The tests run the algorithms on a pretend accelerator;"
            " `make gpu-check` runs them on a real one, and its report then stands here."
        )
    return " ".join(gpu_report(report) for report in reports)


def gpu_report(report: dict[str, Any]) -> str:
    """One report of `make gpu-check` in a sentence or two."""
    agree = sum(row["agrees"] for row in report["algorithms"])
    passed = sum(row["passed"] for row in report["chapters"])
    steps = ", ".join(
        f"{row['name']}: {row['ms']:.3g} ms (CPU {row['cpu_ms']:.3g} ms)"
        for row in report["steps"]
        if "ms" in row
    )
    return (
        f"**Run on a GPU**: {report['card']}, torch {report['torch']}, {report['date']}. {agree} of"
        f" {len(report['algorithms'])} algorithms agree with the CPU, and {passed} of"
        f" {len(report['chapters'])} pages run. A training step takes: {steps}."
    )


def filter_lines(chapters: list[Chapter]) -> list[str]:
    """The controls by which a reader picks rows; a few lines of script act on them."""
    numbers = [str(int(chapter.name[:2])) for chapter in chapters]

    def select(name: str, label: str, every: str, values: Iterable[str]) -> str:
        options = "".join(f"<option>{value}</option>" for value in values)
        head = f'<option value="">{every}</option>'
        return f'<label>{label} <select id="row-{name}">{head}{options}</select></label> '

    return [
        "```{raw} html",
        '<p class="row-filter">',
        select("chapter", "Chapter", "all", numbers),
        select("kind", "Kind", "any", KINDS),
        select("verdict", "Verdict", "any", claims.VERDICTS),
        '<label>Text <input id="row-text" type="search"></label></p>',
        "```",
    ]


def counted(rows: list[claims.Row]) -> str:
    """How many rows have which verdict, and how many are measurements."""
    counts = Counter(row.verdict for row in rows if isinstance(row, claims.Claim))
    measured = len(rows) - counts.total()
    said = [f"{counts[verdict]} {verdict}" for verdict in claims.VERDICTS if counts[verdict]]
    return ", ".join([*said, f"{measured} measurement{'s' if measured != 1 else ''}"])


def chapter_lines(chapter: Chapter) -> list[str]:
    """The rows of a chapter, folded under its title and its counts."""
    rows = claims.read(chapter.claims_file)
    if not rows:
        return []
    title = f"{int(chapter.name[:2])}. {chapter.title}: {counted(rows)}"
    table = claims.table(rows).splitlines()
    return [
        f":::{{dropdown}} {title}",
        ":class-container: claim-rows",
        "",
        execution_line(chapter),
        "",
        *table,
        ":::",
        "",
    ]


class NumberedLinks(SphinxTransform):
    """Give links such as [Fig. 2](#fig-work), which read well in a notebook, the book's numbers."""

    default_priority = 900  # after MyST has made references of its links

    def apply(self) -> None:
        """Replace each by what the role numref or eq makes of its target."""
        for link in filter(is_link, list(self.document.findall(nodes.Element))):
            # MyST finds figures of the page by itself, and leaves equations to Sphinx
            target = link.get("refid") or link.get("reftarget", "")
            for start, (domain, role) in NUMBERED.items():
                if target.startswith(start):
                    how = {"refdomain": domain, "reftype": role, "reftarget": target}
                    how |= {"refexplicit": False, "refwarn": True, "refdoc": self.env.docname}
                    shown = nodes.literal("", target, classes=["xref"])
                    link.replace_self(addnodes.pending_xref("", shown, **how))


def is_link(node: nodes.Element) -> bool:
    """Whether a node is a link of MyST that names its target."""
    if isinstance(node, addnodes.pending_xref):
        return node["reftype"] == "myst"
    return isinstance(node, nodes.reference) and "refid" in node


class Exercises(SphinxTransform):
    """Put sections named Exercise 1 and Solution 1 in boxes, those of solutions closed."""

    default_priority = 400

    def apply(self) -> None:
        """Replace the sections by admonitions with the same anchors."""
        for section in list(self.document.findall(nodes.section)):
            title = section[0].astext()
            if found := EXERCISE.fullmatch(title):
                solution = found[1] == "Solution"
                classes = ["solution", "dropdown"] if solution else ["exercise"]
                box = nodes.admonition("", *section.children, classes=classes, ids=section["ids"])
                section.replace_self(box)


def citations_as_anchors(app: Sphinx, env: BuildEnvironment) -> None:
    """Let [Haber and Ruthotto, 2017](references.md#haber2017stable) find the entry."""
    keys = env.get_domain("cite").bibdata.data.entries  # type: ignore[attr-defined]
    page = env.metadata["book/references"]
    page["myst_slugs"] = {key: (0, key, key) for key in keys}  # type: ignore[assignment]


def execution_line(chapter: Chapter) -> str:
    """The link to the chapter, and how long its outputs and its fits took on which machine."""
    link = f"[Open the chapter]({chapter.name}.ipynb)."
    if not (record := chapter.execution):
        return link
    return (
        f"{link} Executed in {record['seconds']:.0f} s on {record['date']}: {record['processor']}, "
        f"Python {record['python']}, torch {record['torch']}. {training_line(chapter)}"
    )


def training_line(chapter: Chapter) -> str:
    """What its stored results cost."""
    files = sorted((BOOK / "results" / chapter.name).glob("*.json"))
    records = [Record(**json.loads(path.read_text("utf-8"))) for path in files]
    if not records:
        return ""
    minutes = sum(record.seconds for record in records) / 60
    on = ", ".join(sorted({f"{record.hardware} ({record.date})" for record in records}))
    return f"Its {len(records)} stored results took {minutes:.1f} minutes on {on}."


def result_files(root: Path) -> list[str]:
    """What the scoreboard is made from, as Sphinx writes dependencies: relative to the root."""
    found = (BOOK / "results").glob("*/*.json")  # of chapters, and of GPUs
    return sorted(path.relative_to(root).as_posix() for path in found)


def new_results(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """The scoreboard, when there are results that it has not seen; Sphinx notices changed ones."""
    page = "book/scoreboard"
    known = {str(path) for path in env.dependencies.get(page, ())}
    return [page] if page in env.all_docs and set(result_files(Path(app.srcdir))) - known else []


def tidy_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Make a docstring fit for reStructuredText."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's, for named tuples
        lines.clear()
    for i, line in enumerate(lines):
        if line.strip().startswith("Reference: "):
            line = BIBLIOGRAPHY_KEY.sub(r":cite:t:`\g<0>`", line)
        lines[i] = line.replace("|", r"\|")  # |x| is an absolute value and not a substitution


def add_repository(app: Sphinx, config: Config) -> None:
    """Give the theme the repository from $REPOSITORY; without it no page links to one."""
    repository = os.environ.get("REPOSITORY", "").rstrip("/")
    options = config.html_theme_options
    options["launch_buttons"] = LAUNCH if repository else {}
    options["use_repository_button"] = bool(repository)
    if repository:
        options["repository_url"] = repository


def tidy_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Take out of a page what browsers and screen readers stumble over."""
    # A list in name only: its entries have another role, and they are announced by that.
    if "body" in context:
        context["body"] = context["body"].replace(' role="list" class="citation-list"', "")
    # Thebe runs cells on a remote server, which this book does not use; its script is added twice.
    context["script_files"] = [file for file in context["script_files"] if not is_thebe(file)]


def export_playgrounds(app: Sphinx, error: Exception | None) -> None:
    """Write what the playgrounds need beside their scripts."""
    folder = Path(app.outdir) / "_static" / "playground"
    if error is None and app.builder.format == "html":
        playgrounds.export(folder)


def is_thebe(script: Any) -> bool:
    """Whether a script belongs to the extension sphinx-thebe."""
    return "thebe" in f"{getattr(script, 'filename', script)}{getattr(script, 'attributes', '')}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_directive("benchmarks", Benchmarks)
    app.add_directive("playground", Playground)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("verdicts", Verdicts)
    app.add_transform(NumberedLinks)
    app.add_transform(Exercises)
    app.connect("env-updated", citations_as_anchors)
    app.connect("env-get-outdated", new_results)
    app.connect("config-inited", add_repository)
    app.connect("html-page-context", tidy_page)
    app.connect("autodoc-process-docstring", tidy_docstring)
    app.connect("build-finished", export_playgrounds)
    # Whoever sets REPOSITORY expects new links: a rebuild value makes Sphinx write all pages again.
    app.add_config_value("repository_of_the_book", os.environ.get("REPOSITORY", ""), "html")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
