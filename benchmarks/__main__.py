"""Run the benchmarks on one thread, print their tables, and keep their rows.

Arguments are the names of benchmarks, by default all. A page of the book shows what is kept.
"""

import importlib
import sys

import torch

from machinery.benchmarking import keep, markdown

NAMES = (
    "potentials",
    "control",
    "integrators",
    "resnet",
    "spiral",
    "inference",
    "operators",
    "lotka_volterra",
    "mitigation",
)


def main(names: list[str]) -> None:
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"there is no benchmark {sorted(unknown)}: choose from {', '.join(NAMES)}")
    torch.set_num_threads(1)
    for name in names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        title = (module.__doc__ or name).strip().splitlines()[0].rstrip(".")
        print(f"\n{title}", flush=True)
        rows = list(module.rows())
        print("\n".join(markdown(rows)), flush=True)
        keep(name, title, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
