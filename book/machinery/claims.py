"""What a chapter claims, finds and measures, with verdicts that the computer gives.

Three kinds of rows exist. A *claim* is a sentence of the talk or of a paper. A *finding* is a
sentence of this book. Both have a criterion, which is a predicate on numbers, and a control: the
strongest simple rival, which has to fail if the sentence is true. A *measurement* is a number
without a verdict.

Nobody writes a verdict. It follows from the numbers of all seeds:

    Claim(
        "otflow.bend", "OT-Flow moves points along nearly straight lines", "slide OT-Flow",
        ours=[0.021, 0.025, 0.019],
        criterion=below(0.05), control=Control("FFJORD at equal likelihood", [0.21, 0.19, 0.24]),
    ).verdict  # "supported"
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from scipy.stats import t as student

Relation = Literal["below", "above", "within", "below control", "above control"]
Outcome = Literal["supported", "refuted", "undecided"]
SUPPORTED: Literal["supported"] = "supported"
REFUTED: Literal["refuted"] = "refuted"
UNDECIDED: Literal["undecided"] = "undecided"
BETTER = "better than published"
VERDICTS = (SUPPORTED, BETTER, UNDECIDED, REFUTED)
CONFIDENCE = 0.95
KEYS = (
    *("id", "kind", "statement", "source", "criterion", "control", "published", "ours"),
    *("spread", "seeds", "unit", "verdict"),
)
DIGITS = 4  # more than any row needs, and equal on every machine
ROUND_OFF = 1e-12  # a number below it is rounding error, whose digits differ between machines


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean, by Student's t; one value is its own interval."""
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return mean, mean
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread_of(values) / math.sqrt(n)
    return mean - half, mean + half


def spread_of(values: Sequence[float]) -> float:
    """The standard deviation of a sample, with n − 1 in the denominator; 0 for one value."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Criterion:
    """A predicate on the mean over seeds, or on the paired difference from the control.

    It is met when the confidence interval lies on the right side of the bound, missed when it lies
    on the wrong side, and open when the interval contains the bound. For a relation to the control
    the interval is that of the differences, seed by seed, and the bound is their least size.

    Raises:
        ValueError: the bound is not finite, or an interval is empty.
    """

    relation: Relation
    bound: float | tuple[float, float]

    def __post_init__(self):
        ends = self.ends
        if not all(math.isfinite(end) for end in ends) or (len(ends) == 2 and ends[0] >= ends[1]):
            raise ValueError(f"the bound of a criterion must be finite and in order, got {ends}")

    @property
    def ends(self) -> tuple[float, ...]:
        """The bound as a tuple of one or two numbers."""
        return tuple(self.bound) if isinstance(self.bound, Sequence) else (float(self.bound),)

    @property
    def is_paired(self) -> bool:
        """Whether ours is compared with the control, seed by seed."""
        return self.relation.endswith("control")

    @property
    def words(self) -> str:
        """The criterion as a reader sees it."""
        if self.relation == "within":
            return f"between {self.ends[0]:g} and {self.ends[1]:g}"
        if not self.is_paired:
            return f"{self.relation} {self.ends[0]:g}"
        least = f" by more than {self.ends[0]:g}" if self.ends[0] else ""
        return f"{self.relation}{least}, seed by seed"

    def judge(self, ours: Sequence[float], control: Sequence[float] = ()) -> Outcome:
        """Whether the numbers of all seeds meet the criterion."""
        sign = -1.0 if self.relation.startswith("below") else 1.0
        if self.is_paired:
            if len(control) != len(ours):
                raise ValueError(
                    f"a paired criterion needs one control a seed: {len(ours)} and {len(control)}"
                )
            ours = [sign * (a - b) for a, b in zip(ours, control, strict=True)]
            return _side(*interval(ours), self.ends[0])
        low, high = interval(ours)
        if self.relation == "within":
            sides = _side(low, high, self.ends[0]), _side(-high, -low, -self.ends[1])
            return max(sides, key=(SUPPORTED, UNDECIDED, REFUTED).index)
        ends = (low, high) if sign > 0 else (-high, -low)
        return _side(*ends, sign * self.ends[0])


def below(bound: float) -> Criterion:
    """The criterion that the mean is below a bound."""
    return Criterion("below", bound)


def above(bound: float) -> Criterion:
    """The criterion that the mean is above a bound."""
    return Criterion("above", bound)


def within(low: float, high: float) -> Criterion:
    """The criterion that the mean lies between two bounds."""
    return Criterion("within", (low, high))


def below_control(least: float = 0.0) -> Criterion:
    """The criterion that ours is below the control by more than `least`, seed by seed."""
    return Criterion("below control", least)


def above_control(least: float = 0.0) -> Criterion:
    """The criterion that ours is above the control by more than `least`, seed by seed."""
    return Criterion("above control", least)


@dataclass(frozen=True)
class Control:
    """The rival that has to fail if the statement is true, and its numbers, one a seed."""

    says: str
    ours: Sequence[float]

    def __post_init__(self):
        object.__setattr__(self, "ours", _checked(self.ours, f"the control {self.says!r}"))


@dataclass(frozen=True)
class Claim:
    """A sentence of the talk or of a paper, judged by its criterion and its control.

    Args of the constructor: a dotted `id`; the `statement` and its `source` (a slide, or a paper
    with its table); the numbers `ours`, one a seed; the `criterion` and the `control`; the
    `published` number, if there is one; the `unit`.

    Raises:
        ValueError: a number is missing or not finite.
    """

    id: str
    statement: str
    source: str
    ours: Sequence[float]
    criterion: Criterion
    control: Control
    published: float | None = None
    unit: str = ""
    kind: Literal["claim", "finding"] = field(default="claim", kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "ours", _checked(self.ours, self.id))

    @property
    def verdict(self) -> str:
        """What the numbers say of the statement."""
        return self._judged[0]

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, in a few words."""
        return self._judged[1]

    @property
    def _judged(self) -> tuple[str, str]:
        outcome = self.criterion.judge(self.ours, self.control.ours)
        once = " (one value)" if len(self.ours) == 1 else ""
        if outcome != SUPPORTED:
            return outcome, {
                REFUTED: f"the criterion is missed{once}",
                UNDECIDED: "the spread over seeds crosses the bound",
            }[outcome]
        failed = "fails"
        if not self.criterion.is_paired:
            if self.criterion.judge([sum(self.control.ours) / len(self.control.ours)]) == SUPPORTED:
                return UNDECIDED, "the control meets the criterion too"
            if self.criterion.judge(self.control.ours) != REFUTED:
                failed = "fails on average, not beyond its spread"
        if self._is_better:
            return BETTER, f"the published number is {_number(self.published)}{once}"
        return SUPPORTED, f"the criterion is met and the control {failed}{once}"

    @property
    def _is_better(self) -> bool:
        """Whether the interval lies beyond the published number, on the side of the criterion."""
        if self.published is None or self.criterion.relation == "within":
            return False
        low, high = interval(self.ours)
        downwards = self.criterion.relation.startswith("below")
        return high < self.published if downwards else low > self.published

    @property
    def row(self) -> dict[str, Any]:
        """The row as it is stored."""
        control = {
            "says": self.control.says,
            "ours": list(self.control.ours),
            "spread": _rounded(spread_of(self.control.ours)),
        }
        criterion = {
            "says": self.criterion.words,
            "relation": self.criterion.relation,
            "bound": self.criterion.bound,
        }
        return _row(self, criterion=criterion, control=control, verdict=self.verdict)


def finding(id: str, statement: str, **others: Any) -> Claim:
    """A sentence of this book, judged as a claim is."""
    return Claim(id, statement, "this book", **others, kind="finding")


@dataclass(frozen=True)
class Measurement:
    """Numbers without a verdict: one a seed, or several that belong together.

    Args of the constructor: as those of `Claim`; `seeds` says over how many seeds a single number
    is the mean, and `spread` their standard deviation.
    """

    id: str
    source: str
    statement: str
    ours: float | Sequence[float]
    unit: str = ""
    published: float | None = None
    spread: float | None = None
    seeds: int = 1

    kind = "measurement"

    def __post_init__(self):
        if isinstance(self.ours, Sequence):
            object.__setattr__(self, "ours", tuple(_rounded(float(v)) for v in self.ours))
        else:
            object.__setattr__(self, "ours", _rounded(float(self.ours)))
        object.__setattr__(self, "spread", _rounded(self.spread))

    @classmethod
    def over_seeds(
        cls,
        id: str,
        source: str,
        statement: str,
        values: Sequence[float],
        unit: str = "%",
        **others: Any,
    ) -> "Measurement":
        """The mean of `values`, one a seed, with their standard deviation."""
        values = [float(value) for value in values]
        kept = {"spread": spread_of(values), "seeds": len(values), "unit": unit}
        return cls(id, source, statement, sum(values) / len(values), **kept, **others)

    @property
    def row(self) -> dict[str, Any]:
        """The row as it is stored; a trial run may have numbers that are not finite, a row not."""
        _checked(self.ours if isinstance(self.ours, Sequence) else [self.ours], self.id)
        return _row(self, criterion=None, control=None, verdict=None)


Row = Claim | Measurement


def from_row(row: dict[str, Any]) -> Row:
    """The claim, finding or measurement that a stored row describes.

    Raises:
        ValueError: the row is of no known kind, or its verdict, spread, number of seeds or words
            are not those that follow from its numbers.
    """
    if tuple(row) != KEYS:
        raise ValueError(f"{row.get('id')}: a row has the keys {KEYS}, got {tuple(row)}")
    shared = {key: row[key] for key in ("id", "statement", "source", "ours", "published", "unit")}
    if row["kind"] == "measurement":
        return _unchanged(Measurement(**shared, spread=row["spread"], seeds=row["seeds"]), row)
    if row["kind"] not in ("claim", "finding"):
        raise ValueError(f"{row['id']}: kind must be claim, finding or measurement")
    bound = row["criterion"]["bound"]
    criterion = Criterion(
        row["criterion"]["relation"], tuple(bound) if isinstance(bound, list) else bound
    )
    control = Control(row["control"]["says"], row["control"]["ours"])
    return _unchanged(Claim(**shared, criterion=criterion, control=control, kind=row["kind"]), row)


def _unchanged(found: Row, row: dict[str, Any]) -> Row:
    """The row that was read, unless its file says something else than it does."""
    for key, value in json.loads(json.dumps(found.row)).items():
        stored = json.loads(json.dumps(row[key]))
        if stored != value:
            raise ValueError(f"{found.id}: {key} is {stored!r} there, the numbers say {value!r}")
    return found


def read(path: Path) -> list[Row]:
    """The rows of a file, none if there is no such file."""
    stored = json.loads(path.read_text("utf-8")) if path.exists() else []
    return [from_row(row) for row in stored]


def planted(claim: Claim, *, true: bool) -> Claim:
    """The claim with numbers that plainly meet its criterion, or plainly miss it.

    Tests plant them to see that the verdict turns.
    """
    criterion, n = claim.criterion, max(2, len(claim.ours))
    size = 1 + 10 * max(map(abs, criterion.ends))
    downwards = criterion.relation.startswith("below")
    good = criterion.ends[0] + (-size if downwards else size)
    if criterion.relation == "within":
        good = sum(criterion.ends) / 2
    bad = criterion.ends[-1] + (size if downwards or criterion.relation == "within" else -size)
    if criterion.is_paired:
        good, bad = (-2 * size, 2 * size) if downwards else (2 * size, -2 * size)
    control = 0.0 if criterion.is_paired else bad
    ours = [good if true else bad] * n
    return replace(claim, ours=ours, control=Control(claim.control.says, [control] * n))


def turns(claim: Claim) -> bool:
    """Whether some numbers support the claim, others refute it, and the control has a say."""
    good, bad = (planted(claim, true=true) for true in (True, False))
    equal = replace(good, control=Control(claim.control.says, good.ours))  # a control as good
    supported = good.verdict in (SUPPORTED, BETTER)
    return supported and bad.verdict == REFUTED and equal.verdict in (UNDECIDED, REFUTED)


def combined(verdicts: Sequence[str]) -> str:
    """The verdict on a sentence that several claims judge: the least favourable one."""
    for verdict in (REFUTED, UNDECIDED, SUPPORTED, BETTER):
        if verdict in verdicts:
            return verdict
    return "not judged yet"


# --- as text ------------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown tables: first what has a verdict, then the measurements."""
    rows = list(rows)
    judged = [row for row in rows if isinstance(row, Claim)]
    measured = [row for row in rows if isinstance(row, Measurement)]
    return "\n\n".join(part for part in (_judged_table(judged), _measured_table(measured)) if part)


def _judged_table(rows: Sequence[Claim]) -> str:
    head = "| statement | ours | criterion | control | verdict |\n|---|---:|---|---|---|"
    lines = [
        line_of(
            f'<span class="statement">{row.statement} ({row.source}){_published(row)}</span><br>'
            f"`{row.id}`{' (finding)' if row.kind == 'finding' else ''}",
            value(row),
            row.criterion.words,
            control(row),
            f"*{row.verdict}*: {row.reason}",
        )
        for row in rows
    ]
    return "\n".join([head, *lines]) if rows else ""


def _measured_table(rows: Sequence[Measurement]) -> str:
    head = "| measured | published | ours | seeds |\n|---|---:|---:|---:|"
    lines = [
        line_of(
            f"{row.statement} ({row.source})<br>`{row.id}`",
            _number(row.published),
            value(row),
            str(row.seeds),
        )
        for row in rows
    ]
    return "\n".join([head, *lines]) if rows else ""


def line_of(*cells: str) -> str:
    """A line of a Markdown table, in which a bar inside of a cell is no border."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def columns(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text, and whose others are numbers."""
    ruler = "|---" + "|---:" * (len(head) - 1) + "|"
    return "\n".join([line_of(*head), ruler, *(line_of(*line) for line in lines)])


def value(row: Row) -> str:
    """The number of a row with its spread and unit."""
    if isinstance(row, Claim):
        return f"{_mean(row.ours)} {row.unit}".strip()
    values = list(row.ours) if isinstance(row.ours, Sequence) else [row.ours]
    # a row of many numbers would push the rest off the page
    text = (",<br>" if len(values) > 2 else ", ").join(_number(number) for number in values)
    deviation = "" if row.spread is None else f" ± {_number(row.spread, 2)}"
    return f"{text}{deviation} {row.unit}".strip()


def control(row: Claim) -> str:
    """The control of a claim with its numbers."""
    return f"{row.control.says}: {_mean(row.control.ours)}"


def sentences(rows: Iterable[Row], ids: Sequence[str]) -> str:
    """The statements of some claims with their verdicts, as a Markdown list for a lecture."""
    known = {row.id: row for row in rows if isinstance(row, Claim)}
    return "\n".join(
        f"- {row.statement}: **{row.verdict}** ({value(row)}; {control(row)})."
        for row in (known[id] for id in ids if id in known)
    )


def _published(row: Row) -> str:
    return "" if row.published is None else f", published {_number(row.published)}"


def _mean(values: Sequence[float]) -> str:
    mean, spread = sum(values) / len(values), spread_of(values)
    if len(values) == 1 or max(abs(mean), spread) < ROUND_OFF:
        return _number(mean)
    spread = 0.0 if spread < ROUND_OFF else spread
    digits = _place(mean) - _place(spread) + 2 if spread else DIGITS  # to its second digit
    return f"{_number(mean, digits)} ± {_number(spread, 2)}"


def _place(number: float) -> int:
    """The power of ten of the first digit of a number."""
    return math.floor(math.log10(abs(number))) if number else 0


def _number(number: float | None, digits: int = DIGITS) -> str:
    """A number to so many significant digits, which are at least two, and at most four."""
    if number is None:
        return "–"
    if 0 < abs(number) < ROUND_OFF:
        return f"< {ROUND_OFF:g}"
    text = f"{number:.{min(DIGITS, max(2, digits, _place(number) + 1))}g}"
    return f"{float(text):.0f}" if 1e4 <= abs(number) < 1e7 else text


def _row(row: Any, *, criterion: Any, control: Any, verdict: str | None) -> dict[str, Any]:
    """The stored form: the keys of KEYS, in their order."""
    several = isinstance(row.ours, Sequence)
    is_claim = isinstance(row, Claim)
    values = {
        "ours": list(row.ours) if several else row.ours,
        "spread": _rounded(spread_of(row.ours)) if is_claim else row.spread,
        "seeds": len(row.ours) if is_claim else row.seeds,
        "criterion": criterion,
        "control": control,
        "verdict": verdict,
    }
    return {key: values[key] if key in values else getattr(row, key) for key in KEYS}


def _checked(values: Sequence[float], name: str) -> tuple[float, ...]:
    """The numbers, rounded; refuses none at all, and those that are not finite."""
    numbers = tuple(_rounded(float(number)) for number in values)
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: needs finite numbers, one a seed, got {list(values)}")
    return numbers


def _rounded(number: Any) -> Any:
    return None if number is None else float(f"{number:.{DIGITS}g}")


def _side(low: float, high: float, bound: float) -> Outcome:
    """Where an interval lies: above the bound, below it, or on both sides."""
    return SUPPORTED if low > bound else REFUTED if high <= bound else UNDECIDED
