"""Optimal control: paths and costs, the HJB equation, and the six terms of the objective."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.stats import chi2
from torch import func, nn

from ctdl_lib.control import (
    ControlProblem,
    CostError,
    check,
    feedback,
    hamiltonian,
    hjb_residual,
    objective,
    rollout,
)
from ctdl_lib.dynamics import IntegrationError, taylor_errors
from ctdl_lib.metrics import observed_orders
from ctdl_lib.potentials import AutodiffPotential, Potential, ResNetPotential
from ctdl_lib.potentials.potential import derivatives_along
from ctdl_lib.problems.control import LinearQuadratic
from ctdl_lib.problems.vehicles import Quadcopter

SIGMA = torch.tensor([[0.3, -0.1, 0.2], [0.0, 0.4, -0.2]], dtype=torch.float64)
PENALTIES = ("hjb", "bsde", "terminal", "terminal_gradient", "initial")


class Pendulum:
    """Time in every part, x ∈ R², u ∈ R, and as many sources of noise as σ has columns."""

    def __init__(self, diffusion=SIGMA, horizon=1.3):
        self.diffusion, self.horizon = diffusion, horizon

    @staticmethod
    def clock(t, x):
        return torch.as_tensor(t, dtype=x.dtype).expand(len(x))

    def free(self, t, x):
        return (1 + self.clock(t, x))[:, None] * torch.stack([x[:, 1], -x[:, 0].sin()], 1)

    def drift(self, t, x, u):
        return self.free(t, x) + u * x.new_tensor([0.5, 1.0])

    def running_cost(self, t, x, u):
        s = self.clock(t, x)
        return 0.5 * (1 + s) * u[:, 0].square() + 0.3 * s**2 * x.square().sum(1)

    def terminal_cost(self, x):
        return torch.log(1 + x.square().sum(1))

    def optimal_control(self, t, x, p):
        return -(p @ p.new_tensor([0.5, 1.0]) / (1 + self.clock(t, x)))[:, None]

    def least(self, t, x, p):
        """The Hamiltonian in closed form."""
        s, along = self.clock(t, x), 0.5 * p[:, 0] + p[:, 1]
        free = (p * self.free(t, x)).sum(1) + 0.3 * s**2 * x.square().sum(1)
        return free - 0.5 * along.square() / (1 + s)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, t, x):
        return self.outer(torch.tanh(self.inner(torch.cat([x, t[:, None]], 1))))


def black_box(generator):
    net = AutodiffPotential(Net())
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator))
    return net


def closed_form(generator):
    phi = ResNetPotential(2, width=6, layers=3, generator=generator).double()
    with torch.no_grad():
        for p in phi.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return phi


POTENTIALS = {"black box": black_box, "closed form": closed_form}


class Counting(Potential):
    """A potential that keeps what was asked of it."""

    def __init__(self, phi):
        super().__init__()
        self.phi, self.asked = phi, []

    def note(self, name, x):
        self.asked.append((name, len(x), torch.is_grad_enabled()))

    def forward(self, t, x):
        self.note("value", x)
        return self.phi(t, x)

    def gradient(self, t, x):
        self.note("gradient", x)
        return self.phi.gradient(t, x)

    def derivatives(self, t, x, sigma=None):
        self.note("derivatives", x)
        return self.phi.derivatives(t, x, sigma)


def linear_quadratic(diffusion, **options):
    target = torch.tensor([1.0, -0.5], dtype=torch.float64)
    return LinearQuadratic(target, 3.0, diffusion, **options)


def wandering(t, x):
    """A policy that is no feedback of any potential."""
    return torch.sin(3 * Pendulum.clock(t, x))[:, None] - 0.5 * x[:, :1]


def increments(generator, steps, batch, sources, horizon):
    noise = torch.randn(steps, batch, sources, generator=generator)
    return math.sqrt(horizon / steps) * noise


def as_matrix(sigma, d):
    return sigma if isinstance(sigma, torch.Tensor) and sigma.dim() else sigma * torch.eye(d)


def moving(t, x):
    """A diffusion that depends on time and state, with three sources of noise for two states."""
    s = Pendulum.clock(t, x)
    first = torch.stack([0.3 + 0.2 * x[:, 1].sin(), 0.1 * s, -0.2 * x[:, 0].cos()], 1)
    second = torch.stack([0.1 * x[:, 0], 0.4 + 0.1 * s, 0.1 * torch.ones_like(s)], 1)
    return torch.stack([first, second], 1)


def growing(t, x):
    """A diffusion that depends on time alone, one number a sample."""
    return 0.1 + 0.3 * Pendulum.clock(t, x)


def matrices(sigma, t, x):
    """The matrices of all samples, (batch, d, r)."""
    if callable(sigma):
        found = sigma(t, x)
        return found if found.dim() == 3 else found[:, None, None] * torch.eye(x.shape[1])
    return as_matrix(sigma, x.shape[1]).expand(len(x), x.shape[1], -1)


def sources(sigma, d=2):
    """The number of sources of noise."""
    return matrices(sigma, 0.0, torch.zeros(1, d)).shape[-1]


def driven(sigma, dW):
    """The noise as an option, where there is any."""
    return {"dW": dW} if isinstance(sigma, torch.Tensor) or sigma else {}


def slope(phi, t, x):
    """The gradient in x, by autograd."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(phi(t, x).sum(), x, create_graph=True)[0]


def path_by_hand(problem, policy, x, dW):
    """The states and the running cost, sample by sample of time."""
    h = problem.horizon / len(dW)
    states, running = [x], torch.zeros(len(x))
    for k, noise in enumerate(dW):
        u, sigma = policy(k * h, x), matrices(problem.diffusion, k * h, x)
        running = running + h * problem.running_cost(k * h, x, u)
        x = x + h * problem.drift(k * h, x, u) + torch.einsum("nij,nj->ni", sigma, noise)
        states.append(x)
    return states, running


def penalties_by_hand(problem, phi, x, dW, sampler=None):
    """The terms on Φ by a loop over times, the derivatives by autograd and a full Hessian."""
    steps, h = len(dW), problem.horizon / len(dW)
    policy = sampler or (lambda t, x: problem.optimal_control(t, x, slope(phi, t, x)))
    states, running = path_by_hand(problem, policy, x, dW)
    states = [state.detach() for state in states]
    residual, defect = 0.0, 0.0
    for k, state in enumerate(states):
        t = torch.full((len(state),), k * h, requires_grad=True)
        state.requires_grad_()
        value = phi(t, state)
        dt, p = torch.autograd.grad(value.sum(), (t, state), create_graph=True)
        rows = [torch.autograd.grad(column.sum(), state, create_graph=True)[0] for column in p.T]
        sigma = matrices(problem.diffusion, k * h, state.detach())
        trace = torch.einsum("nik,ijn,njk->n", sigma, torch.stack([row.T for row in rows]), sigma)
        H = problem.least(k * h, state, p)
        residual = residual + (dt + H + 0.5 * trace).abs().mean() / (steps + 1)
        if k == 0:
            start = value.mean()
        if k < steps:
            b = problem.drift(k * h, state, policy(k * h, state))
            change = phi((k + 1) * h, states[k + 1].detach()) - value
            martingale = (p * torch.einsum("nij,nj->ni", sigma, dW[k])).sum(1)
            defect = defect + (change + (H - (p * b).sum(1)) * h - martingale).abs().mean()
    end = states[-1].detach().requires_grad_()
    G = problem.terminal_cost(end)
    (dG,) = torch.autograd.grad(G.sum(), end)
    return {
        "hjb": residual,
        "bsde": defect,
        "terminal": (value - G.detach()).abs().mean(),
        "terminal_gradient": (p - dG).abs().sum(1).mean(),
        "initial": (start - (running + G).mean().detach()).abs(),
    }


# --- the Hamiltonian and the HJB equation -------------------------------------------------------


def test_the_hamiltonian_is_the_minimum_over_controls(generator):
    problem, x = Pendulum(), torch.randn(20, 2, generator=generator)
    p, t = torch.randn(20, 2, generator=generator), torch.rand(20, generator=generator)
    H = hamiltonian(problem, t, x, p)
    assert torch.allclose(H, problem.least(t, x, p))
    for u in 3 * torch.randn(1000, 20, 1, generator=generator):
        cost = problem.running_cost(t, x, u) + (p * problem.drift(t, x, u)).sum(1)
        assert (cost >= H - 1e-12).all()


@pytest.mark.parametrize(
    "sigma", [0.0, 0.4, torch.tensor(0.4, dtype=torch.float64), SIGMA, moving, growing]
)
@pytest.mark.parametrize("name", POTENTIALS)
def test_the_residual_is_that_of_autograd_and_a_full_hessian(name, sigma, generator):
    phi, problem = POTENTIALS[name](generator), Pendulum(sigma)
    x = torch.randn(6, 2, generator=generator)
    t = torch.rand(6, generator=generator).requires_grad_()
    x.requires_grad_()
    dt, p = torch.autograd.grad(phi(t, x).sum(), (t, x), create_graph=True)
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in p.T]
    S = matrices(sigma, t.detach(), x.detach())
    trace = torch.einsum("nik,inj,njk->n", S, torch.stack(rows), S)
    residual = dt + problem.least(t, x, p) + 0.5 * trace
    assert torch.allclose(hjb_residual(problem, phi, t.detach(), x.detach()), residual)


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_residual_has_a_gradient_in_a_learned_diffusion(name, generator):
    """A matrix that a function returns is differentiated as one that the potential is given."""
    phi, x = POTENTIALS[name](generator), torch.randn(6, 2, generator=generator)
    scale = torch.tensor(1.3, requires_grad=True)
    sigma = (scale * SIGMA).expand(6, 2, 3)
    along = derivatives_along(phi, 0.4, x, sigma)
    whole = phi.derivatives(0.4, x, scale * SIGMA)
    assert all(torch.allclose(a, b) for a, b in zip(along, whole, strict=True))
    wanted = [scale, *phi.parameters()]
    ours, theirs = (
        torch.autograd.grad(found.laplacian.square().sum(), wanted, materialize_grads=True)
        for found in (along, whole)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert ours[0].abs() > 1e-3


class Straight(nn.Module):
    def forward(self, t, x):
        return x.sum(1)


def test_a_potential_without_curvature_has_no_trace(generator):
    x = torch.randn(4, 2, generator=generator)
    found = derivatives_along(AutodiffPotential(Straight()), 0.2, x, moving(0.2, x))
    assert torch.equal(found.laplacian, torch.zeros(4))


def test_feedback_is_the_minimiser_at_the_slope(generator):
    problem, phi = Pendulum(), closed_form(generator)
    x, policy = torch.randn(5, 2, generator=generator), feedback(problem, phi)
    u = policy(0.4, x).detach().requires_grad_()
    p = slope(phi, 0.4, x).detach()
    cost = problem.running_cost(0.4, x, u) + (p * problem.drift(0.4, x, u)).sum(1)
    assert torch.autograd.grad(cost.sum(), u)[0].abs().max() < 1e-12


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1.0, 0.6])
@pytest.mark.parametrize(
    "sigma", [0.0, 0.4, torch.tensor(0.4, dtype=torch.float64), SIGMA, moving, growing]
)
def test_paths_and_costs_equal_a_plain_loop(sigma, horizon, generator):
    problem, x = Pendulum(sigma, horizon), torch.randn(4, 2, generator=generator)
    dW = increments(generator, 7, 4, sources(sigma), horizon)
    path = rollout(problem, wandering, x, steps=7, **driven(sigma, dW))
    states, running = path_by_hand(problem, wandering, x, dW)
    assert torch.allclose(path.x, torch.stack(states), atol=1e-12)
    assert torch.allclose(path.t, torch.linspace(0, horizon, 8))
    assert torch.allclose(path.running_cost, running)
    assert torch.allclose(path.terminal_cost, problem.terminal_cost(states[-1]))
    assert torch.equal(path.cost, path.running_cost + path.terminal_cost)


@pytest.mark.parametrize("sigma", [0.4, SIGMA, moving])
def test_the_noise_of_a_path_reproduces_it(sigma, generator):
    problem, x = Pendulum(sigma), torch.randn(4, 2, generator=generator)
    drawn = rollout(problem, wandering, x, steps=9, generator=generator)
    again = rollout(problem, wandering, x, steps=9, dW=drawn.dW)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert drawn.dW.shape == (9, 4, sources(sigma))
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    one, two = (rollout(problem, wandering, x, steps=9, generator=seed) for seed in seeds)
    assert torch.equal(one.x, two.x)
    assert not torch.equal(one.x, drawn.x)


def test_increments_have_the_variance_of_a_step(generator):
    problem, x = Pendulum(horizon=0.5), torch.zeros(20_000, 2)
    dW = rollout(problem, wandering, x, steps=2, generator=generator).dW
    assert float(dW.var()) == pytest.approx(0.25, rel=0.02)


def exact_cost(problem, policy, x):
    """The cost without noise of one start, by an adaptive method of order 8."""

    def rates(t, y):
        state = torch.from_numpy(y[:2])[None]
        u = policy(t, state)
        parts = problem.drift(t, state, u)[0], problem.running_cost(t, state, u)
        return torch.cat(parts).numpy()

    y = solve_ivp(rates, (0, problem.horizon), [*x, 0.0], "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return y[2] + float(problem.terminal_cost(torch.from_numpy(y[:2])[None]))


@pytest.mark.parametrize(("method", "order"), [("euler_maruyama", 1), ("rk4", 4)])
def test_costs_without_noise_have_the_order_of_the_method(method, order):
    problem = Pendulum(0.0)
    exact = exact_cost(problem, wandering, [0.7, -0.4])
    steps, x = [20, 40, 80], torch.tensor([[0.7, -0.4]])
    costs = [rollout(problem, wandering, x, steps=n, method=method).cost.item() for n in steps]
    errors = [abs(cost - exact) for cost in costs]
    orders = observed_orders(errors, [1 / n for n in steps])
    assert orders[-1] == pytest.approx(order, abs=0.15)
    assert errors[-1] < (0.1 if order == 1 else 1e-6)


def test_rk4_saves_states_at_equal_times():
    problem, x = Pendulum(0.0), torch.tensor([[0.7, -0.4], [0.1, 0.2]])
    path = rollout(problem, wandering, x, steps=10, method="rk4")
    fine = rollout(problem, wandering, x, steps=40, method="rk4")
    assert path.x.shape == (11, 2, 2)
    assert path.dW is None
    assert torch.equal(path.x[0], x)
    assert torch.allclose(path.x, fine.x[::4], atol=1e-4)
    assert torch.allclose(path.t, fine.t[::4])


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 6),
    steps=st.integers(1, 5),
    horizon=st.floats(0.1, 3.0),
    matrix=st.booleans(),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_permuted_batch_has_permuted_costs(batch, steps, horizon, matrix, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    problem = Pendulum(SIGMA if matrix else 0.3, horizon)
    x = torch.randn(batch, 2, generator=generator, dtype=dtype)
    order = torch.randperm(batch, generator=generator)
    whole = rollout(problem, wandering, x, steps=steps, generator=generator)
    part = rollout(problem, wandering, x[order], steps=steps, dW=whole.dW[:, order])
    assert torch.allclose(whole.cost[order], part.cost, rtol=1e-4)
    assert torch.allclose(whole.x[:, order], part.x, rtol=1e-4, atol=1e-5)
    assert {entry.dtype for entry in (*whole, whole.cost)} == {dtype}


# --- the objective ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.4, SIGMA, moving, growing])
@pytest.mark.parametrize("name", POTENTIALS)
def test_penalties_and_their_gradients_equal_a_plain_loop(name, sigma, sampled, generator):
    """The defect's gradient is left to its own test: here b is data or not, as one reads it."""
    phi, problem = POTENTIALS[name](generator), Pendulum(sigma)
    x = torch.randn(5, 2, generator=generator)
    dW = increments(generator, 4, 5, sources(sigma), problem.horizon)
    sampler = wandering if sampled else None
    wanted = {name: 1.0 for name in PENALTIES if not (sampled and name == "initial")}
    found = objective(
        problem, phi, x, steps=4, sampler=sampler, cost=0.0, **driven(sigma, dW), **wanted
    )
    hand = penalties_by_hand(problem, phi, x, dW, sampler)
    assert found.keys() == wanted.keys()
    parameters = list(phi.parameters())
    for term, value in found.items():
        assert torch.allclose(value, hand[term], rtol=1e-9), term
        ours, theirs = (
            torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True)
            for v in (value, hand[term])
        )
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-7, atol=1e-10), term


@pytest.mark.parametrize("sigma", [0.0, SIGMA, moving])
def test_the_cost_and_its_gradient_are_those_of_a_plain_loop_through_the_paths(sigma, generator):
    phi, problem = closed_form(generator), Pendulum(sigma)
    x = torch.randn(5, 2, generator=generator)
    dW = increments(generator, 4, 5, sources(sigma), problem.horizon)
    terms = objective(problem, phi, x, steps=4, cost=2.5, **driven(sigma, dW))
    policy = lambda t, x: problem.optimal_control(t, x, slope(phi, t, x))  # noqa: E731
    states, running = path_by_hand(problem, policy, x.requires_grad_(), dW)
    cost = 2.5 * (running + problem.terminal_cost(states[-1])).mean()
    assert terms.keys() == {"cost"}
    assert torch.allclose(terms["cost"], cost)
    parameters = list(phi.parameters())
    ours, theirs = (
        torch.autograd.grad(value, parameters, materialize_grads=True)
        for value in (terms["cost"], cost)
    )
    assert all(torch.allclose(a, b, rtol=1e-7) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("method", ["euler_maruyama", "rk4"])
@pytest.mark.parametrize("weights", [{"cost": 1.0}, {"cost": 0.3, "hjb": 1.0, "initial": 2.0}])
def test_the_gradient_in_the_parameters_passes_the_taylor_test(weights, method, generator):
    """Where other terms are weighed, only that of the cost is differentiated here."""
    phi, problem = closed_form(generator), Pendulum(0.0 if method == "rk4" else SIGMA)
    x = torch.randn(3, 2, generator=generator)
    dW = None if method == "rk4" else increments(generator, 3, 3, 3, problem.horizon)
    K, direction = phi.K0.detach().clone(), torch.randn(phi.K0.shape, generator=generator)

    def value(K0):
        with torch.no_grad():
            phi.K0.copy_(K0)
        return objective(problem, phi, x, steps=3, dW=dW, method=method, **weights)["cost"]

    (gradient,) = torch.autograd.grad(value(K), phi.K0)
    with torch.no_grad():
        errors = taylor_errors(value, lambda K, dK: (gradient * dK).sum(), K, direction, 13)
    orders = observed_orders(errors.first.tolist(), errors.h.tolist())
    assert orders[-2] == pytest.approx(2, abs=0.1)


def test_weights_multiply_their_terms(generator):
    phi, problem = closed_form(generator), Pendulum()
    x = torch.randn(5, 2, generator=generator)
    dW = increments(generator, 3, 5, 3, problem.horizon)
    names = ("cost", *PENALTIES)
    ones = objective(problem, phi, x, steps=3, dW=dW, **dict.fromkeys(names, 1.0))
    weights = {name: 0.5 + k for k, name in enumerate(names)}
    for name, value in objective(problem, phi, x, steps=3, dW=dW, **weights).items():
        assert torch.allclose(value, weights[name] * ones[name]), name
        alone = objective(problem, phi, x, steps=3, dW=dW, **{"cost": 0.0, name: 1.0})
        assert torch.allclose(alone[name], ones[name]), name


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("cost", [0.0, 1.0])
def test_penalties_do_not_bend_the_paths(name, cost, generator):
    """Nothing flows to the starts, and with or without the cost the gradients are the same."""
    phi, problem = closed_form(generator), Pendulum()
    x = torch.randn(5, 2, generator=generator, requires_grad=True)
    dW = increments(generator, 3, 5, 3, problem.horizon)
    term = objective(problem, phi, x, steps=3, dW=dW, **{"cost": cost, name: 1.0})[name]
    to_starts, *gradients = torch.autograd.grad(
        term, [x, *phi.parameters()], allow_unused=True, retain_graph=True
    )
    assert to_starts is None
    alone = objective(problem, phi, x.detach(), steps=3, dW=dW, **{"cost": 0.0, name: 1.0})[name]
    for a, b in zip(
        gradients,
        torch.autograd.grad(alone, list(phi.parameters()), allow_unused=True),
        strict=True,
    ):
        assert (a is None and b is None) or torch.allclose(a, b)


POINTS, ENDS = 5 * 4, 2 * 5  # 4 nodes of 5 paths, and their ends
WORK = {
    "cost": ({"cost": 1.0}, [("gradient", 5, True)] * 3),
    "hjb": ({"hjb": 1.0}, [("derivatives", POINTS, True)]),
    "bsde": ({"bsde": 1.0}, [("gradient", POINTS, True)]),
    "both": ({"hjb": 1.0, "bsde": 2.0}, [("derivatives", POINTS, True)]),
    "terminal": ({"terminal": 1.0}, [("gradient", ENDS, True)]),
    "slopes": ({"terminal_gradient": 1.0, "terminal": 1.0}, [("gradient", ENDS, True)]),
}


@pytest.mark.parametrize("name", WORK)
def test_a_term_of_weight_zero_does_no_work(name, generator):
    weights, asked = WORK[name]
    phi, x = Counting(closed_form(generator)), torch.randn(5, 2, generator=generator)
    sampler = None if "cost" in weights else wandering
    weights = {"cost": 0.0} | weights
    terms = objective(Pendulum(), phi, x, steps=3, generator=generator, sampler=sampler, **weights)
    assert phi.asked == asked
    assert terms.keys() == {name for name, weight in weights.items() if weight}


def test_without_the_cost_paths_are_not_recorded(generator):
    phi, x = Counting(closed_form(generator)), torch.randn(5, 2, generator=generator)
    objective(Pendulum(), phi, x, steps=3, generator=generator, cost=0.0, initial=1.0)
    assert phi.asked == [("gradient", 5, False)] * 3 + [("gradient", ENDS, True)]


def test_without_noise_nothing_needs_second_derivatives(generator):
    phi, x = Counting(closed_form(generator)), torch.randn(5, 2, generator=generator)
    objective(Pendulum(0.0), phi, x, steps=3, cost=0.0, hjb=1.0, bsde=1.0, terminal=1.0)
    assert {name for name, *_ in phi.asked} == {"gradient"}


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 5),
    steps=st.integers(1, 4),
    sigma=st.sampled_from([0.3, SIGMA]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_terms_do_not_depend_on_the_order_of_the_batch(batch, steps, sigma, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    phi, problem = closed_form(generator).to(dtype), Pendulum(sigma)
    x = torch.randn(batch, 2, generator=generator, dtype=dtype)
    dW = increments(generator, steps, batch, as_matrix(sigma, 2).shape[1], 1.3).to(dtype)
    order = torch.randperm(batch, generator=generator)
    ones = dict.fromkeys(("cost", *PENALTIES), 1.0)
    whole = objective(problem, phi, x, steps=steps, dW=dW, **ones)
    part = objective(problem, phi, x[order], steps=steps, dW=dW[:, order], **ones)
    for name, term in whole.items():
        assert torch.allclose(term, part[name], rtol=1e-3, atol=1e-4), name
        assert term.dtype == dtype
        assert term.shape == ()


def test_the_objective_draws_the_noise_of_its_rollout(generator):
    problem, phi = Pendulum(), closed_form(generator)
    x = torch.randn(5, 2, generator=generator)
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    term = objective(problem, phi, x, steps=4, generator=seeds[0])["cost"]
    path = rollout(problem, feedback(problem, phi), x, steps=4, generator=seeds[1])
    assert torch.allclose(term, path.cost.mean())


# --- of an exact value function -----------------------------------------------------------------


def off_course(t, x):
    """Controls in R² that have nothing to do with the target."""
    return torch.stack([torch.cos(4 * Pendulum.clock(t, x)), x[:, 0]], 1)


@pytest.mark.parametrize("sampler", [None, off_course])
@pytest.mark.parametrize("sigma", [0.0, 0.6, SIGMA])
def test_the_exact_value_function_has_no_residual_and_meets_the_end(sigma, sampler, generator):
    problem = linear_quadratic(sigma, gain=1.5, control_cost=0.7, horizon=0.8)
    x = torch.randn(50, 2, generator=generator)
    names = ("hjb", "terminal", "terminal_gradient")
    more = dict.fromkeys(names, 1.0) | (
        {} if isinstance(sigma, float) and sigma == 0 else {"generator": generator}
    )
    terms = objective(problem, problem.value(), x, steps=10, sampler=sampler, cost=0.0, **more)
    assert terms.keys() == set(names)
    assert max(float(term) for term in terms.values()) < 1e-12


@pytest.mark.parametrize("method", ["euler_maruyama", "rk4"])
def test_without_noise_its_defects_off_course_vanish_with_the_step(method, generator):
    problem = linear_quadratic(0.0, gain=1.5, control_cost=0.7, horizon=0.8)
    x, steps = torch.randn(20, 2, generator=generator), [20, 40, 80]
    setting = {"method": method, "sampler": off_course, "cost": 0.0, "bsde": 1.0}
    defects = [objective(problem, problem.value(), x, steps=n, **setting)["bsde"] for n in steps]
    orders = observed_orders([float(d) for d in defects], [1 / n for n in steps])
    assert orders[-1] == pytest.approx(1, abs=0.15)


def test_without_noise_an_euler_step_of_its_feedback_leaves_no_defect(generator):
    """P(t + h) = P(t)/(1 − hkP(t)), so that ½P(t + h)‖z + hbu‖² + hL is ½P(t)‖z‖²."""
    problem = linear_quadratic(0.0, gain=1.5, control_cost=0.7, horizon=0.8)
    x = torch.randn(20, 2, generator=generator)
    term = objective(problem, problem.value(), x, steps=5, cost=0.0, bsde=1.0)["bsde"]
    assert term < 1e-13


@pytest.mark.parametrize("sampler", [None, off_course])
@pytest.mark.parametrize("d", [1, 2])
def test_with_noise_its_defects_are_those_of_chi_squares(d, sampler, generator):
    """½Pσ²(‖ΔW‖² − dh) is left of a step: E Σ|.| tends to κ(0) E|χ²_d − d|/d, not to zero."""
    problem = LinearQuadratic(torch.zeros(d), 1.0, 0.9, gain=1.2, control_cost=0.8, horizon=0.8)
    kappa = float(problem.value()(0.0, torch.zeros(1, d)))
    limit = kappa * chi2(d).expect(lambda q: abs(q - d)) / d
    if sampler is not None:
        sampler = lambda t, x: 0.5 * off_course(t, x)[:, :d]  # noqa: E731
    x, setting = torch.zeros(4000, d), {"sampler": sampler, "cost": 0.0, "bsde": 1.0}
    gaps = []
    for n in (10, 200):
        term = objective(problem, problem.value(), x, steps=n, generator=generator, **setting)
        gaps.append(abs(float(term["bsde"]) / limit - 1))
    assert gaps[1] < 0.015
    assert gaps[1] < gaps[0]


def test_with_noise_the_mean_defect_vanishes(generator):
    """As E[Φ(T, x_T)] + E∫L = Φ(0, x): `initial` falls with h for the exact value function."""
    problem = linear_quadratic(0.5, horizon=0.8)
    x = torch.randn(1, 2, generator=generator).expand(100_000, 2)
    gaps = []
    for steps in (4, 16):
        term = objective(
            problem, problem.value(), x, steps=steps, generator=generator, cost=0.0, initial=1.0
        )
        gaps.append(float(term["initial"]))
    assert gaps[0] / gaps[1] == pytest.approx(4, abs=1.2)


def test_no_other_policy_of_its_family_is_cheaper(generator):
    problem = linear_quadratic(SIGMA, gain=1.5, control_cost=0.7)
    best = feedback(problem, problem.value())
    x = torch.randn(2000, 2, generator=generator)
    found = rollout(problem, best, x, steps=40, generator=generator)
    for other in (
        lambda t, x: 0.8 * best(t, x),
        lambda t, x: 1.25 * best(t, x),
        lambda t, x: best(t, x) + 0.3,
    ):
        cost = rollout(problem, other, x, steps=40, dW=found.dW).cost
        gap = cost - found.cost
        assert gap.mean() > 3 * gap.std() / math.sqrt(len(x))


# --- noise that depends on the state, and controls with bounds ------------------------------------


class Manufactured:
    """A problem whose value function is chosen, and whose running cost makes the HJB equation hold.

    |u| ≤ 1 in both entries, and σ depends on time and state.
    """

    horizon, limit = 0.8, 1.0

    def __init__(self, diffusion=moving):
        self.diffusion = diffusion

    def value(self, t, x):
        return (1 + 0.5 * t) * torch.log(1 + x.square().sum(-1)) + x[..., 0].sin()

    def free(self, x):
        return torch.stack([x[..., 1], -x[..., 0].sin()], -1)

    def drift(self, t, x, u):
        return self.free(x) + u

    def optimal_control(self, t, x, p):
        return -p.clamp(-self.limit, self.limit)

    def terminal_cost(self, x):
        return self.value(self.horizon, x)

    def running_cost(self, t, x, u):
        t = Pendulum.clock(t, x)
        dt = func.vmap(func.grad(self.value, argnums=0))(t, x)
        p = func.vmap(func.grad(self.value, argnums=1))(t, x)
        hessian = func.vmap(func.hessian(self.value, argnums=1))(t, x)
        S = moving(t, x)
        best = -p.clamp(-self.limit, self.limit)
        least = 0.5 * best.square().sum(1) + (p * (self.free(x) + best)).sum(1)
        noise = 0.5 * torch.einsum("nik,nij,njk->n", S, hessian, S)
        return 0.5 * u.square().sum(1) - (dt + least + noise)


class Known(nn.Module):
    def forward(self, t, x):
        return Manufactured().value(t, x)


def test_a_chosen_value_function_has_no_residual_and_bounds_are_kept(generator):
    problem, phi = Manufactured(), AutodiffPotential(Known())
    x, t = 1.5 * torch.randn(40, 2, generator=generator), torch.rand(40, generator=generator)
    assert hjb_residual(problem, phi, t, x).abs().max() < 1e-12
    frozen = Manufactured(moving(0.0, torch.zeros(1, 2))[0])
    assert hjb_residual(frozen, phi, t, x).abs().max() > 0.05
    bounds = -torch.ones(2), torch.ones(2)
    assert check(problem, x, generator=generator, bounds=bounds).excess < 1e-9
    u = feedback(problem, phi)(t, x)
    assert u.abs().max() == problem.limit
    assert (u.abs() < problem.limit).any()


def test_the_cost_of_its_feedback_is_the_chosen_value_function(generator):
    """Itô's formula: J − ∫ pᵀσ dW = Φ(0, x) on every path, up to the error of the steps."""
    problem, phi = Manufactured(), AutodiffPotential(Known())
    x = torch.tensor([[0.8, -0.4]]).expand(64, 2)
    errors = []
    for steps in (40, 160):
        path = rollout(problem, feedback(problem, phi), x, steps=steps, generator=generator)
        cost = path.cost
        for t, state, dw in zip(path.t[:-1], path.x[:-1], path.dW, strict=True):
            p = phi.gradient(t, state).dx
            cost = cost - torch.einsum("ni,nij,nj->n", p, moving(t, state), dw)
        errors.append((cost - phi(0.0, x)).square().mean().sqrt())
    assert errors[1] < 0.7 * errors[0]
    assert errors[1] < 0.05 * phi(0.0, x)[0]
    idle = rollout(problem, lambda t, x: torch.zeros_like(x), x, steps=160, generator=generator)
    assert idle.cost.mean() > 1.1 * phi(0.0, x)[0]


# --- bad input ----------------------------------------------------------------------------------


class Cliff:
    """The cost log(1.5 − x₁) of a walk to the right is infinite on the way, or at the end."""

    diffusion, horizon = 0.0, 1.0

    def __init__(self, at_end):
        self.at_end = at_end

    def drift(self, t, x, u):
        return u

    def running_cost(self, t, x, u):
        return 0 * x[:, 0] if self.at_end else (1.5 - x[:, 0]).log()

    def terminal_cost(self, x):
        return (2 - x[:, 0]).log() if self.at_end else x[:, 0]

    def optimal_control(self, t, x, p):
        return torch.ones_like(x)


def along(t, x):
    return torch.ones_like(x)


STARTS = [[-1.0, 0.0], [1.0, 0.25]]


def test_a_running_cost_that_is_not_finite_is_blamed_on_sample_time_and_place():
    with pytest.raises(CostError, match=r"sample 1 is -inf at t=0.5, where x=\[1.5, 0.75\]"):
        rollout(Cliff(False), along, torch.tensor(STARTS), steps=4)


@pytest.mark.parametrize("method", ["euler_maruyama", "rk4"])
def test_a_terminal_cost_that_is_not_finite_is_blamed_on_the_end(method):
    with pytest.raises(CostError, match=r"sample 1 is -inf at t=1, where x=\[2.0, 1.25\]"):
        rollout(Cliff(True), along, torch.tensor(STARTS), steps=4, method=method)


def test_rk4_blames_the_running_cost_as_well():
    with pytest.raises(CostError, match=r"sample 1"):
        rollout(Cliff(False), along, torch.tensor(STARTS), steps=4, method="rk4")


def test_a_path_that_explodes_is_not_the_fault_of_the_cost():
    explode = lambda t, x: 1e200 * (1 + x.abs()) ** 2  # noqa: E731
    with pytest.raises(IntegrationError, match="not finite from t=0"):
        rollout(Cliff(True), explode, torch.tensor(STARTS), steps=4)


def simulated(sigma=0.0, **options):
    options = {"steps": 3} | options
    return lambda: rollout(Pendulum(sigma), wandering, torch.ones(4, 2), **options)


def weighed(sigma=0.0, **options):
    phi = ResNetPotential(2, width=3).double()
    options = {"steps": 3} | options
    return lambda: objective(Pendulum(sigma), phi, torch.ones(4, 2), **options)


def seeded():
    return torch.Generator().manual_seed(0)


BAD = {
    "no steps": (simulated(steps=0), "must be at least 1"),
    "no steps of rk4": (simulated(steps=0, method="rk4"), "must be at least 1"),
    "no steps with noise": (simulated(0.3, steps=0, generator=seeded()), "must be at least 1"),
    "a vector of noise": (
        simulated(torch.ones(2), generator=seeded()),
        r"\(2, r\) .* got shape \(2,\); use torch.diag",
    ),
    "noise of three states": (simulated(torch.eye(3), generator=seeded()), r"got shape \(3, 3\)"),
    "noise a sample": (simulated(torch.ones(4, 2, 2), generator=seeded()), "torch.diag"),
    "a diagonal a sample": (
        simulated(lambda t, x: x, generator=seeded()),
        r"got shape \(4, 2\); use torch.diag or diag_embed",
    ),
    "rk4 with moving noise": (
        simulated(moving, generator=seeded(), method="rk4"),
        "diffusion = 0",
    ),
    "rk4 with noise": (simulated(0.3, generator=seeded(), method="rk4"), "euler_maruyama"),
    "rk4 with a matrix": (simulated(SIGMA, generator=seeded(), method="rk4"), "diffusion = 0"),
    "no source of noise": (simulated(0.3), "generator="),
    "two sources of noise": (simulated(0.3, generator=seeded(), dW=torch.ones(3, 4, 2)), "exactly"),
    "short noise": (
        simulated(0.3, dW=torch.ones(2, 4, 2)),
        r"dW must have shape \(3, 4, 2\), got \(2, 4, 2\)",
    ),
    "no steps of the objective": (weighed(steps=0), "must be at least 1"),
    "a negative weight": (weighed(hjb=-1.0), "must not be negative.*'hjb': -1.0"),
    "no weight": (weighed(cost=0.0), "nor all zero"),
    "the cost of a sampler": (weighed(sampler=wandering, hjb=1.0), "cost=0 and initial=0"),
    "the start of a sampler": (
        weighed(sampler=wandering, cost=0.0, initial=1.0),
        "leave the sampler out",
    ),
    "the objective by rk4 with noise": (
        weighed(SIGMA, method="rk4", generator=seeded()),
        "diffusion = 0",
    ),
    "residuals with a vector of noise": (
        lambda: hjb_residual(
            Pendulum(torch.ones(2)), ResNetPotential(2, width=3).double(), 0.0, torch.ones(3, 2)
        ),
        "torch.diag",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("steps", "method"), [(-1, "euler_maruyama"), (-3, "rk4")])
def test_steps_below_zero_are_refused_with_a_reason(steps, method):
    with pytest.raises(ValueError, match="must be at least 1"):
        simulated(steps=steps, method=method)()


@pytest.mark.parametrize("name", ["cost", "hjb"])
def test_weights_that_are_no_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a number, got nan"):
        weighed(**{name: math.nan})()


def test_a_random_sampler_has_the_defects_of_the_drift_that_it_took(generator):
    problem = linear_quadratic(0.0)
    taken = []

    def exploring(t, x):
        taken.append(torch.randn(x.shape, generator=generator))
        return taken[-1]

    x, phi = torch.randn(4, 2, generator=generator), problem.value()
    term = objective(problem, phi, x, steps=3, sampler=exploring, cost=0.0, bsde=1.0)
    controls, defect = iter(taken[:3]), 0.0
    path = rollout(problem, lambda t, x: next(controls), x, steps=3)
    for k in range(3):
        p = slope(phi, k / 3, path.x[k])
        H = hamiltonian(problem, k / 3, path.x[k], p)
        change = phi((k + 1) / 3, path.x[k + 1]) - phi(k / 3, path.x[k])
        defect += (change + (H - (p * taken[k]).sum(1)) / 3).abs().mean()
    assert torch.allclose(term["bsde"], defect)


# --- what a problem must have -------------------------------------------------------------------


class Incomplete:
    """A control problem but for the minimiser."""

    diffusion, horizon = 0.0, 1.0
    drift, running_cost, terminal_cost = Cliff.drift, along, along


@pytest.mark.parametrize(
    "problem", [Pendulum(), linear_quadratic(0.3), Quadcopter(), Cliff(True)], ids=type
)
def test_problems_are_problems(problem):
    assert isinstance(problem, ControlProblem)


ENTRIES = {"feedback": feedback, "objective": objective}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_problem_that_lacks_a_part_is_refused_by_its_name(entry):
    phi = ResNetPotential(2, width=3).double()
    arguments = (torch.ones(3, 2),) if entry == "objective" else ()
    options = {"steps": 2} if entry == "objective" else {}
    assert not isinstance(Incomplete(), ControlProblem)
    with pytest.raises(TypeError, match=f"{entry}: .* but Incomplete lacks optimal_control"):
        ENTRIES[entry](Incomplete(), phi, *arguments, **options)
    with pytest.raises(TypeError, match="NoneType lacks diffusion, horizon, drift, running_cost"):
        ENTRIES[entry](None, phi, *arguments, **options)


def test_with_a_sampler_it_is_refused_as_well():
    phi = ResNetPotential(2, width=3).double()
    problem = Incomplete()
    problem.running_cost = lambda t, x, u: x[:, 0]
    problem.terminal_cost = lambda x: x[:, 0]
    with pytest.raises(TypeError, match="lacks optimal_control"):
        objective(problem, phi, torch.ones(3, 2), steps=2, sampler=along, cost=0.0, bsde=1.0)


def test_the_first_paths_alone_can_be_penalized(generator):
    problem, x = linear_quadratic(0.3), torch.randn(6, 2, generator=generator)
    phi, dW = closed_form(generator), 0.3 * torch.randn(5, 6, 2, generator=generator)
    weights = dict.fromkeys(("hjb", "bsde", "terminal", "terminal_gradient", "initial"), 1.0)
    some = objective(problem, phi, x, steps=5, dW=dW, penalized=2, **weights)
    few = objective(problem, phi, x[:2], steps=5, dW=dW[:, :2], **weights)
    whole = objective(problem, phi, x, steps=5, dW=dW)
    assert torch.equal(some.pop("cost"), whole["cost"])
    assert all(torch.allclose(value, few[name]) for name, value in some.items())


def test_noise_is_refused_where_there_is_none(generator):
    for noise in ({"generator": generator}, {"dW": torch.zeros(3, 4, 2)}):
        with pytest.raises(ValueError, match="no noise to draw"):
            rollout(linear_quadratic(0.0), wandering, torch.zeros(4, 2), steps=3, **noise)
