"""Processes that are killed or compete, for test_training and test_store; run as a script.

The script forks, so that torch is imported once; it exits with 0 when nothing was lost.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from ctdl_lib.learning import cosine, minibatches, storage, train
from ctdl_lib.networks import MLP, ResNet
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


def chapter(folder: Path, delays: list[float], meet) -> int:
    """How many steps a training of the chapter takes itself; the others are in its checkpoint."""
    net = MLP(2, width=8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    settings, taken = {"steps": 12, "average": 0.9}, []

    def loss(net, batch):
        taken.append(batch)
        return (net(0.0, batch[0]) - batch[0].sin()).square().mean()

    def training(steps, checkpoint):
        batches = minibatches(x, size=16, seed=2)
        how = {"steps": steps, "average": 0.9, "checkpoint": checkpoint, "every": 1}
        return train(net, loss, batches, lr=cosine(1e-2, steps), **how)

    store = Store("chapter", "train", folder=folder)
    meet()
    time.sleep(delays[0])
    store.fit("net", net, settings, training)
    store.measure("number", {"n": 1}, lambda: {"sum": 1.0})
    if delays[1]:  # half of the pairs end together, the others when they are ready
        meet()
    store.claims([])
    return len(taken)


def side_by_side(folder: Path) -> None:
    """Two processes train one chapter into one folder at the same time, twenty times."""
    for name in ("warm up", "alone"):
        started = time.monotonic()
        assert chapter(folder / name, [0, 0], lambda: None) == 12
    duration, dice = time.monotonic() - started, random.Random(int(sys.argv[3]))
    barrier = multiprocessing.get_context("fork").Barrier(2, timeout=20)
    delays = [[[dice.uniform(0, duration), k % 2] for k in range(20)] for _ in range(2)]

    def several(who: int) -> None:
        pairs = enumerate(delays[who])
        steps = [chapter(folder / f"pair-{k}", delay, barrier.wait) for k, delay in pairs]
        (folder / f"steps-{who}").write_text(json.dumps(steps))

    pids = [child(several, who) for who in range(2)]
    assert sum(map(succeeded, pids)) == 2
    weights, record = result(folder / "alone")
    for k in range(20):
        assert result(folder / f"pair-{k}") == (weights, record), f"pair {k} differs"
    steps = [n for who in range(2) for n in json.loads((folder / f"steps-{who}").read_text())]
    print(f"{sum(n < 12 for n in steps)} of {len(steps)} trainings went on from the other's file")


def result(folder: Path) -> tuple[bytes, dict]:
    """The weights and the record but for its clock, after a look for files left behind."""
    files = sorted(p.name for p in (folder / "chapter").iterdir() if p.name != ".lock")
    assert files == ["net.json", "net.safetensors", "number.json"], files
    record = json.loads((folder / "chapter" / "net.json").read_text())
    assert record.pop("seconds") >= 0
    return (folder / "chapter" / "net.safetensors").read_bytes(), record


COMMANDS = {"kill": kill_and_resume, "compete": compete, "pairs": side_by_side}

if __name__ == "__main__":
    torch.set_num_threads(1)
    COMMANDS[sys.argv[1]](Path(sys.argv[2]))
