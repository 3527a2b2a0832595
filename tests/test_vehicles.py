"""Vehicles: tensors against CasADi, rotations against matrices, hills against normal laws."""

import math

import casadi as ca
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian

from ctdl_lib.control import ControlProblem, hamiltonian, rollout
from ctdl_lib.problems import symbolic
from ctdl_lib.problems.vehicles import Corridor, Quadcopter

QUADCOPTERS = {
    "published": Quadcopter(),
    "heavy": Quadcopter(0.1, mass=2.5, gravity=3.7, weight=70.0, horizon=2.0),
}
CORRIDORS = {
    "published": Corridor(),
    "wide": Corridor(70.0, 5.0, weight=3.0, radius=0.8, variance=0.6, horizon=2.0),
}
PAIRS = [
    *((problem, symbolic.quadcopter(problem), 12, 4) for problem in QUADCOPTERS.values()),
    *((problem, symbolic.corridor(problem), 4, 4) for problem in CORRIDORS.values()),
]
VEHICLES = [(problem, d, m) for problem, _, d, m in PAIRS]


def in_casadi(f, *shapes):
    """A function of CasADi's symbols as one of batches."""
    symbols = [ca.SX.sym("s", n) for n in shapes]
    function = ca.Function("f", symbols, [f(*symbols)])

    def call(*batches):
        rows = [function(*(row.numpy() for row in rows)) for rows in zip(*batches, strict=True)]
        return torch.stack([torch.from_numpy(row.full().ravel()) for row in rows])

    return call


@pytest.mark.parametrize(("problem", "symbols", "d", "m"), PAIRS)
def test_the_symbols_say_the_same_as_the_tensors(problem, symbols, d, m, generator):
    x, u = torch.randn(20, d, generator=generator), torch.randn(20, m, generator=generator)
    assert (symbols.d, symbols.m, symbols.horizon) == (d, m, problem.horizon)
    drift = in_casadi(symbols.drift, d, m)(x, u)
    assert torch.allclose(problem.drift(0.3, x, u), drift)
    running = in_casadi(symbols.running_cost, d, m)(x, u)[:, 0]
    assert torch.allclose(problem.running_cost(0.3, x, u), running)
    terminal = in_casadi(symbols.terminal_cost, d)(x)[:, 0]
    assert torch.allclose(problem.terminal_cost(x), terminal)


@pytest.mark.parametrize("name", CORRIDORS)
def test_the_constraint_is_positive_where_agents_have_not_collided(name, generator):
    problem = CORRIDORS[name]
    x = torch.randn(50, 4, generator=generator)
    found = in_casadi(symbolic.corridor(problem).constraint, 4)(x)[:, 0]
    assert torch.allclose(found, problem.distance(x) ** 2 - (2 * problem.radius) ** 2)


@pytest.mark.parametrize(("problem", "symbols", "d", "m"), PAIRS)
def test_slopes_of_the_hamiltonian_say_the_same(problem, symbols, d, m, generator):
    """∇ₓH and ∇ₚH at the minimiser, by autograd and by CasADi."""
    x, p = torch.randn(2, 10, d, generator=generator)
    u = problem.optimal_control(0.3, x, p)

    def by_symbols(x, p, u):
        H = symbols.running_cost(x, u) + ca.dot(p, symbols.drift(x, u))
        return ca.vertcat(ca.gradient(H, x), ca.gradient(H, p), ca.gradient(H, u))

    found = in_casadi(by_symbols, d, d, m)(x, p, u.detach())
    x.requires_grad_(), p.requires_grad_()
    slopes = torch.autograd.grad(hamiltonian(problem, 0.3, x, p).sum(), (x, p))
    assert torch.allclose(torch.cat(slopes, 1), found[:, : 2 * d], atol=1e-8)
    assert found[:, 2 * d :].abs().max() < 1e-10


@pytest.mark.parametrize(("problem", "d", "m"), VEHICLES)
def test_controls_are_stationary_and_cost_least(problem, d, m, generator):
    x, p = torch.randn(2, 10, d, generator=generator)
    u = problem.optimal_control(0.3, x, p).requires_grad_()
    cost = lambda u: problem.running_cost(0.3, x, u) + (p * problem.drift(0.3, x, u)).sum(1)  # noqa: E731
    assert torch.autograd.grad(cost(u).sum(), u)[0].abs().max() < 1e-9
    H = hamiltonian(problem, 0.3, x, p)
    for step in torch.randn(1000, 10, m, generator=generator):
        assert (cost(u.detach() + step) > H).all()
    curvature = hessian(lambda p: hamiltonian(problem, 0.3, x[:1], p[None])[0])(p[0])
    assert torch.linalg.eigvalsh(curvature).max() < 1e-12
    assert isinstance(problem, ControlProblem)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(VEHICLES), st.integers(0, 999), st.floats(0, 1))
def test_hamiltonians_are_concave(vehicle, seed, share):
    problem, d, _ = vehicle
    x, p, q = torch.randn(3, 4, d, generator=torch.Generator().manual_seed(seed))
    between = hamiltonian(problem, 0.2, x, share * p + (1 - share) * q)
    chord = share * hamiltonian(problem, 0.2, x, p) + (1 - share) * hamiltonian(problem, 0.2, x, q)
    assert (between >= chord - 1e-9).all()


@settings(max_examples=15, deadline=None)
@given(
    vehicle=st.sampled_from(VEHICLES),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_parts_keep_the_dtype_and_the_order_of_samples(vehicle, batch, seed, dtype):
    problem, d, m = vehicle
    generator = torch.Generator().manual_seed(seed)
    x, p = torch.randn(2, batch, d, generator=generator, dtype=dtype)
    u = torch.randn(batch, m, generator=generator, dtype=dtype)
    order = torch.randperm(batch, generator=generator)
    for part in (
        lambda x, u, p: problem.drift(0.1, x, u),
        lambda x, u, p: problem.running_cost(0.1, x, u),
        lambda x, u, p: problem.terminal_cost(x),
        lambda x, u, p: problem.optimal_control(0.1, x, p),
        lambda x, u, p: hamiltonian(problem, 0.1, x, p),
    ):
        whole = part(x, u, p)
        assert torch.allclose(whole[order], part(x[order], u[order], p[order]), rtol=1e-5)
        assert whole.dtype == dtype


# --- the quadcopter -----------------------------------------------------------------------------


def turn(axis, angle):
    """The rotation about a coordinate axis, as the exponential of its generator."""
    e = torch.zeros(3)
    e[axis] = angle
    cross = torch.linalg.cross(torch.eye(3), e.expand(3, 3)).T
    return torch.linalg.matrix_exp(-cross)


def test_rotations_turn_the_right_way():
    for axis in range(3):
        one, two = torch.eye(3)[(axis + 1) % 3], torch.eye(3)[(axis + 2) % 3]
        assert torch.allclose(turn(axis, math.pi / 2) @ one, two, atol=1e-12)


def test_the_thrust_points_where_yaw_pitch_and_roll_turn_the_vertical(generator):
    x = 3 * torch.randn(20, 12, generator=generator)
    found = Quadcopter().axis(x)
    for row, direction in zip(x, found, strict=True):
        yaw, pitch, roll = row[3:6].tolist()
        rotation = turn(2, yaw) @ turn(1, pitch) @ turn(0, roll)
        assert torch.allclose(direction, rotation @ torch.tensor([0.0, 0.0, 1.0]), atol=1e-12)
    assert torch.allclose(found.norm(dim=1), torch.ones(20))


@pytest.mark.parametrize("name", QUADCOPTERS)
def test_a_thrust_of_its_weight_holds_it_at_rest(name):
    problem = QUADCOPTERS[name]
    hover = torch.tensor([[problem.mass * problem.gravity, 0.0, 0.0, 0.0]])
    for x in (problem.start, problem.target):
        assert problem.drift(0.0, x[None], hover).abs().max() < 1e-12
    assert problem.terminal_cost(problem.target[None]) == 0
    apart = problem.start - problem.target
    cost = 0.5 * problem.weight * float(apart @ apart)
    assert float(problem.terminal_cost(problem.start[None])) == pytest.approx(cost)


def test_it_falls_by_the_law_of_galilei():
    problem = Quadcopter(0.0)
    fall = rollout(problem, lambda t, x: x.new_zeros(len(x), 4), problem.start[None],
                   steps=4, method="rk4")  # fmt: skip
    height, speed = fall.x[:, 0, 2] + 1.5, fall.x[:, 0, 8]
    assert torch.allclose(height, -0.5 * 9.81 * fall.t**2)
    assert torch.allclose(speed, -9.81 * fall.t)
    assert float(fall.running_cost) == pytest.approx(2)


def test_torques_turn_and_velocities_move():
    problem, x = Quadcopter(mass=2.0), torch.zeros(1, 12)
    x[0, 6:] = torch.arange(1.0, 7.0)
    u = torch.tensor([[3.0, 0.1, 0.2, 0.3]])
    wanted = torch.tensor([[1.0, 2, 3, 4, 5, 6, 0, 0, 1.5 - 9.81, 0.1, 0.2, 0.3]])
    assert torch.allclose(problem.drift(0.0, x, u), wanted)


# --- the corridor -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRIDORS)
def test_the_hills_are_a_sum_of_four_normal_densities(name, generator):
    problem, x = CORRIDORS[name], 2 * torch.randn(50, 2, generator=generator)
    laws = [
        torch.distributions.MultivariateNormal(
            torch.tensor([at, 0.0]), problem.variance * torch.eye(2)
        )
        for at in (-2.5, -1.5, 1.5, 2.5)
    ]
    density = sum(law.log_prob(x).exp() for law in laws)
    assert torch.allclose(problem.obstacles(x), density)


@pytest.mark.parametrize("name", CORRIDORS)
def test_running_costs_add_control_hills_and_repulsion(name, generator):
    problem = CORRIDORS[name]
    x, u = torch.randn(2, 50, 4, generator=generator)
    apart = torch.distributions.Normal(0.0, problem.radius)
    peak = apart.log_prob(torch.tensor(0.0))
    repulsion = (apart.log_prob((x[:, :2] - x[:, 2:]).norm(dim=1)) - peak).exp()
    hills = problem.obstacles(x[:, :2]) + problem.obstacles(x[:, 2:])
    cost = 0.5 * u.norm(dim=1) ** 2 + problem.obstacle * hills + problem.repulsion * repulsion
    assert torch.allclose(problem.running_cost(0.0, x, u), cost)


def test_the_gate_is_between_the_hills_and_the_agents_start_apart():
    problem = Corridor()
    line = torch.stack([torch.linspace(-4, 4, 401), torch.zeros(401)], 1)
    inside = problem.obstacles(line)[100:301]
    assert int(inside.argmin()) == 100
    ends = torch.stack([problem.start, problem.target])
    assert torch.equal(problem.distance(ends), torch.tensor([4.0, 4.0]))
    assert problem.terminal_cost(problem.target[None]) == 0
    away = problem.target + torch.tensor([1.0, 0, 0, 2.0])
    assert float(problem.terminal_cost(away[None])) == pytest.approx(250)


def test_the_mirror_image_of_two_agents_costs_the_same(generator):
    problem, (x, u) = Corridor(), torch.randn(2, 20, 4, generator=generator)
    mirror = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    other = mirror * x[:, [2, 3, 0, 1]]
    ours, theirs = problem.running_cost(0.0, x, u), problem.running_cost(0.0, other, u)
    assert torch.allclose(ours, theirs)
    assert torch.allclose(problem.terminal_cost(x), problem.terminal_cost(other))
    assert torch.allclose(problem.distance(x), problem.distance(other))
