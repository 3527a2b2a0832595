"""Direct transcription against normal equations, known optima, and replayed plans."""

import inspect
import math

import casadi as ca
import numpy as np
import pytest
import torch

from ctdl_lib.control import rollout
from ctdl_lib.problems import symbolic
from ctdl_lib.problems.vehicles import Corridor, Quadcopter
from ctdl_lib.references.transcription import (
    Plan,
    PlanError,
    Replanner,
    SymbolicProblem,
    open_loop,
    refined,
    straight,
)

A = np.array([[0.1, 1.0], [-0.7, -0.2]])
B = np.array([[0.0, 0.5], [1.0, -0.3]])
GOAL = np.array([0.5, -1.0])
START = torch.tensor([1.0, 0.5], dtype=torch.float64)
HOVER = torch.tensor([9.81, 0.0, 0.0, 0.0], dtype=torch.float64)


def linear(horizon=1.5):
    """ẋ = A x + B u with L = ½‖u‖² + 0.3‖x‖² and G = 2‖x − goal‖²."""
    return SymbolicProblem(
        2,
        2,
        lambda x, u: ca.mtimes(ca.DM(A), x) + ca.mtimes(ca.DM(B), u),
        lambda x, u: 0.5 * ca.sumsqr(u) + 0.3 * ca.sumsqr(x),
        lambda x: 2 * ca.sumsqr(x - ca.DM(GOAL)),
        horizon=horizon,
    )


def normal_equations(steps, method, horizon=1.5):
    """States are affine in all controls, the cost a sum of squares: controls, states, cost."""
    h, m = horizon / steps, 2 * steps
    # xₖ₊₁ = Mxₖ + Nu by the truncated exponential of the method, with u held on the step
    terms = range(1, 2 if method == "euler" else 5)
    M = np.eye(2) + sum(np.linalg.matrix_power(h * A, k) / math.factorial(k) for k in terms)
    N = sum(np.linalg.matrix_power(h * A, k - 1) / math.factorial(k) for k in terms) @ (h * B)
    offset, slope = START.numpy().copy(), np.zeros((2, m))
    offsets, slopes, rows, wanted = [offset], [slope], [math.sqrt(h / 2) * np.eye(m)], [np.zeros(m)]
    for k in range(steps):
        rows.append(math.sqrt(0.3 * h) * slope)
        wanted.append(-math.sqrt(0.3 * h) * offset)
        offset, slope = M @ offset, M @ slope
        slope[:, 2 * k : 2 * k + 2] += N
        offsets.append(offset)
        slopes.append(slope)
    rows.append(math.sqrt(2) * slope)
    wanted.append(math.sqrt(2) * (GOAL - offset))
    rows, wanted = np.concatenate(rows), np.concatenate(wanted)
    u = np.linalg.solve(rows.T @ rows, rows.T @ wanted)
    x = np.stack([o + s @ u for o, s in zip(offsets, slopes, strict=True)])
    return u.reshape(steps, 2), x, float(np.sum((rows @ u - wanted) ** 2))


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("horizon", [1.0, 1.5])
def test_linear_plans_solve_the_normal_equations(horizon, steps, method):
    guess = straight(START, torch.zeros(2), torch.ones(2), steps=steps)
    plan = open_loop(linear(horizon), guess, method=method)
    u, x, cost = normal_equations(steps, method, horizon)
    assert torch.allclose(plan.u, torch.from_numpy(u), atol=1e-7)
    assert torch.allclose(plan.x, torch.from_numpy(x), atol=1e-7)
    assert plan.cost == pytest.approx(cost, rel=1e-9)
    assert plan.iterations >= 1


def test_the_guess_does_not_matter_where_the_optimum_is_one(generator):
    plans = []
    for _ in range(2):
        x = torch.cat([START[None], torch.randn(6, 2, generator=generator)])
        guess = Plan(x, torch.randn(6, 2, generator=generator), math.nan, 0)
        plans.append(open_loop(linear(), guess))
    assert torch.allclose(plans[0].u, plans[1].u, atol=1e-7)


def test_a_straight_guess_is_straight():
    guess = straight(START, torch.tensor([3.0, 1.5]), torch.tensor([2.0]), steps=4)
    steps = guess.x.diff(dim=0)
    assert torch.equal(guess.x[0], START)
    assert torch.equal(guess.x[-1], torch.tensor([3.0, 1.5]))
    assert torch.allclose(steps, torch.tensor([0.5, 0.25]).expand(4, 2))
    assert torch.equal(guess.u, torch.full((4, 1), 2.0))
    assert math.isnan(guess.cost)


def test_a_refined_plan_is_the_same_function_of_time():
    plan = Plan(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[1.0], [2.0]]), 3.0, 7)
    fine = refined(plan, steps=4)
    assert fine.x.flatten().tolist() == [0, 0.5, 1, 2.5, 4]
    assert fine.u.flatten().tolist() == [1, 1, 2, 2]
    uneven = refined(plan, steps=3)
    assert uneven.x.flatten().tolist() == pytest.approx([0, 2 / 3, 2, 4])
    assert uneven.u.flatten().tolist() == [1, 1, 2]
    assert refined(plan, steps=1).u.tolist() == [[1.0]]


# --- the quadcopter -----------------------------------------------------------------------------


FLYING = Quadcopter(0.0)


@pytest.fixture(scope="module")
def flight():
    return open_loop(
        symbolic.quadcopter(FLYING), straight(FLYING.start, FLYING.target, HOVER, steps=50)
    )


@pytest.fixture(scope="module")
def short_flight():
    return open_loop(
        symbolic.quadcopter(FLYING), straight(FLYING.start, FLYING.target, HOVER, steps=20)
    )


def replayed(plan, horizon=1.0):
    """The policy that follows a plan blindly."""
    return lambda t, x: plan.u[round(float(t) / horizon * len(plan.u))].to(x).expand(len(x), -1)


def test_the_quadcopter_has_the_known_optima(flight):
    symbols = symbolic.quadcopter(FLYING)
    assert flight.cost == pytest.approx(2182.68, abs=0.01)
    finer = open_loop(symbols, refined(flight, steps=100))
    assert finer.cost == pytest.approx(2178.14, abs=0.01)
    assert open_loop(symbols, flight, method="rk4").cost == pytest.approx(2179.06, abs=0.01)


def test_a_replayed_plan_costs_and_moves_as_planned(flight):
    path = rollout(FLYING, replayed(flight), FLYING.start[None], steps=50)
    assert float(path.cost) == pytest.approx(flight.cost, rel=1e-9)
    assert torch.allclose(path.x[:, 0], flight.x, atol=1e-7)


def test_small_changes_of_the_controls_cost_more(flight, generator):
    for _ in range(20):
        other = flight._replace(u=flight.u + 0.1 * torch.randn(50, 4, generator=generator))
        cost = rollout(FLYING, replayed(other), FLYING.start[None], steps=50).cost
        assert float(cost) > flight.cost


def test_the_cost_is_stationary_in_the_controls(flight):
    """The gradient by torch through a rollout, in proportion to that of the first guess."""
    norms = []
    for u in (flight.u, HOVER.expand(50, 4)):
        u = u.clone().requires_grad_()
        path = rollout(FLYING, replayed(flight._replace(u=u)), FLYING.start[None], steps=50)
        norms.append(torch.autograd.grad(path.cost.sum(), u)[0].norm())
    assert norms[0] < 1e-6 * norms[1]


# --- planning anew ------------------------------------------------------------------------------


def test_without_noise_replanning_follows_the_plan(short_flight):
    policy = Replanner(symbolic.quadcopter(FLYING), short_flight)
    path = rollout(FLYING, policy, FLYING.start[None], steps=20)
    assert float(path.cost) == pytest.approx(short_flight.cost, rel=1e-8)
    assert torch.allclose(path.x[:, 0], short_flight.x, atol=1e-5)
    assert policy.failures == 0


def test_the_rest_of_a_plan_starts_the_next_one(short_flight):
    """On the way that was planned nothing is left to iterate."""
    policy = Replanner(symbolic.quadcopter(FLYING), short_flight)
    for k in range(20):
        policy(k / 20, short_flight.x[k : k + 1])
        (plan,) = policy.plans
        assert torch.allclose(plan.x, short_flight.x[k:], atol=1e-5)
        assert torch.allclose(plan.u, short_flight.u[k:], atol=1e-4)
        assert k == 0 or plan.iterations <= 1


def test_under_noise_replanning_is_cheaper_than_the_plan(short_flight, generator):
    windy, start = Quadcopter(0.2), FLYING.start.expand(4, 12)
    blind = rollout(windy, replayed(short_flight), start, steps=20, generator=generator)
    policy = Replanner(symbolic.quadcopter(windy), short_flight)
    seeing = rollout(windy, policy, start, steps=20, dW=blind.dW)
    assert (seeing.cost < blind.cost).all()
    assert policy.failures == 0
    again = rollout(windy, policy, start, steps=20, dW=blind.dW)
    assert torch.equal(again.x, seeing.x)


@pytest.mark.parametrize("horizon", [1.0, 1.5])
def test_linear_problems_are_replanned_by_the_normal_equations_of_the_rest(horizon, generator):
    """At step k from any state: the first control of the optimum over the steps that are left."""
    problem = linear(horizon)
    plan = open_loop(problem, straight(START, torch.zeros(2), torch.zeros(2), steps=5))
    policy = Replanner(problem, plan)
    assert torch.equal(policy(0.0, START.expand(3, 2)), plan.u[:1].expand(3, 2))
    for k in range(1, 5):
        x = torch.randn(3, 2, generator=generator)
        controls = policy(k * horizon / 5, x)
        left = linear(horizon * (5 - k) / 5)
        for start, u in zip(x, controls, strict=True):
            fresh = straight(start, torch.zeros(2), torch.zeros(2), steps=5 - k)
            assert torch.allclose(open_loop(left, fresh).u[0], u, atol=1e-6)
    assert policy.failures == 0


def test_a_plan_that_fails_is_replaced_by_the_rest_of_the_last_one():
    """A wall at 1 that no control moves back from: only the sample behind it fails."""
    wall = SymbolicProblem(
        1,
        1,
        lambda x, u: 0 * u,
        lambda x, u: ca.sumsqr(u - 2),
        lambda x: ca.sumsqr(x),
        constraint=lambda x: 1 - x,
    )
    controls = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    policy = Replanner(wall, Plan(torch.zeros(5, 1), controls, math.nan, 0))
    assert policy(0.0, torch.zeros(2, 1)).flatten().tolist() == [1, 1]
    assert policy(0.25, torch.tensor([[0.0], [5.0]])).flatten().tolist() == pytest.approx([2, 2])
    assert policy.failures == 1
    found = policy(0.5, torch.tensor([[0.0], [5.0]])).flatten().tolist()
    assert found == pytest.approx([2, 3], abs=1e-6)
    assert policy.failures == 2
    assert policy(0.75, torch.zeros(2, 1)).flatten().tolist() == pytest.approx([2, 2], abs=1e-6)
    assert policy.failures == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_controls_have_the_dtype_of_the_states(dtype):
    plan = open_loop(linear(), straight(START, torch.zeros(2), torch.zeros(2), steps=3))
    policy = Replanner(linear(), plan)
    for t in (0.0, torch.tensor(0.5)):
        assert policy(t, START[None].to(dtype)).dtype == dtype


# --- constraints --------------------------------------------------------------------------------


def one_ahead(problem, steps):
    """A guess in which the first agent reaches the gate before the other one."""
    s = torch.linspace(0, 1, steps + 1)[:, None]
    share = torch.cat([s**0.5, s**0.5, s**2, s**2], 1)
    x = (1 - share) * problem.start + share * problem.target
    return Plan(x, x.diff(dim=0) * steps, math.nan, 0)


@pytest.mark.parametrize(
    ("problem", "binds"), [(Corridor(), False), (Corridor(100.0, 0.0, radius=0.8), True)]
)
def test_agents_in_the_corridor_keep_their_distance(problem, binds):
    """By repulsion, or where there is none by the constraint, which then costs."""
    symbols, guess = symbolic.corridor(problem), one_ahead(problem, 20)
    plan = open_loop(symbols, guess)
    free = open_loop(symbols._replace(constraint=None), guess)
    assert (plan.cost > free.cost + 0.1) == binds
    assert (problem.distance(plan.x).min() < 2 * problem.radius + 1e-3) == binds
    assert binds or plan.cost == pytest.approx(63.2612, abs=1e-3)
    distance = problem.distance(plan.x)
    assert distance.min() >= 2 * problem.radius - 1e-6
    path = rollout(problem, replayed(plan), problem.start[None], steps=20)
    assert float(path.cost) == pytest.approx(plan.cost, rel=1e-8)
    assert problem.distance(path.x[:, 0]).min() >= 2 * problem.radius - 1e-6


def test_a_constraint_that_binds_is_met_and_costs():
    """From 0 to 1 below a ceiling at ½: u = ½ on the way is all that is allowed."""
    free = SymbolicProblem(
        1, 1, lambda x, u: u, lambda x, u: 0.5 * ca.sumsqr(u), lambda x: 500 * ca.sumsqr(x - 1)
    )
    guess = straight(torch.zeros(1), torch.ones(1), torch.zeros(1), steps=4)
    loose, tight = (
        open_loop(problem, guess) for problem in (free, free._replace(constraint=lambda x: 0.5 - x))
    )
    assert float(loose.x[-1]) == pytest.approx(1000 / 1001, abs=1e-6)
    assert tight.x.flatten().tolist() == pytest.approx([0, 1 / 8, 1 / 4, 3 / 8, 1 / 2], abs=1e-6)
    assert tight.cost == pytest.approx(0.125 + 500 / 4, rel=1e-6)


def impossible(**changes):
    return linear()._replace(**changes)


FAILURES = {
    "no room": impossible(constraint=lambda x: -1 - ca.sumsqr(x)),
    "no number": impossible(drift=lambda x, u: ca.sqrt(-1 - ca.sumsqr(x)) * u),
    "no bound": impossible(
        running_cost=lambda x, u: -ca.sumsqr(u), terminal_cost=lambda x: -ca.sumsqr(x)
    ),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_where_there_is_no_optimum_it_says_what_to_try(name, method):
    guess = straight(START, torch.zeros(2), torch.ones(2), steps=3)
    with pytest.raises(PlanError, match=r"IPOPT ended with \w+; start from another guess"):
        open_loop(FAILURES[name], guess, method=method)


def test_a_first_state_that_breaks_the_constraint_is_no_failure():
    """The constraint binds from the next node on: where one starts is not to be chosen."""
    problem = linear()._replace(constraint=lambda x: 0.9 - x[0])
    plan = open_loop(problem, straight(START, torch.zeros(2), torch.zeros(2), steps=10))
    assert plan.x[0, 0] == pytest.approx(1.0)
    assert plan.x[1:, 0].max() < 0.9 + 1e-6


@pytest.mark.parametrize("times", [[0.075], [0.0, 0.15], [0.0, 0.075, 0.075], [0.0, 1.5]])
def test_replanning_refuses_other_steps_than_the_plan_has(times):
    policy = Replanner(linear(), open_loop(linear(), straight(START, START, START, steps=20)))
    for t in times[:-1]:
        policy(t, START[None])
    with pytest.raises(ValueError, match="is not the next of 20 steps"):
        policy(times[-1], START[None])


def test_an_unknown_method_is_no_runge_kutta():
    source = inspect.unwrap(open_loop)
    with pytest.raises(ValueError, match='must be "euler" or "rk4"'):
        source(linear(), straight(START, START, START, steps=3), method="rk5")
