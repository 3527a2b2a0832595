import importlib.util
import math
from pathlib import Path

import pytest
import torch

from ctdl_lib import metrics
from ctdl_lib.metrics import (
    accuracy,
    c2st,
    cross_entropy,
    observed_orders,
    predict,
    sliced_wasserstein,
)
from ctdl_lib.networks import SpectralConv
from machinery.instruments import interleaved_times, moved_bytes, retained_bytes


def test_accuracy_counts_what_is_recognised():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75.0
    assert predict(torch.tensor([[-1.0], [2.0]])).tolist() == [0, 1]


def test_observed_orders_of_powers():
    assert observed_orders([1.0, 1 / 8, 1 / 64], [1.0, 0.5, 0.25]) == pytest.approx([3.0, 3.0])


def test_contenders_run_by_turns():
    order = []
    contenders = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = interleaved_times(contenders, rounds=3)
    assert order == ["a", "b"] * 4
    assert set(times) == {"a", "b"}
    assert all(seconds >= 0 for seconds in times.values())


def test_cross_entropy_of_one_logit_is_that_of_two():
    logit, label = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    two = torch.cat([torch.zeros(6, 1), logit], 1)
    by_hand = -(two.softmax(1)[torch.arange(6), label]).log().mean()
    assert torch.allclose(cross_entropy(logit, label), by_hand)
    assert torch.allclose(cross_entropy(two, label), by_hand)


def test_retained_bytes_are_those_of_what_is_stored_for_the_way_back():
    x = torch.ones(1000, requires_grad=True)

    def forward():
        y = torch.tanh(x)  # stores its result
        return y + y.detach().clone().sum()  # adding stores nothing; the clone dies

    assert retained_bytes(forward) == 2 * 8000  # float64: tanh(x) and the result


def test_what_was_there_before_is_not_counted():
    x = torch.ones(1000)
    assert retained_bytes(lambda: x.view(10, 100)) == 0
    assert retained_bytes(lambda: x.add_(1)) == 0
    assert retained_bytes(lambda: (x + 1).sum()) == 8


def test_sliced_wasserstein_on_a_line_compares_sorted_samples(generator):
    x, y = torch.randn(50, 1), 2 * torch.rand(50, 1)
    by_hand = (x[:, 0].sort().values - y[:, 0].sort().values).square().mean().sqrt()
    found = sliced_wasserstein(x, y, projections=3, generator=generator)
    assert found == pytest.approx(float(by_hand))


def test_sliced_wasserstein_of_a_shift_and_of_a_scaling(generator):
    """E(θᵀm)² = ‖m‖²/d; the scaling by s costs (s − 1)² times the mean of (θᵀx)²."""
    d, x, m = 4, torch.randn(100, 4), torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = sliced_wasserstein(x, x + m, projections=20_000, generator=generator)
    assert found**2 == pytest.approx(float(m.square().sum()) / d, rel=0.03)
    found = sliced_wasserstein(x, 1.5 * x, projections=5000, generator=generator)
    assert found**2 == pytest.approx(0.25 * float(x.square().mean()), rel=0.01)


def test_sliced_wasserstein_of_normals_nears_that_of_their_laws(generator):
    x, y = (torch.randn(20_000, 3, generator=generator) for _ in range(2))
    found = sliced_wasserstein(x, 2 * y, projections=50, generator=generator)
    assert found == pytest.approx(1.0, abs=0.03)  # W₂ of N(0, 1) and N(0, 4) on each line


def test_c2st_of_equal_laws_is_a_half_and_of_separate_ones_one(generator):
    x, y = (torch.randn(200, 2, generator=generator) for _ in range(2))
    assert abs(c2st(x, y, seed=0) - 0.5) < 4 * 0.5 / math.sqrt(400)
    assert c2st(x, y + 8, seed=0) == 1.0
    assert c2st(x, y + 1, seed=1) == c2st(x, y + 1, seed=1)


@pytest.mark.parametrize("shift", [0.6, 2.0])
def test_c2st_in_the_plane_is_the_bayes_accuracy(generator, shift):
    """Of N(0, I) and N(m, I) no classifier has an accuracy above Φ(‖m‖/2): 0.618 and 0.841."""
    x, y = (torch.randn(1000, 2, generator=generator) for _ in range(2))
    y[:, 0] += shift
    best = float(torch.special.ndtr(torch.tensor(shift / 2)))
    assert abs(c2st(x, y, seed=0) - best) < 3 * math.sqrt(best * (1 - best) / 2000)


def test_c2st_is_that_of_sbibm(generator):
    package = importlib.util.find_spec("sbibm")
    if package is None or package.origin is None:
        pytest.skip("sbibm is not installed")
    path = Path(package.origin).parent / "metrics" / "c2st.py"
    # of the package itself only this file can be imported beside a new sbi
    spec = importlib.util.spec_from_file_location("sbibm_c2st", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    x, y = (torch.randn(500, 2, generator=generator) for _ in range(2))
    y = 1.5 * y + 0.3
    assert c2st(x, y, seed=3) == pytest.approx(float(theirs.c2st(x, y, seed=3)), abs=1e-6)


def test_c2st_looks_at_features_of_x_that_are_constant(generator):
    x, y = (torch.randn(100, 2, generator=generator) for _ in range(2))
    x[:, 1], y[:, 1] = 5.0, 8.0
    assert c2st(x, y, seed=0) > 0.95


def pair(metric, x, y, **how):
    return metric(torch.ones(*x), torch.ones(*y), **how)


LINES = {"projections": 2, "generator": torch.Generator()}
BAD = {
    "dimensions": (lambda: pair(sliced_wasserstein, (3, 2), (3, 1), **LINES), r"\(3, 2\)"),
    "a vector": (lambda: pair(sliced_wasserstein, (3,), (3,), **LINES), r"\(n, d\)"),
    "one sample": (lambda: pair(sliced_wasserstein, (1, 2), (1, 2), **LINES), "at least two"),
    "sizes": (lambda: pair(sliced_wasserstein, (3, 2), (4, 2), **LINES), r"y .* \(3, 2\)"),
    "sizes for a network": (lambda: pair(c2st, (3, 2), (4, 2), seed=0), r"y .* \(3, 2\)"),
    "nan": (
        lambda: metrics.check_samples(torch.ones(3, 2), torch.full((3, 2), math.nan)),
        "3 samples of y",
    ),
    "no projection": (
        lambda: pair(sliced_wasserstein, (3, 2), (3, 2), **LINES | {"projections": 0}),
        "at least 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_moved_bytes_counts_what_is_read_and_written():
    A, B = torch.randn(3, 4), torch.randn(4, 5)
    assert moved_bytes(lambda: A @ B) == 8 * (12 + 20 + 15)
    assert moved_bytes(lambda: A.T.reshape(2, 6)) == 8 * (12 + 12)  # a copy
    assert moved_bytes(lambda: A.reshape(2, 6)[:1].unsqueeze(0)) == 0
    assert moved_bytes(lambda: A.relu_()) == 8 * (12 + 12)


def test_moved_bytes_of_a_spectral_layer_are_those_of_its_docstring():
    n, m, c, batch = 12, 4, 6, 5
    layer, u = SpectralConv(c, c, modes=m), torch.randn(n, n, batch, c)
    layer(u)
    with torch.no_grad():
        found = moved_bytes(lambda: layer(u))
    modes = (2 * m - 1) * m  # about 2m²
    formula = 8 * batch * c * (2 * n * n + 8 * n * m + 20 * modes) + 8 * 4 * modes * c * c
    matrices = 8 * 2 * (2 * m * n + 2 * (2 * m - 1) * 2 * n)
    assert found == formula + matrices
