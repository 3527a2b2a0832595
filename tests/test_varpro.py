"""Variable projection against scikit-learn, dense Jacobians and Taylor's formula."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.func import hessian, jacrev

from ctdl_lib.dynamics import taylor_errors
from ctdl_lib.metrics import cross_entropy, observed_orders
from ctdl_lib.networks import tikhonov
from experiments.optimal_control.varpro import (
    ReducedProblem,
    conjugate_gradients,
    curvature,
    evaluate,
    first_order,
    gauss_newton,
    logits,
    readout,
    reduced_gradient,
)


def problem(outputs, alpha=0.1, batch=30, layers=3):
    u0 = torch.randn(batch, 2)
    label = (u0.square().sum(1) * 2).long().clamp(max=max(outputs, 2) - 1)

    def features(theta):
        u = u0
        for K in theta:
            u = u + 0.5 * torch.tanh(u @ K[:, :2].T + K[:, 2])
        return u

    reduced = ReducedProblem(features, label, outputs, alpha, lambda t: 0.01 * tikhonov(t))
    return reduced, torch.randn(layers, 2, 3)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_readout_is_that_of_scikit_learn(outputs):
    reduced, theta = problem(outputs)
    u = reduced.features(theta)
    best = readout(reduced, u)
    columns = torch.cat([u, torch.ones(30, 1)], 1).numpy()
    other = LogisticRegression(
        C=1 / (30 * reduced.alpha), fit_intercept=False, tol=1e-12, max_iter=10_000
    ).fit(columns, reduced.label.numpy())
    assert torch.allclose(best.W, torch.as_tensor(other.coef_), atol=1e-5)
    W = best.W.clone().requires_grad_()
    assert torch.autograd.grad(reduced.loss(W, u), W)[0].norm() <= 1e-10
    assert readout(reduced, u, best.W).iterations == 0


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_envelope_theorem_passes_a_taylor_test(outputs):
    reduced, theta = problem(outputs)
    phi = lambda theta: torch.tensor(evaluate(reduced, theta).value)  # noqa: E731
    gradient = reduced_gradient(reduced, evaluate(reduced, theta))
    errors = taylor_errors(
        phi, lambda x, d: (gradient * d).sum(), theta, 0.1 * torch.randn_like(theta)
    )
    orders = observed_orders(errors.first.tolist(), errors.h.tolist())
    assert orders[4] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_curvature_is_the_schur_complement_of_dense_gauss_newton(outputs):
    reduced, theta = problem(outputs)
    point, size = evaluate(reduced, theta), theta.numel()
    W = point.W

    def z(theta, W):
        return logits(W, reduced.features(theta)).flatten()

    Jt, Jw = (j.flatten(1) for j in jacrev(z, argnums=(0, 1))(theta, W))
    ell = lambda v: cross_entropy(v.view(-1, outputs), reduced.label)  # noqa: E731
    D = hessian(ell)(z(theta, W))
    Hw = Jw.T @ D @ Jw + reduced.alpha * torch.eye(W.numel())
    dense = Jt.T @ D @ Jt - Jt.T @ D @ Jw @ torch.linalg.solve(Hw, Jw.T @ D @ Jt)
    dense += 0.01 * torch.eye(size)
    G = curvature(reduced, point)
    ours = torch.stack([G(e.view_as(theta)).flatten() for e in torch.eye(size)])
    assert torch.allclose(ours, dense, atol=1e-12)
    assert torch.allclose(ours, ours.T, atol=1e-12)
    assert torch.linalg.eigvalsh(ours)[0] >= 0.01 - 1e-12


def test_gauss_newton_descends_to_a_stationary_point_and_counts_its_work():
    reduced, theta = problem(1)
    steps = list(gauss_newton(reduced, theta, steps=100, cg=40, tol=1e-6))
    losses = [step.loss for step in steps]
    assert losses == sorted(losses, reverse=True)
    last = steps[-1]
    assert last.grad_norm <= 1e-6
    assert last.loss == pytest.approx(evaluate(reduced, last.theta).value, rel=1e-12)
    work = last.work
    assert work.adjoint == work.tangent + len(steps)  # one a product, one a gradient
    assert work.forward >= work.tangent + len(steps)  # jvp repeats the forward pass
    assert steps[0].work == (1, 1, 0, steps[0].work.newton)


def test_work_is_counted_as_features_are_called():
    reduced, theta = problem(1)
    calls = [0]

    def counted(theta):
        calls[0] += 1
        return reduced.features(theta)

    watched = ReducedProblem(counted, reduced.label, 1, reduced.alpha, reduced.regularizer)
    last = list(gauss_newton(watched, theta, steps=4, cg=5))[-1]
    assert last.work.forward == calls[0]


def test_all_methods_end_at_the_same_loss():
    reduced, theta = problem(1)
    best = list(gauss_newton(reduced, theta, steps=200, cg=40))[-1]
    newton, theta = best.loss, best.theta + 0.01 * torch.randn_like(theta)  # the same valley
    for project in (False, True):
        curve = first_order(reduced, theta, evaluations=500, project=project)
        assert curve[-1][0] <= 500
        assert curve[-1][2] == pytest.approx(newton, rel=1e-4)
    adam = first_order(reduced, theta, evaluations=40, rate=0.1)
    assert [count for count, _, _ in adam] == list(range(1, 41))
    assert adam[-1][2] < adam[0][2]


def test_conjugate_gradients_solve_and_stop_early():
    A = torch.randn(6, 6)
    A, b = A @ A.T + torch.eye(6), torch.randn(6)
    x, products = conjugate_gradients(lambda v: A @ v, b, 50, 1e-12)
    assert torch.allclose(A @ x, b, atol=1e-9)
    assert products <= 12
    x, products = conjugate_gradients(lambda v: A @ v, b, 2, 1e-12)
    assert products == 2
    assert conjugate_gradients(lambda v: A @ v, torch.zeros(6), 2, 0.1)[1] == 0


def test_bad_input_is_refused_by_name():
    reduced, theta = problem(1)
    with pytest.raises(ValueError, match="alpha must be positive"):
        ReducedProblem(reduced.features, reduced.label, 1, 0.0, reduced.regularizer)
    with pytest.raises(ArithmeticError, match="use float64"):
        readout(reduced, reduced.features(theta).float(), tol=1e-12)
