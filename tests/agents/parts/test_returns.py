"""Running statistics of returns, and the rewards that a batch then has."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.parts import critic, heads, normalizer
from agents.parts.types import Transition
from envs.api import StepType, TimeStep
from tests.agents.analytic import initial, small_agent, small_batch


def rows(reward: Any, first: Any) -> TimeStep:
    reward = jnp.asarray(reward, jnp.float32)
    step_type = jnp.where(jnp.asarray(first), StepType.FIRST, StepType.MID).astype(jnp.int8)
    return TimeStep(step_type, reward, jnp.ones_like(reward), jnp.zeros((len(reward), 1)))  # type: ignore[arg-type]


observe_returns = jax.jit(normalizer.observe_returns)


def stream(number: int, length: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, whether a row is a first one, and whether it was measured; `[length, number]`, NaN where it was not."""
    rng = np.random.default_rng(0)
    first, valid = rng.random((length, number)) < 0.15, rng.random((length, number)) < 0.9
    reward = np.where(valid & ~first, rng.normal(1.0, 3.0, (length, number)), np.nan)
    return reward, first, valid


@pytest.mark.parametrize("number", [1, 3, normalizer.TRACKED + 2])
def test_statistics_of_returns_are_those_of_numpy(number: int):
    """Over rows of any number of environments, of which as many are followed as there is room for."""
    reward, first, valid = stream(number)
    returns = normalizer.init_returns()
    seen: list[float] = []
    running = np.zeros(number)
    for row in zip(reward, first, valid, strict=True):
        returns = observe_returns(returns, rows(row[0], row[1]), jnp.asarray(row[2]), 0.9)
        for i in range(min(number, normalizer.TRACKED)):
            if row[2][i]:
                running[i] = 0.0 if row[1][i] else row[0][i] + 0.9 * running[i]
                seen += [] if row[1][i] else [running[i]]
    assert float(returns.statistics.count) == len(seen)
    np.testing.assert_allclose(returns.statistics.mean, np.mean(seen), rtol=1e-4)
    np.testing.assert_allclose(returns.statistics.variance, np.var(seen), rtol=1e-4)
    assert float(returns.largest) == pytest.approx(np.abs(seen).max(), rel=1e-5)
    np.testing.assert_allclose(returns.running[:number], running[: normalizer.TRACKED], rtol=1e-4, atol=1e-4)


def test_rewards_are_scaled_by_the_deviation_or_held_to_the_bound():
    returns = normalizer.init_returns()
    assert float(normalizer.reward_scale(returns, 5.0)) == pytest.approx(1.0)  # as they are, of nothing
    for reward in (0.0, 10.0, 0.0, 10.0):
        returns = observe_returns(returns, rows([reward], [False]), jnp.array([True]), 0.0)
    assert float(normalizer.reward_scale(returns, 5.0)) == pytest.approx(5.0)  # std 5, largest 10
    assert float(normalizer.reward_scale(returns, 1.0)) == pytest.approx(10.0)
    for _ in range(5):  # a start and what was not measured change nothing
        same = observe_returns(returns, rows([np.nan, 1e9], [False, True]), jnp.array([False, True]), 0.0)
        np.testing.assert_array_equal(same.statistics.variance, returns.statistics.variance)
        np.testing.assert_array_equal(same.largest, returns.largest)


def test_rewards_times_ten_change_nothing_that_is_learned_from():
    """An agent sees the rewards of a batch in units of its returns, and says which."""
    agent = small_agent("sac", normalize_rewards=True, critic_head="c51", num_atoms=11)
    seen = []
    for factor in (1.0, 10.0):
        state = initial(agent)
        for reward in (1.0, -2.0, 3.0, 0.5):
            state = agent.observe(state, rows([factor * reward], [False]), jnp.array([True]))
        batch = small_batch(0)
        batch = agent.normalized_batch(state, batch._replace(reward=factor * batch.reward))
        seen.append((batch.reward, float(batch.scale)))
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-4)
    assert seen[1][1] == pytest.approx(10 * seen[0][1], rel=1e-4)


@pytest.mark.parametrize("observations", [False, True])
def test_both_statistics_stand_side_by_side(observations: bool):
    agent = small_agent("sac", normalize_rewards=True, normalize_observations=observations)
    step = rows([1.0, 2.0], [False, True])._replace(observation=jnp.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))
    state = jax.jit(agent.observe)(initial(agent), step, jnp.ones(2, bool))
    assert float(state.normalizer.returns.statistics.count) == 1.0
    if observations:
        np.testing.assert_allclose(state.normalizer.observation.mean, [2.0, 3.0, 4.0])
        np.testing.assert_allclose(agent.normalized(state, jnp.array([[2.0, 3.0, 4.0]])), 0.0, atol=1e-6)
    else:
        assert state.normalizer.observation == ()
        np.testing.assert_array_equal(agent.normalized(state, jnp.ones((1, 3))), 1.0)


# ---- Values at earlier scales -------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Two members that value everything at one number, which is all that they learn."""

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.param("value", nn.initializers.zeros, ()), (2, observation.shape[0], 1))


def transitions(reward: float, scale: float) -> Transition:
    """`small_batch`, all of it paid `reward`, as the networks see it at `scale`."""
    batch = small_batch(0)
    paid = jnp.full_like(batch.reward, reward / scale)
    return batch._replace(reward=paid, discount=jnp.full_like(paid, 0.9), scale=jnp.float32(scale))


@pytest.mark.parametrize("rescales", [True, False])
def test_a_value_does_not_change_with_the_scale_of_rewards(rescales: bool):
    """Critics that always say V / scale, and slow copies of them, back up (r + 0.9 V) / scale whatever came before."""
    network: Any = Constant()
    critics = critic.Critic(network, heads.Scalar(), rescales=rescales)
    batch = transitions(2.0, 1.0)
    state = critics.init_state(jax.random.key(0), batch.observation, batch.action)
    for scale in (1.0, 1.5, 3.0, 2.0, 8.0, 8.0):
        batch = transitions(2.0, scale)
        target = critics.target(state, batch, batch.action)
        helped = critics.target(state, batch, batch.action, jnp.ones_like(batch.reward))
        # A bonus is none of the values that were learned: it is added as it is.
        np.testing.assert_allclose(helped.content - target.content, 0.9, rtol=1e-5)
        if scale > 1.0:
            backed_up = float(target.content[0]) * scale
            assert (backed_up == pytest.approx(2.0 + 0.9 * 7.0, rel=1e-5)) == rescales
        state, _, _ = critics.regress(state, batch, target, 0.0)
        state = state._replace(online=state.online._replace(params={"params": {"value": 7.0 / scale}}))
        if scale == 1.0:
            state = state._replace(target=state.online.params)
        state = critics.follow(state, 0.3)
    assert rescales or state.units == ()


@pytest.mark.parametrize("name", [*agents.AGENTS, "batchnorm"])
def test_agents_know_the_scale_that_their_critics_learned_at(name: str):
    options = {"critic_torso": "batchnorm"} if name == "batchnorm" else {}
    agent = small_agent(
        "td3" if options else name, normalize_rewards=True, rescale_targets=True, target_rate=0.25, **options
    )
    state, update = initial(agent), jax.jit(agent.update)
    batch = small_batch(0)
    discounts = []
    for number, reward in enumerate((1.0, 8.0, 3.0)):
        state = agent.observe(state, rows([reward], [False]), jnp.array([True]))
        seen = agent.normalized_batch(state, batch)
        discount = agent.critic.at_next(state.critic, seen, None)[0]
        discounts.append(np.asarray(discount / batch.discount))
        before = state.critic.units
        state, _ = update(state, batch, jax.random.key(number), jnp.asarray(2 * number + 1))
        online, target = state.critic.units
        assert float(online) == pytest.approx(1 / float(seen.scale), rel=1e-5)
        rate = 1.0 if options or not number else 0.25
        assert float(target) == pytest.approx(
            float(before.target) + rate * float(online - before.target), rel=1e-5
        )
    terminal = np.asarray(batch.discount) == 0
    np.testing.assert_allclose(discounts[0][~terminal], 1.0)
    assert np.all(discounts[1][~terminal] < 0.6)
