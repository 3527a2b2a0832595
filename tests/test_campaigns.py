import functools
import json
import math
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from ctdl_lib.learning import storage
from experiments.simulation_based_inference import tasks
from experiments.simulation_based_inference.campaigns import (
    OneByOne,
    Simulated,
    SimulationError,
    seeds,
    simulate,
)
from experiments.simulation_based_inference.tasks import TaskError, run

CALLS = []  # the rows of each call of a simulator in this process


def noisy(x, seeds):
    """Three noisy columns, of which some rows do not complete; each row has its own generator."""
    CALLS.append(len(x))
    generators = [np.random.default_rng(seed) for seed in seeds]
    noise = np.array([g.standard_normal(3) for g in generators]).reshape(len(x), 3)
    completed = torch.from_numpy(np.abs(noise[:, 0]) < 1.5)
    y = x.sum(1, keepdim=True) + torch.from_numpy(noise).to(x.dtype)
    return Simulated(y, completed)


def slow(x, seeds):
    time.sleep(0.05)
    return noisy(x, seeds)


def decay(x, generator):
    y = x[0] * np.exp(-x[1] * np.arange(4)) + generator.normal(size=4)
    return y if y[0] < 150 else np.full(4, np.nan)


def hanging(x, seeds):
    if (x[:, 0] == 13).any():
        time.sleep(60)
    return noisy(x, seeds)


def raising(x, seeds):
    if (x[:, 0] == 13).any():
        raise ZeroDivisionError("thirteen")
    return noisy(x, seeds)


def deadly(x, seeds):
    if (x[:, 0] == 13).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return noisy(x, seeds)


class AwkwardError(Exception):
    """Cannot be made again in another process: its arguments are not those of its constructor."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def awkward(x, seeds):
    raise AwkwardError("one", "two")


@dataclass(frozen=True)
class Scaled:
    scale: float

    def simulate(self, x, seeds):
        y, completed = noisy(x, seeds)
        return Simulated(self.scale * y, completed)


@dataclass(frozen=True)
class Linear:
    matrix: torch.Tensor

    def simulate(self, x, seeds):
        return noisy(x @ self.matrix.to(x), seeds)


def parameters(n=230):
    columns = torch.arange(n), torch.linspace(-1, 1, n, dtype=torch.float64)
    return torch.stack(columns, 1)


def same(a, b):
    """Bit for bit, NaN too."""
    assert a.y.dtype == b.y.dtype
    assert a.y.numpy().tobytes() == b.y.numpy().tobytes()
    assert torch.equal(a.completed, b.completed)
    return True


@pytest.fixture(scope="module")
def serial():
    return simulate(noisy, parameters(), seed=5)


def pool(start, workers=2):
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(start))


# From Python 3.12 on, a fork of a process with threads is deprecated; these children use none.
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def test_each_row_is_simulated_with_its_own_seed(serial):
    x = parameters()
    for i in (0, 1, 117, 229):
        alone = noisy(x[i : i + 1], seeds(230, 5)[i : i + 1])
        assert serial.completed[i] == alone.completed[0]
        if serial.completed[i]:
            assert torch.equal(serial.y[i], alone.y[0])
    assert serial.y.isnan().all(1).equal(~serial.completed)
    assert 0 < serial.completed.sum() < 230


def test_seeds_are_distinct_and_those_of_fewer_simulations_come_first():
    many = seeds(200_000, 3)
    assert len(np.unique(many)) == len(many)
    assert np.array_equal(seeds(777, 3), many[:777])
    assert not np.intersect1d(many, seeds(1000, 4)).size
    assert not np.array_equal(seeds(5, [3, 1]), seeds(5, [3, 2]))
    assert np.array_equal(seeds(3, 9), np.random.SeedSequence(9).generate_state(3, np.uint64))


@pytest.mark.parametrize("chunk", [1, 7, 229, 230, 1000])
def test_chunks_do_not_change_a_bit(serial, chunk):
    assert same(simulate(noisy, parameters(), seed=5, chunk=chunk), serial)


@FORKS
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_processes_do_not_change_a_bit(serial, start):
    with pool(start) as executor:
        assert same(simulate(noisy, parameters(), seed=5, chunk=9, executor=executor), serial)


def test_waiting_for_one_another_does_not_change_a_bit(serial, monkeypatch):
    monkeypatch.setattr(tasks, "WINDOW", 3)
    with ThreadPoolExecutor(2) as executor:
        assert same(simulate(noisy, parameters(), seed=5, chunk=2, executor=executor), serial)


def test_float32_stays_and_other_seeds_differ(serial):
    x = parameters().float()
    single = simulate(noisy, x, seed=5)
    assert single.y.dtype == torch.float32
    assert torch.allclose(single.y.double(), serial.y, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert not torch.equal(simulate(noisy, x, seed=6).completed, single.completed)


def test_no_rows_are_an_observation_of_the_right_width():
    y, completed = simulate(noisy, parameters(0), seed=0)
    assert y.shape == (0, 3)
    assert completed.shape == (0,)


def test_progress_wraps_the_chunks():
    seen = []

    def progress(chunks, total, desc):
        for chunk in chunks:
            seen.append((chunk, total, desc))
            yield chunk

    simulate(noisy, parameters(), seed=0, chunk=100, progress=progress)
    assert seen == [(k, 3, "simulations") for k in range(3)]
    with pytest.raises(SimulationError, match=r"130 of 230 simulations failed.*it was not run"):
        simulate(
            noisy, parameters(), seed=0, chunk=100, progress=lambda chunks, **_: [next(chunks)]
        )


def killed_after(chunks, folder):
    """A process that simulates and is killed by SIGKILL when some chunks are done."""

    def progress(iterable, total, desc):
        for done, chunk in enumerate(iterable, 1):
            yield chunk
            if done == chunks:
                os.kill(os.getpid(), signal.SIGKILL)

    def target():
        simulate(noisy, parameters(), seed=5, chunk=20, folder=folder, progress=progress)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    return process.exitcode


@FORKS
def test_a_killed_campaign_goes_on_where_it_stopped(tmp_path, serial):
    assert killed_after(3, tmp_path / "c") == -signal.SIGKILL
    assert killed_after(3 + 4, tmp_path / "c") == -signal.SIGKILL
    CALLS.clear()
    resumed = simulate(noisy, parameters(), seed=5, chunk=20, folder=tmp_path / "c")
    assert same(resumed, serial)
    assert CALLS == [20, 20, 20, 20, 10]  # of 12 chunks, those that were not done
    CALLS.clear()
    again = simulate(noisy, parameters(), seed=5, chunk=20, folder=tmp_path / "c")
    assert same(again, serial)
    assert not CALLS


@FORKS
@pytest.mark.parametrize("chunk", [1, 7, 90, 1000])
def test_a_killed_campaign_goes_on_with_any_chunk(tmp_path, serial, chunk):
    """Rows are known by their numbers: no file of other chunks is lost or replaced."""
    assert killed_after(3, tmp_path) == -signal.SIGKILL
    CALLS.clear()
    with pytest.raises(SimulationError):
        simulate(
            noisy,
            parameters(),
            seed=5,
            chunk=chunk,
            folder=tmp_path,
            progress=lambda chunks, **_: [next(chunks) for _ in range(min(2, 230 // chunk))],
        )
    resumed = simulate(noisy, parameters(), seed=5, chunk=33, folder=tmp_path)
    assert same(resumed, serial)
    assert sum(CALLS) == 230 - 3 * 20
    CALLS.clear()
    assert same(simulate(noisy, parameters(), seed=5, folder=tmp_path), serial)
    assert not CALLS


def test_another_campaign_is_refused_and_what_differs_is_named(tmp_path):
    x = parameters()
    arguments = {"seed": 5, "chunk": 50, "folder": tmp_path}
    first = simulate(Scaled(2.0).simulate, x, **arguments)
    for simulator, other, changed, differing in [
        (Scaled(2.0).simulate, x, {"seed": 6}, "seed is 5 there and 6 here"),
        (Scaled(2.0).simulate, x, {"seed": (5, 1)}, r"seed is 5 there and \[5, 1\] here"),
        (Scaled(2.0).simulate, x + 1e-9, {}, ": hash of x"),
        (Scaled(2.0).simulate, x[1:], {}, r"\(230, 2\)' there and 'float64 of shape \(229, 2\)"),
        (Scaled(3.0).simulate, x, {}, r"simulator is .*scale=2.0.*scale=3.0"),
        (functools.partial(noisy, extra=1), x, {}, r"simulator is .*noisy of .*'extra': 1"),
    ]:
        with pytest.raises(ValueError, match=f"another campaign.*{differing}"):
            simulate(simulator, other, **arguments | changed)
    assert same(simulate(Scaled(2.0).simulate, x, **arguments), first)
    assert json.loads((tmp_path / "campaign.json").read_text())["simulator"].endswith(
        "test_campaigns.Scaled(scale=2.0).simulate"
    )


def piece(rows, value=0.0, width=3):
    """What a chunk's file holds, for three rows."""
    return [torch.tensor(rows), torch.full((3, width), value), torch.ones(3) > 0]


CHUNK, CAMPAIGN = "000000020-000000039.safetensors", "campaign.json"
REMEDY = {CHUNK: "delete it", CAMPAIGN: "choose another folder, or delete it to start afresh"}
BROKEN = {
    "truncated": (CHUNK, lambda file: file.write_bytes(file.read_bytes()[:-7])),
    "empty": (CHUNK, lambda file: file.write_bytes(b"")),
    "a text": (CHUNK, lambda file: file.write_text("a text")),
    "of another program": (CHUNK, lambda file: storage.save(file, {"a": 1})),
    "without a mask": (CHUNK, lambda file: storage.save(file, piece([20, 21, 22])[:2])),
    "ragged": (CHUNK, lambda file: storage.save(file, piece([20, 21]))),
    "rows of floats": (CHUNK, lambda file: storage.save(file, piece([20.0, 21.0, 22.0]))),
    "out of range": (CHUNK, lambda file: storage.save(file, piece([20, 21, 230]))),
    "below the range": (CHUNK, lambda file: storage.save(file, piece([-1, 21, 22]))),
    "of another width": (CHUNK, lambda file: storage.save(file, piece([20, 21, 22], width=4))),
    "not finite": (CHUNK, lambda file: storage.save(file, piece([20, 21, 22], math.nan))),
    "half of it": (CAMPAIGN, lambda file: file.write_text("{")),
    "a list": (CAMPAIGN, lambda file: file.write_text("[1]")),
    "a number": (CAMPAIGN, lambda file: file.write_text("1")),
    "not UTF-8": (CAMPAIGN, lambda file: file.write_bytes(b"\xff{")),
    "missing": (CAMPAIGN, lambda file: file.unlink()),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_the_remedy_and_nothing_on_disk_changes(tmp_path, kind):
    name, spoil = BROKEN[kind]
    arguments = {"seed": 5, "chunk": 20, "folder": tmp_path}
    simulate(noisy, parameters(), **arguments)
    spoil(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    CALLS.clear()
    with pytest.raises(ValueError, match=f"{name} .*{REMEDY[name]}"):
        simulate(noisy, parameters(), **arguments)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not CALLS


def test_a_broken_chunk_that_was_deleted_is_simulated_again(tmp_path, serial):
    arguments = {"seed": 5, "chunk": 20, "folder": tmp_path}
    simulate(noisy, parameters(), **arguments)
    (tmp_path / CHUNK).unlink()
    CALLS.clear()
    assert same(simulate(noisy, parameters(), **arguments), serial)
    assert CALLS == [20]


def test_simulators_are_told_apart_by_numbers_that_are_not_printed(tmp_path):
    """Of a tensor 4 digits are printed, and of a large one not all entries."""
    for k, matrix in enumerate([torch.full((2, 2), 0.5), torch.ones(2, 1000)]):
        other = matrix.clone()
        other[1, 1 + 500 * k] += 1e-6
        assert repr(other) == repr(matrix)
        folder, x = tmp_path / str(k), parameters()
        first = simulate(Linear(matrix).simulate, x, seed=5, folder=folder)
        with pytest.raises(ValueError, match=r"another campaign: simulator .*hash .*hash"):
            simulate(Linear(other).simulate, x, seed=5, folder=folder)
        bound = functools.partial(Linear.simulate, Linear(other))
        with pytest.raises(ValueError, match=r"another campaign: simulator .*hash .*hash"):
            simulate(bound, x, seed=5, folder=folder)
        again = Linear(matrix.clone()).simulate
        assert same(simulate(again, x, seed=5, folder=folder), first)


def test_a_simulator_whose_name_others_may_have_needs_a_campaign_without_folder(tmp_path, serial):
    for simulator in (lambda x, seeds: noisy(x, seeds), functools.partial(lambda *a: noisy(*a))):
        assert same(simulate(simulator, parameters(), seed=5), serial)
        with pytest.raises(ValueError, match=r"<lambda> has no name .*: define it in a module"):
            simulate(simulator, parameters(), seed=5, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@FORKS
@pytest.mark.parametrize("start", [None, "fork"])
def test_of_a_simulator_that_raises_nothing_else_is_lost(tmp_path, serial, start):
    x = parameters()
    x[[40, 41, 200], 0] = 13
    whole = simulate(noisy, x, seed=5)
    arguments = {"seed": 5, "chunk": 20, "folder": tmp_path}
    one = pool(start) if start else nullcontext()
    with one as executor, pytest.raises(SimulationError) as caught:
        simulate(raising, x, executor=executor, **arguments)
    error = caught.value
    assert error.rows == [13, 40, 41, 200]
    text = f"4 of 230 simulations failed, rows 13, 40, 41, 200; row 13, with x = {x[13].tolist()}"
    assert text in str(error)
    assert f"seed {seeds(230, 5)[13]}: ZeroDivisionError: thirteen" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert 'in raising\n    raise ZeroDivisionError("thirteen")' in error.__cause__.__notes__[0]
    good = torch.ones(230, dtype=torch.bool)
    good[error.rows] = False
    assert same(Simulated(*(p[good] for p in error.partial)), Simulated(*(p[good] for p in whole)))
    assert not error.partial.completed[~good].any()
    assert error.partial.y[~good].isnan().all()
    # only the rows that failed are tried again
    CALLS.clear()
    with pytest.raises(SimulationError, match="4 of 230"):
        simulate(raising, x, **arguments)
    assert not CALLS


@FORKS
@pytest.mark.parametrize("start", [None, "fork"])
def test_a_row_that_hangs_is_cut_and_nothing_else_is_lost(serial, start):
    started = time.monotonic()
    found = r"1 of 230 simulations failed, rows 13; row 13, .*TimeoutError: .* within limit=0.5 s"
    error = pytest.raises(SimulationError, match=found)
    with pool(start) if start else nullcontext() as executor, error as caught:
        simulate(hanging, parameters(), seed=5, chunk=20, limit=0.5, executor=executor)
    assert time.monotonic() - started < 30  # 20 rows are halved five times
    good = torch.arange(230) != 13
    partial = caught.value.partial
    assert same(Simulated(*(p[good] for p in partial)), Simulated(*(p[good] for p in serial)))


def test_chunks_that_take_longer_than_the_limit_are_halved(serial):
    def by_row(x, seeds):
        time.sleep(0.01 * len(x))
        return noisy(x, seeds)

    assert same(simulate(by_row, parameters(), seed=5, chunk=230, limit=0.6), serial)


def test_a_limit_is_refused_where_no_simulation_can_be_cut():
    CALLS.clear()
    refused = pytest.raises(SimulationError, match=r"230 of 230 .*LimitError: .* pool of processes")
    with ThreadPoolExecutor(1) as executor, refused:
        simulate(noisy, parameters(), seed=5, limit=1.0, executor=executor)
    with pytest.raises(SimulationError, match="LimitError: limit must be a positive number"):
        simulate(noisy, parameters(), seed=5, limit=0.0)
    assert not CALLS


def test_what_raised_is_not_tried_again_when_it_has_been_repaired(tmp_path, serial, monkeypatch):
    x = parameters()
    with pytest.raises(SimulationError):
        simulate(raising, x, seed=5, chunk=20, folder=tmp_path)
    monkeypatch.setattr(torch.Tensor, "__eq__", lambda a, b: torch.zeros(len(a), dtype=torch.bool))
    CALLS.clear()
    repaired = simulate(raising, x, seed=5, chunk=20, folder=tmp_path)
    monkeypatch.undo()
    assert CALLS == [1]
    assert same(repaired, serial)


@FORKS
def test_a_pool_that_breaks_keeps_what_was_finished(tmp_path, serial):
    arguments = {"seed": 5, "chunk": 4, "folder": tmp_path}
    died = pytest.raises(SimulationError, match=r"a process of it died.*new executor")
    with pool("fork", workers=1) as executor, died as caught:
        simulate(deadly, parameters(), executor=executor, **arguments)
    assert isinstance(caught.value.__cause__, BrokenProcessPool)
    partial = caught.value.partial
    assert same(Simulated(*(p[:12] for p in partial)), Simulated(*(p[:12] for p in serial)))
    assert caught.value.rows == list(range(12, 230))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    # a pool that is broken from the start
    with pytest.raises(SimulationError, match=r"218 of 230.*among the rows from 12 on: .*died"):
        simulate(deadly, parameters(), executor=executor, **arguments)


@FORKS
def test_a_row_that_kills_its_process_is_found_and_does_not_block_a_campaign(
    tmp_path, serial, monkeypatch
):
    def died(chunk, first):
        where = rf"rows {first}, .*; among the rows from {first} on: BrokenProcessPool"
        with pool("fork", workers=1) as executor, pytest.raises(SimulationError, match=where) as e:
            simulate(deadly, parameters(), seed=5, folder=tmp_path, executor=executor, chunk=chunk)
        return e.value.rows

    assert died(chunk=8, first=8) == list(range(8, 230))
    assert died(chunk=8, first=8) == list(range(8, 230))
    # what is left of a chunk, alone, up to the row that kills
    assert died(chunk=1, first=13) == list(range(13, 230))
    # the first row pending is not the first of its chunk
    assert died(chunk=8, first=13) == list(range(13, 230))
    monkeypatch.setattr(os, "kill", lambda *_: None)
    CALLS.clear()
    repaired = simulate(deadly, parameters(), seed=5, folder=tmp_path, chunk=50)
    assert same(repaired, serial)
    assert CALLS == [37, 50, 50, 50, 30]


def test_an_executor_that_is_shut_down_keeps_what_was_finished(tmp_path, serial, monkeypatch):
    monkeypatch.setattr(tasks, "WINDOW", 1)
    executor = ThreadPoolExecutor(1)

    def progress(chunks, total, desc):
        for done, chunk in enumerate(chunks, 1):
            yield chunk
            if done == 3:
                executor.shutdown()

    arguments = {"seed": 5, "chunk": 20, "folder": tmp_path, "executor": executor}
    found = r"170 of 230 .*among the rows from 60 on: .*cannot schedule .*was shut down.*new exec"
    with pytest.raises(SimulationError, match=found) as caught:
        simulate(noisy, parameters(), progress=progress, **arguments)
    assert caught.value.rows == list(range(60, 230))
    partial = caught.value.partial
    assert same(Simulated(*(p[:60] for p in partial)), Simulated(*(p[:60] for p in serial)))
    with pytest.raises(SimulationError, match="170 of 230"):
        simulate(noisy, parameters(), **arguments)


@FORKS
def test_a_simulator_of_one_row_in_numpy_gives_the_same_bits_everywhere(tmp_path):
    x = parameters()
    generators = map(np.random.default_rng, seeds(230, 5))
    alone = list(map(decay, x.numpy(), generators))
    simulated = simulate(OneByOne(decay), x, seed=5)
    assert same(simulated, Simulated(torch.tensor(np.array(alone)), simulated.completed))
    assert simulated.completed.sum() == np.isfinite(np.array(alone)).all(1).sum() < 230
    with pool("fork") as processes, pool("spawn") as spawned, ThreadPoolExecutor(2) as threads:
        for executor in (None, processes, spawned, threads):
            how = {"executor": executor, "chunk": 20, "folder": tmp_path / str(executor)}
            assert same(simulate(OneByOne(decay), x, seed=5, **how), simulated)
    assert simulate(OneByOne(decay), x.float(), seed=5).y.dtype == torch.float32
    assert simulate(OneByOne(decay), x[:0], seed=5).y.shape == (0, 0)
    with pytest.raises(ValueError, match=r"another campaign: simulator .*OneByOne\(one=.*decay"):
        simulate(OneByOne(np.add), x, seed=5, folder=tmp_path / "None")


@pytest.mark.parametrize(
    ("y", "got"),
    [
        (1.5, r"float64 of shape \(\)"),
        (np.zeros((1, 4)), r"float64 of shape \(1, 4\)"),
        (np.zeros(4) * 1j, r"complex128 of shape \(4,\)"),
        (None, r"object of shape \(\)"),
        (["a", "b", "c", "d"], r"<U1 of shape \(4,\)"),
    ],
)
def test_what_a_simulator_of_one_row_returns_is_checked_and_the_row_is_named(y, got):
    def careless(x, generator):
        return y if x[0] == 77 else np.zeros(4)

    found = rf"rows 77; row 77, with x = \[77.0, .* array of numbers \(m,\) .*, got {got}"
    with pytest.raises(SimulationError, match=found):
        simulate(OneByOne(careless), parameters(), seed=5, chunk=20)


def test_rows_of_numpy_of_different_widths_are_refused_and_the_row_is_named():
    def uneven(x, generator):
        return np.zeros(2 + (x[0] == 77))

    with pytest.raises(TypeError, match="3 columns of float64 for row 77, but 2 of float64 before"):
        simulate(OneByOne(uneven), parameters(), seed=0, chunk=50)


def wrong(case):
    y, completed = torch.zeros(230, 3), torch.ones(230, dtype=torch.bool)
    return {
        "a tensor": y,
        "three parts": (y, completed, y),
        "an array": (y.numpy(), completed),
        "flat": (y[:, 0], completed),
        "short": (y[1:], completed),
        "integers": (y.long(), completed),
        "a mask of floats": (y, completed.double()),
        "a mask of another length": (y, completed[1:]),
    }[case]


@pytest.mark.parametrize(
    ("case", "got"),
    [
        ("a tensor", r"it returned Tensor torch.float64\[230, 3\]"),
        ("three parts", r"and Tensor torch.bool\[230\] and Tensor torch.float64"),
        ("an array", r"ndarray float64\[230, 3\]"),
        ("flat", r"Tensor torch.float64\[230\] and"),
        ("short", r"Tensor torch.float64\[229, 3\] and"),
        ("integers", r"Tensor torch.int64\[230, 3\] and"),
        ("a mask of floats", r"and Tensor torch.float64\[230\]"),
        ("a mask of another length", r"and Tensor torch.bool\[229\]"),
    ],
)
def test_what_a_simulator_returns_is_checked(case, got):
    with pytest.raises(TypeError, match=rf"must return Simulated.*\(230, m\).*{got}"):
        simulate(lambda x, seeds: wrong(case), parameters(), seed=0)


def test_rows_of_different_widths_are_refused():
    def uneven(x, seeds):
        return Simulated(torch.zeros(len(x), 2 + (x[0, 0] >= 20)), torch.ones(len(x)) > 0)

    with pytest.raises(TypeError, match="3 columns of float64 for row 20, but 2 of float64 before"):
        simulate(uneven, parameters(), seed=0, chunk=20)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_a_completed_row_is_an_error_that_names_the_row(serial, value):
    def careless(x, seeds):
        y, completed = noisy(x, seeds)
        return Simulated(y.masked_fill(x[:, :1] == 77, value), completed | (x[:, 0] == 77))

    found = r"rows 77; row 77, .*NaN or infinite in a completed row"
    with pytest.raises(SimulationError, match=found) as caught:
        simulate(careless, parameters(), seed=5, chunk=20)
    good = torch.arange(230) != 77
    partial = caught.value.partial
    assert same(Simulated(*(p[good] for p in partial)), Simulated(*(p[good] for p in serial)))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        simulate(noisy, parameters(), seed=0, chunk=0)
    x = parameters()
    x[4, 1] = math.inf
    with pytest.raises(ValueError, match=r"its row 4 is \[4.0, inf\]"):
        simulate(noisy, x, seed=0)


def test_a_simulator_that_fails_on_no_rows_says_so():
    with pytest.raises(SimulationError, match=r"0 of 0 simulations failed.*AwkwardError: one and"):
        simulate(awkward, parameters(0), seed=0)


class Killer:
    """A progress bar that kills the process of a worker of Dask when some chunks are done."""

    def __init__(self, client, after):
        self.client, self.after = client, after

    def __call__(self, chunks, total, desc):
        for done, chunk in enumerate(chunks, 1):
            if done == self.after:
                self.pid = next(iter(self.client.run(os.getpid).values()))
                os.kill(self.pid, signal.SIGKILL)
            yield chunk


def test_dask_does_not_change_a_bit_even_when_a_worker_is_killed(serial):
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        executor = client.get_executor()
        assert same(simulate(noisy, parameters(), seed=5, chunk=9, executor=executor), serial)
        killer = Killer(client, after=10)
        arguments = {"seed": 5, "chunk": 5, "executor": executor, "progress": killer}
        assert same(simulate(slow, parameters(), **arguments), serial)
        assert killer.pid not in client.run(os.getpid).values()
        with pytest.raises(SimulationError, match="ZeroDivisionError: thirteen") as caught:
            simulate(raising, parameters(), seed=5, chunk=50, executor=executor)
        assert caught.value.rows == [13]
        assert run(pow, [(1, 2), (3, 4)], executor=executor) == [1, 81]
        with pytest.raises(TaskError, match=r"LimitError: .* limit=None with threads and dask"):
            run(pow, [(1, 2)], executor=executor, limit=9.0)
