import math

import pytest
import torch

from ctdl_lib.dynamics import integrate
from ctdl_lib.networks import MLP, Control, ResNet, tikhonov, time_smoothness
from ctdl_lib.networks.architectures import PLAIN
from ctdl_lib.networks.resnets import prolongate, propagate


def gradients(net, output):
    net.zero_grad()
    output.square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize(("layers", "width", "batch"), [(1, 1, 1), (7, 3, 5), (64, 4, 50)])
def test_hand_written_adjoint_equals_automatic_differentiation(layers, width, batch, generator):
    net = ResNet(2, 3, width=width, layers=layers, horizon=5.0, generator=generator).double()
    torch.nn.init.normal_(net.K)
    torch.nn.init.normal_(net.b)
    y = torch.randn(batch, 2, dtype=torch.float64, requires_grad=True)
    by_hand = gradients(net, net(y))
    dy, y.grad = y.grad, None
    automatic = gradients(net, net.path(y)[-1] @ net.K_out.T + net.b_out)
    for ours, theirs in zip([*by_hand, dy], [*automatic, y.grad], strict=True):
        assert (ours - theirs).norm() <= 1e-13 * theirs.norm()


def test_gradcheck_of_the_layers():
    u, K, b = torch.randn(3, 2), torch.randn(4, 2, 2), torch.randn(4, 2)
    inputs = tuple(x.double().requires_grad_() for x in (u, K, b))
    assert torch.autograd.gradcheck(lambda u, K, b: propagate(u, K, b, 0.3), inputs)


def test_second_derivatives_are_refused_not_wrong():
    u, K, b = torch.randn(3, 2, requires_grad=True), torch.randn(4, 2, 2), torch.randn(4, 2)
    (first,) = torch.autograd.grad(propagate(u, K, b, 0.3).square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("layers", [1, 10, 61, 109, 128])
def test_the_network_is_forward_euler(layers):
    net = ResNet(2, 1, width=3, layers=layers, horizon=7.0).double()
    torch.nn.init.normal_(net.K)
    u = torch.randn(5, 2, dtype=torch.float64) @ net.K_in.T
    end = integrate(net.velocity, u, 0.0, 7.0, steps=layers, method="euler")
    features = propagate(u, net.K, net.b, net.h)
    assert torch.allclose(end, features, atol=1e-12)


def test_without_skips_it_is_a_plain_network():
    net = ResNet(2, 1, width=3, layers=4, architecture=PLAIN)
    y = torch.randn(5, 2)
    u = y @ net.K_in.T
    for K, b in zip(net.K, net.b, strict=True):
        u = torch.tanh(u @ K.T + b)
    assert torch.allclose(net.features(y), u)


def test_the_initial_control_is_constant_in_time_and_reproducible():
    nets = [
        ResNet(2, 1, width=3, layers=n, generator=torch.Generator().manual_seed(4))
        for n in (4, 4, 8)
    ]
    assert torch.equal(nets[0].K, nets[1].K)
    assert torch.equal(nets[0].K[0], nets[2].K[7])


def test_smoothness_tends_to_half_the_integral_of_the_squared_derivative():
    found = []
    for n in (50, 100, 200):
        t = torch.arange(n + 1) / n * 2.0
        found.append(float(time_smoothness(torch.stack([t.sin(), t.cos() * 3], 1), 2.0 / n)))
    # ½ ∫₀² (cos² t + 9 sin² t) dt
    exact = 0.5 * (5 * 2 - 4 * math.sin(4) / 2)
    assert abs(found[2] - exact) < abs(found[1] - exact) < abs(found[0] - exact)
    assert found[2] == pytest.approx(exact, rel=1e-4)


def test_tikhonov_sums_over_all_parameters():
    assert float(tikhonov(torch.ones(2, 3), 2 * torch.ones(4))) == 0.5 * (6 + 16)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1, got layers=0"):
        ResNet(2, 1, width=3, layers=0)


def test_prolongation_reproduces_linear_controls_and_keeps_the_nodes():
    t = torch.arange(8) / 8
    theta = torch.stack([2 * t - 1, 3 * t], 1)
    finer = prolongate(theta, 24)
    assert torch.equal(finer[::3], theta)
    s = torch.arange(22) / 24  # up to the last node
    assert torch.allclose(finer[:22], torch.stack([2 * s - 1, 3 * s], 1))
    assert torch.equal(finer[22:], theta[-1:].expand(2, 2))
    assert torch.equal(prolongate(theta, 8), theta)


@pytest.mark.parametrize("smoothness", [0.0, 1.0, 3.0])
def test_a_control_is_its_start_and_its_penalty_is_round(smoothness):
    theta, h = torch.randn(6, 3, 4), 0.25
    control = Control(theta, h, smoothness)
    assert torch.allclose(control(), theta)
    penalty = h * tikhonov(theta) + smoothness * time_smoothness(theta, h)
    assert torch.allclose(0.5 * control.phi.square().sum(), penalty)


def test_the_velocity_of_an_mlp_is_that_of_a_stack_of_linear_layers(generator):
    v = MLP(3, width=5, hidden=1, activation=torch.relu, generator=generator).double()
    first, last = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
    weights = [first.weight, first.bias, last.weight, last.bias]
    ours = [v.weights[0], v.biases[0], v.weights[1], v.biases[1]]
    for theirs, own in zip(weights, ours, strict=True):
        theirs.data = own.data
    x = torch.randn(6, 3, generator=generator)
    expected = last(torch.relu(first(torch.cat([x, torch.full((6, 1), 0.3)], 1))))
    assert torch.allclose(v(0.3, x), expected)
    assert torch.allclose(v(torch.tensor(0.3), x), expected)


def test_an_autonomous_mlp_does_not_see_the_time(generator):
    v = MLP(2, width=5, time=False, generator=generator).double()
    x = torch.randn(6, 2, generator=generator)
    assert torch.equal(v(0.0, x), v(1.0, x))
    assert v.weights[0].shape == (5, 2)
