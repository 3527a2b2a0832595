"""Arguments and results of wrong shapes are refused, where broadcasting would give a number."""

import math

import jaxtyping
import pytest
import torch

from ctdl_lib import metrics
from ctdl_lib.control import hamiltonian, objective, rollout
from ctdl_lib.dynamics import euler_maruyama, integrate
from ctdl_lib.generative import Schedule, denoising, flow_matching
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.control import LinearQuadratic

N, D = 6, 2
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Z, T = X.flip(0), torch.full((N,), 0.5, dtype=torch.float64)
LABEL = torch.tensor([0, 1, 0, 1, 1, 0])
NOISE = torch.zeros(4, N, D, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """Without the shape checker of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def still(t, x):
    return torch.zeros_like(x)


def narrow(t, x):
    return x[:, :1]


def paths(drift=still, dW=NOISE):
    return euler_maruyama(drift, 0.5, X, 0.0, 1.0, steps=4, dW=dW)


class Wrong(LinearQuadratic):
    """A problem whose parts have columns where they should have none, or too few rows."""

    part: str = ""

    def running_cost(self, t, x, u):
        cost = super().running_cost(t, x, u)
        return cost[:, None] if self.part == "running_cost" else cost

    def drift(self, t, x, u):
        return u[:1] if self.part == "drift" else u

    def terminal_cost(self, x):
        cost = super().terminal_cost(x)
        return cost[:, None] if self.part == "terminal_cost" else cost


def solved(part):
    problem = Wrong(torch.zeros(D, dtype=torch.float64), 1.0)
    object.__setattr__(problem, "part", part)
    phi = ResNetPotential(D, width=4, generator=torch.Generator().manual_seed(0)).double()
    return objective(problem, phi, X, steps=2, hjb=1.0)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: metrics.accuracy(X, LABEL[:1]), "label"),
        (lambda: metrics.accuracy(X, LABEL[:, None]), "label"),
        (lambda: metrics.accuracy(X[:1], LABEL), "label"),
        (lambda: metrics.accuracy(X[:0], LABEL[:0]), "at least one sample"),
        (lambda: metrics.cross_entropy(X[:, :1], LABEL[:1]), "label"),
        (lambda: flow_matching(narrow, X, Z, T), "velocity"),
        (lambda: flow_matching(lambda t, x: x.sum(1), X, Z, T), "velocity"),
        (lambda: flow_matching(still, X, Z[:1], T), "z must"),
        (lambda: flow_matching(still, X, Z, T[:1]), "t must"),
        (lambda: denoising(still, X, Z[:1], T, Schedule()), "eta"),
        (lambda: denoising(still, X, Z[:, :1], T, Schedule()), "eta"),
        (lambda: denoising(narrow, X, Z, T, Schedule()), "denoiser"),
        (lambda: paths(drift=lambda t, x: -x[:1]), "drift"),
        (lambda: paths(dW=NOISE[:, :1]), "dW"),
        (lambda: paths(dW=NOISE[:, :, :1]), "dW"),
        (lambda: paths(dW=NOISE[:3]), "dW"),
        (lambda: hamiltonian(LinearQuadratic(X[0], 1.0), 0.0, X, X[:1]), "p must"),
        (lambda: solved("running_cost"), "running_cost"),
        (lambda: solved("drift"), "drift"),
        (lambda: solved("terminal_cost"), "terminal_cost"),
    ],
)
def test_a_wrong_shape_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_right_shapes_give_what_they_should():
    assert metrics.accuracy(torch.eye(2)[LABEL], LABEL) == 100
    assert flow_matching(lambda t, x: Z - X, X, Z, T) == 0
    assert torch.equal(paths().x[-1], X)
    path = rollout(LinearQuadratic(X[0], 1.0), lambda t, x: -x, X, steps=4, method="rk4")
    assert torch.allclose(path.x[-1], math.exp(-1) * X, atol=1e-3)
    assert "hjb" in solved("")


WAYS = [{"steps": 4}, {"tol": 1e-4}, {"steps": 4, "backprop": "recompute"}]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("velocity", [lambda t, x: x.neg_(), lambda t, x: x.mul_(-1.0)])
def test_a_velocity_that_works_in_place_is_refused_and_changes_nothing(how, velocity):
    x = X.clone()
    with pytest.raises(ValueError, match="in place"):
        integrate(velocity, x, 0.0, 1.0, **how)
    assert torch.equal(x, X)


@pytest.mark.parametrize("how", WAYS)
def test_a_velocity_that_overwrites_its_result_is_refused(how):
    buffer = torch.empty_like(X)

    def velocity(t, x):
        torch.neg(x, out=buffer)
        return buffer

    with pytest.raises(ValueError, match="earlier call"):
        integrate(velocity, X, 0.0, 1.0, **how)


@pytest.mark.parametrize("how", [*WAYS, {"steps": 4, "backprop": "adjoint"}])
def test_a_velocity_may_return_the_same_tensor_again(how):
    speed = torch.ones_like(X)
    assert torch.allclose(integrate(lambda t, x: speed, X, 0.0, 1.0, **how), X + 1)
    assert torch.allclose(integrate(lambda t, x: speed[:1].expand_as(x), X, 0.0, 1.0, **how), X + 1)


@pytest.mark.parametrize("how", [*WAYS, {"steps": 4, "backprop": "adjoint"}])
def test_times_that_want_gradients_are_refused_and_the_remedy_is_right(how):
    end = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    times = {"t1": {"t1": end}, "save_at": {"t1": 1.0, "save_at": [0.5, end]}}
    for name, wrong in times.items():
        with pytest.raises(TypeError, match=name):
            integrate(lambda t, x: -x, X, 0.0, **wrong, **how)
    with pytest.raises(TypeError, match="t0"):
        integrate(lambda t, x: -x, X, end - 1, 1.0, **how)
    rescaled = {**how, "steps": 32} if "steps" in how else {"tol": 1e-8}
    more = {"parameters": [end]} if how.get("backprop") == "adjoint" else {}
    x = integrate(lambda s, x: -end * x, torch.ones_like(X), 0.0, 1.0, **rescaled, **more)
    (slope,) = torch.autograd.grad(x[0, 0], end)
    assert slope.item() == pytest.approx(-math.exp(-1), rel=1e-6)
