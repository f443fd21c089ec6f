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
    with_values,
)

DELAYED = (
    lambda state: state.actor.params,
    lambda state: state.actor.optimizer,
    lambda state: state.target_actor,
    lambda state: state.critic.target,
)
DELAYED_METRICS = {"actor/loss", "policy/q", "policy/saturation"}
CRITIC_METRICS = {f"critic/{name}" for name in ("q_replay", "target", "td_error_abs", "loss", "disagreement")}


def equal(first: Any, second: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def fixed_actor(agent: Any, output: Any) -> Any:
    """State of `agent` whose actor, target actor too, always answers tanh(`output`)."""
    state = initial(agent)
    params = jax.tree.map(jnp.zeros_like, state.actor.params)
    last = params["params"]["unsquashed"]
    last["bias"] = jnp.broadcast_to(jnp.asarray(output, jnp.float32), last["bias"].shape)
    return state._replace(actor=state.actor._replace(params=params), target_actor=params)


# ---- Delay --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_only_when_due(delay: int):
    agent = small_agent("td3", policy_delay=delay)
    state = initial(agent)
    for step in range(6):
        new_state, metrics = update(agent, state, step=step, seed=step)
        is_due = step % delay == delay - 1
        for part in DELAYED:
            assert equal(part(new_state), part(state)) != is_due
        assert not equal(new_state.critic.online, state.critic.online)
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
    for online, before, after in (
        (new_state.actor.params, state.target_actor, new_state.target_actor),
        (new_state.critic.online.params, state.critic.target, new_state.critic.target),
    ):
        expected = jax.tree.map(lambda old, new: old + 0.25 * (new - old), before, online)
        assert distance(after, expected) < 1e-6


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
    state = with_critic_of(state._replace(actor=others.actor), others)
    next_action = jnp.full((8, 2), jnp.tanh(0.3))
    next_values = agent.critic.value(others.critic.online.params, batch.next_observation, next_action)
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
        action = agent.actor.apply(actor_params, batch.observation)
        return float(agent.critic.value(new_state.critic.online.params, batch.observation, action)[0].mean())

    # Against the critics just updated, and before the actor's own step.
    assert float(metrics["actor/loss"].total) == pytest.approx(-value(state.actor.params), rel=1e-4, abs=1e-6)
    assert float(metrics["policy/q"].total) == pytest.approx(-float(metrics["actor/loss"].total))
    assert value(new_state.actor.params) > value(state.actor.params)


@pytest.mark.parametrize(("first", "slope"), [(0, -2.0), (1, 2.0)])
def test_the_actor_climbs_the_first_of_the_critics_just_updated(first: int, slope: float):
    """Two critics far apart that slope against one another, and whose step turns each slope around."""

    def linear(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        return params["slope"][:, None] * action.sum(axis=1)[None] + params["offset"][:, None]

    plain = small_agent("td3")
    place = np.array([0, 1] if first == 0 else [1, 0])
    params = {"slope": jnp.array([1.0, -1.0])[place], "offset": jnp.array([-100.0, 100.0])[place]}
    state = fixed_actor(plain, 0.3)._replace(critic=critic_state(params))
    state = with_hyperparameters(state, critic_learning_rate=3.0, actor_learning_rate=1e-2)
    batch = small_batch(0)._replace(action=jnp.full((8, 2), -0.5), reward=jnp.zeros(8), discount=jnp.zeros(8))
    new_state, metrics = update(with_values(plain, linear), state, step=1, batch=batch)
    # The first one's slope was of the other sign before the step.
    expected = slope * 2 * np.tanh(0.3) + (-97.0 if first == 0 else 97.0)
    assert float(metrics["policy/q"].total) == pytest.approx(expected, rel=1e-4)
    moved = plain.actor.apply(new_state.actor.params, batch.observation) - np.tanh(0.3)
    assert np.all(np.sign(np.asarray(moved)) == np.sign(slope))


def test_saturation_counts_both_bounds():
    agent = type(small_agent("td3"))(small_agent("td3").config, 3, 3)
    state = jax.jit(agent.init)(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, state.actor.params)
    params["params"]["unsquashed"]["bias"] = jnp.array([-20.0, 20.0, 0.0])
    state = state._replace(actor=state.actor._replace(params=params))
    batch = small_batch(0)._replace(action=jnp.zeros((8, 3)))
    assert float(update(agent, state, step=1, batch=batch)[1]["policy/saturation"].total) == pytest.approx(
        2 / 3
    )
