"""SAC: its backup, its temperature, and an actor that climbs the smaller of the critics just updated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.agents.analytic import (
    critic_state,
    distance,
    initial,
    small_agent,
    small_batch,
    update,
    with_critic_of,
    with_hyperparameters,
    with_part,
    with_values,
)


class FixedPolicy:
    """Always the same action and log-probability; it has nothing to learn."""

    def __init__(self, policy: Any, action: Any, log_prob: float) -> None:
        self.policy, self.action, self.log_prob = policy, jnp.asarray(action), log_prob

    def sample(self, params: Any, observation: jax.Array, key: jax.Array) -> Any:
        shape = (
            (observation.shape[0], 2) if self.action.ndim == 0 else (observation.shape[0], len(self.action))
        )
        return jnp.broadcast_to(self.action, shape), jnp.full(shape[:1], self.log_prob)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


def with_log_temperature(state: Any, value: Any) -> Any:
    return state._replace(
        log_temperature=state.log_temperature._replace(params=jnp.asarray(value, jnp.float32))
    )


# ---- Acting -------------------------------------------------------------------------------------------------------


def test_evaluation_takes_the_mean_action_and_exploration_samples():
    agent = small_agent("sac")
    state = initial(agent)
    observation = jnp.broadcast_to(jnp.array([0.5, -1.0, 2.0]), (4000, 3))
    mean, log_std = agent.policy.apply(state.actor.params, observation[:1])
    act = jax.jit(agent.act, static_argnames="mode")
    evaluated = act(state, observation[:5], jax.random.key(0), mode="evaluate")
    np.testing.assert_allclose(evaluated, np.repeat(np.tanh(mean), 5, axis=0), rtol=1e-5)
    explored = np.asarray(act(state, observation, jax.random.key(1), mode="explore"), np.float64)
    assert np.abs(explored).max() <= 1.0
    u = np.arctanh(np.clip(explored, -1 + 1e-7, 1 - 1e-7))
    np.testing.assert_allclose(u.mean(axis=0), mean[0], atol=0.1)
    np.testing.assert_allclose(u.std(axis=0), np.exp(log_std[0]), rtol=0.1)


# ---- Learning -----------------------------------------------------------------------------------------------------


def test_entropy_is_in_the_backup():
    log_prob, action = -1.5, 0.25
    plain, batch = small_agent("sac"), small_batch(0)
    agent = with_part(plain, policy=FixedPolicy(plain.policy, action, log_prob))
    # Targets of their own, so that online and target critics cannot be confused.
    state = with_critic_of(with_log_temperature(initial(plain), jnp.log(0.2)), initial(plain, seed=9))
    next_values = plain.critic.value(state.critic.target, batch.next_observation, jnp.full((8, 2), action))
    soft = np.asarray(next_values).min(axis=0) - 0.2 * log_prob
    expected = np.asarray(batch.reward) + np.asarray(batch.discount) * soft
    _, metrics = update(agent, state)
    assert float(metrics["critic/target"].total) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(metrics["policy/entropy"].total) == pytest.approx(1.5)


def test_saturation_counts_both_bounds():
    plain = small_agent("sac")
    agent = with_part(plain, policy=FixedPolicy(plain.policy, [-1.0, 1.0, 0.0], 0.0))
    agent = type(agent)(agent.config, 3, 3)
    state = jax.jit(agent.init)(jax.random.key(0))
    batch = small_batch(0)
    batch = batch._replace(action=jnp.zeros((8, 3)))
    assert float(update(agent, state, batch=batch)[1]["policy/saturation"].total) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("target", "direction"), [(-100.0, -1.0), (100.0, 1.0)])
def test_temperature_moves_the_policy_towards_its_target_entropy(target: float, direction: float):
    agent = small_agent("sac")
    state = with_hyperparameters(initial(agent), target_entropy_per_action=target)
    new_state, metrics = update(agent, state)
    entropy = float(metrics["policy/entropy"].total)
    assert -200 < entropy < 200
    # Entropy above its target lowers the temperature; Adam's first step is the learning rate itself.
    moved = float(new_state.log_temperature.params - state.log_temperature.params)
    assert moved == pytest.approx(direction * 3e-4, rel=1e-3)


def test_temperature_rests_at_the_target_entropy():
    agent = small_agent("sac")

    def gradient(log_prob: float) -> float:
        return float(
            agent.temperature_gradient(jnp.float32(0.3), jnp.full((4,), log_prob), jnp.float32(-0.5))
        )

    # Two components: the target entropy is -1.
    assert gradient(1.0) == pytest.approx(0.0, abs=1e-7)
    # Half a nat above, alpha 0.3: by log alpha the gradient is alpha (entropy - target).
    assert gradient(0.5) == pytest.approx(0.15)


def linear(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """Q_i = slope_i (a_1 + a_2) + offset_i."""
    return params["slope"][:, None] * action.sum(axis=1)[None] + params["offset"][:, None]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_actor_climbs_the_smaller_of_the_critics_just_updated(order: tuple[int, int]):
    """Two critics far apart that slope against one another, and whose step turns each slope around.

    Their mean is flat; the larger one, or the smaller one of before its step, has the other slope.
    """
    plain = small_agent("sac")
    agent = with_values(plain, linear)
    # Adam's first step is the rate itself: the smaller critic's slope goes from 1 to -2 and the other's from -1 to 2.
    place = np.array(order)
    params = {"slope": jnp.array([1.0, -1.0])[place], "offset": jnp.array([-100.0, 100.0])[place]}
    state = initial(plain)._replace(critic=critic_state(params))
    state = with_hyperparameters(state, critic_learning_rate=3.0, actor_learning_rate=1e-2)
    state = with_log_temperature(state, -30.0)
    # Values of -100 lie below the targets and of 100 above them: with actions of sum -1, slopes move by these signs.
    batch = small_batch(0)._replace(action=jnp.full((8, 2), -0.5), reward=jnp.zeros(8), discount=jnp.zeros(8))
    new_state, metrics = update(agent, state, batch=batch)
    after = new_state.critic.online.params
    np.testing.assert_allclose(np.asarray(after["slope"])[place], [-2.0, 2.0], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(after["offset"])[place], [-97.0, 97.0], rtol=1e-4)

    actor_key = jax.random.split(jax.random.key(1))[1]
    action, _ = agent.policy.sample(state.actor.params, batch.observation, actor_key)
    expected = -2.0 * float(action.sum(axis=1).mean()) - 97.0
    assert float(metrics["policy/q"].total) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["actor/loss"].total) == pytest.approx(-expected, rel=1e-4)
    before, moved = (agent.policy.mode(s.actor.params, batch.observation) for s in (state, new_state))
    # Down the slope of 1 that it had, up that of -2 that it has now.
    assert float((moved - before).sum(axis=1).max()) < 0.0


def test_actor_ascends_smaller_critic_plus_entropy():
    agent, batch = small_agent("sac"), small_batch(0)
    state = with_hyperparameters(initial(agent), actor_learning_rate=1e-3)
    state = with_log_temperature(state, jnp.log(0.7))
    new_state, metrics = update(agent, state)
    # The loss is alpha log pi - min Q, so its metric follows from the other two.
    expected = -0.7 * float(metrics["policy/entropy"].total) - float(metrics["policy/q"].total)
    assert float(metrics["actor/loss"].total) == pytest.approx(expected, rel=1e-5)

    @jax.jit
    def objective(params: Any) -> jax.Array:
        observation = jnp.repeat(batch.observation, 200, axis=0)
        action, log_prob = agent.policy.sample(params, observation, jax.random.key(2))
        value = agent.critic.reduced_value(new_state.critic.online.params, observation, action)
        return (value - 0.7 * log_prob).mean()

    assert float(objective(new_state.actor.params)) > float(objective(state.actor.params))


def test_target_critics_follow_the_critics_just_updated():
    agent = small_agent("sac")
    state = with_hyperparameters(initial(agent), target_rate=0.25)
    new_state, _ = update(agent, state)
    before, after = state.critic.target, new_state.critic
    expected = jax.tree.map(lambda old, new: old + 0.25 * (new - old), before, after.online.params)
    assert distance(after.target, expected) < 1e-6


def test_the_initial_temperature_is_an_option():
    state = initial(small_agent("sac", initial_temperature=0.2))
    assert float(jnp.exp(state.log_temperature.params)) == pytest.approx(0.2)
