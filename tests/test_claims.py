"""Verdicts follow from numbers: intervals against SciPy, controls that count, rows that turn."""

import dataclasses
import json
import math
import re
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from machinery import chapters, claims
from machinery.claims import (
    Claim,
    Control,
    Criterion,
    Measurement,
    above,
    above_control,
    below,
    below_control,
    finding,
    from_row,
    interval,
    planted,
    turns,
    within,
)

CRITERIA = [below(1), above(1), within(-1, 2), below_control(), above_control(0.5), below(-3)]
STORED = [row for c in chapters.all_chapters() for row in claims.read(c.claims_file)]
JUDGED = [row for row in STORED if isinstance(row, Claim)]


def claim(ours, criterion, control=(9.0, 9.1, 9.2), **others):
    return Claim(
        "a.b", "it is small", "a slide", ours, criterion, Control("idle", control), **others
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_is_students(values):
    low, high = interval(values)
    error = stats.sem(values)
    if error < 1e-9:  # SciPy divides by it
        assert high - low < 1e-6
        return
    wanted = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
    assert np.allclose((low, high), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "criterion", "verdict"),
    [
        ([0.1, 0.2, 0.3], below(1), "supported"),
        ([2.1, 2.2, 2.3], below(1), "refuted"),
        ([0.5, 1.0, 1.6], below(1), "undecided"),
        ([0.5], below(1), "supported"),
        ([1.0], below(1), "refuted"),
        ([2.0, 2.1, 2.2], within(1, 3), "supported"),
        ([0.1, 0.2, 0.3], within(1, 3), "refuted"),
        ([5.0, 5.1, 5.2], within(1, 3), "refuted"),
        ([0.5, 1.0, 1.6], within(1, 3), "undecided"),
        ([8.0, 8.1, 8.2], below_control(), "supported"),
        ([8.9, 9.0, 9.1], below_control(0.5), "refuted"),
        ([9.9, 10.1, 10.2], above_control(), "supported"),
        ([8.0, 9.6, 9.0], below_control(), "undecided"),
    ],
)
def test_verdicts(ours, criterion, verdict):
    assert claim(ours, criterion).verdict == verdict


def test_pairs_count_and_not_only_means():
    """The same two sets of numbers, once paired so that the difference is constant."""
    ours, control = [1.0, 5.0, 9.0], (1.5, 5.5, 9.5)
    assert claim(ours, below_control(), control).verdict == "supported"
    assert claim(ours, below_control(), control[::-1]).verdict == "undecided"


def test_a_control_that_passes_too_takes_the_verdict_away():
    found = claim([0.1, 0.2, 0.3], below(1), (0.1, 0.1, 0.2))
    assert found.verdict == "undecided"
    assert found.reason == "the control meets the criterion too"


def test_a_control_that_passes_on_average_takes_it_away_and_one_that_fails_says_how():
    wide = claim([0.1, 0.2, 0.3], below(1), (0.1, 0.2, 2.4))
    assert (wide.verdict, wide.reason) == ("undecided", "the control meets the criterion too")
    missed = claim([0.1, 0.2, 0.3], below(1), (0.5, 1.5, 2.4))
    assert missed.verdict == "supported"
    assert missed.reason.endswith("the control fails on average, not beyond its spread")


def test_one_value_is_compared_directly_and_said_to_be_one():
    assert claim([0.5], below(1)).reason.endswith("(one value)")
    assert claim([1.5], below(1)).reason == "the criterion is missed (one value)"
    assert "one value" not in claim([0.5, 0.6], below(1)).reason


def test_better_than_published_needs_the_whole_interval():
    assert claim([0.1, 0.11, 0.12], below(1), published=0.5).verdict == "better than published"
    assert claim([0.1, 0.5, 0.8], below(2), published=0.5).verdict == "supported"
    assert (
        claim([7.0, 7.1, 7.2], above(3), (1, 1, 1), published=5).verdict == "better than published"
    )


def test_nobody_writes_a_verdict():
    with pytest.raises(TypeError):
        claim([0.1], below(1), verdict="supported")
    found = claim([0.1], below(1))
    with pytest.raises(AttributeError):
        found.verdict = "refuted"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_must_be_finite(bad):
    with pytest.raises(ValueError, match=r"a\.b: needs finite numbers"):
        claim([bad, 1.0], below(1))
    with pytest.raises(ValueError, match="the control 'idle': needs finite numbers"):
        claim([1.0], below(1), [bad])
    with pytest.raises(ValueError, match="must be finite and in order"):
        below(bad)
    with pytest.raises(ValueError, match="x: needs finite numbers"):
        Measurement("x", "a slide", "a number", bad).row  # noqa: B018


def test_a_criterion_and_its_control_must_fit():
    with pytest.raises(ValueError, match="must be finite and in order"):
        within(2, 1)
    with pytest.raises(ValueError, match="one control a seed: 2 and 3"):
        claim([1.0, 2.0], below_control()).verdict  # noqa: B018
    with pytest.raises(ValueError, match="needs finite numbers"):
        claim([1.0], below(1), [])


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda c: f"{c.relation} {c.bound}")
def test_a_planted_result_turns_the_verdict(criterion):
    assert turns(claim([0.1, 0.2, 0.3], criterion))


class Deaf(Criterion):
    """A criterion that numbers cannot change."""

    def judge(self, ours, control=()):
        return "supported"


class Careless(Claim):
    """A claim whose control has no say."""

    @property
    def _judged(self):
        return self.criterion.judge(self.ours), ""


def test_a_verdict_that_nothing_can_turn_is_found():
    assert not turns(claim([0.1, 0.2, 0.3], Deaf("below", 1)))
    found = claim([0.1, 0.2, 0.3], below(1))
    shared = (found.id, found.statement, found.source, found.ours, found.criterion, found.control)
    assert turns(found)
    assert not turns(Careless(*shared))


@given(
    st.sampled_from(CRITERIA),
    st.lists(st.floats(-9, 9), min_size=3, max_size=3),
    st.lists(st.floats(-9, 9), min_size=3, max_size=3),
)
def test_rows_survive_their_file(criterion, ours, control):
    found = claim(ours, criterion, control)
    again = from_row(json.loads(json.dumps(found.row)))
    assert again.row == found.row
    assert again.verdict == found.verdict


def test_a_stored_verdict_that_the_numbers_do_not_say_is_refused():
    row = claim([0.1, 0.2, 0.3], below(1)).row
    with pytest.raises(ValueError, match="verdict is 'refuted' there, the numbers say 'supported'"):
        from_row(row | {"verdict": "refuted"})
    with pytest.raises(ValueError, match="spread is 9 there, the numbers say"):
        from_row(row | {"spread": 9})
    with pytest.raises(ValueError, match="criterion is"):
        from_row(row | {"criterion": row["criterion"] | {"says": "below 2"}})
    number = Measurement("m", "a slide", "a number", 3.0).row
    with pytest.raises(ValueError, match="verdict is 'supported' there"):
        from_row(number | {"verdict": "supported"})
    with pytest.raises(ValueError, match="a row has the keys"):
        from_row({"id": "a"})
    with pytest.raises(ValueError, match="kind must be"):
        from_row(row | {"kind": "opinion"})


def test_findings_and_measurements():
    found = finding("a", "it is", ours=[2.0], criterion=above(1), control=Control("idle", [0.0]))
    assert (found.kind, found.source, found.verdict) == ("finding", "this book", "supported")
    mean = Measurement.over_seeds("a", "a slide", "a number", [1.0, 2.0, 3.0], "nats")
    assert (mean.ours, mean.spread, mean.seeds, mean.row["verdict"]) == (2.0, 1.0, 3, None)
    several = Measurement("a", "a slide", "some numbers", [1.0, 2.00004])
    assert several.ours == (1.0, 2.0)  # four digits
    assert from_row(several.row) == several


def test_tables_show_number_control_and_verdict():
    rows = [claim([0.1, 0.2, 0.3], below(1)), Measurement("m", "a slide", "a number", 3.0)]
    text = claims.table(rows)
    assert "it is small (a slide)</span><br>`a.b` | 0.2 ± 0.1 | below 1 | idle: 9.1 ± 0.1" in text
    assert "*supported*: the criterion is met and the control fails" in text
    assert "| a number (a slide)<br>`m` | – | 3 | 1 |" in text


def test_a_bar_in_a_statement_is_no_border_of_a_cell():
    row = dataclasses.replace(claim([0.5], below(1)), statement="|f| is small")
    (line,) = claims.table([row]).splitlines()[2:]
    assert r"\|f\| is small" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 6


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0004293, 0.0005071, 0.0003582], "0.000432 ± 7.4e-05"),
        ([98.41, 98.94], "98.67 ± 0.37"),
        ([1234, 1790, 800], "1275 ± 496"),
        ([3e-17, -4e-17], "< 1e-12"),
        ([1.2, 3.9], "2.5 ± 1.9"),
        ([25.0, 25.0], "25 ± 0"),
        ([0.1, 0.1 + 1e-15], "0.1 ± 0"),
        ([27980, 28870, 27100], "27980 ± 885"),
        ([5.25e8], "5.25e+08"),
        ([0.1], "0.1"),
    ],
)
def test_a_mean_is_shown_to_the_second_digit_of_its_spread(values, shown):
    """Further digits, and those of rounding errors, differ between machines."""
    assert claims.control(claim([0.5, 0.6], below(1), values)).endswith(f": {shown}")


def test_the_least_favourable_verdict_decides():
    assert claims.combined(["supported", "refuted", "undecided"]) == "refuted"
    assert claims.combined(["better than published", "supported"]) == "supported"
    assert claims.combined([]) == "not judged yet"


# --- what the book has stored -------------------------------------------------------------------


def test_every_stored_row_is_read_and_its_verdict_recomputed():
    assert len(STORED) > 300


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: row.id)
def test_a_false_result_turns_the_verdict_of_every_claim(row):
    assert turns(row)
    assert planted(row, true=False).verdict == "refuted"


def test_no_page_and_no_experiment_writes_a_verdict():
    pages = [page.text for page in chapters.with_evidence(chapters.all_chapters())]
    files = [*pages, *(chapters.BOOK / "experiments").rglob("*.py")]
    written = re.compile(r"verdict\s*=\s*[\"']")
    assert [path.name for path in files if written.search(path.read_text("utf-8"))] == []


def test_the_sentences_of_the_talk_point_to_chapters_and_claims():
    known, ids = {c.name for c in chapters.all_chapters()}, {row.id for row in JUDGED}
    path = chapters.BOOK / "machinery" / "sentences.toml"
    sentences = tomllib.loads(path.read_text("utf-8"))["sentence"]
    assert len(sentences) >= 40
    for sentence in sentences:
        assert sentence["chapter"] in known
        assert set(sentence.get("claims", [])) <= ids, sentence["says"]
        assert sentence["slide"]
        assert sentence["says"].endswith(".")


def test_criteria_are_hashable_constants():
    assert {below(1), Criterion("below", 1)} == {below(1)}


def test_columns_keep_a_bar_inside_of_its_cell():
    table = claims.columns(("", "a|b"), [["x", "1"], ["y", "2"]]).splitlines()
    assert table == ["|  | a\\|b |", "|---|---:|", "| x | 1 |", "| y | 2 |"]
