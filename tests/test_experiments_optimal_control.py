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
from machinery import claims
from machinery.store import results_folder

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def posed(layers=4):
    problem = principle.pose(pontryagin.tanh_layer, 0, layers, 2.0)
    return problem, principle.noise(0, 1).repeat(layers, 1, 1)


# --- the principle ------------------------------------------------------------------------------


@pytest.mark.parametrize("propose", [principle.polished, principle.kicked])
def test_improvements_keep_to_their_budget_and_never_raise_the_objective(propose):
    problem, start = posed()
    J = pontryagin.objective(problem, start).item()
    how = {"budget": 12, "iterations": 5}
    found = principle.improve(problem, start, 3, propose, **how)
    assert pontryagin.objective(problem, found).item() < J
    assert torch.equal(found, principle.improve(problem, start, 3, propose, **how))
    assert torch.equal(start, principle.improve(problem, start, 3, propose, budget=0, iterations=5))


def test_a_kick_replaces_six_layers_at_most_and_polishing_the_worst():
    problem = principle.pose(pontryagin.tanh_layer, 0, 16, 5.0)
    theta = principle.noise(1, 16)
    kicked, cost = principle.kicked(problem, theta, 0)
    changed = (kicked != theta).flatten(1).any(1)
    assert changed.sum() == principle.KICKED
    assert cost == 0
    polished, cost = principle.polished(problem, theta, 0)
    changed = (polished != theta).flatten(1).any(1)
    assert 0 < changed.sum() < 16
    assert cost > 5
    gap = pontryagin.residual(problem, theta, principle.others(theta, 0)).gap
    assert changed[gap.argmax()]


def test_evaluations_are_counted():
    counter = principle.Counter(posed()[0])
    for _ in range(3):
        pontryagin.objective(counter.problem, posed()[1])
    assert counter.evaluations == 3


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


def test_learned_steps_keep_the_final_time_and_start_where_equal_ones_do():
    found = principle.learn_steps("tanh", 0, 30, layers=3)
    assert sum(found.h) == pytest.approx(5.0)
    assert found.onwards.J <= found.equal.J + 1e-9
    problem = principle.pose(pontryagin.tanh_layer, 0, 3, 5.0)
    start = pontryagin.objective(problem, principle.noise(0, 1).repeat(3, 1, 1)).item()
    assert max(found.learned.J, found.equal.J) < start


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
    curve = sweeps.run("gradient descent", (0.1, 0), 0, 8)
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


def test_sweeps_are_counted_alike_and_a_network_is_judged():
    setting = (0.03, 2)
    found = sweeps.after_sweeps("damped MSA", setting, 0, sweeps=5)
    curve = sweeps.run("damped MSA", setting, 0, 120)
    assert found == min(J for _, J in curve[:6])
    assert len(sweeps.run("Adam", (0.1, 0), 0, 2 * 5 + 2)) == 6
    assert 0 <= sweeps.accuracy("damped MSA", setting, 0, 40) <= 100
    assert sweeps.linear_accuracy(0) < 75


def test_the_lowest_value_respects_the_budget():
    curve = [[0, 3.0], [10, 2.0], [20, 1.0]]
    assert [sweeps.lowest(curve, b) for b in (5, 10, 99)] == [3.0, 2.0, 1.0]


# --- one bit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", bits.KINDS)
def test_every_kind_learns_and_does_it_again(kind):
    key = bits.Settings(width=6, layers=2, size=50)
    data = ellipses(0, train=100, val=100)
    found = bits.learn(data, 0, kind, key, 60)
    assert 0 <= found <= 100
    assert found == bits.learn(data, 0, kind, key, 60)


def test_the_straight_through_estimator_flips_signs_that_random_ones_keep():
    key, data = bits.Settings(width=6, layers=2, size=50), ellipses(0, train=100, val=100)
    few, many = (bits.learn(data, 0, "straight-through", key, n) for n in (1, 200))
    assert many > few


# --- optimisers ---------------------------------------------------------------------------------


def dense_step(problem, theta):
    """The Gauss–Newton step for θ and the readout together, with dense matrices."""
    n, W = theta.numel(), varpro.evaluate(problem, theta).W
    p, columns = torch.cat([theta.flatten(), W.flatten()]), W.shape[1]

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
    monkeypatch.setattr(varpro, "min", lambda *_: 1e-12, raising=False)  # CG to the end
    problem, theta = race.pose(0)
    theta = theta[:2]
    p, d, value = dense_step(problem, theta)
    joint = race.joint(problem, theta)
    steps = race.gauss_newton(problem, joint[0], 10_000, 0.01, joint[1])
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
    W = varpro.evaluate(problem, theta.detach()).W.requires_grad_()
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
    assert curve[-1][0] <= 60
    assert race.lowest(curve) < curve[0][1]


def test_work_to_a_target_is_the_first_that_reaches_it():
    curve = [[2, 0.3], [4, 0.04], [6, 0.2]]
    assert race.work_to(curve) == 4
    assert race.work_to(curve, 0.01) == race.BUDGET


# --- the pages ----------------------------------------------------------------------------------


def test_the_sentences_of_the_lecture_are_claims_that_are_stored():
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    assert set(lecture.SENTENCES) <= {row.id for row in rows if isinstance(row, claims.Claim)}
