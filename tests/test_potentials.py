import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import hessian, vmap

from ctdl_lib.calculus import taylor_errors
from ctdl_lib.metrics import observed_orders
from ctdl_lib.potentials import AutodiffPotential, ResNetPotential


class AsNet(nn.Module):
    """A closed-form potential as a black box net(t, x[, y])."""

    def __init__(self, phi):
        super().__init__()
        self.phi = phi

    def forward(self, t, x, y=None):
        return (self.phi if y is None else self.phi.given(y))(t, x)


class Convolutional(nn.Module):
    """A small network on fields."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3 * 16, 1)

    def forward(self, t, x):
        return self.out(torch.tanh(self.conv(x)).flatten(1)) * (1 + t[:, None] ** 2)


def randomized(d, **options):
    phi = ResNetPotential(d, **options)
    for p in phi.parameters():
        nn.init.normal_(p, std=0.5)
    return phi


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("d", [1, 3, 12])
def test_closed_form_equals_automatic_differentiation(d, layers, context_dim):
    phi = randomized(d, width=8, layers=layers, context_dim=context_dim)
    x, t = torch.randn(5, d), torch.rand(5)
    auto = AutodiffPotential(AsNet(phi))
    if context_dim:
        y = torch.randn(5, context_dim)
        phi, auto = phi.given(y), auto.given(y)
    for sigma in (None, 0.3, torch.randn(d, 2), torch.randn(d, 20)):
        for ours, theirs in zip(
            phi.derivatives(t, x, sigma), auto.derivatives(t, x, sigma), strict=True
        ):
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(phi.gradient(t, x), auto.gradient(t, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [None, 0.7])
def test_second_derivatives_equal_the_hessian_of_torch_func(sigma):
    phi = randomized(3, width=6, layers=3)
    x, t = torch.randn(4, 3), torch.tensor(0.4)
    H = vmap(hessian(lambda x: phi(t, x[None])[0]))(x)
    found = phi.derivatives(t, x, sigma)
    assert torch.allclose(found.laplacian, H.diagonal(dim1=1, dim2=2).sum(-1) * (sigma or 1.0) ** 2)


def test_trace_with_a_matrix_equals_that_of_the_full_hessian():
    phi, sigma = randomized(3, width=6, layers=3), torch.randn(3, 2)
    x = torch.randn(4, 3)
    H = vmap(hessian(lambda x: phi(0.4, x[None])[0]))(x)
    trace = torch.einsum("ik,bij,jk->b", sigma, H, sigma)
    assert torch.allclose(phi.derivatives(0.4, x, sigma).laplacian, trace)


def test_derivatives_pass_the_taylor_test():
    phi = randomized(3, width=8, layers=3)
    x, dx = torch.randn(5, 3), torch.randn(5, 3)
    errors = taylor_errors(
        lambda x: phi(0.2, x), lambda x, dx: (phi.gradient(0.2, x).dx * dx).sum(-1), x, dx
    )
    assert observed_orders(errors.first.tolist(), errors.h.tolist())[-1] == pytest.approx(
        2, abs=0.1
    )
    in_time = taylor_errors(
        lambda t: phi(t, x),
        lambda t, dt: phi.gradient(t, x).dt * dt,
        torch.tensor(0.2),
        torch.tensor(1.0),
    )
    assert observed_orders(in_time.first.tolist(), in_time.h.tolist())[-1] == pytest.approx(
        2, abs=0.1
    )


@pytest.mark.parametrize("d", [3, 12])
def test_parameter_gradients_of_every_derivative_agree(d):
    phi = randomized(d, width=6, layers=3)
    auto, x = AutodiffPotential(AsNet(phi)), torch.randn(5, d)
    for name in ("value", "dt", "dx", "laplacian"):
        found = []
        for potential in (phi, auto):
            phi.zero_grad()
            getattr(potential.derivatives(0.3, x), name).square().sum().backward()
            found.append(
                torch.cat(
                    [
                        torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
                        for p in phi.parameters()
                    ]
                )
            )
        assert torch.allclose(found[0], found[1], rtol=1e-8, atol=1e-8), name


def test_potentials_on_fields_keep_the_shape_of_the_field():
    phi, x = AutodiffPotential(Convolutional()), torch.randn(2, 1, 4, 4)
    found = phi.derivatives(0.5, x)
    assert found.dx.shape == x.shape
    H = vmap(hessian(lambda x: phi(0.5, x[None])[0]))(x).reshape(2, 16, 16)
    assert torch.allclose(found.laplacian, H.diagonal(dim1=1, dim2=2).sum(-1))


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 7), d=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_a_permuted_batch_has_permuted_derivatives(batch, d, width, seed):
    generator = torch.Generator().manual_seed(seed)
    phi = ResNetPotential(d, width=width, generator=generator)
    x = torch.randn(batch, d, generator=generator)
    order = torch.randperm(batch, generator=generator)
    for whole, part in zip(phi.derivatives(0.1, x), phi.derivatives(0.1, x[order]), strict=True):
        assert torch.allclose(whole[order], part)
        assert whole.dtype == x.dtype


def test_given_binds_a_context_and_leaves_the_potential_alone():
    phi = ResNetPotential(2, context_dim=3, width=8)
    y = torch.randn(5, 3)
    bound = phi.given(y)
    assert phi.context is None
    assert bound.K0 is phi.K0
    bound(0.0, torch.randn(5, 2)).sum().backward()
    assert phi.K0.grad.norm() > 0


def test_the_activation_does_not_overflow():
    phi = randomized(2, width=4)
    assert phi.derivatives(0.0, 1e6 * torch.ones(1, 2)).value.isfinite().all()


BAD = {
    "no context": (lambda: ResNetPotential(2, context_dim=1)(0.0, torch.ones(3, 2)), "given"),
    "a context too many": (
        lambda: ResNetPotential(2).given(torch.ones(3, 1))(0.0, torch.ones(3, 2)),
        "context_dim=0",
    ),
    "wrong context": (
        lambda: ResNetPotential(2, context_dim=2).given(torch.ones(3, 1))(0.0, torch.ones(3, 2)),
        r"shape \(3, 2\)",
    ),
    "wrong d": (lambda: ResNetPotential(2)(0.0, torch.ones(3, 4)), r"\(batch, 2\)"),
    "no layers": (lambda: ResNetPotential(2, layers=0), "at least 1"),
    "a vector": (
        lambda: AutodiffPotential(lambda_net())(0.0, torch.ones(3, 2)),
        "one value a sample",
    ),
}


def lambda_net():
    class Identity(nn.Module):
        def forward(self, t, x):
            return x

    return Identity()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
