"""Run every benchmark of this folder on one thread and print its table."""

import platform

import torch

from . import (
    control,
    inference,
    integrators,
    lotka_volterra,
    mitigation,
    operators,
    potentials,
    resnet,
    spiral,
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {platform.machine()}, one thread; best of interleaved runs\n"
    )
    for benchmark in (
        resnet,
        integrators,
        spiral,
        potentials,
        lotka_volterra,
        inference,
        operators,
        control,
        mitigation,
    ):
        print(benchmark.__doc__)
        for row in benchmark.rows():
            print("  " + row)
        print()
