"""Costates, Hamiltonians and successive approximations against autograd and closed forms."""

import inspect
from dataclasses import replace

import pytest
import torch

from ctdl_lib.dynamics import taylor_errors
from ctdl_lib.metrics import observed_orders
from ctdl_lib.networks import ResNet
from experiments.optimal_control.pontryagin import (
    Extremal,
    TrainingProblem,
    costates,
    hamiltonian,
    linear_layer,
    minimize_hamiltonian,
    msa,
    objective,
    residual,
    states,
    tanh_layer,
)
from experiments.optimal_control.solvers import (
    binary_msa,
    binary_step,
    gradient_descent,
    solve,
    solve_with_steps,
)

ALPHA = 0.1


def problem(field=tanh_layer, h=0.3, batch=7):
    u0, target = torch.randn(batch, 3), torch.randn(batch, 3)
    loss = lambda u: 0.5 * (u - target).square().sum(-1)  # noqa: E731
    cost = lambda theta: ALPHA / 2 * theta.square().sum()  # noqa: E731
    return TrainingProblem(field, u0, h, loss, cost)


def descend(posed, theta, rate, sweeps):
    for _ in range(sweeps):
        theta = theta.detach().requires_grad_()
        theta = theta - rate / posed.h * torch.autograd.grad(objective(posed, theta), theta)[0]
    return theta.detach()


def test_states_and_costates_of_a_resnet_are_its_path_and_what_autograd_finds_along_it():
    net = ResNet(2, 1, width=3, layers=5, horizon=2.0, scale=1.0)
    y, label = torch.randn(7, 2), torch.rand(7)
    path = list(net.path(y).unbind())
    loss = lambda u: (u @ net.K_out.T + net.b_out)[:, 0].sub(label).square()  # noqa: E731
    posed = TrainingProblem(tanh_layer, path[0].detach(), net.h, loss, lambda theta: theta.sum())
    theta = torch.cat([net.K, net.b[:, :, None]], -1).detach()
    extremal = costates(posed, theta)
    assert torch.allclose(extremal.u, torch.stack(path), atol=1e-14)
    for k, node in enumerate(path):
        rest = node.detach().requires_grad_()
        u = rest
        for K, b in zip(net.K[k:], net.b[k:], strict=True):
            u = u + net.h * torch.tanh(u @ K.T + b)
        p = torch.autograd.grad(loss(u).sum(), rest)[0]
        assert torch.allclose(extremal.p[k], p, atol=1e-13)


@pytest.mark.parametrize("field", [tanh_layer, linear_layer])
@pytest.mark.parametrize("h", [0.3, torch.tensor([0.1, 0.5, 0.2, 0.7])], ids=["equal", "unequal"])
def test_gradients_of_the_objective_are_those_of_the_hamiltonians(field, h):
    """∂J/∂θₖ = hₖ ∂Hₖ/∂θₖ and ∂J/∂hₖ = Hₖ, exactly."""
    theta = torch.randn(4, 3, 4, requires_grad=True)
    posed = problem(field, h)
    H = hamiltonian(posed, costates(posed, theta), theta)
    dH = torch.autograd.grad(H.sum(), theta)[0]
    steps = posed.steps(theta).clone().requires_grad_()
    value = objective(replace(posed, h=steps), theta)
    dtheta, dh = torch.autograd.grad(value, (theta, steps))
    assert torch.allclose(dtheta, steps.detach()[:, None, None] * dH, atol=1e-13)
    assert torch.allclose(dh, H, atol=1e-13)


def test_a_needle_changes_the_objective_by_what_the_hamiltonian_says():
    """A large change of one control during a time ε costs ε (H(ϑ) − H(θ)) + O(ε²)."""
    theta, other = torch.randn(6, 3, 4), torch.randn(3, 4)
    posed = problem()

    def change(eps):
        h = torch.full((7,), 0.3)
        h[3], h[4] = eps, 0.3 - eps
        needle = torch.cat([theta[:3], other[None], theta[3:]])
        return objective(replace(posed, h=h), needle)

    fine = replace(posed, h=torch.tensor([0.3, 0.3, 0.3, 1e-300, 0.3, 0.3, 0.3]))
    base = torch.cat([theta[:3], theta[3:4], theta[3:]])
    extremal = costates(fine, base)
    # at length zero the needle sees u₃ and p₃; what it displaces lives through a shorter layer 3
    new = hamiltonian(fine, extremal, torch.cat([theta[:3], other[None], theta[3:]]))[3]
    old = hamiltonian(fine, extremal, base)[4]
    eps = [2.0**-k for k in (10, 11, 12, 13)]
    errors = [(change(e) - objective(posed, theta) - e * (new - old)).abs().item() for e in eps]
    assert observed_orders(errors, eps)[-1] == pytest.approx(2, abs=0.05)


def test_the_minimiser_of_a_linear_field_is_the_closed_form():
    """H = α/2 ‖θ‖² + ⟨θ, M⟩ has the minimiser −M/α."""
    posed, theta = problem(linear_layer), torch.randn(4, 3, 4)
    extremal = costates(posed, theta)
    basis = torch.cat([extremal.u[:-1].tanh(), torch.ones(4, 7, 1)], -1)
    M = extremal.p[1:].mT @ basis / 7
    found = minimize_hamiltonian(posed, extremal, theta)
    assert torch.allclose(found.theta, -M / ALPHA, atol=1e-8)
    assert found.evaluations > 0
    rest = residual(posed, theta)
    assert torch.allclose(rest.gap, ALPHA / 2 * (theta + M / ALPHA).square().sum((1, 2)), atol=1e-8)
    assert torch.allclose(rest.gradient, (ALPHA * theta + M).flatten(1).norm(dim=1), atol=1e-12)


def test_damped_approximations_of_a_linear_field_are_gradient_descent():
    posed, theta = problem(linear_layer), torch.randn(4, 3, 4)
    last = list(msa(posed, theta, sweeps=3, damping=0.02))[-1].theta
    assert torch.allclose(last, descend(posed, theta, 0.02 / ALPHA, 3), atol=1e-7)


def test_the_augmented_minimiser_keeps_the_trajectory_as_its_weight_grows():
    posed, theta = problem(), torch.randn(4, 3, 4)
    extremal = costates(posed, theta)
    moved = []
    for rho in (0.0, 1.0, 100.0, 1e4):
        trial = minimize_hamiltonian(posed, extremal, theta, rho=rho).theta
        field = torch.vmap(tanh_layer)
        moved.append((field(extremal.u[:-1], trial) - field(extremal.u[:-1], theta)).norm().item())
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-2 * moved[0]


def test_extended_approximations_never_raise_the_objective_where_the_plain_ones_do():
    posed, theta = problem(linear_layer, h=0.25), torch.randn(1, 3, 4).repeat(8, 1, 1)
    plain = [sweep.loss for sweep in msa(posed, theta, sweeps=8)]
    extended = [sweep.loss for sweep in msa(posed, theta, sweeps=8, rho=100.0)]
    assert max(plain[1:]) > 10 * plain[0]
    assert extended == sorted(extended, reverse=True)


def test_the_residual_vanishes_where_the_gradient_does_and_more_starts_find_more():
    posed = problem(linear_layer)
    theta = descend(posed, torch.zeros(4, 3, 4), 1.0, 1000)
    rest = residual(posed, theta)
    assert rest.gradient.max() < 1e-8
    assert rest.gap.max() < 1e-12
    tanh, start = problem(tanh_layer), torch.randn(4, 3, 4)
    one = residual(tanh, start)
    more = residual(tanh, start, (torch.randn(4, 3, 4), torch.zeros(4, 3, 4)))
    assert torch.all(more.gap >= one.gap)


def test_signs_stay_signs_and_lower_the_linearised_objective(generator):
    B = torch.randn(4, 3, 5, generator=generator).sign()
    M = torch.randn(4, 3, 5, generator=generator)
    for share in (0.1, 0.5, 1.0):
        new = binary_step(B, M, share)
        assert torch.equal(new.abs(), torch.ones_like(B))
        assert (M * new).sum((1, 2)).lt((M * B).sum((1, 2))).all()
    assert torch.equal(binary_step(B, M, 1.0), -M.sign())
    few = (binary_step(B, M, 1e-9) != B).sum((1, 2))
    assert few.tolist() == [1, 1, 1, 1]
    assert torch.equal(binary_step(-M.sign(), M, 0.5), -M.sign())


def test_derivatives_pass_a_taylor_test():
    posed, theta, change = problem(), torch.randn(3, 3, 4), torch.randn(3, 3, 4)
    H = lambda theta: hamiltonian(posed, costates(posed, theta), theta)  # noqa: E731
    leaf = theta.clone().requires_grad_()
    slope = 0.3 * torch.autograd.grad(H(leaf).sum(), leaf)[0]
    errors = taylor_errors(
        lambda theta: objective(posed, theta), lambda x, d: (slope * d).sum(), theta, 0.01 * change
    )
    assert observed_orders(errors.first.tolist(), errors.h.tolist())[3] == pytest.approx(2, abs=0.1)


def test_gradient_descent_is_what_autograd_makes_of_it():
    posed, theta = problem(), torch.randn(4, 3, 4)
    *_, last = gradient_descent(posed, theta, rate=0.1, sweeps=3)
    assert torch.allclose(last.theta, descend(posed, theta, 0.1, 3), atol=1e-12)


def test_learned_steps_keep_the_horizon_lower_the_objective_and_flatten_the_hamiltonian():
    posed = problem(linear_layer)
    theta = solve(posed, torch.randn(4, 3, 4), iterations=500)
    better, resized = solve_with_steps(posed, theta, iterations=500)
    assert resized.steps(better).sum() == pytest.approx(4 * 0.3, rel=1e-12)
    assert objective(resized, better) < objective(posed, theta)
    H, used = residual(resized, better).value, resized.steps(better) > 1e-2
    assert H[used].max() - H[used].min() < 1e-3 * H[used].abs().max()
    assert torch.all(H[used].min() - 1e-3 <= H)  # a step may only vanish where it would cost


def test_binary_training_keeps_signs_and_a_share_of_zero_keeps_all_of_them(generator):
    y, W = torch.randn(40, 3, generator=generator), torch.randn(1, 3, requires_grad=True)
    label, B = (y.sum(1) > 0).long(), torch.randn(2, 3, 4, generator=generator).sign()

    def logits(y, B):
        for B_k in B:
            y = y + 0.3 * linear_layer(y, B_k)
        return y @ W.T

    how = {"steps": 60, "lr": 0.05}
    trained = binary_msa(logits, [W], B, lambda k: (y, label), **how)
    assert torch.equal(trained.abs(), torch.ones_like(B))
    assert not torch.equal(trained, B)
    assert torch.equal(binary_msa(logits, [W], B, lambda k: (y, label), share=0.0, **how), B)


def test_bad_input_is_refused_by_name():
    posed, theta = problem(h=torch.ones(3)), torch.randn(4, 3, 4)
    with pytest.raises(ValueError, match="3 step sizes and theta 4 layers"):
        states(posed, theta)
    for bad in ({"damping": 0.0}, {"damping": 1.5}, {"rho": -1.0}):
        with pytest.raises(ValueError, match="damping must be in"):
            next(msa(problem(), theta, sweeps=1, **bad))
    B = torch.ones(1, 2, 2)
    with pytest.raises(ValueError, match="only −1 and"):
        inspect.unwrap(binary_step)(0.5 * B, B, 1.0)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share must be"):
            binary_step(B, B, share)
    assert Extremal._fields == ("u", "p")
