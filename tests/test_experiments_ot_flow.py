import dataclasses
import math

import pytest
import torch

from ctdl_lib.problems.densities import TOYS
from experiments.ot_flow import densities, evidence, helped, images, steps
from machinery.store import Store


def test_settings_are_frozen_and_made_for_all_densities():
    key = densities.settings("circles")
    with pytest.raises(dataclasses.FrozenInstanceError):
        key.alpha = 1
    for kind in (images.Coding(), images.Flowing(), steps.Row(0.0, 0.0, 0.0, 0.0)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind, dataclasses.fields(kind)[0].name, 1)
    assert set(densities.PUBLISHED) == set(TOYS)
    assert set(densities.CHANGED) < set(TOYS)  # one recipe serves the others
    assert densities.settings("circles", steps=5) == dataclasses.replace(
        densities.settings("circles"), steps=5
    )
    with pytest.raises(ValueError, match="'rings'"):
        densities.settings("rings")


def test_the_rate_rises_and_falls():
    key = densities.settings("moons", steps=1000, warmup=10, lr=0.5)
    rate = densities.rate(key)
    assert rate(0) == pytest.approx(0.05)
    assert rate(9) == pytest.approx(0.5, rel=1e-3)
    assert rate(500) == pytest.approx(0.25)
    assert rate(999) == pytest.approx(0, abs=1e-5)
    constant = densities.rate(dataclasses.replace(key, schedule="constant", warmup=0))
    assert constant(0) == constant(999) == 0.5


def test_the_steps_of_the_solver_grow(monkeypatch):
    used = []
    real = densities.ot_flow

    def watched(phi, x, **how):
        used.append(how["steps"])
        return real(phi, x, **how)

    monkeypatch.setattr(densities, "ot_flow", watched)
    key = densities.settings("moons", steps=9, first=1, rk4=4, batch=4)
    list(densities.steps_of(densities.untrained(key, 0), key, 0, 9))
    assert used == [1, 1, 2, 2, 2, 3, 3, 3, 4]


@pytest.mark.parametrize("name", ["circles", "2spirals"])
def test_a_smoke_fit_leaves_no_file(tmp_path, name):
    flow = densities.fit(Store("07_ot_flow", "smoke", folder=tmp_path), name, 10)
    assert not list(tmp_path.rglob("*"))
    row = densities.gap(flow, name, 10, densities.held_out(name, 50))
    assert math.isfinite(row.gap)
    assert row.nll - row.least == pytest.approx(row.gap)


@pytest.mark.parametrize("name", list(TOYS))
def test_the_true_density_has_no_gap(name):
    x = densities.held_out(name, 100)
    assert densities.difference(TOYS[name], name, x) == (0.0, 0.0)


def test_a_stopped_fit_goes_on_to_the_same_average(tmp_path):
    key = densities.settings("circles", steps=8, batch=16, average=0.9)

    def weights(file, until):
        flow = densities.untrained(key, 0)
        for step in densities.steps_of(flow, key, 0, key.steps, file):
            if step.index + 1 == until:
                break
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    whole = weights(None, None)
    weights(tmp_path / "run", key.steps)
    assert torch.equal(whole, weights(tmp_path / "run", None))


def test_straight_paths_do_not_bend_and_a_semicircle_does():
    t = torch.linspace(0, 1, 33)[:, None, None]
    line = t * torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    assert steps.bend_of(line) == pytest.approx(0, abs=1e-6)
    angle = math.pi * torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None, None]
    circle = torch.cat([angle.cos(), angle.sin()], 2)
    assert steps.bend_of(circle) == pytest.approx(math.pi / 2 - 1, abs=1e-5)


def test_more_steps_invert_better():
    flow = densities.untrained(densities.settings("8gaussians"), 0).requires_grad_(False)
    few, many = steps.by_steps([flow], densities.held_out("8gaussians", 50), counts=(2, 16))
    assert many.inverse_error[0] < few.inverse_error[0]


def test_each_change_is_made_alone():
    chosen, *others = map(dataclasses.asdict, helped.variants().values())
    for other in others:
        changed = {part for part in chosen if other[part] != chosen[part]}
        assert len(changed) == 1 or changed == {"alpha", "beta"}


def test_the_curve_of_a_training_ends_at_its_average():
    key = densities.settings("circles", steps=2, batch=16, average=0.9)
    found = helped.curve(key, 0, smoke=True)
    flow = densities.untrained(key, 0)
    list(densities.steps_of(flow, key, 0, 2))
    x = densities.held_out("circles", helped.SMOKE_POINTS)
    last = densities.gap(flow.requires_grad_(False), "circles", 0, x).gap
    assert found["gap"][-1] == pytest.approx(last, rel=1e-5)
    assert 0 < found["seconds"][0] < found["seconds"][1]


def test_smoke_runs_of_the_measurements_leave_no_file(tmp_path):
    store = Store("07_ot_flow", "smoke", folder=tmp_path)
    assert len(steps.ablation(store, seeds=[10])["β=1, 2 steps"]) == 1
    assert list(helped.helped(store, seeds=[0])) == ["as chosen"]
    assert not list(tmp_path.rglob("*"))


def test_the_stored_gaps_are_those_of_the_stored_weights():
    torch.set_default_dtype(torch.float32)  # as the book computes
    store = Store("07_ot_flow", "saved")
    kept = densities.gaps(store)
    x = densities.held_out("circles")
    row = next(row for row in kept if row.density == "circles")
    again = densities.gap(densities.fit(store, "circles", row.seed), "circles", row.seed, x)
    assert again.gap == pytest.approx(row.gap, abs=1e-4)


def test_the_gap_away_from_edges_is_that_of_these_points_alone():
    torch.set_default_dtype(torch.float32)
    store = Store("07_ot_flow", "saved")
    flow = densities.fit(store, "checkerboard", 32)
    x = densities.held_out("checkerboard")
    to_edge = torch.cdist(x[:, :1], torch.arange(-4.0, 5.0, 2.0)[:, None]).amin(1)
    to_edge = to_edge.minimum(torch.cdist(x[:, 1:], torch.arange(-4.0, 5.0, 2.0)[:, None]).amin(1))
    chosen = x[to_edge >= densities.EDGE]
    found = densities.difference(
        densities.solved(flow, steps=densities.JUDGED), "checkerboard", chosen
    )
    wanted = found.value * len(chosen) / len(x)
    assert densities.inside(store)[2] == pytest.approx(wanted, abs=1e-4)


def test_the_stored_beliefs_are_those_of_the_stored_weights():
    torch.set_default_dtype(torch.float32)
    store = Store("07_ot_flow", "saved")
    kept = evidence.beliefs(store, 0, None, densities.POINTS, "cpu")
    x = densities.held_out("2spirals")
    again = densities.belief(store, "2spirals", 31, x)
    (row,) = (b for b in kept if (b.density, b.seed) == ("2spirals", 31))
    assert dataclasses.astuple(again) == pytest.approx(dataclasses.astuple(row), abs=1e-4)
    gaps = {(g.density, g.seed): g.gap for g in densities.gaps(store)}
    own = [b for b in kept if not b.variant]
    assert [b.gap for b in own] == pytest.approx([gaps[b.density, b.seed] for b in own], abs=1e-4)


@pytest.mark.parametrize(("variant", "seed"), [("fixed", 31), ("stronger", 30)])
def test_a_finer_solve_changes_no_gap_and_a_coarse_one_flatters(variant, seed):
    torch.set_default_dtype(torch.float32)
    store, x = Store("07_ot_flow", "saved"), densities.held_out("checkerboard", 500)
    flow = densities.fit(store, "checkerboard", seed, variant=variant)

    def gap(steps):
        return densities.difference(densities.solved(flow, steps=steps), "checkerboard", x).value

    assert gap(densities.JUDGED) == pytest.approx(gap(2 * densities.JUDGED), abs=0.005)
    assert gap(densities.FINE) < gap(densities.JUDGED) - 0.05


def test_solver_steps_are_drawn_from_the_whole_range_the_same_for_a_seed(monkeypatch):
    key = densities.settings("checkerboard", steps=200, batch=2, width=2, layers=1, warmup=1)
    assert key.drawn
    seen = []

    def cheap(phi, x, *, steps, **weights):
        seen.append(steps)
        return {"likelihood": phi(x.new_zeros(len(x)), x).mean()}

    monkeypatch.setattr(densities, "ot_flow", cheap)
    for _ in range(2):
        list(densities.steps_of(densities.untrained(key, 0), key, 0, 200))
    assert seen[:200] == seen[200:]
    assert set(seen) == set(range(key.first, key.rk4 + 1))


def test_a_detour_sees_the_speed_and_the_bend_does_not():
    t = torch.linspace(0, 1, 101)[:, None, None]
    ends = torch.tensor([[3.0, 4.0], [-1.0, 0.0]])
    assert steps.detour_of(t * ends) == pytest.approx(0, abs=1e-12)
    assert steps.bend_of(t**2 * ends) == pytest.approx(0, abs=1e-12)
    assert steps.detour_of(t**2 * ends) == pytest.approx(1 / 3, abs=1e-3)  # ∫(2t)² dt − 1
    half = torch.stack([1 - torch.cos(torch.pi * t[:, 0]), torch.sin(torch.pi * t[:, 0])], 2)
    assert steps.bend_of(half) == pytest.approx(torch.pi / 2 - 1, abs=1e-3)
    assert steps.detour_of(half) == pytest.approx(torch.pi**2 / 4 - 1, abs=1e-3)


def test_a_start_that_is_spread_out_bends_everywhere_among_the_data():
    key = densities.settings("2spirals", spread=2.0)
    phi = densities.untrained(key, 0).velocity
    places = -phi.b0 / phi.K0[:, :2].norm(dim=1)
    assert places.abs().max() > 3
    assert places.abs().median() > 1
    usual = densities.untrained(dataclasses.replace(key, spread=None), 0).velocity
    assert (usual.b0 / usual.K0[:, :2].norm(dim=1)).abs().median() < 1
    again = densities.untrained(key, 0).velocity
    assert torch.equal(phi.K0, again.K0)
    assert phi.gradient(0.5, torch.randn(50, 2)).dx.norm(dim=1).mean() < 8
