import math

import pytest
import torch

from ctdl_lib.dynamics import divergence, hutchinson, taylor_errors
from ctdl_lib.metrics import observed_orders


def test_divergence_of_a_linear_field_is_its_trace():
    A, x = torch.randn(4, 4), torch.randn(7, 4)
    found = divergence(lambda x: x @ A.T, x)
    assert torch.allclose(found.divergence, A.trace().expand(7))
    assert torch.allclose(found.value, x @ A.T)


def test_divergence_agrees_with_differences_and_can_be_differentiated():
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    x, h = torch.randn(5, 3), 1e-5
    found = divergence(net, x).divergence
    differences = sum(
        (net(x + h * e)[:, i] - net(x - h * e)[:, i]) / (2 * h) for i, e in enumerate(torch.eye(3))
    )
    assert torch.allclose(found, differences, atol=1e-8)
    found.sum().backward()
    assert net[0].weight.grad.norm() > 0


def test_hutchinson_is_unbiased_with_the_variance_that_is_claimed(generator):
    A, n = torch.randn(4, 4), 50_000
    x = torch.zeros(n, 4)
    eps = torch.randint(0, 2, x.shape, generator=generator) * 2.0 - 1
    estimate = hutchinson(lambda x: x @ A.T, x, eps).divergence
    S = (A + A.T) / 2
    variance = float(2 * (S.square().sum() - S.diagonal().square().sum()))
    assert abs(estimate.mean() - A.trace()) < 4 * math.sqrt(variance / n)
    assert float(estimate.var()) == pytest.approx(variance, rel=0.05)


def test_taylor_errors_tell_a_right_derivative_from_a_wrong_one():
    x, dx = torch.randn(6), torch.randn(6)
    right = taylor_errors(torch.sin, lambda x, dx: torch.cos(x) * dx, x, dx)
    wrong = taylor_errors(torch.sin, lambda x, dx: torch.cos(x + 0.1) * dx, x, dx)
    assert observed_orders(right.zeroth.tolist(), right.h.tolist())[-1] == pytest.approx(
        1, abs=0.02
    )
    assert observed_orders(right.first.tolist(), right.h.tolist())[-1] == pytest.approx(2, abs=0.05)
    assert observed_orders(wrong.first.tolist(), wrong.h.tolist())[-1] == pytest.approx(1, abs=0.2)
