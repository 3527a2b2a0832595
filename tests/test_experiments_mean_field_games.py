"""The experiments of chapter 8: trainings of games, references for their costs, times."""

import math

import pytest
import torch

from ctdl_lib.generative import mean_field, transport
from ctdl_lib.potentials import AutodiffPotential, ResNetPotential
from experiments.mean_field_games import evidence, lecture, references, timing, training
from experiments.mean_field_games.games import (
    EntropicGame,
    crossing_crowds,
    crowd_motion,
    gaussian_solution,
    groups,
    lone_crowd,
    ring_to_gaussian,
)
from machinery.store import Store

double = torch.float64


pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def store(run, tmp_path):
    return Store(training.CHAPTER, run, folder=tmp_path)


def seeded(k):
    return torch.Generator().manual_seed(k)


def some_potential(d=2, seed=0):
    return ResNetPotential(d, width=6, generator=seeded(seed)).double().requires_grad_(False)


# --- games --------------------------------------------------------------------------------------


def test_groups_are_equally_large_and_lie_where_they_were_put():
    x = groups((-3.0, 1.0), (3.0, -1.0), variance=0.3).sample(40_000, seeded(0), dtype=double)
    left = x[x[:, 0] < 0]
    assert len(left) / len(x) == pytest.approx(0.5, abs=0.02)
    assert left.mean(0).tolist() == pytest.approx([-3.0, 1.0], abs=0.02)
    assert left.var(0).tolist() == pytest.approx([0.3, 0.3], abs=0.02)


def test_crossing_crowds_are_mirror_images_that_exchange_their_places():
    game = crossing_crowds(5.0)
    x = game.initial.sample(50, seeded(0), dtype=double)
    mirrored = x * torch.tensor([-1.0, 1.0, -1.0]).double()
    swapped = x * torch.tensor([-1.0, 1.0, 1.0]).double()
    torch.testing.assert_close(game.log_initial(x), game.log_initial(mirrored))
    torch.testing.assert_close(game.potential_energy(x), game.potential_energy(mirrored))
    torch.testing.assert_close(game.log_initial(x), game.target.log_prob(swapped))
    assert (game.target.log_prob(x) < game.log_initial(x) - 10).all()


def test_without_labels_the_crowds_have_no_reason_to_move():
    game = crossing_crowds(0.0)
    x = game.initial.sample(50, seeded(0), dtype=double)
    torch.testing.assert_close(game.log_initial(x), game.target.log_prob(x))


def test_two_labelled_crowds_cost_what_one_costs_alone(generator):
    """Another route to `Least.crossing`: the same potential, lifted to both crowds by symmetry."""
    alone, both = lone_crowd(), crossing_crowds(5.0)
    phi = some_potential()

    class Both(torch.nn.Module):
        def forward(self, t, x):
            sign = torch.where(x[:, 2] > 0, 1.0, -1.0)  # the label says which crowd
            return phi(t, torch.stack([x[:, 0] * sign, x[:, 1]], 1)) + 0 * x[:, 2]

    n = 400
    x = alone.initial.sample(n, generator, dtype=double)
    y = 5 + math.sqrt(0.3) * torch.randn(n, 1, generator=generator, dtype=double)
    rest = EntropicGame(groups((5.0,)), groups((5.0,)), 5.0, 0.01)
    one = training.averages(phi, alone, x, torch.ones(n, dtype=double), 4)
    line = training.averages(references.standing(1), rest, y, torch.ones(n, dtype=double), 4)
    lifted = training.averages(
        AutodiffPotential(Both()), both, torch.cat([x, y], 1), torch.ones(n, dtype=double), 4
    )
    wanted = one["cost"] + line["cost"] - 0.01 * math.log(2)
    assert lifted["cost"] == pytest.approx(wanted, abs=1e-6)


def test_the_hill_raises_the_cost():
    game = lone_crowd()
    flat = EntropicGame(game.initial, game.target, game.relative_entropy, game.entropy)
    grid = references.boxed((5.5, 4.5), 25)
    with_hill, without = (
        references.on_grid(g, grid, epsilon=1.0, steps=4).cost for g in (game, flat)
    )
    assert with_hill > without + 1


# --- trainings ----------------------------------------------------------------------------------


def test_a_short_training_lowers_the_objective_and_keeps_its_terms():
    game = references.gaussian_game(2)
    how = training.TRANSPORTING | {"steps": 40, "batch": 128}
    model = training.solve(game, seed=3, **how)
    total = model.history.sum(1)
    assert total[-5:].mean() < 0.5 * total[:5].mean()
    assert model.history[:, 1].abs().max() == 0  # no interaction
    assert not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.curve("hjb", 40)[0], model.history[:, 3].mean())


def test_the_history_holds_the_terms_of_the_library():
    game, how = crowd_motion(2), training.WALKING | {"steps": 1, "batch": 32}
    model = training.Learned(2, 32, 1, 5)
    x = game.initial.sample(32, seeded(50_000), dtype=torch.float32)
    terms = mean_field(model.phi, x, game, steps=4, hjb=20.0, terminal_condition=1.0)
    list(training.steps_of(model, game, 5, how, steps=1))
    torch.testing.assert_close(model.history[0], torch.stack([terms[t] for t in training.TERMS]))


def test_the_wrong_slot_is_the_right_objective_only_where_the_slots_agree():
    game, x = ring_to_gaussian(2), ring_to_gaussian(2).initial.sample(20, seeded(0), dtype=double)
    how = {"steps": 2, "hjb": 1.5, "terminal_condition": 1.5}
    phi = some_potential()
    right, wrong = mean_field(phi, x, game, **how), training.wrong_slot(phi, x, game, **how)
    end = transport(phi, x, steps=2)
    shift = 2.5 * (end.log_det - end.transport_cost).mean()
    torch.testing.assert_close(wrong["terminal"], right["terminal"] + shift)
    torch.testing.assert_close(wrong["transport"], right["transport"])
    still = references.standing(2)
    right, wrong = mean_field(still, x, game, **how), training.wrong_slot(still, x, game, **how)
    for name, value in wrong.items():
        torch.testing.assert_close(value, right[name])


def test_costs_on_a_grid_are_those_of_the_closed_form():
    for d in (2, 3):
        exact = gaussian_solution(references.gaussian_game(d))
        found = training.costs(exact.potential, references.gaussian_game, d, points=4000)
        assert found["cost"] == pytest.approx(exact.cost, rel=0.01)
        assert found["hjb"] < 1e-9
        assert found["terminal condition"] < 1e-4


def test_costs_of_a_crowd_that_stands_are_the_divergence():
    found = training.costs(references.standing(2), crowd_motion, 2)
    assert found["transport"] == 0
    assert found["terminal"] / 5 == pytest.approx(36 / (2 * 0.3), rel=1e-3)


def test_samples_judge_as_the_grid_does(tmp_path):
    model = training.Learned(2, 8, 1, 0)
    game = crowd_motion(2)
    sampled = training.sampled(store("train", tmp_path), "a", model, game, n=4000)
    on_grid = training.costs(training.double(model), crowd_motion, 2)
    assert sampled["cost"] == pytest.approx(on_grid["cost"], rel=0.02)
    assert 0 <= sampled["moved"] <= 100


# --- references ---------------------------------------------------------------------------------


def test_optimal_transport_is_dearer_than_stopping_early():
    game = references.gaussian_game(2)
    exact = gaussian_solution(game)
    assert references.all_the_way(game) > exact.cost
    strict = EntropicGame(game.initial, game.target, 1e6)
    assert references.all_the_way(game) == pytest.approx(gaussian_solution(strict).cost, rel=1e-4)


def test_the_potential_error_sees_a_constant_and_nothing_else_of_the_exact_one():
    game = references.gaussian_game(2)
    exact = gaussian_solution(game)
    assert references.potential_error(exact.potential, exact, game) == 0

    class Raised(torch.nn.Module):
        def forward(self, t, x):
            return exact.potential(t, x) + 1.0

    assert references.potential_error(AutodiffPotential(Raised()), exact, game) > 10


def test_the_limit_removes_an_error_of_order_two():
    assert references.limit([9.0, 3.0 + 0.1**2, 3.0 + 0.05**2]) == pytest.approx(3.0)


def test_the_straight_rival_of_the_ring_has_its_moments():
    phi = references.straight("ring")
    x = ring_to_gaussian(2).initial.sample(20_000, seeded(0), dtype=double)
    end = transport(phi, x, steps=4).x
    factor = end / x  # a linear map towards the centre
    assert factor.std() < 1e-6
    assert 0 < factor.mean() < 0.3


def test_the_density_of_the_characteristics_keeps_its_mass():
    phi = some_potential()
    grid = references.boxed((9.0, 9.0), 161)
    p = grid.points(dtype=double)
    for t in (0.0, 0.7):
        rho = references.density(phi, ring_to_gaussian(2), t, p)
        assert float(rho.sum()) * math.prod(grid.spacing) == pytest.approx(1, abs=1e-3)


def test_the_density_of_the_characteristics_is_that_of_the_closed_form():
    game = references.gaussian_game(2)
    exact = gaussian_solution(game)
    y = exact.end.sample(30, seeded(0), dtype=double)
    rho = references.density(exact.potential, game, 1.0, y)
    torch.testing.assert_close(rho.log(), exact.end.log_prob(y), rtol=1e-6, atol=1e-6)


def test_finite_volumes_come_closer_to_the_characteristics_on_a_finer_grid():
    coarse, fine = (references.misplaced(some_potential(seed=1), m) for m in (21, 41))
    assert 0 < fine < coarse


# --- what is stored -----------------------------------------------------------------------------


def test_a_stored_cost_is_that_of_the_stored_weights():
    kept = Store(training.CHAPTER, "saved")
    (first, *_), make = evidence.played(kept, "crowd", 2), crowd_motion
    again = training.costs(training.double(first), make, 2)
    assert again == pytest.approx(evidence.judged(kept, "crowd", 2)[0], abs=1e-6)


def test_rows_follow_from_the_stored_results():
    found = evidence.gather("saved")
    rows = {row.id: row for row in evidence.rows(found)}
    assert len(rows) == len(evidence.rows(found))
    assert set(lecture.SENTENCES) <= set(rows)
    kl = rows["mfg.crowd.kl.d2"].ours
    assert kl == pytest.approx([row["terminal"] / 5 for row in found.games["crowd"][2]], rel=1e-3)


def test_smoke_leaves_no_file(tmp_path):
    small = store("smoke", tmp_path)
    assert len(evidence.crossings(small)) == 1
    assert references.least(small).crossing < references.least(small).lone
    assert set(timing.automatic_times(small)["closed"]) == set(timing.AUTODIFF)
    assert not list(tmp_path.rglob("*"))
