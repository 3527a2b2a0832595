import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_for_baselines

from ctdl_lib.control import rollout
from ctdl_lib.problems.control import LinearQuadratic
from experiments.pde_control.environments import ControlEnvironment
from experiments.pde_control.mitigation import SourceMitigation, draw_basins

LOW, HIGH = torch.zeros(1), torch.full((1,), 3.0)


def basin(generator):
    problem = SourceMitigation(draw_basins(1, generator), nodes=9, steps=5, diffusivity=0.1)
    return problem, problem.start


def seen(problem, t, x):
    field = x.view(9, 9).numpy()
    return np.stack([field, *problem.images[0].numpy(), np.full_like(field, t)]).astype(np.float32)


def environment(draw=basin, observe=seen, steps=5, low=LOW, high=HIGH):
    return ControlEnvironment(draw, observe, steps=steps, low=low, high=high)


def steer(t, x):
    """A policy of the state and of the time, between 0 and 3."""
    return 1.5 + torch.sin(3 * float(t) + x.mean(1, keepdim=True))


def test_the_checkers_of_gymnasium_and_stable_baselines_find_nothing():
    with warnings.catch_warnings():
        # a concentration has no bound, and a field of 9 × 9 nodes is no photograph
        for hint in (".*Box observation space", "It seems that your obs", "The minimal resolution"):
            warnings.filterwarnings("ignore", hint, UserWarning)
        check_env(environment(), skip_render_check=True)
        check_for_baselines(environment())


def test_the_return_is_minus_the_cost_of_the_path():
    env = environment()
    env.reset(seed=3)
    rewards, terminated = [], False
    while not terminated:
        action = (steer(env.t, env.x)[0] / 1.5 - 1).numpy()
        _, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        assert not truncated
    assert len(rewards) == 5
    path = rollout(env.problem, steer, env.problem.start, steps=5)
    assert sum(rewards) == pytest.approx(-float(path.cost), rel=1e-6)
    assert torch.allclose(env.x, path.x[-1], atol=1e-6)  # controls are in single precision


def test_a_step_is_one_solve():
    env = environment()
    env.reset(seed=0)
    for k in range(5):
        env.step(np.zeros(1, np.float32))
        assert env.problem.systems.solves == k + 1
    assert env.problem.systems.adjoint_solves == 0


def test_an_episode_is_decided_by_its_seed():
    env, other = environment(), environment()
    first = env.reset(seed=5)[0]
    assert np.array_equal(first, other.reset(seed=5)[0])
    assert not np.array_equal(env.reset()[0], first)


def test_time_is_seen():
    env = environment()
    assert (env.reset(seed=0)[0][-1] == 0).all()
    assert env.step(np.zeros(1, np.float32))[0][-1] == pytest.approx(0.2)


@pytest.mark.parametrize(("action", "control"), [(-1.0, 0.0), (0.0, 1.5), (1.0, 3.0)])
def test_actions_stand_for_controls(action, control):
    env = environment()
    env.reset(seed=0)
    info = env.step(np.full(1, action, np.float32))[-1]
    assert info["control"] == pytest.approx(control)


@pytest.mark.parametrize("action", [1.01, -3.0, np.nan])
def test_an_action_outside_of_its_bounds_is_refused(action):
    env = environment()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="between -1 and 1"):
        env.step(np.full(1, action, np.float32))


def test_an_episode_has_a_beginning_and_an_end():
    env = environment()
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    for _ in range(5):
        env.step(np.zeros(1))
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(np.zeros(1))


def test_bounds_and_steps_must_make_sense():
    with pytest.raises(ValueError, match=r"low=.* must be below high"):
        environment(low=HIGH, high=LOW)
    with pytest.raises(ValueError, match="steps=0"):
        environment(steps=0)


def linear(sigma):
    return LinearQuadratic(torch.zeros(2), 1.0, sigma)


def test_noise_is_refused():
    env = environment(
        lambda g: (linear(0.5), torch.ones(1, 2)),
        lambda problem, t, x: np.append(x[0].numpy(), t).astype(np.float32),
        low=torch.zeros(2),
        high=torch.ones(2),
    )
    with pytest.raises(ValueError, match="no noise"):
        env.reset(seed=0)


def test_any_control_problem_makes_an_environment():
    env = environment(
        lambda g: (linear(0.0), torch.randn(1, 2, generator=g)),
        lambda problem, t, x: np.append(x[0].numpy(), t).astype(np.float32),
        steps=20,
        low=-torch.ones(2),
        high=torch.ones(2),
    )
    assert isinstance(env, gymnasium.Env)
    x, _ = env.reset(seed=1)
    total, terminated = 0.0, False
    while not terminated:
        x, reward, terminated, _, _ = env.step(-0.5 * np.tanh(x[:2]))
        total += reward
    assert total < 0
