"""Maps of posteriors by four methods behind one interface, and how they are trained.

What a training does is said by its settings (`key`), which are stored with its weights. Something
new gets a key of its own, and is read by `model_of` (what is trained, such as a network that reads
the data y first), by `objective` (what is minimised) or by `steps_of` (how). Settings without the
key are then what they were, and results that are stored stay valid.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sbi.neural_nets.factory import posterior_flow_nn, posterior_nn
from torch import Tensor, nn

from ctdl_lib.dynamics import Transformed
from ctdl_lib.generative import ConvexMap, Flow, Sample, TransportMap
from ctdl_lib.learning import Step, autoclip, cosine, minibatches, train
from ctdl_lib.networks import Encoder
from ctdl_lib.potentials import ConvexPotential, ResNetPotential
from machinery.seeds import seeded
from machinery.store import Record, Store

CHAPTER = "09_simulation_based_inference"
SEEDS = (10, 11, 12)  # settings were chosen with seeds 0 and 1
COT, PCP, NPE, FMPE = METHODS = ("COT-Flow", "PCP-Map", "NPE", "FMPE")
READERS = tuple(f"{name}+encoder" for name in METHODS)
COT_READS, PCP_READS, NPE_READS, FMPE_READS = READERS
LONG = tuple(f"{name}+average" for name in METHODS)  # trained so, without the encoder
COT_LONG, PCP_LONG, NPE_LONG, FMPE_LONG = LONG
COT_WIDE = "COT-Flow+wide"  # trained so, with as many weights as the encoder brings
SHORT = {COT: "cot", PCP: "pcp", NPE: "npe", FMPE: "fmpe"}
SOLVED = 8  # Runge–Kutta steps of COT-Flow, unless another number is said

Key = dict[str, Any]
Box = tuple[Sequence[float], Sequence[float]]
Pairs = Callable[[], tuple[Tensor, Tensor]]


class Fitted(NamedTuple):
    """A trained map, and the record of its training."""

    model: TransportMap
    record: Record


def base_of(name: str) -> str:
    """The method of a name such as "NPE+encoder"."""
    return name.partition("+")[0]


def seeds_of(store: Store, seed: int = 0) -> list[int]:
    """The seeds of trainings; one in smoke."""
    return [seed + s for s in SEEDS[: 1 if store.run == "smoke" else 3]]


class Spline(TransportMap):
    """The network of sbi's NPE."""

    def __init__(self, net: Any, d: int, m: int, encoder: nn.Module | None = None):
        super().__init__(d, context_dim=m, encoder=encoder)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """The reference points z = T(x)."""
        return self.transform(x).z

    def transform(self, x: Tensor) -> Transformed:
        """The reference points z = T(x), and log |det ∂z/∂x|."""
        scaled = self.data.transform(x)
        z, log_det = self.net.net._transform(scaled.z, context=self.context_of(len(x)))
        return Transformed(z, scaled.log_det + log_det)

    def inverse(self, z: Tensor) -> Tensor:
        """The data x = T⁻¹(z)."""
        with warnings.catch_warnings():  # nflows, below sbi, calls what torch has renamed
            warnings.filterwarnings("ignore", message=".*triangular_solve")
            x, _ = self.net.net._transform.inverse(z, context=self.context_of(len(z)))
        return self.data.inverse(x)

    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> Sample:
        """The n samples x = T⁻¹(z) with z ~ N(0, I), and log p(x)."""
        x = self.inverse(self.reference(n, generator))
        return Sample(x, self.log_prob(x))


class Matched(nn.Module):
    """The velocity of sbi's FMPE: data at t = 0, noise at t = 1, as here."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, t: Any, x: Tensor, y: Tensor) -> Tensor:
        """The velocity at (t, x) given y."""
        return self.net.ode_fn(x, y, torch.as_tensor(t).expand(len(x)).to(x))


def model_of(key: Mapping[str, Any], d: int, m: int, s: int, box: Box | None = None) -> Any:
    """The untrained map of x in ℝᵈ given y in ℝᵐ; ours know the `box` of the prior."""
    kind, encoder = key["method"], encoder_of(key, m, s)
    seen = m if encoder is None else encoder.context_dim
    like = torch.randn(9, d), torch.randn(9, seen)
    raw: Key = {"z_score_theta": "none", "z_score_x": "none", "hidden_features": key["width"]}
    how: Key = {"context_dim": seen, "width": key["width"], "generator": seeded(s, 0)}
    reads: Key = {"context_dim": m, "encoder": encoder}
    torch.manual_seed(s)  # sbi draws its weights with torch's own seed
    if kind == NPE:
        return Spline(posterior_nn("nsf", **raw, num_transforms=5)(*like), d, m, encoder)
    if kind == FMPE:
        net = Matched(posterior_flow_nn("mlp", **raw)(*like))
        return Flow(net, d, solver={"tol": 1e-4}, **reads)
    if kind == PCP:
        return ConvexMap(ConvexPotential(d, **how, layers=3), d, **reads, box=box)
    phi = ResNetPotential(d, **how)
    return Flow(phi, d, solver={"steps": SOLVED}, **reads, box=box)


def encoder_of(key: Mapping[str, Any], m: int, s: int) -> Encoder | None:
    """The network that reads y first, if the settings have one."""
    how = key.get("encoder")
    return None if how is None else Encoder(m, **how, generator=seeded(s, 3))


def objective(key: Mapping[str, Any], model: Any, x: Tensor, y: Tensor) -> Any:
    """What a training minimises: the terms of OT-Flow, the loss of flow matching, or the NLL."""
    if key["method"] == COT:
        how = {"likelihood": key["alpha"], "hjb": key["beta"], "steps": key["rk4"]}
        return model.objective(x, y, **how)
    if key["method"] == FMPE:
        return model.velocity.net.loss(model.data(x), model.encoded(model.conditions(y))).mean()
    return -model.given(y).log_prob(x).mean()


def steps_of(
    model: Any,
    key: Mapping[str, Any],
    x: Tensor,
    y: Tensor,
    s: int,
    steps: int,
    file: Path | None = None,
) -> Iterator[Step]:
    """The steps of Adam with a rate that falls along a cosine."""
    model.standardize(x, y)
    rows = minibatches(x, y, size=min(key["batch"], len(x)), seed=s)

    def batch(k: int) -> tuple[Tensor, ...]:
        torch.manual_seed(1_000_003 * s + k)  # FMPE's loss draws times and noise with it
        return rows(k)

    def loss(model: Any, batch: Any) -> Any:
        return objective(key, model, *batch)

    clip = autoclip(key["autoclip"]) if "autoclip" in key else key.get("clip")
    how = {"lr": cosine(key["lr"], key["steps"]), "max_grad_norm": clip}
    how |= {"average": key.get("average"), "checkpoint": file, "every": 500}
    yield from train(model, loss, batch, steps=steps, **how)


def learned(
    store: Store, name: str, key: Key, d: int, m: int, data: Pairs, s: int, box: Box | None = None
) -> Fitted:
    """The map that was trained on the pairs `data()`, loaded or trained as the store says."""
    model = model_of(key, d, m, s, box)

    def training(steps: int, file: Path | None) -> Iterator[Step]:
        return steps_of(model, key, *data(), s, steps, file)

    dtype = None if key["method"] == COT else torch.float16  # the rivals have many more weights
    record = store.fit(f"{name}-{s}", model, key | {"seed": s}, training, dtype=dtype)
    return Fitted(model.requires_grad_(False), record)


def mean_nll(model: TransportMap, x: Tensor, y: Tensor) -> float:
    """The mean of −log p(x | y) over pairs."""
    with torch.no_grad(), quietly():
        return -model.given(y).log_prob(x).mean().item()


def quietly() -> warnings.catch_warnings:
    """A block without warnings: of new pairs, a few y lie outside of the range of training."""
    return warnings.catch_warnings(action="ignore")


def by_steps(model: Any, steps: int) -> Any:
    """The same flow with another number of Runge–Kutta steps; other maps as they are."""
    if not isinstance(model, Flow) or "steps" not in model.solver:
        return model
    other = copy.copy(model)  # with the same parameters, as when a context is bound
    other.solver = {**model.solver, "steps": steps}
    return other
