"""Processes that are killed or compete, for test_training and test_results; run as a script.

The script forks, so that torch is imported once; it exits with 0 when nothing was lost.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from ctdl_lib.learning import cosine, minibatches, storage, train
from ctdl_lib.networks import ResNet
from machinery.store import Store

STEPS, EVERY = 400, 7


def run(checkpoint: Path, out: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    net = ResNet(2, 1, width=4, layers=16, generator=generator)
    y = torch.randn(256, 2, generator=generator)
    label = (y.prod(1) > 0).float()

    def loss(net, batch):
        rows, label = batch
        return torch.nn.functional.binary_cross_entropy_with_logits(net(rows)[:, 0], label)

    batches = minibatches(y, label, size=100, seed=3)
    history = list(
        train(
            net,
            loss,
            batches,
            steps=STEPS,
            lr=cosine(1e-2, STEPS),
            checkpoint=checkpoint,
            every=EVERY,
        )
    )
    storage.save(out, {"model": dict(net.state_dict()), "losses": [s.loss for s in history]})


def child(function, *args) -> int:
    pid = os.fork()
    if pid == 0:
        function(*args)
        os._exit(0)
    return pid


def succeeded(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def kill_and_resume(folder: Path) -> None:
    started = time.monotonic()
    assert succeeded(child(run, folder / "whole.checkpoint", folder / "whole"))
    duration = time.monotonic() - started
    dice = random.Random(int(sys.argv[3]))
    killed = 0
    while killed < 10:
        pid = child(run, folder / "cut.checkpoint", folder / "cut")
        time.sleep(dice.uniform(0, duration / 8))
        os.kill(pid, signal.SIGKILL)
        killed += not succeeded(pid)
        if (folder / "cut").exists():  # it was faster than the signal: start once more
            (folder / "cut").unlink()
            (folder / "cut.checkpoint").unlink()
    assert succeeded(child(run, folder / "cut.checkpoint", folder / "cut"))
    whole, cut = storage.load(folder / "whole"), storage.load(folder / "cut")
    assert whole["losses"] == cut["losses"]
    assert all(torch.equal(whole["model"][k], cut["model"][k]) for k in whole["model"])
    leftovers = [p.name for p in folder.iterdir() if p.suffix not in (".checkpoint", "")]
    print(f"killed {killed} times, {len(leftovers)} temporary files left")


def write(folder: Path, value: float) -> None:
    net = torch.nn.Linear(20, 20)
    torch.nn.init.constant_(net.weight, value)
    store = Store("chapter", "train", folder=folder)
    for _ in range(30):
        store.fit(
            "net",
            net,
            {"steps": 1},
            lambda steps, checkpoint: train(
                net,
                lambda net, batch: 0 * net(torch.ones(1, 20)).sum(),
                lambda k: None,
                steps=1,
                lr=0.0,
            ),
        )


def compete(folder: Path) -> None:
    write(folder, 0.0)
    writers = [child(write, folder, float(value)) for value in (1, 2)]
    net, seen = torch.nn.Linear(20, 20), set()
    store = Store("chapter", "saved", folder=folder)
    while len(writers):
        store.fit("net", net, {"steps": 1}, lambda steps, checkpoint: iter(()))
        seen.add(net.weight.unique().item())
        writers = [pid for pid in writers if os.waitpid(pid, os.WNOHANG) == (0, 0)]
    assert seen <= {0.0, 1.0, 2.0}
    print(f"saw whole results of {len(seen)} writers")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"kill": kill_and_resume, "compete": compete}[sys.argv[1]](Path(sys.argv[2]))
