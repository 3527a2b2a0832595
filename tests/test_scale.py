"""The page on what lies past one machine: laws that are fitted, costs, processes, and its code."""

import gc
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from experiments.ot_flow import published_tables
from experiments.scale import costs, page, processes
from experiments.scale.costs import Cost, Series, Workload
from machinery import chapters, claims
from machinery.store import Store

CHAPTER = chapters.Chapter(page.CHAPTER)
SEPARATE = os.environ | {"OMP_NUM_THREADS": "1"}


# --- fits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", costs.WORKLOADS.values(), ids=costs.WORKLOADS)
def test_a_fit_finds_the_offset_and_the_slope_of_its_law(work):
    def true(n):
        return 3.0 + 2e-4 * work.law(n)

    fit = costs.fitted(work.law, work.sizes, [true(n) for n in work.sizes])
    assert fit.at(work.target) == pytest.approx(true(work.target))
    assert fit.reaches(true(work.target)) == pytest.approx(work.target)


def test_errors_count_relative_to_the_values():
    sizes, values = np.array([1.0, 10.0, 1000.0]), np.array([1.1, 9.5, 1040.0])
    fit = costs.fitted(lambda n: n, sizes.tolist(), values.tolist())

    def misfit(p):
        return np.square((p[0] + p[1] * sizes) / values - 1).sum()

    best = minimize(misfit, [0.1, 1.0], method="Nelder-Mead", options={"xatol": 1e-10})
    assert misfit([fit.offset, fit.slope]) <= best.fun * (1 + 1e-6)


def test_no_cost_is_negative():
    fit = costs.fitted(lambda n: n, [1, 2, 4], [1.0, 3.0, 7.0])  # exactly −1 + 2n
    assert fit.offset == 0
    falling = costs.fitted(lambda n: n, [1, 2, 4], [3.0, 2.0, 1.0])
    assert falling.slope == 0
    assert falling.reaches(1e9) == math.inf


def a_series(cost, rounds=3, noise=0.0, held_out=64, target=640):
    """Costs by a formula for the sizes 4, 8, 16 and one held out; round k has k times the noise."""
    work = Workload(
        *("a step", "rows", lambda n: lambda: None, lambda n: n, "a + b n"),
        *((4, 8, 16), held_out, target, 1, {}),
    )
    found = {
        n: [Cost(*((1 + k * noise) * np.array(cost(n)))) for k in range(rounds)]
        for n in (4, 8, 16, held_out)
    }
    return Series(work, found, (4, 8, 16), held_out)


def test_what_was_held_out_does_not_enter_the_prediction():
    def kinked(n):
        return (2 + n, 100 * n) if n < 64 else (2 * (2 + n), 50 * n)

    series = a_series(kinked, noise=0.1)
    assert series.ratios("seconds") == pytest.approx([0.5] * 3)
    assert series.ratios("bytes") == pytest.approx([2.0] * 3)
    assert series.measured("seconds", 4) == pytest.approx(6 * 1.1)  # the median of rounds


def test_one_size_alone_overrates_what_has_a_fixed_part():
    series = a_series(lambda n: (12 + n, n))
    assert series.ratios("seconds") == pytest.approx([1.0] * 3)
    assert series.naive("seconds") == pytest.approx([16 * 16 / 76] * 3)
    assert series.naive("bytes") == pytest.approx([1.0] * 3)


# --- costs --------------------------------------------------------------------------------------


def measured(monkeypatch, run, size=1):
    work = Workload(*("", "", lambda n: lambda: run(n), lambda n: n, ""), (1,), 1, 1, 0, {})
    monkeypatch.setitem(costs.WORKLOADS, "mine", work)
    return costs.cost("mine", size)


def test_seconds_are_those_of_the_processor(monkeypatch):
    def busy(n):
        started = time.process_time()
        while n and time.process_time() - started < 0.2:
            pass

    assert measured(monkeypatch, busy).seconds == pytest.approx(0.2, rel=0.2)
    assert measured(monkeypatch, lambda n: time.sleep(0.2 * n)).seconds < 0.05


def held(n):
    a = torch.ones(50_000_000 * n, dtype=torch.uint8)
    b = torch.ones(100_000_000 * n, dtype=torch.uint8)
    del a
    return torch.ones(50_000_000 * n, dtype=torch.uint8), b


def collected_and_held(n):
    if n:
        gc.collect()
    return held(n)


def peaks_of_held():
    gc.disable()
    waiting = [torch.ones(100_000_000, dtype=torch.uint8)]
    waiting.append(waiting)
    del waiting
    with pytest.MonkeyPatch.context() as patch:
        # what waits for the collector is not taken off, and an earlier peak does not count
        return [measured(patch, run, n).bytes for run, n in ((collected_and_held, 1), (held, 0))]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="only Linux can reset the peak of a process's memory",
)
def test_bytes_are_the_peak_of_what_is_held_at_once(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")  # as `make` sets it: freed memory is kept
    # in a child: earlier tests left memory here that may be freed in between
    peak, nothing = costs.in_child(peaks_of_held)
    assert peak == pytest.approx(150e6, rel=0.1)
    assert nothing < 20e6
    assert os.environ["MALLOC_MMAP_MAX_"] == "0"


def test_a_child_is_another_process():
    assert costs.in_child(os.getpid) != os.getpid()


def test_a_training_step_is_one_of_the_library_and_changes_the_weights(monkeypatch):
    seen = []
    monkeypatch.setattr(costs, "train", lambda model, *how, **more: seen.append(model) or [])
    for name in ("rows", "dimension", "operator"):
        work = costs.WORKLOADS[name]
        work.prepare(work.tiny)()
    rows, dimension, operator = seen
    assert rows.velocity.d == 63
    assert dimension.velocity.d == costs.WORKLOADS["dimension"].tiny
    assert rows.velocity.K.shape[-1] == 512
    assert operator.net.modes == 10


def test_what_is_stored_makes_every_table_and_row():
    assert costs.measured(Store(page.CHAPTER, "saved")).memory > 1e8
    found = page.results("saved")
    for lines in (page.check_lines(found), page.need_lines(found), page.gain_lines(found)):
        assert len({line.count("|") for line in lines}) == 1
    rows = page.rows(found)
    assert len({row.id for row in rows}) == len(rows)
    assert all(claims.turns(row) for row in rows if isinstance(row, claims.Claim))


# --- what is needed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repeats", "memory", "wall", "count"),
    [
        (1, 1e9, "none", 1),
        (page.WEEK, 1e9, "time", 642),  # 642 seconds a step
        (1, 10_000, "memory", 7),  # of 64,000 bytes
        (page.WEEK, 10_000, "memory", 642),
    ],
)
def test_the_first_wall(repeats, memory, wall, count):
    need = page.Need("it", "rows", repeats, a_series(lambda n: (2 + n, 100 * n)))
    assert need.seconds_each == pytest.approx(642)
    assert (need.wall(memory), need.processes(memory)) == (wall, count)
    assert need.full(memory) == pytest.approx(memory / 100)
    assert not need.is_measured


def test_a_target_that_was_measured_is_not_extrapolated():
    series = a_series(lambda n: (n, n) if n < 64 else (5.0, 7.0), target=64)
    need = page.Need("it", "rows", 1, series)
    assert need.is_measured
    assert (need.seconds, need.bytes) == (5.0, 7.0)


# --- processes ----------------------------------------------------------------------------------


def test_two_processes_have_the_losses_of_one_on_the_same_batch():
    key = costs.BSDS300 | {"d": 3, "width": 8, "rk4": 2, "batch": 12, "steps": 4}
    (alone,), both = processes.together(1, key), processes.together(2, key)
    assert len(alone["losses"]) == len(both[0]["clock"]) == 4
    means = np.mean([one["losses"] for one in both], axis=0)
    np.testing.assert_allclose(means, alone["losses"], rtol=1e-4)
    assert both[0]["losses"] != both[1]["losses"]  # each had its own rows
    assert len(set(alone["losses"])) == 4


def test_gains_are_taken_round_by_round():
    assert processes.gains({1: [2.0, 9.0], 2: [1.0, 3.0]}, 1, 2) == [2.0, 3.0]


def test_a_campaign_is_the_same_on_every_pool():
    problem = processes.StochasticLotkaVolterra()
    x = problem.prior.sample(40, costs.seeded(0)).double()
    alone = processes.simulate(problem.simulate, x, seed=0)
    for name, pool in processes.POOLS.items():
        if pool is not None and "2" in name:
            with pool[0](pool[1]) as executor:
                other = processes.simulate(problem.simulate, x, seed=0, executor=executor, chunk=9)
            assert torch.equal(alone.y.nan_to_num(), other.y.nan_to_num())


# --- the code on the page -----------------------------------------------------------------------


def block(word):
    """The block of code on the page that has this word in it."""
    text = CHAPTER.text.read_text("utf-8")
    (found,) = (b for b in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if word in b)
    return found


def printed(folder, *command):
    """What this Python prints in a process of its own, in that folder."""
    how = {"cwd": folder, "env": SEPARATE, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, *command], **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_training_on_the_page_runs_under_torchrun_and_learns_the_same(tmp_path):
    code = block("DistributedDataParallel")
    (tmp_path / "together.py").write_text(code)
    flows = []
    for count in (1, 2):
        processes = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        assert "19 " in printed(tmp_path, *processes, "together.py")
        flows.append(torch.load(tmp_path / "flow.pt", weights_only=True))
    one, two = flows
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def test_the_campaign_on_the_page_runs_and_keeps_its_parts(tmp_path):
    (tmp_path / "campaign.py").write_text(block("LocalCluster"))
    count, completed = map(int, printed(tmp_path, "campaign.py").split())
    assert count == 5000
    assert 0 < completed <= count
    assert len(list((tmp_path / "campaign").glob("*.safetensors"))) == 5


def test_the_reader_of_tables_on_the_page_gives_a_model(tmp_path, monkeypatch):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(400, 43)))
    code = block("published_tables")
    for old, new in {
        '"miniboone/data.npy"': f'r"{tmp_path / "data.npy"}", complete=False',
        "0, False)": "0, True)",
    }.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    found = {}
    exec(code, found)
    assert len(found["split"].train) == 324
    assert found["model"].log_prob(found["split"].test).isfinite().all()
    assert "MINIBOONE" in published_tables.PUBLISHED
