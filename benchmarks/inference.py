"""Posteriors p(x | y) by the maps of this book and of zuko: a training step, and sampling."""

from collections.abc import Callable, Iterator

import torch
import zuko
from torch import Tensor, nn

from ctdl_lib.generative import ConvexMap, Flow, flow_matching, ot_flow
from ctdl_lib.networks import MLP
from ctdl_lib.potentials import ConvexPotential, ResNetPotential
from machinery.benchmarking import Row, compare

Contenders = dict[str, tuple[nn.Module, Callable[[], object]]]

D, CONTEXT = 4, 9  # parameters and statistics of the stochastic Lotka–Volterra problem
WIDTH, BATCH, STEPS, DRAWS = 128, 256, 8, 2000


def rows() -> Iterator[Row]:
    yield from compare(f"training step, batch {BATCH}", named(training()))
    yield from compare(f"{DRAWS} samples for one y", named(sampling()))


def named(contenders: Contenders) -> dict[str, Callable[[], object]]:
    """The runs by name, with the size of each model in its name."""
    sizes = {
        name: sum(p.numel() for p in model.parameters()) for name, (model, _) in contenders.items()
    }
    return {f"{name}, {sizes[name]:,} weights": run for name, (_, run) in contenders.items()}


def cot_potential() -> ResNetPotential:
    generator = torch.Generator().manual_seed(0)
    return ResNetPotential(D, context_dim=CONTEXT, width=WIDTH, generator=generator)


def pcp_map() -> ConvexMap:
    generator = torch.Generator().manual_seed(0)
    how = {"context_dim": CONTEXT, "width": WIDTH, "layers": 3}
    potential = ConvexPotential(D, **how, generator=generator)
    return ConvexMap(potential, D, context_dim=CONTEXT, standardize=False)


def matched_velocity() -> MLP:
    generator = torch.Generator().manual_seed(0)
    return MLP(D, width=WIDTH, time=True, context_dim=CONTEXT, generator=generator)


def spline_flow() -> zuko.flows.NSF:
    return zuko.flows.NSF(D, CONTEXT, transforms=5, hidden_features=(64, 64))


def training() -> Contenders:
    """One gradient of the loss of each contender; the optimizer, the same for all, is left out."""
    x, y, z, t = data(BATCH)
    phi, pcp, velocity = cot_potential(), pcp_map(), matched_velocity()
    exact, probed = zuko.flows.CNF(D, CONTEXT), zuko.flows.CNF(D, CONTEXT, exact=False)
    spline = spline_flow()

    def cot_loss() -> Tensor:
        terms = ot_flow(phi.given(y), x, steps=STEPS, likelihood=10.0, hjb=1.0)
        return sum(terms.values(), x.new_zeros(()))

    def matching_loss() -> Tensor:
        return flow_matching(lambda t, x: velocity(t, x, y), x, z, t)

    return {
        "COT-Flow": (phi, gradient(phi, cot_loss)),
        "PCP-Map": (pcp, gradient(pcp, lambda: -pcp.given(y).log_prob(x).mean())),
        "zuko CNF": (exact, gradient(exact, lambda: -exact(y).log_prob(x).mean())),
        "zuko CNF, one probe": (probed, gradient(probed, lambda: -probed(y).log_prob(x).mean())),
        "zuko NSF": (spline, gradient(spline, lambda: -spline(y).log_prob(x).mean())),
        "flow matching": (velocity, gradient(velocity, matching_loss)),
    }


def gradient(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def run():
        model.zero_grad()
        loss().backward()

    return run


def sampling() -> Contenders:
    """Samples of untrained maps; after training, adaptive solvers take more steps than here."""
    y = data(1)[1]
    generator = torch.Generator().manual_seed(1)
    solver = {"steps": STEPS}
    cot, velocity = (
        Flow(v, D, solver=solver, context_dim=CONTEXT, standardize=False)
        for v in (cot_potential(), matched_velocity())
    )
    pcp, cnf, spline = pcp_map(), zuko.flows.CNF(D, CONTEXT), spline_flow()

    def ours(model: Flow | ConvexMap) -> tuple[nn.Module, Callable[[], object]]:
        return model, torch.no_grad()(lambda: model.given(y).sample(DRAWS, generator))

    def theirs(model: zuko.lazy.Flow) -> tuple[nn.Module, Callable[[], object]]:
        return model, torch.no_grad()(lambda: model(y[0]).sample((DRAWS,)))

    return {
        "COT-Flow": ours(cot),
        "PCP-Map, Newton": ours(pcp),
        "zuko CNF": theirs(cnf),
        "zuko NSF": theirs(spline),
        "flow matching": ours(velocity),
    }


def data(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, z = torch.randn(2, n, D, generator=generator)
    y = torch.randn(n, CONTEXT, generator=generator)
    return x, y, z, torch.rand(n, generator=generator)
