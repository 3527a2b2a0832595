"""What concerns the whole test run: the order of the tests, and how nbval compares a notebook."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

BOOK = Path(__file__).parent / "book"
# A failure that is cheap to find is found first. Unit tests, which are not named here, are second.
# The longest files come before the notebooks, so that no process is left alone with one at the end.
ORDER = {"test_pairs.py": 0, "test_references.py": 0, "test_pages.py": 2, "test_chapters.py": 2}
NOTEBOOK, UNIT = 3, 1

NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
RELATIVE_TOLERANCE = Decimal("1e-4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by cost."""
    items.sort(key=cost)


def cost(item: pytest.Item) -> int:
    """The group of a test: pairs, units, pages and chapters in smoke, chapters by nbval."""
    return NOTEBOOK if item.path.suffix == ".ipynb" else ORDER.get(item.path.name, UNIT)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out every notebook that is not a chapter."""
    pages = (BOOK, BOOK / "evidence")
    is_page = collection_path.parent in pages
    return True if collection_path.suffix == ".ipynb" and not is_page else None


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Tell nbval what not to compare.

    The pictures in a film's HTML differ between machines, an SVG has the date, and warnings
    (stderr) change with each release of a library.
    """
    if isinstance(collector, IPyNbFile):
        skipped = (*collector.skip_compare, "text/html", "image/svg+xml", "stderr")
        collector.skip_compare = skipped  # pyright: ignore[reportAttributeAccessIssue]


class Output(str):
    """A cell's printed output, equal to another if only the last digits of numbers differ."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and same_up_to_rounding(other, self)

    def __ne__(self, other: object) -> bool:
        return not self == other


def same_up_to_rounding(text: str, reference: str) -> bool:
    """Whether the words are equal and the numbers close: machines differ in the last digits."""
    parts, references = NUMBER.split(text), NUMBER.split(reference)
    return (
        len(parts) == len(references)
        and parts[::2] == references[::2]
        and all(map(close, parts[1::2], references[1::2]))
    )


def close(number: str, reference: str) -> bool:
    """Whether two printed numbers agree to 1e-4, or to one unit of the last decimal printed.

    The unit is allowed because 0.12499 and 0.12501 print as 0.12 and 0.13. A whole number has no
    decimals: counts below 10,000 must be equal.
    """
    x, y = Decimal(number), Decimal(reference)
    decimals = y.as_tuple().exponent
    unit = Decimal(1).scaleb(decimals) if isinstance(decimals, int) and "." in reference else 0
    return abs(x - y) <= max(RELATIVE_TOLERANCE * abs(y), unit)


# nbval compares what `sanitize` returns with !=, and offers no other place for a tolerance.
exact = IPyNbCell.sanitize


def tolerant(self: IPyNbCell, s: Any) -> Any:
    """The sanitised output; if it is text, such that numbers may differ in their last digits."""
    sanitised = exact(self, s)
    return Output(sanitised) if isinstance(sanitised, str) else sanitised


IPyNbCell.sanitize = tolerant
