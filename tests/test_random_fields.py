import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from ctdl_lib.generative import Schedule, perturb
from ctdl_lib.metrics import observed_orders
from experiments.function_space.grids import resample
from experiments.function_space.priors import Laplacian, Matern, PixelNoise, SpectralNoise, Sum
from experiments.function_space.random_fields import FieldMixture, ReactionDiffusion

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SCHEDULE = Schedule()
LAWS = {
    "laplacian": Laplacian(1.3, mean=0.5),
    "matern": Matern(2.0, 1.5, level=4.0),
    "pixels": PixelNoise(0.5),
    "sum": Sum((SpectralNoise(2), PixelNoise(0.2))),
}
each_law = pytest.mark.parametrize("name", LAWS)
each_time = pytest.mark.parametrize("t", [0.0, 0.03, 0.2, 0.7, 1.0])


def three(n):
    """The values of three functions with few wave numbers, so that every grid has the same."""
    x = 2 * math.pi * torch.arange(n) / n
    x, y = x[:, None], x[None, :]
    return torch.stack(
        [x.cos() + y.sin(), 0.7 - (x + y).cos(), 1.5 * (x - y).sin() * torch.ones(n, n)]
    )


def mixture(name="matern"):
    return FieldMixture(LAWS[name], torch.tensor([0.5, 0.2, 0.3]), three)


def log_density(law, x, t, n):
    """The density Σ wᵢ N(a mᵢ, Q) of the noisy data at a time."""
    a, means = float(SCHEDULE.a(t)), law.covariance.apply(law.f(n))
    parts = torch.stack([law.covariance.log_prob(x - a * m) for m in means], 1)
    return (parts + law.weights.log()).logsumexp(1)


# --- a mixture of fields ------------------------------------------------------------------------


@each_law
@each_time
@pytest.mark.parametrize("n", [4, 5])
def test_the_score_is_the_preconditioned_gradient_of_the_log_density(name, t, n, generator):
    """Q∇log p in L² is n² Q times the gradient by pixels, as ⟨f, g⟩ is the mean of f g."""
    law = mixture(name)
    x = law.sample(6, n, generator).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(law, x, t, n).sum(), x)
    x = x.detach()
    assert torch.allclose(law.score(t, x, SCHEDULE), n**2 * law.covariance.apply(gradient))


@each_law
def test_one_time_a_sample_is_as_one_sample_after_the_other(name, generator):
    law, n = mixture(name), 6
    x, t = law.sample(5, n, generator), torch.rand(5, generator=generator)
    together = law.score(t, x, SCHEDULE)
    for i in range(5):
        assert torch.allclose(law.score(float(t[i]), x[i : i + 1], SCHEDULE)[0], together[i])


def test_a_single_gaussian_has_a_linear_score(generator):
    law = FieldMixture(LAWS["matern"], torch.ones(1), lambda n: three(n)[:1])
    x, t = law.sample(4, 6, generator), 0.3
    wanted = SCHEDULE.a(t) * law.means(6) - x
    assert torch.allclose(law.score(t, x, SCHEDULE), wanted)


def test_far_fields_are_pulled_to_the_mean_that_is_nearest():
    """Where the densities themselves are zero in floating point."""
    law = FieldMixture(LAWS["matern"], torch.tensor([0.5, 0.2, 0.3]), lambda n: 1e3 * three(n))
    x = law.means(6)
    assert torch.allclose(law.score(0.0, x, SCHEDULE), torch.zeros(3, 6, 6), atol=1e-9)


def test_weights_need_no_sum_of_one(generator):
    law = mixture()
    threefold = FieldMixture(law.covariance, 3 * law.weights, three)
    x = law.sample(3, 5, generator)
    assert torch.allclose(law.score(0.2, x, SCHEDULE), threefold.score(0.2, x, SCHEDULE))


@pytest.mark.parametrize("name", ["laplacian", "matern"])
def test_means_are_the_same_functions_on_every_grid(name):
    law = mixture(name)
    assert torch.allclose(resample(law.means(5), 12), law.means(12))


@pytest.mark.parametrize("n", [5, 8])
def test_the_score_does_not_depend_on_the_grid(n, generator):
    """Of fields that the coarse odd grid has, up to the grid that they are given on."""
    law = mixture()
    x = law.sample(4, 5, generator)
    fine = law.score(0.2, resample(x, 11), SCHEDULE)
    assert torch.allclose(resample(law.score(0.2, x, SCHEDULE), n), resample(fine, n))


def test_the_best_noise_is_minus_s_times_the_score(generator):
    law, n = mixture(), 6
    x, eta = law.sample(5, n, generator), law.covariance.sample(5, n, generator)
    t = torch.tensor([0.0, 0.1, 0.4, 0.8, 1.0])
    s = SCHEDULE.s(t)[:, None, None]
    wanted = -s * law.score(t, perturb(x, eta, t, SCHEDULE), SCHEDULE)
    assert torch.allclose(law.noise(x, eta, t, SCHEDULE), wanted)
    assert torch.equal(law.noise(x, eta, torch.zeros(5), SCHEDULE), torch.zeros(5, n, n))


def test_next_to_pure_noise_the_noise_is_what_is_seen(generator):
    """η̂ − η = a s (x − Σ rᵢ mᵢ) − a² η."""
    law, n = mixture(), 6
    x, eta = law.sample(5, n, generator), law.covariance.sample(5, n, generator)
    a = float(SCHEDULE.a(1.0))
    bound = a * (x.abs().max() + law.means(n).abs().max()) + a**2 * eta.abs().max()
    assert (law.noise(x, eta, torch.ones(5), SCHEDULE) - eta).abs().max() < bound < 0.1


def within(values, wanted=0.0, errors=4.0):
    """Where the mean of independent values is `wanted` within four standard errors."""
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - wanted).abs() <= errors * error).all())


@pytest.mark.parametrize("t", [0.05, 0.3])
def test_no_other_estimate_of_the_noise_is_better(t, generator):
    """η − E[η | x(t)] is orthogonal to whatever is known of x(t)."""
    law, n, count = mixture(), 4, 4000
    x, eta = law.sample(count, n, generator), law.covariance.sample(count, n, generator)
    times = torch.full((count,), t)
    noisy = perturb(x, eta, times, SCHEDULE)
    left = eta - law.noise(x, eta, times, SCHEDULE)
    assert within(left.mean((1, 2)))
    for known in (noisy, noisy.tanh(), law.score(t, noisy, SCHEDULE)):
        assert within((left * known).mean((1, 2)))


@each_law
def test_samples_have_the_mean_and_the_covariance_of_the_mixture(name, generator):
    """Between the parts Σ wᵢ mᵢ mᵢᵀ − m mᵀ, inside of them n² Q."""
    law, n, count = mixture(name), 4, 8000
    u = law.sample(count, n, generator).flatten(1)
    means = law.means(n).flatten(1)
    mean = law.weights @ means
    Q = law.covariance.apply(torch.eye(n * n).reshape(-1, n, n)).flatten(1)
    wanted = means.T @ (law.weights[:, None] * means) - mean[:, None] * mean + n**2 * Q
    assert within(u, mean)
    centred = u - mean
    assert within(centred[:, :, None] * centred[:, None, :], wanted, errors=4.5)  # of 256 entries


def test_as_many_samples_come_from_a_part_as_its_weight_says(generator):
    law = FieldMixture(LAWS["matern"], torch.tensor([5.0, 2.0, 3.0]), lambda n: 1e3 * three(n))
    u = law.sample(2000, 4, generator)
    nearest = torch.cdist(u.flatten(1), law.means(4).flatten(1)).argmin(1)
    share = torch.nn.functional.one_hot(nearest, 3).double()
    assert within(share, law.weights / 10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(dtype, device):
    law, g = mixture(), torch.Generator(device).manual_seed(0)
    x, eta = law.sample(3, 6, g, dtype=dtype), law.covariance.sample(3, 6, g, dtype=dtype)
    t = torch.rand(3, device=device, dtype=dtype)
    for part in (x, law.score(t, x, SCHEDULE), law.noise(x, eta, t, SCHEDULE)):
        assert part.dtype == dtype
        assert part.device.type == device


# --- reaction and diffusion ---------------------------------------------------------------------


def smooth_fields(n, generator, count=2):
    law = Matern(4.0, 2.0).normalized(n)
    return law.sample(count, n, generator), law.sample(count, n, generator)


def by_lines(problem, u, v, duration):
    """The method of lines with a dense spectral Laplacian, by an explicit method of high order."""
    n = u.shape[-1]
    k = np.fft.fftfreq(n, 1 / n)
    F = np.fft.fft(np.eye(n))
    second = (np.linalg.inv(F) @ np.diag(-((2 * np.pi * k / problem.side) ** 2)) @ F).real

    def rate(t, state):
        u, v = state.reshape(2, n, n)
        du = problem.diffusion_u * (second @ u + u @ second.T) + u - u**3 - problem.k - v
        dv = problem.diffusion_v * (second @ v + v @ second.T) + u - v
        return np.stack([du, dv]).ravel()

    start = torch.stack([u, v]).numpy().ravel()
    solved = solve_ivp(rate, (0, duration), start, method="DOP853", rtol=1e-11, atol=1e-11)
    return torch.as_tensor(solved.y[:, -1]).reshape(2, n, n)


def test_constant_fields_follow_the_reaction():
    problem, duration = ReactionDiffusion(), 3.0
    u0, v0 = torch.tensor([0.3, -1.2]), torch.tensor([0.1, 0.8])
    found = problem.solve(
        u0[:, None, None].expand(2, 5, 5), v0[:, None, None].expand(2, 5, 5), duration, steps=600
    )

    def reaction(t, state):
        u, v = state
        return u - u**3 - 5e-3 - v, u - v

    for i in range(2):
        solved = solve_ivp(reaction, (0, duration), (u0[i], v0[i]), rtol=1e-11, atol=1e-12)
        for field, wanted in zip(found, solved.y[:, -1], strict=True):
            assert torch.allclose(field[i], torch.full((5, 5), wanted), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [8, 7])
@pytest.mark.parametrize("problem", [ReactionDiffusion(), ReactionDiffusion(0.01, 0.04, 0.1, 1.0)])
def test_fields_are_those_of_the_method_of_lines(problem, n, generator):
    u, v = smooth_fields(n, generator)
    found = torch.stack(problem.solve(u, v, 1.0, steps=400))
    halved = torch.stack(problem.solve(u, v, 1.0, steps=200))
    better = found + (found - halved) / 3  # the error is one in h², h⁴, …
    for i in range(2):
        wanted = by_lines(problem, u[i], v[i], 1.0)
        assert torch.allclose(better[:, i], wanted, rtol=0, atol=1e-8)


def test_the_splitting_is_of_second_order(generator):
    problem = ReactionDiffusion(diffusion_u=0.01, diffusion_v=0.05)
    u, v = smooth_fields(8, generator, count=1)
    wanted, steps = by_lines(problem, u[0], v[0], 2.0), [64, 128, 256]
    errors = []
    for count in steps:
        found = torch.cat(problem.solve(u, v, 2.0, steps=count))
        errors.append(float((found - wanted).norm()))
    slopes = observed_orders(errors, [1 / count for count in steps])
    assert slopes == pytest.approx([2.0, 2.0], abs=0.02)


def test_without_diffusion_pixels_know_nothing_of_each_other(generator):
    problem, shuffled = ReactionDiffusion(0.0, 0.0), torch.randperm(25, generator=generator)
    u, v = smooth_fields(5, generator)

    def mixed(field):
        return field.flatten(1)[:, shuffled].reshape(-1, 5, 5)

    before = problem.solve(mixed(u), mixed(v), 1.0, steps=8)
    after = [mixed(field) for field in problem.solve(u, v, 1.0, steps=8)]
    assert all(torch.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_without_diffusion_the_order_is_four(generator):
    u, v = smooth_fields(5, generator)
    problem, steps = ReactionDiffusion(0.0, 0.0), [32, 64, 128, 256]
    results = [torch.stack(problem.solve(u / 2, v / 2, 1.0, steps=count)) for count in steps]
    apart = [float((a - b).norm()) for a, b in pairwise(results)]
    slopes = observed_orders(apart, [1 / count for count in steps[:-1]])
    assert slopes == pytest.approx([4.0, 4.0], abs=0.05)


def test_a_wave_of_small_amplitude_grows_as_the_linear_equations_say():
    """ε(u, v) cos(2πx/side) obeys d/dt (u, v) = (1 − D_u q², −1; 1, −1 − D_v q²)(u, v)."""
    problem = ReactionDiffusion(diffusion_u=0.02, diffusion_v=0.07, k=0.0, side=3.0)
    n, small, squared = 6, 1e-6, (2 * math.pi / 3.0) ** 2
    wave = torch.cos(2 * math.pi * torch.arange(n) / n)[:, None].expand(1, n, n)
    A = torch.tensor([[1 - 0.02 * squared, -1.0], [1.0, -1 - 0.07 * squared]])
    wanted = torch.linalg.matrix_exp(1.5 * A) @ torch.tensor([1.0, 0.5])
    results = [
        torch.cat(problem.solve(small * wave, 0.5 * small * wave, 1.5, steps=steps)) / small
        for steps in (200, 400)
    ]
    better = results[1] + (results[1] - results[0]) / 3
    assert torch.allclose(better, wanted[:, None, None] * wave, rtol=0, atol=1e-9)


def test_the_side_and_the_diffusion_are_one_number(generator):
    u, v = smooth_fields(6, generator)
    one = ReactionDiffusion(0.01, 0.02, side=2.0).solve(u, v, 1.0, steps=10)
    other = ReactionDiffusion(0.04, 0.08, side=4.0).solve(u, v, 1.0, steps=10)
    assert all(torch.allclose(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("n", [6, 7])
def test_moved_and_turned_fields_have_moved_and_turned_solutions(n, generator):
    u, v = smooth_fields(n, generator)
    problem = ReactionDiffusion()
    plain = problem.solve(u, v, 1.0, steps=5)
    for move in (lambda f: f.roll((2, 3), (1, 2)), lambda f: f.mT, lambda f: f.flip(1)):
        moved = problem.solve(move(u), move(v), 1.0, steps=5)
        assert all(torch.allclose(a, move(b)) for a, b in zip(moved, plain, strict=True))


def test_fields_of_a_batch_know_nothing_of_each_other(generator):
    u, v = smooth_fields(6, generator, count=3)
    together = ReactionDiffusion().solve(u, v, 1.0, steps=5)
    alone = ReactionDiffusion().solve(u[1:2], v[1:2], 1.0, steps=5)
    assert all(torch.allclose(a[1:2], b) for a, b in zip(together, alone, strict=True))


def test_no_time_changes_nothing(generator):
    u, v = smooth_fields(6, generator)
    found = ReactionDiffusion().solve(u, v, 0.0, steps=3)
    assert all(torch.allclose(a, b) for a, b in zip(found, (u, v), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solutions_keep_dtype_and_device(dtype, device):
    u = torch.rand(2, 2, 6, 6)
    wanted = torch.stack(ReactionDiffusion().solve(*u, 1.0, steps=10))
    found = torch.stack(ReactionDiffusion().solve(*u.to(device, dtype), 1.0, steps=10))
    assert (found.dtype, found.device.type) == (dtype, device)
    assert torch.allclose(found.cpu().double(), wanted, rtol=0, atol=1e-5)


def test_double_precision_is_had_whatever_the_default(generator):
    u, v = smooth_fields(7, generator)
    problem = ReactionDiffusion(0.1, 0.3)
    wanted = torch.stack(problem.solve(u, v, 1.0, steps=10))
    torch.set_default_dtype(torch.float32)
    found = torch.stack(problem.solve(u, v, 1.0, steps=10))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_no_steps_are_refused():
    u = torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        ReactionDiffusion().solve(u, u, 1.0, steps=0)


@pytest.mark.parametrize("bad", [math.nan, 1e3])
def test_solutions_that_are_not_finite_are_refused(bad):
    """Explicit steps of the reaction that are much too long, or data that were wrong before."""
    u = torch.full((1, 4, 4), bad)
    with pytest.raises(ValueError, match="not finite: take more than 5 steps"):
        ReactionDiffusion().solve(u, torch.zeros(1, 4, 4), 10.0, steps=5)
