import math

import pytest
import torch

from experiments.neural_odes import memory
from machinery import instruments


def test_the_peak_counts_what_is_alive_at_one_time():
    def compute():
        a = torch.ones(1000, dtype=torch.float64)
        b = a + 1
        del a
        c = b + 1
        return (b + c).sum()

    # a and b; then b, c and b + c, beside the sum of eight bytes
    assert instruments.peak_bytes(compute) == 3 * 8000 + 8


def test_few_states_need_memory_that_hardly_grows():
    found = memory.peaks((8, 32))
    growth = {way: few_many[1] - few_many[0] for way, few_many in found.items()}
    assert growth["through"] > 20 * growth["recompute, all states"]
    assert growth["recompute, all states"] > 4 * growth["recompute, √N states"]
    assert growth["recompute, √N states"] >= growth["recompute, log₂ N states"] > 0
    assert growth["adjoint"] == 0


def test_few_states_cost_evaluations():
    found = {way: counts[0] for way, counts in memory.evaluations((64,)).items()}
    assert found["through"] == 1
    assert found["recompute, all states"] == 2
    # eight states are enough for C(8 + 3, 8) = 165 ≥ 64 steps with three sweeps, besides the stages
    assert 2 < found["recompute, √N states"] <= 4
    assert found["recompute, √N states"] < found["recompute, log₂ N states"] < 2 + math.log2(64)
    assert found["adjoint"] == pytest.approx(2, abs=0.05)
