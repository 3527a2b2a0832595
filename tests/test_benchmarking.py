"""Rows of benchmarks: ratios, floors, the table that is kept, and the report of a GPU."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from machinery import benchmarking
from machinery.benchmarking import Floor, Row, compare

ROOT = Path(__file__).parents[1]
ROW = Row("a case", "ours", 0.002, "peer", 0.006, 3.1, "products", 0.001)


def fake(monkeypatch, **seconds):
    """Let each contender take these seconds, one a round."""
    monkeypatch.setattr(benchmarking, "interleaved_rounds", lambda runs, rounds: seconds)


def test_a_ratio_is_the_median_of_those_of_the_rounds(monkeypatch):
    fake(monkeypatch, ours=[1.0, 2.0, 10.0], peer=[4.0, 2.0, 30.0])
    (row,) = compare("a case", {"ours": print, "peer": print})
    assert (row.ours, row.theirs, row.ratio) == (2.0, 4.0, 3.0)  # not 4/2: that of the medians
    assert row.floor is None
    assert row.share is None


def test_the_floor_counts_as_often_as_it_is_needed(monkeypatch):
    fake(monkeypatch, ours=[8.0], peer=[9.0], floor=[0.5])
    (row,) = compare("a case", {"ours": print, "peer": print}, floor=Floor("products", print, 6))
    assert (row.bound, row.floor, row.share) == ("products", 3.0, 3 / 8)


def test_times_are_divided_by_the_work(monkeypatch):
    fake(monkeypatch, ours=[8.0], peer=[6.0])
    (row,) = compare("a case", {"ours": print, "peer": print}, work={"ours": 4})
    assert (row.ours, row.theirs, row.ratio) == (2.0, 6.0, 3.0)


def test_a_contender_may_be_alone(monkeypatch):
    fake(monkeypatch, ours=[8.0])
    (row,) = compare("a case", {"ours": print})
    assert (row.ours, row.peer, row.ratio) == (8.0, None, None)


def test_contenders_run_in_turn_and_no_time_is_shorter_than_its_sleep():
    calls = []

    def sleep(name, seconds):
        return lambda: (calls.append(name), time.sleep(seconds))

    (row,) = compare("sleeps", {"ours": sleep("ours", 0.01), "peer": sleep("peer", 0.04)}, rounds=3)
    assert calls == ["ours", "peer"] * 4  # the first round is not measured
    assert row.ours >= 0.01
    assert row.theirs >= 0.04


def test_what_is_kept_is_what_the_page_shows(tmp_path):
    path = tmp_path / "benchmarks.json"
    assert benchmarking.page(path) == []
    benchmarking.keep("one", "The first", [replace(ROW, case="replaced")], path)
    benchmarking.keep("two", "The second", [Row("alone", "ours", 3e-6)], path)
    benchmarking.keep("one", "The first", [ROW], path)
    text = "\n".join(benchmarking.page(path))
    assert "replaced" not in text
    assert text.index("## The first") < text.index("## The second")
    assert "| a case | ours | 2 ms | peer | 6 ms | 3.1 | 1 ms (products) | 50% |" in text
    assert "| alone | ours | 3 µs |  |  |  |  |  |" in text


def test_make_starts_the_check_of_a_gpu():
    how = {"capture_output": True, "text": True, "cwd": ROOT}
    lines = subprocess.run(
        ["make", "--dry-run", "gpu-check"], **how, check=True
    ).stdout.splitlines()
    (command,) = (line for line in lines if "gpu_check.py" in line)
    assert command.endswith("--device cuda")
    shown = subprocess.run(
        command.replace(".venv/bin/python", sys.executable) + " --help", **how, shell=True
    )
    assert "What a GPU makes of the algorithms" in shown.stdout, shown.stderr


def test_the_check_of_a_gpu_tells_agreement_from_difference(monkeypatch):
    monkeypatch.syspath_prepend("tests")
    import gpu_check

    def right(to):
        return None, lambda: to(torch.ones(3))

    calls = []

    def wrong(to):
        calls.append(to)  # first on the CPU, then twice on the device
        return None, lambda: torch.ones(3) + 1e-3 * len(calls)

    def broken(to):
        raise RuntimeError("no kernel")

    cases = {"right": right, "wrong": wrong, "broken": broken}
    monkeypatch.setattr(gpu_check, "CASES", cases)
    found = {row["name"]: row for row in gpu_check.algorithms("cpu")}
    assert found["right"]["agrees"]
    assert found["right"]["repeats"]
    assert not found["wrong"]["agrees"]
    assert not found["wrong"]["repeats"]
    assert not found["broken"]["agrees"]
    assert found["broken"]["error"] == "RuntimeError: no kernel"


@pytest.mark.parametrize("reports", [0, 1])
def test_the_scoreboard_says_which_gpu_ran(monkeypatch, tmp_path, reports):
    monkeypatch.syspath_prepend("book/_ext")
    import book_pages

    monkeypatch.setattr(book_pages, "GPU", tmp_path)
    if reports:
        (tmp_path / "card.json").write_text(
            '{"card": "A card", "torch": "2", "date": "today", "trained": [],'
            ' "algorithms": [{"agrees": true}, {"agrees": false}],'
            ' "chapters": [{"passed": true}],'
            ' "steps": [{"name": "a step", "ms": 1.5, "cpu_ms": 30.0}, {"name": "failed"}]}'
        )
        line = book_pages.gpu_line()
        assert "A card" in line
        assert "1 of 2 algorithms" in line
        assert "1 of 1 pages" in line
        assert "a step: 1.5 ms (CPU 30 ms)" in line
        assert "failed" not in line
    else:
        assert "Not run on a GPU" in book_pages.gpu_line()
