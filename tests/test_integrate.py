import functools
import math
import weakref
from inspect import unwrap
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchdiffeq import odeint, odeint_adjoint

from ctdl_lib.dynamics import IntegrationError, Statistics, euler_maruyama, integrate, integration
from ctdl_lib.dynamics.stepping import METHODS, TABLEAUS
from ctdl_lib.metrics import observed_orders


class Phase(NamedTuple):
    q: Tensor
    p: Tensor


class Field(nn.Module):
    """A small nonlinear velocity with parameters."""

    def __init__(self, d=3):
        super().__init__()
        self.linear = nn.Linear(d, d)

    def forward(self, t, x):
        return torch.tanh(self.linear(x)) * (1 + t)


def pendulum(t, state):
    return Phase(state.p, -torch.sin(state.q))


def gradients(f, x, **options):
    f.zero_grad()
    x = x.clone().requires_grad_()
    integrate(f, x, 0.0, 1.0, **options).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in f.parameters())]


def relative_error(a, b):
    return max(float((u - v).norm() / v.norm()) for u, v in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)]
)
def test_order_of_convergence_on_a_nonautonomous_equation(method, order):
    x0 = torch.tensor([1.0])
    exact = math.exp(math.sin(2.0))  # ẋ = x cos t
    sizes = [64, 128, 256]
    errors = [
        abs(integrate(lambda t, x: x * math.cos(t), x0, 0.0, 2.0, steps=n, method=method) - exact)
        for n in sizes
    ]
    slope = observed_orders([float(e) for e in errors], [1 / n for n in sizes])[-1]
    assert slope == pytest.approx(order, abs=0.06)


def test_runge_kutta_4_equals_scipy_on_one_step_by_its_own_tableau():
    # the conditions Σb = 1, Σbc = 1/2, Σbc² = 1/3, Σbc³ = 1/4 of order four
    c, a, b = (TABLEAUS["rk4"].c, TABLEAUS["rk4"].a, TABLEAUS["rk4"].b)
    for power, value in enumerate([1, 1 / 2, 1 / 3, 1 / 4]):
        assert sum(w * node**power for w, node in zip(b, c, strict=True)) == pytest.approx(value)
    assert [sum(row) for row in a] == list(c)


def test_heun_is_the_trapezoidal_rule_with_a_prediction_and_that_of_torchdiffeq():
    f, x, h = Field(), torch.randn(4, 3), 0.25
    ours = integrate(f, x, 0.0, 1.0, steps=4, method="heun")
    theirs = odeint(f, x, torch.tensor([0.0, 1.0]), method="heun2", options={"step_size": h})[-1]
    assert torch.allclose(ours, theirs, rtol=1e-14)
    by_hand = x
    for t in (0.0, 0.25, 0.5, 0.75):
        slope = f(t, by_hand)
        by_hand = by_hand + h / 2 * (slope + f(t + h, by_hand + h * slope))
    assert torch.allclose(ours, by_hand, rtol=1e-14)


def test_verlet_has_order_two_and_keeps_the_energy_of_the_pendulum():
    start = Phase(torch.tensor([1.0]), torch.tensor([0.0]))
    reference = integrate(pendulum, start, 0.0, 2.0, tol=1e-12)
    sizes = [40, 80, 160]
    errors = [
        float(
            (integrate(pendulum, start, 0.0, 2.0, steps=n, method="verlet").q - reference.q).abs()
        )
        for n in sizes
    ]
    assert observed_orders(errors, [1 / n for n in sizes])[-1] == pytest.approx(2, abs=0.02)

    def energy(state):
        return float(0.5 * state.p**2 - torch.cos(state.q))

    far = {
        method: energy(integrate(pendulum, start, 0.0, 200.0, steps=2000, method=method))
        for method in ("verlet", "euler")
    }
    assert abs(far["verlet"] - energy(start)) < 2e-3
    assert abs(far["euler"] - energy(start)) > 0.5


def test_verlet_goes_back_the_way_it_came():
    start = Phase(torch.tensor([1.0, 2.0]), torch.tensor([0.3, -1.0]))
    there = integrate(pendulum, start, 0.0, 10.0, steps=100, method="verlet")
    back = integrate(pendulum, there, 10.0, 0.0, steps=100, method="verlet")
    assert torch.allclose(back.q, start.q, atol=1e-12)
    assert torch.allclose(back.p, start.p, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_as_many_steps_as_asked_for(dtype):
    for n in range(1, 129):
        times = []
        x = torch.zeros(1, dtype=dtype)
        end = integrate(
            lambda t, x, seen=times: seen.append(t) or x + 1, x, 0.0, 0.7, steps=n, method="euler"
        )
        assert len(times) == n
        assert end.dtype == dtype
        assert times == sorted(set(times))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 7])
def test_statistics_count_every_evaluation(method, n):
    seen, statistics = [], Statistics()
    state = Phase(torch.ones(2), torch.ones(2))

    def f(t, state):
        seen.append(t)
        return pendulum(t, state)

    integrate(f, state, 0.0, 1.0, steps=n, method=method, statistics=statistics)
    stages = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "verlet": 3}[method]
    assert statistics.evaluations == len(seen) == stages * n
    assert statistics.accepted == n


def test_statistics_of_adaptive_steps_agree_with_a_count_by_hand():
    seen, statistics = [], Statistics()

    def switched(t, x):
        seen.append(t)
        return torch.where(t > 0.37, 50.0, -1.0) * torch.ones_like(x)

    integrate(switched, torch.zeros(1), 0.0, 1.0, tol=1e-6, statistics=statistics)
    assert statistics.evaluations == len(seen)
    assert statistics.rejected > 0
    # dopri5 costs six evaluations a step, and two to choose the first one
    assert statistics.evaluations == 6 * (statistics.accepted + statistics.rejected) + 2


@pytest.mark.parametrize(
    ("method", "factor"),
    # errors add up over the steps, the more the lower the order
    [("dopri5", 2), ("dopri8", 1), ("bosh3", 10), ("fehlberg2", 400), ("adaptive_heun", 5)],
)
def test_adaptive_methods_meet_their_tolerance(method, factor):
    for t1 in (1.0, -1.0):
        x = integrate(lambda t, x: -x, torch.ones(2), 0.0, t1, tol=1e-6, method=method)
        assert torch.allclose(x, torch.full((2,), math.exp(-t1)), rtol=0, atol=factor * 1e-6)


def test_adaptive_steps_are_those_of_torchdiffeq():
    f, x = Field(), torch.randn(4, 3)
    ours = integrate(f, x, 0.0, 1.0, tol=1e-5)
    times = torch.tensor([0.0, 1.0])
    worst = {"norm": lambda x: x.square().mean(-1).max().sqrt(), "step_t": times[1:]}
    theirs = odeint(f, x, times, rtol=1e-5, atol=1e-5, options=worst)[-1]
    assert torch.allclose(ours, theirs, rtol=1e-13, atol=0)


@pytest.mark.parametrize("accuracy", [{"steps": 40}, {"tol": 1e-9}])
def test_saved_states_are_those_of_shorter_integrations(accuracy):
    start = Phase(torch.tensor([1.0]), torch.tensor([0.0]))
    times = [0.0, 0.5, 1.23, 2.0]
    path = integrate(pendulum, start, 0.0, 2.0, save_at=times, **accuracy)
    assert type(path) is Phase
    assert path.q.shape == (4, 1)
    assert torch.equal(path.q[0], start.q)
    for k, t in enumerate(times[1:], start=1):
        single = integrate(pendulum, start, 0.0, t, tol=1e-11)
        assert torch.allclose(path.q[k], single.q, atol=3e-7)


def test_states_on_the_grid_are_not_interpolated():
    f, x = Field(), torch.randn(4, 3)
    path = integrate(f, x, 0.0, 1.0, steps=10, save_at=torch.linspace(0, 1, 11))
    assert torch.equal(path[-1], integrate(f, x, 0.0, 1.0, steps=10))
    half = integrate(f, x, 0.0, 0.5, steps=5)
    assert torch.allclose(path[5], half, atol=1e-14)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_recompute_equals_through_to_round_off(method):
    f, x = Field(), torch.randn(5, 3)
    through = gradients(f, x, steps=9, method=method)
    assert relative_error(
        gradients(f, x, steps=9, method=method, backprop="recompute"), through
    ) < (1e-14)


def test_recompute_equals_through_for_named_tuples_saved_off_the_grid():
    weight = torch.tensor(0.7, requires_grad=True)

    def f(t, state):
        return Phase(weight * state.p, -torch.sin(state.q))

    found = []
    for backprop in ("through", "recompute"):
        start = Phase(torch.tensor([1.0]), torch.tensor([0.0]))
        path = integrate(
            f, start, 0.0, 2.0, steps=8, method="verlet", save_at=[0.3, 1.1], backprop=backprop
        )
        found.append(torch.autograd.grad(path.q.sum() + path.p.square().sum(), weight)[0])
    assert torch.allclose(found[0], found[1], rtol=1e-14)


def test_recompute_stores_only_the_states_on_the_grid():
    f, x = Field(20), torch.randn(50, 20)
    saved = {}
    for backprop in ("through", "recompute"):
        held = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, held=held: held.append(tensor) or tensor, lambda tensor: tensor
        ):
            integrate(f, x, 0.0, 1.0, steps=16, backprop=backprop)
        big = {id(t.untyped_storage()): t.numel() for t in held if t.numel() >= x.numel()}
        saved[backprop] = sum(big.values()) / x.numel()
    assert saved["recompute"] <= 17
    assert saved["through"] > 3 * 17


@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize(("steps", "snapshots"), [(1, 1), (2, 1), (9, 1), (9, 3), (24, 4), (9, 50)])
def test_snapshots_change_no_bit_of_the_gradient(method, steps, snapshots):
    f, x = Field(), torch.randn(5, 3)
    how = {"steps": steps, "method": method, "backprop": "recompute"}
    for a, b in zip(
        gradients(f, x, **how, snapshots=snapshots), gradients(f, x, **how), strict=True
    ):
        assert torch.equal(a, b)


def test_snapshots_with_named_tuples_saved_on_the_grid():
    weight = torch.tensor(0.7, requires_grad=True)

    def f(t, state):
        return Phase(weight * state.p, -torch.sin(t * state.q))

    found = []
    for kept in ({}, {"snapshots": 2}):
        start = Phase(torch.tensor([1.0]), torch.tensor([0.0]))
        how = {"steps": 8, "method": "verlet", "backprop": "recompute", **kept}
        path = integrate(f, start, 0.0, 2.0, save_at=[0.0, 0.25, 1.5], **how)
        assert path.q.shape == (3, 1)
        found.append(torch.autograd.grad(path.q.sum() + path.p.square().sum(), weight)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize(("steps", "snapshots"), [(1, 1), (10, 3), (30, 5), (100, 3), (100, 10)])
def test_snapshots_need_the_least_number_of_evaluations(steps, snapshots):
    """A second route: the cheapest schedule of all, by dynamic programming."""

    @functools.cache
    def again(n, kept):  # evaluations after the forward pass, whose start is kept
        if n == 1:
            return 1
        if not kept:  # the first n − 1 steps, then the first n − 2, …
            return n * (n - 1) // 2 + n
        parts = (again(n - m, kept - 1) + m + again(m, kept) for m in range(1, n))
        return min(parts)

    f, x, costs = Field(), torch.randn(5, 3), Statistics()
    how = {"method": "euler", "backprop": "recompute", "statistics": costs}
    integrate(f, x, 0.0, 1.0, steps=steps, snapshots=snapshots, **how).sum().backward()
    # the last step of each part that is computed again is not needed for the state before it
    saved = steps - 1
    assert costs.evaluations == steps + again(steps, snapshots) - saved


@pytest.mark.parametrize(("steps", "snapshots"), [(100, 1), (100, 3), (400, 3), (100, 10)])
def test_snapshots_bound_the_states_that_are_alive(steps, snapshots):
    weight, alive, peaks = torch.tensor(0.3, requires_grad=True), [], [0]

    def f(t, x):
        alive.append(weakref.ref(x.untyped_storage()))
        alive[:] = [ref for ref in alive if ref() is not None]
        peaks[-1] = max(peaks[-1], len(alive))
        return torch.sin(weight * x)

    def peak(kept):
        alive.clear()
        peaks[:] = [0]
        how = {"steps": steps, "method": "euler", "backprop": "recompute", "snapshots": kept}
        end = integrate(f, torch.ones(4, 1), 0.0, 1.0, **how)
        peaks.append(0)
        end.sum().backward()
        return peaks

    s, r = snapshots + 1, 0
    while math.comb(s + r, r) < steps:
        r += 1
    forward, backward = peak(snapshots)
    assert forward <= s + 1  # and the state of the step that is computed
    assert backward <= 2 * s + r - 1
    assert min(peak(None)) >= steps


@pytest.mark.parametrize("save_at", [None, [0.4, 1.0]])
def test_adjoint_converges_to_through_with_the_order_of_the_method(save_at):
    f, x = Field(), torch.randn(5, 3)
    errors = []
    for n in (10, 20, 40):
        through = gradients(f, x, steps=n, save_at=save_at)
        errors.append(
            relative_error(gradients(f, x, steps=n, save_at=save_at, backprop="adjoint"), through)
        )
    assert observed_orders(errors, [4, 2, 1])[-1] == pytest.approx(4, abs=0.4)


def test_adjoint_equals_through_at_tight_tolerance_and_that_of_torchdiffeq():
    f, x = Field(), torch.randn(5, 3)
    through = gradients(f, x, tol=1e-11)
    assert relative_error(gradients(f, x, tol=1e-11, backprop="adjoint"), through) < 1e-9
    f.zero_grad()
    y = x.clone().requires_grad_()
    odeint_adjoint(f, y, torch.tensor([0.0, 1.0]), rtol=1e-11, atol=1e-11)[
        -1
    ].square().sum().backward()
    theirs = [y.grad, *(p.grad for p in f.parameters())]
    assert relative_error(gradients(f, x, tol=1e-11, backprop="adjoint"), theirs) < 1e-9


def test_adjoint_of_named_tuples_counts_its_evaluations():
    weight = torch.tensor(0.7, requires_grad=True)
    start = Phase(torch.tensor([1.0]), torch.tensor([0.0]))

    def f(t, state):
        return Phase(weight * state.p, -torch.sin(state.q))

    found, statistics = [], Statistics()
    for backprop in ("through", "adjoint"):
        end = integrate(
            f,
            start,
            0.0,
            2.0,
            tol=1e-10,
            backprop=backprop,
            parameters=[weight],
            statistics=statistics,
        )
        found.append(torch.autograd.grad(end.q.sum(), weight)[0])
    assert torch.allclose(found[0], found[1], rtol=1e-8)
    assert statistics.backward_evaluations > 0


def test_adjoint_reaches_a_parameter_that_was_itself_computed():
    raw = torch.tensor(0.3, requires_grad=True)
    found = []
    for backprop in ("through", "adjoint"):
        rate = raw.exp()
        end = integrate(
            lambda t, x, rate=rate: -rate * x,
            torch.ones(2),
            0.0,
            1.0,
            tol=1e-11,
            backprop=backprop,
            parameters=[rate],
        )
        found.append(torch.autograd.grad(end.sum(), raw)[0])
    assert torch.allclose(found[0], found[1], rtol=1e-8)


def test_through_can_be_differentiated_twice():
    x = torch.tensor([0.3], requires_grad=True)
    end = integrate(lambda t, x: -(x**2), x, 0.0, 1.0, steps=64)  # x(1) = x/(1 + x)
    (first,) = torch.autograd.grad(end, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert second.item() == pytest.approx(-2 / 1.3**3, rel=1e-7)


def test_integration_inside_vmap():
    rates = torch.tensor([0.5, 1.0, 2.0])
    ends = torch.func.vmap(
        lambda rate: integrate(lambda t, x: -rate * x, torch.ones(1), 0.0, 1.0, steps=16)
    )(rates)
    assert torch.allclose(ends[:, 0], torch.exp(-rates), atol=1e-4)


# ------------------------------------------------------------------------------- faults

GOOD = {"f": lambda t, x: -x, "state": torch.ones(3, dtype=torch.float64), "t0": 0.0, "t1": 1.0}
BAD = {
    "neither": ({}, ValueError, "exactly one"),
    "both": ({"steps": 3, "tol": 1e-3}, ValueError, "exactly one"),
    "no steps": ({"steps": 0}, ValueError, "steps must be"),
    "half a step": ({"steps": 2.5}, ValueError, "steps must be"),
    "true": ({"steps": True}, ValueError, "steps must be"),
    "negative tol": ({"tol": -1.0}, ValueError, "tol must be"),
    "zero length": ({"steps": 3, "t1": 0.0}, ValueError, "t0 and t1 must differ"),
    "infinite": ({"steps": 3, "t1": math.inf}, ValueError, "finite"),
    "method": ({"steps": 3, "method": "dopri5"}, ValueError, "steps= has no method 'dopri5'"),
    "adaptive method": ({"tol": 1e-3, "method": "rk4"}, ValueError, "tol= has no method 'rk4'"),
    "backprop": ({"steps": 3, "backprop": "magic"}, ValueError, "backprop must be"),
    "recompute": ({"tol": 1e-3, "backprop": "recompute"}, ValueError, "needs equal steps"),
    "snapshots": (
        {"steps": 3, "backprop": "recompute", "snapshots": 0},
        ValueError,
        "snapshots must be an integer ≥ 1, got 0",
    ),
    "no recompute": ({"steps": 3, "snapshots": 2}, ValueError, 'snapshots is for backprop="rec'),
    "off the grid": (
        {"steps": 3, "backprop": "recompute", "snapshots": 2, "save_at": [0.5]},
        ValueError,
        "save_at must lie on the grid",
    ),
    "save_at order": ({"steps": 3, "save_at": [0.5, 0.2]}, ValueError, "save_at must be"),
    "save_at outside": ({"steps": 3, "save_at": [2.0]}, ValueError, "save_at must be"),
    "save_at empty": ({"steps": 3, "save_at": []}, ValueError, "save_at must be"),
    "integers": ({"steps": 3, "state": torch.ones(3).long()}, TypeError, "floating point"),
    "no tensor": ({"steps": 3, "state": (1.0, 2.0)}, TypeError, "tensor"),
    "mixed dtypes": (
        {"steps": 3, "state": (torch.ones(1).float(), torch.ones(1).double())},
        TypeError,
        "mixes",
    ),
    "mixed devices": (
        {"steps": 3, "state": (torch.ones(1).double(), torch.ones(1, device="meta").double())},
        ValueError,
        "mixes",
    ),
    "verlet state": ({"steps": 3, "method": "verlet"}, ValueError, "two tensors"),
    "shape": ({"steps": 3, "f": lambda t, x: x[:, None]}, ValueError, "must have the shape"),
    "dtype": ({"steps": 3, "f": lambda t, x: x.float()}, TypeError, "must have the shape"),
    "device": ({"steps": 3, "f": lambda t, x: x.to("meta")}, ValueError, "device"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        # without the test run's own type checks, as a reader calls it
        unwrap(integrate)(**{**GOOD, **change})


def test_a_state_that_is_not_finite_says_from_which_time_on():
    # ẋ = x² from 1 leaves the numbers soon after t = 1
    with pytest.raises(IntegrationError, match=r"from t=1\.[0-9]+ on \(step \d+ of 40, rk4\)"):
        integrate(lambda t, x: x**2, torch.ones(1), 0.0, 2.0, steps=40)
    with pytest.raises(IntegrationError, match=r"t=(0\.99\d+|1) "):
        integrate(lambda t, x: x**2, torch.ones(1), 0.0, 2.0, tol=1e-6)
    with pytest.raises(IntegrationError, match="initial state at t = t0"):
        integrate(lambda t, x: x, torch.tensor([math.nan]), 0.0, 2.0, steps=40)


def test_too_many_steps_say_how_far_they_got():
    statistics = Statistics()
    with pytest.raises(IntegrationError, match=r"max_steps=20 .* only t=0\.\d+ was reached"):
        integrate(
            lambda t, x: 1000 * torch.cos(1000 * t) * torch.ones_like(x),
            torch.zeros(1),
            0.0,
            1.0,
            tol=1e-8,
            max_steps=20,
            statistics=statistics,
        )
    assert statistics.accepted + statistics.rejected == 20


def test_a_captured_tensor_is_an_error_under_the_adjoint():
    net, x = nn.Linear(3, 3), torch.ones(2, 3)
    for options in ({"steps": 4}, {"tol": 1e-3}):
        with pytest.raises(ValueError, match=r"shape \(3, 3\).*parameters="):
            integrate(lambda t, x: net(x), x, 0.0, 1.0, backprop="adjoint", **options)
        integrate(
            lambda t, x: net(x),
            x,
            0.0,
            1.0,
            backprop="adjoint",
            parameters=net.parameters(),
            **options,
        )
        integrate(net_of_time(net), x, 0.0, 1.0, backprop="adjoint", **options)


def net_of_time(net):
    class Autonomous(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, x):
            return self.net(x)

    return Autonomous()


# ------------------------------------------------------------------------------- with noise


def test_euler_maruyama_has_the_moments_of_ornstein_uhlenbeck(generator):
    rate, sigma, n = 1.5, 0.8, 40_000
    x0 = torch.full((n, 1), 2.0)
    path = euler_maruyama(
        lambda t, x: -rate * x, sigma, x0, 0.0, 1.0, steps=200, generator=generator
    )
    h = 1 / 200
    mean = 2.0 * (1 - rate * h) ** 200  # of the scheme itself, so that only chance is left
    variance = sigma**2 * h * sum((1 - rate * h) ** (2 * k) for k in range(200))
    end = path.x[-1]
    assert abs(end.mean() - mean) < 4 * math.sqrt(variance / n)
    assert abs(end.var() - variance) < 4 * variance * math.sqrt(2 / n)
    assert mean == pytest.approx(2 * math.exp(-rate), rel=0.01)
    assert variance == pytest.approx(sigma**2 * (1 - math.exp(-2 * rate)) / (2 * rate), rel=0.01)


def test_strong_order_one_half_for_multiplicative_noise(generator):
    # dX = σ X dW has the solution exp(σ W − σ²t/2); all grids see the same Brownian path
    fine = euler_maruyama(
        lambda t, x: 0 * x,
        lambda t, x: x[:, :, None],
        torch.ones(4000, 1),
        0.0,
        1.0,
        steps=512,
        generator=generator,
    )
    exact = torch.exp(fine.dW.sum(0) - 0.5)
    sizes, errors = [16, 32, 64, 128], []
    for n in sizes:
        dW = fine.dW.unflatten(0, (n, 512 // n)).sum(1)
        coarse = euler_maruyama(
            lambda t, x: 0 * x,
            lambda t, x: x[:, :, None],
            torch.ones(4000, 1),
            0.0,
            1.0,
            steps=n,
            dW=dW,
        )
        errors.append(float((coarse.x[-1] - exact).abs().mean()))
    slopes = observed_orders(errors, [1 / n for n in sizes])
    assert sum(slopes) / 3 == pytest.approx(0.5, abs=0.08)


def test_a_matrix_spreads_fewer_noises_over_the_coordinates(generator):
    sigma = torch.tensor([[1.0], [2.0], [-1.0]])
    path = euler_maruyama(
        lambda t, x: 0 * x, sigma, torch.zeros(5, 3), 0.0, 1.0, steps=4, generator=generator
    )
    assert path.dW.shape == (4, 5, 1)
    assert torch.allclose(path.x[-1], path.dW.sum(0) @ sigma.T)
    again = euler_maruyama(
        lambda t, x: 0 * x, sigma, torch.zeros(5, 3), 0.0, 1.0, steps=4, dW=path.dW
    )
    assert torch.equal(again.x, path.x)


def test_without_noise_it_is_euler_backward_in_time_too():
    f, x = Field(), torch.randn(4, 3)
    dW = torch.zeros(8, 4, 3)
    for t0, t1 in [(0.0, 1.0), (1.0, 0.0)]:
        path = euler_maruyama(f, 1.0, x, t0, t1, steps=8, dW=dW)
        assert torch.allclose(path.x[-1], integrate(f, x, t0, t1, steps=8, method="euler"))
        assert path.t[0] == t0


def test_bad_noise_is_refused(generator):
    def drift(t, x):
        return -x

    x = torch.ones(2, 1)
    with pytest.raises(ValueError, match="exactly one of generator="):
        euler_maruyama(drift, 1.0, x, 0.0, 1.0, steps=4)
    with pytest.raises(ValueError, match="exactly one of generator="):
        euler_maruyama(
            drift, 1.0, x, 0.0, 1.0, steps=4, generator=generator, dW=torch.zeros(4, 2, 1)
        )
    with pytest.raises(ValueError, match=r"dW must have shape \(4, 2, 1\), got \(3, 2, 1\)"):
        euler_maruyama(drift, 1.0, x, 0.0, 1.0, steps=4, dW=torch.zeros(3, 2, 1))
    with pytest.raises(IntegrationError, match="from t="):
        euler_maruyama(
            lambda t, x: x**9, 1.0, 1e3 * x, 0.0, 1.0, steps=40, dW=torch.zeros(40, 2, 1)
        )


@pytest.mark.parametrize("backprop", ["through", "recompute"])
def test_outputs_between_the_steps_cost_one_evaluation_in_all(backprop):
    costs = Statistics()
    times = torch.linspace(0, 1, 30)
    x = torch.ones(3, requires_grad=True)
    integrate(Field(), x, 0.0, 1.0, steps=8, save_at=times, backprop=backprop, statistics=costs)
    assert costs.evaluations == 8 * 4 + 1


HOW = [{"steps": 32}, {"steps": 32, "method": "heun"}, {"tol": 1e-6}]


@pytest.mark.parametrize("how", [*HOW, {"steps": 4, "backprop": "adjoint"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_velocity_receives_the_time_as_a_tensor_like_the_state(how, dtype):
    seen = []

    def f(t, x):
        seen.append(t)
        return torch.sin(t) * x

    x = integrate(f, torch.ones(3, dtype=dtype, requires_grad=True), 0.0, 1.0, **how)
    x.sum().backward()
    assert all(t.shape == () and t.dtype == dtype for t in seen)
    assert torch.allclose(x, torch.tensor(math.exp(1 - math.cos(1.0)), dtype=dtype), rtol=3e-4)


def test_noise_and_verlet_receive_the_time_as_a_tensor_too(generator):
    seen = []

    def drift(t, x):
        seen.append(t)
        return -x

    def f(t, state):
        seen.append(t)
        return state[1], -state[0]

    x = torch.ones(2, 1)
    euler_maruyama(
        drift, lambda t, x: seen.append(t) or 1.0, x, 0.0, 1.0, steps=3, dW=torch.zeros(3, 2, 1)
    )
    integrate(f, (x, x), 0.0, 1.0, steps=3, method="verlet")
    assert all(isinstance(t, Tensor) and t.shape == () and t.dtype == x.dtype for t in seen)


def test_the_gradient_through_adaptive_steps_does_not_pass_through_the_first_step():
    def gradient(**how):
        a = torch.tensor(20.0, requires_grad=True)
        x = torch.full((1, 1), 2.0)
        y = integrate(lambda t, x: -a * (x - math.sin(3 * float(t))), x, 0.0, 1.0, **how)
        return torch.autograd.grad(y.sum(), a)[0].item()

    assert gradient(tol=1e-6) == pytest.approx(gradient(steps=4000), rel=1e-4)


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_the_error_of_a_fast_sample_does_not_hang_on_the_size_of_its_batch(kind):
    def error(n):
        rate = torch.full((n, 1), 0.1)
        rate[0] = 30.0  # x(1) = exp(sin(rate))
        x = torch.ones(n, 1)

        def f(t, x):
            return rate * torch.cos(rate * t) * x

        if kind == "tensor":
            y = integrate(f, x, 0.0, 1.0, tol=1e-3)
        else:
            pair = (x, torch.zeros(n))
            y, _ = integrate(lambda t, s: (f(t, s[0]), 0 * s[1]), pair, 0.0, 1.0, tol=1e-3)
        return abs(y[0].item() / math.exp(math.sin(30.0)) - 1)

    assert error(10_000) == pytest.approx(error(1), rel=1e-6)


def test_weights_and_states_are_measured_by_their_own_norms_in_the_adjoint_equation():
    # a wide weight has as many rows as there are samples, but they are no samples
    f, x = Field(4), torch.randn(4, 4)
    assert (
        relative_error(gradients(f, x, tol=1e-8, backprop="adjoint"), gradients(f, x, steps=200))
        < 1e-6
    )


def test_a_pulse_between_two_steps_is_seen_if_its_edges_are_named():
    def pulse(t, x):
        return 0 * x + (1e3 if 0.5 < float(t) < 0.501 else 0.0)

    x = torch.zeros(1)
    for t0, t1 in [(0.0, 1.0), (1.0, 0.0)]:
        y = integrate(pulse, x, t0, t1, tol=1e-6, step_at=[0.501, 0.5])
        assert y.item() == pytest.approx(t1 - t0, rel=1e-6)
    assert integrate(pulse, x, 0.0, 1.0, tol=1e-6).item() == 0
    with pytest.raises(ValueError, match="step_at must lie between"):
        integrate(pulse, x, 0.0, 1.0, tol=1e-6, step_at=[1.5])
    with pytest.raises(ValueError, match="step_at is for adaptive methods"):
        integrate(pulse, x, 0.0, 1.0, steps=4, step_at=[0.5])


def test_a_tolerance_below_the_precision_of_the_state_is_refused():
    x = torch.ones(2)
    for dtype, tol in [(torch.bfloat16, 1e-3), (torch.float32, 1e-8), (torch.float64, 1e-17)]:
        with pytest.raises(ValueError, match=f"below what {dtype} resolves"):
            integrate(lambda t, x: -x, x.to(dtype), 0.0, 1.0, tol=tol)


class Noisy(nn.Module):
    """A velocity with a layer that acts differently in training."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(2, 64), layer, nn.Linear(64, 2)

    def forward(self, t, x):
        return self.last(self.layer(torch.tanh(self.first(x))))


def test_recomputation_draws_the_same_masks_of_dropout():
    f, found = Noisy(nn.Dropout(0.5)), []
    for backprop in ("through", "recompute"):
        torch.manual_seed(1)
        found.append(gradients(f, torch.ones(3, 2), steps=8, backprop=backprop))
    assert relative_error(*found) < 1e-13
    with pytest.raises(ValueError, match=r"Dropout in training mode.*eval"):
        gradients(f, torch.ones(3, 2), steps=8, backprop="adjoint")
    gradients(f.eval(), torch.ones(3, 2), steps=8, backprop="adjoint")


def test_recomputation_refuses_statistics_that_it_would_update_twice():
    net = Noisy(nn.BatchNorm1d(64))
    x = torch.randn(8, 2, requires_grad=True)
    for backprop in ("recompute", "adjoint"):
        with pytest.raises(ValueError, match="BatchNorm1d in training mode"):
            integrate(lambda t, x: net(t, x), x, 0.0, 1.0, steps=8, backprop=backprop)
    integrate(net, x, 0.0, 1.0, steps=8)
    assert int(net.layer.num_batches_tracked) == 32
    integrate(net.eval(), x, 0.0, 1.0, steps=8, backprop="recompute").sum().backward()


def test_second_derivatives_through_the_adjoint_are_refused():
    x = torch.ones(3, 3, requires_grad=True)
    y = integrate(Field(), x, 0.0, 1.0, steps=8, backprop="adjoint").sum()
    with pytest.raises(RuntimeError, match='use "through" or "recompute"'):
        torch.autograd.grad(y, x, create_graph=True)


@pytest.mark.parametrize("how", [{"steps": 64}, {"tol": 1e-9}])
def test_complex_states(how):
    x = torch.randn(4, 2, dtype=torch.complex128)
    y = integrate(lambda t, x: 2j * t * x, x, 0.0, 1.5, **how)
    assert torch.allclose(y, x * torch.exp(torch.tensor(2.25j)), rtol=1e-6)
    z, w = x.clone().requires_grad_(), torch.tensor(1.0 + 0.5j, requires_grad=True)
    found = []
    for backprop in ("through", "adjoint"):
        how = how | {"backprop": backprop, "parameters": [w]}
        y = integrate(lambda t, x: w * x / (2 + x.abs()), z, 0.0, 1.0, **how)
        found.append(torch.autograd.grad(y.abs().square().sum(), (z, w)))
    assert relative_error(*found) < 1e-6


def test_times_keep_to_the_precision_of_a_device_without_float64(monkeypatch):
    made = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(t for t in tree_leaves(out) if isinstance(t, Tensor))
            return out

    monkeypatch.setitem(integration.CLOCKS, "cpu", torch.float32)
    f, x = Field().float(), torch.randn(4, 3, dtype=torch.float32)
    with Spy():
        y = integrate(f, x, 0.0, 1.0, tol=1e-4)
    assert made
    assert not [t for t in made if t.dtype == torch.float64]
    assert torch.allclose(y, integrate(f, x, 0.0, 1.0, steps=100), atol=1e-3)


def test_slopes_of_autocast_are_converted_to_the_dtype_of_the_state():
    f, x = Field().float(), torch.randn(64, 3, dtype=torch.float32)
    exact = integrate(f, x, 0.0, 1.0, steps=4)
    for how in ({"steps": 4}, {"tol": 1e-3}):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = integrate(f, x, 0.0, 1.0, **how)
        assert y.dtype == torch.float32
        assert 1e-6 < (y - exact).abs().max() < 0.1


def test_saving_every_node_takes_evaluations_and_scans_in_proportion():
    costs, times = Statistics(), torch.linspace(0, 1, 2001)
    x = integrate(
        lambda t, x: -x, torch.ones(1), 0.0, 1.0, steps=2000, save_at=times, statistics=costs
    )
    assert costs.evaluations == 8000
    assert torch.allclose(x[:, 0], torch.exp(-times), rtol=1e-12)


def test_a_sample_that_is_not_finite_is_named():
    x = torch.randn(4, 2)
    x[2, 0] = math.nan
    with pytest.raises(IntegrationError, match=r"sample 2 \(of 4\)"):
        integrate(lambda t, x: -x, x, 0.0, 1.0, steps=4)
    with pytest.raises(IntegrationError, match=r"sample 1 \(of 3\) is not finite from"):
        integrate(lambda t, x: x**3, torch.tensor([[0.1], [9.0], [0.1]]), 0.0, 9.0, steps=50)


def test_an_empty_batch_is_refused():
    for how in HOW:
        with pytest.raises(ValueError, match="state is empty"):
            integrate(lambda t, x: -x, torch.ones(0, 2), 0.0, 1.0, **how)


def test_counts_of_numpy_are_counts():
    x = integrate(lambda t, x: -x, torch.ones(1), 0.0, 1.0, steps=np.int64(8))
    assert torch.equal(x, integrate(lambda t, x: -x, torch.ones(1), 0.0, 1.0, steps=8))
