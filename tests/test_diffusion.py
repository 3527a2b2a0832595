import inspect
import itertools
import math

import pytest
import torch
from scipy import integrate as quadrature
from torch import nn

from ctdl_lib.dynamics import IntegrationError, euler_maruyama, integrate
from ctdl_lib.generative import (
    Denoiser,
    Flow,
    ProbabilityFlow,
    Schedule,
    Score,
    denoising,
    perturb,
    reverse_sde,
    sample_sde,
)
from ctdl_lib.generative.diffusion import METHODS
from ctdl_lib.metrics import observed_orders
from ctdl_lib.networks.embeddings import times_like
from ctdl_lib.potentials import AutodiffPotential
from ctdl_lib.problems.densities import Mixture
from experiments.function_space.priors import Laplacian
from experiments.function_space.random_fields import FieldMixture

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SCHEDULE = Schedule()
LONG = Schedule(0.1, 60.0)  # a(1) is 3·10⁻⁷: what is left of the data does not show
each_schedule = pytest.mark.parametrize("schedule", [SCHEDULE, Schedule(0.5, 0.5), LONG])
each_method = pytest.mark.parametrize("method", METHODS)
each_end = pytest.mark.parametrize("last", ["mean", "noise"])
SHAPES = [(4,), (4, 3), (4, 5, 5)]


class Zero(nn.Module):
    """The network F = 0."""

    def forward(self, t, u):
        return torch.zeros_like(u)


class Recorded(nn.Module):
    """A network that remembers what it was called with."""

    def __init__(self, value=1.0):
        super().__init__()
        self.value, self.calls = value, []

    def forward(self, t, u):
        self.calls.append((t, u))
        return torch.full_like(u, self.value)


class GaussianScore(nn.Module):
    """The score ∇log N(x; a μ, (a²v + s²) I) of noisy data, with μ and v by coordinate."""

    def __init__(self, mu, v, schedule=SCHEDULE):
        super().__init__()
        self.mu, self.v, self.schedule = mu, v, schedule

    def forward(self, t, x):
        t = times_like(t, x)[:, None]
        a, s = self.schedule.a(t), self.schedule.s(t)
        return (a * self.mu - x) / (a**2 * self.v + s**2)


class MixtureScore(nn.Module):
    """The score of a mixture and noise, at a time that all samples have in common."""

    def __init__(self, mixture, schedule=SCHEDULE):
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, t, x):
        return noisy(self.mixture, t, self.schedule).score(x)


def noisy(mixture, t, schedule=SCHEDULE):
    """The law of a X + s η, X of the mixture: another mixture."""
    a, s = schedule.a(t), schedule.s(t)
    return Mixture(mixture.weights, a * mixture.means, (a**2 * mixture.std**2 + s**2).sqrt())


TWO = Mixture(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[-2.0], [1.5]], dtype=torch.float64),
    torch.tensor([[0.5], [0.8]], dtype=torch.float64),
)


def cdf(mixture, x):
    return torch.special.ndtr((x - mixture.means.T) / mixture.std.T) @ mixture.weights


def basis(count):
    """Noise that draws a unit vector after the other, one a sample.

    What is linear in the draws thus becomes the vector of its coefficients, whose squared norm is
    the variance that true noise would give it.
    """
    return iter(torch.eye(count)[:, :, None]).__next__


class Correlated:
    """Data N(0, C) and noise N(0, Q) whose axes are not the same: C and Q do not commute."""

    C = torch.tensor([[2.0, 0.9], [0.9, 0.6]], dtype=torch.float64)
    Q = torch.tensor([[1.0, -0.4], [-0.4, 0.5]], dtype=torch.float64)

    def covariance(self, t):
        return SCHEDULE.a(t) ** 2 * self.C + SCHEDULE.s(t) ** 2 * self.Q

    def score(self, t, x):
        """Q∇log p_t(x), which is not ∇log p_t(x)."""
        return -x @ torch.linalg.inv(self.covariance(t)) @ self.Q


def draws(steps, last):
    return steps + (last == "noise")


# --- the schedule -------------------------------------------------------------------------------


@each_schedule
@pytest.mark.parametrize("t", [0.0, 0.01, 0.3, 1.0])
def test_what_is_left_of_the_data_is_the_integral_of_the_rate(schedule, t):
    integral, _ = quadrature.quad(lambda r: float(schedule.beta(r)), 0, t)
    assert float(schedule.integral(t)) == pytest.approx(integral, rel=1e-12)
    assert float(schedule.a(t)) == pytest.approx(math.exp(-integral / 2), rel=1e-12)
    assert float(schedule.s(t)) == pytest.approx(math.sqrt(1 - math.exp(-integral)), abs=1e-12)


@each_schedule
def test_signal_and_noise_have_variance_one_together(schedule):
    t = torch.linspace(0, 1, 11)
    assert torch.allclose(schedule.a(t) ** 2 + schedule.s(t) ** 2, torch.ones(11), atol=1e-15)
    assert (schedule.a(0), schedule.s(0)) == (1, 0)
    assert (schedule.beta(0), schedule.beta(1)) == (schedule.start, schedule.end)


def test_the_published_schedule_leaves_seven_thousandths_of_the_data():
    assert float(SCHEDULE.a(1.0)) == pytest.approx(0.00657, abs=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_noise_is_not_lost_to_rounding(dtype):
    t = torch.tensor([1e-12, 1e-6]).to(dtype)
    assert torch.allclose(SCHEDULE.s(t), (0.1 * t).sqrt(), rtol=1e-4, atol=0)
    assert SCHEDULE.s(t).dtype == dtype


def coefficients_of_the_forward_equation(t, steps):
    """By Euler–Maruyama the state is a linear map of where it starts and of the increments."""
    rows = torch.eye(steps + 1)[:, :, None]
    path = euler_maruyama(
        lambda t, x: -0.5 * SCHEDULE.beta(t) * x,
        lambda t, x: SCHEDULE.beta(t).sqrt(),
        rows[0],
        0.0,
        t,
        steps=steps,
        dW=math.sqrt(t / steps) * rows[1:],
    )
    end = path.x[-1, :, 0]
    return float(end[0]), float(end[1:].norm())


def test_the_equation_makes_of_the_data_what_is_said():
    """The mean falls by a and the noise has deviation s, up to errors of first order."""
    t, sizes = 0.4, [50, 100, 200]
    found = [coefficients_of_the_forward_equation(t, steps) for steps in sizes]
    for values, wanted in zip(
        zip(*found, strict=True), (SCHEDULE.a(t), SCHEDULE.s(t)), strict=True
    ):
        errors = [abs(value - float(wanted)) for value in values]
        assert observed_orders(errors, [1 / n for n in sizes])[-1] == pytest.approx(1, abs=0.05)
        assert 2 * values[-1] - values[-2] == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_noisy_data_are_their_formula(shape, generator):
    x, eta = torch.randn(2, *shape, generator=generator)
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    found = perturb(x, eta, t, SCHEDULE)
    for i in range(4):
        a, s = float(SCHEDULE.a(t[i])), float(SCHEDULE.s(t[i]))
        assert torch.allclose(found[i], a * x[i] + s * eta[i])
    assert torch.equal(found[0], x[0])
    for time in (0.2, torch.tensor(0.2)):
        assert torch.allclose(perturb(x, eta, time, SCHEDULE)[1], found[1])


# --- the denoiser and its loss ------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_without_a_network_the_noise_of_gaussian_data_is_known(shape, std, generator):
    """E[η | x] = Cov(η, x)/Var(x)·x with Cov(η, x) = s and Var(x) = s² + a²std²."""
    x, t = torch.randn(shape, generator=generator), torch.tensor([0.0, 0.01, 0.4, 1.0])
    found = Denoiser(Zero(), std=std, schedule=SCHEDULE)(t, x)
    for i in range(4):
        a, s = float(SCHEDULE.a(t[i])), float(SCHEDULE.s(t[i]))
        assert torch.allclose(found[i], s / (s**2 + (a * std) ** 2) * x[i])


@pytest.mark.parametrize("std", [0.3, 3.0])
@pytest.mark.parametrize("t", [0.05, 0.4])
def test_without_a_network_the_noise_is_that_of_bayes_rule(t, std):
    """E[η | x] = ∫η p(η) p(x | η) dη/∫p(η) p(x | η) dη, by quadrature."""
    a, s, x = float(SCHEDULE.a(t)), float(SCHEDULE.s(t)), 0.7

    def joint(eta, power):
        return eta**power * math.exp(-0.5 * (eta**2 + ((x - s * eta) / (a * std)) ** 2))

    first, whole = (
        quadrature.quad(joint, -12, 12, args=(power,), points=[x / s], limit=200)[0]
        for power in (1, 0)
    )
    found = Denoiser(Zero(), std=std, schedule=SCHEDULE)(t, torch.tensor([[x]]))
    assert float(found) == pytest.approx(first / whole, rel=1e-8)


@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("t", [0.0, 0.01, 0.4, 1.0])
def test_the_network_sees_and_learns_variables_of_variance_one(std, t):
    """Of unit vectors as data and noise, the squared norms of what comes are the variances."""
    data, eta = torch.eye(2)[:, :, None]
    x = perturb(std * data, eta, t, SCHEDULE)
    net = Recorded()
    denoiser = Denoiser(net, std=std, schedule=SCHEDULE)
    without = Denoiser(Zero(), std=std, schedule=SCHEDULE)(t, x)
    target = (without - eta) / (without - denoiser(t, x))
    assert float(target.norm()) == pytest.approx(1.0)
    assert abs(float((target * x).sum())) < 1e-12  # nothing of it is known by a linear function
    ((time, u),) = net.calls
    assert float(u.norm()) == pytest.approx(1.0)
    assert torch.equal(time, torch.full((2,), t))


def test_the_time_is_a_number_or_one_a_sample(generator):
    x = torch.randn(3, 2, generator=generator)
    flow = ProbabilityFlow(GaussianScore(torch.ones(2), torch.ones(2)), SCHEDULE)
    denoiser = Denoiser(Recorded(), std=2.0)
    assert denoiser.schedule == SCHEDULE
    for net in (denoiser, Score(denoiser, SCHEDULE), flow):
        for t in (torch.tensor(0.3), torch.full((3,), 0.3)):
            assert torch.equal(net(t, x), net(0.3, x))
        mixed = net(torch.tensor([0.1, 0.3, 0.3]), x)
        assert torch.allclose(mixed[1:], net(0.3, x)[1:])
        assert torch.allclose(mixed[:1], net(0.1, x)[:1])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_its_formula(shape, generator):
    """Of the noise, and as that of the score: the mean square of s S + η."""
    x, eta = torch.randn(2, *shape, generator=generator)
    t = torch.tensor([0.05, 0.2, 0.7, 1.0])
    denoiser = Denoiser(Recorded(0.3), std=2.0, schedule=SCHEDULE)
    found = denoising(denoiser, x, eta, t, SCHEDULE)
    total, of_score = 0.0, 0.0
    for i in range(4):
        a, s = float(SCHEDULE.a(t[i])), float(SCHEDULE.s(t[i]))
        noisy = (a * x[i] + s * eta[i])[None]
        total += float((denoiser(t[i], noisy)[0] - eta[i]).square().mean()) / 4
        S = Score(denoiser, SCHEDULE)(t[i], noisy)[0]
        of_score += float((s * S + eta[i]).square().mean()) / 4
    assert float(found) == pytest.approx(total, rel=1e-12)
    assert float(found) == pytest.approx(of_score, rel=1e-12)


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("v", [0.25, 4.0])
def test_the_loss_is_least_for_the_exact_noise(t, v):
    """Any other linear estimate (c + ε)x costs ε²(a²v + s²) more, here without chance.

    Of all pairs of signs the moments up to the second are those of Gaussians.
    """
    sign = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)))
    x, eta = math.sqrt(v) * sign[:, :1], sign[:, 1:]
    times = torch.full((4,), t)
    exact = Denoiser(Zero(), std=math.sqrt(v), schedule=SCHEDULE)
    a, s = float(SCHEDULE.a(t)), float(SCHEDULE.s(t))
    least = denoising(exact, x, eta, times, SCHEDULE)
    assert float(least) == pytest.approx(a**2 * v / (a**2 * v + s**2))
    for eps in (-0.1, 1e-3, 0.1):
        other = denoising(lambda t, x, eps=eps: exact(t, x) + eps * x, x, eta, times, SCHEDULE)
        assert float(other - least) == pytest.approx(eps**2 * (a**2 * v + s**2), rel=1e-8)
        shifted = denoising(lambda t, x, eps=eps: exact(t, x) + eps, x, eta, times, SCHEDULE)
        assert float(shifted - least) == pytest.approx(eps**2, rel=1e-8)


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_the_loss_is_least_at_the_score_times_the_covariance_of_the_noise(t, generator):
    """At η̂ = −s Q∇log p_t, Q no multiple of I: any other linear estimate costs more."""
    law, sign = Correlated(), math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)])
    # of these few pairs the moments up to the second are those of Gaussians
    x, eta = (sign @ torch.linalg.cholesky(A).T for A in (law.C, law.Q))
    x, eta = x.repeat_interleave(4, 0), eta.repeat(4, 1)

    def loss(error):
        def denoiser(times, x):
            return x @ error - SCHEDULE.s(t) * law.score(t, x)

        return denoising(denoiser, x, eta, torch.full((16,), t), SCHEDULE)

    zero = torch.zeros(2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(zero), zero)
    assert slope.abs().max() < 1e-13
    with torch.no_grad():
        error = torch.randn(2, 2, generator=generator)
        more = (error.T @ law.covariance(t) @ error).trace() / 2
        assert float(loss(error) - loss(zero)) == pytest.approx(float(more), rel=1e-10)


@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_the_score_of_a_denoiser_is_that_of_the_gaussian(t, generator):
    x, v = torch.randn(5, 2, generator=generator), 0.3
    score = Score(Denoiser(Zero(), std=math.sqrt(v), schedule=SCHEDULE), SCHEDULE)
    assert torch.allclose(score(t, x), GaussianScore(torch.zeros(2), torch.full((2,), v))(t, x))


def test_before_its_first_time_the_score_stays_what_it_is(generator):
    x = torch.randn(3, 2, generator=generator)
    denoiser = Denoiser(Recorded(), std=2.0, schedule=SCHEDULE)
    score = Score(denoiser, SCHEDULE, first=0.01)
    for t in (0.0, 0.003, 0.01):
        assert torch.equal(score(t, x), score(0.01, x))
    both = score(torch.tensor([0.0, 0.01, 0.5]), x)
    assert torch.allclose(both[2:], score(0.5, x)[2:])
    assert torch.allclose(both[:2], score(0.01, x)[:2])
    assert not torch.allclose(score(0.02, x), score(0.01, x))
    assert Score(denoiser, SCHEDULE)(0.0, x).isfinite().all()


# --- the probability flow -----------------------------------------------------------------------

MU, V = torch.tensor([0.7, -2.0], dtype=torch.float64), torch.tensor([0.2, 3.0]).double()


def test_the_flow_moves_marginals_as_the_noise_does(generator):
    """x(t) = a μ + σ(t)/σ(0) (x(0) − μ) with σ² = a²v + s², so that means and variances agree."""
    flow = ProbabilityFlow(GaussianScore(MU, V), SCHEDULE)
    x, times = torch.randn(6, 2, generator=generator), [0.0, 0.1, 0.4, 1.0]
    path = integrate(flow, x, 0.0, 1.0, tol=1e-10, save_at=times)
    for t, found in zip(times, path, strict=True):
        a, s = SCHEDULE.a(t), SCHEDULE.s(t)
        wanted = a * MU + ((a**2 * V + s**2) / V).sqrt() * (x - MU)
        assert torch.allclose(found, wanted, atol=1e-7)


@pytest.mark.parametrize("solver", [{"tol": 1e-7}, {"steps": 80}])
def test_the_likelihood_of_gaussian_data_is_exact(solver, generator):
    """Up to what is left of the data at t = 1, where the flow takes the density for N(0, I)."""
    x = MU + V.sqrt() * torch.randn(8, 2, generator=generator)
    wanted = torch.distributions.Normal(MU, V.sqrt()).log_prob(x).sum(1)
    flow = Flow(
        ProbabilityFlow(GaussianScore(MU, V), SCHEDULE), 2, solver=solver, standardize=False
    )
    z, log_det = flow.transform(x)
    a, s = SCHEDULE.a(1.0), SCHEDULE.s(1.0)
    at_one = torch.distributions.Normal(a * MU, (a**2 * V + s**2).sqrt()).log_prob(z).sum(1)
    assert torch.allclose(at_one + log_det, wanted, rtol=0, atol=1e-6)
    longer = ProbabilityFlow(GaussianScore(MU, V, LONG), LONG)
    found = Flow(longer, 2, solver=solver, standardize=False).log_prob(x)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5)


def test_the_published_schedule_costs_the_likelihood_less_than_a_thousandth(
    generator,
):
    """What is missing is log N(z; 0, I) − log p₁(z), and that is known."""
    x = V.sqrt() * torch.randn(8, 2, generator=generator)
    velocity = ProbabilityFlow(GaussianScore(torch.zeros(2), V), SCHEDULE)
    found = Flow(velocity, 2, solver={"tol": 1e-9}, standardize=False).log_prob(x)
    wanted = torch.distributions.Normal(0.0, V.sqrt()).log_prob(x).sum(1)
    at_one = 1 + SCHEDULE.a(1.0) ** 2 * (V - 1)  # the variance of p₁
    missing = 0.5 * (at_one.log() - x.square() / V * (at_one - 1)).sum(1)
    assert torch.allclose(found, wanted + missing, rtol=0, atol=1e-7)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-3)


def test_the_likelihood_of_a_trained_model_has_the_same_code(generator):
    """Through denoiser, score and flow, for N(0, v I)."""
    v = 0.3
    score = Score(Denoiser(Zero(), std=math.sqrt(v), schedule=LONG), LONG, first=1e-9)
    flow = Flow(ProbabilityFlow(score, LONG), 3, solver={"tol": 1e-9}, standardize=False)
    x = math.sqrt(v) * torch.randn(5, 3, generator=generator)
    wanted = torch.distributions.Normal(0.0, math.sqrt(v)).log_prob(x).sum(1)
    assert torch.allclose(flow.log_prob(x), wanted, atol=1e-6)


def test_the_flow_of_a_mixture_maps_quantiles_to_quantiles():
    """On a line it is monotone, so that P(X ≤ x) = Φ(z), and densities follow."""
    flow = Flow(
        ProbabilityFlow(MixtureScore(TWO, LONG), LONG), 1, solver={"tol": 1e-7}, standardize=False
    )
    z = torch.linspace(-3, 3, 25)[:, None]
    x = flow.inverse(z)
    assert torch.allclose(cdf(TWO, x), torch.special.ndtr(z[:, 0]), atol=1e-5)
    assert torch.allclose(flow.log_prob(x), TWO.log_prob(x), atol=1e-5)


@pytest.mark.parametrize("t", [-1e-6, 1 + 1e-6])
def test_a_little_outside_of_the_interval_the_velocity_is_that_of_its_end(t):
    flow = ProbabilityFlow(GaussianScore(MU, V), SCHEDULE)
    x = torch.ones(3, 2)
    wanted = flow(round(t), x)
    for time in (t, torch.tensor(t), torch.full((3,), t)):
        assert torch.equal(flow(time, x), wanted)


class MinusLogDensity(nn.Module):
    """V(t, x) = −log p_t(x) of noisy data from a mixture."""

    def __init__(self, mixture, schedule):
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, t, x):
        a, s = self.schedule.a(t)[:, None, None], self.schedule.s(t)[:, None, None]
        variance = a**2 * self.mixture.std**2 + s**2
        terms = -0.5 * ((x[:, None] - a * self.mixture.means) ** 2 / variance).sum(2)
        terms = terms - 0.5 * (math.tau * variance).log().sum(2) + self.mixture.weights.log()
        return -terms.logsumexp(1)


@each_schedule
def test_minus_the_log_density_solves_a_hamilton_jacobi_bellman_equation(schedule, generator):
    """∂ₜV = −½βd + ½β x·∇V − ½β‖∇V‖² + ½βΔV, and −∇V is the score."""
    d = 3
    mixture = Mixture(
        torch.tensor([0.5, 0.2, 0.3]),
        2 * torch.randn(3, d, generator=generator),
        0.3 + torch.rand(3, d, generator=generator),
    )
    phi = AutodiffPotential(MinusLogDensity(mixture, schedule))
    t, x = torch.tensor([0.02, 0.1, 0.3, 0.6, 1.0]), torch.randn(5, d, generator=generator)
    V, beta = phi.derivatives(t, x), schedule.beta(t)
    wanted = -d + (x * V.dx).sum(1) - V.dx.square().sum(1) + V.laplacian
    assert torch.allclose(V.dt, 0.5 * beta * wanted, rtol=1e-8, atol=1e-8)
    for i in range(5):
        law = noisy(mixture, t[i], schedule)
        assert torch.allclose(law.score(x[i : i + 1])[0], -V.dx[i])
        assert torch.allclose(law.log_prob(x[i : i + 1])[0], -V.value[i])


# --- the reverse equation -----------------------------------------------------------------------


def gaussian(v, mu=0.0):
    return GaussianScore(torch.tensor([mu]), torch.tensor([v]))


def test_euler_maruyama_is_the_one_of_the_library_run_backward(generator):
    steps, score = 9, GaussianScore(MU, V)
    noise = torch.randn(steps + 1, 4, 2, generator=generator)
    path = euler_maruyama(
        lambda t, x: -SCHEDULE.beta(t) * (0.5 * x + score(t, x)),
        lambda t, x: SCHEDULE.beta(t).sqrt(),
        noise[0],
        1.0,
        0.0,
        steps=steps,
        dW=noise[1:] / math.sqrt(steps),
    )
    states = list(
        reverse_sde(
            score,
            iter(noise).__next__,
            SCHEDULE,
            steps=steps,
            method="euler-maruyama",
            last="noise",
        )
    )
    assert torch.allclose(torch.stack([state.x for state in states]), path.x)
    assert [state.t for state in states] == pytest.approx(path.t.tolist())


def test_a_step_is_exact_where_the_score_and_the_state_add_up_to_a_constant():
    """The moments of dX = −β(½X + S)dt + √β dW̄ with S = G − X, from a certain X(1) = 0 on."""
    G, noise = 0.7, itertools.chain([torch.zeros(4, 1)], torch.eye(4)[:, :, None])

    def rates(t, moments):
        m, v = moments
        rate = SCHEDULE.beta(t)
        return -rate * (0.5 * m + G - m), rate * v - rate

    m, v = torch.zeros(2, 1)
    states = reverse_sde(lambda t, x: G - x, noise.__next__, SCHEDULE, steps=4, last="noise")
    for before, after in itertools.pairwise(states):
        m, v = integrate(rates, (m, v), before.t, after.t, steps=100)
        # what the state has besides the mean are the coefficients of the noise
        assert torch.allclose((after.x[:, 0] - m).square().sum(), v, rtol=1e-7)
        if after.t > 0:  # the last sample has seen no noise yet
            assert float(after.x[-1]) == pytest.approx(float(m), rel=1e-7)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_the_exponential_method_keeps_the_noise_what_it_is(steps):
    states = reverse_sde(lambda t, x: -x, basis(steps + 1), SCHEDULE, steps=steps, last="noise")
    for state in states:
        assert float(state.x.square().sum()) == pytest.approx(1.0, rel=1e-13)


def test_euler_maruyama_does_not():
    noise = basis(41)
    x = sample_sde(
        lambda t, x: -x, noise, SCHEDULE, steps=40, method="euler-maruyama", last="noise"
    )
    assert abs(float(x.square().sum()) - 1) > 1e-3


@each_method
@each_end
@pytest.mark.parametrize("v", [0.25, 4.0])
def test_variances_converge_with_order_one(method, last, v):
    sizes = [100, 200, 400, 800]
    errors = []
    for steps in sizes:
        noise = basis(draws(steps, last))
        x = sample_sde(gaussian(v), noise, SCHEDULE, steps=steps, method=method, last=last)
        errors.append(float(x.square().sum()) - v)
    slopes = observed_orders([abs(e) for e in errors], [1 / n for n in sizes])
    assert slopes[-1] == pytest.approx(1, abs=0.03)
    assert 2 * errors[-1] - errors[-2] == pytest.approx(0, abs=2e-3 * v)  # the next order


@each_method
@each_end
@pytest.mark.parametrize("t", [0.5, 0.0])
def test_covariances_converge_to_those_of_correlated_data(t, method, last):
    """Also half the way, where the state has the covariance a²C + s²Q."""
    law, sizes, found = Correlated(), [200, 400, 800], []
    for steps in sizes:
        # a factor of Q a draw, each in rows of its own: the covariance of the state is xᵀx
        units = torch.eye(2 * (steps + 1)).unflatten(1, (-1, 2)).transpose(0, 1)
        noise = iter(units @ torch.linalg.cholesky(law.Q).T)
        how = {"steps": steps, "method": method, "last": last}
        states = reverse_sde(law.score, noise.__next__, SCHEDULE, **how)
        x = next(state.x for state in states if state.t == t)
        found.append(x.T @ x)
    errors = [float((covariance - law.covariance(t)).norm()) for covariance in found]
    assert observed_orders(errors, [1 / n for n in sizes])[-1] == pytest.approx(1, abs=0.1)
    assert torch.allclose(2 * found[-1] - found[-2], law.covariance(t), rtol=0, atol=5e-4)


@each_method
@each_end
def test_means_converge_with_order_one(method, last):
    """Where nothing is drawn, the state is the mean of all paths."""
    sizes, errors = [100, 200, 400, 800], []
    for steps in sizes:
        x = sample_sde(
            gaussian(0.25, mu=3.0),
            lambda: torch.zeros(1, 1),
            SCHEDULE,
            steps=steps,
            method=method,
            last=last,
        )
        errors.append(abs(float(x) - 3.0))
    assert observed_orders(errors, [1 / n for n in sizes])[-1] == pytest.approx(1, abs=0.05)
    assert errors[-1] < 0.02


@each_method
@each_end
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_calls_of_score_and_noise_are_as_many_as_said(method, last, steps):
    times, drawn = [], []

    def score(t, x):
        times.append(t)
        return -x

    def noise():
        drawn.append(len(times))
        return torch.ones(2, 3)

    how = {"steps": steps, "method": method, "last": last}
    states = list(reverse_sde(score, noise, SCHEDULE, **how))
    assert times == pytest.approx([1 - k / steps for k in range(steps)])
    # the first draw comes before any score, and each other one after that of its step
    assert drawn == list(range(draws(steps, last)))
    assert [state.t for state in states] == pytest.approx([*times, 0.0])
    assert states[-1].t == 0


@each_method
@each_end
def test_samples_are_where_the_states_end(method, last, generator):
    noise, score = torch.randn(9, 4, 2, generator=generator), GaussianScore(MU, V)
    how = {"steps": 8, "method": method, "last": last}
    *_, end = reverse_sde(score, iter(noise).__next__, SCHEDULE, **how)
    assert torch.equal(sample_sde(score, iter(noise).__next__, SCHEDULE, **how), end.x)


@each_method
def test_the_last_step_ends_in_the_mean_of_the_data_given_the_state(method, generator):
    """E[X(0) | x] = μ + a v/(a²v + s²) (x − a μ) for a Gaussian, with t = 1/steps."""
    noise, steps = torch.randn(9, 4, 2, generator=generator), 8
    *_, before, end = reverse_sde(
        GaussianScore(MU, V), iter(noise).__next__, SCHEDULE, steps=steps, method=method
    )
    a, s = SCHEDULE.a(before.t), SCHEDULE.s(before.t)
    assert before.t == 1 / steps
    wanted = MU + a * V / (a**2 * V + s**2) * (before.x - a * MU)
    assert torch.allclose(end.x, wanted)


@each_method
def test_the_last_mean_of_a_mixture_is_that_of_its_parts(method, generator):
    """E[X(0) | x] = Σ rₖ(x) (μₖ + a vₖ/(a²vₖ + s²) (x − a μₖ)), which is not linear in x."""
    *_, before, end = reverse_sde(
        MixtureScore(TWO),
        lambda: torch.randn(20, 1, generator=generator),
        SCHEDULE,
        steps=8,
        method=method,
    )
    law, a = noisy(TWO, before.t), SCHEDULE.a(before.t)
    apart, v = before.x - law.means.T, law.std.T**2
    share = (TWO.weights * torch.exp(-(apart**2) / (2 * v)) / v.sqrt()).T
    share = (share / share.sum(0)).T
    given = TWO.means.T + a * TWO.std.T**2 / v * apart
    assert torch.allclose(end.x[:, 0], (share * given).sum(1))


def test_one_step_to_the_mean_is_next_to_the_mean_of_the_data():
    """Of pure noise nothing is known: E[X(0) | X(1)] = μ up to a."""
    x = sample_sde(GaussianScore(MU, V), lambda: torch.ones(1, 2), SCHEDULE, steps=1)
    assert torch.allclose(x[0], MU, atol=4 * float(SCHEDULE.a(1.0)) * float(V.max()))


@each_method
def test_samples_of_a_mixture_have_its_quantiles(method, generator):
    """By the inequality of Dvoretzky, Kiefer and Wolfowitz, but for one time in 10⁴."""
    n = 3000
    x = sample_sde(
        MixtureScore(TWO),
        lambda: torch.randn(n, 1, generator=generator),
        SCHEDULE,
        steps=200,
        method=method,
    )
    wanted, found = cdf(TWO, x).sort().values, torch.arange(n + 1) / n
    apart = max((wanted - found[1:]).abs().max(), (wanted - found[:-1]).abs().max())
    by_chance = math.sqrt(math.log(2e4) / (2 * n))
    assert apart < by_chance + 2 / 200  # and the error of the steps


def test_shifted_fields_keep_the_covariance_of_the_noise_at_every_step():
    """With the score of N(a m, Q) all that the steps get wrong is the mean, in first order."""
    Q, n = Laplacian(1.3, mean=0.5), 4
    law = FieldMixture(Q, torch.ones(1), lambda n: torch.ones(1, n, n))

    def score(t, x):
        return law.score(t, x, SCHEDULE)

    errors, sizes = [], [50, 100, 200]
    for steps in sizes:
        mean = sample_sde(score, lambda: torch.zeros(1, n, n), SCHEDULE, steps=steps)
        errors.append(float((mean - law.means(n)).abs().max()))
    assert observed_orders(errors, [1 / k for k in sizes])[-1] == pytest.approx(1, abs=0.1)
    # one unit vector a draw and pixel, and Q^½ of it: products of the results are the covariance
    steps, each = 6, n * n
    units = torch.eye((steps + 1) * each).reshape(steps + 1, each, -1).transpose(1, 2)
    noise = iter(n * Q.apply_sqrt(draw.reshape(-1, n, n)) for draw in units)
    how = {"steps": steps, "last": "noise"}
    x = sample_sde(score, noise.__next__, SCHEDULE, **how)
    x = x - sample_sde(score, lambda: torch.zeros(1, n, n), SCHEDULE, **how)
    found = x.flatten(1).T @ x.flatten(1)
    assert torch.allclose(found, n**2 * Q.apply(torch.eye(each).reshape(-1, n, n)).flatten(1))


def test_samples_carry_no_graph_and_states_do():
    score = Score(Denoiser(nn.Linear(2, 2), std=1.0), SCHEDULE)
    score.denoiser.net.forward = lambda t, u: u @ score.denoiser.net.weight
    assert not sample_sde(score, lambda: torch.ones(3, 2), SCHEDULE, steps=3).requires_grad
    *_, end = reverse_sde(score, lambda: torch.ones(3, 2), SCHEDULE, steps=3)
    assert end.x.requires_grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_method
def test_dtype_and_device_are_kept(dtype, device, method):
    x = torch.rand(3, 2).to(device, dtype)
    t = torch.rand(3).to(device, dtype)
    denoiser = Denoiser(Zero(), std=0.5)
    score = Score(denoiser, SCHEDULE)
    results = [perturb(x, x, 0.5, SCHEDULE), perturb(x, x, t, SCHEDULE)]
    results += [denoising(denoiser, x, x, t, SCHEDULE)]
    for net in (denoiser, score, ProbabilityFlow(score, SCHEDULE)):
        results += [net(t, x), net(0.5, x)]
    results += [state.x for state in reverse_sde(score, x.clone, SCHEDULE, steps=3, method=method)]
    assert all(part.dtype == dtype and part.device.type == device for part in results)


# --- what is refused ----------------------------------------------------------------------------


def by_hand(function):
    """The function without the check of its annotated shapes."""
    return inspect.unwrap(function)


def run(**how):
    how = {"steps": 3, **how}
    return list(by_hand(reverse_sde)(lambda t, x: -x, lambda: torch.ones(2, 1), SCHEDULE, **how))


X = torch.zeros(2, 1, dtype=torch.float64)
BAD = {
    "before the start": (lambda: SCHEDULE.a(-0.1), r"lie in \[0, 1\], got -0.1 to -0.1"),
    "after the end": (lambda: SCHEDULE.s(1.01), "got 1.01"),
    "some of them": (lambda: SCHEDULE.beta(torch.tensor([0.5, 2.0])), "got 0.5 to 2"),
    "nan": (lambda: SCHEDULE.integral(math.nan), "got nan"),
    "noise after the end": (lambda: perturb(X, X, 1.5, SCHEDULE), "got 1.5"),
    "a denoiser after the end": (lambda: Denoiser(Zero(), std=1.0)(1.5, X), "got 1.5"),
    "a loss before the start": (
        lambda: denoising(Zero(), X, X, torch.tensor([-0.5, 0.5]), SCHEDULE),
        "got -0.5 to 0.5",
    ),
    "no rate at first": (lambda: Schedule(start=0.0), "0 < start ≤ end, got 0.0 and 20"),
    "a falling rate": (lambda: Schedule(2.0, 1.0), "got 2.0 and 1.0"),
    "no rate known": (lambda: Schedule(math.nan), "got nan"),
    "no deviation": (lambda: Denoiser(Zero(), std=0.0), "std must be positive, got 0"),
    "a negative deviation": (lambda: Denoiser(Zero(), std=-1.0), "got -1"),
    "an unknown deviation": (lambda: Denoiser(Zero(), std=math.nan), "got nan"),
    "a method": (lambda: run(method="heun"), "'heun'"),
    "no steps": (lambda: run(steps=0), "steps ≥ 1.*got 0"),
    "an end": (lambda: run(last="median"), "'median'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@each_method
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_not_finite_says_when(method, bad):
    def score(t, x):
        return torch.full_like(x, bad) if t < 0.7 else -x

    with pytest.raises(IntegrationError, match=r"not finite at t = 0\.25: take more steps"):
        sample_sde(score, lambda: torch.ones(2, 1), SCHEDULE, steps=4, method=method)


def test_a_last_step_that_is_not_finite_is_refused_too():
    with pytest.raises(IntegrationError, match="at t = 0:"):
        sample_sde(lambda t, x: x / 0, lambda: torch.ones(2, 1), SCHEDULE, steps=1)


class Narrow(nn.Module):
    """The denoiser of N(0, std²): η̂ = s x/(a² std² + s²)."""

    def __init__(self, std):
        super().__init__()
        self.std = std

    def forward(self, t, x):
        a, s = SCHEDULE.a(t)[:, None], SCHEDULE.s(t)[:, None]
        return s * x / ((a * self.std) ** 2 + s**2)


def too_much(std, first, x):
    """What the likelihood of N(0, std²) by its exact score is off by, at std times x."""
    score = Score(Narrow(std), SCHEDULE, first=first)
    flow = Flow(ProbabilityFlow(score, SCHEDULE), 1, solver={"tol": 1e-8}, standardize=False)
    return flow.log_prob(std * x) - torch.distributions.Normal(0.0, std).log_prob(std * x)[:, 0]


@pytest.mark.parametrize(("first", "low", "high"), [(1e-3, 0.05, 0.2), (1e-5, 0.0, 1e-3)])
def test_the_likelihood_of_a_narrow_law_is_resolved_by_the_first_time(first, low, high):
    x = torch.tensor([[-1.0], [0.2], [1.5]])
    assert low <= too_much(0.01, first, x).abs().max() < high


@pytest.mark.parametrize(("first", "low", "high"), [(1e-3, -0.48, -0.38), (1e-5, -1e-3, 1e-3)])
def test_a_law_much_narrower_than_the_first_time_resolves_comes_out_too_wide(
    first, low, high, generator
):
    assert low < too_much(0.003, first, torch.randn(2000, 1, generator=generator)).mean() < high
