import math

import pytest
import torch

from ctdl_lib.metrics import observed_orders
from experiments.pde_perspective import evidence, lecture, moons, schemes
from machinery import claims
from machinery.store import results_folder

pytestmark = pytest.mark.usefixtures("as_the_book_computes")


# --- schemes ------------------------------------------------------------------------------------


def test_orders_are_those_of_the_theory():
    assert schemes.orders("semi-Lagrangian", [0], (65, 129))[0] == pytest.approx(2, abs=0.1)
    assert schemes.orders("upwind", [0], (65, 129))[0] == pytest.approx(1, abs=0.15)


def test_errors_for_all_w_are_those_for_the_coordinates():
    errors = schemes.coordinate_errors("upwind", 33)
    W = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    (found,) = schemes.largest_errors("upwind", W, (33,))
    assert found[0] == pytest.approx((errors @ W[0]).abs().max().item())


@pytest.mark.parametrize("courant", [0.1, 0.5, 0.9])
def test_the_diffusion_is_that_of_a_random_walk(courant):
    """Second route: each step moves a particle by h with probability ν."""
    assert schemes.spread_of_peak(courant) == pytest.approx(1 - courant, rel=1e-9)


def test_a_density_is_carried_as_the_closed_form_says():
    """For f = −x mass gathers: the density at the origin grows by exp(2T)."""
    f = lambda t, x: -x  # noqa: E731
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    end = schemes.carry(f, x, 1.0, 200)
    assert torch.allclose(end.x, x * math.exp(-1), atol=1e-5)
    assert end.log_det.item() == pytest.approx(-2)
    errors = [schemes.density_error(f, x, 0.5, schemes.box(m), 2 * m) for m in (65, 129)]
    assert observed_orders(errors, [1 / 64, 1 / 128])[-1] == pytest.approx(1, abs=0.3)


def test_fluxes_keep_the_mass_and_differences_do_not():
    assert schemes.lost_mass(1, True) < 1e-12
    assert schemes.lost_mass(1, False) > 1e-2


def test_a_grid_answers_as_paths_do():
    found = schemes.contest(2, 0, rounds=1)
    assert found.path_error < found.grid_error < 0.1
    assert schemes.evaluations(3) == (32 * 21**3, 32_000)


# --- the trained velocity -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    torch.set_default_dtype(torch.float32)
    net = moons.network(3)
    net.K.data *= 3
    net.b_out.data += 0.01
    return net.requires_grad_(False)


def test_layers_are_steps_along_characteristics(net):
    y, _ = moons.moons(3)
    how = {"steps": net.layers, "method": "euler"}
    found = moons.characteristics(net.velocity, lambda x: moons.score(net, x), y, 2.0, 0.0, **how)
    assert torch.allclose(found, net(y)[:, 0], atol=1e-12)


def test_the_grid_decides_as_the_network_if_time_is_turned(net):
    x = moons.inner_points(41)
    assert moons.agreement(net, moons.SEMI_LAGRANGIAN, 65, x) > 99
    assert moons.agreement(net, moons.UNTURNED, 65, x) < 97
    assert moons.agreement(net, moons.FLOW, 65, x) > 90


def test_points_for_training_and_for_judging_differ():
    y, label = moons.moons(0)
    assert len(y) == 600
    assert moons.linear_accuracy(0) < 95
    assert 0.4 < label[: moons.KEY.points].double().mean() < 0.6


def test_the_score_is_constant_along_its_characteristics():
    x = torch.tensor([[0.3]], dtype=torch.float64)
    end = lecture.integrate(lecture.wave, x, 0.0, 1.0, steps=50)
    middle = lecture.integrate(lecture.wave, x, 0.0, 0.4, steps=50)
    again = lecture.integrate(lecture.wave, middle, 0.4, 1.0, steps=50)
    assert torch.allclose(end, again, atol=1e-6)


# --- the pages ----------------------------------------------------------------------------------


def test_the_sentences_of_the_lecture_are_claims_that_are_stored():
    rows = claims.read(results_folder() / "claims" / f"{evidence.CHAPTER}.json")
    assert set(lecture.SENTENCES) <= {row.id for row in rows if isinstance(row, claims.Claim)}
