"""One of two processes that train a flow together; `test_distributed` starts and compares them."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ctdl_lib.generative import Flow
from ctdl_lib.learning import train
from ctdl_lib.potentials import ResNetPotential

STEPS, BATCH = 6, 24


class Objective(nn.Module):
    """The loss of OT-Flow as a forward call, which is what DistributedDataParallel wraps."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return torch.stack(list(self.flow.objective(x, steps=4, likelihood=5.0, hjb=1.0).values()))


def a_flow():
    phi = ResNetPotential(3, width=8, generator=torch.Generator().manual_seed(0))
    flow = Flow(phi, 3, solver={"steps": 4})
    return flow.standardize(batch(0, 0, 1) + 2)


def batch(step, rank, world):
    """The rows of this process among the BATCH rows of a step."""
    x = torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(step))
    return x[rank * BATCH // world : (rank + 1) * BATCH // world]


def run(model, rank, world, until, file):
    """The losses of the steps up to `until`, resumed from `file` if that exists."""
    found = []
    records = train(
        model,
        lambda model, x: model(x).sum(),
        lambda step: batch(step, rank, world),
        steps=STEPS,
        lr=0.05,
        checkpoint=file,
        every=1,
    )
    for step in records:
        found.append(step.loss)
        if step.index + 1 == until:
            break
    return found


def main(rank, world, folder):
    """Train in two parts, so that the second is resumed, and keep weights and samples."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world
    )
    for until in (3, STEPS):
        flow = a_flow()
        # the objective has derivatives of Φ alone, so its constant gets no gradient
        wrapped = DistributedDataParallel(Objective(flow), find_unused_parameters=True)
        run(wrapped, rank, world, until, folder / f"run-{rank}")
    x, log_prob = flow.sample_with_log_prob(5, torch.Generator().manual_seed(rank))
    weights = nn.utils.parameters_to_vector(flow.parameters()).detach()
    torch.save((weights, x.detach(), log_prob.detach()), folder / f"found-{rank}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
