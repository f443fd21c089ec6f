from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import networks
from tests.agents.analytic import (
    distance,
    initial,
    small_agent,
    small_batch,
    update,
    with_hyperparameters,
)

DELAYED = ("actor_params", "actor_optimizer", "target_actor_params", "target_critic_params")
DELAYED_METRICS = {"actor/loss", "policy/q", "policy/saturation"}
CRITIC_METRICS = {f"critic/{name}" for name in ("q_replay", "target", "td_error_abs", "loss", "disagreement")}


def equal(first: Any, second: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def fixed_actor(agent: Any, output: float) -> Any:
    """State of `agent` whose actor, target actor too, always answers tanh(`output`)."""
    state = initial(agent)
    params = jax.tree.map(jnp.zeros_like, state.actor_params)
    last = params["params"]["MLP_0"][f"Dense_{len(agent.config.hidden_sizes)}"]
    last["bias"] = jnp.full_like(last["bias"], output)
    return state._replace(actor_params=params, target_actor_params=params)


# ---- Delay --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_only_when_due(delay: int):
    agent = small_agent("td3", policy_delay=delay)
    state = initial(agent)
    for step in range(6):
        new_state, metrics = update(agent, state, step=step, seed=step)
        is_due = step % delay == delay - 1
        for name in DELAYED:
            assert equal(getattr(new_state, name), getattr(state, name)) != is_due, name
        assert not equal(new_state.critic_params, state.critic_params)
        assert set(metrics) == CRITIC_METRICS | DELAYED_METRICS
        for name, metric in metrics.items():
            # Skipped is a count of zero, not a value of zero.
            assert float(metric.count) == (1.0 if is_due or name in CRITIC_METRICS else 0.0)
            assert np.isfinite(metric.total)
        state = new_state


def test_a_seed_axis_still_skips_the_actor():
    agent = small_agent("td3")
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), initial(agent), initial(agent, seed=9))
    over_seeds = jax.vmap(agent.update, in_axes=(0, 0, 0, None))
    keys = jax.random.split(jax.random.key(1), 2)
    jaxpr = jax.make_jaxpr(over_seeds)(states, small_batch(0, lead=(2,)), keys, jnp.asarray(0))
    # A batched condition would have become a select of both branches.
    assert " cond[" in str(jaxpr)


def test_targets_follow_by_the_polyak_rate():
    agent = small_agent("td3")
    state = with_hyperparameters(initial(agent), target_rate=0.25)
    new_state, _ = update(agent, state, step=1)
    for online, target in (
        ("actor_params", "target_actor_params"),
        ("critic_params", "target_critic_params"),
    ):
        expected = jax.tree.map(
            lambda old, new: old + 0.25 * (new - old), getattr(state, target), getattr(new_state, online)
        )
        assert distance(getattr(new_state, target), expected) < 1e-6


# ---- Noise and clipping -------------------------------------------------------------------------------------------


def target_actions(output: float = 0.0, **options: float) -> np.ndarray:
    agent = small_agent("td3")
    state = with_hyperparameters(fixed_actor(agent, output), **options)
    return np.asarray(jax.jit(agent.target_action)(state, jnp.zeros((20_000, 3)), jax.random.key(3)))


def test_target_noise_has_its_std():
    actions = target_actions(target_noise=0.2, target_noise_clip=0.9)
    assert actions.std() == pytest.approx(0.2, rel=0.02)
    assert actions.mean() == pytest.approx(0.0, abs=0.005)


def test_target_noise_is_clipped():
    actions = target_actions(target_noise=100.0, target_noise_clip=0.5)
    assert np.abs(actions).max() == 0.5
    assert (np.abs(actions) == 0.5).mean() > 0.99
    # Its own default: 0.2 clipped at 2.5 std.
    default = target_actions()
    assert np.abs(default).max() == 0.5
    assert (np.abs(default) == 0.5).mean() == pytest.approx(0.0124, abs=0.003)


def test_target_actions_are_clipped():
    actions = target_actions(output=2.0, target_noise=100.0, target_noise_clip=0.5)
    assert actions.max() == 1.0 and actions.min() == pytest.approx(np.tanh(2.0) - 0.5, abs=1e-6)
    wide = target_actions(target_noise=100.0, target_noise_clip=50.0)
    assert wide.max() == 1.0 and wide.min() == -1.0


def test_the_backup_uses_target_actor_and_target_critics():
    agent, batch = small_agent("td3"), small_batch(0)
    state = with_hyperparameters(fixed_actor(agent, 0.3), target_noise=0.0)
    others = initial(agent, seed=9)
    state = state._replace(actor_params=others.actor_params, target_critic_params=others.critic_params)
    next_action = jnp.full((8, 2), jnp.tanh(0.3))
    next_values = networks.apply(agent.critic, others.critic_params, batch.next_observation, next_action)
    expected = np.asarray(batch.reward) + np.asarray(batch.discount) * np.asarray(next_values).min(axis=0)
    _, metrics = update(agent, state)
    assert float(metrics["critic/target"].total) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_exploration_noise_has_its_std_and_stays_in_the_box():
    agent = small_agent("td3")
    state, observation = fixed_actor(agent, 0.2), jnp.zeros((20_000, 3))
    act = jax.jit(agent.act, static_argnames="mode")
    explored = np.asarray(act(state, observation, jax.random.key(3), mode="explore"))
    assert explored.std() == pytest.approx(0.1, rel=0.02)
    assert explored.mean() == pytest.approx(np.tanh(0.2), abs=0.005)
    # The noise is drawn from the state, so a sweep needs no second program.
    loud = with_hyperparameters(state, action_noise=5.0)
    explored = np.asarray(act(loud, observation, jax.random.key(3), mode="explore"))
    assert explored.max() == 1.0 and explored.min() == -1.0
    np.testing.assert_allclose(
        act(state, observation[:4], jax.random.key(3), mode="evaluate"), np.tanh(0.2), rtol=1e-5
    )


# ---- Actor --------------------------------------------------------------------------------------------------------


def test_actor_ascends_the_first_critic():
    agent, batch = small_agent("td3"), small_batch(0)
    state = with_hyperparameters(initial(agent), actor_learning_rate=1e-3)
    new_state, metrics = update(agent, state, step=1)

    def value(actor_params: Any) -> float:
        action = networks.apply(agent.actor, actor_params, batch.observation)
        return float(
            networks.apply(agent.critic, new_state.critic_params, batch.observation, action)[0].mean()
        )

    # Against the critics just updated, and before the actor's own step.
    assert float(metrics["actor/loss"].total) == pytest.approx(-value(state.actor_params), rel=1e-4, abs=1e-6)
    assert float(metrics["policy/q"].total) == pytest.approx(-float(metrics["actor/loss"].total))
    assert value(new_state.actor_params) > value(state.actor_params)
