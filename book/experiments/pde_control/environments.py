"""A control problem as an environment for reinforcement learning."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from jaxtyping import Float
from torch import Tensor

from ctdl_lib.control import ControlProblem

Draw = Callable[[torch.Generator], tuple[ControlProblem, Tensor]]
Observe = Callable[[ControlProblem, float, Tensor], np.ndarray]


class ControlEnvironment(gymnasium.Env):
    """The environment whose undiscounted return is −J, where J is the cost of a control problem.

    A step is an explicit Euler step of size h = T/steps, and its reward is −h L(t, x, u). The last
    reward also contains −G(x(T)). An episode is `terminated` at the horizon T. It is never
    truncated, because there is no cost after T.

    Args of the constructor: `draw(generator)` returns the problem of an episode and its start x(0),
    (1, d); `observe(problem, t, x)` returns the observation, an array of float32, which should
    contain the time because the optimal control depends on it; `low` and `high`, (m,), are the
    controls for the actions −1 and 1.

    Raises:
        ValueError: `steps` is not positive, `low` is not below `high`, a problem has noise, or an
            action is not between −1 and 1.
        RuntimeError: `step` is called before `reset`, or after the end of an episode.
    """

    def __init__(
        self,
        draw: Draw,
        observe: Observe,
        *,
        steps: int,
        low: Float[Tensor, " m"],
        high: Float[Tensor, " m"],
    ):
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        if low.shape != high.shape or not (low < high).all():
            raise ValueError(f"low={low.tolist()} must be below high={high.tolist()}")
        self.draw, self.observe, self.steps = draw, observe, steps
        self.low, self.high, self.action_space = low, high, Box(-1.0, 1.0, tuple(low.shape))
        self.problem, self.x = draw(torch.Generator())
        self.k = steps  # `reset` starts an episode
        self.observation_space = Box(-np.inf, np.inf, observe(self.problem, 0.0, self.x).shape)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of a new episode, and an empty dictionary."""
        super().reset(seed=seed)
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**62)))
        self.problem, self.x = self.draw(generator)
        if self.problem.diffusion != 0:
            raise ValueError("an environment has no noise: give a problem with diffusion = 0")
        self.k = 0
        return self.observe(self.problem, 0.0, self.x), {}

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The observation, the reward, whether t = T, False for truncated, and the control."""
        if self.k == self.steps:
            raise RuntimeError("no episode is running: call reset() first")
        u, h, t = self.control(action)[None].to(self.x), self.problem.horizon / self.steps, self.t
        reward = -h * self.problem.running_cost(t, self.x, u)
        self.x, self.k = self.x + h * self.problem.drift(t, self.x, u), self.k + 1
        terminated = self.k == self.steps
        if terminated:
            reward = reward - self.problem.terminal_cost(self.x)
        seen = self.observe(self.problem, self.t, self.x)
        return seen, float(reward), terminated, False, {"control": u[0].numpy()}

    @property
    def t(self) -> float:
        """The time of the current state."""
        return self.problem.horizon * self.k / self.steps

    def control(self, action: np.ndarray) -> Float[Tensor, " m"]:
        """The control low + (high − low)(action + 1)/2."""
        if not (np.abs(action) <= 1).all():  # also refuses NaN
            raise ValueError(f"actions must lie between -1 and 1, got {action}")
        return self.low + (self.high - self.low) * (torch.as_tensor(action).to(self.low) + 1) / 2
