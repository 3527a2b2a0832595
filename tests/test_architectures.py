import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tanh

from ctdl_lib.dynamics import integrate
from ctdl_lib.metrics import observed_orders
from ctdl_lib.networks import ResNet
from ctdl_lib.networks.architectures import PLAIN, antisymmetric_field, architectures

ALL = architectures(gamma=0.3)
REVERSIBLE = [name for name, a in ALL.items() if a.scheme.inverse is not None]
each = pytest.mark.parametrize("name", ALL)
each_reversible = pytest.mark.parametrize("name", REVERSIBLE)


def network(name, layers=7, width=4, seed=0, **options):
    """A network whose weights are all random, and differ from layer to layer."""
    generator = torch.Generator().manual_seed(seed)
    net = ResNet(2, 3, width=width, layers=layers, architecture=ALL[name], **options).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def by_the_formula(name, u, net):
    """The features u_N by formulas for one sample u, written once more with K y instead of y Kᵀ."""
    h, K, b, N = net.h, net.K, net.b, net.layers
    if name in ("resnet", "antisymmetric", "parabolic"):
        for n in range(N):
            A = K[n] - K[n].T - 0.3 * torch.eye(4) if name == "antisymmetric" else K[n]
            s = tanh(A @ u + b[n])
            u = u - h * K[n].T @ s if name == "parabolic" else u + h * s
        return u
    if name in ("hamiltonian", "two-layer hamiltonian"):
        y, z = u[:2], u[2:]
        for n in range(N):
            if name == "hamiltonian":
                z = z - h * tanh(K[n].T @ y + b[n])
                y = y + h * tanh(K[n] @ z + b[n])
            else:
                z = z - h * K[n, 1].T @ tanh(K[n, 1] @ y + b[n, 1])
                y = y + h * K[n, 0].T @ tanh(K[n, 0] @ z + b[n, 0])
        return torch.cat([y, z])
    path = [u, u]
    for n in range(N):
        if name == "leapfrog":
            new = 2 * path[-1] - path[-2] - h**2 * K[n].T @ tanh(K[n] @ path[-1] + b[n])
        elif name == "midpoint":
            s = tanh((K[n] - K[n].T) @ path[-1] + b[n])
            new = path[-1] + h * s if n == 0 else path[-2] + 2 * h * s
        else:
            k = net.kappa[n]
            new = (1 - k) * path[-1] + k * path[-2] + h * tanh(K[n] @ path[-1] + b[n])
        path.append(new)
    return path[-1]


@each
def test_layers_are_what_the_formulas_say(name, generator):
    net = network(name)
    y = torch.randn(5, 2, generator=generator)
    expected = torch.stack([by_the_formula(name, net.K_in @ sample, net) for sample in y])
    assert torch.allclose(net.features(y), expected, atol=1e-13, rtol=1e-12)
    assert torch.allclose(net.path(y)[-1], expected, atol=1e-13, rtol=1e-12)
    assert net.path(y).shape == (8, 5, 4)


@each
@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 6), half=st.integers(1, 3), layers=st.integers(1, 5))
def test_samples_do_not_see_each_other(name, batch, half, layers):
    net = network(name, layers=layers, width=2 * half)
    y = torch.randn(batch, 2, generator=torch.Generator().manual_seed(batch))
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(half))
    assert torch.allclose(net(y)[order], net(y[order]), atol=1e-12)


@each_reversible
def test_the_inverse_undoes_every_layer(name, generator):
    net = network(name, layers=20)
    y = torch.randn(5, 2, generator=generator)
    states = list(net.states(y))
    for there, back in zip(states, reversed(list(net.reversed_states(states[-1]))), strict=True):
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(there, back, strict=True))


@each_reversible
def test_gradients_without_stored_features_are_the_same(name, generator):
    net, frugal = network(name), network(name, reverse=True)
    y = torch.randn(5, 2, generator=generator, requires_grad=True)
    stored = torch.autograd.grad(net(y).square().sum(), [y, *net.parameters()])
    inverted = torch.autograd.grad(frugal(y).square().sum(), [y, *frugal.parameters()])
    for a, b in zip(stored, inverted, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["hamiltonian", "two-layer hamiltonian"])
def test_hamiltonian_layers_are_symplectic(name, generator):
    net = network(name)
    if name == "hamiltonian":  # ẏ = ∇_z S(z) and ż = −∇_y S(y) only where K is symmetric …
        net.K.data = torch.eye(2).expand(7, 2, 2) * net.K[:, :1, :1]  # … and acts on each entry
    J = torch.cat([torch.cat([torch.zeros(2, 2), torch.eye(2)], 1)] * 2)
    J[2:] = torch.cat([-torch.eye(2), torch.zeros(2, 2)], 1)
    net.K_in.data = torch.eye(4)
    u = torch.randn(4, generator=generator)
    D = torch.autograd.functional.jacobian(lambda u: net.features(u[None])[0], u)
    assert torch.allclose(D.T @ J @ D, J, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("resnet", 1),
        ("antisymmetric", 1),
        ("parabolic", 1),
        ("hamiltonian", 1),
        ("two-layer hamiltonian", 1),
        ("midpoint", 2),
    ],
)
def test_features_converge_to_the_solution_of_the_equation(name, order, generator):
    y = torch.randn(5, 2, generator=generator)
    coarse = network(name, layers=1)
    coarse.K_in.data = torch.eye(4, 2)
    exact = integrate(coarse.velocity, y @ coarse.K_in.T, 0.0, 1.0, steps=400)
    sizes = [64, 128, 256]
    errors = [float((coarse.refined(n).features(y) - exact).detach().norm()) for n in sizes]
    assert observed_orders(errors, [1 / n for n in sizes])[-1] == pytest.approx(order, abs=0.06)


def test_leapfrog_solves_the_second_order_equation(generator):
    y = torch.randn(5, 2, generator=generator)
    coarse = network("leapfrog", layers=1)
    coarse.K_in.data = torch.eye(4, 2)
    u = y @ coarse.K_in.T
    motion = lambda t, s: (s[1], coarse.velocity(t, s[0]))  # noqa: E731
    exact = integrate(motion, (u, torch.zeros_like(u)), 0.0, 1.0, steps=400)[0]
    sizes = [64, 128, 256]
    errors = [float((coarse.refined(n).features(y) - exact).detach().norm()) for n in sizes]
    # u₋₁ = u₀ is half a step of the force away from rest, hence order one
    assert observed_orders(errors, [1 / n for n in sizes])[-1] == pytest.approx(1, abs=0.06)


def test_antisymmetric_weights_have_eigenvalues_of_real_part_minus_gamma(generator):
    matrix = antisymmetric_field(0.3).matrix
    eigenvalues = torch.linalg.eigvals(matrix(torch.randn(6, 5, 5, generator=generator)))
    assert torch.allclose(eigenvalues.real, torch.full((6, 5), -0.3), atol=1e-13)


def test_parabolic_layers_contract(generator):
    net = network("parabolic", layers=50, horizon=1.0)
    net.K_in.data = torch.eye(4, 2)
    net.K.data *= 0.5
    a, b = torch.randn(2, 9, 2, generator=generator)
    distance = (net.path(a) - net.path(b)).norm(dim=-1)
    assert bool((distance.diff(dim=0) <= 1e-15).all())


def test_multistep_without_memory_is_a_resnet(generator):
    net = network("multistep")
    net.kappa.data.zero_()
    plain = network("resnet")
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k != "kappa"})
    y = torch.randn(5, 2, generator=generator)
    assert torch.allclose(net(y), plain(y), atol=1e-12)


@each
def test_refining_keeps_the_nodes_of_the_control(name):
    net = network(name)
    finer = net.refined(28)
    assert (finer.layers, finer.h) == (28, net.h / 4)
    for coarse, fine in zip(net.theta, finer.theta, strict=True):
        assert torch.equal(fine[::4], coarse)
    assert net.refined(7).h == net.h
    assert net.layers == 7


@pytest.mark.parametrize("layers", [1, 6, 8, 21, 100])
def test_refining_wants_a_power_of_two(layers):
    with pytest.raises(ValueError, match=f"layers={layers} must be 7 times a power of"):
        network("resnet").refined(layers)
    with pytest.raises(ValueError, match="at least 1, got layers=0"):
        network("resnet").refined(0)


@pytest.mark.parametrize("name", ["hamiltonian", "two-layer hamiltonian"])
def test_an_odd_width_is_refused(name):
    with pytest.raises(ValueError, match="width=3 must be even: take 4"):
        ResNet(2, 1, width=3, layers=2, architecture=ALL[name])


@pytest.mark.parametrize(
    ("gamma", "reason"),
    [(-1e-3, "must be ≥ 0"), (math.nan, "gamma must be a number, got nan")],
)
def test_a_negative_gamma_is_refused(gamma, reason):
    with pytest.raises(ValueError, match=reason):
        antisymmetric_field(gamma)


@pytest.mark.parametrize("name", [n for n in ALL if n not in REVERSIBLE])
def test_reversing_what_has_no_inverse_is_refused(name):
    with pytest.raises(ValueError, match="choose a Hamiltonian, leapfrog or midpoint"):
        ResNet(2, 1, width=4, layers=2, architecture=ALL[name], reverse=True)
    with pytest.raises(ValueError, match="choose a Hamiltonian, leapfrog or midpoint"):
        list(network(name).reversed_states((torch.zeros(1, 4),)))


def test_plain_layers_start_with_weights_of_their_own():
    net = ResNet(2, 1, width=3, layers=4, architecture=PLAIN)
    assert not torch.equal(net.K[0], net.K[1])
