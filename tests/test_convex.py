"""Partially input convex potentials and the maps that are their gradients."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.func import hessian, jacrev, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ctdl_lib.dynamics import taylor_errors
from ctdl_lib.generative import ConvexMap
from ctdl_lib.metrics import observed_orders
from ctdl_lib.potentials import ConvexPotential


def potential(d=3, context_dim=2, layers=3, width=7, seed=1):
    g = torch.Generator().manual_seed(seed)
    return ConvexPotential(d, context_dim=context_dim, width=width, layers=layers, generator=g)


def convex_map(d=3, context_dim=2, layers=3, tol=1e-11, **others):
    G = potential(d, context_dim, layers, **others)
    return ConvexMap(G, d, context_dim=context_dim, tol=tol, standardize=False)


def bound(found, y):
    return found if y is None else found.given(y)


SHAPES = [(1, 0, 1), (1, 2, 2), (3, 0, 3), (3, 2, 1), (4, 9, 2), (4, 2, 4)]
each_shape = pytest.mark.parametrize(("d", "context_dim", "layers"), SHAPES)


def example(generator, d, context_dim, n=6):
    y = torch.randn(n, context_dim, generator=generator) if context_dim else None
    return 2 * torch.randn(n, d, generator=generator), y


def single(G, x, y):
    return G(x[None], None if y is None else y[None])[0]


# --- the potential ------------------------------------------------------------------------------


def test_the_potential_is_its_formula(generator):
    G = potential(layers=2)
    x, y = example(generator, 3, 2)
    softplus = torch.nn.functional.softplus
    v1 = torch.nn.functional.elu(y @ G.V[0].weight.T + G.V[0].bias)
    affine = [
        (x * (v @ B.weight.T + B.bias)) @ X.weight.T + X.bias + v @ C.weight.T + C.bias
        for v, X, B, C in zip((y, v1), G.X, G.B, G.C, strict=True)
    ]
    u1 = softplus(affine[0])
    gate = softplus(v1 @ G.A[0].weight.T + G.A[0].bias)
    u2 = softplus((u1 * gate) @ softplus(G.W[0]).T / 7 + affine[1])
    value = u2 @ softplus(G.w) / 7 + 0.5 * softplus(G.a) * (x * x).sum(1)
    assert torch.allclose(G(x, y), value)


@given(seed=st.integers(0, 999), share=st.floats(0, 1), layers=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_the_potential_is_convex_in_x(seed, share, layers):
    generator = torch.Generator().manual_seed(seed)
    G = potential(layers=layers, seed=seed)
    a, y = example(generator, 3, 2, n=50)
    b = 5 * torch.randn(50, 3, generator=generator)
    chord = share * G(a, y) + (1 - share) * G(b, y)
    # and by at least as much as the quadratic alone
    modulus = torch.nn.functional.softplus(G.a).item()
    below = 0.5 * modulus * share * (1 - share) * (a - b).square().sum(1)
    assert (G(share * a + (1 - share) * b, y) <= chord - below + 1e-12).all()


@each_shape
def test_gradient_and_hessian_are_those_of_automatic_differentiation(
    d, context_dim, layers, generator
):
    found = convex_map(d, context_dim, layers)
    x, y = example(generator, d, context_dim)
    of_one = partial(single, found.potential)
    rows = (0, None if y is None else 0)
    H = vmap(hessian(of_one), in_dims=rows)(x, y)
    z, log_det = bound(found, y).transform(x)
    assert torch.allclose(z, vmap(jacrev(of_one), in_dims=rows)(x, y), atol=1e-12)
    assert torch.allclose(log_det, torch.logdet(H), atol=1e-10)
    assert torch.linalg.eigvalsh(H).min() > 0


# --- the map ------------------------------------------------------------------------------------


@each_shape
def test_newtons_inverse_inverts(d, context_dim, layers, generator):
    found = convex_map(d, context_dim, layers)
    _, y = example(generator, d, context_dim)
    z = torch.randn(6, d, generator=generator) * torch.tensor([0.1, 1, 3, 9, 30, 300])[:, None]
    found = bound(found, y)
    assert torch.allclose(found(found.inverse(z)), z, atol=1e-10)


def test_the_inverse_is_the_minimiser_that_scipy_finds(generator):
    found = convex_map().given(torch.ones(1, 2))
    z = torch.randn(1, 3, generator=generator)

    def objective(x):
        x = torch.tensor(x)[None]
        value = found.potential(x, found.context) - (z * x).sum()
        return float(value.detach()), (found(x) - z)[0].detach().numpy()

    theirs = minimize(objective, torch.zeros(3).numpy(), jac=True, method="BFGS", tol=1e-9)
    assert torch.allclose(found.inverse(z)[0], torch.tensor(theirs.x), atol=1e-7)


def test_a_looser_tolerance_costs_less_and_errs_more(generator, monkeypatch):
    z = 3 * torch.randn(200, 3, generator=generator)
    exact = convex_map(context_dim=0).inverse(z)
    errors, calls = [], []
    second_order = ConvexMap._second_order

    def counted(*arguments):
        calls[-1] += 1
        return second_order(*arguments)

    monkeypatch.setattr(ConvexMap, "_second_order", counted)
    for tol in (1e-1, 1e-3, 1e-9):
        calls.append(0)
        x = convex_map(context_dim=0, tol=tol).inverse(z)
        errors.append(float((x - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9
    assert calls == sorted(calls)
    assert calls[-1] <= 12  # quadratic convergence


def softplus_is(value):
    return math.log(math.expm1(value))


def quadratic(**others):
    """G = 2‖x‖²."""
    found = convex_map(2, 0, **others)
    with torch.no_grad():
        found.potential.w.fill_(-800.0)  # softplus of it is zero
        found.potential.a.fill_(softplus_is(4.0))
    return found


def test_a_step_that_could_have_been_longer_is_taken():
    found = convex_map(1, 0, layers=1, width=1)
    G = found.potential
    with torch.no_grad():  # a sharp bend at 0, and nearly flat beyond
        G.X[0].weight.fill_(30.0)
        G.X[0].bias.zero_()
        G.w.fill_(softplus_is(0.0167))
        G.a.fill_(softplus_is(0.1))
    z = torch.tensor([[5.0], [-5.0]])
    assert torch.allclose(found(found.inverse(z)), z, atol=1e-10)


def test_what_is_not_finite_has_not_converged():
    with pytest.raises(ValueError, match="z must be finite"):
        quadratic().inverse(torch.tensor([[math.nan, 0.0]]))
    broken = quadratic()
    with torch.no_grad():
        broken.potential.X[0].weight.fill_(math.nan)
    with pytest.raises(ArithmeticError, match="off by nan"):
        broken.sample(3, torch.Generator())


def test_one_step_suffices_for_a_quadratic():
    z = torch.tensor([[3.0, -1.0]])
    assert torch.allclose(quadratic().inverse(z, steps=1), z / 4)


def test_of_the_quadratic_alone_the_density_is_normal(generator):
    found = quadratic()
    x = torch.randn(5, 2, generator=generator)
    known = torch.distributions.Normal(0.0, 0.25).log_prob(x).sum(1)
    assert torch.allclose(found.log_prob(x), known)


@torch.no_grad()
def test_the_density_integrates_to_one_for_each_context():
    axis = torch.linspace(-15, 15, 301)
    grid = torch.cartesian_prod(axis, axis)
    for y in (torch.zeros(1, 2), torch.tensor([[1.0, -2.0]])):
        p = convex_map(2).given(y).log_prob(grid).exp()
        assert float(p.sum()) * 0.1**2 == pytest.approx(1.0, abs=1e-6)


def test_single_precision_suffices_and_tails_are_finite(generator):
    x = 1e4 * torch.randn(9, 3, generator=generator)
    found = convex_map(context_dim=0, tol=1e-4).float()
    assert found.log_prob(x.float()).isfinite().all()
    z = 4 * torch.randn(500, 3, generator=generator).float()
    assert (found(found.inverse(z)) - z).abs().max() < 2e-4


def test_the_likelihood_has_the_right_gradient(generator):
    found = convex_map()
    x, y = example(generator, 3, 2)
    parameters = list(found.parameters())
    grads = torch.autograd.grad(found.given(y).log_prob(x).mean(), parameters)
    slope = torch.cat([g.flatten() for g in grads])
    theta = parameters_to_vector(parameters).detach()

    @torch.no_grad()
    def at(theta):
        vector_to_parameters(theta, parameters)
        return found.given(y).log_prob(x).mean()

    direction = torch.randn(len(theta), generator=generator)
    errors = taylor_errors(at, lambda _, d: slope @ d, theta, 0.2 * direction)
    orders = observed_orders(errors.first.tolist(), errors.h.tolist())
    assert orders[-1] == pytest.approx(2, abs=0.1)


# --- bad input ----------------------------------------------------------------------------------

BAD = {
    "no layers": (lambda: potential(layers=0), ValueError, "at least 1, got layers=0"),
    "no dimension": (lambda: potential(d=0), ValueError, "d=0"),
    "no tolerance": (lambda: convex_map(tol=0.0), ValueError, "tol must be positive, got 0.0"),
    "no context": (
        lambda: potential()(torch.zeros(2, 3)),
        ValueError,
        "has a context: give y",
    ),
    "a context too many": (
        lambda: potential(context_dim=0)(torch.zeros(2, 3), torch.zeros(2, 2)),
        ValueError,
        "context_dim=0",
    ),
    "a tolerance below round-off": (
        lambda: convex_map(context_dim=0, tol=1e-30).inverse(torch.ones(2, 3)),
        ArithmeticError,
        "off by .*more than tol=1.0e-30: allow more",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
