import functools
import multiprocessing
import operator
import os
import signal
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from experiments.simulation_based_inference import tasks
from experiments.simulation_based_inference.tasks import TaskError, identity, outcomes, run

CALLS = []  # the arguments of each call of a task in this process

# From Python 3.12 on, a fork of a process with threads is deprecated; these children use none.
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def divide(a, b):
    CALLS.append((a, b))
    return a / b


class AwkwardError(Exception):
    """Cannot be made again in another process: its arguments are not those of its constructor.

    Where `distributed` has been imported that alone would do no harm.
    """

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
        self.nameless = lambda: None


def awkward():
    raise AwkwardError("one", "two")


def pool():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


# --- tasks


@FORKS
@pytest.mark.parametrize("parallel", [False, True])
def test_tasks_are_answered_in_order_and_failures_collected(parallel):
    arguments = [(k, 1 + k % 7) for k in range(50)]
    if not parallel:
        assert run(divide, arguments) == [divide(*pair) for pair in arguments]
        return
    with pool() as executor:
        assert run(divide, arguments, executor=executor) == [divide(*pair) for pair in arguments]
        arguments[20] = arguments[30] = (1, 0)
        with pytest.raises(TaskError, match="2 of 50 tasks failed; number 20: ZeroDiv") as caught:
            run(divide, arguments, executor=executor)
        assert set(caught.value.failed) == {20, 30}
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert caught.value.results[31] == divide(*arguments[31])
        assert caught.value.results[20] is None
        # the pool outlives an exception that cannot travel
        with pytest.raises(TaskError, match="number 0: RuntimeError: AwkwardError: one and two"):
            run(awkward, [()], executor=executor)
        with pytest.raises(TaskError, match=r"number 1: .*a process of it died") as caught:
            run(signal.raise_signal, [(0,), (signal.SIGKILL,), (0,)], executor=executor)
        assert 1 in caught.value.failed


def test_no_tasks_have_no_results(tmp_path):
    assert run(divide, []) == run(divide, [], folder=tmp_path) == []


def hanging(seconds):
    time.sleep(seconds)
    return seconds


@FORKS
@pytest.mark.parametrize("parallel", [False, True])
def test_a_task_that_hangs_is_cut_and_the_others_go_on(parallel):
    started = time.monotonic()
    with pool() if parallel else nullcontext() as executor:
        found = r"1 of 4 tasks failed; number 1: TimeoutError: .* did not end within limit=0.3 s"
        with pytest.raises(TaskError, match=found) as caught:
            run(hanging, [(0.0,), (60.0,), (0.1,), (0.0,)], executor=executor, limit=0.3)
        assert caught.value.results == [0.0, None, 0.1, 0.0]
        # the alarm is gone with its task
        assert run(hanging, [(0.4,)], executor=executor) == [0.4]
    assert time.monotonic() - started < 20


def test_where_no_task_can_be_cut_a_limit_is_refused():
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(TaskError, match=r"LimitError: .* main thread .* a pool of processes"):
            run(divide, [(1, 2)], executor=executor, limit=1.0)
        assert run(divide, [(1, 2)], executor=executor) == [0.5]


def test_few_tasks_wait_at_a_time_however_many_there_are(monkeypatch):
    monkeypatch.setattr(tasks, "WINDOW", 3)
    made = []

    def numbers():
        for k in range(40):
            made.append(k)
            yield (k,)

    with ThreadPoolExecutor(2) as executor:
        for seen, _ in enumerate(outcomes(abs, numbers(), executor)):
            assert len(made) <= seen + 3
    assert len(made) == 40


def test_of_an_executor_that_is_shut_down_nothing_finished_is_lost(monkeypatch):
    """It raises a RuntimeError of no kind of its own where a broken one raises another."""
    monkeypatch.setattr(tasks, "WINDOW", 2)
    executor = ThreadPoolExecutor(1)

    def progress(done, total, desc):
        for count, outcome in enumerate(done, 1):
            yield outcome
            if count == 3:
                executor.shutdown()

    with pytest.raises(TaskError, match=r"cannot schedule .*was shut down.*a new") as caught:
        run(divide, [(k, 2) for k in range(9)], executor=executor, progress=progress)
    assert isinstance(caught.value.__cause__, BrokenExecutor)
    done = [k for k in range(9) if k not in caught.value.failed]
    assert done[:3] == [0, 1, 2]
    assert [caught.value.results[k] for k in done] == [k / 2 for k in done]
    with pytest.raises(TaskError, match="9 of 9 tasks failed; number 0"):
        run(divide, [(k, 2) for k in range(9)], executor=executor)


# --- with a folder


def test_finished_tasks_are_read_and_not_called_again(tmp_path):
    arguments = [(1.0, 2.0), (1.0, 0.0), (3.0, 4.0)]
    with pytest.raises(TaskError, match="1 of 3 tasks failed; number 1: ZeroDivisionError"):
        run(divide, arguments, folder=tmp_path)
    CALLS.clear()
    # the one that failed, one with another argument, and one more
    repaired = [(1.0, 2.0), (1.0, 8.0), (3.0, 5.0), (7.0, 2.0)]
    assert run(divide, repaired, folder=tmp_path) == [0.5, 0.125, 0.6, 3.5]
    assert repaired[1:] == CALLS
    CALLS.clear()
    assert run(divide, repaired, folder=tmp_path) == [0.5, 0.125, 0.6, 3.5]
    assert not CALLS
    # another function with the same arguments
    assert run(operator.add, repaired, folder=tmp_path) == [3.0, 9.0, 8.0, 9.0]


def test_a_broken_result_is_named_with_the_remedy(tmp_path):
    run(divide, [(1.0, 2.0), (3.0, 4.0)], folder=tmp_path)
    file = sorted(tmp_path.iterdir())[1]
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match=f"{file} is truncated .*: delete it and run again"):
        run(divide, [(1.0, 2.0), (3.0, 4.0)], folder=tmp_path)


@FORKS
def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path):
    arguments = [(k, 4.0) for k in range(10)]

    def progress(done, total, desc):
        for count, outcome in enumerate(done, 1):
            yield outcome
            if count == 4:
                os.kill(os.getpid(), signal.SIGKILL)

    def target():
        run(divide, arguments, folder=tmp_path, progress=progress)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    CALLS.clear()
    with ThreadPoolExecutor(2) as executor:
        results = run(divide, arguments, folder=tmp_path, executor=executor)
    assert results == [divide(*pair) for pair in arguments]
    assert sorted(CALLS[:6]) == arguments[4:]
    assert len(CALLS) == 6 + 10


class Fit(NamedTuple):
    loss: float


def nested(what):
    tensor = torch.linspace(0, 1, 3, requires_grad=True)
    return {
        "nest": {"loss": [0.5, None, (True, "ε", float("inf"))], 3: tensor, "empty": {}},
        "a tensor": tensor.float(),
        "a NumPy number": np.float64(0.1),
        "an array": [np.ones(2)],
        "a record": {"fit": Fit(0.1)},
        "a set": {1, 2},
        "a key": {(1, 2): 3},
    }[what]


@pytest.mark.parametrize("what", ["nest", "a tensor", "a NumPy number"])
def test_results_are_the_same_when_they_are_read(tmp_path, what):
    (fresh,) = run(nested, [(what,)], folder=tmp_path)
    (again,) = run(nested, [(what,)], folder=tmp_path)
    assert repr(fresh) == repr(again)
    (plain,) = run(nested, [(what,)])
    if what == "nest":
        assert torch.equal(fresh.pop(3), plain.pop(3))
    assert torch.equal(fresh, plain) if what == "a tensor" else fresh == plain


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("an array", "a ndarray"),
        ("a record", "a Fit"),
        ("a set", "a set"),
        ("a key", "a key of type tuple"),
    ],
)
def test_results_that_would_not_come_back_are_refused(tmp_path, what, kind):
    arguments = [("nest",), (what,)]
    with pytest.raises(TypeError, match=f"keeps numbers.* but task 1 returned {kind}: convert"):
        run(nested, arguments, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(run(nested, arguments)) == 2


def test_tasks_that_cannot_be_told_apart_are_refused_with_a_folder(tmp_path):
    for function, arguments in [(lambda x: x, (1,)), (len, ([object()],))]:
        assert len(run(function, [arguments])) == 1
        with pytest.raises(ValueError, match="tell"):
            run(function, [arguments], folder=tmp_path)


# --- what tells values apart


@dataclass(frozen=True)
class Linear:
    matrix: Any
    noise: float = 1.0

    def simulate(self):
        pass

    @classmethod
    def unit(cls):
        pass


@dataclass(frozen=True)
class Other(Linear):
    pass


class Plain:
    def simulate(self):
        pass


BIG = torch.zeros(2000, dtype=torch.float64)
NEXT = BIG.clone()
NEXT[1000] = 1e-12  # neither of them is printed
VALUES = {
    "numbers": (1, 1.0, True, "1", b"1", 1j, np.float32(1), np.float64(1), None),
    "neighbours": (0.1, 0.1 + 2**-55, float("nan"), 0.0, -0.0),
    "tensors": (BIG, NEXT, BIG.float(), BIG.numpy(), BIG.numpy()[None], NEXT.numpy(), BIG[:1]),
    "bits": (torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.uint8), torch.zeros(())),
    "half": (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.half)),
    "objects": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "nests": ([1, 2], (1, 2), {1, 2}, [[1], 2], [1, [2]], {1: 2}, {2: 1}, [BIG], [NEXT], Fit(0.5)),
    "dataclasses": (Linear(BIG), Linear(NEXT), Linear(BIG, 2.0), Other(BIG), Linear),
    "methods": (Linear(BIG).simulate, Linear(NEXT).simulate, Linear.simulate, Linear.unit),
    "functions": (divide, awkward, abs, torch.add, operator.add, np.linalg.norm, "x".join),
    "partials": tuple(
        functools.partial(*args, **words)
        for args, words in [
            ((divide, 1), {}),
            ((divide, 2), {}),
            ((divide,), {"a": 1}),
            ((divide,), {"b": 1}),
            ((divide,), {"b": BIG}),
            ((divide,), {"b": NEXT}),
            ((awkward, 1), {}),
        ]
    ),
    "other things": (Path("a"), Path("b"), slice(1), range(1), torch.float32, np.float32),
}


@pytest.mark.parametrize("name", VALUES)
def test_different_values_have_different_identities(name):
    found = [identity(value) for value in VALUES[name]]
    assert len(set(found)) == len(found)
    assert max(map(len, found)) < 300


def test_equal_values_have_the_same_identity():
    for a, b in [
        (Linear(BIG), Linear(BIG.clone())),
        (BIG.reshape(40, 50).T, BIG.reshape(40, 50).T.contiguous()),
        (BIG, BIG.clone().requires_grad_()),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (set("abcdefgh"), set("hgfedcba")),
        (functools.partial(divide, a=1, b=2), functools.partial(divide, b=2, a=1)),
        (functools.partial(functools.partial(divide, 1), 2), functools.partial(divide, 1, 2)),
    ]:
        assert identity(a) == identity(b)
    assert identity(Linear(3, 0.5).simulate) == ("test_tasks.Linear(matrix=3, noise=0.5).simulate")


def test_names_that_others_may_have_are_refused():
    def local():
        pass

    @dataclass
    class Local:
        x: int

    anywhere = r"has no name that tells it from others: define it in a module"
    for value in (local, lambda: 0, functools.partial(local), [local], Local(1), Linear(local)):
        with pytest.raises(ValueError, match=rf"test_tasks.*<l.*{anywhere}"):
            identity(value)
    for value in (Plain(), Plain().simulate, torch.nn.Linear(1, 1), {"g": torch.Generator()}):
        with pytest.raises(ValueError, match=r"an object of .* has no values that tell it.*frozen"):
            identity(value)
