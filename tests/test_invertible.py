import math
from inspect import unwrap

import pytest
import torch

from experiments.neural_odes.invertible import (
    Contraction,
    InvertibleResNet,
    inverse,
    log_det,
    log_det_roulette,
    log_det_series,
)
from experiments.stable_architectures.robustness import local_lipschitz


def orthogonal(d, generator):
    return torch.linalg.qr(torch.randn(d, d, generator=generator)).Q


@pytest.mark.parametrize("c", [0.3, 0.9, 0.99])
def test_the_map_is_a_contraction_whatever_its_weights(c, generator):
    g = Contraction(3, width=8, c=c, generator=generator).double()
    for p in g.parameters():
        p.data = 5 * torch.randn(p.shape, generator=generator)
    x = torch.randn(200, 3, generator=generator)
    assert float(local_lipschitz(g, x).max()) <= c * (1 + 1e-12)


def test_the_bound_is_attained_by_a_linear_map(generator):
    g = Contraction(4, width=4, hidden=0, c=0.7).double()
    g.weights[0].data = 3 * orthogonal(4, generator)
    found = local_lipschitz(g, torch.randn(5, 4, generator=generator))
    assert torch.allclose(found, torch.full((5,), 0.7))


def test_small_weights_are_left_alone():
    g = Contraction(2, width=2, hidden=0, c=0.9).double()
    g.weights[0].data = 0.1 * torch.eye(2)
    x = torch.tensor([[1.0, -2.0]])
    assert torch.allclose(g(x), 0.1 * x)


def test_the_error_of_the_inverse_falls_like_powers_of_c_and_is_bounded(generator):
    Q, c = orthogonal(3, generator), 0.8
    g = lambda x: c * x @ Q.T  # noqa: E731
    x = torch.randn(6, 3, generator=generator)
    errors = []
    for n in (10, 11, 12):
        found = inverse(g, x + g(x), c, iterations=n)
        error = (found.x - x).norm(dim=1)
        assert bool((error <= found.error_bound * (1 + 1e-9)).all())
        errors.append(float(error.max()))
    assert errors[1] / errors[0] == pytest.approx(c)
    assert errors[2] / errors[1] == pytest.approx(c)


def test_inverse_after_forward(generator):
    g = Contraction(3, width=8, generator=generator).double()
    x = torch.randn(6, 3, generator=generator)
    assert torch.allclose(inverse(g, x + g(x), g.c, iterations=200).x, x, atol=1e-12)


def probes(d, batch):
    """The d vectors √d eᵢ, over which means are exact: (1/d) Σ εεᵀ = I."""
    return [math.sqrt(d) * torch.eye(d)[i].expand(batch, d) for i in range(d)]


def test_the_series_converges_to_the_logarithm_of_the_determinant(generator):
    g = Contraction(3, width=8, c=0.6, generator=generator).double()
    x = torch.randn(4, 3, generator=generator)
    exact = log_det(g, x).detach()
    for terms in (1, 5, 40):
        estimate = sum(log_det_series(g, x, eps, terms=terms) for eps in probes(3, 4)) / 3
        bound = 3 * 0.6 ** (terms + 1) / ((terms + 1) * 0.4)
        assert bool(((estimate - exact).abs() <= bound).all())


def test_log_det_of_a_linear_map_is_that_of_its_matrix(generator):
    A = 0.5 * orthogonal(3, generator)
    x = torch.randn(4, 3, generator=generator)
    found = log_det(lambda x: x @ A.T, x)
    assert torch.allclose(found, torch.logdet(torch.eye(3) + A).expand(4))


def test_roulette_has_no_bias_where_the_short_series_has_one(generator):
    g = lambda x: 0.8 * x  # noqa: E731 (J = 0.8 I: log det = d log 1.8)
    x, eps = torch.zeros(1, 2), torch.ones(1, 2)
    exact = 2 * math.log(1.8)
    draws = torch.cat(
        [log_det_roulette(g, x, eps, generator, always=1, stop=0.4) for _ in range(8000)]
    )
    standard_error = float(draws.std() / math.sqrt(len(draws)))
    assert abs(float(draws.mean()) - exact) < 4 * standard_error
    short = float(log_det_series(g, x, eps, terms=2))
    assert abs(short - exact) > 10 * standard_error


def test_estimates_are_differentiable_by_the_weights(generator):
    g = Contraction(2, width=4, c=0.5, generator=generator).double()
    x = torch.randn(3, 2, generator=generator)
    exact = torch.autograd.grad(log_det(g, x).sum(), list(g.weights))
    series = sum(log_det_series(g, x, eps, terms=60).sum() for eps in probes(2, 3)) / 2
    for a, b in zip(exact, torch.autograd.grad(series, list(g.weights)), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("c", [0.0, 1.0, 1.5, -0.2, math.nan])
def test_a_constant_outside_of_0_and_1_is_refused(c):
    with pytest.raises(ValueError, match="must lie in"):
        Contraction(2, width=4, c=c)


def test_bad_iterations_are_refused():
    y = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"c=1.0 must lie in \[0, 1\)"):
        inverse(torch.zeros_like, y, 1.0, iterations=3)
    with pytest.raises(ValueError, match="iterations=0 must be at least 1"):
        inverse(torch.zeros_like, y, 0.5, iterations=0)
    for bad in ({"stop": 0.0}, {"stop": 1.0}, {"always": -1}):
        with pytest.raises(ValueError, match="stop must lie in"):
            unwrap(log_det_roulette)(lambda x: x, y, y, torch.Generator(), **bad)


def test_a_stack_of_layers_is_inverted_and_its_determinants_multiply(generator):
    make = lambda: Contraction(2, width=8, c=0.8, generator=generator)  # noqa: E731
    net = InvertibleResNet(make() for _ in range(3)).double()
    x = torch.randn(4, 2, generator=generator)
    z, total = net(x, log_det)
    assert torch.allclose(net.inverse(z, iterations=100), x, atol=1e-9)
    whole = torch.func.vmap(torch.func.jacrev(lambda x: net(x[None], log_det).z[0]))(x)
    assert torch.allclose(torch.linalg.slogdet(whole)[1], total)
