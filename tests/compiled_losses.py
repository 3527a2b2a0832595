"""The losses of the book under `torch.compile`, as JSON: how far the compiled numbers are off.

It runs in a process of its own, because the compiler cannot trace the checks of shapes that the
tests add to the library.
"""

import json

import torch
from torch import nn

from ctdl_lib.control import objective
from ctdl_lib.dynamics import integrate
from ctdl_lib.generative import Denoiser, Flow, Schedule, denoising, flow_matching, ot_flow
from ctdl_lib.learning import train
from ctdl_lib.networks import FNO, MLP
from ctdl_lib.potentials import ResNetPotential
from ctdl_lib.problems.control import obstacle
from ctdl_lib.problems.vehicles import Quadcopter
from machinery.benchmarking import has_compiler

N, STEPS = 6, 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed)).double()


def potential(d=2):
    return ResNetPotential(d, width=4, generator=seeded()).double()


def ot_flow_loss():
    weights = {"steps": 2, "likelihood": 2.0, "hjb": 1.0}
    return potential(), lambda phi, x: ot_flow(phi, x, **weights), drawn(N, 2)


def own_units():
    flow = Flow(potential(), 2, solver={"steps": STEPS}).standardize(drawn(50, 2)).double()
    weights = {"steps": STEPS, "likelihood": 2.0, "hjb": 1.0}
    return flow, lambda flow, x: flow.objective(x, **weights), 3 * drawn(N, 2)


def with_context():
    phi = ResNetPotential(2, context_dim=1, width=4, generator=seeded()).double()
    weights = {"steps": STEPS, "likelihood": 2.0, "hjb": 1.0}
    batch = drawn(N, 2), drawn(N, 1, seed=2)
    return phi, lambda phi, batch: ot_flow(phi.given(batch[1]), batch[0], **weights), batch


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


def traced(make, whole=True):
    """The relative error of the value and the gradients of a loss that is traced.

    If it has to be one graph, a break is an error: a CUDA graph could not take the whole of it.
    """
    model, loss, batch = make()
    torch.compiler.reset()
    expected = [part.clone() for part in value_and_gradients(model, loss, batch)]
    graph = torch.compile(loss, fullgraph=whole, dynamic=False, backend="aot_eager")
    return furthest(value_and_gradients(model, graph, batch), expected)


def furthest(found, expected):
    pairs = list(zip(found, expected, strict=True))
    assert len(pairs) > 1
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def trained():
    """How far the weights and records of a compiled training are from those of a plain one."""
    ends = []
    for compiled in (False, True):
        phi, loss, x = ot_flow_loss()
        steps = list(train(phi, loss, lambda k, x=x: x, steps=3, lr=0.01, compiled=compiled))
        records = [[step.loss, step.grad_norm, *step.terms.values()] for step in steps]
        ends.append([torch.tensor(records), *(p.detach() for p in phi.parameters())])
    (expected, found) = ends
    return furthest(found[:-1], expected[:-1])  # the last, the constant of Φ, stays zero


class Exploding(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.0))


def refused(compiled):
    """The error of a training whose loss is not finite."""

    def loss(model, x):
        return integrate(lambda t, x: model.rate * x**9, x, 0.0, 1.0, steps=2).square().mean()

    x = torch.full((3, 1), 40.0)
    try:
        list(train(Exploding(), loss, lambda k: x, steps=1, compiled=compiled))
    except ArithmeticError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    report = {"traced": {name: traced(make) for name, make in LOSSES.items()}}
    report["in parts"] = traced(with_context, whole=False)
    if has_compiler():
        report |= {"trained": trained(), "refused": [refused(False), refused(True)]}
    print(json.dumps(report))
