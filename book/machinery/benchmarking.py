"""Rows of benchmarks: how they are measured, shown and kept."""

import datetime
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from .chapters import processor
from .instruments import interleaved_rounds

KEPT = Path(__file__).parent.parent / "results" / "benchmarks.json"


@dataclass(frozen=True)
class Row:
    """One contender against the first one of its case, which is ours; or ours alone.

    `ours` and `theirs` are median seconds. `ratio` is the median over the rounds of theirs to ours,
    each measured in the same round. `floor` is the median of the seconds that no implementation can
    do without, such as those of the matrix products alone, which `bound` names.
    """

    case: str
    name: str
    ours: float
    peer: str | None = None
    theirs: float | None = None
    ratio: float | None = None
    bound: str = ""
    floor: float | None = None

    @property
    def share(self) -> float | None:
        """The part of our time that the floor takes."""
        return None if self.floor is None else self.floor / self.ours


@dataclass(frozen=True)
class Floor:
    """A part of the work that cannot be left out: `run` does 1/`times` of it."""

    bound: str
    run: Callable[[], object]
    times: float = 1.0


def compare(
    case: str,
    contenders: Mapping[str, Callable[[], object]],
    *,
    floor: Floor | None = None,
    rounds: int = 11,
    work: Mapping[str, float] = MappingProxyType({}),
) -> list[Row]:
    """The rows of all contenders but the first one, which is ours, or its row if it is alone.

    All run in turn in every round, so that a slow period of the machine affects them alike. `work`
    says how many times the work of the others a contender does; its times are divided by that.
    """
    runs = dict(contenders) | ({} if floor is None else {"floor": floor.run})
    seconds = {
        name: [s / work.get(name, 1.0) for s in found]
        for name, found in interleaved_rounds(runs, rounds).items()
    }
    own, *peers = contenders
    least = None
    if floor is not None:
        least = floor.times * statistics.median(seconds["floor"])
    alone = Row(
        case, own, statistics.median(seconds[own]), bound=floor.bound if floor else "", floor=least
    )

    def against(peer: str) -> Row:
        ratios = [b / a for a, b in zip(seconds[own], seconds[peer], strict=True)]
        theirs, ratio = statistics.median(seconds[peer]), statistics.median(ratios)
        return replace(alone, peer=peer, theirs=theirs, ratio=ratio)

    return [against(peer) for peer in peers] or [alone]


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(map(shutil.which, ("c++", "g++", "clang++")))


def shown(seconds: float | None) -> str:
    """A time with three digits and a unit, or an empty text."""
    if seconds is None:
        return ""
    scale, unit = next((s, u) for s, u in UNITS if seconds >= s or u == "ns")
    return f"{seconds / scale:.3g} {unit}"


UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
HEAD = ("case", "ours", "time", "peer", "time", "ratio", "floor", "share")


def cells(row: Row) -> list[str]:
    """The texts of a row under `HEAD`."""
    floor = f"{shown(row.floor)} ({row.bound})" if row.bound else ""
    share = "" if row.share is None else f"{row.share:.0%}"
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    times = [row.name, shown(row.ours), row.peer or "", shown(row.theirs)]
    return [row.case, *times, ratio, floor, share]


def markdown(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|---:|---|---:|---:|---|---:|"]
    return lines + ["| " + " | ".join(cells(row)) + " |" for row in rows]


def keep(name: str, title: str, rows: Sequence[Row], path: Path = KEPT) -> None:
    """Replace the rows of the benchmark `name` in the file of all benchmarks."""
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    found[name] = {
        "title": title,
        "processor": processor(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def page(path: Path = KEPT) -> list[str]:
    """The lines of the page that shows all benchmarks, as Markdown."""
    lines = []
    for kept in (json.loads(path.read_text("utf-8")) if path.exists() else {}).values():
        where = f"{kept['processor']}, one thread, torch {kept['torch']}, {kept['date']}."
        rows = [Row(**row) for row in kept["rows"]]
        lines += [f"## {kept['title']}", "", where, "", *markdown(rows), ""]
    return lines
