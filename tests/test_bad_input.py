"""Bad arguments get a clear error, in a process that runs the library as its users do."""

import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from working_calls import CALLS

import ctdl_lib.control
import ctdl_lib.dynamics
import ctdl_lib.generative
import ctdl_lib.learning
import ctdl_lib.networks
import ctdl_lib.potentials
from ctdl_lib import metrics


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """Without the shape checker of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


ROOT = Path(__file__).parents[1]
PACKAGES = [getattr(ctdl_lib, name) for name in ("control", "dynamics", "generative", "learning")]
PACKAGES += [ctdl_lib.networks, ctdl_lib.potentials]
# Results, errors, protocols and abstract classes are not called by users.
NOT_CALLED = {"ControlProblem", "CostError", "IntegrationError", "Transformed", "MeanFieldCost"}
NOT_CALLED |= {"MeanFieldGame", "Sample", "TransportMap", "Step", "TrainingError", "Derivatives"}
NOT_CALLED |= {"Gradient", "Potential", "tikhonov", "minibatches"}


def python(*arguments, checks="1"):
    env = {**os.environ, "CTDL_CHECKS": checks, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'book'}"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """All bad calls: function, argument, category, outcome."""
    path = tmp_path_factory.mktemp("bad") / "rows.json"
    python(ROOT / "tests" / "bad_input.py", 1.0, path)
    return json.loads(path.read_text())


def test_nine_of_ten_bad_calls_get_a_clear_error(rows):
    assert len(rows) > 2000
    assert sum(row[3] == "clear" for row in rows) >= 0.9 * len(rows)


def test_no_wrong_shape_gives_a_result(rows):
    assert [row for row in rows if row[3] == "accepted" and row[2].startswith("tensor: one")] == []


def test_an_error_is_obscure_only_where_a_problem_does_not_say_its_dimension(rows):
    assert {row[0] for row in rows if row[3] == "obscure"} <= {"rollout", "check"}


def test_nothing_hangs_or_divides_by_zero(rows):
    assert [row for row in rows if row[3] == "hang" or row[4].startswith("ZeroDivision")] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_every_export_is_called_in_the_table(package):
    called = {inspect.unwrap(call).__qualname__.split(".")[0] for call, _, _ in CALLS}
    assert set(package.__all__) - NOT_CALLED <= called


def test_checks_can_be_switched_off():
    code = "import ctdl_lib.metrics as m; print(hasattr(m.accuracy, '__guarded__'))"
    assert python("-c", code, checks="0") == "False\n"
    assert python("-c", code) == "True\n"


def test_the_message_names_the_argument_and_what_came_and_was_wanted():
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"c2st: y must have shape \(3, 2\), got \(3, 1\) of"):
        metrics.c2st(x, x[:, :1], seed=0)
    with pytest.raises(TypeError, match=r"accuracy: label must be integers of shape \(3,\)"):
        metrics.accuracy(x, x[:, 0])
    with pytest.raises(TypeError, match="MLP: width must be an integer"):
        ctdl_lib.networks.MLP(2, width=2.5)
    with pytest.raises(ValueError, match="first row 1"):
        metrics.predict(torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]))


def test_only_the_outermost_call_is_checked():
    """A velocity may call the library with anything that works, as in an inner loop."""
    seen = []

    def velocity(t, x):
        seen.append(ctdl_lib.dynamics.standard_normal_log_prob(x[0]))  # not (batch, d)
        return -x

    ctdl_lib.dynamics.integrate(velocity, torch.ones(2, 3), 0.0, 1.0, steps=1)
    assert seen[0].shape == ()
    with pytest.raises(ValueError, match="z must have shape"):
        ctdl_lib.dynamics.standard_normal_log_prob(torch.ones(3))


def test_checked_functions_keep_what_tools_need():
    f = ctdl_lib.generative.flow_matching
    assert pickle.loads(pickle.dumps(f)) is f
    assert f.__name__ == "flow_matching"
    assert f.__doc__.startswith("The ")
    assert list(inspect.signature(f).parameters) == ["velocity", "x", "z", "t"]
    assert inspect.isabstract(ctdl_lib.potentials.Potential)
    phi = ctdl_lib.potentials.ResNetPotential(2, width=4)
    x = torch.randn(3, 2)
    slope = torch.func.grad(lambda x: phi(0.5, x).sum())(x)
    assert torch.allclose(slope, phi.gradient(0.5, x).dx)
    rows = torch.func.vmap(lambda x: phi(0.5, x[None])[0])(x)
    assert torch.allclose(rows, phi(0.5, x))
