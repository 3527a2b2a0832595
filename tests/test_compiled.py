"""`torch.compile` takes the losses of the book as one graph, and gives the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compiled_losses.py")
LOSSES = (
    "OT-Flow",
    "data in their own units",
    "likelihood",
    "flow matching",
    "diffusion of fields",
    "control in the plane",
    "quadcopter",
)


@pytest.fixture(scope="module")
def report():
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_every_loss_is_there(report):
    assert tuple(report["traced"]) == LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_graph_with_the_same_gradients(report, name):
    assert report["traced"][name] < 1e-10


def test_a_loss_that_binds_a_context_is_traced_in_parts(report):
    assert report["in parts"] < 1e-10


def test_a_compiled_training_ends_with_the_same_weights(report):
    if "trained" not in report:
        pytest.skip("torch.compile needs a C++ compiler")
    assert report["trained"] < 1e-10


def test_a_compiled_loss_that_is_not_finite_is_explained(report):
    """The checks inside of the loss are left out, and made when its value is not finite."""
    if "refused" not in report:
        pytest.skip("torch.compile needs a C++ compiler")
    plain, compiled = report["refused"]
    assert plain == compiled
    assert plain.startswith("IntegrationError: the state of sample 0 (of 3) is not finite from t=")
