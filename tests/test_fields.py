import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from experiments.function_space.grids import checked_fields, resample, squared_wave_numbers
from experiments.function_space.priors import (
    Laplacian,
    Matern,
    PixelNoise,
    SpectralNoise,
    Sum,
    WhiteNoise,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

LAWS = {
    "pixels": PixelNoise(0.7),
    "white": WhiteNoise(1.3),
    "laplacian": Laplacian(1.1, mean=0.4, level=2.0),
    "laplacian without a mean": Laplacian(1.5, mean=0.0),
    "matern": Matern(2.0, 3.0, level=50.0),
    "spectral": SpectralNoise(2, seed=3, level=1.7),
    "sum": Sum((Laplacian(1.2), SpectralNoise(1), PixelNoise(0.1)), level=0.5),
}
EVERYWHERE = ["pixels", "white", "laplacian", "matern", "sum"]  # those with an inverse
each_law = pytest.mark.parametrize("name", LAWS)
both_parities = pytest.mark.parametrize("n", [4, 5])


def matrix_of(operator, n):
    """The matrix of a linear operator on n × n pixels, column by column."""
    units = torch.eye(n * n).reshape(-1, n, n)
    return operator(units).flatten(1).T


def pixel_covariance(law, n):
    """The covariance E[u uᵀ] of the n² pixels: the operator Q has ⟨f, g⟩ = Σ f g/n² beside it."""
    return n**2 * matrix_of(law.apply, n)


def waves(n):
    """All pairs of wave numbers |k₁|, |k₂| ≤ n/2: those that the fields of a grid are made of."""
    k = range(-(n // 2), n // 2 + 1)
    return [(k1, k2) for k1 in k for k2 in k]


def mirrored(spectrum):
    """The values at −k."""
    return spectrum.flip(0, 1).roll((1, 1), (0, 1))


def points(n):
    x = torch.arange(n) / n
    return x[:, None], x[None, :]


def within(values, wanted, errors=4.0):
    """Where the mean of independent values is `wanted` within four standard errors."""
    return float((values.mean() - wanted).abs()) < errors * float(values.std()) / len(values) ** 0.5


# --- spectra ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 6, 7])
def test_wave_numbers_are_those_of_fft2(n):
    """The field e^{2πi k·x} has a single coefficient, and it is where |k|² stands."""
    squared, (x, y) = squared_wave_numbers(n), points(n)
    for k1, k2 in waves(n):
        power = torch.fft.fft2(torch.exp(2j * math.pi * (k1 * x + k2 * y))).abs() / n**2
        assert squared[power.argmax() // n, power.argmax() % n] == pytest.approx(k1**2 + k2**2)
        assert power.max() == pytest.approx(1.0)


SYMBOLS = {
    "laplacian": lambda k1, k2: 2.0 * (math.hypot(k1, k2) ** -2.2 if k1 or k2 else 0.4),
    "laplacian without a mean": lambda k1, k2: math.hypot(k1, k2) ** -3.0 if k1 or k2 else 0.0,
    "matern": lambda k1, k2: 50.0 / (9 + k1**2 + k2**2) ** 2,
}


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("name", SYMBOLS)
def test_the_spectrum_is_the_symbol(name, n):
    """Wave numbers ±n/2, one and the same on an even grid, have the variance of both."""
    wanted = torch.zeros(n, n)
    for k1, k2 in waves(n):
        wanted[k1 % n, k2 % n] += SYMBOLS[name](k1, k2)
    assert torch.allclose(LAWS[name].spectrum(n), wanted, rtol=1e-13, atol=0)


@both_parities
def test_the_spectrum_of_white_noise_is_flat(n):
    assert torch.equal(WhiteNoise(1.3).spectrum(n), torch.full((n, n), 1.3))
    assert torch.equal(n**2 * PixelNoise(0.75).spectrum(n), torch.full((n, n), 0.75))


@each_law
@pytest.mark.parametrize("n", [4, 5, 8, 9])
def test_k_and_minus_k_have_equal_variance(name, n):
    spectrum = LAWS[name].spectrum(n)
    assert torch.allclose(spectrum, mirrored(spectrum), rtol=1e-14, atol=0)


@each_law
def test_spectra_are_double_whatever_the_default(name):
    torch.set_default_dtype(torch.float32)
    single = LAWS[name].spectrum(6)
    torch.set_default_dtype(torch.float64)
    assert single.dtype == torch.float64
    assert torch.equal(single, LAWS[name].spectrum(6))


@each_law
def test_the_level_is_a_factor_of_the_operator(name):
    law = LAWS[name]
    twice = type(law)(**{**vars(law), "level": 2 * law.level})
    assert torch.allclose(twice.spectrum(6), 2 * law.spectrum(6), rtol=1e-14)


def test_spectral_noise_is_the_same_on_all_grids():
    law = SpectralNoise(2, seed=5)
    coarse, fine = law.spectrum(5), law.spectrum(12)
    for k1, k2 in waves(5):
        assert fine[k1, k2] == coarse[k1, k2]
    assert fine.count_nonzero() == coarse.count_nonzero() == 25
    assert law.trace(12) == pytest.approx(law.trace(5))


def test_spectral_noise_has_both_wave_numbers_at_the_edge_of_an_even_grid():
    law, edge = SpectralNoise(2, seed=5), torch.zeros(4, 4)
    wide = law.spectrum(9)
    for k1, k2 in waves(4):
        edge[k1 % 4, k2 % 4] += wide[k1, k2]
    assert torch.allclose(law.spectrum(4), edge, rtol=1e-14)


def test_the_weights_of_spectral_noise_have_the_law_that_is_said():
    """E|R|² = E(0.2 + 0.8U)² + E(0.8V)² and |R|² lies in [0.2², 1 + 0.8²]."""
    spectrum = SpectralNoise(30).spectrum(61)
    one_of_each_pair = spectrum[1:31].flatten()  # 0 < k₁ ≤ 30
    assert spectrum.min() > 0.04
    assert spectrum.max() < 1.64
    assert within(one_of_each_pair, (0.04 + 0.16 + 0.64 / 3) + 0.64 / 3)
    assert not torch.equal(spectrum, SpectralNoise(30, seed=1).spectrum(61))


def test_a_sum_adds_what_it_is_made_of():
    one, other = Laplacian(1.2), SpectralNoise(1)
    both = Sum((one, Sum((other,), level=3.0)), level=0.5)
    assert torch.allclose(both.spectrum(7), 0.5 * one.spectrum(7) + 1.5 * other.spectrum(7))
    u = torch.randn(2, 7, 7)
    assert torch.allclose(both.apply(u), 0.5 * one.apply(u) + 1.5 * other.apply(u))


# --- traces -------------------------------------------------------------------------------------


def outside(square, power):
    """The integral of |k|^−power outside of |k₁|, |k₂| ≤ square, in polar coordinates."""
    far = power - 2
    angle, _ = integrate.quad(lambda a: math.cos(a) ** far, -math.pi / 4, math.pi / 4)
    return 4 * angle * square**-far / far


def midpoints_outside(square, power):
    """The sum of |k|^−power there, up to |k|^−(power + 2): the midpoint rule with its first error.

    That is −1/24 of the integral of the Laplacian power²·|k|^−(power + 2).
    """
    return outside(square, power) - power**2 / 24 * outside(square, power + 2)


@pytest.mark.parametrize("n", [30, 101, 400])
def test_the_trace_of_a_laplacian_converges(n):
    """Over the whole plane Σ |k|⁻²ˢ = 4 ζ(s) β(s), with Dirichlet's β."""
    s, edge = 1.1, n // 2 + 0.5
    beta = 4**-s * (special.zeta(s, 0.25) - special.zeta(s, 0.75))
    wanted = 0.4 + 4 * special.zeta(s, 1) * beta - midpoints_outside(edge, 2 * s)
    assert Laplacian(s, mean=0.4).trace(n) == pytest.approx(wanted, abs=edge ** -(2 * s + 2))


@pytest.mark.parametrize("n", [100, 201, 400])
def test_the_trace_of_a_matern_field_converges(n):
    """Σ (κ² + |k|²)⁻² = π/κ² + 2π² Σ (|x|/κ) K₁(2πκ|x|) over x ≠ 0, by Poisson's formula.

    Far out it is |k|⁻⁴ − 2κ²|k|⁻⁶ + 3κ⁴|k|⁻⁸ − …
    """
    kappa, edge = 3.0, n // 2 + 0.5
    around = sum(4 * r * special.kv(1, 2 * math.pi * kappa * r) for r in (1, 2**0.5))
    limit = math.pi / kappa**2 + 2 * math.pi**2 / kappa * around
    lacking = midpoints_outside(edge, 4) - 2 * kappa**2 * midpoints_outside(edge, 6)
    lacking += 3 * kappa**4 * outside(edge, 8)
    wrong = 5 * kappa**6 * outside(edge, 10) + 5 * edge**-6
    assert Matern(2.0, kappa).trace(n) == pytest.approx(limit - lacking, abs=wrong)


@pytest.mark.parametrize("n", [4, 16, 33])
def test_the_trace_of_white_noise_is_the_number_of_pixels(n):
    assert WhiteNoise(0.5).trace(n) == 0.5 * n**2


@pytest.mark.parametrize("n", [4, 16, 33])
def test_pixel_noise_keeps_its_trace_and_loses_every_wave_number(n):
    law = PixelNoise(0.5)
    assert law.trace(n) == pytest.approx(0.5, rel=1e-13)
    share = law.spectrum(n)[1, 0] / law.trace(n)
    assert share == pytest.approx(n**-2, rel=1e-13)


@each_law
def test_a_normalized_law_has_trace_one_and_its_own_shape(name):
    law, n = LAWS[name], 6
    unit = law.normalized(n)
    assert type(unit) is type(law)
    assert unit.trace(n) == pytest.approx(1.0, rel=1e-14)
    assert torch.allclose(unit.spectrum(n) * law.trace(n), law.spectrum(n), rtol=1e-13)


# --- operators and samples ----------------------------------------------------------------------


@each_law
@both_parities
def test_the_root_applied_twice_is_the_operator(name, n):
    law, u = LAWS[name], torch.randn(3, n, n)
    assert torch.allclose(law.apply_sqrt(law.apply_sqrt(u)), law.apply(u))


@each_law
@both_parities
def test_the_operator_multiplies_fourier_coefficients_by_the_spectrum(name, n):
    law, u = LAWS[name], torch.randn(3, n, n)
    wanted = torch.fft.ifft2(law.spectrum(n) * torch.fft.fft2(u))
    assert wanted.imag.abs().max() < 1e-15 * n**2 * law.spectrum(n).max()
    assert torch.allclose(law.apply(u), wanted.real)


@each_law
@both_parities
def test_the_operator_is_symmetric_with_the_spectrum_as_eigenvalues(name, n):
    Q = matrix_of(LAWS[name].apply, n)
    assert torch.allclose(Q, Q.T)
    wanted = LAWS[name].spectrum(n).flatten().sort().values
    assert torch.allclose(torch.linalg.eigvalsh(Q), wanted, atol=1e-13 * float(wanted.max()))


@each_law
@both_parities
def test_modes_of_samples_are_independent_with_the_variance_of_the_spectrum(name, n, generator):
    """E[ûₖ conj(ûₗ)] is λₖ if k = l and else 0, for l = −k too: û is as turned as it is not."""
    count = 4000
    modes = torch.fft.fft2(LAWS[name].sample(count, n, generator)).flatten(1) / n**2
    deviation = LAWS[name].spectrum(n).flatten().sqrt()
    found = modes.mH @ modes / count
    # of a real mode |ûₖ|² has the deviation √2 λₖ; no product has more
    error = math.sqrt(2 / count) * deviation[:, None] * deviation
    assert ((found - (deviation**2).diag()).abs() <= 4 * error + 1e-15).all()
    mean_error = deviation / count**0.5
    assert (modes.mean(0).abs() <= 4 * mean_error + 1e-15).all()


@each_law
def test_the_trace_is_the_mean_square_of_samples(name, generator):
    u = LAWS[name].sample(2000, 8, generator)
    assert within(u.square().mean((1, 2)), LAWS[name].trace(8))


def test_pixels_of_pixel_noise_are_the_normal_numbers_themselves():
    """Whatever the grid is, and up to the level."""
    z = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(1))
    u = PixelNoise(4.0).sample(3, 5, torch.Generator().manual_seed(1))
    assert torch.allclose(u, 2 * z)


def test_samples_without_a_mean_have_none(generator):
    u = Laplacian(1.5, mean=0.0).sample(20, 7, generator)
    assert u.mean((1, 2)).abs().max() < 1e-15


def test_seeds_and_only_seeds_make_samples_differ():
    law = Matern(2.0, 3.0)
    same, again, other = (law.sample(2, 6, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(dtype, device):
    law = Matern(2.0, 3.0)
    u = law.sample(3, 6, torch.Generator(device).manual_seed(0), dtype=dtype)
    results = (u, law.apply(u), law.apply_sqrt(u), law.log_prob(u), resample(u, 9), law.check(u))
    assert all(part.dtype == dtype and part.device.type == device for part in results)


def test_single_precision_is_double_precision_rounded():
    law, u = Laplacian(1.3), torch.randn(3, 8, 8)
    for operator in (law.apply, law.log_prob, lambda u: resample(u, 11), lambda u: resample(u, 5)):
        assert torch.allclose(operator(u.float()).double(), operator(u), rtol=1e-5, atol=1e-5)


def test_equal_numbers_do_not_make_laws_equal(generator):
    """Whatever is kept between calls, two laws with equal numbers are not taken for each other."""
    u = torch.randn(2, 6, 6)
    assert torch.allclose(WhiteNoise(1.0).apply(u), u)
    assert torch.allclose(PixelNoise(1.0).apply(u), u / 36)
    assert torch.allclose(WhiteNoise(1.0).apply(u), u)


CACHED = {
    "apply": lambda u: Matern(2.0, 3.25).apply(u),
    "resample": lambda u: resample(u, 17),
}


@pytest.mark.parametrize("name", ["resample"])
def test_what_is_stored_in_inference_mode_can_be_trained_with_later(name):
    operator = CACHED[name]
    with torch.inference_mode():
        operator(torch.randn(2, 10, 10))
    u = torch.randn(2, 10, 10, requires_grad=True)
    operator(u).sum().backward()
    assert u.grad.isfinite().all()


@pytest.mark.parametrize("name", CACHED)
def test_second_derivatives_can_be_taken_more_than_once(name):
    """A quadratic form has a Hessian that depends on no field: what was stored is no obstacle."""
    operator = CACHED[name]

    def form(u):
        return operator(u[None]).square().sum()

    first, again = (torch.func.hessian(form)(torch.randn(3, 3)) for _ in range(2))
    assert torch.allclose(first, again)


# --- densities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERYWHERE)
@both_parities
def test_the_density_is_that_of_a_multivariate_normal(name, n, generator):
    law = LAWS[name]
    C = pixel_covariance(law, n)
    normal = torch.distributions.MultivariateNormal(torch.zeros(n * n), (C + C.T) / 2)
    for u in (law.sample(5, n, generator), torch.randn(5, n, n, generator=generator)):
        assert torch.allclose(law.log_prob(u), normal.log_prob(u.flatten(1)), rtol=1e-10)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_gradient_of_the_density_is_minus_the_inverse(name, generator):
    """∇ log p = −(n² Q)⁻¹ u, so that n² Q makes −u of it."""
    law, n = LAWS[name], 5
    u = law.sample(3, n, generator).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(u).sum(), u)
    assert torch.allclose(n**2 * law.apply(gradient), -u)


def test_differences_of_log_densities_do_not_change_with_the_grid(generator):
    """As long as both fields are made of what the coarse odd grid has."""
    law = Matern(2.0, 3.0)
    u = law.sample(2, 7, generator)
    apart = [float(law.log_prob(v).diff()) for v in (u, resample(u, 8), resample(u, 15))]
    assert apart[1:] == pytest.approx(2 * [apart[0]])


# --- other grids --------------------------------------------------------------------------------

PAIRS = [(4, 5), (5, 4), (4, 8), (8, 4), (5, 9), (9, 5), (6, 7), (7, 6), (5, 8), (8, 5), (2, 6)]
each_pair = pytest.mark.parametrize(("old", "n"), PAIRS)


def band_limited(m, generator):
    """A function of two coordinates with random wave numbers up to m."""
    k = torch.arange(m + 1)
    a, b, c, d = torch.randn(4, m + 1, m + 1, generator=generator)

    def function(x, y):
        angles = [2 * math.pi * k * z.reshape(-1, 1) for z in (x, y)]
        (cx, cy), (sx, sy) = ([part(z) for z in angles] for part in (torch.cos, torch.sin))
        return (cx @ a @ cy.T + cx @ b @ sy.T + sx @ c @ cy.T + sx @ d @ sy.T)[None]

    return function


@each_pair
def test_band_limited_functions_are_what_they_are_on_every_grid(old, n, generator):
    function = band_limited((min(old, n) - 1) // 2, generator)
    assert torch.allclose(resample(function(*points(old)), n), function(*points(n)))


@pytest.mark.parametrize(("old", "n"), [(8, 4), (9, 4), (5, 4), (7, 6), (3, 2)])
def test_a_coarse_even_grid_keeps_what_it_sees_of_its_last_wave_number(old, n, generator):
    """cos(πnx) is (−1)ⁱ there, and sin(πnx) is zero."""
    function = band_limited(n // 2, generator)
    assert torch.allclose(resample(function(*points(old)), n), function(*points(n)))


@pytest.mark.parametrize(("old", "n"), [(4, 5), (4, 8), (6, 9), (2, 3)])
def test_the_last_wave_number_of_an_even_grid_becomes_a_cosine(old, n):
    i, (x, y) = torch.arange(old), points(n)
    zigzag = (-1.0) ** i
    assert torch.allclose(
        resample((zigzag[:, None] * zigzag)[None], n)[0],
        torch.cos(math.pi * old * x) * torch.cos(math.pi * old * y),
    )
    one = resample(zigzag[:, None].expand(old, old)[None], n)[0]
    assert torch.allclose(one, torch.cos(math.pi * old * x).expand(n, n))


@pytest.mark.parametrize(("old", "n"), [(16, 5), (16, 6), (15, 8), (15, 7)])
def test_wave_numbers_that_the_coarse_grid_lacks_are_dropped(old, n, generator):
    """And not taken for others, as on a grid of every second point."""
    low = band_limited((n - 1) // 2, generator)
    (x, y), beyond = points(old), n // 2 + 1
    high = torch.sin(2 * math.pi * (beyond * x + y)) + torch.cos(2 * math.pi * beyond * y)
    assert torch.allclose(resample(low(x, y) + high, n), low(*points(n)))


@pytest.mark.parametrize(("n", "fine"), [(4, 5), (4, 8), (5, 6), (5, 13), (6, 16), (2, 3)])
def test_up_and_down_again_changes_nothing(n, fine):
    u = torch.randn(3, n, n)
    assert torch.allclose(resample(resample(u, fine), n), u)


def test_a_finer_grid_that_has_the_old_points_keeps_their_values():
    u = torch.randn(3, 4, 4)
    assert torch.allclose(resample(u, 12)[:, ::3, ::3], u)


@pytest.mark.parametrize("through", [(4, 8, 16), (5, 6, 9), (16, 8, 5), (9, 6, 4), (12, 7, 6)])
def test_a_grid_between_makes_no_difference(through):
    first, between, last = through
    u = torch.randn(2, first, first)
    assert torch.allclose(resample(resample(u, between), last), resample(u, last))


@each_pair
def test_constants_and_means_stay(old, n):
    u = torch.randn(3, old, old)
    assert torch.allclose(resample(torch.full((1, old, old), 3.0), n), torch.full((1, n, n), 3.0))
    assert torch.allclose(resample(u, n).mean((1, 2)), u.mean((1, 2)))


@each_pair
def test_both_axes_are_treated_alike(old, n):
    u = torch.randn(2, old, old)
    assert torch.allclose(resample(u.mT, n), resample(u, n).mT)


@pytest.mark.parametrize(("old", "n"), [(4, 6), (6, 4), (8, 4), (6, 9), (9, 6)])
def test_a_shift_that_both_grids_have_may_come_before_or_after(old, n):
    u, parts = torch.randn(2, old, old), math.gcd(old, n)
    moved = resample(u.roll(old // parts, 1), n)
    assert torch.allclose(moved, resample(u, n).roll(n // parts, 1))


def test_the_same_grid_needs_no_interpolation():
    u = torch.randn(2, 6, 6)
    assert torch.equal(resample(u, 6), u)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(2, 14),
    st.integers(2, 14),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_fields_go_to_any_grid(batch, old, n, dtype):
    u = torch.randn(batch, old, old, generator=torch.Generator().manual_seed(old)).to(dtype)
    found = resample(u, n)
    assert (found.shape, found.dtype) == ((batch, n, n), dtype)
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose(found.mean((1, 2)), u.mean((1, 2)), atol=rounding)
    if n >= old:
        assert torch.allclose(resample(found, old), u, atol=rounding)


def test_norms_in_l2_stay_on_finer_grids():
    """For odd grids; of the last wave number of an even one a cosine has half of the square."""
    u = torch.randn(3, 5, 5)
    assert torch.allclose(resample(u, 8).square().mean((1, 2)), u.square().mean((1, 2)))
    zigzag = ((-1.0) ** torch.arange(4))[None, :, None].expand(1, 4, 4)
    assert float(resample(zigzag, 7).square().mean()) == pytest.approx(0.5)


CONTINUOUS = ["laplacian", "laplacian without a mean", "matern", "spectral"]


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize(("fine", "n"), [(8, 4), (9, 4), (8, 5), (9, 5), (5, 4), (6, 5), (8, 6)])
def test_fine_samples_on_a_coarse_grid_have_the_law_of_the_coarse_grid(name, fine, n):
    law = LAWS[name]
    R = matrix_of(lambda u: resample(u, n), fine)
    found = R @ pixel_covariance(law, fine) @ R.T
    wanted = pixel_covariance(law, n)
    assert torch.allclose(found, wanted, atol=1e-13 * float(wanted.max()))


@pytest.mark.parametrize(("fine", "n"), [(8, 5), (9, 5), (6, 3)])
def test_pixel_noise_fades_on_a_coarse_grid_and_white_noise_does_not(fine, n):
    R = matrix_of(lambda u: resample(u, n), fine)
    for law, share in ((PixelNoise(), n**2 / fine**2), (WhiteNoise(), 1.0)):
        found = R @ pixel_covariance(law, fine) @ R.T
        assert torch.allclose(found, share * pixel_covariance(law, n), atol=1e-12)


# --- what is refused ----------------------------------------------------------------------------


def with_a_mean(n=6):
    return torch.randn(3, n, n) + 1


def wave(k, n):
    return torch.cos(2 * math.pi * k * points(n)[0]).expand(1, n, n)


COVERED = {
    "no mean": (Laplacian(1.5, mean=0.0), lambda: wave(1, 6) + wave(3, 6)),
    "a mean": (Laplacian(1.5), with_a_mean),
    "few waves": (SpectralNoise(2), lambda: 1 + wave(2, 8)),
    "more waves and other noise": (Sum((SpectralNoise(2), WhiteNoise(1e-9))), lambda: wave(3, 8)),
    "the mean by another": (Sum((Laplacian(1.5, mean=0.0), SpectralNoise(0))), with_a_mean),
    "hardly anything": (SpectralNoise(2), lambda: wave(2, 8) + 0.99e-4 * wave(3, 8)),
    "zero": (SpectralNoise(2), lambda: torch.zeros(2, 8, 8)),
    "pixels": (PixelNoise(), with_a_mean),
}


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_that_vary_where_the_noise_does_pass(name, dtype):
    law, make = COVERED[name]
    u = make().to(dtype)
    assert law.check(u) is u


@each_law
def test_samples_pass_the_check_of_their_own_law(name, generator):
    LAWS[name].check(LAWS[name].sample(4, 8, generator))


UNCOVERED = {
    "a mean": (
        Laplacian(1.5, mean=0.0),
        with_a_mean,
        r"at 1 of 36 wave numbers \(the mean of the field among them\)",
    ),
    "waves": (SpectralNoise(2), lambda: wave(3, 8), "at 39 of 64 wave numbers, but"),
    "half of the power": (SpectralNoise(2), lambda: wave(1, 8) + wave(3, 8), " 50 % of"),
    "a little": (SpectralNoise(2), lambda: wave(2, 8) + 1.01e-4 * wave(3, 8), "raise modes"),
    "some of them": (
        Sum((SpectralNoise(1), Laplacian(2.0, mean=0.0, level=0.0))),
        lambda: torch.cat([wave(1, 8), wave(2, 8)]),
        " 50 % of",
    ),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_data_that_noise_cannot_make_are_refused(name):
    law, make, message = UNCOVERED[name]
    with pytest.raises(ValueError, match=message):
        law.check(make())


def by_hand(function):
    """The function without the check of its annotated shapes."""
    return inspect.unwrap(function)


BAD = {
    "a negative level": (lambda: PixelNoise(-1.0), "not be negative: PixelNoise"),
    "a negative power": (lambda: Laplacian(-1.1), "not be negative.*s=-1.1"),
    "a negative mean": (lambda: Laplacian(1.1, mean=-0.5), "not be negative.*mean=-0.5"),
    "a negative number of modes": (lambda: SpectralNoise(-1), "not be negative.*modes=-1"),
    "no kappa": (lambda: Matern(2.0, 0.0), "kappa must be positive"),
    "a negative kappa": (lambda: Matern(2.0, -3.0), "not be negative.*kappa=-3.0"),
    "a negative level of a sum": (lambda: Sum((WhiteNoise(),), level=-1.0), "not be negative"),
    "an empty sum": (lambda: Sum(()), "at least one covariance"),
    "no mean, no density": (
        lambda: Laplacian(1.5, mean=0.0).log_prob(torch.zeros(1, 4, 4)),
        "no density: 1 of 16",
    ),
    "few modes, no density": (
        lambda: SpectralNoise(1).log_prob(torch.zeros(1, 5, 5)),
        "no density: 16 of 25.*see Sum",
    ),
    "too many modes": (lambda: SpectralNoise(3).spectrum(5), "n = 5 .* 3 modes: take n ≥ 6"),
    "too many modes in a sum": (
        lambda: Sum((WhiteNoise(), SpectralNoise(3))).trace(5),
        "n = 5 .* 3 modes",
    ),
    "one pixel": (lambda: resample(torch.zeros(1, 4, 4), 1), "at least 2 × 2 pixels, got n = 1"),
    "of one pixel": (lambda: resample(torch.zeros(2, 1, 1), 4), r"n ≥ 2, got \(2, 1, 1\)"),
    "no square": (lambda: by_hand(resample)(torch.zeros(1, 4, 5), 4), r"got \(1, 4, 5\)"),
    "one field alone": (lambda: checked_fields(torch.zeros(4, 4)), r"square.*got \(4, 4\)"),
    "nan": (
        lambda: resample(torch.tensor([[[1.0, math.nan], [math.nan, 1.0]], 2 * [[1.0, 1.0]]]), 4),
        "1 of 2 fields have NaN",
    ),
    "infinite": (
        lambda: WhiteNoise().check(torch.full((2, 4, 4), math.inf)),
        "2 of 2 fields have NaN",
    ),
    "no square to check": (
        lambda: by_hand(WhiteNoise.check)(WhiteNoise(), torch.zeros(1, 2, 3)),
        "square",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_checked_fields_are_the_same_object():
    u = torch.randn(2, 3, 3)
    assert checked_fields(u) is u
