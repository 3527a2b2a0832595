"""What a GPU makes of the algorithms and the chapters: ten minutes, and a file of numbers.

    make gpu-check                       on the GPU of this machine
    make gpu-check DEVICE=cpu            a trial of the same script
    PYTHONPATH=. python tests/gpu_check.py --train 05 --chapters 05 06

It compares every algorithm with the CPU in double precision, repeats it bit by bit, measures
training steps (milliseconds, and what they launch, copy and wait for), runs the chapters that look
at their device in smoke, and trains one anew and compares its claims. On a GPU the numbers go to
book/results/gpu, where the scoreboard finds them.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from test_accelerator import CASES, drawn, results, seeded
from test_accelerator_chapters import PAGES, TESTS

from benchmarks.control import problem_and_network
from ctdl_lib.control import objective
from ctdl_lib.generative import Denoiser, Schedule, denoising, ot_flow
from ctdl_lib.learning import train
from ctdl_lib.networks import FNO
from ctdl_lib.potentials import ResNetPotential
from machinery import chapters

TOLERANCE = 1e-8  # in double precision, where sums are taken in another order
KEPT = chapters.BOOK / "results" / "gpu"


def algorithms(device):
    """A row for each algorithm: its distance from the CPU, and whether it repeats bit by bit."""
    rows = []
    for name, make in CASES.items():
        row = {"name": name}
        try:
            torch.manual_seed(0)
            expected = results(make, lambda x: x)
            found, again = (repeated(make, device) for _ in range(2))
            pairs = list(zip(found, expected, strict=True))
            row["gap"] = max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in pairs)
            row["agrees"] = row["gap"] < TOLERANCE
            row["repeats"] = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        except Exception as error:  # the others go on, and the report says it
            row |= {"agrees": False, "error": f"{type(error).__name__}: {error}"[:300]}
        rows.append(row)
        print(row, flush=True)
    return rows


def repeated(make, device):
    torch.manual_seed(0)
    return results(make, lambda x: x.to(device))


def ot_flow_step(d, width, batch):
    phi = ResNetPotential(d, width=width, generator=seeded())
    how = {"steps": 8, "likelihood": 1.0, "hjb": 1.0}
    return phi, lambda phi, x: ot_flow(phi, x, **how), (drawn(batch, d),)


def diffusion_step(n, batch):
    denoiser = Denoiser(FNO(modes=12, width=32, generator=seeded()), std=0.5)
    data = drawn(batch, n, n), drawn(batch, n, n, seed=2), torch.rand(batch, generator=seeded())
    return denoiser, lambda net, *batch: denoising(net, *batch, Schedule()), data


def control_step(steps, batch):
    problem, phi, start = problem_and_network("quadcopter")
    dW = drawn(steps, batch, len(start)) / steps**0.5
    weights = {"hjb": 0.1, "bsde": 0.1, "terminal": 0.1, "terminal_gradient": 0.1}

    def loss(phi, x, dW):
        return objective(problem, phi, x, steps=steps, dW=dW, **weights)

    return phi, loss, (start + 0.1 * drawn(batch, len(start)), dW)


STEPS = {
    "OT-Flow, d=2, width 32, batch 2048": lambda: ot_flow_step(2, 32, 2048),
    "OT-Flow, d=43, width 256, batch 1024": lambda: ot_flow_step(43, 256, 1024),
    "FNO diffusion, 28² pixels, batch 64": lambda: diffusion_step(28, 64),
    "quadcopter, 50 steps, batch 256": lambda: control_step(50, 256),
}
# a graph of the others would take longer to compile than all the rest
COMPILED = [name for name in STEPS if "d=2" in name or "FNO" in name]


def steps(device):
    """A row for each training: milliseconds a step by place, and the traffic of one on a GPU."""
    rows, cuda = [], torch.device(device).type == "cuda"
    for name, make in STEPS.items():
        row = {"name": name}
        measured = [("cpu_ms", "cpu", False), ("ms", device, False)]
        if cuda and name in COMPILED:
            measured.append(("compiled_ms", device, True))
        for key, place, compiled in measured:
            try:
                row[key] = round(1e3 * seconds_a_step(make, place, compiled), 3)
            except Exception as error:
                row[f"{key}_error"] = f"{type(error).__name__}: {error}"[:300]
        if cuda:
            row |= traffic(make, device)
        rows.append(row)
        print(row, flush=True)
    return rows


def training_of(make, place, compiled=False):
    model, loss, data = make()
    data = [part.to(place) for part in data]
    return train(
        model.to(place),
        lambda model, batch: loss(model, *batch),
        lambda k: data,
        steps=99,
        compiled=compiled,
    )


def seconds_a_step(make, place, compiled):
    training = training_of(make, place, compiled)
    taken = []
    for _ in range(11):
        started = time.perf_counter()
        next(training)  # its record waits for the device
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def traffic(make, device):
    """What one training step launches, waits for and copies, as the profiler counts it."""
    from torch.profiler import ProfilerActivity, profile

    training = training_of(make, device)
    for _ in range(3):
        next(training)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        next(training)
    counts = {event.key: event.count for event in found.key_averages()}
    return {
        "kernels": counts.get("cudaLaunchKernel", 0),
        "waits": sum(count for key, count in counts.items() if "Synchronize" in key),
        "copies": sum(count for key, count in counts.items() if key.startswith("cudaMemcpy")),
    }


def environment(root):
    path = os.pathsep.join(map(str, (root, root / "book", TESTS)))
    fixed = {"PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "MPLBACKEND": "Agg"}
    return os.environ | fixed


def smoke(names, device):
    """A row for each page in smoke on the device."""
    rows = []
    for page in (p for p in PAGES if p.stem[:2] in names):
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(chapters.BOOK / "results", Path(folder) / "results")
            run = subprocess.run(
                [sys.executable, TESTS / "on_accelerator.py", page.name, device],
                cwd=folder,
                env=environment(chapters.ROOT),
                capture_output=True,
                text=True,
            )
        row = {"name": page.name, "passed": run.returncode == 0}
        row["seconds"] = round(time.monotonic() - started, 1)
        if run.returncode:
            row["error"] = run.stderr.strip().splitlines()[-1][:300]
        rows.append(row)
        print(row, flush=True)
    return rows


def trained(number, device):
    """What training a chapter anew gives, in a copy of the book: claims that differ from ours."""
    (chapter,) = chapters.find_chapters([number])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "book"
        left_out = shutil.ignore_patterns(".venv", "_build", ".git", "mine", "*_cache")
        shutil.copytree(chapters.ROOT, root, ignore=left_out)
        command = [sys.executable, "-m", "machinery.chapters", "train", number, "--device", device]
        run = subprocess.run(
            command, cwd=root, env=environment(root), capture_output=True, text=True
        )
        row = {"name": chapter.name, "passed": run.returncode == 0}
        if run.returncode:
            row["error"] = (run.stderr or run.stdout).strip()[-300:]
        else:
            found = root / chapter.claims_file.relative_to(chapters.ROOT)
            row["differ"] = chapters.disagreements(
                json.loads(found.read_text("utf-8")), chapter.claims
            )
    row["seconds"] = round(time.monotonic() - started, 1)
    print(row, flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    numbers = sorted({page.stem[:2] for page in PAGES})
    parser.add_argument("--chapters", nargs="*", default=numbers, choices=numbers)
    parser.add_argument("--train", default="05", choices=["none", *numbers])
    given = parser.parse_args()
    cuda = torch.device(given.device).type == "cuda"
    if cuda and not torch.cuda.is_available():
        sys.exit("this machine has no GPU that torch can see: try the script with DEVICE=cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    card = torch.cuda.get_device_name(given.device) if cuda else f"no GPU, {chapters.processor()}"
    report = {"card": card, "torch": torch.__version__, "date": str(datetime.date.today())}
    torch.set_default_dtype(torch.float64)
    report["algorithms"] = algorithms(given.device)
    torch.set_default_dtype(torch.float32)
    report["steps"] = steps(given.device)
    report["chapters"] = smoke(given.chapters, given.device)
    report["trained"] = [] if given.train == "none" else [trained(given.train, given.device)]
    folder = KEPT if cuda else chapters.ROOT / "_build"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', card.lower())}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    good = all(row["agrees"] for row in report["algorithms"])
    good &= all(row["passed"] for row in report["chapters"] + report["trained"])
    print(f"{'passed' if good else 'FAILED'}: {path}")
    return not good


if __name__ == "__main__":
    sys.exit(main())
