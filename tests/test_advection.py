import math
from functools import partial
from inspect import unwrap
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ctdl_lib.dynamics import divergence, integrate
from ctdl_lib.metrics import observed_orders
from ctdl_lib.networks import ResNet
from ctdl_lib.references.advection import (
    Grid,
    characteristics,
    continuity,
    interpolate,
    semi_lagrangian,
    upwind,
)

SPIN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
schemes = pytest.mark.parametrize("scheme", [semi_lagrangian, upwind])


def box(nodes, d=2, half=1.0):
    return Grid((-half,) * d, (half,) * d, nodes)


def on(grid, f):
    """The values of f on the grid."""
    return f(grid.points()).reshape(grid.shape)


def within(grid, half):
    return (grid.points().abs() <= half).all(-1).reshape(grid.shape)


def largest(difference):
    return difference.abs().max().item()


def rotation(t, x):
    return x @ SPIN.T


def swirl(t, x):
    return torch.stack([-x[:, 1].tanh() * math.cos(math.pi * t), x[:, 0].tanh()], 1)


def bump(x):
    return (-((x[:, 0] - 0.3) ** 2) - 2 * x[:, 1] ** 2).exp()


# --- the grid and its cubics ------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_nodes_and_faces_are_where_they_are_said_to_be(d):
    grid = Grid((-1.0,) * d, tuple(range(1, d + 1)), 5)
    x = grid.points().reshape(*grid.shape, d)
    for axis, h in enumerate(grid.spacing):
        assert torch.allclose(x[..., axis].diff(dim=axis), torch.tensor(h), atol=1e-14)
        halfway = (x.narrow(axis, 0, 4) + x.narrow(axis, 1, 4)) / 2
        assert torch.allclose(grid.faces(axis).reshape(halfway.shape), halfway, atol=1e-14)
    assert x.reshape(-1, d)[0].tolist() == [-1.0] * d
    assert x.reshape(-1, d)[-1].tolist() == list(range(1, d + 1))


def test_interpolation_is_exact_for_cubics_up_to_the_rim(generator):
    grid = Grid((-1.0, 0.0), (1.0, 3.0), 6)
    coefficients = torch.randn(4, 4, generator=generator)

    def cubic(x):
        powers = x[:, :, None] ** torch.arange(4)
        return torch.einsum("bi,ij,bj->b", powers[:, 0], coefficients, powers[:, 1])

    x = torch.rand(200, 2, generator=generator) * torch.tensor([2.0, 3.0]) - torch.tensor([1.0, 0])
    assert torch.allclose(interpolate(on(grid, cubic), grid, x), cubic(x), atol=1e-12)
    at_nodes = interpolate(on(grid, cubic), grid, grid.points())
    assert torch.allclose(at_nodes, cubic(grid.points()), atol=1e-12)


def test_interpolation_has_order_four(generator):
    x = 2 * torch.rand(2000, 2, generator=generator) - 1
    errors = [largest(interpolate(on(box(m), bump), box(m), x) - bump(x)) for m in (17, 33, 65)]
    assert observed_orders(errors, [4, 2, 1])[-1] == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_beyond_the_box_interpolation_goes_on_linearly(d, generator):
    slope = torch.randn(d, generator=generator)
    x = 6 * torch.rand(300, d, generator=generator) - 3  # up to the width of the box outside
    values = interpolate(on(box(5, d), lambda x: x @ slope + 1), box(5, d), x)
    assert torch.allclose(values, x @ slope + 1, atol=1e-13)


# --- closed forms -----------------------------------------------------------------------------


@schemes
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("times", [(0.0, 0.7), (0.7, 0.0)])
def test_linear_functions_in_a_constant_wind_are_exact(scheme, d, times, generator):
    wind, slope = torch.randn(2, d, generator=generator)
    grid, (t0, t1) = box(9, d), times
    u = on(grid, lambda x: x @ slope + 1)
    moved = scheme(lambda t, x: wind.expand_as(x), u, grid, t0, t1, steps=40)
    assert torch.allclose(moved, u - (t1 - t0) * wind @ slope, atol=1e-13)


@schemes
@pytest.mark.parametrize("v", [rotation, swirl])
def test_constants_stay_constant(scheme, v):
    u = torch.full((17, 17), 3.0)
    assert torch.allclose(scheme(v, u, box(17), 1.0, 0.0, steps=30), u, atol=1e-13)


def test_semi_lagrangian_of_linear_u_in_a_linear_field_is_the_matrix_of_the_method(generator):
    slope, grid = torch.randn(2, generator=generator), box(9)

    def u(x):
        return x @ slope

    moved = semi_lagrangian(rotation, on(grid, u), grid, 0.0, 0.4, steps=5)
    traced = characteristics(rotation, u, grid.points(), 0.0, 0.4, steps=5, method="midpoint")
    assert torch.allclose(moved, traced.reshape(grid.shape), atol=1e-12)


@pytest.mark.parametrize(("scheme", "order"), [(semi_lagrangian, 2), (upwind, 1)])
def test_a_rotated_bump_converges_with_the_order_of_the_scheme(scheme, order):
    errors, angle = [], math.pi / 3
    back = torch.linalg.matrix_exp(-angle * SPIN)
    for m in (33, 65, 129):
        grid = box(m, half=2.0)
        steps = (m - 1) // 8 if scheme is semi_lagrangian else 2 * (m - 1)
        moved = scheme(rotation, on(grid, bump), grid, 0.0, angle, steps=steps)
        error = moved - on(grid, lambda x: bump(x @ back.T))
        errors.append(largest(error[within(grid, 1.0)]))
    assert observed_orders(errors, [4, 2, 1])[-1] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("scheme", [semi_lagrangian, upwind])
def test_a_shear_leaves_its_closed_form(scheme):
    def wind(t, x):
        return torch.stack([x[:, 1], torch.zeros_like(x[:, 1])], 1)

    errors = []
    for m in (65, 129):
        grid = box(m, half=2.0)
        sheared = on(grid, lambda x: bump(torch.stack([x[:, 0] - 0.5 * x[:, 1], x[:, 1]], 1)))
        moved = scheme(wind, on(grid, bump), grid, 0.0, 0.5, steps=m - 1)
        errors.append(largest((moved - sheared)[within(grid, 1.0)]))
    # a shear is traced without error, so that only the order 4 − 1 of interpolation remains
    order = 3 if scheme is semi_lagrangian else 1
    assert observed_orders(errors, [2, 1])[0] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("scheme", "order"), [(semi_lagrangian, 2), (upwind, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_both_schemes_approach_the_characteristics_of_a_changing_field(scheme, order, seed):
    slope = torch.randn(2, generator=torch.Generator().manual_seed(seed))
    u, errors = lambda x: x @ slope + 0.2, []
    for m in (33, 65, 129):
        grid = box(m, half=3.0)
        exact = characteristics(swirl, u, grid.points(), 1.0, 0.0, steps=100).reshape(grid.shape)
        steps = (m - 1) // 4 if scheme is semi_lagrangian else m - 1
        moved = scheme(swirl, on(grid, u), grid, 1.0, 0.0, steps=steps)
        errors.append(largest((moved - exact)[within(grid, 1.5)]))
    assert observed_orders(errors, [4, 2, 1])[-1] == pytest.approx(order, abs=0.15)


def test_upwind_at_cfl_number_one_moves_values_by_exactly_one_node(generator):
    grid = Grid((0.0,), (8.0,), 9)
    u = torch.randn(9, generator=generator)
    moved = upwind(lambda t, x: torch.ones_like(x), u, grid, 0.0, 3.0, steps=3)
    assert torch.allclose(moved[4:], u[1:-3], atol=1e-14)
    back = upwind(lambda t, x: torch.ones_like(x), u, grid, 3.0, 0.0, steps=3)
    assert torch.allclose(back[:-4], u[3:-1], atol=1e-14)


def test_upwind_obeys_the_maximum_principle_and_cubics_do_not(generator):
    def cell(t, x):  # tangential on the boundary, so that no characteristic enters
        a, b = (math.pi * (x + 1) / 2).unbind(1)
        return torch.stack([a.sin() * b.cos(), -a.cos() * b.sin()], 1)

    u = torch.randint(2, (33, 33), generator=generator).double()
    moved = upwind(cell, u, box(33), 0.0, 1.0, steps=40)
    assert moved.min() >= -1e-14
    assert moved.max() <= 1 + 1e-14
    assert semi_lagrangian(cell, u, box(33), 0.0, 1.0, steps=10).max() > 1.01


def test_characteristics_are_integrate_and_a_function(generator):
    x = torch.randn(5, 2, generator=generator)
    expected = bump(integrate(swirl, x, 1.0, 0.0, steps=7))
    assert torch.equal(characteristics(swirl, bump, x, 0.0, 1.0, steps=7), expected)


def test_euler_along_characteristics_is_the_resnet(generator):
    net = ResNet(2, 1, width=2, layers=12, horizon=2.0, scale=0.5, generator=generator)

    def score(x):
        return x @ net.K_out.T + net.b_out

    y, times = torch.randn(20, 2, generator=generator), (net.horizon, 0.0)
    euler = partial(semi_lagrangian, net.velocity, steps=net.layers, method="euler")
    with torch.no_grad():
        traced = characteristics(net.velocity, score, y, *times, steps=net.layers, method="euler")
        assert torch.allclose(traced, net(y), atol=1e-14)
        # with Euler's feet the grid approaches the network itself, as fast as its cubics allow
        errors = []
        for m in (65, 129, 257):
            grid = box(m, half=3.0)
            moved = euler(on(grid, score), grid, *times)
            errors.append(largest((moved - on(grid, net))[within(grid, 1.0)]))
    assert observed_orders(errors, [4, 2, 1])[-1] == pytest.approx(4, abs=0.5)


# --- the continuity equation ------------------------------------------------------------------


class Moving(NamedTuple):
    x: Tensor
    log_det: Tensor


def density(v, rho, x, t0, t1, steps):
    """The density ρ(t₁, x) = ρ(t₀, X(t₀)) exp(−∫∇·v) along characteristics."""

    def rate(t, state):
        return Moving(*divergence(partial(v, t), state.x))

    start = Moving(x, torch.zeros_like(x[:, 0]))
    end = integrate(rate, start, t1, t0, steps=steps)
    return rho(end.x) * end.log_det.exp()


def squeeze(t, x):
    mixed = torch.tensor([[0.5, 1.0], [-1.0, 0.2]])
    return torch.tanh(x @ mixed.T - 0.3)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("times", [(0.0, 0.3), (0.3, 0.0)])
def test_mass_is_conserved_to_round_off_and_stays_positive(d, times, generator):
    weights = torch.randn(d, d, generator=generator)
    rho = torch.rand((12,) * d, generator=generator)
    moved = continuity(lambda t, x: torch.tanh(x @ weights), rho, box(12, d), *times, steps=40)
    assert moved.sum().item() == pytest.approx(rho.sum().item(), rel=1e-13)
    assert moved.min() >= 0
    assert largest(moved - rho) > 0.1


def test_a_contracting_density_has_its_closed_form():
    errors, rho = [], lambda x: torch.exp(-4 * x[:, 0] ** 2)
    for m in (129, 257, 513):
        grid = Grid((-2.0,), (2.0,), m)
        moved = continuity(lambda t, x: -x, on(grid, rho), grid, 0.0, 0.5, steps=m)
        exact = math.exp(0.5) * on(grid, lambda x: rho(x * math.exp(0.5)))
        errors.append(largest(moved - exact))
    assert observed_orders(errors, [4, 2, 1])[-1] == pytest.approx(1, abs=0.1)


def test_density_on_the_grid_approaches_density_along_characteristics():
    rho, errors = lambda x: torch.exp(-4 * x.square().sum(1)), []
    for m in (33, 65, 129):
        grid = box(m, half=3.0)
        moved = continuity(squeeze, on(grid, rho), grid, 0.0, 1.0, steps=m)
        exact = density(squeeze, rho, grid.points(), 0.0, 1.0, 20).reshape(grid.shape)
        errors.append((moved - exact).abs().sum().item() * grid.spacing[0] ** 2)
    assert observed_orders(errors, [4, 2, 1])[-1] == pytest.approx(1, abs=0.2)


def test_density_along_characteristics_is_the_change_of_variables(generator):
    x = torch.randn(4, 2, generator=generator)

    def flow(x):
        return integrate(squeeze, x[None], 0.0, 1.0, steps=20)[0]

    jacobian = torch.func.vmap(torch.func.jacrev(flow))(x)
    there = torch.stack([flow(one) for one in x])
    ours = density(squeeze, bump, there, 0.0, 1.0, 20)
    assert torch.allclose(ours, bump(x) / torch.linalg.det(jacobian), rtol=1e-5)


def test_the_two_equations_are_adjoint():
    """The mean ∫uρ does not change when u and ρ are carried by one field."""
    errors = []
    for m in (65, 129):
        grid, rho = box(m, half=3.0), lambda x: torch.exp(-4 * x.square().sum(1))
        last = on(grid, bump)
        first = semi_lagrangian(squeeze, last, grid, 1.0, 0.0, steps=m // 2)
        moved = continuity(squeeze, on(grid, rho), grid, 0.0, 1.0, steps=m)
        mean = (moved * last).sum() / moved.sum()
        errors.append(abs(float(mean - (on(grid, rho) * first).sum() / moved.sum())))
    assert errors[1] < 0.55 * errors[0] < 0.02


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [upwind, continuity])
@pytest.mark.parametrize("v", [rotation, swirl, lambda t, x: rotation(t, x) * (1 + 5 * t**2)])
def test_steps_too_long_are_refused_with_a_number_that_works(scheme, v):
    grid = box(33)
    u = on(grid, bump)
    with pytest.raises(ValueError, match=r"CFL number is .* steps=3, at most 1") as error:
        scheme(v, u, grid, 0.0, 1.0, steps=3)
    enough = int(str(error.value).split("take steps=")[1].split(",")[0])
    scheme(v, u, grid, 0.0, 1.0, steps=enough)
    with pytest.raises(ValueError, match="CFL"):
        scheme(v, u, grid, 0.0, 1.0, steps=int(0.9 * enough))


def test_the_message_names_the_least_number_where_the_field_is_constant_in_time():
    with pytest.raises(ValueError, match=r"CFL number is 32 with steps=1.*take steps=32"):
        upwind(rotation, on(box(33), bump), box(33), 0.0, 1.0, steps=1)


@pytest.mark.parametrize("scheme", [semi_lagrangian, upwind, continuity])
def test_bad_arguments_are_refused(scheme):
    call, grid = unwrap(scheme), box(9)
    with pytest.raises(ValueError, match=r"shape \(9, 8\), the grid \(9, 9\)"):
        call(swirl, torch.zeros(9, 8), grid, 0.0, 1.0, steps=9)
    with pytest.raises(ValueError, match="steps=0 must be ≥ 1"):
        call(swirl, torch.zeros(9, 9), grid, 0.0, 1.0, steps=0)
    with pytest.raises(ValueError, match=r"t1=1\.0"):
        call(swirl, torch.zeros(9, 9), grid, 1.0, 1.0, steps=5)


@pytest.mark.parametrize("scheme", [upwind, continuity])
def test_a_velocity_that_is_not_finite_is_named(scheme):
    with pytest.raises(ValueError, match="not finite"):
        scheme(lambda t, x: x / 0, torch.zeros(9, 9), box(9), 0.0, 1.0, steps=5)


def test_grids_that_are_no_grids_are_refused():
    with pytest.raises(ValueError, match="below high"):
        Grid((0.0, 1.0), (1.0, 1.0), 9)
    with pytest.raises(ValueError, match="below high"):
        Grid((0.0,), (1.0, 1.0), 9)
    with pytest.raises(ValueError, match="at least 4"):
        Grid((0.0,), (1.0,), 3)


@pytest.mark.parametrize("scheme", [semi_lagrangian, upwind, continuity])
def test_precision_is_that_of_the_values(scheme):
    moved = scheme(swirl, torch.ones(9, 9).float(), box(9), 0.0, 1.0, steps=20)
    assert moved.dtype == torch.float32
