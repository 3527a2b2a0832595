"""zuko's continuous flow and its spline flow, with about as many parameters as ours."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import zuko
from torch import Tensor, nn

from ctdl_lib.learning import Step, cosine, train
from ctdl_lib.problems.densities import TOYS
from machinery.seeds import seeded
from machinery.store import Store

from .training import POINTS, RATES, WATCHED, best_rate, held_out

CNF, SPLINES = "zuko's continuous flow", "zuko's spline flow"
PEERS: dict[str, Callable[[], nn.Module]] = {
    CNF: lambda: zuko.flows.CNF(2, hidden_features=(90, 90), atol=1e-5, rtol=1e-5),
    SPLINES: lambda: zuko.flows.NSF(2, transforms=3, hidden_features=(36, 36)),
}


@dataclass(frozen=True)
class Settings:
    """The settings of one training. The rate falls along a cosine, as for ours."""

    peer: str
    density: str
    steps: int = 600
    batch: int = 250
    lr: float = RATES[0]
    zuko: str = zuko.__version__


class Peer(nn.Module):
    """A flow of zuko with the `log_prob` of ours."""

    def __init__(self, name: str, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # zuko draws from torch's global generator
            torch.manual_seed(seed)
            self.flow = PEERS[name]()

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density at x."""
        return self.flow().log_prob(x)


@dataclass(frozen=True)
class Study:
    """The rate that was best on seed 0; the gaps in nats and the seconds of all seeds."""

    rate: float
    gaps: list[float]
    seconds: list[float]


def steps_of(
    peer: Peer, key: Settings, seed: int, steps: int, file: Path | None = None
) -> Iterator[Step]:
    """The first `steps` steps of a training, resumed from `file` if that exists."""
    batch = lambda k: TOYS[key.density].sample(key.batch, seeded(seed, k + 1))  # noqa: E731
    loss = lambda peer, x: -peer.log_prob(x).mean()  # noqa: E731
    return train(peer, loss, batch, steps=steps, lr=cosine(key.lr, key.steps), checkpoint=file)


def study(store: Store, name: str, seeds: Sequence[int], density: str = "8gaussians") -> Study:
    """What a peer is worth at its best rate, measured once and kept."""
    smoke, key = store.run == "smoke", Settings(name, density)

    def outcome(lr: float, seed: int, points: int) -> tuple[float, float]:
        tried = replace(key, lr=lr)
        *_, last = steps_of(peer := Peer(name, seed), tried, seed, 2 if smoke else key.steps)
        x = held_out(density, 50 if smoke else points)
        with torch.no_grad():
            gap = (TOYS[density].log_prob(x) - peer.log_prob(x)).mean().item()
        return gap, last.seconds

    def compute() -> dict[str, object]:
        found = {str(lr): outcome(lr, 0, WATCHED)[0] for lr in RATES[: 1 if smoke else None]}
        rate = best_rate(found)
        gaps, seconds = zip(*(outcome(rate, s, POINTS) for s in seeds), strict=True)
        return {"rate": rate, "gaps": list(gaps), "seconds": list(seconds)}

    settings = asdict(key) | {"rates": list(RATES), "seeds": list(seeds), "points": POINTS}
    stem = name.replace("'s", "").replace(" ", "-")
    return Study(**store.measure(f"peer-{density}-{stem}", settings, compute).numbers)
