import inspect
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import ks_2samp
from sklearn import datasets
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ctdl_lib.problems import densities
from ctdl_lib.problems.densities import TOYS, Mixture, Pinwheel, eight_gaussians, ring_of_gaussians

H = 1 / 12  # the width of a grid cell divides the squares of the board


@pytest.fixture(scope="module")
def grid():
    axis = torch.arange(-7, 7, H, dtype=torch.float64) + H / 2
    return torch.cartesian_prod(axis, axis)


@pytest.fixture(scope="module")
def log_probs(grid):
    return {name: toy.log_prob(grid) for name, toy in TOYS.items()}


def three(d=2):
    weights = torch.tensor([0.2, 0.5, 0.3])
    return Mixture(weights, 2 * torch.randn(3, d), 0.3 + torch.rand(3, d))


def test_a_mixture_has_the_density_of_torch():
    mixture, x = three(4), torch.randn(50, 4)
    parts = Independent(Normal(mixture.means, mixture.std), 1)
    known = MixtureSameFamily(Categorical(mixture.weights), parts)
    assert torch.allclose(mixture.log_prob(x), known.log_prob(x), atol=1e-12)


def test_the_score_is_the_gradient():
    mixture, x = three(), torch.randn(20, 2, requires_grad=True)
    (by_autograd,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    assert torch.allclose(mixture.score(x), by_autograd, atol=1e-12)


def test_many_samples_in_parts_are_as_few_at_once():
    mixture = densities.two_spirals()
    x = torch.randn(5000, 2)
    for whole, few in ((mixture.log_prob(x), mixture.log_prob), (mixture.score(x), mixture.score)):
        assert torch.allclose(whole[-10:], few(x[-10:]), rtol=1e-10)
    x = 2 * torch.randn(1500, 2)
    assert torch.equal(Pinwheel().log_prob(x)[-10:], Pinwheel().log_prob(x[-10:]))


def test_samples_of_a_mixture_have_its_moments(generator):
    mixture, n = three(3), 40_000
    x = mixture.sample(n, generator)
    w = mixture.weights[:, None]
    mean = (w * mixture.means).sum(0)
    variance = (w * (mixture.std**2 + (mixture.means - mean) ** 2)).sum(0)
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    squares = (x - mean) ** 2
    assert ((squares.mean(0) - variance).abs() < 4 * squares.std(0) / math.sqrt(n)).all()


def test_the_entropy_of_one_gaussian_is_known(generator):
    mixture = Mixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[0.5, 3.0]]))
    found = mixture.entropy(50_000, generator)
    assert abs(found.value - math.log(2 * math.pi * math.e * 1.5)) < 4 * found.standard_error
    assert found.standard_error == pytest.approx(1 / math.sqrt(50_000), rel=0.05)


def test_the_entropy_of_parts_far_apart_adds_that_of_their_choice(generator):
    weights = torch.tensor([0.9, 0.1])
    mixture = Mixture(weights, torch.tensor([[0.0], [1000.0]]), torch.ones(2, 1))
    found = mixture.entropy(20_000, generator)
    choice = -float((weights * weights.log()).sum())
    apart = choice + 0.5 * math.log(2 * math.pi * math.e)
    assert abs(found.value - apart) < 4 * found.standard_error


def test_the_standard_error_is_the_spread_of_repeated_estimates(generator):
    mixture = three()
    found = [mixture.entropy(300, generator) for _ in range(400)]
    values = torch.tensor([estimate.value for estimate in found])
    error = sum(estimate.standard_error for estimate in found) / 400
    assert float(values.std()) == pytest.approx(error, rel=4 / math.sqrt(800))


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_has_mass_one(name, log_probs):
    assert float(log_probs[name].exp().sum()) * H**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", TOYS)
def test_the_entropy_of_a_toy_is_that_of_quadrature(name, log_probs, generator):
    by_quadrature = torch.special.entr(log_probs[name].exp()).sum() * H**2
    found = TOYS[name].entropy(10_000, generator)
    assert abs(found.value - float(by_quadrature)) < 4 * found.standard_error + 1e-6


@pytest.mark.parametrize("name", TOYS)
def test_samples_fall_into_cells_as_the_density_says(name, grid, log_probs, generator):
    """χ² over the unit squares of [−6, 6]², all others as one cell."""
    n = 20_000

    def cell(x):
        inside = (x.abs() < 6).all(1)
        index = (x + 6).floor().long()
        return torch.where(inside, 12 * index[:, 0] + index[:, 1], 144)

    mass = torch.zeros(145).index_add(0, cell(grid), log_probs[name].exp() * H**2)
    drawn = torch.bincount(cell(TOYS[name].sample(n, generator)), minlength=145)
    large = n * mass > 5
    assert large.sum() > 20
    assert int(drawn[~large].sum()) <= float(n * mass[~large].sum()) * 2 + 10
    chi = float(((drawn - n * mass)[large] ** 2 / (n * mass)[large]).sum())
    degrees = int(large.sum()) - 1
    assert abs(chi - degrees) < 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("name", TOYS)
def test_samples_have_the_wanted_dtype_and_follow_the_generator(name):
    toy = TOYS[name]
    draws = [toy.sample(7, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].dtype == torch.float64
    single = toy.sample(7, torch.Generator().manual_seed(3), dtype=torch.float32)
    assert single.dtype == toy.log_prob(single).dtype == torch.float32
    assert torch.allclose(toy.log_prob(single), toy.log_prob(single.double()).float(), atol=2e-3)


def test_the_toys_have_their_names_in_order():
    names = ["8gaussians", "checkerboard", "swissroll", "circles", "moons", "pinwheel", "2spirals"]
    assert list(TOYS) == names


def of_scikit_learn(name, n):
    if name == "swissroll":
        return datasets.make_swiss_roll(n, noise=1.0, random_state=0)[0][:, [0, 2]] / 5
    if name == "circles":
        return 3 * datasets.make_circles(n, factor=0.5, noise=0.08, random_state=0)[0]
    moons = datasets.make_moons(n, noise=0.1, random_state=0)[0]
    return 2 * moons + np.array([-1, -0.2])


@pytest.mark.parametrize("name", ["swissroll", "circles", "moons"])
def test_samples_are_as_those_of_scikit_learn(name, generator):
    ours, theirs = TOYS[name].sample(10_000, generator).numpy(), of_scikit_learn(name, 10_000)
    for direction in ([1, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]):
        assert ks_2samp(ours @ direction, theirs @ direction).pvalue > 1e-3


@pytest.mark.parametrize("name", ["swissroll", "circles", "moons", "2spirals"])
def test_the_density_of_a_noisy_curve_is_that_of_adaptive_quadrature(name, generator):
    """The integral over a uniform parameter, arm by arm, by scipy."""
    pi = math.pi
    curves, noise = {
        "swissroll": ([lambda u: spiral(1.5 * pi * (1 + 2 * u), 1 / 5)], 0.2),
        "circles": ([lambda u: circle(2 * pi * u, 3.0), lambda u: circle(2 * pi * u, 1.5)], 0.24),
        "moons": (
            [
                lambda u: circle(pi * u, 2.0) - np.array([1, 0.2]),
                lambda u: np.array([1, 0.8]) - circle(pi * u, 2.0),
            ],
            0.2,
        ),
        "2spirals": (
            [
                lambda u: spiral(3 * pi * math.sqrt(u), 1 / 3) * [-1, 1],
                lambda u: spiral(3 * pi * math.sqrt(u), 1 / 3) * [1, -1],
            ],
            0.1,
        ),
    }[name]
    x = TOYS[name].sample(5, generator)

    def density(point, curve):
        def integrand(u):
            square = ((curve(u) - point) ** 2).sum() / noise**2
            return math.exp(-square / 2) / (2 * pi * noise**2)

        pieces = np.linspace(0, 1, 17)
        return sum(quad(integrand, a, b)[0] for a, b in pairwise(pieces))

    wanted = [sum(density(p, c) for c in curves) / len(curves) for p in x.numpy()]
    assert TOYS[name].log_prob(x).exp().tolist() == pytest.approx(wanted, rel=1e-7)


def circle(angle, radius):
    return radius * np.array([math.cos(angle), math.sin(angle)])


def spiral(t, scale):
    return circle(t, scale * t)


def test_eight_gaussians_are_published_ones():
    toy, s = eight_gaussians(), math.sqrt(2)
    corners = [(1, 0), (1 / s, 1 / s), (0, 1), (-1 / s, 1 / s)]
    corners += [(-a, -b) for a, b in corners]
    assert torch.allclose(toy.means, 4 / s * torch.tensor(corners))
    assert torch.allclose(toy.std, torch.full((8, 2), 0.5 / s))


def test_a_ring_lies_in_the_first_two_coordinates():
    ring = ring_of_gaussians(10, components=5)
    assert torch.allclose(ring.means.norm(dim=1), 4 * torch.ones(5))
    assert (ring.means[:, 2:] == 0).all()
    assert torch.allclose(ring.std**2, 0.3 * torch.ones(5, 10))


def test_the_board_has_eight_squares_that_meet_at_corners():
    middles = torch.cartesian_prod(*2 * [torch.tensor([-3.0, -1.0, 1.0, 3.0])])
    on = TOYS["checkerboard"].log_prob(middles).reshape(4, 4) > -math.inf
    assert on.tolist() == [[(i + j) % 2 == 0 for j in range(4)] for i in range(4)]


def test_the_pinwheel_is_its_features_wound_up(generator):
    """Of one sample z and the arm k the image has at least the density p(z)/(5·|det|)."""
    z = torch.tensor([1.0, 0.0]) + torch.tensor([0.3, 0.1]) * torch.randn(500, 2)

    def wind(z):
        angle = 4 * math.pi / 5 + 0.25 * z[0].exp()
        c, s = angle.cos(), angle.sin()
        return 2 * torch.stack([c * z[0] + s * z[1], c * z[1] - s * z[0]])

    x = torch.vmap(wind)(z)
    det = torch.linalg.det(torch.vmap(torch.func.jacrev(wind))(z)).abs()
    normal = Normal(torch.tensor([1.0, 0.0]), torch.tensor([0.3, 0.1])).log_prob(z).sum(1)
    excess = Pinwheel().log_prob(x) - (normal - math.log(5) - det.log())
    assert excess.min() > -1e-9
    assert excess.median() < 1e-6  # far from the centre the arms do not overlap


def test_the_pinwheel_turns_into_itself():
    x = 2 * torch.randn(100, 2)
    c, s = math.cos(2 * math.pi / 5), math.sin(2 * math.pi / 5)
    turned = x @ torch.tensor([[c, s], [-s, c]])
    assert torch.allclose(Pinwheel().log_prob(turned), Pinwheel().log_prob(x), atol=1e-9)


def test_the_pinwheel_has_a_gradient(generator):
    x = Pinwheel().sample(20, generator).requires_grad_()
    assert torch.autograd.gradcheck(Pinwheel().log_prob, x, rtol=1e-4, atol=1e-5)


def refused(weights, means, std):
    """The check without the types that the tests add to it."""
    mixture = object.__new__(Mixture)
    for name, value in (("weights", weights), ("means", means), ("std", std)):
        object.__setattr__(mixture, name, value)
    inspect.unwrap(Mixture.__post_init__)(mixture)


BAD = {
    "shapes": (lambda: refused(torch.ones(2) / 2, torch.ones(3, 2), torch.ones(3, 2)), "shapes"),
    "one dimension": (lambda: refused(torch.ones(2) / 2, torch.ones(2), torch.ones(2)), "shapes"),
    "sum": (lambda: refused(torch.ones(2), torch.ones(2, 1), torch.ones(2, 1)), "divide by it"),
    "negative weight": (
        lambda: refused(torch.tensor([1.5, -0.5]), torch.ones(2, 1), torch.ones(2, 1)),
        "weights must be positive",
    ),
    "no deviation": (lambda: refused(torch.ones(1), torch.ones(1, 1), torch.zeros(1, 1)), "std"),
    "another dimension": (lambda: three(2).log_prob(torch.ones(5, 1)), r"\(batch, 2\)"),
    "few samples": (lambda: three().entropy(3, torch.Generator()), "fewer than two"),
    "a line": (lambda: ring_of_gaussians(1), "at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
