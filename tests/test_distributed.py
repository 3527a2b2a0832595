"""DistributedDataParallel around a flow: two processes train as one does."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from two_processes import STEPS, Objective, a_flow, run


def test_two_processes_train_resume_and_sample_as_one(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    started = [
        subprocess.Popen([sys.executable, str(script), str(rank), "2", str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    flow = a_flow()
    run(Objective(flow), 0, 1, STEPS, None)
    alone = nn.utils.parameters_to_vector(flow.parameters()).detach()
    assert (alone - nn.utils.parameters_to_vector(a_flow().parameters())).norm() > 0.1
    for rank in range(2):
        weights, x, log_prob = torch.load(tmp_path / f"found-{rank}", weights_only=True)
        assert (weights - alone).abs().max() < 1e-10
        expected = flow.sample_with_log_prob(5, torch.Generator().manual_seed(rank))
        assert (x - expected.x).abs().max() < 1e-10
        assert (log_prob - expected.log_prob).abs().max() < 1e-10


def test_a_wrapped_flow_is_saved_as_the_flow_itself(tmp_path):
    flow = a_flow()
    torch.save(flow.state_dict(), tmp_path / "flow")
    other = a_flow()
    run(Objective(other), 0, 1, 2, None)
    other.load_state_dict(torch.load(tmp_path / "flow", weights_only=True))
    x = torch.randn(4, 3)
    assert torch.equal(flow.log_prob(x), other.log_prob(x))
