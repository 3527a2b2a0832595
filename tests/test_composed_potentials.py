import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import hessian, vmap

from ctdl_lib.dynamics import taylor_errors
from ctdl_lib.metrics import observed_orders
from ctdl_lib.potentials import AutodiffPotential, PinnedPotential, ResNetPotential, ScaledPotential
from ctdl_lib.potentials.potential import in_blocks


class Summed(nn.Module):
    """known + (T − t) correction as a black box."""

    def __init__(self, phi, horizon):
        super().__init__()
        self.phi, self.horizon = phi, horizon

    def forward(self, t, x):
        return self.phi.known(t, x) + (self.horizon - t) * self.phi.correction(t, x)


class Field(nn.Module):
    """A function of (t, field)."""

    def forward(self, t, x):
        return torch.sin(x.flatten(1)).sum(1) * (1 + t**2) + x[:, 0, 0, 0] * x[:, 0, 1, 1] * t


def randomized(d, **options):
    phi = ResNetPotential(d, width=6, layers=3, **options)
    for p in phi.parameters():
        nn.init.normal_(p, std=0.5)
    return phi


def pinned(d, horizon=1.0):
    return PinnedPotential(randomized(d), randomized(d), horizon=horizon)


@pytest.mark.parametrize("horizon", [1.0, 0.7])
@pytest.mark.parametrize("d", [1, 3])
def test_derivatives_equal_automatic_differentiation(d, horizon):
    phi = pinned(d, horizon)
    auto, x = AutodiffPotential(Summed(phi, horizon)), torch.randn(5, d)
    for t in (0.0, 0.3, horizon, horizon * torch.rand(5), torch.tensor(0.2)):
        for sigma in (None, 0.3, torch.tensor(0.4), torch.randn(d, 2), torch.randn(d, 5)):
            pairs = zip(phi.derivatives(t, x, sigma), auto.derivatives(t, x, sigma), strict=True)
            assert all(
                torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10) for ours, theirs in pairs
            )
        pairs = zip(phi.gradient(t, x), auto.gradient(t, x), strict=True)
        assert all(torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10) for ours, theirs in pairs)
        assert torch.allclose(phi(t, x), auto(t, x))


def test_the_trace_equals_that_of_the_full_hessian():
    phi, sigma, x = pinned(3, 2.0), torch.randn(3, 2), torch.randn(4, 3)
    H = vmap(hessian(lambda x: phi(0.4, x[None])[0]))(x)
    trace = torch.einsum("ik,bij,jk->b", sigma, H, sigma)
    assert torch.allclose(phi.derivatives(0.4, x, sigma).laplacian, trace)


def test_the_derivative_in_time_passes_the_taylor_test():
    phi, x = pinned(3, 1.5), torch.randn(5, 3)
    errors = taylor_errors(
        lambda t: phi(t, x),
        lambda t, dt: phi.gradient(t, x).dt * dt,
        torch.rand(5),
        torch.ones(5),
    )
    orders = observed_orders(errors.first.tolist(), errors.h.tolist())
    assert orders[-1] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("horizon", [1.0, 2.5])
def test_at_the_end_it_is_what_is_known(horizon):
    phi, x = pinned(3, horizon), torch.randn(5, 3)
    assert torch.equal(phi(horizon, x), phi.known(horizon, x))
    ours, known = phi.derivatives(horizon, x, 0.3), phi.known.derivatives(horizon, x, 0.3)
    for name in ("value", "dx", "laplacian"):
        assert torch.equal(getattr(ours, name), getattr(known, name)), name
    change = known.dt - phi.correction(horizon, x)
    assert torch.allclose(ours.dt, change)


def test_without_a_correction_it_is_what_is_known():
    class Nothing(nn.Module):
        def forward(self, t, x):
            return 0 * t * x.sum(1)

    known, x = randomized(3), torch.randn(5, 3)
    phi = PinnedPotential(known, AutodiffPotential(Nothing()))
    for ours, theirs in zip(phi.derivatives(0.3, x), known.derivatives(0.3, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-14)


def test_fields_keep_their_shape():
    phi = PinnedPotential(AutodiffPotential(Field()), AutodiffPotential(Field()), horizon=2.0)
    auto, x = AutodiffPotential(Summed(phi, 2.0)), torch.randn(3, 1, 2, 2)
    ours, theirs = phi.derivatives(0.4, x), auto.derivatives(0.4, x)
    assert ours.dx.shape == x.shape
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


def test_both_parts_learn_and_are_registered():
    phi, x = pinned(2), torch.randn(4, 2)
    phi.derivatives(0.5, x).laplacian.sum().backward()
    assert phi.known.K0.grad.norm() > 0
    assert phi.correction.K0.grad.norm() > 0
    assert len(list(phi.parameters())) == 2 * len(list(phi.known.parameters()))


def test_parameter_gradients_of_every_derivative_agree():
    phi, x = pinned(3, 1.3), torch.randn(5, 3)
    auto = AutodiffPotential(Summed(phi, 1.3))
    for name in ("value", "dt", "dx", "laplacian"):
        found = [
            torch.autograd.grad(
                getattr(potential.derivatives(0.3, x, 0.5), name).square().sum(),
                list(phi.parameters()),
                materialize_grads=True,
            )
            for potential in (phi, auto)
        ]
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-8), name


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 6),
    d=st.integers(1, 4),
    horizon=st.floats(0.1, 10.0),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_permuted_batch_has_permuted_derivatives(batch, d, horizon, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    phi = PinnedPotential(
        ResNetPotential(d, width=4, generator=generator),
        ResNetPotential(d, width=3, generator=generator),
        horizon=horizon,
    ).to(dtype)
    x = torch.randn(batch, d, generator=generator, dtype=dtype)
    t = horizon * torch.rand(batch, generator=generator, dtype=dtype)
    order = torch.randperm(batch, generator=generator)
    parts = zip(phi.derivatives(t, x), phi.derivatives(t[order], x[order]), strict=True)
    for whole, part in parts:
        assert torch.allclose(whole[order], part, rtol=1e-4, atol=1e-4)
        assert whole.dtype == dtype


def test_the_dtype_is_that_of_x_whatever_that_of_t():
    phi, x = pinned(2).float(), torch.randn(4, 2, dtype=torch.float32)
    t = torch.full((4,), 0.3, dtype=torch.float64)
    for part in (phi(t, x), *phi.gradient(t, x), *phi.derivatives(t, x)):
        assert part.dtype == torch.float32


def test_a_context_reaches_the_parts():
    parts = [randomized(2, context_dim=1) for _ in range(2)]
    phi, x, y = PinnedPotential(*parts, horizon=2.0), torch.randn(4, 2), torch.randn(4, 1)
    known, correction = (part.given(y)(0.5, x) for part in parts)
    assert torch.allclose(phi.given(y)(0.5, x), known + 1.5 * correction)


def test_a_part_that_does_not_fit_says_so():
    phi = PinnedPotential(ResNetPotential(2), ResNetPotential(3))
    with pytest.raises(ValueError, match=r"\(batch, 3\)"):
        phi(0.0, torch.ones(4, 2))


@pytest.mark.parametrize("layer", [None, 0.05])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("sigma", [None, 0.3, torch.tensor([[0.2], [-0.5], [1.0]])])
def test_scaled_potentials_differentiate_like_any_other(sigma, context_dim, layer, generator):
    inner = ResNetPotential(3, width=5, context_dim=context_dim, generator=generator)
    center, unit = torch.randn(2, 3, generator=generator)
    frame = {"height": 3.0, "center": center, "unit": 0.5 + unit.abs()}
    phi = ScaledPotential(inner, **frame, layer=layer, horizon=2.0)

    class AsNet(nn.Module):
        def forward(self, t, x, *y):
            bound = inner.given(*y) if y else inner
            if layer:
                t = 1 - torch.log((2 - t + layer) / layer) / math.log((2 + layer) / layer)
            return 3 * bound(t, (x - center) / (0.5 + unit.abs()))

    auto, x, t = AutodiffPotential(AsNet()), torch.randn(4, 3, generator=generator), torch.rand(4)
    if context_dim:
        y = torch.randn(4, 2, generator=generator)
        phi, auto = phi.given(y), auto.given(y)
    found, known = phi.derivatives(t, x, sigma), auto.derivatives(t, x, sigma)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(found, known, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(phi.gradient(t, x), found[:3], strict=True))
    assert torch.allclose(phi(t, x), found.value)


def test_units_and_layers_must_be_positive():
    frame = {"height": 1.0, "center": torch.zeros(2)}
    with pytest.raises(ValueError, match="unit must be positive"):
        ScaledPotential(ResNetPotential(2), unit=torch.zeros(2), **frame)
    with pytest.raises(ValueError, match=r"layer=0.0 must be positive"):
        ScaledPotential(ResNetPotential(2), unit=torch.ones(2), layer=0.0, **frame)


@pytest.mark.parametrize("points", [5, 1024, 2500])
def test_many_points_are_evaluated_as_if_at_once(points, generator):
    phi = ResNetPotential(2, width=4, generator=generator).double()
    t, x = torch.rand(points, generator=generator), torch.randn(points, 2, generator=generator)
    for evaluate in (phi.gradient, phi.derivatives):
        found, known = in_blocks(evaluate, t, x), evaluate(t, x)
        assert type(found) is type(known)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, known, strict=True))
        slopes = [torch.autograd.grad(p.dx.square().sum(), phi.K0)[0] for p in (found, known)]
        assert torch.allclose(*slopes)
