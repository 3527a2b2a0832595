"""Write the rooms of a new chapter, and say what a chapter lacks until it can be published.

`make new CHAPTER=17 NAME=waves` writes a lecture, a page of evidence, a package of experiments and
a file of tests. The first of these tests fails and lists what is missing.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template

from . import chapters
from .chapters import ROOT, Chapter

WANTED = {  # of a lecture, at least
    "figures": ("  figure:", 5),
    "exercises": ("### Exercise", 4),
    "paragraphs that say what a reader will be able to do": ("**You will be able to** ", 1),
    "summaries": ("**In short.** ", 1),
}
GAP = "FILL IN"  # marks what an author replaces

HEAD = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# $title

$macros
"""
PARAMETERS = """
```{code-cell} ipython3
:tags: [parameters]

run = "saved"  # or "explore", "train", "smoke": see the first page of the book
device = "auto"  # "cpu", "cuda"
seed = 0
```
"""
LECTURE = (
    HEAD
    + """FILL IN: what this lecture is about, in three sentences, and what of it is tried.

**You will be able to** FILL IN: three things that a reader can do afterwards.

**Prerequisites.** FILL IN: links. Seeds, rivals and costs are on the page of
[evidence](evidence/$stem.ipynb).
"""
    + PARAMETERS
    + """
```{code-cell} ipython3
:tags: [hide-input]

from experiments.$name import lecture
from machinery import plotting

plotting.use_style()
results = lecture.results(run, seed)
```

```{code-cell} ipython3
---
tags: [hide-input]
mystnb:
  figure:
    name: fig-$name-idea
    caption: "FILL IN: what is drawn."
  image:
    alt: FILL IN, what one sees.
---
lecture.draw_idea(results)
```

## The idea

FILL IN: each symbol with its dimension, the equation, and below it the same in ten lines of code.

## Train it

FILL IN: a training that takes seconds.

## What goes wrong

FILL IN: a failure, shown on purpose.

## Exercises

### Exercise 1

*Derive it.* FILL IN

### Solution 1

FILL IN

## What the evidence says

FILL IN: three to six sentences with verdicts.

**In short.** FILL IN: the idea in three sentences.

**Next.** FILL IN: a link.
"""
)
EVIDENCE = (
    HEAD
    + """This page holds what the [lecture](../$stem.ipynb) claims against numbers.
FILL IN: seeds and protocol.
"""
    + PARAMETERS
    + """
```{code-cell} ipython3
:tags: [hide-input]

from IPython.display import Markdown

from experiments.$name import evidence

store, rows = evidence.gather(run, seed)
```

## Verdicts

```{code-cell} ipython3
:tags: [hide-input]

Markdown(store.claims(rows))  # keeps all rows
```
"""
)
EXPERIMENTS = {
    "__init__.py": '"""Experiments of the chapter $stem. FILL IN: on what."""\n',
    "lecture.py": '''"""What the lecture draws. FILL IN: load what `evidence` has stored."""

import matplotlib.pyplot as plt

from machinery.store import Run


def results(run: Run, seed: int) -> list[float]:
    """The numbers that the lecture draws. FILL IN: stored ones."""
    return [float(seed), 1.0]


def draw_idea(found: list[float]) -> None:
    """Draw the whole idea. FILL IN."""
    plt.plot(found)
    plt.show()
''',
    "evidence.py": '''"""What the chapter measures and claims. FILL IN: claims and controls."""

from machinery.claims import Measurement, Row
from machinery.store import Run, Store

CHAPTER = "$stem"


def gather(run: Run, seed: int) -> tuple[Store, list[Row]]:
    """The store of the chapter, and the rows of its claims."""
    store = Store(CHAPTER, run)
    settings = {"seed": seed}  # all that the numbers depend on
    found = store.measure("example", settings, lambda: {"example": float(seed)})
    said = "FILL IN: what is measured"
    measured = Measurement("$name.example", "FILL IN", said, found.numbers["example"])
    return store, [measured]
''',
}
TESTS = '''"""The chapter $stem: what it lacks, and a second route to each of its results."""

from machinery import new_chapter


def test_nothing_of_the_chapter_is_missing():
    assert new_chapter.missing("$stem") == []
'''


def write(number: str, name: str, root: Path = ROOT) -> list[Path]:
    """The files of a new chapter, which are written; none may be there before.

    Raises:
        ValueError: the number or the name is none of a chapter, or is taken.
    """
    if not re.fullmatch(r"\d\d?", number) or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(
            f"got CHAPTER={number} NAME={name}: want a number of two digits and a name in small"
            " letters, as in `make new CHAPTER=17 NAME=travelling_waves`"
        )
    stem = f"{number:0>2}_{name}"
    book, taken = root / "book", chapters.all_chapters(root / "book")
    for chapter in taken:
        if chapter.name[:2] == stem[:2] or chapter.name[3:] == name:
            raise ValueError(f"there is a chapter {chapter.name}: choose another number and name")
    macros = re.search(r"^\$\\def.*$", taken[0].text.read_text("utf-8"), re.MULTILINE)
    title = name.replace("_", " ").capitalize()
    values = {"stem": stem, "name": name, "title": title, "macros": macros[0] if macros else ""}
    texts = {
        book / f"{stem}.myst.md": LECTURE,
        book / "evidence" / f"{stem}.myst.md": EVIDENCE.replace("$title", "$title: the evidence"),
        **{book / "experiments" / name / file: text for file, text in EXPERIMENTS.items()},
        root / "tests" / f"test_experiments_{name}.py": TESTS,
    }
    for path in texts:
        if path.exists():
            raise ValueError(f"{path} is there already: choose another name, or delete it")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text).safe_substitute(values), "utf-8")
    return list(texts)


def missing(stem: str, root: Path = ROOT) -> list[str]:
    """What keeps the chapter from being published, one sentence each."""
    return list(_missing(Chapter(stem, root / "book"), root))


def _missing(lecture: Chapter, root: Path) -> Iterator[str]:
    evidence = Chapter(f"evidence/{lecture.name}", lecture.book)
    listed = {
        "_toc.yml": [f"- file: book/{page.name}" for page in (lecture, evidence)],
        "book/intro.md": [f"{lecture.name}: "],
        "README.md": [f"(book/{lecture.name}.ipynb)"],
        "book/machinery/stubs.toml": [f"[[{lecture.name}]]"],
    }
    for file, wanted in listed.items():
        text = (root / file).read_text("utf-8")
        yield from (f"{file} has no line with {line}" for line in wanted if line not in text)
    yield from (problem for page in (lecture, evidence) for problem in chapters.check(page))
    if not lecture.claims:
        yield f"{lecture.claims_file.relative_to(root)} has no rows: write claims, and execute"
    package = lecture.book / "experiments" / lecture.name[3:]
    tests = root / "tests" / f"test_experiments_{lecture.name[3:]}.py"
    for path in (lecture.text, evidence.text, *sorted(package.glob("*.py"))):
        if count := path.read_text("utf-8").count(GAP):
            yield f"{path.relative_to(root)} says {GAP} {count} times"
    text = lecture.text.read_text("utf-8")
    for what, (sign, least) in WANTED.items():
        if (count := text.count(sign)) < least:
            yield f"the lecture has {count} {what}, and at least {least} are wanted"
    if tests.read_text("utf-8").count("def test_") < 2:
        yield f"{tests.relative_to(root)} tests no result: add a second route to one"


def main(arguments: list[str] | None = None) -> int:
    """Write a chapter and print its files, and return the exit status."""
    parser = argparse.ArgumentParser(description="Write the rooms of a new chapter.")
    parser.add_argument("number", help='such as "17"')
    parser.add_argument("name", help='such as "travelling_waves"')
    given = parser.parse_args(arguments)
    try:
        paths = write(given.number, given.name)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(*(path.relative_to(ROOT) for path in paths), sep="\n")
    print(f"What is missing is listed by: .venv/bin/pytest {paths[-1].relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
