"""The experiments of chapter 13: solvers, references, the judge of common states, and rows."""

import dataclasses
import math
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import optimize, stats

from ctdl_lib.control import feedback, objective, rollout
from ctdl_lib.learning import Step
from ctdl_lib.metrics import observed_orders
from experiments.stochastic_control import benchmark, evidence, lecture, race, shifted, solvers
from experiments.stochastic_control.radial import LogarithmicTarget, stepwise_values
from machinery import claims
from machinery.seeds import seeded
from machinery.store import Store

DOUBLE: dict[str, Any] = {"dtype": torch.float64}


pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def small(d=5, *, weight=3.0, diffusion=0.7):
    return LogarithmicTarget(torch.full((d,), 0.8, **DOUBLE), diffusion, weight)


def fine_noise(steps, paths, d, seed=0):
    g = seeded(seed)
    return torch.randn(steps, paths, d, generator=g, **DOUBLE) / math.sqrt(steps)


def coarse(dW, factor):
    return dW.view(-1, factor, *dW.shape[1:]).sum(1)


# --- solvers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("controlled", [False, True])
def test_deepbsde_with_the_exact_gradient_sums_up_the_exact_value_on_any_path(controlled):
    """Itô's formula along a path: the error of the sum is of order one half in the step."""
    problem, d = small(), 5
    exact, dW = problem.value(), fine_noise(1024, 200, 5)
    policy = feedback(problem, exact) if controlled else solvers.idle
    errors = []
    for factor in (64, 16, 4):  # steps of 1/16, 1/64 and 1/256
        noise = coarse(dW, factor)
        nodes = rollout(
            problem, policy, torch.zeros(200, d, **DOUBLE), steps=len(noise), dW=noise
        ).x
        true = solvers.along(exact, nodes)
        errors.append(summed(problem, nodes, true, true.slope))
    assert min(observed_orders(errors, [64.0, 16.0, 4.0])) > 0.4
    assert summed(problem, nodes, true, 0.0 * true.slope) > 4 * errors[-1]


def summed(problem, nodes, true, slopes):
    """The error at the end of what DeepBSDE sums up on a path with these gradients."""
    model = solvers.DeepBSDE(0, problem, steps=len(nodes) - 1)
    model.number.data = true.value[0, 0].float()
    model._slope = lambda k, x: slopes[k]
    return (model.along(nodes).value[-1] - true.value[-1]).square().mean().sqrt().item()


def test_deepbsde_is_its_authors_equation():
    """Yₖ₊₁ = Yₖ + ½h‖Z‖² + ZᵀΔW with Z = σ∇Φ on paths without control, for σ = √2."""
    problem = benchmark.problem(7)
    model, dW = solvers.DeepBSDE(3, problem), solvers.noise_of(6, 1, 7)
    x, y = torch.zeros(6, 7), model.number.expand(6)
    for k, dw in enumerate(dW):
        z = model.first.expand_as(x) if k == 0 else model.nets[k - 1](x) / 7
        y, x = y + 0.5 / 20 * z.square().sum(1) + (z * dw).sum(1), x + math.sqrt(2) * dw
    wanted = (y - problem.terminal_cost(x)).square().mean()
    torch.testing.assert_close(model.loss(torch.zeros(6, 7), dW), wanted)


def test_the_loss_of_fbsnn_vanishes_for_the_exact_value_as_steps_become_fine():
    problem, losses = small(), []
    model = solvers.FBSNN(0, problem)
    model.phi = problem.value()
    dW = fine_noise(512, 64, 5)
    x = torch.zeros(64, 5, **DOUBLE)
    for factor in (32, 8, 2):
        losses.append(model.loss(x, coarse(dW, factor)).item())
    assert losses[0] > 3 * losses[1] > 9 * losses[2]  # of order one in the step
    model.phi = problem.linear_quadratic().value()
    assert model.loss(x, dW).item() > 10 * losses[0]  # another function is noticed


@pytest.mark.parametrize("solver", ["fbsnn", "ours", "deepbsde"])
def test_all_solvers_of_the_modified_problem_start_from_the_same_slope(solver):
    t, x = 0.25, torch.randn(4, 100, generator=seeded(0))
    if solver == "deepbsde":
        model = solvers.DeepBSDE(0, shifted.PROBLEM, gain=0.0, centred=True)
        found = -model.policy(t, x)
    elif solver == "fbsnn":
        found = solvers.FBSNN(0, shifted.PROBLEM, height=0.0).phi.gradient(t, x).dx
    else:
        found = shifted.centred(0).gradient(t, x).dx
    torch.testing.assert_close(found, x - 3.0, rtol=0, atol=1e-4)


def test_walk_losses_take_the_penalties_on_walks_and_the_cost_on_own_paths():
    phi, batch = shifted.centred(0), lambda: shifted.batch(1, 0, 8)
    both = shifted.walk_loss(shifted.BOTH, phi, batch())
    alone = shifted.walk_loss(shifted.PENALTIES, phi, batch())
    assert set(both) - set(alone) == {"cost"}
    x, g = batch()
    nodes = solvers.walk(shifted.PROBLEM, x, torch.randn(20, 8, 100, generator=g) / math.sqrt(20))
    value, p = solvers.along(phi, nodes)
    ito = p[:-1].square().sum(2) / 20 + (p[:-1] * nodes.diff(dim=0)).sum(2)
    wanted = (value.diff(dim=0) - ito).abs().mean(1).sum()
    torch.testing.assert_close(both["bsde"], wanted, rtol=1e-3, atol=0.0)
    # after the walks, the generator draws the noise of the own paths
    cost = objective(shifted.PROBLEM, phi, x, steps=20, generator=g)["cost"]
    torch.testing.assert_close(both["cost"], cost)
    own = shifted.own_loss(shifted.PENALTIES, phi, batch())
    assert set(own) == set(alone)
    assert abs(own["bsde"] - alone["bsde"]) > 0.01 * own["bsde"]


# --- references ---------------------------------------------------------------------------------


def test_the_best_value_and_the_idle_cost_are_those_of_samples():
    x = math.sqrt(2) * torch.randn(20_000, 100, generator=seeded(0), **DOUBLE)
    G = torch.log(0.5 + 0.5 * x.square().sum(1))
    error = 4 * G.std().item() / math.sqrt(len(G))
    assert benchmark.idle_cost() == pytest.approx(G.mean().item(), abs=error)
    psi = torch.exp(-G)
    spread = 4 * (psi.std() / psi.mean()).item() / math.sqrt(len(G))
    assert benchmark.best_value() == pytest.approx(-math.log(psi.mean()), abs=spread)
    assert benchmark.best_value() < benchmark.idle_cost() - 0.01


def test_the_value_of_one_step_is_the_least_of_a_line_search():
    problem, r = small(8), 2.0
    (v0, v1) = stepwise_values(problem, r, steps=1, nodes=400)
    assert float(v1(1.3)) == pytest.approx(3.0 * math.log(0.5 + 0.5 * 1.3**2), rel=1e-6)
    ahead = stats.norm.ppf((np.arange(400) + 0.5) / 400)[:, None]
    across = stats.chi2.ppf((np.arange(400) + 0.5) / 400, 7)

    def cost(m):
        square = (m + 0.7 * ahead) ** 2 + 0.49 * across
        return (m - r) ** 2 / 4 + (3 * np.log(0.5 + 0.5 * square)).mean()

    best: Any = optimize.minimize_scalar(cost, bounds=(0, r), method="bounded")
    wanted = best.fun
    assert float(v0(r)) == pytest.approx(wanted, rel=2e-3)
    assert float(v0(r)) < cost(r) - 0.1  # steering pays


def test_no_feedback_is_cheaper_than_the_value_function_of_its_steps():
    problem, x = small(8, weight=20.0), torch.zeros(4000, 8, **DOUBLE)
    r = float(problem.target.norm())
    dW = fine_noise(8, 4000, 8)
    best = float(stepwise_values(problem, r, steps=8, nodes=400)[0](r))
    exact = feedback(problem, problem.value())
    costs = []
    for factor in (0.5, 1.0, 1.5):
        policy = lambda t, x, c=factor: c * exact(t, x)  # noqa: E731
        found = rollout(problem, policy, x, steps=8, dW=dW).cost
        costs.append(found.mean().item())
        assert costs[-1] > best - 4 * found.std().item() / math.sqrt(4000)
    assert costs[1] < min(costs[0], costs[2])


# --- the judge ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge():
    torch.set_default_dtype(torch.float32)
    return shifted.Judge(64)


def judged(judge, phi):
    return judge(partial(solvers.along, phi), feedback(shifted.PROBLEM, phi))


def test_the_judge_finds_no_error_in_the_exact_value(judge):
    found = judged(judge, shifted.PROBLEM.value())
    for name in ("phi_walk", "phi_best", "gradient_walk", "gradient_best"):
        assert found[name] < 1e-3
    assert found["start"] == pytest.approx(shifted.exact_start(), rel=1e-5)
    assert found["stepwise_best"] > 50  # the value of 20 steps is another function


def test_the_judge_gives_the_best_constant_a_hundred_percent(judge):
    values = torch.cat([part.value[:20] for part in judge.true.values()])
    mean = values.mean()

    def constant(nodes):
        return solvers.Along(mean.expand(nodes.shape[:2]), torch.zeros_like(nodes))

    found = judge(constant, solvers.idle)
    both = {key: [value] for key, value in found.items()}
    assert evidence.phi_error([both])[0] == pytest.approx(100, rel=1e-3)
    assert found["gradient_walk"] == pytest.approx(100)
    assert found["cost"] == pytest.approx(6144, rel=0.01)


def test_the_judge_takes_the_value_function_of_twenty_steps_for_the_other_truth(judge):
    table = stepwise_values(shifted.PROBLEM, 30.0, steps=20)

    def look(nodes):
        radius = (nodes.double() - 3.0).norm(dim=2).numpy()
        values = [v(r) for v, r in zip(table, radius, strict=True)]
        return solvers.Along(torch.as_tensor(np.array(values)), torch.zeros_like(nodes))

    found = judge(look, solvers.idle)
    assert max(found["stepwise_walk"], found["stepwise_best"]) < 1e-6


def test_best_paths_go_to_the_target_and_walks_do_not(judge):
    far = {name: (x[-1] - 3.0).norm(dim=1).mean() for name, x in judge.nodes.items()}
    assert far["best"] < 5
    assert far["walk"] > 28


def test_a_recorder_looks_every_so_many_steps_and_hands_on_all_of_them():
    looks = iter(range(10))
    recorder = shifted.Recorder(lambda: {"cost": float(next(looks))}, every=3)
    steps = [Step(k, 0.0, {}, 0.0, 0.0) for k in range(8)]
    assert list(recorder(iter(steps))) == steps
    assert recorder.curve["cost"] == [0.0, 1.0]
    assert recorder.curve["steps"] == [3, 6]


def test_numbers_at_equal_seconds_are_the_first_after_them():
    curve = {"cost": [3.0, 2.0, 1.0], "seconds": [10.0, 20.0, 30.0]}
    assert benchmark.at_seconds(curve, "cost", 15) == 2.0
    assert benchmark.at_seconds(curve, "cost", 99) == 1.0
    assert benchmark.least_seconds({"a": [curve], "b": [curve | {"seconds": [1.0, 2.0]}]}) == 2.0


# --- trainings ----------------------------------------------------------------------------------


def test_the_cost_alone_teaches_a_feedback_within_few_steps():
    phi = shifted.centred(0)
    losses = [s.loss for s in shifted._steps(shifted.OWN, phi, 0, 25, None, 16)]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_settings_were_chosen_on_another_seed_than_those_reported():
    assert shifted.TUNED_ON not in shifted.SEEDS
    assert {s.steps for s in shifted.CORNERS.values()} == {race.RUN_STEPS}


def test_a_trial_run_trains_and_judges_rivals_and_ours(tmp_path):
    store = Store(shifted.CHAPTER, "smoke", folder=tmp_path)
    curve = race.ours(store, shifted.WALK_COST, 10)
    assert curve["steps"] == [2]
    rival = race.RIVALS[race.DEEP]
    found = race.history(rival, 10, 1000, smoke=True)
    assert found.keys() == curve.keys()


# --- the rows -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    torch.set_default_dtype(torch.float32)
    return evidence.gather("saved")


def judged_rows(found):
    return {row.id: row for row in evidence.rows(found) if isinstance(row, claims.Claim)}


def with_curves(found, name, key, value):
    """The evidence with another last number of a solver of the modified problem."""
    spoiled = [c | {key: [*c[key][:-1], value]} for c in found.race[name]]
    if name == race.OURS:
        corners = found.corner_curves | {("own", "with_cost"): spoiled}
        return dataclasses.replace(found, corner_curves=corners)
    return dataclasses.replace(found, rivals=found.rivals | {name: spoiled})


def test_every_row_can_be_refuted(found):
    assert all(claims.turns(row) for row in judged_rows(found).values())


@pytest.mark.parametrize("rival", [race.RAISSI, race.DEEP])
def test_planted_costs_turn_the_race(found, rival):
    id = f"soc100shift.half.cost.{evidence.SHORT[rival]}"
    good = with_curves(with_curves(found, rival, "cost", 5000.0), race.OURS, "cost", 600.0)
    assert judged_rows(good)[id].verdict == "supported"
    bad = with_curves(good, race.OURS, "cost", 9000.0)
    assert judged_rows(bad)[id].verdict == "refuted"


def test_planted_corners_turn_sampling_and_loss(found):
    cheap, dear = [600.0, 601.0, 602.0], [3000.0, 3001.0, 3002.0]
    at = {("own", "with_cost"): cheap, ("own", "penalties"): dear}
    at |= {("walk", "with_cost"): dear, ("walk", "penalties"): [9000.0, 9001.0, 9002.0]}
    rows = judged_rows(dataclasses.replace(found, corners=at))
    ids = (
        "sampling.with_cost",
        "sampling.penalties",
        "loss.own",
        "loss.walk",
        "loss_over_sampling",
    )
    assert {rows[f"soc100shift.{id}"].verdict for id in ids} == {"supported"}
    better = [cost - 50 for cost in cheap]
    mixed = dataclasses.replace(found, corners=at | {("walk", "with_cost"): better})
    assert judged_rows(mixed)["soc100shift.sampling.with_cost"].verdict == "refuted"


def test_the_lecture_quotes_rows_that_exist(found):
    assert set(lecture.SENTENCES) <= set(judged_rows(found))


def test_the_wanted_measurements_are_there(found):
    ids = {row.id for row in evidence.rows(found)}
    for solver in ("ours", "deepbsde", "fbsnn"):
        assert f"soc100shift.{solver}.phi_error" in ids
    for paths in ("own", "walk"):
        for loss in ("with_cost", "penalties"):
            assert f"soc100shift.{paths}.{loss}.cost" in ids


def test_no_published_number_stands_beside_another_quantity(found):
    published = {row.id for row in evidence.rows(found) if row.published is not None}
    costs = {"soc100shift.rank10.cost.nt20", "soc100shift.random_walk.cost.nt20"}
    assert published == {"soc100.phi0"} | costs


def test_stored_costs_are_those_of_the_stored_weights(found):
    phi, *_ = shifted.fit(Store(shifted.CHAPTER, "saved"), shifted.RANK10, 10)
    cost = shifted.price(feedback(shifted.PROBLEM, phi.double()), paths=400)
    assert cost == pytest.approx(found.costs[shifted.RANK10.name][0], rel=0.02)


def test_tables_have_a_line_for_each_solver(found):
    assert evidence.benchmark_table(found).count("\n") == 1 + len(benchmark.METHODS)
    columns = evidence.race_table(found).splitlines()[0].count("|") - 2
    assert columns == 1 + len(race.RIVALS)
    assert evidence.seconds_table(found).count("\n") == 2 + len(race.RIVALS)
    assert evidence.corner_table(found).count("\n") == 3


@pytest.mark.parametrize("draw", [lecture.draw_two_problems, lecture.draw_value])
def test_pictures_that_need_no_results_are_drawn(draw):
    draw()
    assert len(plt.gcf().axes) == 2
    plt.close("all")
