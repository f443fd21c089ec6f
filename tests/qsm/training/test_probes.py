"""Every agent solves environments of known value through the real loop: small networks, defaults otherwise.

SAC's values hold its entropy bonus: where it bootstraps, the known value is the soft one, worked out from the
temperature and the entropy that its policy has in the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.api import Agent
from envs.api import HostEnvironment
from qsm.learning.learner import Learner
from qsm.loops.host_loop import HostLoop
from qsm.options.run import RunConfig
from tests.probe_environments import (
    ActionReward,
    ConstantReward,
    DelayedReward,
    ObservationReward,
    TruncatedReward,
)
from tests.recorder import Recorder

NAMES = list(agents.AGENTS)
# A thirtieth of the arithmetic of the defaults; learning rates follow the width.
SMALL = {"hidden_sizes": (64, 64), "batch_size": 64}
LEARNING_RATE = 1e-3
RANDOM_STEPS = 250
ACTIONS = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]


@functools.cache
def learner_of(name: str) -> Learner:
    """One for all probes: they have the same sizes, and what is swept is in the state."""
    agent = agents.make_agent(name, 1, 1, **SMALL)
    return Learner(agent, ConstantReward().spec, seeds=0, capacity=4096)


def solve(name: str, environment: HostEnvironment, num_updates: int, **hyperparameters: float) -> Any:
    """The learned state after `num_updates` updates, one an environment step."""
    learner = learner_of(name)
    config = RunConfig(steps=RANDOM_STEPS + num_updates, random_steps=RANDOM_STEPS, replay_capacity=4096)
    loop = HostLoop(learner, [environment], [], config)
    state = loop.begin()
    rates = [key for key in state.agent.hyperparameters if key.endswith("learning_rate")]
    hyperparameters = dict.fromkeys(rates, LEARNING_RATE) | hyperparameters
    if unknown := set(hyperparameters) - set(state.agent.hyperparameters):
        raise ValueError(f"{name} has no hyperparameters {unknown}")
    values = {key: jnp.full(1, value, jnp.float32) for key, value in hyperparameters.items()}
    state = state._replace(agent=state.agent._replace(hyperparameters=state.agent.hyperparameters | values))
    state, counters = Recorder().run(loop, state)
    assert counters.num_updates == num_updates
    return jax.tree.map(lambda leaf: leaf[0], state.agent)


def values(name: str, state: Any, observation: float) -> np.ndarray:
    """Q `[E, 7]` of each critic for actions from -0.9 to 0.9."""
    agent: Any = learner_of(name).agent
    return np.asarray(_values(agent, state, np.full((len(ACTIONS), 1), observation, np.float32)))


@functools.partial(jax.jit, static_argnums=0)
def _values(agent: Any, state: Any, observation: jax.Array) -> jax.Array:
    return agent.critic.value(state.critic.online.params, observation, ACTIONS)


def entropy_bonus(name: str, state: Any, observation: float) -> float:
    """Temperature times the policy's entropy; zero without a temperature."""
    agent: Any = learner_of(name).agent
    if not hasattr(state, "log_temperature"):
        return 0.0
    observations = np.full((4096, 1), observation, np.float32)
    _, log_prob = jax.jit(agent.policy.sample)(state.actor.params, observations, jax.random.key(0))
    return float(-jnp.exp(state.log_temperature.params) * log_prob.mean())


def evaluated_actions(name: str, state: Any) -> np.ndarray:
    """256 actions of the policy in evaluation, at observation 0."""
    agent: Agent = learner_of(name).agent
    act: Callable[..., jax.Array] = jax.jit(functools.partial(agent.act, mode="evaluate"))
    return np.asarray(act(state, np.zeros((256, 1), np.float32), jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_constant_reward(name: str):
    state = solve(name, ConstantReward(), num_updates=500)
    np.testing.assert_allclose(values(name, state, 0.0), 1.0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_observation_reward(name: str):
    state = solve(name, ObservationReward(), num_updates=500)
    np.testing.assert_allclose(values(name, state, 1.0), 1.0, atol=0.1)
    np.testing.assert_allclose(values(name, state, -1.0), -1.0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_delayed_reward(name: str):
    state = solve(name, DelayedReward(), num_updates=1500)
    np.testing.assert_allclose(values(name, state, 1.0).mean(), 1.0, atol=0.1)
    expected = 0.99 * (1.0 + entropy_bonus(name, state, 1.0))
    np.testing.assert_allclose(values(name, state, 0.0).mean(), expected, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_time_limit_bootstraps(name: str):
    """At gamma 0.5 the value is 2; who takes the limit for a termination learns 4/3."""
    num_updates = 2500 if name == "td3" else 1500  # its targets move in every second update only
    state = solve(name, TruncatedReward(episode_steps=2), num_updates, discount=0.5)
    np.testing.assert_allclose(
        values(name, state, 0.0).mean(), 2.0 + entropy_bonus(name, state, 0.0), atol=0.15
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_updates"),
    [
        ("qsm-clean", 1500),
        ("sac", 2250),
        ("td3", 2500),
        ("diffusion-ql", 1500),
        ("diffusion-pg", 1500),
        ("langevin", 1500),
    ],
)
def test_action_reward(name: str, num_updates: int):
    state = solve(name, ActionReward(optimum=0.3), num_updates)
    expected = 1.0 - (ACTIONS[:, 0] - 0.3) ** 2
    near = np.abs(ACTIONS[:, 0] - 0.3) <= 0.3  # where a policy that solved it has been of late
    np.testing.assert_allclose(values(name, state, 0.0).mean(axis=0)[near], expected[near], atol=0.1)
    actions = evaluated_actions(name, state)
    assert abs(actions.mean() - 0.3) < 0.1
    assert np.mean((actions - 0.3) ** 2) < 0.05  # uniform actions: 0.42


@pytest.mark.slow
@pytest.mark.parametrize("optimum", [-1.0, 1.0])
def test_action_reward_with_published_qsm(optimum: float):
    """At the paper's score scale every sample goes to a bound, so the optimum lies at one."""
    state = solve("qsm", ActionReward(optimum=optimum), num_updates=350, score_scale=50.0)
    np.testing.assert_allclose(values("qsm", state, 0.0).mean(axis=0), optimum * ACTIONS[:, 0], atol=0.1)
    np.testing.assert_allclose(evaluated_actions("qsm", state), optimum, atol=0.01)
