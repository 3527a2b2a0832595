"""Every algorithm runs on a device, agrees with the CPU, and rarely lets it wait for the host."""

import copy
import math

import pytest
import torch
from accelerator import Counts, OnDevice, device, enabled
from torch import nn

from ctdl_lib import control, metrics
from ctdl_lib.dynamics import IntegrationError, integrate
from ctdl_lib.dynamics.stochastic import euler_maruyama
from ctdl_lib.generative import convex_maps, diffusion, flows
from ctdl_lib.generative.diffusion import Denoiser, ProbabilityFlow, Schedule, Score
from ctdl_lib.generative.flows import Flow
from ctdl_lib.generative.optimal_transport import mean_field, ot_flow, transport
from ctdl_lib.learning import TrainingError, minibatches, train
from ctdl_lib.networks import MLP, ResNet, architectures
from ctdl_lib.networks.operators import FNO
from ctdl_lib.potentials import AutodiffPotential, ConvexPotential, ResNetPotential
from ctdl_lib.problems.control import LinearQuadratic
from experiments.function_space import comparisons, grids, priors
from experiments.function_space.unets import UNet
from experiments.mean_field_games.games import crowd_motion
from experiments.ot_flow import rivals

N = 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed))


class Velocity(nn.Module):
    """A small network v(t, x) or v(t, x, y)."""

    def __init__(self, outputs=2, context=0):
        super().__init__()
        self.net = MLP(2, width=8, context_dim=context, generator=seeded())
        self.outputs = outputs

    def forward(self, t, x, *y):
        return self.net(t, x, *y)[:, : self.outputs]


class Value(Velocity):
    def forward(self, t, x):
        return super().forward(t, x)[:, 0]


# --- the pretend device --------------------------------------------------------------------------


@pytest.fixture
def counts():
    with enabled() as counts:
        yield counts


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x, y: x + y,
        lambda x, y: y @ x.T,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: x.addmm_(y, y),
        lambda x, y: torch.where(y > 0, x, x),
        lambda x, y: x.index_put_((torch.tensor([0]),), y[:1]),
        lambda x, y: y[x.argmax(1)],
        lambda x, y: nn.functional.linear(y, x),
    ],
)
def test_tensors_of_two_devices_are_refused(counts, mixed):
    x, y = drawn(3, 3).to(device()), drawn(3, 3)
    with pytest.raises(RuntimeError, match="device"):
        mixed(x, y)


def test_numbers_of_the_cpu_are_welcome(counts):
    x = drawn(3).to(device())
    assert (x + torch.tensor(1.0)).device == device()
    assert counts == Counts(to_device=1)


def test_generators_and_arrays_of_the_cpu_are_refused(counts):
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=device(), generator=seeded())
    with pytest.raises(TypeError, match=r"\.cpu\(\)"):
        drawn(3).to(device()).numpy()


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda x: x + 1, Counts()),
        (lambda x: torch.zeros(3, device=x.device), Counts()),
        (lambda x: x.sum().item(), Counts(to_host=1, waits=1)),
        (lambda x: bool((x > 0).all()), Counts(to_host=1, waits=1)),
        (lambda x: x.tolist(), Counts(to_host=1, waits=1)),
        (lambda x: x.cpu(), Counts(to_host=1, waits=1)),
        (lambda x: torch.zeros(3).copy_(x), Counts(to_host=1, waits=1)),
        (lambda x: x.copy_(torch.zeros(3)), Counts(to_device=1)),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), Counts(to_device=1)),
        (lambda x: torch.as_tensor([1.0], device=x.device), Counts(to_device=1)),
        (lambda x: x.nonzero(), Counts(waits=1)),
        (lambda x: x[x > 0], Counts(waits=1)),
        (lambda x: x[torch.tensor([0, 2])], Counts(to_device=1)),
    ],
)
def test_copies_and_waits_are_counted(action, expected):
    with enabled():
        x = drawn(3).to(device())
    with enabled() as counts:
        action(x)
    assert counts == expected


def test_autograd_and_optimizers_work_on_it(counts):
    net = Velocity()
    there = copy.deepcopy(net).to(device())
    x = drawn(N, 2)
    for model, place in ((net, "cpu"), (there, device())):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(0.5, x.to(place)).square().sum().backward()
            optimizer.step()
    assert isinstance(next(there.parameters()).data, OnDevice)
    for a, b in zip(net.parameters(), there.parameters(), strict=True):
        assert torch.allclose(a, b.cpu(), rtol=0, atol=1e-12)


# --- every algorithm -----------------------------------------------------------------------------

# name → a function of `to`, which moves a tensor or a module to the device. It returns the module
# whose gradients are compared, or None, and a function without arguments that returns tensors.
CASES = {}


def case(make):
    CASES[make.__name__] = make
    return make


def solved(**how):
    def make(to):
        net, x = to(Velocity()), to(drawn(N, 2))
        return net, lambda: integrate(net, x, 0.0, 1.0, **how)

    return make


for backprop in ("through", "recompute", "adjoint"):
    CASES[f"fixed_{backprop}"] = solved(steps=4, backprop=backprop, save_at=[0.3, 0.5, 1.0])
    if backprop != "recompute":
        CASES[f"adaptive_{backprop}"] = solved(tol=1e-6, backprop=backprop, step_at=[0.5])


@case
def verlet(to):
    net, q, p = to(Velocity()), to(drawn(N, 2)), to(drawn(N, 2, seed=2))
    return net, lambda: integrate(
        lambda t, s: (s[1], -net(t, s[0])), (q, p), 0.0, 1.0, steps=4, method="verlet"
    )


@case
def stochastic(to):
    net, x, matrix = to(Velocity()), to(drawn(N, 2)), to(drawn(2, 3))
    return net, lambda: euler_maruyama(net, matrix, x, 0.0, 1.0, steps=4, generator=seeded(3))


def flow_of(to, velocity, **how):
    context = drawn(50, 1, seed=3)
    flow = Flow(velocity, 2, solver={"steps": 3}, context_dim=1, **how)
    return to(flow.standardize(0.5 * torch.tanh(drawn(50, 2)), context))


def densities(flow, to):
    x, y = to(0.5 * torch.tanh(drawn(N, 2))), to(0.1 * drawn(N, 1))
    z, _ = flow.given(y).sample_with_log_prob(N, seeded(4))
    samples = flow.given(y[0]).sample(N, seeded(5))
    return flow.given(y).log_prob(x), flow.given(y)(x), z, samples


@case
def network_flow(to):
    flow = flow_of(to, Velocity(context=1))
    return flow, lambda: densities(flow, to)


@case
def hutchinson_flow(to):
    flow = flow_of(to, Velocity(context=1))
    x, y, eps = (to(drawn(N, k, seed=k)) for k in (2, 1, 2))
    return flow, lambda: flow.given(0.1 * y).log_prob(x, eps=eps)


@case
def potential_flow(to):
    flow = flow_of(to, ResNetPotential(2, context_dim=1, width=8, generator=seeded()))
    x, y = to(drawn(N, 2)), to(drawn(N, 1))
    weights = {"steps": 3, "likelihood": 1.0, "hjb": 1.0}
    return flow, lambda: (*densities(flow, to), *flow.objective(x, y, **weights).values())


@case
def box_flow(to):
    flow = flow_of(to, Velocity(context=1), box=((-1.0, -1.0), (1.0, 1.0)))
    return flow, lambda: densities(flow, to)


@case
def matched_flow(to):
    net, x, z, t = to(Velocity()), to(drawn(N, 2)), to(drawn(N, 2, seed=2)), to(torch.rand(N))
    return net, lambda: flows.flow_matching(net, x, z, t)


@case
def convex_map(to):
    potential = ConvexPotential(2, context_dim=1, width=8, generator=seeded())
    flow = convex_maps.ConvexMap(potential, 2, context_dim=1)
    flow = to(flow.standardize(drawn(50, 2), drawn(50, 1, seed=3)))
    return flow, lambda: densities(flow, to)


def potential(to, kind):
    phi, x, matrix = to(kind), to(drawn(N, 2)), to(drawn(2, 3))
    return phi, lambda: (*phi.derivatives(0.3, x), *phi.derivatives(0.3, x, matrix), phi(0.3, x))


CASES["potential_closed"] = lambda to: potential(to, ResNetPotential(2, width=8, layers=3))
CASES["potential_wide"] = lambda to: potential(to, ResNetPotential(2, width=2, layers=3))
CASES["potential_autodiff"] = lambda to: potential(to, AutodiffPotential(Value()))


@case
def optimal_transport(to):
    phi, x = to(ResNetPotential(2, width=8, generator=seeded())), to(drawn(N, 2))

    def run():
        terms = ot_flow(phi, x, steps=4, likelihood=1.0, hjb=1.0)
        return (*terms.values(), *transport(phi, x, steps=4, save_at=[0.0, 0.6]))

    return phi, run


@case
def mean_field_game(to):
    phi, x, game = to(ResNetPotential(2, width=8, generator=seeded())), to(drawn(N, 2)), GAME
    weights = {"steps": 4, "hjb": 1.0, "terminal_condition": 1.0}
    return phi, lambda: tuple(mean_field(phi, x, game, **weights).values())


@case
def denoised(to):
    denoiser = to(Denoiser(Velocity(), std=0.5))
    x, eta, t = to(drawn(N, 2)), to(drawn(N, 2, seed=2)), to(torch.rand(N))
    return denoiser, lambda: diffusion.denoising(denoiser, x, eta, t, Schedule())


def sampled(method):
    def make(to):
        score, g = Score(to(Denoiser(Velocity(), std=0.5)), Schedule()), seeded(5)
        noise = lambda: to(torch.randn(N, 2, generator=g))  # noqa: E731
        how = {"steps": 4, "method": method}

        def run():
            g.manual_seed(5)
            states = list(diffusion.reverse_sde(score, noise, Schedule(), **how))
            return states[-1].x, diffusion.sample_sde(score, noise, Schedule(), **how)

        return score, run

    return make


CASES |= {f"reverse_sde_{method}": sampled(method) for method in diffusion.METHODS}


@case
def probability_flow(to):
    v = ProbabilityFlow(Score(Denoiser(Velocity(), std=0.5), Schedule()), Schedule())
    flow, x = to(Flow(v, 2, solver={"steps": 3}, standardize=False)), to(drawn(N, 2))
    return flow, lambda: (flow.log_prob(x), flow.sample(N, seeded(6)))


@case
def fourier_operator(to):
    net = to(FNO(modes=3, width=4, layers=2, generator=seeded()))
    u = to(drawn(3, 8, 8))
    return net, lambda: (net(0.5, u), net(to(torch.rand(3, generator=seeded())), u))


@case
def u_net(to):
    net, u = UNet(width=8, factors=(1, 2)), to(drawn(3, 8, 8))
    nn.init.normal_(net.last.weight, generator=seeded())
    net = to(net)
    return net, lambda: net(0.5, u)


@case
def random_fields(to):
    Q = priors.Sum((priors.Laplacian(1.5), priors.Laplacian(2.0))).normalized(8)
    u = to(Q.sample(3, 8, seeded()))
    return None, lambda: (
        Q.apply_sqrt(u),
        Q.apply(u),
        Q.log_prob(u),
        Q.check(u),
        grids.resample(u, 6),
        grids.resample(u, 11),
    )


def network(**how):
    def make(to):
        net = ResNet(2, 1, width=4, layers=4, generator=seeded(), **how)
        net, y = to(net), to(drawn(N, 2))
        return net, lambda: (net(y), net.path(y))

    return make


CASES |= {
    "resnet_propagated": network(),
    "resnet_plain": network(architecture=architectures.PLAIN),
    "resnet_reversible": network(
        architecture=architectures.Architecture(
            architectures.HAMILTONIAN, architectures.SYMPLECTIC
        ),
        reverse=True,
    ),
}


@case
def resnet_adjoint(to):
    net, u = to(ResNet(2, 1, width=4, layers=4, generator=seeded())), to(drawn(N, 4))
    return net, lambda: integrate(net.velocity, u, 0.0, 1.0, steps=4, backprop="adjoint")


SIGMA = torch.tensor([[0.3, -0.1], [0.0, 0.4]], dtype=torch.float64)
WEIGHTS = dict.fromkeys(("hjb", "bsde", "terminal", "terminal_gradient", "initial"), 1.0)


def controlled(diffusion, generator=None, **how):
    def make(to):
        problem = LinearQuadratic(to(torch.zeros(2)), 10.0, diffusion=diffusion)
        phi, x = to(ResNetPotential(2, width=8, generator=seeded())), to(drawn(N, 2))

        def run():
            noise = {} if generator is None else {"generator": seeded(generator)}
            terms = control.objective(problem, phi, x, steps=4, **noise, **how)
            policy = control.feedback(problem, phi)
            method = how.get("method", "euler_maruyama")
            noise = {} if generator is None else {"generator": seeded(generator)}
            path = control.rollout(problem, policy, x, steps=4, method=method, **noise)
            return (*terms.values(), path.cost, path.x)

        return phi, run

    return make


CASES |= {
    "control_all_penalties": controlled(0.4, 7, **WEIGHTS),
    "control_matrix_noise": controlled(SIGMA, 7, **WEIGHTS),
    "control_ends_only": controlled(0.4, 7, terminal=1.0, initial=1.0),
    "control_runge_kutta": controlled(0.0, method="rk4", **WEIGHTS),
}


@case
def control_check(to):
    problem, x = LinearQuadratic(to(torch.zeros(2)), 10.0, diffusion=0.4), to(drawn(N, 2))
    return None, lambda: torch.tensor(control.check(problem, x, generator=seeded()))


@case
def distances(to):
    x, y = to(drawn(30, 2)), to(drawn(30, 2, seed=2) + 1)
    logits, label = to(drawn(N, 3)), to(torch.arange(N) % 3)
    return None, lambda: torch.tensor(
        [
            rivals.mmd(x, y, bandwidth=1.0),
            comparisons.energy_distance(x, y),
            metrics.sliced_wasserstein(x, y, projections=5, generator=seeded()),
            comparisons.vendi(x),
            metrics.c2st(x, y, seed=0, folds=2),
            metrics.accuracy(logits, label),
            float(metrics.cross_entropy(logits, label)),
            float(metrics.cross_entropy(logits[:, :1], label % 2)),
        ]
    )


GAME = crowd_motion(2)


def results(make, to):
    """The tensors of a case on the CPU, and the gradients of a sum of them."""
    module, run = make(to)
    out = run()
    out = [out] if isinstance(out, torch.Tensor) else list(out)
    grads = []
    if module is not None:
        smooth = [x for x in out if x.requires_grad]
        torch.stack([x.square().sum() for x in smooth]).sum().backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        assert grads
    return [x.detach().cpu() for x in (*out, *grads)]


@pytest.mark.parametrize("name", CASES)
def test_an_algorithm_agrees_with_the_cpu(name):
    torch.manual_seed(0)
    expected = results(CASES[name], lambda x: x)
    with enabled():
        torch.manual_seed(0)
        found = results(CASES[name], lambda x: x.to(device()))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


# --- training ------------------------------------------------------------------------------------


def ot_flow_training(to, steps=3):
    phi, x = ResNetPotential(2, width=8, generator=seeded()), to(drawn(N, 2))
    weights = {"steps": steps, "likelihood": 1.0, "hjb": 1.0}
    return phi, lambda phi, batch: ot_flow(phi, batch, **weights), lambda k: x


def flow_training(to, steps=3):
    potential = ResNetPotential(2, context_dim=1, width=8, generator=seeded())
    flow = Flow(potential, 2, solver={"steps": steps}, context_dim=1)
    flow = flow.standardize(drawn(N, 2), drawn(N, 1))
    x, y = to(drawn(N, 2)), to(drawn(N, 1))
    weights = {"steps": steps, "likelihood": 1.0, "hjb": 1.0}
    return flow, lambda flow, batch: flow.objective(*batch, **weights), lambda k: (x, y)


def likelihood_training(to, steps=3):
    flow, x = Flow(Velocity(), 2, solver={"steps": steps}).standardize(drawn(N, 2)), to(drawn(N, 2))
    return flow, lambda flow, x: -flow.log_prob(x).mean(), lambda k: x


def diffusion_training(to, steps=2):
    net = FNO(modes=3, width=4, layers=steps, generator=seeded())
    u, eta = to(drawn(3, 8, 8)), to(drawn(3, 8, 8, seed=2))
    t = to(torch.rand(3, generator=seeded()))
    schedule = Schedule()
    return (
        Denoiser(net, std=0.5),
        lambda denoiser, batch: diffusion.denoising(denoiser, *batch, schedule),
        lambda k: (u, eta, t),
    )


def control_training(to, steps=3):
    problem = LinearQuadratic(to(torch.zeros(2)), 10.0, diffusion=0.4)
    phi, x = ResNetPotential(2, width=8, generator=seeded()), to(drawn(N, 2))
    dW = to(0.1 * drawn(steps, N, 2))
    how = {"steps": steps, **WEIGHTS}
    return (
        phi,
        lambda phi, batch: control.objective(problem, phi, batch, dW=dW, **how),
        lambda k: x,
    )


def adjoint_training(to, steps=3):
    net, x = Velocity(), to(drawn(N, 2))
    how = {"steps": steps, "backprop": "adjoint"}
    return net, lambda net, x: integrate(net, x, 0.0, 1.0, **how).square().mean(), lambda k: x


TRAININGS = (
    ot_flow_training,
    flow_training,
    likelihood_training,
    diffusion_training,
    control_training,
)


def traffic(make, **how):
    """The counts of one training step, the second, whose optimizer has its state already."""
    with enabled():
        model, loss, batches = make(lambda x: x.to(device()), **how)
        training = train(model.to(device()), loss, batches, steps=9, max_grad_norm=1.0, average=0.9)
        next(training)
        with enabled() as counts:
            next(training)
    return counts


@pytest.mark.parametrize("make", TRAININGS, ids=lambda f: f.__name__)
def test_a_training_step_waits_once_for_all_its_numbers(make):
    counts = traffic(make)
    assert (counts.to_host, counts.waits) == (1, 1)


@pytest.mark.parametrize("make", TRAININGS, ids=lambda f: f.__name__)
def test_no_stage_waits_or_copies(make):
    """Twice as many steps, or layers, cause the same traffic: the grid of times is copied once."""
    assert traffic(make, steps=6) == traffic(make, steps=3)
    assert traffic(make).to_device <= 4


def test_the_adjoint_equation_waits_once_more_in_the_backward_pass():
    """Autograd calls it in a thread of its own, where the training step cannot put off a check."""
    counts = traffic(adjoint_training)
    assert (counts.to_host, counts.waits) == (2, 2)
    assert traffic(adjoint_training, steps=6) == counts


@pytest.mark.parametrize("make", [*TRAININGS, adjoint_training], ids=lambda f: f.__name__)
def test_training_with_a_checkpoint_agrees_with_the_cpu(make, tmp_path):
    records = {}
    with enabled():
        for place in ("cpu", device()):
            model, loss, batches = make(lambda x, place=place: x.to(place))
            file = tmp_path / torch.device(place).type
            how = {"steps": 4, "average": 0.5, "checkpoint": file, "every": 2}
            training = train(model.to(place), loss, batches, **how)
            next(training), next(training)  # interrupted after the first checkpoint
            fresh, loss, batches = make(lambda x, place=place: x.to(place))
            steps = list(train(fresh.to(place), loss, batches, **how))
            weights = [p.detach().cpu() for p in fresh.parameters()]
            records[torch.device(place).type] = steps, weights
    (here, expected), (there, found) = records.values()
    for a, b in zip(there, here, strict=True):
        assert math.isclose(a.loss, b.loss, rel_tol=1e-10)
        assert math.isclose(a.grad_norm, b.grad_norm, rel_tol=1e-10)
        assert a.terms == pytest.approx(b.terms, rel=1e-10)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_minibatches_and_l_bfgs_work_on_a_device():
    def losses(place):
        x = drawn(30, 2).to(place)
        net = MLP(2, width=4, time=False, generator=seeded()).to(place)
        optimizer = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe")
        how = {"steps": 3, "optimizer": optimizer}
        loss = lambda net, batch: (net(0.0, batch[0]) - batch[0].sin()).square().mean()  # noqa: E731
        return [step.loss for step in train(net, loss, minibatches(x, size=10, seed=0), **how)]

    with enabled():
        assert losses(device()) == pytest.approx(losses("cpu"), rel=1e-10)


# --- faults --------------------------------------------------------------------------------------


def exploding(net, x):
    return integrate(lambda t, x: net(t, x) + x**9, 10 * x, 0.0, 1.0, steps=4).square().mean()


def exploding_path(net, x):
    noise = torch.zeros_like(x).expand(4, -1, -1)
    return euler_maruyama(lambda t, x: net(t, x) + x**9, 1.0, 10 * x, 0.0, 9.0, steps=4, dW=noise).x


def bad_start(net, x):
    return integrate(net, x / 0, 0.0, 1.0, steps=4).clamp(-1, 1).nan_to_num().sum()


def bad_time(net, x):
    return diffusion.denoising(net, x, x, 1 + x[:, 0].abs(), Schedule())


def bad_matrix(net, x):
    """A check that is put off, and an error of torch because of what it would have refused."""
    end = exploding(net, x) * torch.eye(2, dtype=x.dtype, device=x.device)
    return torch.linalg.cholesky(end).sum()


def bad_cost(net, x):
    problem = LinearQuadratic(torch.full((2,), math.inf), 10.0)
    return control.objective(problem, net, x, steps=2)


FAULTS = {
    "state": (Velocity, exploding),
    "path": (Velocity, lambda net, x: exploding_path(net, x).sum()),
    "start": (Velocity, bad_start),
    "time": (Velocity, bad_time),
    "matrix": (Velocity, bad_matrix),
    "cost": (lambda: ResNetPotential(2, generator=seeded()), bad_cost),
    "term": (Velocity, lambda net, x: {"a": net(0.0, x).sum(), "b": net(0.0, x).sum() / 0}),
    "gradient": (Velocity, lambda net, x: (0 * net(0.0, x)).abs().sqrt().sum()),
    "frozen": (Velocity, lambda net, x: net(0.0, x).detach().sum()),
    "frozen and infinite": (Velocity, lambda net, x: net(0.0, x).detach().sum() / 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_check_that_was_put_off_has_the_same_error(name):
    make, loss = FAULTS[name]
    found = []
    with enabled():
        for place in ("cpu", device()):
            x, model = drawn(N, 2).to(place), make().to(place)
            before = [p.detach().clone() for p in model.parameters()]
            with pytest.raises((ArithmeticError, ValueError)) as caught:
                next(train(model, loss, lambda k, x=x: x, steps=1))
            found.append((caught.type, str(caught.value)))
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found[0] == found[1]


def test_outside_of_a_training_step_a_check_is_not_put_off(counts):
    with pytest.raises(IntegrationError, match="sample 0"):
        exploding(Velocity().to(device()), drawn(N, 2).to(device()))


def test_a_loss_that_fails_only_once_is_named():
    def loss(net, x):
        first.append(0)
        return bad_start(net, x) if len(first) == 1 else net(0.0, x).sum()

    first = []
    with enabled(), pytest.raises(TrainingError, match="not the same when it is repeated"):
        next(train(Velocity().to(device()), loss, lambda k: drawn(N, 2).to(device()), steps=1))
