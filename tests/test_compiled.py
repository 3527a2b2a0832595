"""`torch.compile` takes the losses of the book as one graph, and gives the same numbers."""

import shutil

import pytest
import torch
from torch import nn

from ctdl_lib.control import objective
from ctdl_lib.dynamics import IntegrationError, integrate
from ctdl_lib.generative import Denoiser, Flow, Schedule, denoising, flow_matching, ot_flow
from ctdl_lib.learning import TrainingError, train
from ctdl_lib.networks import FNO, MLP
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.control import obstacle
from ctdl_lib.problems.vehicles import Quadcopter

N, STEPS = 6, 2
compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler",
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed)).double()


def potential(d=2):
    return ResNetPotential(d, width=4, generator=seeded()).double()


def ot_flow_loss():
    weights = {"steps": STEPS, "likelihood": 2.0, "hjb": 1.0}
    return potential(), lambda phi, x: ot_flow(phi, x, **weights), drawn(N, 2)


def own_units():
    flow = Flow(potential(), 2, solver={"steps": STEPS}).standardize(drawn(50, 2)).double()
    weights = {"steps": STEPS, "likelihood": 2.0, "hjb": 1.0}
    return flow, lambda flow, x: flow.objective(x, **weights), 3 * drawn(N, 2)


def likelihood():
    net = MLP(2, width=4, generator=seeded()).double()
    flow = Flow(net, 2, solver={"steps": STEPS}, standardize=False)
    return flow, lambda flow, x: -flow.log_prob(x).mean(), drawn(N, 2)


def matching():
    net, t = MLP(2, width=4, generator=seeded()).double(), torch.linspace(0.1, 0.9, N).double()
    return net, lambda net, batch: flow_matching(net, *batch), (drawn(N, 2), drawn(N, 2, seed=2), t)


def diffusion():
    denoiser = Denoiser(FNO(modes=2, width=4, layers=2, generator=seeded()), std=0.5).double()
    batch = drawn(3, 6, 6), drawn(3, 6, 6, seed=2), torch.linspace(0.1, 0.9, 3).double()
    return denoiser, lambda denoiser, batch: denoising(denoiser, *batch, Schedule()), batch


def controlled(problem, d):
    weights = {"hjb": 0.5, "bsde": 0.5, "terminal": 0.1, "terminal_gradient": 0.1, "initial": 1.0}

    def loss(phi, batch):
        x, dW = batch
        return objective(problem, phi, x, steps=STEPS, dW=dW, **weights)

    return potential(d), loss, (drawn(N, d), 0.1 * drawn(STEPS, N, d, seed=2))


LOSSES = {
    "OT-Flow": ot_flow_loss,
    "data in their own units": own_units,
    "likelihood": likelihood,
    "flow matching": matching,
    "diffusion of fields": diffusion,
    "control in the plane": lambda: controlled(obstacle(), 2),
    "quadcopter": lambda: controlled(Quadcopter(), 12),
}


def value_and_gradients(model, loss, batch):
    model.zero_grad()
    terms = loss(model, batch)
    total = terms if isinstance(terms, torch.Tensor) else torch.stack(list(terms.values())).sum()
    total.backward()
    return [total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_one_graph_with_the_same_gradients(name):
    """Without a break, so that a CUDA graph can take the whole of it."""
    model, loss, batch = LOSSES[name]()
    torch.compiler.reset()
    expected = [part.clone() for part in value_and_gradients(model, loss, batch)]
    traced = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    found = value_and_gradients(model, traced, batch)
    assert len(found) == len(expected) > 1
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@compiler
def test_training_compiled_ends_with_the_same_weights():
    ends = []
    for compiled in (False, True):
        phi, loss, x = ot_flow_loss()
        steps = list(train(phi, loss, lambda k, x=x: x, steps=3, lr=0.01, compiled=compiled))
        ends.append((steps, [p.detach().clone() for p in phi.parameters()]))
    (here, expected), (there, found) = ends
    for a, b in zip(there, here, strict=True):
        assert a.terms == pytest.approx(b.terms, rel=1e-10)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-10)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


class Exploding(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0))


@compiler
def test_a_compiled_loss_that_is_not_finite_is_explained():
    """The checks inside of the loss are left out; they are made when its value is not finite."""

    def loss(model, x):
        return integrate(lambda t, x: model.rate * x**9, x, 0.0, 1.0, steps=2).square().mean()

    x = torch.full((3, 1), 40.0)
    for compiled in (False, True):
        with pytest.raises(IntegrationError, match=r"sample 0 .* is not finite from t="):
            list(train(Exploding(), loss, lambda k: x, steps=1, compiled=compiled))
    with pytest.raises(TrainingError, match="'loss' of the loss is inf at step 0"):
        list(train(Exploding(), lambda m, x: m.rate / (x - x), lambda k: x[0, 0], steps=1))
