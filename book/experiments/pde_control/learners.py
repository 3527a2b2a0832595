"""Four learners that spend solves: two that know the solver, and two that see it from outside."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from ctdl_lib.control import objective, rollout
from ctdl_lib.control.rollouts import Rollout
from ctdl_lib.learning import cosine, train
from ctdl_lib.potentials import AutodiffPotential
from machinery.seeds import seeded

from .environments import ControlEnvironment
from .mitigation import SourceMitigation, draw_basins
from .networks import WIDEST, Encoder, Split, picture, steering, untrained

STEPS = 25
WORKERS = 8  # environments of an agent
SLICE = 4000  # solves between two exams
FEW = 50  # in a trial run
AGENTS = ("ppo", "td3")


def draw(count: int, s: int, nodes: int = 17, **box: Any) -> SourceMitigation:
    """So many random basins."""
    return SourceMitigation(draw_basins(count, seeded(s), **box), nodes=nodes)


class Learner(NamedTuple):
    """The model that acts, and its training, which yields the number of solves so far."""

    model: nn.Module
    training: Iterator[int]


def learner(kind: str, seed: int, how: dict[str, Any], *, few: bool = False) -> Learner:
    """A learner before its training."""
    torch.manual_seed(seed)
    if kind in AGENTS:
        found = agent(kind, seed, few=few, **how)
        model = found.policy if kind == "ppo" else found.actor
        return Learner(model, _model_free(found, FEW if few else SLICE))
    model = untrained(kind)
    if kind == "split":
        return Learner(model, _split(model, seed, how, few))
    return Learner(model, _model_based(kind, model, seed, few=few, **how))


# --- learners that know the solver --------------------------------------------------------------


def _basins(seed: int, k: int, batch: int, few: bool) -> SourceMitigation:
    """The fresh basins of iteration k."""
    return draw(2 if few else batch, 10_000 * seed + k)


def _model_based(
    kind: str,
    model: Any,
    seed: int,
    *,
    lr: float,
    batch: int,
    clip: float | None,
    beta: float = 0.0,
    few: bool = False,
) -> Iterator[int]:
    """Train the value function, or a direct policy, through the solver."""
    solves, drawn = 0, []

    def basins(k: int) -> SourceMitigation:
        drawn[:] = [_basins(seed, k, batch, few)]
        return drawn[0]

    def loss(_: nn.Module, problem: SourceMitigation) -> Any:
        x = problem.start.float()
        if kind != "hjb":
            return rollout(problem, steering(kind, model, problem), x, steps=STEPS).cost.mean()
        weights: dict[str, Any] = {"bsde": beta, "terminal": beta}
        return objective(problem, model.given(problem.images.float()), x, steps=STEPS, **weights)

    for _ in train(model, loss, basins, steps=10**6, lr=lr, max_grad_norm=clip):
        solves += drawn[0].systems.solves + drawn[0].systems.adjoint_solves
        yield solves


class Ledger(NamedTuple):
    """What paths have spent in each step, (steps, batch), and what is to pay, (nodes, batch)."""

    spent: Tensor
    to_go: Tensor


@torch.no_grad()
def ledger(problem: SourceMitigation, policy: Any, path: Rollout) -> Ledger:
    """The costs along the paths of a policy."""
    x = path.x.detach()
    t, rows = path.t[:-1].repeat_interleave(x.shape[1]), x[:-1].flatten(0, 1)
    h = problem.horizon / (len(path.t) - 1)
    spent = h * problem.running_cost(t, rows, policy(t, rows)).view(x[1:].shape[:2])
    parts = torch.cat([spent, problem.terminal_cost(x[-1])[None]])
    return Ledger(spent, parts.flip(0).cumsum(0).flip(0))


Replay = tuple[Tensor, Tensor, Tensor]


def replay(images: Tensor, targets: Tensor, dice: int, size: int = 64) -> Replay:
    """Random nodes of random paths: their times, basins, and what V₀ should be there."""
    generator = seeded(dice)
    rows = torch.randint(len(images), (size,), generator=generator)
    nodes = torch.randint(STEPS + 1, (size,), generator=generator)
    return nodes / STEPS, images[rows], targets[rows, nodes]


def height_loss(height: nn.Module, drawn: Replay) -> Tensor:
    """The mean distance of V₀ from what was to pay, less what φ says of it."""
    t, images, target = drawn
    return (height(t, images, len(t))[:, 0] - target).abs().mean()


@torch.no_grad()
def own_paths(net: Split, problem: SourceMitigation) -> tuple[Tensor, Tensor]:
    """The basins as images, and the wanted V₀ at the nodes of the own paths, (batch, nodes)."""
    policy = steering("split", AutodiffPotential(net), problem)
    path = rollout(problem, policy, problem.start.float(), steps=STEPS)
    images, t = problem.images.float(), path.t.repeat_interleave(len(problem.source))
    to_go = ledger(problem, policy, path).to_go
    above = net.above(t, path.x.flatten(0, 1), images).view(to_go.shape)
    return images, (to_go - above).T


def _terms(
    model: Any, problem: SourceMitigation, beta: float
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """The terms of the objective for φ, whose penalties take V₀ as it is, and the wanted V₀."""
    net, policy = model.net, steering("split", model, problem)
    path = rollout(problem, policy, problem.start.float(), steps=STEPS)
    images, x = problem.images.float(), path.x.detach()
    paid, t = ledger(problem, policy, path), path.t.repeat_interleave(x.shape[1])
    above = net.above(t, x.flatten(0, 1), images).view(paid.to_go.shape)
    with torch.no_grad():
        value = net.height(t, images, len(t)).view(above.shape)
    value = value + above
    defects = (value.diff(dim=0) + paid.spent).abs().mean(1).sum()
    end = (value[-1] - paid.to_go[-1]).abs().mean()
    terms = {"cost": path.cost.mean(), "bsde": beta * defects, "terminal": beta * end}
    return terms, (images, (paid.to_go - above.detach()).T)


def _split(model: Any, seed: int, how: dict[str, Any], few: bool) -> Iterator[int]:
    """Train φ by the cost of its feedback, and V₀ by regression on the cost to go of those paths.

    The regression takes `replays` steps an iteration on the newer half of all basins seen so far,
    and no further solve. Both rates fall to zero after `decay` solves.
    """
    net, solves, drawn, seen = model.net, 0, [], []

    def basins(k: int) -> SourceMitigation:
        drawn[:] = [_basins(seed, k, how["batch"], few)]
        return drawn[0]

    def loss(_: nn.Module, problem: SourceMitigation) -> dict[str, Tensor]:
        terms, wanted = _terms(model, problem, how["beta"])
        seen.append(wanted)
        return terms

    def sample(k: int) -> Replay:
        newer = seen[len(seen) // 2 :]
        images, targets = (torch.cat(part) for part in zip(*newer, strict=True))
        return replay(images, targets, 10_000 * seed + k)

    last = how["decay"] // (2 * STEPS * how["batch"])
    rates = cosine(how["lr"], last), cosine(how["height_lr"], last * how["replays"])
    keep = {"steps": 10**6, "max_grad_norm": how["clip"]}
    heights = train(net.height, height_loss, sample, lr=rates[1], **keep)
    for _ in train(net.shape, loss, basins, lr=rates[0], **keep):
        for _ in range(how["replays"]):
            next(heights)
        solves += drawn[0].systems.solves + drawn[0].systems.adjoint_solves
        yield solves


# --- learners that do not -----------------------------------------------------------------------


class Features(BaseFeaturesExtractor):
    """The same encoder, as stable-baselines3 wants it."""

    def __init__(self, space: Any):
        super().__init__(space, features_dim=64)
        self.encoder = Encoder()

    def forward(self, seen: Tensor) -> Tensor:
        """The features."""
        return self.encoder(seen)


def environment() -> ControlEnvironment:
    """A basin, new in each episode, that is told an opening and tells what it costs."""

    def episode(generator: torch.Generator) -> tuple[SourceMitigation, Tensor]:
        problem = SourceMitigation(draw_basins(1, generator))
        return problem, problem.start

    def observe(problem: Any, t: float, x: Tensor) -> np.ndarray:
        return picture(t, x.float(), problem.images)[0].numpy()

    bounds = {"low": torch.zeros(1), "high": torch.full((1,), WIDEST)}
    return ControlEnvironment(episode, observe, steps=STEPS, **bounds)


def agent(
    kind: str,
    seed: int,
    *,
    lr: float,
    noise: float = 0.0,
    few: bool = False,
    **how: Any,
) -> Any:
    """PPO or TD3 of stable-baselines3 with our encoder and one hidden layer."""
    workers = DummyVecEnv([environment] * WORKERS)
    net: dict[str, Any] = {
        "features_extractor_class": Features,
        "net_arch": [64],
        "activation_fn": nn.SiLU,
    }
    how |= {"gamma": 1.0, "learning_rate": lr, "seed": seed, "device": "cpu"}
    if kind == "ppo":
        how |= {"n_steps": 25, "batch_size": 25} if few else {}
        return PPO("MlpPolicy", workers, policy_kwargs=net, **how)
    how |= {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, noise))}
    how |= {"buffer_size": 50_000, "learning_starts": 100 if few else 4000, "train_freq": 1}
    return TD3("MlpPolicy", workers, policy_kwargs=net, **how)


def _model_free(learner: Any, every: int) -> Iterator[int]:
    """Let an agent learn."""
    while True:
        learner.learn(every, reset_num_timesteps=False)
        yield learner.num_timesteps
