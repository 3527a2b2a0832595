"""The experiments of chapter 14: plans, feedback, winds, disturbances, blends and rows."""

import dataclasses
import math
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from scipy import linalg

from ctdl_lib.control import rollout
from ctdl_lib.problems.vehicles import Quadcopter
from ctdl_lib.references.transcription import Plan
from experiments.quadcopter import (
    blends,
    contests,
    evidence,
    flights,
    lecture,
    plans,
    training,
    values,
)
from experiments.quadcopter.disturbances import ARM, DRAG, GUST, Disturbed, sideways
from machinery import claims
from machinery.seeds import seeded
from machinery.store import Store

DOUBLE: dict[str, Any] = {"dtype": torch.float64}

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All numbers of a trial run."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        old = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        patch.setattr(evidence, "Store", partial(Store, folder=folder))
        yield evidence.gather("smoke")
        torch.set_default_dtype(old)


@pytest.fixture
def phi():
    return training.untrained(training.SETTINGS, 1).double().requires_grad_(False)


def at_rest(n=3):
    return plans.QUAD.start.expand(n, 12)


# --- plans --------------------------------------------------------------------------------------


def test_the_expansion_is_that_of_the_cost_to_go():
    """Perturb a start: the linear feedback pays what the quadratic form says, to third order."""
    along = plans.along(50)
    direction = torch.randn(1, 12, generator=seeded(0), **DOUBLE)
    errors = []
    for size in (2e-3, 1e-3):
        x = along.x[0] + size * direction
        away = size * direction
        bent = 0.5 * (away @ along.P[0, 0] @ away.T).item()
        wanted = plans.best(50).cost + (along.p[0] * away).sum().item() + bent
        paid = rollout(plans.CALM, along.linear(), x, steps=50).cost.item()
        errors.append(abs(paid - wanted))
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 6  # third order would be 8


def test_the_recursion_is_scipys_where_the_copter_is_linear():
    """Along a hovering plan the dynamics are constant, so a long recursion ends at the algebraic
    Riccati equation of the discrete problem."""
    steps = 100
    rest = torch.zeros(steps + 1, 12, **DOUBLE)
    rest[:, :3] = 2.0
    u = plans.HOVER.expand(steps, 4)
    along = plans.expanded([Plan(rest, u, 0.0, 0)])
    h, eye = 1 / steps, torch.eye(12, **DOUBLE)
    f = lambda x, u: Quadcopter().drift(0.0, x[None], u[None])[0]  # noqa: E731
    a, b = torch.func.jacrev(f, (0, 1))(rest[0], u[0])
    a, b, K = eye + h * a, h * b, None
    P = Quadcopter().weight * eye
    for _ in range(40):
        R = 2 * h * torch.eye(4, **DOUBLE)
        K = torch.as_tensor(
            linalg.solve((R + b.T @ P @ b).numpy(), (b.T @ P @ a).numpy(), assume_a="pos")
        )
        closed = a - b @ K
        P = closed.T @ P @ closed + K.T @ R @ K  # Joseph's form, another formula
    torch.testing.assert_close(along.K[-40, 0], K, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(along.P[-41, 0], P, rtol=1e-6, atol=1e-6)


def test_the_linear_feedback_follows_its_plan():
    along, plan = plans.along(50), plans.best(50)
    for policy in (along.linear(), along.planned()):
        path = rollout(plans.CALM, policy, at_rest(1), steps=50)
        assert path.cost.item() == pytest.approx(plan.cost, rel=1e-6)


def test_on_the_plan_the_quadratic_form_gives_its_controls_up_to_a_step():
    """A step is paid for by its end, so slopes at its start give controls that differ by O(h)."""
    off = [
        (flights.quadratic(n)(0.0, plans.best(n).x[:1]) - plans.best(n).u[:1]).norm().item()
        for n in (50, 100)
    ]
    assert off[0] < 0.25 * plans.best(50).u[0].norm()
    assert off[1] == pytest.approx(off[0] / 2, rel=0.2)


def test_plans_of_several_flights_are_expanded_as_one_by_one():
    shorter = plans.best(50)
    other = Plan(shorter.x + 0.01, shorter.u, 0.0, 0)
    both = plans.expanded([shorter, other])
    torch.testing.assert_close(both.K[:, 0], plans.along(50).K[:, 0])
    torch.testing.assert_close(both.P[:, 1], plans.expanded([other]).P[:, 0])
    assert not torch.allclose(both.P[:, 0], both.P[:, 1])


def test_the_straight_guess_ends_in_a_trap():
    assert plans.trapped().cost > 1.3 * plans.best(100).cost


def test_a_plan_from_another_start_is_no_worse_than_the_shifted_one():
    start = plans.QUAD.start + torch.tensor([0.5, -0.5, 0.3] + 9 * [0.0], **DOUBLE)
    plan = plans.plan_from(start, 50)
    torch.testing.assert_close(plan.x[0], start)
    paid = rollout(plans.CALM, flights.linear(50), start[None], steps=50).cost.item()
    assert plan.cost < paid


# --- winds and flights --------------------------------------------------------------------------


def test_winds_of_fewer_steps_are_sums_and_have_the_variance_of_their_steps():
    fine, coarse = flights.wind(200, 500), flights.wind(50, 500)
    torch.testing.assert_close(fine.view(50, 4, 500, 12).sum(1), coarse)
    assert coarse.var().item() == pytest.approx(1 / 50, rel=0.02)
    assert torch.equal(flights.wind(50, 10), coarse[:, :10])
    assert not torch.equal(flights.wind(50, 10, seed=40), coarse[:, :10])


def test_flights_are_those_of_the_problem_of_the_library():
    policy = flights.linear(50)
    ours = flights.fly(policy, 0.2, 50, 7)
    theirs = rollout(plans.QUAD, policy, at_rest(7), steps=50, dW=flights.wind(50, 7)).cost
    assert torch.equal(ours, theirs)
    assert len(flights.fly(policy, 0.0, 50)) == 1


@pytest.mark.parametrize("name", flights.DISTURBANCES)
def test_the_first_flights_of_a_scene_are_the_same_however_many_there_are(name):
    few, many = flights.scene(name, 5), flights.scene(name, 70)
    assert torch.equal(few.x, many.x[:5])
    if name == "gust":
        assert few.problem.gust is not None
        assert many.problem.gust is not None
        assert torch.equal(few.problem.gust, many.problem.gust[:5])


# --- disturbances -------------------------------------------------------------------------------


def test_without_disturbances_it_is_the_quadcopter():
    x = torch.randn(4, 12, generator=seeded(0), **DOUBLE)
    u = torch.randn(4, 4, generator=seeded(1), **DOUBLE)
    ours, theirs = Disturbed(0.2), Quadcopter(0.2)
    assert torch.equal(ours.drift(0.5, x, u), theirs.drift(0.5, x, u))
    assert torch.equal(ours.running_cost(0.5, x, u), theirs.running_cost(0.5, x, u))
    assert torch.equal(ours.terminal_cost(x), theirs.terminal_cost(x))


def test_a_weak_rotor_is_that_of_four_rotors():
    """The second route: solve for the thrusts of four rotors, weaken one, and put them together."""
    mix = torch.tensor(
        [[1, 1, 1, 1], [DRAG, -DRAG, DRAG, -DRAG], [ARM, 0, -ARM, 0], [0, ARM, 0, -ARM]], **DOUBLE
    )
    u = torch.randn(5, 4, generator=seeded(2), **DOUBLE)
    thrusts = torch.linalg.solve(mix, u.T)
    thrusts[0] *= 0.85
    ours = Disturbed(0.2, loss=0.15).applied(u)
    torch.testing.assert_close(ours, (mix @ thrusts).T)


def test_a_heavy_copter_falls_when_it_asks_for_its_old_hovering_thrust():
    x, u = torch.zeros(1, 12, **DOUBLE), plans.HOVER[None]
    rate = Disturbed(0.2, mass=1.2).drift(0.0, x, u)
    assert rate[0, 8].item() == pytest.approx(9.81 / 1.2 - 9.81)


def test_a_gust_pushes_sideways_and_only_for_its_time():
    gust = sideways(6, seeded(3))
    torch.testing.assert_close(gust.norm(dim=1), torch.full((6,), GUST, **DOUBLE))
    assert gust[:, 2].abs().max() == 0
    x, u = torch.zeros(6, 12, **DOUBLE), plans.HOVER.expand(6, 4)
    pushed = Disturbed(0.2, gust=gust)
    torch.testing.assert_close(pushed.drift(0.5, x, u)[:, 6:9], gust, atol=1e-12, rtol=0)
    for t in (0.39, 0.6):
        assert pushed.drift(t, x, u)[:, 6:9].abs().max() < 1e-12


# --- blends and values --------------------------------------------------------------------------


def test_a_blend_is_linear_on_the_plan_and_the_network_far_away(phi):
    policy = blends.blended(phi, 2.0, 50)
    on, off = plans.best(50).x[:1], plans.best(50).x[:1] + 30.0
    torch.testing.assert_close(policy(0.0, on), flights.linear(50)(0.0, on))
    torch.testing.assert_close(policy(0.0, off), flights.network(phi)(50)(0.0, off))


def test_shares_of_one_and_zero_are_the_network_and_the_linear_feedback(phi):
    x = at_rest() + 0.1 * torch.randn(3, 12, generator=seeded(4), **DOUBLE)
    ends = {1.0: flights.network(phi)(50), 0.0: flights.linear(50)}
    for share, wanted in ends.items():
        torch.testing.assert_close(blends.shared(phi, share, 50)(0.0, x), wanted(0.0, x))
    torch.testing.assert_close(blends.summed(phi, 1.0, 50)(0.0, x), ends[1.0](0.0, x))
    torch.testing.assert_close(blends.summed(phi, 0.0, 50)(0.0, x), flights.quadratic(50)(0.0, x))
    torch.testing.assert_close(blends.averaged([phi, phi])(50)(0.0, x), ends[1.0](0.0, x))


def test_a_bound_holds_and_does_nothing_near_the_plan():
    x = at_rest() + torch.tensor([[1e-3], [1.0], [10.0]], **DOUBLE)
    free, held = (rule(0.0, x) for rule in (flights.linear(50), blends.bounded(3.0, 50)))
    planned = plans.best(50).u[0]
    assert (held - planned).norm(dim=1).max() <= 3.0 + 1e-9
    torch.testing.assert_close(held[:1], free[:1])
    turned = torch.nn.functional.cosine_similarity(held - planned, free - planned)
    torch.testing.assert_close(turned, torch.ones(3, **DOUBLE))


def test_errors_of_forecasts_against_a_known_case():
    paid = torch.tensor([100.0, 200.0, 400.0], **DOUBLE)
    perfect = values.Heights(paid, paid)
    assert perfect.error == 0
    assert perfect.correlation == pytest.approx(1)
    scan = min(
        100 * sum(abs(c / p - 1) for p in paid.tolist()) / 3
        for c in torch.arange(100, 401).tolist()
    )
    assert perfect.constant == pytest.approx(scan, abs=0.2)
    assert values.Heights(1.1 * paid, paid).error == pytest.approx(10)


def test_the_quadratic_value_without_wind_is_the_plans():
    noise = values.quadratic_value(at_rest(1)).item() - plans.best(100).cost
    curve = plans.along(100).P[1:, 0].diagonal(dim1=1, dim2=2).sum(1)
    assert noise == pytest.approx(0.5 * 0.04 * curve.mean().item())


def test_the_stored_plan_is_the_best_one_with_its_gains():
    kept, found = plans.kept(Store("14_quadcopter", "saved")), plans.along(100)
    for name in ("x", "u", "K"):
        want = getattr(found, name)[:, 0].flatten()
        ours = torch.tensor(kept[name], dtype=want.dtype)
        torch.testing.assert_close(ours, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


# --- rows ---------------------------------------------------------------------------------------


def test_every_seed_has_flights_of_its_own_and_the_rival_the_same_ones():
    tables = [{"a": [float(10 * s + i) for i in range(7)]} for s in range(3)]
    assert evidence.by_thirds(tables, "a", 3) == [3.0, 12.5, 23.5]
    assert evidence.by_thirds(tables[:1], "a", 3) == [3.0, 2.5, 3.5]
    assert evidence.by_thirds(tables[:1], "a", 3, 3) == [0.0, 1.0, 2.0]


def test_a_difference_is_paired_flight_by_flight():
    drawn = torch.randn(400, generator=seeded(5), **DOUBLE)
    rival = [{"a": (1000 * drawn).tolist()}]
    ours = [{"a": (1000 * drawn + 3 + s).tolist()} for s in range(3)]
    d = evidence.difference(ours, rival, "a")
    assert d.mean == pytest.approx(4)
    assert d.error == pytest.approx(0, abs=1e-9)  # the winds cancel
    assert d.seeds == pytest.approx(1)
    fewer = evidence.difference(ours, [{"a": rival[0]["a"][:9]}], "a")
    assert fewer.mean == pytest.approx(4)


def test_lost_flights_are_counted_in_percent():
    costs = [evidence.LOST + 1, 0.0, evidence.LOST - 1, 2e9]
    assert evidence.percent_lost([{"a": costs}], "a", 1) == [50.0]


def test_a_trial_run_makes_all_parts(found):
    assert found.seeds == 1
    assert len(found.scores["blend"]) == len(blends.RADII)
    for row in evidence.rows(found):
        assert row.statement
    for table in (evidence.difference_table, evidence.disturbance_table, evidence.choice_table):
        assert table(found).startswith("|")
    assert "trained with noise" in evidence.cost_table(found, 0.2)
    assert evidence.lost_table(found).startswith("|")


def stored():
    path = evidence.training.CHAPTER
    return claims.read(lecture.results_folder() / "claims" / f"{path}.json")


def test_the_page_has_the_rows_of_the_chapter():
    ids = {row.id for row in stored()}
    wanted = {
        f"quad.{who}.cost.sigma{s}.nt{n}"
        for who in ("stochastic", "linear", "mpc", "openloop")
        for s in ("00", "01", "02", "04")
        for n in plans.STEPS
    }
    idle = {f"quad.mpc.cost.sigma{s}.nt{n}" for s, n in (("01", 50), ("01", 200), ("04", 200))}
    assert wanted - ids == idle  # flights that were not made
    gaps = {f"quad.gap_to_mpc.sigma{s}.nt{n}" for s in ("02", "04") for n in plans.STEPS}
    assert gaps - ids == {"quad.gap_to_mpc.sigma04.nt200"}
    assert set(lecture.SENTENCES) <= ids


def test_planted_costs_turn_the_verdict_on_linear_feedback(found):
    """Give the network what the linear feedback pays, less or more by a tenth, with three seeds."""
    base = [float(2500 + i) for i in range(30)]
    for factor, verdict in ((0.9, "supported"), (1.1, "refuted")):
        nets = [{"0.2 50": [factor * c + s for c in base]} for s in range(3)]
        winds = found.winds | {
            contests.STOCHASTIC: nets,
            contests.DETERMINISTIC: [{"0.2 50": [3 * c for c in base]}] * 3,
            contests.LINEAR: [{"0.2 50": base}],
            contests.BLEND: nets,
            contests.MPC: [{"0.2 50": base}],
            contests.OPEN: [{"0.2 50": [9e9] * 30}],
        }
        three = {name: 3 * tables[:1] for name, tables in found.disturbed.items()}
        planted = dataclasses.replace(found, winds=winds, disturbed=three, anew=[2000.0] * 6)
        rows = {r.id: r for r in evidence.rows(planted) if isinstance(r, claims.Claim)}
        assert rows["quad.beats_linear.sigma02.nt50"].verdict == verdict
        gap = rows["quad.gap_to_mpc.sigma02.nt50"]
        assert gap.ours[0] == pytest.approx(100 * (factor - 1), abs=0.1)
        # the linear feedback pays what MPC pays, so it passes as well
        assert gap.verdict == ("undecided" if factor < 1 else "refuted")
        assert rows["quad.robust.sigma02"].ours == (0.0, 0.0, 0.0)


# --- the lecture --------------------------------------------------------------------------------


def test_arms_are_of_equal_length_perpendicular_and_across_the_thrust():
    x = torch.randn(12, generator=seeded(6), **DOUBLE)
    ends = lecture.arms(x)
    first, second = (ends[i, 0] - ends[i, 1] for i in (0, 1))
    assert first.norm().item() == pytest.approx(0.7)
    assert second.norm().item() == pytest.approx(0.7)
    axis = Quadcopter().axis(x[None])[0]
    assert (first @ second).abs() < 1e-12
    assert max((first @ axis).abs(), (second @ axis).abs()) < 1e-12
    torch.testing.assert_close(ends.mean(1), x[:3].expand(2, 3))


def test_gains_by_differences_are_those_of_the_recursion():
    ours = torch.tensor(lecture.gain_of(flights.linear(50), 50), **DOUBLE)
    torch.testing.assert_close(
        ours, plans.along(50).K[:, 0].flatten(1).norm(dim=1), rtol=1e-5, atol=0
    )


def test_excess_is_that_of_the_mean_on_the_flights_of_both():
    held = contests.Contests(
        {contests.MPC: [{"a": [100.0, 200.0]}], "x": [{"a": [110.0, 220.0, 9e9]}]}, {}, {}, [], {}
    )
    mean, error = lecture.excess(lecture.Results({}, held, False), "x", "a")
    assert mean == pytest.approx(10)
    assert error == pytest.approx(100 * (math.sqrt(50) / 150) / math.sqrt(2))


def test_the_lecture_draws_a_trial_run(tmp_path, monkeypatch):
    monkeypatch.setattr(lecture, "Store", partial(Store, folder=tmp_path))
    shown = lecture.results("smoke")
    for draw in (lecture.draw_flights, lecture.draw_gaps, lecture.draw_disturbed):
        draw(shown)
    lecture.draw_tumble(shown)
    assert "<img" in lecture.film(shown)
    plt.close("all")
