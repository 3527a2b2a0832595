from itertools import pairwise

import pytest
import torch
from torch.func import hessian, jacrev

from ctdl_lib.metrics import cross_entropy
from ctdl_lib.problems.classification import ellipses
from experiments.optimal_control import (
    bits,
    evidence,
    lecture,
    pontryagin,
    principle,
    race,
    solvers,
    sweeps,
    varpro,
)
from machinery.claims import Claim
from machinery.store import Store


@pytest.fixture(autouse=True)
def as_the_book_computes():
    torch.set_default_dtype(torch.float32)


def smoke(tmp_path):
    return Store("04_optimal_control", "smoke", folder=tmp_path)


def posed(layers=4):
    problem = principle.pose(pontryagin.tanh_layer, 0, layers, 2.0)
    return problem, principle.noise(0, 1).repeat(layers, 1, 1)


# --- the principle ------------------------------------------------------------------------------


def test_a_kick_never_raises_the_objective_and_often_lowers_it():
    problem, start = posed()
    J = pontryagin.objective(problem, start).item()
    found = principle.kicked(problem, start, 3, rounds=2, iterations=5)
    assert pontryagin.objective(problem, found).item() < J
    assert torch.equal(found, principle.kicked(problem, start, 3, rounds=2, iterations=5))
    same = principle.kicked(problem, start, 3, rounds=0, iterations=5)
    assert torch.equal(same, start)


def test_training_lowers_the_gap():
    problem, start = posed()
    trained = solvers.solve(problem, start, iterations=60)
    first, last = (principle.judge(problem, theta, 0) for theta in (start, trained))
    assert 0 <= last.gap < first.gap / 5
    assert last.J < first.J
    H = pontryagin.hamiltonian(problem, pontryagin.costates(problem, trained), trained)
    assert pytest.approx(H.tolist()) == last.H


def test_the_flattening_of_first_order_is_found():
    assert principle.flattening([0.8, 0.4, 0.2]) == pytest.approx(1)
    assert principle.flattening([0.8, 0.8, 0.8]) == pytest.approx(0)


def test_a_linear_velocity_converges_as_layers_are_added():
    found = principle.deepen(principle.CASES["linear"], 1, 60)
    assert found.change[1] < 0.75 * found.change[0]
    assert found.nets[-1].spread < found.nets[0].spread
    assert principle.flattening(found.other) < 0.3


def test_learned_steps_keep_the_final_time_and_are_compared_at_equal_iterations():
    found = principle.learn_steps("tanh", 0, 30, layers=3)
    assert sum(found.h) == pytest.approx(5.0)
    assert max(found.longer.J, found.learned.J) <= found.equal.J + 1e-9


# --- successive approximations ------------------------------------------------------------------


@pytest.mark.parametrize("method", sweeps.CHOICES)
def test_work_begins_at_zero_grows_and_ends_at_the_budget(method):
    curve = sweeps.run(method, sweeps.CHOICES[method][0], 0, 40)
    work = [count for count, _ in curve]
    assert work[0] == 0
    assert all(a < b for a, b in pairwise(work))
    assert work[-1] < 40
    start = posed(16)
    first = pontryagin.objective(principle.pose(pontryagin.tanh_layer, 0, 16, 5.0), start[1])
    assert curve[0][1] == pytest.approx(first.item())


def test_gradient_descent_is_that_of_torch():
    """Second route: SGD with the rate times 1/h, as ∂J/∂θₖ = h ∂Hₖ/∂θₖ."""
    curve = sweeps.run("gradient descent", 0.1, 0, 8)
    problem = principle.pose(pontryagin.tanh_layer, 0, 16, 5.0)
    theta = principle.noise(0, 1).repeat(16, 1, 1).requires_grad_()
    sgd, losses = torch.optim.SGD([theta], lr=0.1 / (5 / 16)), []
    for _ in range(4):
        sgd.zero_grad()
        J = pontryagin.objective(problem, theta)
        losses.append(J.item())
        J.backward()
        sgd.step()
    assert [J for _, J in curve] == pytest.approx(losses)


def test_the_lowest_value_respects_the_budget():
    curve = [[0, 3.0], [10, 2.0], [20, 1.0]]
    assert [sweeps.lowest(curve, b) for b in (5, 10, 99)] == [3.0, 2.0, 1.0]


# --- one bit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MSA", "random", "straight-through", "float"])
def test_signs_learn_and_random_ones_do_not_move(kind):
    key = bits.Settings(width=6, layers=2, size=50)
    data = ellipses(0, train=100, val=100)
    found = bits.learn(data, 0, kind, key, 60)
    values = found if isinstance(found, tuple) else (found,)
    assert all(0 <= value <= 100 for value in values)
    assert values == (bits.learn(data, 0, kind, key, 60) if kind == "float" else values)


def test_the_straight_through_estimator_flips_signs_that_random_ones_keep():
    key, data = bits.Settings(width=6, layers=2, size=50), ellipses(0, train=100, val=100)
    few, many = (bits.learn(data, 0, "straight-through", key, n) for n in (1, 200))
    assert many > few


# --- optimisers ---------------------------------------------------------------------------------


def dense_step(problem, theta):
    """The Gauss–Newton step for θ and the readout together, with dense matrices."""
    n, columns = theta.numel(), problem.features(theta).shape[1] + 1
    p = torch.cat([theta.flatten(), theta.new_zeros(columns)])

    def z(p):
        W = p[n:].view(1, columns)
        return varpro.logits(W, problem.features(p[:n].view(theta.shape)))

    def rest(p):
        penalty = problem.alpha / 2 * p[n:].square().sum()
        return penalty + problem.regularizer(p[:n].view(theta.shape))

    ell = lambda z: cross_entropy(z, problem.label)  # noqa: E731
    J = jacrev(z)(p).flatten(0, 1)
    D = hessian(ell)(z(p)).reshape(len(J), len(J))
    one = torch.eye(len(p), dtype=p.dtype)
    G = J.T @ D @ J + hessian(rest)(p) + 0.01 * one
    g = J.T @ torch.func.grad(ell)(z(p)).flatten() + torch.func.grad(rest)(p)
    return p, -torch.linalg.solve(G, g), lambda p: (ell(z(p)) + rest(p)).item()


def test_gauss_newton_is_that_of_dense_matrices(monkeypatch):
    monkeypatch.setattr(race, "PRODUCTS", 500)
    monkeypatch.setattr(race, "min", lambda *_: 1e-12, raising=False)  # CG to the end
    problem, theta = race.pose(0)
    theta = theta[:2]
    p, d, value = dense_step(problem, theta)
    steps = race.gauss_newton(problem, theta, 10_000, 0.01)
    (_, first), (_, second) = next(steps), next(steps)
    assert first == pytest.approx(value(p))
    assert second == pytest.approx(
        next(v for k in range(30) if (v := value(p + 0.5**k * d)) < first)
    )


def test_stochastic_gradients_of_all_samples_are_gradient_descent(monkeypatch):
    monkeypatch.setattr(race, "BATCH", 400)
    curve = race.stochastic(0, 8, 0.5)
    problem, theta = race.pose(0)
    theta = theta.clone().requires_grad_()
    W = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    sgd, losses = torch.optim.SGD([theta, W], lr=0.5), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 4)
    for _ in range(4):
        sgd.zero_grad()
        loss = problem.loss(W, problem.features(theta)) + problem.regularizer(theta)
        losses.append(loss.item())
        loss.backward()
        sgd.step()
        schedule.step()
    assert [work for work, _ in curve] == [0, 2, 4, 6]
    assert [loss for _, loss in curve] == pytest.approx(losses)


@pytest.mark.parametrize("method", [*race.JOINT, *race.PROJECTED])
def test_all_methods_lower_the_loss_within_the_budget(method):
    curve = race.run(
        method, 0, 24, race.CHOICES.get(method, [0.0])[1 if method in race.CHOICES else 0]
    )
    assert curve[-1][0] <= 24 + 3 * race.PRODUCTS + 31
    assert race.lowest(curve) < curve[0][1]


def test_work_to_a_target_is_the_first_that_reaches_it():
    curve = [[2, 0.3], [4, 0.04], [6, 0.2]]
    assert race.work_to(curve) == 4
    assert race.work_to(curve, 0.01) == race.BUDGET


# --- the pages ----------------------------------------------------------------------------------


def test_a_trial_run_gathers_all_rows(tmp_path, monkeypatch):
    for module in (evidence, lecture):
        monkeypatch.setattr(module, "Store", lambda chapter, run: smoke(tmp_path))
    found = evidence.gather("smoke")
    rows = evidence.rows(found)
    ids = [row.id for row in rows]
    assert len(ids) == len(set(ids)) > 20
    assert set(lecture.SENTENCES) <= {row.id for row in rows if isinstance(row, Claim)}
    tables = evidence.stage_table(found.checks), evidence.sweep_table(found)
    for table in (*tables, evidence.race_table(found)):
        assert len({line.count("|") for line in table.splitlines()}) == 1
