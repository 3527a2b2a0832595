"""Problems whose value is known: Riccati, Hopf and Cole, and an obstacle on a grid."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.optimize import minimize_scalar
from scipy.stats import ncx2
from torch import nn
from torch.func import hessian, vmap

from ctdl_lib.control import ControlProblem, feedback, hamiltonian, hjb_residual, rollout
from ctdl_lib.dynamics import taylor_errors
from ctdl_lib.metrics import observed_orders
from ctdl_lib.potentials import AutodiffPotential
from ctdl_lib.problems.control import LinearQuadratic, Obstacle, obstacle, on_grid
from ctdl_lib.references.grids import Grid
from experiments.stochastic_control.radial import LogarithmicTarget, best_cost

TALL = torch.tensor([[0.3, -0.1], [0.0, 0.4], [0.2, 0.2]], dtype=torch.float64)
FULL = {"gain": 1.5, "control_cost": 0.6, "horizon": 0.8}


def linear_quadratic(sigma=TALL, **options):
    target = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    return LinearQuadratic(target, 3.0, sigma, **options)


def matrix(sigma, d):
    return sigma if isinstance(sigma, torch.Tensor) and sigma.dim() else sigma * torch.eye(d)


# --- linear and quadratic -----------------------------------------------------------------------

SIGMAS = {
    "none": 0.0,
    "number": 0.4,
    "tensor": torch.tensor(0.4, dtype=torch.float64),
    "tall": TALL,
    "wide": torch.cat([TALL, 2 * TALL.flip(0), TALL[:, :1]], 1),
}


@pytest.mark.parametrize("options", [{}, FULL])
@pytest.mark.parametrize("name", SIGMAS)
def test_the_value_solves_the_matrix_riccati_equation(name, options, generator):
    """−Ṗ = −P B R⁻¹Bᵀ P, −κ̇ = ½ tr(σσᵀP), integrated back from T by an adaptive method."""
    problem = linear_quadratic(SIGMAS[name], **options)
    B, R, sigma = problem.gain * np.eye(3), problem.control_cost * np.eye(3), SIGMAS[name]
    S = (matrix(sigma, 3) @ matrix(sigma, 3).T).numpy()

    def rates(t, y):
        P = y[:9].reshape(3, 3)
        dP = P @ B @ np.linalg.solve(R, B.T) @ P
        return np.append(dP.ravel(), -0.5 * np.trace(S @ P))

    times = problem.horizon * np.array([0.7, 0.2, 0.0])
    start = np.append(problem.weight * np.eye(3).ravel(), 0.0)
    solved = solve_ivp(rates, (problem.horizon, 0), start, t_eval=times, rtol=1e-11, atol=1e-12)
    x = torch.randn(5, 3, generator=generator)
    z = (x - problem.target).numpy()
    for t, y in zip(times, solved.y.T, strict=True):
        known = 0.5 * np.einsum("ni,ij,nj->n", z, y[:9].reshape(3, 3), z) + y[-1]
        assert torch.allclose(problem.value()(t, x), torch.from_numpy(known), rtol=1e-8)


@pytest.mark.parametrize("options", [{}, FULL])
@pytest.mark.parametrize("name", SIGMAS)
def test_its_residual_is_round_off_and_it_meets_the_end(name, options, generator):
    problem = linear_quadratic(SIGMAS[name], **options)
    x = 3 * torch.randn(50, 3, generator=generator)
    t = problem.horizon * torch.rand(50, generator=generator)
    assert hjb_residual(problem, problem.value(), t, x).abs().max() < 1e-12
    assert torch.allclose(problem.value()(problem.horizon, x), problem.terminal_cost(x))


def check_derivatives(potential, t, x, tolerance=1e-8):
    """All parts against automatic differentiation of the value, for three kinds of σ."""
    auto = AutodiffPotential(Forward(potential))
    for a, b in zip(potential.gradient(t, x), auto.gradient(t, x), strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)
    d = x.shape[1]
    for sigma in (None, 0.7, torch.tensor(0.7), torch.randn(d, 2), torch.randn(d, d + 2)):
        ours, theirs = potential.derivatives(t, x, sigma), auto.derivatives(t, x, sigma)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


class Forward(nn.Module):
    def __init__(self, potential):
        super().__init__()
        self.potential = potential

    def forward(self, t, x):
        return self.potential(t, x)


def test_its_derivatives_equal_automatic_differentiation(generator):
    problem = linear_quadratic(**FULL)
    t = 0.8 * torch.rand(6, generator=generator)
    check_derivatives(problem.value(), t, torch.randn(6, 3, generator=generator))


@pytest.mark.parametrize("name", ["number", "tall"])
def test_its_feedback_costs_the_value(name, generator):
    """With the leading error of Euler's method taken out by paths of the double step."""
    problem = linear_quadratic(SIGMAS[name], **FULL)
    policy, start = feedback(problem, problem.value()), torch.tensor([[0.0, 0.5, -0.5]])
    x = start.expand(20_000, 3)
    fine = rollout(problem, policy, x, steps=32, generator=generator)
    pairs = fine.dW.unflatten(0, (16, 2)).sum(1)
    costs = 2 * fine.cost - rollout(problem, policy, x, steps=16, dW=pairs).cost
    gap = costs.mean() - problem.value()(0.0, start)
    assert abs(gap) < 4 * costs.std() / math.sqrt(len(costs))


@pytest.mark.parametrize("method", ["euler_maruyama", "rk4"])
def test_without_noise_its_feedback_costs_the_value_to_the_order_of_the_method(method):
    """Euler's method is exact here: the first control is held, and no later one differs."""
    problem = linear_quadratic(0.0, **FULL)
    x = torch.tensor([[0.0, 0.5, -0.5]])
    exact = float(problem.value()(0.0, x))
    policy, steps = feedback(problem, problem.value()), [4, 8, 16]
    costs = [rollout(problem, policy, x, steps=n, method=method).cost.item() for n in steps]
    assert costs == pytest.approx([exact] * 3, abs=1e-12 if method == "euler_maruyama" else 1e-3)


def minimised(problem, t, x, p, generator, spread):
    """H against 1000 random controls, and the slope in u at the minimiser."""
    u = problem.optimal_control(t, x, p).detach().requires_grad_()
    cost = lambda u: problem.running_cost(t, x, u) + (p * problem.drift(t, x, u)).sum(1)  # noqa: E731
    slope = torch.autograd.grad(cost(u).sum(), u)[0]
    H = hamiltonian(problem, t, x, p)
    assert slope.abs().max() < 1e-9
    for step in spread * torch.randn(1000, *u.shape, generator=generator):
        assert (cost(u.detach() + step) > H).all()


PROBLEMS = {
    "linear-quadratic": linear_quadratic(**FULL),
    "without noise": linear_quadratic(0.0),
    "logarithm": LogarithmicTarget(torch.zeros(3, dtype=torch.float64), 0.4, 5.0),
    "obstacle": obstacle(),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_controls_are_stationary_and_cost_least(name, generator):
    problem, d = PROBLEMS[name], 2 if name == "obstacle" else 3
    x, p = (torch.randn(10, d, generator=generator) for _ in range(2))
    t = torch.rand(10, generator=generator)
    assert isinstance(problem, ControlProblem)
    minimised(problem, t, x, p, generator, spread=1.0)
    H = lambda p: hamiltonian(problem, 0.3, x[:1], p[None])[0]  # noqa: E731
    assert torch.linalg.eigvalsh(hessian(H)(p[0])).max() <= 1e-12


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(PROBLEMS)), st.integers(0, 999), st.floats(0, 1))
def test_hamiltonians_are_concave(name, seed, share):
    generator = torch.Generator().manual_seed(seed)
    problem, d = PROBLEMS[name], 2 if name == "obstacle" else 3
    x, p, q = torch.randn(3, 4, d, generator=generator)
    between = hamiltonian(problem, 0.2, x, share * p + (1 - share) * q)
    chord = share * hamiltonian(problem, 0.2, x, p) + (1 - share) * hamiltonian(problem, 0.2, x, q)
    assert (between >= chord - 1e-10).all()


# --- the logarithm ------------------------------------------------------------------------------


def hopf_cole(problem, t, x):
    """The value at one x by scipy's density of the noncentral χ²."""
    s2, a = problem.diffusion**2 * (problem.horizon - t), 0.5 * problem.diffusion**2
    q, d = float((x - problem.target).square().sum()), len(x)
    law = ncx2(d, q / s2) if q else ncx2(d, 1e-12)
    least = problem.weight * math.log(0.5 + 0.5 * law.ppf(1e-15) * s2)
    weigh = lambda r: math.exp(  # noqa: E731
        (least - problem.weight * math.log(0.5 + 0.5 * r * s2)) / a
    )
    ends = law.ppf([1e-15, 0.01, 0.5, 0.99, 1 - 1e-15])
    options = {"epsabs": 1e-14, "epsrel": 1e-12, "limit": 400}
    parts = [quad(lambda r: weigh(r) * law.pdf(r), *e, **options) for e in pairwise(ends)]
    return least - a * math.log(sum(part[0] for part in parts))


@pytest.mark.parametrize("t", [0.0, 0.4, 0.95])
@pytest.mark.parametrize(
    ("d", "sigma", "weight", "horizon"),
    [
        (100, math.sqrt(2), 1.0, 1.0),
        (100, 0.9, 2.5, 0.7),
        (3, math.sqrt(2), 1.0, 1.0),
        (2, 0.5, 0.3, 1.0),
        (5, 1.0, 0.2, 2.0),
    ],
)
def test_the_value_is_that_of_a_quadrature_over_chi_squares(
    d, sigma, weight, horizon, t, generator
):
    target = 0.5 * torch.randn(d, generator=generator)
    problem = LogarithmicTarget(target, sigma, weight, horizon)
    x = torch.randn(2, d, generator=generator)
    found = problem.value()(t * horizon, x)
    for value, at in zip(found, x, strict=True):
        assert float(value) == pytest.approx(hopf_cole(problem, t * horizon, at), rel=1e-7)


@pytest.mark.parametrize(
    ("sigma", "weight"),
    [(math.sqrt(2), 1.0), (0.4, 1.0), (1.0, 0.1), (1.0, 30.0), (0.4 * math.sqrt(2), 1000.0)],
)
def test_on_a_line_the_value_is_a_brute_force_integral(sigma, weight):
    """−a log ∫ e^{−G(y)/a} N(y; x, σ²T) dy by the trapezoidal rule."""
    problem = LogarithmicTarget(torch.tensor([0.7]), sigma, weight, horizon=1.2)
    a, x = 0.5 * sigma**2, torch.tensor([[-2.0], [0.0], [0.7], [1.5]])
    y = torch.linspace(-15, 15, 400_001)
    G = problem.terminal_cost(y[:, None])
    for t in (0.0, 0.9):
        v = sigma**2 * (1.2 - t)
        log = -G / a - (y - x).square() / (2 * v) - 0.5 * math.log(2 * math.pi * v)
        known = -a * (log.logsumexp(1) + math.log(30 / 400_000))
        assert torch.allclose(problem.value()(t, x), known, rtol=1e-8)


def test_a_light_target_is_no_harder():
    problem = LogarithmicTarget(torch.zeros(2), 1.3, 0.05)
    found, x = problem.value()(0.5, torch.ones(1, 2)), torch.ones(2)
    assert float(found) == pytest.approx(hopf_cole(problem, 0.5, x), rel=1e-6)


def test_the_value_in_a_hundred_dimensions_is_the_known_one():
    problem = LogarithmicTarget(torch.zeros(100))
    x = torch.stack([torch.zeros(100), torch.full((100,), 0.5)])
    assert problem.value()(0.0, x).tolist() == pytest.approx([4.590162, 4.707611], abs=1e-6)


def test_doing_nothing_costs_more_by_the_known_amount(generator):
    """E G(√2 Z) in R¹⁰⁰, by quadrature and in simulation; the value is less."""
    problem, law = LogarithmicTarget(torch.zeros(100)), ncx2(100, 1e-12)
    mean = law.expect(lambda r: math.log(0.5 + r))
    assert mean == pytest.approx(4.600226, abs=1e-6)
    x = torch.zeros(5000, 100)
    cost = rollout(problem, lambda t, x: 0 * x, x, steps=1, generator=generator).cost
    assert abs(cost.mean() - mean) < 4 * cost.std() / math.sqrt(len(cost))
    assert float(problem.value()(0.0, x[:1])) < mean


@pytest.mark.parametrize("d", [1, 2, 100])
def test_plain_monte_carlo_finds_the_value(d, generator):
    problem = LogarithmicTarget(torch.full((d,), 0.3), horizon=0.8)
    x = torch.full((1, d), -0.2)
    z = math.sqrt(2 * 0.8) * torch.randn(1_000_000 // max(1, d // 4), d, generator=generator)
    weights = torch.exp(-problem.terminal_cost(x + z))
    error = weights.std() / weights.mean() / math.sqrt(len(z))
    assert abs(-weights.mean().log() - problem.value()(0.0, x)) < 4 * error


HARD = LogarithmicTarget(torch.full((100,), 3.0), 0.4 * math.sqrt(2), 1000.0)
LOGARITHMS = {
    "hundred dimensions": LogarithmicTarget(torch.zeros(100)),
    "hard": HARD,
    "line": LogarithmicTarget(torch.tensor([0.7]), 0.5, 2.0, 1.5),
    "light": LogarithmicTarget(torch.zeros(2), 1.3, 0.3),
}


@pytest.mark.parametrize("name", LOGARITHMS)
def test_the_residual_of_the_value_is_that_of_its_quadrature(name, generator):
    problem = LOGARITHMS[name]
    d = len(problem.target)
    x = problem.target * torch.rand(20, 1) + 0.5 * torch.randn(20, d, generator=generator)
    t = 0.99 * problem.horizon * torch.rand(20, generator=generator)
    phi = problem.value().derivatives(t, x, problem.diffusion)
    residual = phi.dt + 0.5 * phi.laplacian - phi.dx.square().sum(1)
    assert torch.allclose(residual, hjb_residual(problem, problem.value(), t, x), atol=1e-9)
    assert (residual.abs() / (1 + phi.dt.abs())).max() < 1e-9


@pytest.mark.parametrize("name", LOGARITHMS)
def test_at_the_end_the_value_is_the_cost(name, generator):
    problem = LOGARITHMS[name]
    x = problem.target + torch.randn(20, len(problem.target), generator=generator)
    end = problem.value().gradient(problem.horizon, x)
    known = problem.terminal().gradient(0.3, x)
    assert torch.allclose(end.value, problem.terminal_cost(x), rtol=1e-9)
    assert torch.allclose(end.dx, known.dx, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", LOGARITHMS)
def test_the_derivatives_of_the_value_pass_the_taylor_test(name, generator):
    problem = LOGARITHMS[name]
    x = problem.target + torch.randn(4, len(problem.target), generator=generator)
    phi, dx = problem.value(), torch.randn(x.shape, generator=generator)
    errors = taylor_errors(
        lambda x: phi(0.2, x), lambda x, dx: (phi.gradient(0.2, x).dx * dx).sum(-1), x, dx / 4
    )
    orders = observed_orders(errors.first.tolist(), errors.h.tolist())
    assert orders[-3] == pytest.approx(2, abs=0.1)
    in_time = taylor_errors(
        lambda t: phi(t, x),
        lambda t, dt: phi.gradient(t, x).dt * dt,
        torch.full((4,), 0.2),
        torch.full((4,), 0.1),
        steps=8,
    )
    orders = observed_orders(in_time.first.tolist(), in_time.h.tolist())
    assert orders[-3] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ["line", "light"])
def test_all_derivatives_of_the_value_equal_automatic_differentiation(name, generator):
    problem = LOGARITHMS[name]
    x = problem.target + torch.randn(4, len(problem.target), generator=generator)
    t = 0.9 * problem.horizon * torch.rand(4, generator=generator)
    check_derivatives(problem.value(), t, x, 1e-7)


def test_more_nodes_change_nothing(generator):
    x = HARD.target + torch.randn(5, 100, generator=generator)
    few, many = (HARD.value(nodes=n).derivatives(0.3, x, 0.5) for n in (400, 1600))
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(few, many, strict=True))


def test_the_feedback_of_the_value_costs_the_value(generator):
    problem = LogarithmicTarget(torch.full((4,), 1.0), 0.8, 3.0)
    policy, start = feedback(problem, problem.value(nodes=100)), torch.zeros(1, 4)
    x = start.expand(400, 4)
    fine = rollout(problem, policy, x, steps=24, generator=generator)
    pairs = fine.dW.unflatten(0, (12, 2)).sum(1)
    costs = 2 * fine.cost - rollout(problem, policy, x, steps=12, dW=pairs).cost
    gap = costs.mean() - problem.value()(0.0, start)
    assert abs(gap) < 4 * costs.std() / math.sqrt(len(costs))


@pytest.mark.parametrize("name", LOGARITHMS)
def test_the_terminal_potential_is_the_terminal_cost(name, generator):
    problem = LOGARITHMS[name]
    x = problem.target + torch.randn(4, len(problem.target), generator=generator)
    sigma = torch.randn(x.shape[1], 2, generator=generator)
    G = lambda x: problem.terminal_cost(x[None])[0]  # noqa: E731
    H = vmap(hessian(G))(x)
    found = problem.terminal().derivatives(0.4, x, sigma)
    assert torch.allclose(found.value, problem.terminal_cost(x))
    assert torch.allclose(found.dx, vmap(torch.func.grad(G))(x))
    assert torch.allclose(found.laplacian, torch.einsum("ik,nij,jk->n", sigma, H, sigma))
    assert found.dt.abs().max() == 0
    assert torch.allclose(
        problem.terminal().derivatives(0.4, x).laplacian, H.diagonal(dim1=1, dim2=2).sum(1)
    )


@pytest.mark.parametrize("name", LOGARITHMS)
def test_the_quadratic_problem_is_its_expansion_to_second_order(name, generator):
    """Up to the constant −w log 2, with a rest of order four; dynamics and price are the same."""
    problem = LOGARITHMS[name]
    near, target = problem.linear_quadratic(), problem.target
    z = torch.randn(3, len(target), generator=generator)
    z /= z.norm(dim=1, keepdim=True)
    sizes = [0.4, 0.2, 0.1]
    gaps = [
        problem.terminal_cost(target + h * z) + problem.weight * math.log(2)
        - near.terminal_cost(target + h * z)
        for h in sizes
    ]  # fmt: skip
    orders = observed_orders([float(gap.abs().max()) for gap in gaps], sizes)
    assert orders[-1] == pytest.approx(4, abs=0.1)
    assert near.horizon == problem.horizon
    x, p = target + z, torch.randn(z.shape, generator=generator)
    assert torch.allclose(hamiltonian(near, 0.2, x, p), hamiltonian(problem, 0.2, x, p))
    t = 0.5 * near.horizon
    assert hjb_residual(problem, near.value(), t, x).abs().max() < 1e-9 * problem.weight


@settings(max_examples=15, deadline=None)
@given(
    d=st.integers(1, 6),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    kind=st.sampled_from(["value", "terminal", "quadratic"]),
)
def test_values_keep_the_dtype_and_the_order_of_samples(d, seed, dtype, kind):
    generator = torch.Generator().manual_seed(seed)
    problem = LogarithmicTarget(torch.randn(d, generator=generator, dtype=torch.float64), 0.7)
    phi = {
        "value": problem.value(),
        "terminal": problem.terminal(),
        "quadratic": problem.linear_quadratic().value(),
    }[kind]
    x = torch.randn(5, d, generator=generator, dtype=dtype)
    order, t = torch.randperm(5, generator=generator), torch.rand(5, generator=generator).to(dtype)
    whole, part = phi.derivatives(t, x, 0.3), phi.derivatives(t[order], x[order], 0.3)
    for a, b in zip(whole, part, strict=True):
        assert a.dtype == dtype
        assert torch.allclose(a[order], b, rtol=1e-4, atol=1e-5)


def test_rotations_about_the_target_do_not_change_the_value(generator):
    problem = LogarithmicTarget(torch.randn(4, generator=generator))
    z = torch.randn(6, 4, generator=generator)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    phi = problem.value()
    straight, turned = (phi.gradient(0.3, problem.target + v) for v in (z, z @ turn))
    assert torch.allclose(straight.value, turned.value)
    assert torch.allclose(straight.dx @ turn, turned.dx)


# --- the obstacle -------------------------------------------------------------------------------


def test_the_hill_is_a_normal_density(generator):
    x = torch.randn(20, 2, generator=generator)
    law = torch.distributions.MultivariateNormal(torch.zeros(2), 0.4 * torch.eye(2))
    assert torch.allclose(obstacle().hill(x), 50 * law.log_prob(x).exp())
    u = torch.randn(20, 2, generator=generator)
    flat = Obstacle(obstacle().linear_quadratic, height=0.0)
    dearer = obstacle().running_cost(0.1, x, u) - flat.running_cost(0.1, x, u)
    assert torch.allclose(dearer, 50 * law.log_prob(x).exp())


def test_the_obstacle_is_that_of_the_paper():
    problem = obstacle(noise=2.0)
    assert torch.allclose(problem.diffusion, torch.tensor([[0.4, -0.8], [-0.8, 0.4]]))
    assert obstacle(noise=0.0).diffusion == 0
    x, u = torch.tensor([[1.5, 2.5]]), torch.tensor([[3.0, 4.0]])
    assert problem.terminal_cost(x).item() == pytest.approx(50)
    assert torch.equal(problem.drift(0.0, x, u), u)
    flat = Obstacle(problem.linear_quadratic, height=0.0)
    assert flat.running_cost(0.0, x, u).item() == pytest.approx(12.5)


SMALL = Grid((-3.0, -3.0), (3.0, 3.0), 15)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_without_a_hill_nothing_is_added(noise, generator):
    problem = Obstacle(obstacle(noise=noise).linear_quadratic, height=0.0)
    found = on_grid(problem, SMALL, times=3)
    assert found.correction.net.values.abs().max() < 1e-10
    x, t = torch.randn(20, 2, generator=generator), torch.rand(20, generator=generator)
    assert torch.allclose(found(t, x), problem.linear_quadratic.value()(t, x), atol=1e-10)


@pytest.fixture(scope="module")
def coarse():
    """The published problem on 41 nodes."""
    return on_grid(obstacle(), Grid((-3.5, -3.5), (3.5, 3.5), 41), times=20)


@pytest.fixture(scope="module")
def fine():
    return on_grid(obstacle(), Grid((-3.5, -3.5), (3.5, 3.5), 57), times=20)


def test_two_grids_agree_near_the_start(coarse, fine, generator):
    assert fine(0.0, torch.full((1, 2), -1.5)).item() == pytest.approx(14.604, abs=1e-3)
    x = -1.5 + 0.3 * torch.randn(50, 2, generator=generator)
    for t in (0.0, 0.3, 0.52):
        assert (fine(t, x) - coarse(t, x)).abs().max() < 0.05


def test_the_obstacle_looks_the_same_from_both_sides(coarse, generator):
    x, t = torch.randn(20, 2, generator=generator), torch.rand(20, generator=generator)
    ours, mirrored = coarse.gradient(t, x), coarse.gradient(t, x.flip(1))
    assert torch.allclose(ours.value, mirrored.value, atol=1e-8)
    assert torch.allclose(ours.dx, mirrored.dx.flip(1), atol=1e-8)


def test_a_hill_makes_everything_dearer_and_its_end_is_known(coarse, generator):
    x = 1.5 * torch.randn(50, 2, generator=generator).clamp(-2, 2)
    known = obstacle().linear_quadratic.value()
    for t in (0.0, 0.5, 0.9):
        assert (coarse(t, x) > known(t, x) - 1e-6).all()
    assert torch.allclose(coarse(1.0, x), obstacle().terminal_cost(x))
    late = (coarse(0.999, x) - known(0.999, x)) / 0.001
    assert torch.allclose(late, obstacle().hill(x), atol=0.35)


def test_the_residual_on_the_grid_is_small_where_paths_run(fine, generator):
    """At times between the kept ones, in comparison with the parts of the equation."""
    x = -1.0 + 0.5 * torch.randn(100, 2, generator=generator)
    for t in (0.125, 0.475):
        residual = hjb_residual(obstacle(), fine, t, x).abs()
        size = fine.gradient(t, x).dx.square().sum(1)
        assert (residual / (1 + size)).mean() < 0.03


def test_the_feedback_on_the_grid_costs_its_value(fine, generator):
    problem, start = obstacle(), torch.full((1, 2), -1.5)
    x = start.expand(600, 2)
    path = rollout(problem, feedback(problem, fine), x, steps=40, generator=generator)
    pairs = path.dW.unflatten(0, (20, 2)).sum(1)
    rough = rollout(problem, feedback(problem, fine), x, steps=20, dW=pairs)
    costs = 2 * path.cost - rough.cost
    gap = costs.mean() - fine(0.0, start)
    assert abs(gap) < 4 * costs.std() / math.sqrt(len(costs)) + 0.1


def test_noise_may_be_a_number():
    x, found = torch.tensor([[-1.5, -1.4]]), []
    for sigma in (0.5, 0.5 * torch.eye(2)):
        problem = Obstacle(LinearQuadratic(torch.full((2,), 1.5), 100.0, sigma))
        found.append(on_grid(problem, SMALL, times=3)(0.0, x))
    assert torch.allclose(*found, atol=1e-9)


@pytest.mark.parametrize("options", [{"gain": 2.0}, {"control_cost": 3.0}])
def test_the_grid_knows_the_gain_and_the_cost_of_control(options):
    quadratic = LinearQuadratic(torch.full((2,), 1.5), 100.0, 0.3 * torch.eye(2), **options)
    found = on_grid(Obstacle(quadratic, height=0.0), SMALL, times=3)
    x = torch.tensor([[-1.5, -1.4]])
    assert torch.allclose(found(0.0, x), quadratic.value()(0.0, x), atol=1e-9)


# --- bad input ----------------------------------------------------------------------------------


def quadratic(**options):
    return lambda: LinearQuadratic(torch.zeros(2), **({"weight": 1.0} | options))


def logarithmic(**options):
    return lambda: LogarithmicTarget(torch.zeros(2), **options)


BAD = {
    "no weight": (quadratic(weight=0.0), "weight=0.0"),
    "a negative weight": (quadratic(weight=-1.0), "must be positive"),
    "free control": (quadratic(control_cost=0.0), "control_cost=0.0"),
    "no time": (quadratic(horizon=0.0), "horizon=0.0"),
    "a logarithm without noise": (logarithmic(diffusion=0.0), "diffusion=0.0"),
    "a logarithm without weight": (logarithmic(weight=-2.0), "weight=-2.0"),
    "a logarithm without time": (logarithmic(horizon=-1.0), "horizon=-1.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (quadratic(control_cost=math.nan), "control_cost must be a number, got nan"),
        (quadratic(horizon=math.nan), "horizon must be a number, got nan"),
        (logarithmic(weight=math.nan), "positive"),
        (lambda: quadratic(gain=0.0)().value()(0.0, torch.ones(1, 2)), "gain"),
    ],
)
def test_what_is_no_positive_number_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


@pytest.mark.parametrize(("d", "r"), [(2, 1.5), (7, 4.0)])
def test_the_best_cost_of_one_step_is_a_minimum_over_one_number(d, r):
    problem = LogarithmicTarget(torch.zeros(d), 0.8, 5.0, horizon=0.7)
    variance = 0.8**2 * 0.7

    def cost(m):
        law = ncx2(d, max(m**2 / variance, 1e-9))
        end = law.expect(lambda q: 5.0 * math.log(0.5 + 0.5 * variance * q))
        return (m - r) ** 2 / (4 * 0.7) + end

    least = minimize_scalar(cost, bounds=(0.0, r), method="bounded", options={"xatol": 1e-7}).fun
    assert best_cost(problem, r, steps=1) == pytest.approx(least, abs=2e-4)


def test_no_feedback_is_cheaper_than_the_best_of_as_many_steps(generator):
    best = best_cost(HARD, 30.0, steps=20)
    assert best == pytest.approx(best_cost(HARD, 30.0, steps=20, nodes=2000, points=16), abs=2e-2)
    linear = feedback(HARD, HARD.linear_quadratic().value())
    costs = rollout(HARD, linear, torch.zeros(400, 100), steps=20, generator=generator).cost
    error = float(costs.std()) / 20
    assert -4 * error < float(costs.mean()) - best < 4 * error + 1


def test_best_costs_of_many_steps_approach_the_value():
    problem = LogarithmicTarget(torch.zeros(3), 1.0, 2.0)
    value = float(problem.value()(0.0, torch.tensor([[2.0, 0.0, 0.0]])))
    gaps = [best_cost(problem, 2.0, steps=n) - value for n in (10, 20, 40)]
    assert gaps[-1] > 0
    assert [a / b for a, b in pairwise(gaps)] == pytest.approx([2, 2], abs=0.3)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 5, "d": 1}])
def test_best_costs_need_steps_and_a_radius(bad):
    problem = LogarithmicTarget(torch.zeros(bad.pop("d", 3)))
    with pytest.raises(ValueError, match="must be at least 1 and the dimension"):
        best_cost(problem, 1.0, **bad)
