"""The experiments of chapter 15: networks, learners, the ledger of costs, heights and rows."""

import dataclasses
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from ctdl_lib.control import feedback, rollout
from experiments.pde_control import checks, evidence, fits, judging, learners, lecture
from experiments.pde_control.mitigation import (
    SourceMitigation,
    best_openings,
    common_plan,
    least,
    quadratic,
)
from experiments.pde_control.networks import WIDEST, Height, picture, steering, untrained
from machinery import claims
from machinery.seeds import seeded
from machinery.store import Store

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


@pytest.fixture(scope="module")
def problem():
    return learners.draw(3, 1)


def scaled(problem, c):
    """The same basins with sources c times as strong."""
    basins = problem.basins._replace(strength=c * problem.basins.strength)
    return SourceMitigation(basins)


# --- the problem --------------------------------------------------------------------------------


def test_the_quadratic_is_the_cost_of_a_simulation(problem):
    a = torch.rand(3, 25, generator=seeded(0), dtype=torch.float64)
    simulated = rollout(problem, checks.opened(a), problem.start, steps=25).cost
    torch.testing.assert_close(quadratic(problem)(a), simulated, rtol=1e-9, atol=0)


def test_the_least_cost_grows_with_the_square_of_the_source(problem):
    once, thrice = best_openings(problem), best_openings(scaled(problem, 3.0))
    torch.testing.assert_close(thrice.cost, 9 * once.cost)
    torch.testing.assert_close(thrice.controls, 3 * once.controls, rtol=1e-6, atol=1e-9)


def test_a_common_plan_is_the_best_of_its_kind(problem):
    """For one basin it is that basin's own best; for all, a change makes it worse."""
    cost, ones = quadratic(problem), torch.ones(3, dtype=torch.float64)
    one = type(cost)(*(part[:1] for part in cost))
    torch.testing.assert_close(common_plan(one, ones[:1])[0], least(one)[0])
    plan, paid = common_plan(cost, ones)
    assert paid.sum() > best_openings(problem).cost.sum()
    for k in (0, 12, 24):
        other = plan.clone()
        other[k] += 0.05
        assert cost(other.expand(3, -1)).sum() > paid.sum()


def test_l_bfgs_and_least_squares_agree(problem):
    plan, cost = checks.quasi_newton(problem)
    best = best_openings(problem)
    assert cost == pytest.approx(float(best.cost.mean()), rel=1e-6)
    torch.testing.assert_close(plan, best.controls, rtol=0, atol=2e-3)


def test_orders_and_the_gradient():
    orders = checks.orders()
    assert orders["space"] == pytest.approx(2, abs=0.05)
    assert orders["time"] == pytest.approx(1, abs=0.05)
    assert checks.gradient_error() < 1e-8


# --- networks -----------------------------------------------------------------------------------


def test_a_picture_has_the_fields_in_their_order_and_a_finer_mesh_is_thinned(problem):
    fine = SourceMitigation(problem.basins, nodes=33)
    seen = picture(0.4, torch.randn(3, 289), problem.images.float())
    thin = picture(0.4, torch.randn(3, 33**2), fine.images.float())
    assert seen.shape == thin.shape == (3, 6, 17, 17)
    torch.testing.assert_close(seen[:, 1:], thin[:, 1:], rtol=1e-4, atol=1e-4)
    assert (seen[:, 5] == 0.4).all()
    torch.testing.assert_close(seen[:, 3], 0.06 * problem.images[:, 2].float())


def test_the_height_grows_with_the_square_of_the_source(problem):
    height = Height()
    once = height(0.3, problem.images.float(), 3)
    twice = height(0.3, scaled(problem, 2.0).images.float(), 3)
    torch.testing.assert_close(twice, 4 * once, rtol=1e-4, atol=1e-6)


def test_the_split_potential_has_its_height_at_zero_and_the_slope_of_its_shape(problem):
    model, images = untrained("split"), problem.images.float()
    empty, x = torch.zeros(3, 289), torch.randn(3, 289)
    phi = model.given(images)
    torch.testing.assert_close(phi(0.2, empty), model.net.height(0.2, images, 3)[:, 0])
    whole, alone = feedback(problem, phi), steering("split", model, problem)
    torch.testing.assert_close(whole(0.2, x), alone(0.2, x), rtol=1e-4, atol=1e-6)
    assert alone(0.2, x).shape == (3, 1)


def test_actions_of_an_agent_are_openings(problem):
    class Still:
        def _predict(self, seen, deterministic):
            return torch.tensor([[-7.0], [0.0], [1.0]])

    policy = steering("ppo", Still(), problem)
    assert policy(0.0, torch.zeros(3, 289)).flatten().tolist() == [0.0, WIDEST / 2, WIDEST]


# --- learners -----------------------------------------------------------------------------------


def test_the_ledger_adds_up_to_the_cost(problem):
    policy = lambda t, x: 0.5 + 0 * x[:, :1]  # noqa: E731
    path = rollout(problem, policy, problem.start.float(), steps=25)
    paid = learners.ledger(problem, policy, path)
    torch.testing.assert_close(paid.to_go[0], path.cost)
    torch.testing.assert_close(paid.to_go[:-1] - paid.to_go[1:], paid.spent, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(paid.to_go[-1], path.terminal_cost)


@pytest.mark.parametrize(("kind", "share"), [("hjb", 50), ("policy", 50), ("ppo", 0)])
def test_the_share_of_transposed_solves(kind, share):
    # the first slopes and states are known, so a few backward solves are left out
    assert judging.transposed_share(kind) == pytest.approx(share, abs=4)


JOINT = evidence.JOINT | {"batch": 2, "decay": 1200}


def test_split_learning_spends_forward_and_backward_solves_and_lowers_the_cost():
    found = learners.learner("split", 3, JOINT | {"lr": 5e-3})
    model: Any = found.model
    judge = fits.exam(5, 4)
    before = fits.suboptimality(fits.costs("split", model, judge.problem), judge.best)
    start = judging.height_error(torch.zeros(4), judge.best)
    for spent in found.training:
        if spent >= 1200:
            break
    assert spent <= 1300
    after = fits.suboptimality(fits.costs("split", model, judge.problem), judge.best)
    assert after < before
    with torch.no_grad():
        value = model.given(judge.problem.images.float())(0.0, torch.zeros(4, 289)).double()
    assert judging.height_error(value, judge.best) < start


def test_own_paths_ask_the_height_for_what_is_to_pay_less_what_phi_says():
    problem = learners.draw(2, 4)
    model = untrained("split")
    images, wanted = learners.own_paths(model.net, problem)
    cost = fits.costs("split", model, problem)
    torch.testing.assert_close(wanted[:, 0].double(), cost, rtol=1e-4, atol=1e-6)
    t, seen, target = learners.replay(images, wanted, 3, size=8)
    assert (seen.shape[0], t.shape, target.shape) == (8, (8,), (8,))
    again = learners.replay(images, wanted, 3, size=8)
    assert torch.equal(again[2], target)


# --- judging ------------------------------------------------------------------------------------


def test_the_ways_to_count():
    table = {"best": [1.0, 4.0], "it": [2.0, 4.0]}
    assert judging.ratio_of_means(table, "it") == pytest.approx(20)
    assert judging.mean_of_ratios(table, "it") == pytest.approx(50)
    assert judging.worst(table, "it") == pytest.approx(100)


def test_a_constant_has_the_error_of_a_constant_and_the_truth_has_none():
    best = torch.tensor([1.0, 2.0, 6.0])
    assert judging.height_error(best, best) == 0
    assert judging.height_error(torch.full((3,), 2.0), best) == pytest.approx(100 * 5 / 9)


def test_swings_are_steps_between_exams():
    assert evidence.swing([3.0, 1.0, 2.0]) == pytest.approx(1.5)


# --- the rows -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # whatever was collected before
    yield evidence.gather("saved")
    torch.set_default_dtype(before)


def judged_rows(found):
    return {row.id: row for row in evidence.rows(found) if isinstance(row, claims.Claim)}


def test_every_row_can_be_refuted(found):
    assert all(claims.turns(row) for row in judged_rows(found).values())


def test_a_planted_height_turns_the_verdict(found):
    assert judged_rows(found)["pdecontrol.hjb.height"].verdict == "refuted"
    good = {name: row | {"error": 2.0} for name, row in found.heights.items()}
    rows = judged_rows(dataclasses.replace(found, heights=good))
    assert rows["pdecontrol.hjb.height"].verdict == "supported"
    bad = {name: row | {"error": 50.0} for name, row in found.heights.items()}
    rows = judged_rows(dataclasses.replace(found, heights=bad))
    assert judged_rows(found)["pdecontrol.split.height"].verdict == "supported"
    assert rows["pdecontrol.split.height"].verdict == "refuted"


def test_a_planted_exchange_of_methods_turns_the_verdict(found):

    def swapped(kind, other):
        pairs = zip(found.fitted[kind], found.fitted[other], strict=True)
        return [dataclasses.replace(f, record=g.record) for f, g in pairs]

    fitted = found.fitted | {"hjb": swapped("hjb", "ppo"), "ppo": swapped("ppo", "hjb")}
    rows = judged_rows(dataclasses.replace(found, fitted=fitted))
    assert rows["pdecontrol.accuracy.ppo"].verdict == "refuted"


def test_stored_exams_are_those_of_the_stored_weights(found):
    """A second computation of two marks, on the test basins."""
    for kind in ("policy", "hjb"):
        f, judge = found.fitted[kind][0], fits.final_exam()
        mark = fits.suboptimality(fits.costs(f.kind, f.model, judge.problem), judge.best)
        assert mark == pytest.approx(f.exams[-1], abs=0.05)


def test_the_lecture_quotes_rows_that_exist(found):
    assert set(lecture.SENTENCES) <= set(judged_rows(found))


def test_settings_were_chosen_on_other_basins_and_seeds():
    assert not {0, 1} & set(fits.SEEDS)
    drill, test = fits.drilled().problem.basins, fits.final_exam().problem.basins
    assert not torch.equal(drill.source, test.source)


def test_tables_have_a_row_for_each_method(found):
    assert evidence.counting_table(found).count("\n") == 1 + len(fits.NAMES)
    assert evidence.td3_table(found).count("\n") == 1 + len(fits.SEEDS)


def test_a_trial_run_writes_nothing(tmp_path):
    store = Store(fits.CHAPTER, "smoke", folder=tmp_path)
    how = next(fits.settings("policy"))
    assert len(fits.trial(store, "policy", "search-policy-0", how, 32_000)) == 3
    assert not list(tmp_path.iterdir())


def test_a_field_is_drawn_where_it_is(problem):
    """The greatest emission of a picture is at the source, with rows along y."""
    for images, centre in zip(problem.images, problem.basins.source, strict=True):
        row, column = divmod(int(lecture.rows_of(images[2].reshape(-1)).argmax()), 17)
        assert abs(column / 16 - centre[0]) < 1 / 16
        assert abs(row / 16 - centre[1]) < 1 / 16


def test_the_live_picture_is_drawn():
    lecture.draw_live([2.0, 1.0], [(400, 90.0), (800, 20.0)])
    assert len(plt.gcf().axes) == 2
    plt.close("all")
