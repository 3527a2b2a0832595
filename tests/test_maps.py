"""Every map to a standard normal: its contexts, its scaling, its samples and its mode."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.distributions import MultivariateNormal

from ctdl_lib.dynamics import Transformed, standard_normal_log_prob
from ctdl_lib.generative import (
    BoxScaling,
    ConvexMap,
    Flow,
    Sample,
    Standardization,
    TransportMap,
    maps,
    ot_flow,
)
from ctdl_lib.networks import MLP, Encoder
from ctdl_lib.potentials import ConvexPotential, ResNetPotential
from experiments.simulation_based_inference.posteriors import mode, sample_inside


def a_flow(d=2, seed=1, context_dim=0, **others):
    g = torch.Generator().manual_seed(seed)
    phi = ResNetPotential(d, width=5, layers=3, rank=2, context_dim=context_dim, generator=g)
    return Flow(phi, d, solver={"steps": 5}, context_dim=context_dim, **others)


def a_network(d=2, seed=1, context_dim=0, **others):
    g = torch.Generator().manual_seed(seed)
    v = MLP(d, width=5, time=True, context_dim=context_dim, generator=g)
    return Flow(v, d, solver={"steps": 5}, context_dim=context_dim, **others)


def a_convex_map(d=2, seed=1, context_dim=0, **others):
    g = torch.Generator().manual_seed(seed)
    potential = ConvexPotential(d, context_dim=context_dim, width=6, layers=3, generator=g)
    return ConvexMap(potential, d, context_dim=context_dim, tol=1e-11, **others)


MAPS = {"flow": a_flow, "network": a_network, "convex map": a_convex_map}


def an_encoded(kind, m=3, seed=1, **others):
    """A map of one of the kinds whose context is read by an encoder first."""
    g = torch.Generator().manual_seed(seed + 7)
    encoder = Encoder(m, features=2, width=4, generator=g)
    inner = MAPS[kind](context_dim=encoder.context_dim, seed=seed)
    learned = inner.potential if kind == "convex map" else inner.velocity
    how = {"tol": 1e-11} if kind == "convex map" else {"solver": inner.solver}
    return type(inner)(learned, 2, context_dim=m, encoder=encoder, **how, **others)


each_map = pytest.mark.parametrize("kind", MAPS)


class Shear(TransportMap):
    """The map z = L(x − m) of a known normal density, and nothing to train."""

    def __init__(self, mean, L):
        super().__init__(len(mean), standardize=False)
        self.m, self.L = mean, L

    def forward(self, x):
        return (x - self.m) @ self.L.T

    def inverse(self, z):
        return torch.linalg.solve(self.L, z.T).T + self.m

    def transform(self, x):
        return Transformed(self(x), self.L.det().log().expand(len(x)))

    def sample_with_log_prob(self, n, generator):
        x = self.sample(n, generator)
        return Sample(x, self.log_prob(x))


def draw(generator, n=9, d=2):
    return torch.randn(n, d, generator=generator) * 1.5 + 0.4


# --- one interface ------------------------------------------------------------------------------


@each_map
def test_the_inverse_is_one_and_the_determinant_that_of_the_jacobian(kind, generator):
    found = MAPS[kind](3).standardize(draw(generator, 40, 3))
    x = draw(generator, 5, 3)
    # a flow with few steps inverts up to their error
    assert torch.allclose(found.inverse(found(x)), x, atol=1e-9 if kind == "convex map" else 1e-4)
    jacobian = torch.autograd.functional.jacobian(lambda x: found(x).sum(0), x).permute(1, 0, 2)
    z, log_det = found.transform(x)
    assert torch.allclose(z, found(x))
    # … and adds up a trace, where the Jacobian of its steps has a determinant
    assert torch.allclose(
        log_det, torch.logdet(jacobian), atol=1e-10 if kind == "convex map" else 1e-3
    )
    assert torch.allclose(found.log_prob(x), standard_normal_log_prob(z) + log_det)


@each_map
def test_samples_come_with_their_log_density(kind, generator):
    found = MAPS[kind]().standardize(draw(generator, 40))
    x, log_prob = found.sample_with_log_prob(7, torch.Generator().manual_seed(3))
    assert torch.allclose(x, found.sample(7, torch.Generator().manual_seed(3)))
    assert torch.allclose(log_prob, found.log_prob(x), atol=1e-4)


# --- context ------------------------------------------------------------------------------------


def conditional(kind, generator):
    found = MAPS[kind](context_dim=3)
    return found.standardize(draw(generator, 400), draw(generator, 400, d=3))


@each_map
def test_a_conditional_map_is_one_map_for_each_context(kind, generator):
    found = conditional(kind, generator)
    x, y = draw(generator, 4), draw(generator, 4, d=3)
    z = torch.randn(4, 2, generator=generator)
    alone = [found.given(y[[i]]) for i in range(4)]
    together = found.given(y)

    def each(call):
        return torch.cat([call(alone[i], i) for i in range(4)])

    assert torch.allclose(together.log_prob(x), each(lambda f, i: f.log_prob(x[[i]])))
    assert torch.allclose(together(x), each(lambda f, i: f(x[[i]])))
    assert torch.allclose(together.inverse(z), each(lambda f, i: f.inverse(z[[i]])))
    # the context matters, and one row of it serves all samples
    assert (alone[0].log_prob(x) - together.log_prob(x))[1:].abs().min() > 1e-5
    repeated = found.given(y[[0]].expand(4, 3))
    assert torch.equal(alone[0].log_prob(x), repeated.log_prob(x))
    assert alone[0].sample(9, generator).shape == (9, 2)
    assert found.context is None


@each_map
def test_a_bound_map_trains_the_parameters_of_the_map(kind, generator):
    found = conditional(kind, generator)
    found.given(draw(generator, 4, d=3)).log_prob(draw(generator, 4)).sum().backward()
    grads = [p.grad for p in found.parameters()]
    constants = {"flow": 1}  # Φ's constant moves nothing
    assert sum(g is None for g in grads) <= constants.get(kind, 0)
    assert sum(float(g.norm()) for g in grads if g is not None) > 0


@each_map
def test_a_context_far_from_the_training_data_is_warned_of(kind, generator):
    y = draw(generator, 50, d=3)
    found = MAPS[kind](context_dim=3).standardize(draw(generator, 50), y)
    found.given(y)  # no warning: warnings are errors here
    beyond = y[[0]].clone()
    beyond[0, 1] = y[:, 1].max() + 2.5 * y[:, 1].std()
    with pytest.warns(UserWarning, match=r"1 of 1 contexts .* column 1, by 2\.5 standard"):
        found.given(beyond)
    beyond[0, 1] = y[:, 1].min() - 0.5 * y[:, 1].std()
    with pytest.warns(UserWarning, match=r"1 of 51 contexts .* column 1, by 0\.5 standard"):
        found.given(torch.cat([y, beyond]))
    MAPS[kind](context_dim=3, standardize=False).given(beyond)


@each_map
def test_scaling_and_range_are_kept_with_the_weights(kind, generator):
    x, y = draw(generator, 30), draw(generator, 30, d=3)
    found, fresh = (MAPS[kind](seed=seed, context_dim=3) for seed in (1, 2))
    found.standardize(x, y)
    assert torch.allclose(found.data(x).mean(0), torch.zeros(2), atol=1e-14)
    assert torch.allclose(found.data(x).std(0), torch.ones(2))
    assert torch.allclose(found.data.inverse(found.data(x)), x)
    fresh.load_state_dict(found.state_dict())
    assert torch.equal(fresh.given(y).log_prob(x), found.given(y).log_prob(x))
    with pytest.warns(UserWarning, match="standard deviations"):
        fresh.given(y + 9)


@each_map
def test_columns_on_different_scales_need_no_care(kind, generator):
    x = torch.randn(30, 2, generator=generator) * torch.tensor([1e-3, 1e6]) + 3.0
    plain = MAPS[kind](standardize=False).log_prob((x - x.mean(0)) / x.std(0))
    assert torch.allclose(MAPS[kind]().standardize(x).log_prob(x), plain - x.std(0).log().sum())


# --- bounds and the mode ------------------------------------------------------------------------


class Above:
    """The set of x with x₀ ≥ level."""

    def __init__(self, level):
        self.level = level

    def inside(self, x):
        return x[:, 0] >= self.level


@pytest.fixture
def normal():
    return Shear(torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.0], [1.0, 0.5]]))


def test_samples_inside_are_those_of_the_truncated_density(normal, generator):
    support, n = Above(1.25), 20_000
    x, leakage = sample_inside(normal, support, n, generator)
    assert x.shape == (n, 2)
    assert support.inside(x).all()
    share = 0.5 * math.erfc(0.5 / math.sqrt(2))  # of N(1, ¼) above 1.25
    assert leakage == pytest.approx(1 - share, abs=4 * math.sqrt(share / n))
    mean = 1 + 0.5 * math.exp(-1 / 8) / math.sqrt(2 * math.pi) / share
    assert float(x[:, 0].mean()) == pytest.approx(mean, abs=4 * float(x[:, 0].std()) / n**0.5)
    assert sample_inside(normal, Above(-99.0), 5, generator).leakage == 0


def test_a_support_without_samples_is_no_endless_loop(normal, generator):
    with pytest.raises(ValueError, match="of 500 samples, 0 lie in the support"):
        sample_inside(normal, Above(99.0), 5, generator)


def test_the_mode_of_a_normal_density_is_its_mean(normal, generator):
    assert torch.allclose(mode(normal, 3, generator), normal.m, atol=1e-7)
    precision = normal.L.T @ normal.L
    known = MultivariateNormal(normal.m, precision_matrix=precision).log_prob(normal.m[None] + 0.3)
    assert torch.allclose(normal.log_prob(normal.m[None] + 0.3), known)


@each_map
def test_no_sample_has_more_density_than_the_mode(kind, generator):
    found = conditional(kind, generator).given(torch.zeros(1, 3))
    best = mode(found, 20, generator).requires_grad_(True)
    top = found.log_prob(best[None])
    assert top > found.sample_with_log_prob(500, generator).log_prob.max()
    (slope,) = torch.autograd.grad(top.sum(), best)
    assert slope.abs().max() < 1e-4
    assert all(p.grad is None for p in found.parameters())


# --- a box --------------------------------------------------------------------------------------

BOX = ((-5.0, 0.0), (2.0, 0.1))


def uniform(n, generator):
    low, high = map(torch.tensor, BOX)
    return low + (high - low) * torch.rand(n, 2, generator=generator)


def test_a_box_becomes_the_whole_space_and_its_uniform_law_normal(generator):
    scaling = BoxScaling(*BOX)
    x = uniform(20_000, generator)
    z, log_det = scaling.transform(x)
    assert torch.allclose(scaling.inverse(z), x)
    assert kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    # the density of x is that of z times the determinant: that of the box, everywhere
    assert torch.allclose(standard_normal_log_prob(z) + log_det, -torch.tensor(0.7).log())
    jacobian = torch.autograd.functional.jacobian(lambda x: scaling(x).sum(0), x[:5])
    diagonal = jacobian.diagonal(dim1=0, dim2=2)
    assert torch.allclose(diagonal.log().sum(1), log_det[:5])


@each_map
def test_nothing_leaves_the_box(kind, generator):
    found = MAPS[kind](box=BOX, context_dim=3)
    found.standardize(uniform(40, generator), draw(generator, 40, d=3))
    bound = found.given(torch.zeros(1, 3))
    x, log_prob = bound.sample_with_log_prob(500, generator)
    low, high = map(torch.tensor, BOX)
    assert ((x > low) & (x < high)).all()
    assert torch.allclose(bound.log_prob(x), log_prob, atol=1e-3)
    assert torch.equal(bound.log_prob(x[:2] + 100), torch.full((2,), -math.inf))
    assert bound.log_prob(torch.stack([low, high])).isfinite().all()
    # the density may grow without bound towards a face: substitute what makes it tend to zero
    axis = torch.linspace(-8, 8, 161)
    grid = bound.data.inverse(torch.cartesian_prod(axis, axis))
    with torch.no_grad():
        p = (bound.log_prob(grid) - bound.data.transform(grid).log_det).exp()
    assert float(p.sum()) * 0.1**2 == pytest.approx(1.0, abs=2e-3)
    other = MAPS[kind](box=((0.0, 0.0), (1.0, 1.0)), seed=2, context_dim=3)
    other.load_state_dict(found.state_dict())  # the box is kept with the weights
    assert torch.equal(other.given(torch.zeros(1, 3)).log_prob(x), bound.log_prob(x))


class Squeeze(TransportMap):
    """The map z = (x̄ − m)/s of what a box has become."""

    def __init__(self, box, m, s):
        super().__init__(len(box[0]), box=box)
        self.m, self.s = m, s

    def forward(self, x):
        return (self.data(x) - self.m) / self.s

    def inverse(self, z):
        return self.data.inverse(self.m + self.s * z)

    def transform(self, x):
        scaled = self.data.transform(x)
        return Transformed((scaled.z - self.m) / self.s, scaled.log_det - self.d * math.log(self.s))

    def sample_with_log_prob(self, n, generator):
        x = self.sample(n, generator)
        return Sample(x, self.log_prob(x))


@pytest.mark.parametrize(("m", "s"), [(0.5, 0.5), (-3.3, 0.3), (3.3, 0.3)])
def test_the_mode_in_a_box_is_not_that_of_its_image(m, s, generator):
    found = Squeeze(BOX, m, s)
    # −½(z̄ − m)²/s² + ½z̄² is stationary there
    expected = found.data.inverse(torch.full((1, 2), m / (1 - s**2)))[0]
    assert torch.allclose(mode(found, 20, generator), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_takes_nothing_out_of_a_box(dtype):
    z = torch.tensor([[9.0], [6.0], [-6.0], [-9.0]], dtype=dtype)
    for k in range(1, 200):
        scaling = BoxScaling((-1.0,), (0.01 * k,)).to(dtype)
        x = scaling.inverse(z)
        assert scaling.transform(x).log_det.isfinite().all()


class Contract(nn.Module):
    def forward(self, t, x, *y):
        return -x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("contexts", [0, 1, 4000])
def test_samples_near_a_face_have_the_density_that_log_prob_gives_them(dtype, contexts, generator):
    # the law of z̄ is 2.7 times as wide as N(0, I), so 5 % of the samples lie within 10⁻⁷ of a face
    how = {"context_dim": 1} if contexts else {}
    flow = Flow(Contract(), 1, solver={"steps": 16}, box=([0.0], [1.0]), **how).to(dtype)
    if contexts:
        flow.standardize(torch.rand(50, 1, dtype=dtype), torch.randn(50, 1, dtype=dtype))
        flow = flow.given(torch.zeros(contexts, 1, dtype=dtype))
    x, log_prob = flow.sample_with_log_prob(4000, generator)
    far = (flow.log_prob(x) - log_prob).abs() > 0.1
    assert float(far.float().mean()) < 1e-3
    inner = (x > 1e-30) & (x < 0.999)
    exact = flow.data.transform(x).log_det - flow.data(x).square()[:, 0] / (2 * math.e**2)
    exact -= 1 + 0.5 * math.log(2 * math.pi)
    assert torch.allclose(log_prob[inner[:, 0]], exact[inner[:, 0]], atol=1e-2)


def test_small_numbers_return_from_a_box_with_all_their_digits():
    flow = Flow(Contract(), 1, solver={"steps": 16}, box=([0.0], [1.0])).float()
    x = torch.tensor([[1e-6], [1e-8], [1e-10]], dtype=torch.float32)
    assert torch.allclose(flow.inverse(flow(x)), x, rtol=1e-3, atol=0.0)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    assert (slope.abs() > 1).all()


def test_samples_at_a_face_come_with_the_density_of_their_reference():
    flow = a_flow(1, box=((-5.0,), (2.0,))).float()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()  # nothing moves: z is that of the box
    z = torch.tensor([[5.0], [-8.0], [0.1]], dtype=torch.float32)
    flow.reference = lambda n, generator: z
    _, log_prob = flow.sample_with_log_prob(3, torch.Generator())
    # the density of the box everywhere, also where x has been rounded to the face
    assert torch.allclose(log_prob, torch.full_like(log_prob, -math.log(7.0)), atol=1e-4)


@each_map
def test_samples_have_no_gradient_and_inverses_of_flows_have_one(kind, generator):
    found = MAPS[kind]().standardize(draw(generator, 40))
    assert not found.sample(3, generator).requires_grad
    x = found.inverse(found.reference(3, generator))
    assert x.requires_grad == (kind != "convex map")


@each_map
def test_another_precision_is_no_other_range(kind, generator):
    y = draw(generator, 200, d=3).float()
    found = MAPS[kind](context_dim=3).float().standardize(draw(generator, 200).float(), y)
    found.given(y.double())  # no warning
    found.double().given(y.double())


def test_small_deviations_of_large_numbers_count_in_double_precision(generator):
    x = 1.7e9 + 600 * torch.randn(50, 2, generator=generator)
    assert torch.allclose(Standardization(2).fit(x).std, x.std(0))
    with pytest.raises(ValueError, match="no variation"):
        Standardization(2).float().fit(x.float())


# --- bad input ----------------------------------------------------------------------------------


def plain(function):
    """A method without the check of its annotated shapes, as a user calls it."""
    return inspect.unwrap(function)


def column(k, value):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    x[:, k] = value
    return x


X = torch.zeros(4, 2)
BAD = {
    "a NaN": (
        lambda new: new(3).standardize(column(1, math.nan)),
        r"columns \[1\] of x have NaN or infinite entries: drop or impute",
    ),
    "an infinite context": (
        lambda new: new(context_dim=3).standardize(column(0, 0.0)[:, 1:], column(2, math.inf)),
        r"columns \[2\] of the context y have NaN",
    ),
    "a constant": (
        lambda new: new(3).standardize(column(2, 1e9)),
        r"columns \[2\] of x have no variation.*drop",
    ),
    "a constant up to round-off": (
        lambda new: new(3).standardize(column(0, torch.tensor(0.1) + 1e-15 * torch.arange(6))),
        r"columns \[0\] of x have no variation",
    ),
    "one row to standardize": (
        lambda new: new().standardize(torch.zeros(1, 2)),
        "one row.*at least two",
    ),
    "columns to standardize": (
        lambda new: new().standardize(torch.zeros(5, 3)),
        r"x must have shape \(batch, 2\), got \(5, 3\)",
    ),
    "a vector to standardize": (
        lambda new: plain(Standardization.fit)(Standardization(2), torch.zeros(5)),
        r"must have shape \(batch, 2\), got \(5,\)",
    ),
    "a vector": (
        lambda new: plain(Standardization.forward)(new(standardize=False).data, torch.zeros(5)),
        r"shape \(batch, 2\), got \(5,\)",
    ),
    "samples inside for several contexts": (
        lambda new: sample_inside(
            new(context_dim=3, standardize=False).given(torch.zeros(2, 3)),
            Above(0.0),
            2,
            torch.Generator(),
        ),
        r"one row of context: bind it by \.given\(y\[\[i\]\]\)",
    ),
    "a mode of several contexts": (
        lambda new: mode(
            new(context_dim=3, standardize=False).given(torch.zeros(2, 3)), 2, torch.Generator()
        ),
        "one row of context",
    ),
    "no samples inside": (
        lambda new: sample_inside(new(standardize=False), Above(0.0), 0, torch.Generator()),
        "want n ≥ 1",
    ),
    "contexts of another number to standardize": (
        lambda new: plain(TransportMap.standardize)(
            new(context_dim=3), column(0, 0.0)[:5, 1:], column(1, 0.0)
        ),
        "want one y for each x, got 6 and 5 rows",
    ),
    "data outside of the box": (
        lambda new: new(box=BOX).standardize(torch.tensor([[0.0, 0.05], [0.0, 0.2]])),
        r"columns \[1\] of x have entries outside of the box",
    ),
    "NaN in the box": (
        lambda new: new(box=BOX).standardize(torch.tensor([[math.nan, 0.05]])),
        r"columns \[0\] of x have NaN",
    ),
    "a box upside down": (
        lambda new: new(box=((0.0, 0.0), (1.0, -1.0))),
        "want low < high for each column",
    ),
    "a box of another dimension": (
        lambda new: new(box=((0.0,), (1.0,))),
        r"shape \(batch, 1\), got \(1, 2\)",
    ),
    "density of nothing trained": (lambda new: new().log_prob(X), r"\.standardize\(x_train\)"),
    "samples of nothing trained": (
        lambda new: new().sample(3, torch.Generator()),
        "standardize=False",
    ),
    "no context": (
        lambda new: new(context_dim=3, standardize=False).log_prob(X),
        r"context \(3,\): call \.given\(y\)",
    ),
    "contexts of another number": (
        lambda new: new(context_dim=3, standardize=False).given(torch.zeros(5, 3)).log_prob(X),
        "context has 5 rows for 4 samples: give one, or 4",
    ),
    "a context of another size": (
        lambda new: new(context_dim=3, standardize=False).given(torch.zeros(4, 2)),
        r"shape \(batch, 3\), got \(4, 2\)",
    ),
    "a context that is not finite": (
        lambda new: new(context_dim=3, standardize=False).given(column(1, math.nan)),
        r"columns \[1\] of the context y have NaN",
    ),
    "a context where there is none": (
        lambda new: new(standardize=False).given(torch.zeros(4, 3)),
        "set context_dim=",
    ),
    "no context to standardize": (
        lambda new: new(context_dim=3).standardize(column(0, 0.0)[:, 1:]),
        r"\.standardize\(x_train, y_train\)",
    ),
    "a context to standardize where there is none": (
        lambda new: new().standardize(X, X),
        "context_dim=",
    ),
}


@each_map
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(kind, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(MAPS[kind])


# --- data as people have them -------------------------------------------------------------------


@each_map
@pytest.mark.parametrize("kind_of_data", ["float64", "NumPy", "integers"])
def test_data_of_any_real_type_are_those_of_the_map(kind, kind_of_data, generator):
    x = torch.randint(-20, 20, (60, 2), generator=generator)
    y = torch.randint(0, 9, (60, 3), generator=generator)
    convert = {
        "float64": lambda a: a.double(),
        "NumPy": lambda a: a.double().numpy(),
        "integers": lambda a: a,
    }[kind_of_data]
    found = MAPS[kind](context_dim=3).float()
    reference = copy.deepcopy(found).standardize(x.float(), y.float())
    found.standardize(convert(x), convert(y))
    expected = reference.given(y.float())
    bound = found.given(convert(y))
    assert bound.log_prob(convert(x)).dtype == torch.float32
    assert torch.equal(bound.log_prob(convert(x)), expected.log_prob(x.float()))
    assert torch.equal(bound(convert(x)), expected(x.float()))
    first = found.given(convert(y)[0])  # a single observation
    assert torch.equal(first.context, bound.context[:1])
    assert torch.isfinite(first.log_prob(convert(x))).all()


def test_data_that_are_no_real_numbers_are_refused():
    flow = a_flow(2)
    with pytest.raises(TypeError, match=r"x must be made of real numbers, got torch\.complex"):
        flow.standardize(torch.ones(3, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="must be made of real numbers"):
        flow.standardize(np.array([["a", "b"], ["c", "d"]]))


def test_a_constant_context_is_centred_and_has_no_effect(generator):
    x, y = draw(generator, 40), draw(generator, 40, d=3)
    y[:, 1] = 7.0
    flow = a_flow(2, context_dim=3).standardize(x, y)
    assert (flow.given(y).context[:, 1] == 0).all()
    assert flow.given(y).log_prob(x).isfinite().all()
    y[:, 1] = 8.0
    with pytest.warns(UserWarning, match="column 1"):
        flow.given(y)


def test_a_row_that_is_not_finite_is_named(generator):
    x = draw(generator, 40)
    flow = a_flow(2).standardize(x)
    bad = x.clone()
    bad[7, 1] = math.nan
    with pytest.raises(ArithmeticError, match=r"sample 7 \(of 40\)"):
        flow.log_prob(bad)
    with pytest.raises(ValueError, match=r"columns \[1\] of x .* \(first in row 7\)"):
        flow.standardize(bad)


def test_an_outlier_that_swallows_a_column_is_warned_of(generator):
    x, y = draw(generator, 500), draw(generator, 500, d=3).float()
    counts = torch.zeros(500, 3)
    counts[::5] = 1.0  # most values are equal, and none is lost
    flow = a_flow(2, context_dim=3)
    flow.float().standardize(x, y)
    flow.standardize(x, counts)
    y[0, 1] = 1e8
    with pytest.warns(UserWarning, match=r"column 1 of the context y has outliers.*distinct"):
        flow.standardize(x, y)


def test_a_bound_map_is_not_moved_or_converted(generator):
    flow = a_flow(2, context_dim=3).standardize(draw(generator, 9), draw(generator, 9, d=3))
    phi = flow.velocity.given(torch.zeros(1, 3))
    for bound in (flow.given(torch.zeros(1, 3)), phi):
        with pytest.raises(RuntimeError, match="convert the original"):
            bound.float()
    assert {p.dtype for p in flow.parameters()} == {torch.float64}
    copied = copy.deepcopy(flow.given(torch.zeros(1, 3)))
    assert copied.context.shape == (1, 3)


def test_the_objective_of_a_flow_standardizes_its_data_by_itself(generator):
    x, y = 1e3 + 50 * draw(generator, 64), 0.1 * draw(generator, 64, d=3)
    how = {"steps": 4, "likelihood": 3.0, "hjb": 2.0}
    flow = a_flow(2, context_dim=3).standardize(x, y)
    found = flow.objective(x, y, **how)
    free = copy.deepcopy(flow.velocity)
    free.standardized = False
    expected = ot_flow(free.given(flow.conditions(y)), flow.data(x), **how)
    assert set(found) == set(expected)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    nll = -flow.given(y).log_prob(x).mean() - flow.data.std.log().sum()
    fine = flow.objective(x, y, **(how | {"steps": 16}))
    assert (fine["likelihood"] / 3).item() == pytest.approx(nll.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"use flow.objective"):
        ot_flow(flow.velocity.given(y), x, **how)
    with pytest.raises(ValueError, match="one context y for each x"):
        flow.objective(x, **how)
    with pytest.raises(TypeError, match="needs a Potential"):
        Flow(MLP(2, width=4), 2, solver={"steps": 2}).standardize(x).objective(x, **how)


def test_a_map_has_the_type_of_its_parameters_or_of_its_data(generator):
    net = MLP(2, width=4).float()
    x = draw(generator, 5)
    for flow in (Flow(net, 2, solver={"steps": 2}, standardize=False), a_flow(2).float()):
        flow.standardize(draw(generator, 20))
        assert flow.log_prob(x).dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    double = Flow(net.double(), 2, solver={"steps": 2}, standardize=False)
    free = Flow(Contract(), 2, solver={"steps": 2}, standardize=False)
    assert double.log_prob(x).dtype == free.log_prob(x).dtype == torch.float64
    assert free.log_prob(x.float()).dtype == torch.float32


@each_map
def test_an_encoder_gives_the_map_of_its_features(kind, generator):
    x, y = torch.randn(7, 2, generator=generator), torch.randn(7, 3, generator=generator)
    mapped = an_encoded(kind).standardize(x, y)
    encoder = mapped.encoder
    W, b = [list(part) for part in (encoder.weights, encoder.biases)]
    ybar = (y - y.mean(0)) / y.std(0)
    u = ybar @ W[0].T + b[0]
    for i in (1, 2):  # the formula, written out
        u = (u / (1 + (-u).exp())) @ W[i].T + b[i]
    features = torch.cat([ybar, u], 1)
    plain = MAPS[kind](context_dim=encoder.context_dim, standardize=False)
    plain.data = mapped.data
    expected = plain.bind(features)
    assert torch.allclose(mapped.given(y).log_prob(x), expected.log_prob(x), atol=1e-12)
    assert torch.allclose(mapped.given(y)(x), expected(x), atol=1e-12)
    one = mapped.given(y[0]).sample(4, generator.manual_seed(3))
    assert torch.allclose(one, expected.bind(features[:1]).sample(4, generator.manual_seed(3)))


@each_map
def test_an_encoder_is_trained_and_kept_with_its_map(kind, generator):
    x, y = torch.randn(9, 2, generator=generator), torch.randn(9, 3, generator=generator)
    mapped = an_encoded(kind).standardize(x, y)
    mapped.given(y).log_prob(x).mean().backward()
    assert all(p.grad.abs().max() > 0 for p in mapped.encoder.parameters())
    W, eps = mapped.encoder.weights[1], 1e-5
    slope, values = W.grad[1, 2].item(), []
    for sign in (1, -1):  # against a difference quotient
        with torch.no_grad():
            W[1, 2] += sign * eps
            values.append(mapped.given(y).log_prob(x).mean().item())
            W[1, 2] -= sign * eps
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(slope, rel=1e-6, abs=1e-10)
    other = an_encoded(kind, seed=5)
    assert not torch.allclose(other.standardize(x, y).given(y)(x), mapped.given(y)(x))
    other.load_state_dict(mapped.state_dict())
    assert torch.equal(other.given(y)(x), mapped.given(y)(x))


@pytest.mark.parametrize("backprop", ["adjoint", "recompute"])
def test_every_kind_of_gradient_reaches_the_encoder(backprop, generator):
    x, y = torch.randn(6, 2, generator=generator), torch.randn(6, 3, generator=generator)
    mapped = an_encoded("flow").standardize(x, y)
    found = []
    for how in ("through", backprop):
        mapped.zero_grad()
        mapped.solver = {"steps": 40, "backprop": how}
        mapped.given(y).log_prob(x).sum().backward()
        found.append([p.grad.clone() for p in mapped.encoder.parameters()])
    for through, other in zip(*found, strict=True):
        assert torch.allclose(through, other, atol=1e-6 * through.abs().max().item() + 1e-9)


def test_the_objective_of_a_flow_trains_its_encoder(generator):
    x, y = torch.randn(6, 2, generator=generator), torch.randn(6, 3, generator=generator)
    mapped = an_encoded("flow").standardize(x, y)
    terms = mapped.objective(x, y, steps=5, likelihood=2.0, hjb=0.0)
    phi = a_flow(context_dim=5, standardize=False).velocity  # the same weights
    phi = phi.given(mapped.encoder(mapped.conditions(y)))
    expected = ot_flow(phi, mapped.data(x), steps=5, likelihood=2.0, hjb=0.0)
    assert sum(terms.values()).item() == pytest.approx(sum(expected.values()).item(), rel=1e-12)
    sum(terms.values()).backward()
    assert all(p.grad.abs().max() > 0 for p in mapped.encoder.parameters())
    with pytest.raises(ValueError, match="context_dim="):
        a_flow(encoder=Encoder(3))


@pytest.mark.parametrize("contexts", [0, 1, 50])
def test_many_samples_are_computed_in_blocks(contexts, generator, monkeypatch):
    """The memory of a call is that of a block, also where each sample has a context of its own."""
    y = torch.randn(50, 3, generator=generator)
    mapped = a_flow(context_dim=3 if contexts else 0, standardize=False)
    bound = mapped.given(y[:contexts]) if contexts else mapped
    whole = bound.sample(50, torch.Generator().manual_seed(4))
    seen, gradient = [], ResNetPotential.gradient
    monkeypatch.setattr(maps, "BLOCK", 16)
    monkeypatch.setattr(
        ResNetPotential, "gradient", lambda s, t, x: seen.append(len(x)) or gradient(s, t, x)
    )
    blocks = bound.sample(50, torch.Generator().manual_seed(4))
    assert torch.allclose(blocks, whole, atol=1e-12)
    assert set(seen) == {16, 2}
