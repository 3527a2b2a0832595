import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import hessian, vmap

from benchmarks.potentials import PlainPotential
from ctdl_lib.dynamics import taylor_errors
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


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@pytest.mark.parametrize("d", [1, 2, 7, 16, 64])
def test_wide_and_narrow_networks_equal_torch_func(d, layers, context_dim):
    phi = randomized(d, width=12, layers=layers, context_dim=context_dim)
    for p in phi.parameters():
        p.data /= d**0.5
    x, t = torch.randn(3, d), torch.rand(3)
    auto = AutodiffPotential(AsNet(phi))
    if context_dim:
        y = torch.randn(3, context_dim)
        phi, auto = phi.given(y), auto.given(y)
    for ours, theirs in zip(phi.derivatives(t, x), auto.derivatives(t, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def parameter_gradients(potential, phi, x, weights):
    found = potential.derivatives(0.3, x)
    total = sum((w * part).sum() for w, part in zip(weights, found, strict=True))
    inputs = (*phi.parameters(), x)
    return torch.autograd.grad(total, inputs, materialize_grads=True)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize(("d", "width"), [(3, 6), (6, 6), (20, 6)])
def test_gradients_of_a_random_combination_agree(d, width, layers):
    phi, x = randomized(d, width=width, layers=layers), torch.randn(5, d, requires_grad=True)
    weights = [torch.randn(5), torch.randn(5), torch.randn(5, d), torch.randn(5)]
    auto = AutodiffPotential(AsNet(phi))
    ours = parameter_gradients(phi, phi, x, weights)
    for a, b in zip(ours, parameter_gradients(auto, phi, x, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("d", [3, 20])
def test_a_rank_deficient_first_layer_has_the_right_gradients(d):
    phi, x = randomized(d, width=6, layers=3), torch.randn(5, d, requires_grad=True)
    phi.K0.data[1] = phi.K0.data[0]
    phi.K0.data[2] = 0
    weights = [torch.randn(5), torch.randn(5), torch.randn(5, d), torch.randn(5)]
    auto = AutodiffPotential(AsNet(phi))
    ours = parameter_gradients(phi, phi, x, weights)
    for a, b in zip(ours, parameter_gradients(auto, phi, x, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8)


def functional_laplacian(phi):
    """The sum of the Laplacians as a function of K₀, K and x."""

    def laplacian(K0, K, x):
        changed = {"K0": K0, "K": K}
        return torch.func.functional_call(
            Laplacian(phi), {f"phi.{k}": v for k, v in changed.items()}, (x,)
        )

    return laplacian


class Laplacian(nn.Module):
    def __init__(self, phi):
        super().__init__()
        self.phi = phi

    def forward(self, x):
        return self.phi.derivatives(0.3, x).laplacian.sum()


@pytest.mark.parametrize(("d", "width"), [(2, 3), (4, 2)])
def test_the_laplacian_can_be_differentiated_twice(d, width):
    phi = randomized(d, width=width, layers=3)
    inputs = (phi.K0.detach(), phi.K.detach(), torch.randn(2, d))
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(functional_laplacian(phi), inputs)
    assert torch.autograd.gradgradcheck(functional_laplacian(phi), inputs)


@pytest.mark.parametrize("d", [3, 9])
def test_transforms_of_torch_func_see_through_the_laplacian(d):
    phi = randomized(d, width=5, layers=3)
    f, inputs = functional_laplacian(phi), (phi.K0.detach(), phi.K.detach(), torch.randn(4, d))
    leaf = phi.K0.detach().requires_grad_()
    (expected,) = torch.autograd.grad(f(leaf, *inputs[1:]), leaf)
    assert torch.allclose(torch.func.grad(f)(*inputs), expected)
    tangent = torch.randn_like(leaf)
    along = torch.func.jvp(lambda K0: f(K0, *inputs[1:]), (inputs[0],), (tangent,))[1]
    assert torch.allclose(along, (expected * tangent).sum())
    each = vmap(lambda x: f(*inputs[:2], x[None]))(inputs[2])
    assert torch.allclose(each.sum(), f(*inputs))
    each = vmap(torch.func.grad(lambda K0, x: f(K0, inputs[1], x[None])), (None, 0))
    assert torch.allclose(each(inputs[0], inputs[2]).sum(0), expected)


def test_single_precision_is_close_to_double():
    phi, x = ResNetPotential(7, width=16, layers=3), torch.randn(5, 7)
    exact = phi.derivatives(0.3, x)
    for ours, theirs in zip(phi.float().derivatives(0.3, x.float()), exact, strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5)


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
    "no layers": (lambda: ResNetPotential(2, layers=0), "at least 1, got layers=0"),
    "a vector": (
        lambda: AutodiffPotential(lambda_net())(0.0, torch.ones(3, 2)),
        "one value per sample",
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


def test_the_plain_version_of_the_benchmarks_computes_the_same():
    phi, x = randomized(3, width=6, layers=3), torch.randn(5, 3)
    pairs = zip(phi.derivatives(0.3, x), PlainPotential(phi).derivatives(0.3, x), strict=True)
    assert all(torch.allclose(ours, plain, rtol=1e-12, atol=1e-12) for ours, plain in pairs)
