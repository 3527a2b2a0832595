import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from zuko.transforms import FreeFormJacobianTransform

from ctdl_lib.dynamics import Statistics, standard_normal_log_prob, taylor_errors
from ctdl_lib.generative import Flow, flow_matching
from ctdl_lib.learning import train
from ctdl_lib.metrics import observed_orders
from ctdl_lib.networks import MLP, ConcatSquash
from ctdl_lib.potentials import AutodiffPotential, Gradient, Potential, ResNetPotential

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Affine(nn.Module):
    """The velocity Ax + b."""

    def __init__(self, A, b):
        super().__init__()
        self.A, self.b = nn.Parameter(A), nn.Parameter(b)

    def forward(self, t, x):
        return x @ self.A.T + self.b


class Downhill(nn.Module):
    """The velocity −∇Φ as a network that knows nothing of its potential."""

    def __init__(self, phi):
        super().__init__()
        self.phi = phi

    def forward(self, t, x, y=None):
        return -(self.phi if y is None else self.phi.given(y)).gradient(t, x).dx


class AsNet(nn.Module):
    """A closed-form potential as a black box net(t, x)."""

    def __init__(self, phi):
        super().__init__()
        self.phi = phi

    def forward(self, t, x):
        return self.phi(t, x)


class FirstDerivativesOnly(Potential):
    """The potential ½‖x‖², which refuses to compute a Laplacian."""

    def forward(self, t, x):
        return 0.5 * x.square().sum(-1)

    def gradient(self, t, x):
        return Gradient(self(t, x), torch.zeros(len(x)), x)

    def derivatives(self, t, x, sigma=None):
        raise AssertionError("a second derivative was computed")


def network(d, seed=1, context_dim=0):
    g = torch.Generator().manual_seed(seed)
    return ConcatSquash(d, width=8, hidden=2, context_dim=context_dim, generator=g)


def potential(d, seed=1, context_dim=0):
    g = torch.Generator().manual_seed(seed)
    phi = ResNetPotential(d, width=5, layers=3, rank=2, context_dim=context_dim, generator=g)
    with torch.no_grad():
        phi.w.copy_(torch.randn(5, generator=g) / 2)
    return phi


VELOCITIES = {"network": network, "potential": potential}
each_velocity = pytest.mark.parametrize("kind", VELOCITIES)


def flow_of(kind, d=2, steps=6, **others):
    return Flow(VELOCITIES[kind](d), d, solver={"steps": steps}, standardize=False, **others)


def data(generator, n=9, d=2):
    scale, shift = torch.linspace(0.5, 3.0, d), torch.linspace(-2.0, 4.0, d)
    return shift + scale * torch.randn(n, d, generator=generator)


# --- densities that are known -------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("solver", [{"steps": 40}, {"tol": 1e-9}])
def test_an_affine_velocity_has_a_gaussian_density(d, solver, generator):
    A, b = 0.5 * torch.randn(d, d, generator=generator), torch.randn(d, generator=generator)
    x = data(generator, d=d)
    flow = Flow(Affine(A, b), d, solver=solver).standardize(x)
    # z = E s + c with s the standardized x: one exponential of (A b; 0 0) has both E and c
    both = torch.zeros(d + 1, d + 1)
    both[:d, :d], both[:d, d] = A, b
    both = torch.linalg.matrix_exp(both)
    E, c, D = both[:d, :d], both[:d, d], x.std(0).diag()
    back = D @ torch.linalg.inv(E)
    gauss = torch.distributions.MultivariateNormal(x.mean(0) - back @ c, back @ back.T)
    assert torch.allclose(flow.log_prob(x), gauss.log_prob(x), atol=1e-7)
    log_det = torch.linalg.slogdet(E).logabsdet - x.std(0).log().sum()
    z, found = flow.transform(x)
    assert torch.allclose(found, log_det.expand(len(x)), atol=1e-7)
    assert torch.allclose(z, torch.linalg.solve(back, (x - gauss.loc).T).T, atol=1e-7)


def test_the_gradient_of_an_affine_flow_in_x_is_the_score(generator):
    A, x = torch.randn(3, 3, generator=generator), data(generator, d=3).requires_grad_()
    flow = Flow(Affine(A, torch.zeros(3)), 3, solver={"tol": 1e-10}, standardize=False)
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    E = torch.linalg.matrix_exp(A)
    assert torch.allclose(score, -x @ E.T @ E, atol=1e-6)


@each_velocity
def test_the_density_integrates_to_one(kind, generator):
    flow = Flow(VELOCITIES[kind](2), 2, solver={"steps": 9}).standardize(data(generator, 50))
    side = torch.linspace(-1.0, 1.0, 101)
    centre, half = flow.data.mean, 12 * flow.data.std
    plane = centre + half * torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = flow.log_prob(plane).exp().reshape(101, 101)
    assert p[[0, -1]].max() < 1e-9 * p.max()  # nothing is left outside
    assert p[:, [0, -1]].max() < 1e-9 * p.max()
    # the trapezoidal rule; what remains is the error of nine steps
    assert p.sum() * (half / 50).prod() == pytest.approx(1.0, abs=1e-4)


def test_tails_are_finite_and_those_of_a_gaussian(generator):
    A, b = 0.5 * torch.randn(2, 2, generator=generator), torch.ones(2)
    flow = Flow(Affine(A, b), 2, solver={"steps": 50}, standardize=False)
    x = 1e4 * torch.randn(20, 2, generator=generator)
    z, log_det = flow.transform(x)
    assert torch.allclose(log_det, A.trace().expand(20))
    assert torch.allclose(flow.log_prob(x), -z.square().sum(1) / 2 + A.trace() - math.log(math.tau))


@each_velocity
def test_single_precision_reaches_far_into_the_tails(kind, generator):
    x = data(generator, 30)
    flow = Flow(VELOCITIES[kind](2), 2, solver={"steps": 8}).standardize(x)
    far = flow.data.mean + 1e4 * flow.data.std * torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 1]])
    double, single = flow.log_prob(far), flow.float().log_prob(far.float())
    assert double.isfinite().all()
    assert torch.allclose(single.double(), double, rtol=1e-5)


def test_standard_normal_log_prob_is_that_of_torch(generator):
    z = torch.randn(7, 3, generator=generator)
    theirs = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    assert torch.allclose(standard_normal_log_prob(z), theirs)


# --- forward and back ---------------------------------------------------------------------------


@each_velocity
def test_the_inverse_has_the_order_of_the_method(kind, generator):
    x, counts = data(generator, d=3), [4, 8, 16, 32]
    errors = []
    for steps in counts:
        flow = Flow(VELOCITIES[kind](3), 3, solver={"steps": steps}).standardize(x)
        errors.append((flow.inverse(flow(x)) - x).norm().item())
    orders = observed_orders(errors, [1 / n for n in counts])
    # going back repeats the error with its sign changed, up to the next order
    assert 3.8 < orders[-1] < 5.2
    assert errors[-1] < 1e-6


@each_velocity
def test_transform_ends_where_forward_does(kind, generator):
    x = data(generator)
    flow = Flow(VELOCITIES[kind](2), 2, solver={"steps": 5}).standardize(x)
    z, log_det = flow.transform(x)
    assert torch.allclose(z, flow(x), atol=1e-14)
    assert torch.allclose(flow.log_prob(x), standard_normal_log_prob(z) + log_det)


@each_velocity
def test_the_log_determinant_is_that_of_the_jacobian(kind, generator):
    x = data(generator, 4, d=3)
    flow = Flow(VELOCITIES[kind](3), 3, solver={"steps": 40}).standardize(x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: flow(x[None])[0]))(x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(flow.transform(x).log_det, expected, atol=1e-7)


@each_velocity
def test_samples_come_with_their_log_density(kind, generator):
    flow = Flow(VELOCITIES[kind](3), 3, solver={"steps": 24}).standardize(data(generator, d=3))

    def seeded():
        return torch.Generator().manual_seed(5)

    x, log_prob = flow.sample_with_log_prob(11, seeded())
    assert torch.allclose(log_prob, flow.log_prob(x), atol=1e-6)
    assert torch.allclose(x, flow.sample(11, seeded()))
    assert torch.allclose(flow(x), torch.randn(11, 3, generator=seeded()), atol=1e-6)


def test_paths_are_saved_in_both_directions(generator):
    x, times = data(generator), [0.0, 0.25, 1.0]
    flow = Flow(network(2), 2, solver={"steps": 40}).standardize(x)
    there = flow(x, save_at=times)
    assert torch.equal(there[0], (x - x.mean(0)) / x.std(0))
    assert torch.equal(there[-1], flow(x))
    back = flow.inverse(there[-1], save_at=times[::-1])
    assert torch.allclose(back.flip(0), there, atol=1e-6)


# --- the divergence -----------------------------------------------------------------------------


def test_hutchinsons_estimate_averages_to_the_exact_density(generator):
    x, flow = data(generator, 4, d=3), flow_of("network", d=3)
    exact = flow.log_prob(x)
    # signs are uniform on the corners of a cube, so their mean is known without sampling
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    signs = torch.stack([flow.log_prob(x, eps=e.expand(4, 3)) for e in corners])
    assert torch.allclose(signs.mean(0), exact)
    assert signs.std(0).min() > 1e-3
    many = torch.randn(4000, 3, generator=generator)
    estimates = torch.stack([flow.log_prob(p.expand(4000, 3), eps=many) for p in x])
    error = estimates.std(1) / math.sqrt(4000)
    assert ((estimates.mean(1) - exact).abs() < 4 * error).all()


def test_a_noisy_solve_follows_the_same_path(generator):
    x, flow = data(generator), flow_of("network")
    noise = torch.randn(9, 2, generator=generator)
    assert torch.equal(flow.transform(x, eps=noise).z, flow.transform(x).z)


def test_a_potential_is_the_same_flow_as_its_field(generator):
    x, phi = data(generator, d=3), potential(3)
    flows = [
        Flow(velocity, 3, solver={"steps": 6}).standardize(x)
        for velocity in (phi, Downhill(phi), AutodiffPotential(AsNet(phi)))
    ]
    densities = [flow.log_prob(x) for flow in flows]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(p.mean(), [phi.K0, phi.K, phi.A])])
        for p in densities
    ]
    samples = [flow.sample(5, torch.Generator().manual_seed(0)) for flow in flows]
    for found in (densities, gradients, samples):
        assert torch.allclose(found[1], found[0], atol=1e-11)
        assert torch.allclose(found[2], found[0], atol=1e-11)


def test_sampling_computes_no_divergence(generator, monkeypatch):
    flow = Flow(FirstDerivativesOnly(), 2, solver={"steps": 20}, standardize=False)
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
    x = flow.sample(6, torch.Generator().manual_seed(3))
    assert torch.allclose(x, math.e * z, rtol=1e-5)  # ẋ = −x, backward
    assert torch.allclose(flow(x), z)
    with pytest.raises(AssertionError, match="second derivative"):
        flow.log_prob(x)

    def forbidden(*_):
        raise AssertionError("a divergence was computed")

    for name in ("divergence", "hutchinson"):
        monkeypatch.setattr(f"ctdl_lib.generative.flows.{name}", forbidden)
    flow = flow_of("network")
    assert flow(flow.sample(6, generator)).shape == (6, 2)
    for eps in (None, z):
        with pytest.raises(AssertionError, match="a divergence was computed"):
            flow.log_prob(z, eps=eps)


def test_the_calls_of_the_network_are_those_that_are_counted(generator):
    flow, calls = flow_of("network", steps=5), []
    flow.velocity.register_forward_hook(lambda *_: calls.append(1))
    x = flow.sample(6, generator, statistics=(sampling := Statistics()))
    assert len(calls) == sampling.evaluations == 20
    flow.log_prob(x, statistics=(density := Statistics()))
    assert density.evaluations == 20
    assert len(calls) == 40  # the divergence pulls back through the same call
    flow(x, statistics=density)
    flow.inverse(x, statistics=density)
    assert density.evaluations == 60


# --- learning -----------------------------------------------------------------------------------

RECOMPUTE = {"steps": 4, "backprop": "recompute"}
SOLVERS = {
    "through": {"steps": 4},
    "adaptive": {"tol": 1e-7},
    "adjoint": {"tol": 1e-9, "backprop": "adjoint"},
}


@each_velocity
@pytest.mark.parametrize("name", SOLVERS)
def test_the_likelihood_has_the_right_gradient(name, kind, generator):
    x = data(generator, 5)
    flow = Flow(VELOCITIES[kind](2), 2, solver=SOLVERS[name]).standardize(x)
    passes_the_taylor_test(flow, lambda: flow.log_prob(x).mean(), generator)


def test_the_estimated_likelihood_has_the_right_gradient(generator):
    x, eps = data(generator, 5), torch.randn(5, 2, generator=generator)
    flow = Flow(network(2), 2, solver={"steps": 4}).standardize(x)
    passes_the_taylor_test(flow, lambda: flow.log_prob(x, eps=eps).mean(), generator)


def test_recomputing_gives_a_potential_the_same_gradient(generator):
    x, velocity = data(generator, 5), VELOCITIES["potential"](2)
    found = []
    for solver in ({"steps": 4}, RECOMPUTE):
        value = Flow(velocity, 2, solver=solver).standardize(x).log_prob(x).mean()
        grads = torch.autograd.grad(value, list(velocity.parameters()), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    assert torch.equal(*found)


def passes_the_taylor_test(flow, value, generator):
    theta = parameters_to_vector(flow.velocity.parameters()).detach()
    parameters = list(flow.velocity.parameters())

    def zero(g, p):
        return torch.zeros_like(p) if g is None else g

    grads = torch.autograd.grad(value(), parameters, allow_unused=True)
    slope = torch.cat([zero(g, p).flatten() for g, p in zip(grads, parameters, strict=True)])

    @torch.no_grad()
    def at(theta):
        vector_to_parameters(theta, parameters)
        return value()

    direction = torch.randn(len(theta), generator=generator)
    errors = taylor_errors(at, lambda _, d: slope @ d, theta, 0.5 * direction)
    orders = observed_orders(errors.first.tolist(), errors.h.tolist())
    assert orders[-1] == pytest.approx(2, abs=0.1)


class OnePlace(nn.Module):
    """The velocity c x for samples that are all at one time."""

    def __init__(self, c):
        super().__init__()
        self.c = nn.Parameter(torch.as_tensor(c))

    def forward(self, t, x):
        return self.c * x


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_flow_matching_is_least_at_the_conditional_expectation(t):
    """For x ~ N(0, s²) and z ~ N(0, 1), E[z − x | x_t] = c(t) x_t; only second moments matter."""
    s = 2.0
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    x, z = s * corners[:, :2], corners[:, 2:]  # the second moments of the Gaussians, exactly
    variance = (1 - t) ** 2 * s**2 + t**2
    best = OnePlace((t - (1 - t) * s**2) / variance)

    def value(v):
        return flow_matching(v, x, z, torch.full((16,), t))

    (slope,) = torch.autograd.grad(value(best), best.c)
    assert abs(slope) < 1e-13
    least = 2 * (s**2 + 1 - (t - (1 - t) * s**2) ** 2 / variance)
    assert value(best).item() == pytest.approx(least)
    for change in (-0.1, 0.1):
        other = value(OnePlace(best.c.item() + change)).item()
        assert other - least == pytest.approx(2 * variance * change**2)


class Interpolation(nn.Module):
    """The minimiser of flow matching from N(0, s²) to N(0, 1)."""

    def forward(self, t, x):
        t = torch.as_tensor(t).reshape(-1, 1)
        return (t - (1 - t) * 4.0) / ((1 - t) ** 2 * 4.0 + t**2) * x


def test_the_minimiser_of_flow_matching_is_a_flow_of_the_data(generator):
    flow = Flow(Interpolation(), 1, solver={"tol": 1e-10}, standardize=False)
    x = 2 * torch.randn(50, 1, generator=generator)
    expected = torch.distributions.Normal(0.0, 2.0).log_prob(x)[:, 0]
    assert torch.allclose(flow.log_prob(x), expected, atol=1e-7)


def test_flow_matching_gives_each_sample_its_time(generator):
    net, (x, z) = network(2), torch.randn(2, 7, 2, generator=generator)
    t = torch.rand(7, generator=generator)
    one = [flow_matching(net, x[[i]], z[[i]], t[[i]]) for i in range(7)]
    assert torch.allclose(flow_matching(net, x, z, t), torch.stack(one).mean())


# --- context ------------------------------------------------------------------------------------


def conditional(kind, generator):
    velocity = VELOCITIES[kind](2, context_dim=3)
    flow = Flow(velocity, 2, solver={"steps": 5}, context_dim=3)
    return flow.standardize(data(generator, 40), data(generator, 40, d=3))


def test_a_potential_and_its_field_agree_on_contexts(generator):
    x, y, flow = data(generator, 4), data(generator, 4, d=3), conditional("potential", generator)
    field = Flow(Downhill(flow.velocity), 2, solver={"steps": 5}, context_dim=3)
    field.data, field.conditions = flow.data, flow.conditions
    assert torch.allclose(field.given(y).log_prob(x), flow.given(y).log_prob(x))


# --- an independent library ---------------------------------------------------------------------


@each_velocity
@pytest.mark.parametrize("d", [1, 3])
def test_zuko_computes_the_same_density(kind, d, generator):
    x = data(generator, d=d) if d > 1 else 3 * torch.randn(9, 1, generator=generator)
    flow = Flow(VELOCITIES[kind](d), d, solver={"tol": 1e-9}).standardize(x)
    v = flow.velocity if kind == "network" else Downhill(flow.velocity)
    theirs = FreeFormJacobianTransform(v, 0.0, 1.0, atol=1e-9, rtol=1e-9)
    s = (x - x.mean(0)) / x.std(0)
    z, log_det = theirs.call_and_ladj(s)
    log_prob = standard_normal_log_prob(z) + log_det - x.std(0).log().sum()
    assert torch.allclose(flow.log_prob(x), log_prob, atol=1e-7)
    assert torch.allclose(flow(x), z, atol=1e-8)
    assert torch.allclose(flow.inverse(z), x.mean(0) + x.std(0) * theirs.inv(z), atol=1e-7)


# --- standardization, dtypes, state -------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_velocity
def test_dtype_and_device_are_kept(kind, dtype, device, generator):
    x = data(generator).to(device, dtype)
    flow = Flow(VELOCITIES[kind](2), 2, solver={"steps": 4}).to(device, dtype).standardize(x)
    sample = flow.sample_with_log_prob(5, generator)
    found = [flow(x), flow.log_prob(x), flow.inverse(x), flow.sample(5, generator), *sample]
    assert {(part.dtype, part.device.type) for part in found} == {(dtype, device)}


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 7), d=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_permuted_batch_has_permuted_densities(batch, d, seed):
    g = torch.Generator().manual_seed(seed)
    x, order = torch.randn(batch, d, generator=g), torch.randperm(batch, generator=g)
    for kind in VELOCITIES:
        flow = flow_of(kind, d=d, steps=3)
        assert flow.log_prob(x).shape == (batch,)
        assert torch.allclose(flow.log_prob(x)[order], flow.log_prob(x[order]))


# --- networks -----------------------------------------------------------------------------------


def test_concat_squash_is_its_formula(generator):
    net, x = network(3), torch.randn(5, 3, generator=generator)
    u, t = x, 0.7
    for i, (W, b, a, c, e) in enumerate(zip(net.W, net.b, net.a, net.c, net.e, strict=True)):
        u = (W @ (u.tanh() if i else u)[..., None])[..., 0] + b
        u = u * torch.sigmoid(a * t + c) + e * t
    assert torch.allclose(net(0.7, x), u)


def test_concat_squash_has_the_published_number_of_parameters():
    """The published script counts 9,225, one of which is the end time."""
    count = sum(p.numel() for p in ConcatSquash(2, width=64, hidden=3).parameters())
    assert count == 9_224


@pytest.mark.parametrize("kind", [ConcatSquash, MLP])
def test_networks_take_times_and_contexts_by_sample(kind, generator):
    def make():
        return kind(2, width=5, context_dim=3, generator=torch.Generator().manual_seed(4))

    net, (x, t) = make(), (torch.randn(6, 2, generator=generator), torch.linspace(0, 1, 6))
    y = torch.randn(6, 3, generator=generator)
    each = torch.cat([net(float(t[i]), x[[i]], y[[i]]) for i in range(6)])
    assert torch.allclose(net(t, x, y), each)
    for time in (0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.full((6,), 0.5)):
        assert torch.equal(net(time, x, y), make()(0.5, x, y))
    assert (net(0.5, x, y) - net(0.6, x, y)).norm() > 1e-3
    assert net.float()(0.5, x.float(), y.float()).dtype == torch.float32


# --- bad input ----------------------------------------------------------------------------------


def test_one_dimension_and_one_sample_are_enough(generator):
    flow = Flow(network(1), 1, solver={"steps": 4})
    flow.standardize(torch.randn(30, 1, generator=generator))
    assert flow.log_prob(torch.zeros(1, 1)).shape == (1,)
    assert flow.sample(1, generator).shape == (1, 1)
    side = torch.linspace(-9.0, 9.0, 401)[:, None]
    p = flow.log_prob(side).exp().detach()
    assert p.sum() * 18 / 400 == pytest.approx(1.0, abs=1e-4)


def fresh(**others):
    return Flow(network(2), 2, **({"solver": {"steps": 4}} | others))


X = torch.zeros(4, 2)
BAD = {
    "columns": (
        lambda: fresh(standardize=False).log_prob(torch.zeros(5, 3)),
        r"shape \(batch, 2\), got \(5, 3\)",
    ),
    "a network to recompute": (
        lambda: Flow(VELOCITIES["network"](2), 2, solver=RECOMPUTE, standardize=False).log_prob(X),
        "Potential",
    ),
    "no steps": (
        lambda: fresh(standardize=False, solver={"steps": 0}).log_prob(X),
        "steps must be an integer ≥ 1, got 0",
    ),
    "no accuracy": (
        lambda: fresh(standardize=False, solver={}).log_prob(X),
        "neither of steps and tol given",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_flow_is_trained_kept_and_loaded_as_its_docstring_says(tmp_path, generator):
    def a_flow():
        phi = ResNetPotential(2, width=8, generator=torch.Generator().manual_seed(0))
        return Flow(phi, 2, solver={"steps": 8})

    x = 100 + 7 * torch.randn(200, 2, generator=generator)
    flow = a_flow().standardize(x)
    before = flow.log_prob(x).mean()

    def loss(flow, x):
        return flow.objective(x, steps=8, likelihood=30.0, hjb=1.0)

    loader = torch.utils.data.DataLoader(x, 64)
    assert len(list(train(flow, loss, loader, steps=20, lr=0.03))) == 20
    assert flow.log_prob(x).mean() > before
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    other = a_flow()
    other.load_state_dict(torch.load(tmp_path / "flow.pt", weights_only=True))
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
