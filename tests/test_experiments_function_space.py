"""The experiments of chapter 11: metrics, samplers, laws in closed form, plans, fields."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from ctdl_lib.metrics import observed_orders
from experiments.function_space import (
    digits,
    dimension,
    evidence,
    factorial,
    judging,
    lecture,
    mixture,
    multilevel,
    operators,
    patterns,
    sampling,
    training,
)
from experiments.function_space.grids import resample
from experiments.function_space.priors import BandNoise, Laplacian, Matern
from experiments.function_space.training import LAWS, SCHEDULE
from machinery.claims import REFUTED, SUPPORTED, Claim
from machinery.store import Store

double = torch.float64


pytestmark = pytest.mark.usefixtures("as_the_book_computes")


def seeded(k):
    return torch.Generator().manual_seed(k)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=double)


# --- metrics ------------------------------------------------------------------------------------


def test_the_frechet_distance_is_that_of_scipys_matrix_square_root():
    x = normal(200, 5) @ normal(5, 5, seed=1) + 1
    y = normal(300, 5, seed=2) @ normal(5, 5, seed=3)
    C, D = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    cross = np.trace(linalg.sqrtm(C @ D)).real
    wanted = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(C + D) - 2 * cross
    assert digits.frechet(x, y) == pytest.approx(wanted, rel=1e-8)
    assert digits.frechet(x, x + torch.arange(5.0)) == pytest.approx(30.0, rel=1e-8)


def test_the_frechet_distance_exists_for_fewer_samples_than_features():
    x, y = normal(4, 9), normal(5, 9, seed=1)
    assert math.isfinite(digits.frechet(x, y))


def test_precision_and_coverage_count_balls():
    """Images on a line at 0, 1, 2, …: the ball of an inner image reaches to 1 with k = 2."""
    y = torch.arange(10.0)[:, None]
    assert digits.neighbourhoods(y, y, k=2) == (1.0, 1.0)
    inside, outside = torch.full((3, 1), 4.9), torch.full((1, 1), 40.0)
    precision, coverage = digits.neighbourhoods(torch.cat([inside, outside]), y, k=2)
    assert precision == 0.75
    assert coverage == 0.2  # those of 4 and 5


def test_coverage_sees_lost_variety_and_precision_does_not():
    y = normal(200, 3)
    few = y[:4].repeat(50, 1)
    precision, coverage = digits.neighbourhoods(few, y)
    assert precision == 1.0
    assert coverage < 0.3


def test_power_beyond_the_grid_of_training():
    image = training.images()[2][:3]
    assert digits.beyond(resample(image, 56)) < 1e-8
    assert digits.beyond(image) == 0.0
    x = torch.arange(56) / 56
    wave = torch.cos(2 * math.pi * 20 * x)[:, None].expand(56, 56)[None]
    assert digits.beyond(wave) == pytest.approx(100.0)


def test_a_copy_is_at_distance_zero_and_a_held_out_image_is_not():
    learned, _, held, _ = training.images()
    assert digits.nearest(learned[:20], learned) == pytest.approx(0.0, abs=1e-3)
    assert digits.nearest(held[:20], learned) > 0.2
    assert digits.nearest(resample(learned[:20], 56), learned) == pytest.approx(0.0, abs=1e-3)


def test_worse_images_are_worse_in_the_way_they_say():
    x = training.images()[2][:100]
    wanted = ndimage.gaussian_filter(x[0].double().numpy(), 1.0, mode="wrap", truncate=8)
    assert np.allclose(digits.blurred(x)[0], wanted, atol=1e-3)
    assert torch.equal(digits.shifted(x)[:, 3:, 3:], x[:, :-3, :-3])
    spliced = digits.spliced(x)
    assert torch.equal(spliced[50:], x[50:])
    assert torch.equal(spliced[1, :14], x[1, :14])
    assert torch.equal(spliced[1, 14:], x[0, 14:])
    assert len(digits.repeated(x).unique(dim=0)) == 50
    again = digits.resampled(x)
    torch.testing.assert_close(digits.resampled(again), again, atol=1e-4, rtol=1e-4)


def test_halves_have_no_image_in_common_and_other_splits_are_others():
    a, b = digits.split(0)
    assert len(torch.cat([a, b]).unique(dim=0)) == len(training.images()[2].unique(dim=0))
    assert not torch.equal(a, digits.split(1)[0])


def test_the_stored_classifier_names_digits_it_has_not_seen():
    net = digits.classifier(Store(training.CHAPTER, "saved"))
    assert digits.accuracy(net) > 97
    held = training.images()[2]
    assert torch.equal(net(held[:9]).argmax(1), net(resample(held[:9], 56)).argmax(1))
    assert digits.sure(net, held) > 94
    assert digits.sure(net, digits.spliced(held)) < 85


# --- samplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0, 20.0, 150.0])
def test_the_time_of_a_noise_level(sigma):
    t = sampling.time_of(sigma)
    assert float(SCHEDULE.s(t) / SCHEDULE.a(t)) == pytest.approx(sigma, rel=1e-6)


def test_the_ladder_is_even_in_the_logarithm():
    rungs = np.log(sampling.ladder(20))
    assert np.allclose(np.diff(rungs), np.diff(rungs)[0])
    assert rungs[-1] == pytest.approx(math.log(sampling.LAST))


class Exact(torch.nn.Module):
    """The estimate of the noise for data N(0, C) and noise N(0, Q)."""

    def __init__(self, C, Q, n):
        super().__init__()
        self.c, self.rate = C.spectrum(n), Q.spectrum(n)

    def forward(self, t, x):
        a, s = float(SCHEDULE.a(t)), float(SCHEDULE.s(t))
        factor = s * self.rate / (a**2 * self.c + s**2 * self.rate)
        return torch.fft.ifft2(factor * torch.fft.fft2(x)).real


def coefficients(x):
    return torch.fft.fft2(x, norm="forward")


@pytest.mark.parametrize("name", ["matern", "laplacian", "white", "standard"])
def test_the_law_in_closed_form_is_that_of_samples(name):
    """Many samples of the sampler that draws images, against the recursion for variances."""
    n, steps, g = 16, 8, seeded(3)
    Q, model = LAWS[name], Exact(dimension.DATA, LAWS[name], 16)
    x = sampling.ancestral(model, lambda: Q.sample(4000, n, g, dtype=double), steps)
    path = dimension.path_of(Q, n, steps)
    power = (coefficients(x).abs() ** 2).mean(0)
    wanted = path.variances[-1]
    ratio = power[:8, :8] / wanted
    assert torch.all((ratio - 1).abs() < 0.15)
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)


def test_heuns_method_has_order_two_on_the_flow_of_a_gaussian():
    n, Q = 8, LAWS["matern"]
    model, noise = Exact(dimension.DATA, Q, n), Q.sample(5, n, seeded(1), dtype=double)
    first, last = sampling.ladder(2)
    c, rate = dimension.DATA.spectrum(n), Q.spectrum(n)
    # dy/dσ = σλ y/(c + σ²λ) for each wave number, then the estimate of the clean coefficient
    flow = ((c + last**2 * rate) / (c + first**2 * rate)).sqrt() * c / (c + last**2 * rate)
    start = noise * math.hypot(1, first)
    exact = torch.fft.ifft2(flow * torch.fft.fft2(start)).real
    sizes = [20, 40, 80, 160]
    errors = [float((sampling.heun(model, lambda: noise, k) - exact).norm()) for k in sizes]
    orders = observed_orders(errors, [1 / k for k in sizes])
    assert orders[-1] == pytest.approx(2.0, abs=0.25)


def test_coupled_noise_is_the_same_on_grids_of_one_draw():
    Q = LAWS["laplacian"]
    coarse, fine = (sampling.coupled(Q, n, 56, 3, 5)() for n in (28, 56))
    torch.testing.assert_close(resample(fine, 28), coarse)
    assert not torch.equal(coarse, sampling.coupled(Q, 28, 56, 3, 6)())


# --- refinement ---------------------------------------------------------------------------------


def test_totals_count_every_wave_number_below_half_of_the_grid():
    n, spectrum = 8, Matern(s=2.0, kappa=3.0).spectrum(8)
    inside = [k for k in range(n) if k != n // 2]
    wanted = float(spectrum[inside][:, inside].sum())
    assert float(dimension.total(dimension.resolved(spectrum))) == pytest.approx(wanted)


def test_the_distance_of_two_laws_is_that_of_normal_laws_in_one_dimension_each():
    a = dimension.Path(4, torch.tensor([[[1.0, 4.0], [9.0, 1.0]]], dtype=double))
    fine = torch.zeros(1, 4, 4, dtype=double)
    fine[0, :2, :2] = torch.tensor([[4.0, 4.0], [9.0, 0.0]])
    fine[0, 3, 0] = 2.0
    # (2 − 1)², twice along one axis the new 2, four times the lost 1
    assert float(dimension.distances(a, dimension.Path(8, fine))) == pytest.approx(1 + 4 + 4)


@pytest.mark.parametrize("nu", [1.5, 2.0])
def test_the_rate_on_the_way_is_that_of_the_tail_of_the_trace(nu):
    Q = Laplacian(s=nu).normalized(28)
    paths = [dimension.path_of(Q, n, 16) for n in (32, 64, 128)]
    apart = [float(dimension.distances(a, b).max()) for a, b in pairwise(paths)]
    assert dimension.slopes(apart)[0] == pytest.approx(-2 * (nu - 1), abs=0.1)


def test_white_noise_diverges_and_its_samples_do_not():
    found = dimension.refinement("white", (16, 32, 64))
    assert dimension.slopes(found.path)[0] == pytest.approx(2.0, abs=0.1)
    assert dimension.slopes(found.sample)[0] < -1


def test_band_noise_is_one_covariance_on_all_grids():
    Q = BandNoise(modes=3, level=2.0)
    assert Q.trace(8) == Q.trace(50) == 2.0 * 49
    x = Q.sample(4, 20, seeded(0), dtype=double)
    torch.testing.assert_close(resample(resample(x, 8), 20), x)
    with pytest.raises(ValueError, match="too small for 3 modes"):
        Q.spectrum(6)
    assert judging.FIXED.trace(56) == pytest.approx(27**2 / 28**2)


# --- architecture times prior -------------------------------------------------------------------


def planted(net, prior, n):
    """Distances with known effects: the U-Net 8 times, pixel noise 4 times, both 16 times."""
    pixels, unet = prior == "standard", net == "unet"
    doublings = 0 if n == 28 else 3 * unet + 2 * pixels - pixels * unet
    return [0.1 * s * 2.0**doublings for s in (1.0, 1.1, 1.2)]


def test_planted_effects_are_found():
    assert factorial.architecture(planted, 56) == pytest.approx([8.0] * 3)
    assert factorial.architecture(planted, 28) == pytest.approx([1.0] * 3)
    assert factorial.prior(planted, 56) == pytest.approx([4.0] * 3)
    assert factorial.prior(planted, 56, "unet") == pytest.approx([2.0] * 3)
    found = factorial.effects(planted, 56)
    assert found["architecture"] == pytest.approx([2.5] * 3)  # (3 + 2) / 2
    assert found["prior"] == pytest.approx([1.5] * 3)
    assert found["interaction"] == pytest.approx([-0.5] * 3)


# --- coarse to fine -----------------------------------------------------------------------------


def test_the_saving_of_a_known_law_of_loss_against_work():
    """The loss is w^−½, and coarse to fine reaches what the fine grid alone does with 1,050."""
    goal = 1.5 * multilevel.WORK[multilevel.BOTH]
    work = multilevel.WORK | {multilevel.BOTH: goal}
    curves = {name: [{"curve": [[0, work[name] ** -0.5]]}] * 2 for name in work}
    assert multilevel.savings(curves) == pytest.approx([1.5, 1.5])


def test_work_counts_pixels():
    assert multilevel.work_of(((28, 1200), (56, 400))) == 700
    assert multilevel.work_of(multilevel.THREE["three levels"], 112) == 900
    assert multilevel.work_of(multilevel.THREE["finest only"], 112) == 1200


# --- fields -------------------------------------------------------------------------------------


def test_the_shells_of_a_spectrum_hold_all_power():
    u = normal(3, 16, 16)
    low = resample(resample(u, 9), 16)  # wave numbers up to 4
    power = sum(patterns.spectrum(low, 7)) + float(low.mean((1, 2)).square().mean())
    assert power == pytest.approx(float(low.square().mean()))


def test_structure_functions_follow_from_the_spectrum_and_gaussian_fields_are_flat():
    Q = Matern(s=2.0, kappa=2.0).normalized(32)
    u = Q.sample(3000, 32, seeded(0), dtype=double)
    k = torch.fft.fftfreq(32, 1 / 32, dtype=double)
    for lag, found in zip((1, 4), patterns.structure(u, 2, (1, 4)), strict=True):
        wanted = 2 * (Q.spectrum(32) * (1 - torch.cos(2 * math.pi * k * lag / 32))).sum()
        assert found == pytest.approx(float(wanted), rel=0.02)
    assert patterns.flatness(u) == pytest.approx([3.0] * 5, rel=0.03)


def test_scrambled_fields_keep_the_spectrum_and_lose_the_flatness():
    u = patterns.solutions(60, seeded(0))
    v = patterns.scrambled(u, seeded(1))
    a, b = (torch.tensor(patterns.spectrum(w, 8)) for w in (u, v))
    assert torch.all((a / b - 1).abs() < 0.35)
    assert abs(patterns.flatness(v)[-1] - 3) < 0.4
    assert patterns.flatness(u)[-1] < 2.4  # two phases, so it is far from normal


# --- networks -----------------------------------------------------------------------------------


def test_an_fno_is_one_operator_and_a_unet_is_not():
    ours, unet = operators.gaps()
    assert max(ours) < 0.01
    assert unet > 0.2


def test_the_error_of_the_exact_score_is_zero_and_that_of_none_is_one():
    law = mixture.mixture_of("matern", 16, 16)
    exact = lambda t, x: law.score(t, x, SCHEDULE)  # noqa: E731
    idle = lambda t, x: -x  # noqa: E731
    assert mixture.score_error(exact, law, 0.3, 16, 20, 0) == 0
    assert mixture.score_error(idle, law, 0.3, 16, 20, 0) == pytest.approx(1.0)


def test_a_short_live_training_learns_a_score():
    law = mixture.mixture_of("matern", 16, 16)
    model, losses = lecture.learned(law, steps=60, seed=1, device="cpu")
    before, _ = lecture.learned(law, steps=1, seed=1, device="cpu")
    assert len(losses) == 60
    assert lecture.errors(model, "matern")[0.3][0] < 0.3 * lecture.errors(before, "matern")[0.3][0]
    assert not any(p.requires_grad for p in model.parameters())


def test_long_trainings_are_ready_and_even_in_what_they_see(tmp_path):
    fno, unet = training.LONG["fno"], training.LONG["unet"]
    assert (fno["steps"], fno["batch"]) == (unet["steps"], unet["batch"])
    store = Store(training.CHAPTER, "smoke", folder=tmp_path)
    model = training.long(store, "unet", "laplacian", 10)
    assert training.count_of(model) > training.count_of(
        training.model_of("unet", 10, training.RECIPES["unet"])
    )


# --- rows ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    torch.set_default_dtype(torch.float32)
    return evidence.gather("saved")


def row_of(found, id) -> Claim:
    return next(row for row in evidence.rows(found) if row.id == id and isinstance(row, Claim))


def test_a_metric_that_sees_nothing_is_refuted(found):
    assert row_of(found, "diffusion.metric_power.sure").verdict == SUPPORTED
    blind = dataclasses.replace(found, powers=found.powers | {"spliced": found.powers["copied"]})
    assert row_of(blind, "diffusion.metric_power.sure").verdict == REFUTED


def test_equal_networks_refute_the_architecture(found):
    assert row_of(found, "diffusion.factorial.architecture").verdict == SUPPORTED
    same = {case: found.table["fno", case[1]] for case in found.table}
    equal = dataclasses.replace(found, table=same)
    assert row_of(equal, "diffusion.factorial.architecture").verdict == REFUTED


def test_a_prior_without_effect_refutes_it(found):
    assert row_of(found, "diffusion.factorial.prior").verdict == SUPPORTED
    table = found.table | {("fno", "standard"): found.table["fno", "laplacian"]}
    blind = dataclasses.replace(found, table=table)
    assert row_of(blind, "diffusion.factorial.prior").verdict == REFUTED


def test_noise_without_a_limit_refutes_convergence(found):
    assert row_of(found, "diffusion.dimension.slope.laplacian").verdict == SUPPORTED
    refined = found.refined | {"laplacian": found.refined["white"]}
    bad = dataclasses.replace(found, refined=refined)
    assert row_of(bad, "diffusion.dimension.slope.laplacian").verdict == REFUTED


def test_plans_that_save_nothing_refute_the_saving(found):
    assert row_of(found, "diffusion.multilevel.work_saving").verdict == SUPPORTED
    worse = [{"curve": [[0.0, 0.2]], "energy": [[0.0, 1.0]]}] * 3
    bad = dataclasses.replace(found, climbed=found.climbed | {multilevel.BOTH: worse})
    assert row_of(bad, "diffusion.multilevel.work_saving").verdict == REFUTED


def test_real_images_as_samples_would_pass_for_digits(found):
    judged = found.judged | {
        name: found.powers["real"] for name in found.judged if name.endswith(".28")
    }
    good = dataclasses.replace(found, judged=judged)
    assert row_of(good, "diffusion.digits.sure").verdict == SUPPORTED
    assert row_of(found, "diffusion.digits.sure").verdict == REFUTED


def test_gaussian_fields_do_not_pass_for_solutions(found):
    fields = found.fields | {"samples 32": found.fields["gaussian"]}
    bad = dataclasses.replace(found, fields=fields)
    assert row_of(bad, "diffusion.fields.flatness.n32").verdict != SUPPORTED
