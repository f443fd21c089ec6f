"""Diffusion-QL: its gradient through the chain, its normalizer, behavior cloning, and which network does what."""

from __future__ import annotations

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from tests.agents.analytic import (
    distance,
    initial,
    small_agent,
    small_batch,
    update,
    with_critic_of,
    with_hyperparameters,
    with_values,
)


def one_constant(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """Two critics: a smooth one with a gradient everywhere, and one that is 2 whatever the action."""
    difference = action - 0.2 * observation[:, :2]
    first = 1.0 + action.sum(axis=1) - jnp.square(difference).sum(axis=1)
    return jnp.stack([first, jnp.full_like(first, -2.0)])


def member_of(key: jax.Array) -> int:
    """Which critic the actor's loss takes under `key`."""
    return int(jax.random.randint(jax.random.split(key, 3)[1], (), 0, 2))


def test_the_gradient_is_that_of_finite_differences_through_the_whole_chain():
    """In double precision, along random directions; where |Q_j| depends on the action, none of it counts."""
    plain = small_agent("diffusion-ql", hidden_sizes=(8,), inward_gradient=False)
    agent = with_values(plain, one_constant)
    with jax.enable_x64(True):
        keys = {member_of(jax.random.key(seed)): jax.random.key(seed) for seed in range(20)}
        params, batch = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64), (initial(agent).score.params, small_batch(0))
        )
        flat, unravel = jax.flatten_util.ravel_pytree(params)

        def loss(flat: jax.Array, key: jax.Array, weight: float) -> jax.Array:
            return agent.actor_loss(unravel(flat), (), {"eta": 1.5, "bc_weight": weight}, batch, key)[0]

        differentiated = jax.jit(jax.value_and_grad(loss))
        gradient = differentiated(flat, keys[0], 0.25)[1]
        for seed in range(3):
            direction = np.random.default_rng(seed).normal(size=flat.shape)
            above, below = (
                float(differentiated(flat + step * direction, keys[0], 0.25)[0]) for step in (1e-6, -1e-6)
            )
            slope = (above - below) / 2e-6
            assert abs(slope) > 1e-3
            np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-6)
        # Q_2 is constant, and no gradient flows into |Q_1|, which does change.
        value, gradient = differentiated(flat, keys[1], 0.0)
        moved = differentiated(flat + 0.1 * direction, keys[1], 0.0)[0]
        assert float(jnp.abs(gradient).max()) == 0.0 and abs(float(moved - value)) > 1e-3


def test_the_normalizer_by_hand():
    """Member i over the mean size of the next, which a member of another scale does not move."""
    values = jnp.array([[1.0, -3.0, 8.0], [10.0, -20.0, -60.0], [0.5, 0.0, -1.0]])
    agent = with_values(small_agent("diffusion-ql", num_critics=3), lambda params, o, a: values)
    zeros = jnp.zeros((3, 2))
    for member, expected in enumerate((2.0 / 30.0, -70.0 / 3 / 0.5, -0.5 / 3 / 4.0)):
        normalized, value = agent.normalized_value((), zeros, zeros, jnp.asarray(member))
        assert float(normalized) == pytest.approx(expected)
        np.testing.assert_array_equal(value, values[member])


def test_both_members_are_drawn_alike():
    agent = small_agent("diffusion-ql", hidden_sizes=(8,), denoising_steps=1)
    agent = with_values(agent, lambda p, o, a: jnp.stack([3.0 + 0 * a[:, 0], 5.0 + 0 * a[:, 0]]))
    state, batch = initial(agent), small_batch(0)

    def loss(key: jax.Array) -> jax.Array:
        return agent.actor_loss(state.score.params, (), state.hyperparameters, batch, key)[0]

    losses = np.asarray(jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(0), 400)))
    # -3/5 or -5/3; three standard errors about one half.
    assert np.all(np.minimum(np.abs(losses + 3 / 5), np.abs(losses + 5 / 3)) < 1e-5)
    assert np.mean(losses < -1) == pytest.approx(0.5, abs=0.075)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    agent = small_agent("diffusion-ql")
    state = with_hyperparameters(initial(agent), eta=0.7, bc_weight=2.5)
    metrics = {name: float(metric.total) for name, metric in update(agent, state)[1].items()}
    expected = 2.5 * metrics["score/loss"] - 0.7 * metrics["actor/normalized_q"]
    assert metrics["actor/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_cloning_alone_learns_the_mean_and_the_spread_of_replay_actions():
    agent = small_agent("diffusion-ql", eta=0.0, bc_weight=1.0, batch_size=64)
    state = initial(agent)

    def step(index: jax.Array, state: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index))
        action = jnp.array([[0.4, -0.2]]) + 0.15 * jax.random.normal(keys[0], (64, 2))
        batch = small_batch(0, size=64)._replace(action=action)
        inputs = state.critic.online.params, state.hyperparameters, batch, keys[1]
        return state._replace(score=agent.denoiser.descend(agent.actor_loss, state.score, 5e-3, *inputs)[0])

    learned = jax.jit(lambda state: jax.lax.fori_loop(0, 600, step, state))(state)
    drawn = jax.jit(agent.sample)(learned.score.params, small_batch(1, 4000).observation, jax.random.key(1))
    np.testing.assert_allclose(drawn.mean(axis=0), [0.4, -0.2], atol=0.05)
    assert np.all(np.asarray(drawn.std(axis=0)) < 0.3)  # of a fresh network: 0.7


def test_targets_come_from_the_slow_network_and_actions_from_the_latest():
    agent = small_agent("diffusion-ql", explore_samples=1, eval_samples=1)
    state = initial(agent)._replace(average=initial(agent, seed=9).score.params)
    state = with_critic_of(state, initial(agent, seed=9))
    observation, key = small_batch(0).observation, jax.random.key(3)
    sample = jax.jit(agent.sample)
    targets = jax.jit(agent.target_action)(state, observation, key)
    np.testing.assert_allclose(targets, sample(state.average, observation, key), atol=1e-5)
    acted = jax.jit(agent.act, static_argnames="mode")(state, observation, key, mode="evaluate")
    expected = sample(state.score.params, observation, jax.random.split(key, 3)[0])
    np.testing.assert_allclose(acted, expected, atol=1e-5)


def test_the_slow_network_follows_by_its_rate():
    agent = small_agent("diffusion-ql")
    before = with_hyperparameters(initial(agent), draw_rate=0.25, score_learning_rate=0.1)
    after, _ = update(agent, before)
    expected = jax.tree.map(lambda old, new: old + 0.25 * (new - old), before.average, after.score.params)
    assert distance(after.average, expected) < 1e-6 and distance(after.average, before.average) > 0.01


@pytest.mark.slow
def test_it_acts_by_the_softmax_of_the_target_critics_or_by_their_best():
    """Values that rise a thousandfold from sample to sample leave the softmax no choice; equal ones leave it all."""

    def steep(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        value = params * (action.sum(axis=1) + observation[:, 0])
        return jnp.stack([value, value + 1.0])

    def acted(choice: str, mode: str, *slopes: float) -> list[np.ndarray]:
        samples = {"explore_samples": 16, "eval_samples": 16, "action_noise": 0.0}
        plain = small_agent("diffusion-ql", choice=choice, hidden_sizes=(8,), **samples)
        state, agent = initial(plain), with_values(plain, steep)
        act = jax.jit(agent.act, static_argnames="mode")

        def actions(slope: float) -> np.ndarray:
            learned = state.critic.online._replace(params=jnp.float32(-slope))
            critics = state.critic._replace(online=learned, target=jnp.float32(slope))
            given = state._replace(critic=critics), jnp.zeros((40, 3)), jax.random.key(0)
            return np.asarray(act(*given, mode=mode)).sum(axis=1)

        return list(map(actions, slopes))

    [best] = acted("best", "explore", 1.0)
    steepest, even = acted("softmax", "evaluate", 1e4, 0.0)
    np.testing.assert_allclose(best, steepest, atol=0.02)
    assert even.mean() < best.mean() - 0.5 and even.std() > 3 * best.std()
