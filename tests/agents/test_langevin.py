"""Langevin dynamics on an analytic Q: the law of its actions, both modes, temperature, and where targets begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.langevin import State
from agents.parts import optimizer
from agents.parts.critic import CriticState
from tests.agents.analytic import (
    initial,
    small_agent,
    small_batch,
    update,
    with_critic_of,
    with_gradient,
    with_hyperparameters,
    with_values,
)


def state_of(agent: Any, gradient_size: float = 1.0) -> State:
    """A state for analytic critics, which have no parameters."""
    none: Any = CriticState(optimizer.start(()), ())
    return State(none, jnp.asarray(gradient_size), (), agent.hyperparameters())


def drawn(
    gradient: Callable[[jax.Array], jax.Array], num: int, start: jax.Array | None = None, **options: float
) -> np.ndarray:
    """u `[num, 1]` of the agent at tau = 1 whose Q has `gradient`, `[B, 1]`, by the action."""
    plain = small_agent("langevin", inverse_temperature=1.0, sample_clip=4.0, **options)
    plain = type(plain)(plain.config, 1, 1)
    agent = with_gradient(plain, gradient)
    action = jax.jit(agent.sample)(state_of(agent), (), jnp.zeros((num, 1)), jax.random.key(1), start)
    return np.arctanh(np.asarray(action, np.float64))


def gradient_for(score: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """grad_a Q that makes `score` the score of u, where a = tanh(u)."""
    return lambda action: (score(jnp.arctanh(action)) + 2 * action) / (1 - jnp.square(action))


def test_actions_of_a_gaussian_have_its_mean_and_the_variance_of_the_steps():
    """N(0.3, 0.3^2) before the tanh at a step of 0.09: 0.3^2 / (1 - 1/4), a third more."""
    std, size = 0.3, 0.09
    found = drawn(
        gradient_for(lambda u: -(u - 0.3) / std**2),
        20_000,
        langevin_steps=25,
        first_step_size=size,
        last_step_size=size,
    )
    expected = std**2 / (1 - size / (4 * std**2))
    assert found.mean() == pytest.approx(0.3, abs=4 * np.sqrt(expected / 20_000))
    assert found.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / 20_000))
    # The default ends in small steps, which leave little of that.
    assert drawn(gradient_for(lambda u: -(u - 0.3) / std**2), 20_000).var() == pytest.approx(std**2, rel=0.1)


@pytest.mark.parametrize("start", [None, 0.76])
def test_annealed_draws_reach_both_modes(start: float | None):
    """Two modes of std 0.25 at -1 and 1 before the tanh: from noise, and with long first steps from one of them.

    Between them lie 8 nats, which steps that are short against the modes do not cross.
    """

    def score(u: jax.Array) -> jax.Array:
        return jax.grad(lambda u: jnp.logaddexp(-8 * jnp.square(u - 1), -8 * jnp.square(u + 1)).sum())(u)

    begin = None if start is None else jnp.full((4000, 1), start)
    found = drawn(
        gradient_for(score), 4000, begin, langevin_steps=40, first_step_size=0.2 if start is None else 0.5
    )
    right = found > 0
    assert 0.25 < right.mean() < 0.75
    for side, inside in ((1, right), (-1, ~right)):
        assert found[inside].mean() == pytest.approx(side, abs=0.05)
        assert found[inside].std() == pytest.approx(0.25, abs=0.05)
    if start is not None:
        # Short steps alone stay where they began.
        assert (drawn(gradient_for(score), 4000, begin, first_step_size=0.01) > 0).mean() > 0.95


def test_the_temperature_is_relative_to_the_size_of_the_gradient():
    plain = small_agent("langevin")
    state = with_hyperparameters(state_of(plain, 0.0), inverse_temperature=4.0)
    assert float(plain.temperature(state)) == np.inf
    assert float(plain.temperature(state._replace(gradient_size=jnp.asarray(2.0)))) == pytest.approx(0.5)

    def actions(factor: float) -> np.ndarray:
        agent = with_gradient(plain, lambda action: factor * (0.5 - action))
        scaled = state._replace(gradient_size=jnp.asarray(factor))
        return np.asarray(jax.jit(agent.sample)(scaled, (), jnp.zeros((50, 3)), jax.random.key(0)))

    np.testing.assert_allclose(actions(1.0), actions(1000.0), atol=1e-4)


def test_before_the_first_update_actions_are_uniform():
    plain = small_agent("langevin", langevin_steps=60, last_step_size=0.1)
    agent = with_gradient(plain, lambda action: 100.0 * (1.0 - action))
    act = jax.jit(agent.act, static_argnames="mode")
    action = np.asarray(act(state_of(agent, 0.0), jnp.zeros((8000, 3)), jax.random.key(0), mode="explore"))
    assert np.abs(action.mean(axis=0)).max() < 0.03
    np.testing.assert_allclose(action.std(axis=0), np.sqrt(1 / 3), atol=0.03)


@pytest.mark.slow
def test_the_size_is_that_of_the_critics_just_updated_at_target_actions():
    agent = small_agent("langevin")
    state = initial(agent)._replace(gradient_size=jnp.asarray(2.0))
    state = with_hyperparameters(state, gradient_size_rate=0.25, critic_learning_rate=0.05)
    new_state, metrics = update(agent, state)
    batch, key = small_batch(0), jax.random.split(jax.random.key(1))[0]
    action = jax.jit(agent.target_action)(state, batch, key)
    _, gradient = agent.critic.action_gradient(new_state.critic.online.params, batch.next_observation, action)
    size = float(np.linalg.norm(gradient, axis=1).mean())
    assert float(new_state.gradient_size) == pytest.approx(2.0 + 0.25 * (size - 2.0), rel=1e-4)
    assert float(metrics["score/temperature"].total) == pytest.approx(float(new_state.gradient_size) / 10)


def test_targets_follow_the_target_critics_and_actions_the_latest():
    agent = small_agent("langevin")
    state = with_critic_of(initial(agent), initial(agent, seed=9))._replace(gradient_size=jnp.ones(()))
    batch, key = small_batch(0), jax.random.key(3)
    sample = jax.jit(agent.sample)
    expected = sample(state, state.critic.target, batch.next_observation, key)
    np.testing.assert_allclose(jax.jit(agent.target_action)(state, batch, key), expected, atol=1e-5)
    acted = jax.jit(agent.act, static_argnames="mode")(state, batch.observation, key, mode="evaluate")
    expected = sample(state, state.critic.online.params, batch.observation, key)
    np.testing.assert_allclose(acted, expected, atol=1e-5)


def test_targets_begin_at_the_replayed_action_where_asked():
    options: dict[str, Any] = {"langevin_steps": 1, "first_step_size": 1e-8, "target_samples": 2}
    plain = small_agent("langevin", target_start="replay", **options)
    agent = with_values(plain, lambda params, o, a: jnp.stack([0 * a[:, 0], 0 * a[:, 0]]))
    batch = small_batch(0)._replace(action=jnp.linspace(-1, 1, 16).reshape(8, 2))
    action = jax.jit(agent.target_action)(state_of(plain), batch, jax.random.key(0))
    bound = np.tanh(3.0)  # where the tanh can still be undone
    np.testing.assert_allclose(action, np.clip(batch.action, -bound, bound), atol=1e-3)
