"""The experiments of chapter 12: trainings, references, characteristics, the filter, and rows."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ctdl_lib.control import hjb_residual, rollout
from ctdl_lib.potentials import AutodiffPotential
from ctdl_lib.problems.control import obstacle
from ctdl_lib.problems.vehicles import Corridor
from experiments.hjb_and_pontryagin import (
    characteristics,
    corridor,
    evidence,
    gate,
    grids,
    hill,
    lecture,
    training,
)
from experiments.hjb_and_pontryagin.corridor import AT, GATE, STEPS, Filtered
from experiments.hjb_and_pontryagin.training import DOUBLE
from machinery import claims
from machinery.seeds import seeded
from machinery.store import Store

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def states(count: int, seed: int = 0) -> torch.Tensor:
    return GATE.start + 2 * torch.randn(count, 4, generator=seeded(seed), **DOUBLE)


# --- trainings ----------------------------------------------------------------------------------


def test_a_share_of_the_starts_fills_the_box_and_the_rest_is_normal():
    x = training.starts(training.BOX, 40_000, seeded(0))
    wide, near = x[:20_000], x[20_000:]
    assert wide.min() >= -3
    assert wide.max() <= 3
    assert wide.var(0).tolist() == pytest.approx([3.0, 3.0], rel=0.03)  # (6²)/12
    assert near.mean(0).tolist() == pytest.approx([-1.5, -1.5], abs=0.03)
    assert torch.equal(
        training.starts(training.HILL, 5, seeded(1)), training.starts(training.HILL, 5, seeded(1))
    )


def test_a_training_lowers_the_residual_and_is_the_same_again():
    def mean_residual() -> tuple[float, float]:
        how = training.BOX | {"width": 16}
        net, phi = training.untrained(training.hill(), how, 0)
        x = training.starts(how, 200, seeded(9))
        problem = training.hill().problem
        before = hjb_residual(problem, phi, 0.5, x).abs().mean().item()
        list(training.steps_of(training.hill(), how, 0, net, phi, steps=30, size=16))
        return before, hjb_residual(problem, phi, 0.5, x).abs().mean().item()

    first = mean_residual()
    assert first[1] < 0.8 * first[0]
    assert mean_residual() == first


def test_the_stored_trainings_load_with_these_settings():
    store = Store(training.CHAPTER, "saved")
    found = [hill.fits(store), hill.wide_fits(store), gate.fits(store), hill.halved_fits(store)]
    assert [len(fits) for fits in found] == [5, 4, 3, 2]
    assert len({record.weights for fits in found for _, record in fits}) == 14


# --- the hill -----------------------------------------------------------------------------------


def test_half_of_the_noise_halves_the_trace_twice():
    problem, x = obstacle(), torch.randn(9, 2, generator=seeded(0), **DOUBLE)
    phi = problem.linear_quadratic.value()
    full, half = (hjb_residual(p, phi, 0.3, x) for p in (problem, hill.halved(problem)))
    S = torch.as_tensor(problem.diffusion)
    S = S @ S.T
    P = 1 / (0.01 + 0.7)  # ∇²Φ = P I
    assert torch.allclose(full - half, torch.full((9,), 0.25 * P * float(S.trace()), **DOUBLE))


class Scaled(nn.Module):
    """A table of values times a number, as a function of (t, x) at the nodes of the box."""

    def __init__(self, values: torch.Tensor, by: float):
        super().__init__()
        self.values, self.by = values, by

    def forward(self, t, x):
        return self.by * self.values + 0 * x[:, 0]


def test_errors_over_the_box_are_relative_and_see_one_wrong_node():
    known = grids.box().square().sum(1) + 1
    found = hill.over_box(known, AutodiffPotential(Scaled(known, 1.1)))
    assert found == pytest.approx((10, 10, 10, 10))
    spoiled = known.clone()
    spoiled[7] *= 3
    found = hill.over_box(known, AutodiffPotential(Scaled(spoiled, 1.0)))
    assert found.max == pytest.approx(200)
    assert found.mean == pytest.approx(200 / len(known))
    assert found.median == found.target == 0


def test_a_committee_has_the_mean_of_the_errors_and_not_the_error_of_one():
    known = grids.box().square().sum(1) + 1
    found = [AutodiffPotential(Scaled(known, by)) for by in (0.9, 1.14)]
    assert hill.committee(known, found) == pytest.approx((2, 2, 2, 2))


def test_the_target_is_the_node_that_the_errors_say():
    assert grids.box()[45 * grids.NODES + 45].tolist() == pytest.approx([1.5, 1.5])


def test_the_stored_reference_agrees_with_a_coarse_grid_and_with_simulated_costs():
    """The second route: no grid, but the cost of a feedback that is nearly optimal."""
    plane = grids.plane(Store(training.CHAPTER, "saved"))
    known = torch.tensor(plane["known"], **DOUBLE)
    coarse = grids.value(25, times=5)(0.0, grids.box())
    assert (coarse / known - 1).abs().mean() < 0.02
    policy = gate.feedback(grids.PROBLEM, grids.value(25, times=20))
    x = torch.tensor([[0.5, -2.0]], **DOUBLE)
    k = int((grids.box() - x).norm(dim=1).argmin())
    path = rollout(grids.PROBLEM, policy, x.expand(1500, 2), steps=100, generator=seeded(1))
    assert path.cost.mean().item() == pytest.approx(float(known[k]), rel=0.03)


def test_what_noise_adds_has_the_order_that_is_put_in():
    by = {"1.0": 2.0, "0.5": 1.25, "0.25": 1.0625, "0.0": 1.0}
    assert evidence.orders(by) == pytest.approx([2, 2])
    assert evidence.orders({"1.0": 2.0, "0.5": 1.5, "0.0": 1.0}) == pytest.approx([1])


# --- without noise ------------------------------------------------------------------------------


def test_along_characteristics_the_hamiltonian_is_constant():
    z = characteristics.fan(torch.linspace(3.2, 4.6, 7, **DOUBLE))
    x, p = z[..., :2], z[..., 2:]
    Q = torch.stack([characteristics.PROBLEM.hill(nodes) for nodes in x])
    H = Q - 0.5 * p.square().sum(-1)
    assert torch.allclose(H, H[:1].expand_as(H), atol=1e-3)
    assert torch.allclose(p[0], 100 * (x[0] - 1.5))
    assert Q.max() > 5  # some of them do cross the hill


def test_the_gap_of_the_problem_without_hill_is_that_of_the_control():
    found = characteristics.gap(characteristics.PROBLEM.linear_quadratic.value())
    assert found.costate == pytest.approx(found.straight)
    assert found.costate > 10


# --- the gate -----------------------------------------------------------------------------------


def chase(t, x):
    """Both agents run into each other."""
    apart = x[:, :2] - x[:, 2:]
    return 20 * torch.cat([-apart, apart], 1)


@pytest.mark.parametrize("rate", [5.0, 50.0])
def test_the_filter_stops_agents_that_run_into_each_other(rate):
    x = states(64)
    x = x[GATE.distance(x) > 1.05]
    assert len(x) > 30
    plain, kept = corridor.after(chase, x), corridor.after(Filtered(chase, rate), x)
    assert plain.collides.all()
    assert not kept.collides.any()
    # such agents use all that the filter allows, so h falls exactly like exp(−c t)
    h = [distance**2 - 1.01**2 for distance in (GATE.distance(x), kept.nearest)]
    wanted = h[0] * math.exp(-rate * (1 - AT / STEPS))
    assert torch.allclose(h[1], wanted, rtol=1e-2, atol=1e-4)


def test_the_filter_takes_the_nearest_control_that_is_allowed():
    x, some = states(40, 1), (torch.arange(40) % 2)[:, None]
    x = torch.where(GATE.distance(x)[:, None] > 1.1, x, GATE.start)
    policy = lambda t, x: some * chase(t, x)  # noqa: E731
    u, found = policy(0.0, x), Filtered(policy)(0.0, x)
    apart = x[:, :2] - x[:, 2:]
    h = apart.square().sum(1) - 1.01**2

    def slack(v):
        return 2 * (apart * (v[..., :2] - v[..., 2:])).sum(-1) + corridor.RATE * h

    assert (slack(found) > -1e-9).all()
    changed = (found - u).norm(dim=1) > 0
    assert changed.sum() == 20
    assert slack(found)[changed].abs().max() < 1e-9
    others = found + 3 * torch.randn(4000, *found.shape, generator=seeded(2), **DOUBLE)
    nearer = (others - u).norm(dim=-1) < (found - u).norm(dim=-1) - 1e-9
    assert not (nearer & (slack(others) >= 0)).any()


def test_without_need_the_filter_changes_nothing():
    x = states(10)
    policy = lambda t, x: torch.zeros_like(x)  # noqa: E731
    apart = x[GATE.distance(x) > 1.1]
    assert torch.equal(Filtered(policy)(0.0, apart), policy(0.0, apart))


@pytest.fixture(scope="module")
def plan():
    return gate.best(Store(training.CHAPTER, "saved"))


def test_the_cost_of_a_plan_is_that_of_its_controls_by_many_small_steps(plan):
    fine = 20
    h, x, cost = 1 / (STEPS * fine), plan.x[:1], 0.0
    for u in plan.u:
        for _ in range(fine):
            middle = x + h / 2 * u
            cost += h * float(GATE.running_cost(0.0, middle, u[None]))
            x = x + h * u
    assert corridor.followed(plan, 1.0) == pytest.approx(
        cost + float(GATE.terminal_cost(x)), rel=1e-5
    )
    assert plan.cost == pytest.approx(corridor.followed(plan, 1.0), rel=1e-3)


def test_old_controls_that_go_on_end_where_the_plan_does(plan):
    found = corridor.after(gate.continued(plan), plan.x[AT][None])
    # the last stage of a Runge–Kutta step, of weight 1/6, already sees the next control
    early = (plan.u[-1] - plan.u[AT]) / (6 * STEPS)
    assert torch.allclose(found.x[-1, 0] - plan.x[-1], early, rtol=0, atol=1e-4)


def test_the_mirrored_problem_has_the_same_plans():
    """Reflect the plane and exchange the agents: a rule that no plan was told."""
    x = torch.tensor([-2.3, -1.8, 1.6, -2.4], **DOUBLE)
    mirrored = torch.tensor([-1.6, -2.4, 2.3, -1.8], **DOUBLE)
    costs = [corridor.planned(corridor.SYMBOLS, y, steps=20, finer=1).cost for y in (x, mirrored)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-6)
    assert costs[0] > 30


def test_shocks_are_uniform_and_those_that_collide_at_once_are_left_out(plan):
    x, share = corridor.shocked(plan, 2000, 3)
    assert len(x) == 2000
    assert GATE.distance(x).min() >= 1.01
    assert (x - plan.x[AT]).abs().max() <= 3
    rng = np.random.default_rng(0)
    jumps = rng.uniform(-3, 3, (200_000, 4)) + plan.x[AT].numpy()
    wanted = (np.linalg.norm(jumps[:, :2] - jumps[:, 2:], axis=1) < 1.01).mean()
    assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted / 4000))


def test_collisions_are_counted_between_start_and_end():
    still = lambda t, x: torch.zeros_like(x)  # noqa: E731
    x = torch.tensor([[0.0, 0.0, 0.9, 0.0], [0.0, 0.0, 1.1, 0.0]], **DOUBLE)
    assert corridor.after(still, x).collides.tolist() == [True, False]
    assert Corridor().radius == 0.5


# --- the rows -----------------------------------------------------------------------------------


@functools.cache
def gathered() -> evidence.Evidence:
    return evidence.gather("saved")


@pytest.fixture
def found():
    return gathered()


def judged_rows(found) -> dict[str, Any]:
    return {row.id: row for row in evidence.rows(found) if isinstance(row, claims.Claim)}


def test_planted_results_turn_the_verdicts_of_their_rows(found):
    judged = judged_rows(found)
    assert all(claims.turns(row) for row in judged.values())
    assert set(lecture.SENTENCES) <= judged.keys()
    good = ("corridor.collisions", "soc2d.box_error.mean", "soc2d.penalty", "hjb.residual")
    assert {judged[id].verdict for id in good} == {"supported"}
    near = found.boxes[evidence.NEAR]
    spoiled: dict[str, Any] = {
        "corridor.collisions": {
            "shocks": [row._replace(filtered=found.shocks[0].plain) for row in found.shocks]
        },
        "soc2d.box_error.mean": {"boxes": found.boxes | {evidence.WIDE: near[:4]}},
        "soc2d.penalty": {
            "ablation": found.ablation | {evidence.FULL: 2 * found.ablation["cost alone"][:1]}
        },
        "hjb.residual": {"residual": found.residual[::-1]},
    }
    for id, changes in spoiled.items():
        assert judged_rows(dataclasses.replace(found, **changes))[id].verdict == "refuted", id


def test_tables_have_a_line_for_each_training(found):
    assert evidence.box_table(found).count("\n") == 5
    assert evidence.ablation_table(found).count("\n") == 9
    assert evidence.shock_table(found).count("\n") == 4
