import pytest
import torch

from ctdl_lib.metrics import (
    accuracy,
    cross_entropy,
    interleaved_times,
    observed_orders,
    predict,
    retained_bytes,
    spread,
)


def test_accuracy_counts_what_is_recognised():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75.0
    assert predict(torch.tensor([[-1.0], [2.0]])).tolist() == [0, 1]


def test_spread_is_that_of_torch():
    values = torch.randn(7)
    found = spread(values.tolist())
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.std == pytest.approx(float(values.std()))
    with pytest.raises(ValueError, match="at least two"):
        spread([1.0])


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
