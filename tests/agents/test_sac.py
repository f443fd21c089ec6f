from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from agents import networks, sac
from tests.agents.analytic import distance, initial, small_agent, small_batch, update, with_hyperparameters

METRICS = {
    *(f"critic/{name}" for name in ("q_replay", "target", "td_error_abs", "loss", "disagreement")),
    "actor/loss",
    "actor/temperature",
    "policy/entropy",
    "policy/q",
    "policy/saturation",
}


def fixed_sample(agent: Any, action: float, log_prob: float) -> Any:
    """`agent` whose policy always answers with the same action and log-probability."""

    class Fixed(type(agent)):
        def sample(self, actor_params: Any, observation: jax.Array, key: jax.Array) -> Any:
            batch = observation.shape[0]
            return jnp.full((batch, self.action_size), action), jnp.full((batch,), log_prob)

    return Fixed(agent.config, agent.observation_size, agent.action_size)


# ---- Log-probability ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.3), (-1.5, 0.5), (0.3, 0.05), (0.0, 2.0)])
def test_density_integrates_to_one_and_matches_the_distribution(mean: float, std: float):
    # Cells uniform in the probability of u, so that narrow densities and those heaped at the bounds are both resolved.
    u = np.linspace(mean - 8 * std, mean + 8 * std, 4001)
    log_prob = sac.log_probability(
        jnp.asarray(u, jnp.float32)[:, None], jnp.full((4001, 1), mean), jnp.full((4001, 1), math.log(std))
    )
    density = np.exp(np.asarray(log_prob, np.float64))
    # Over the action itself; beyond |u| of 7 float32's tanh no longer tells actions apart, float64's does.
    cumulative = integrate.cumulative_trapezoid(density, np.tanh(u), initial=0)
    assert cumulative[-1] == pytest.approx(1.0, abs=2e-3)
    normal = np.array([0.5 * (1 + math.erf((x - mean) / std / math.sqrt(2))) for x in u])
    np.testing.assert_allclose(cumulative, normal, atol=2e-3)


def test_log_probability_adds_over_components():
    u, mean = jnp.array([[0.3, -0.9]]), jnp.array([[0.1, -0.5]])
    log_std = jnp.log(jnp.array([[0.5, 0.2]]))
    single = [
        sac.log_probability(u[:, i : i + 1], mean[:, i : i + 1], log_std[:, i : i + 1])[0] for i in range(2)
    ]
    assert float(sac.log_probability(u, mean, log_std)[0]) == pytest.approx(float(sum(single)), rel=1e-5)


@pytest.mark.parametrize("u", [-1000.0, -50.0, -10.0, 0.0, 10.0, 50.0, 1000.0])
def test_log_probability_is_finite_far_out(u: float):
    def total(unsquashed: jax.Array) -> jax.Array:
        # With the mean alongside, as for a policy that has saturated; log-std at both of its limits.
        low, high = (
            sac.log_probability(unsquashed, unsquashed, jnp.full((1, 1), log_std)).sum()
            for log_std in (-20.0, 2.0)
        )
        return low + high

    value, gradient = jax.value_and_grad(total)(jnp.full((1, 1), u))
    # -log(1 - tanh(u)^2) tends to 2|u| - 2 log 2.
    expected = 2 * (abs(2 * u) - 4 * math.log(2) / 2) if abs(u) >= 10 else 0.0
    expected += 18.0 - math.log(2 * math.pi)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(gradient).all()


def test_sampled_log_probability_is_that_of_the_sampled_action():
    agent = small_agent("sac")
    state = initial(agent)
    observation = small_batch(0).observation
    action, log_prob = jax.jit(agent.sample)(state.actor_params, observation, jax.random.key(1))
    mean, log_std = (
        np.asarray(x, np.float64) for x in networks.apply(agent.actor, state.actor_params, observation)
    )
    u = np.arctanh(np.asarray(action, np.float64))
    gaussian = -0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    expected = (gaussian - np.log(1 - np.tanh(u) ** 2)).sum(axis=1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-3, atol=1e-3)


# ---- Acting -------------------------------------------------------------------------------------------------------


def test_evaluation_takes_the_mean_action_and_exploration_samples():
    agent = small_agent("sac")
    state = initial(agent)
    observation = jnp.broadcast_to(jnp.array([0.5, -1.0, 2.0]), (4000, 3))
    mean, log_std = networks.apply(agent.actor, state.actor_params, observation[:1])
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
    agent, batch = fixed_sample(small_agent("sac"), action, log_prob), small_batch(0)
    state = initial(small_agent("sac"))._replace(log_temperature=jnp.log(0.2))
    # Targets of their own, so that online and target critics cannot be confused.
    state = state._replace(target_critic_params=initial(small_agent("sac"), seed=9).critic_params)
    next_values = networks.apply(
        agent.critic, state.target_critic_params, batch.next_observation, jnp.full((8, 2), action)
    )
    soft = np.asarray(next_values).min(axis=0) - 0.2 * log_prob
    expected = np.asarray(batch.reward) + np.asarray(batch.discount) * soft
    _, metrics = update(agent, state)
    assert float(metrics["critic/target"].total) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert set(metrics) == METRICS
    assert all(float(metric.count) == 1.0 for metric in metrics.values())
    assert float(metrics["policy/entropy"].total) == pytest.approx(1.5)


@pytest.mark.parametrize(("target", "direction"), [(-100.0, -1.0), (100.0, 1.0)])
def test_temperature_moves_the_policy_towards_its_target_entropy(target: float, direction: float):
    agent = small_agent("sac")
    state = with_hyperparameters(initial(agent), target_entropy_per_action=target)
    new_state, metrics = update(agent, state)
    entropy = float(metrics["policy/entropy"].total)
    assert -200 < entropy < 200
    # Entropy above its target lowers the temperature; Adam's first step is the learning rate itself.
    moved = float(new_state.log_temperature - state.log_temperature)
    assert moved == pytest.approx(direction * 3e-4, rel=1e-3)


def test_temperature_rests_at_the_target_entropy():
    agent = small_agent("sac")
    at_target = agent.temperature_gradient(jnp.float32(0.3), jnp.full((4,), 1.0), jnp.float32(-0.5))
    assert float(at_target) == 0.0
    # Half a nat above, alpha 0.3: by log alpha the gradient is alpha (entropy - target).
    above = agent.temperature_gradient(jnp.float32(0.3), jnp.full((4,), 0.5), jnp.float32(-0.5))
    assert float(above) == pytest.approx(0.15)


def test_actor_ascends_smaller_critic_plus_entropy():
    agent, batch = small_agent("sac"), small_batch(0)
    state = with_hyperparameters(initial(agent), actor_learning_rate=1e-3)
    state = state._replace(log_temperature=jnp.log(0.7))
    new_state, metrics = update(agent, state)
    # The loss is alpha log pi - min Q, so its metric follows from the other two.
    expected = -0.7 * float(metrics["policy/entropy"].total) - float(metrics["policy/q"].total)
    assert float(metrics["actor/loss"].total) == pytest.approx(expected, rel=1e-5)

    @jax.jit
    def objective(params: Any) -> jax.Array:
        observation = jnp.repeat(batch.observation, 200, axis=0)
        action, log_prob = agent.sample(params, observation, jax.random.key(2))
        value = networks.apply(agent.critic, new_state.critic_params, observation, action).min(axis=0)
        return (value - 0.7 * log_prob).mean()

    assert float(objective(new_state.actor_params)) > float(objective(state.actor_params))


def test_target_critics_follow_the_critics_just_updated():
    agent = small_agent("sac")
    state = with_hyperparameters(initial(agent), target_rate=0.25)
    new_state, _ = update(agent, state)
    expected = jax.tree.map(
        lambda old, new: old + 0.25 * (new - old), state.critic_params, new_state.critic_params
    )
    assert distance(new_state.target_critic_params, expected) < 1e-6


def test_the_initial_temperature_is_an_option():
    state = initial(small_agent("sac", initial_temperature=0.2))
    assert float(jnp.exp(state.log_temperature)) == pytest.approx(0.2)
