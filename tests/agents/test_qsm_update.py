"""How both forms of Q-score matching act and update: with real critics, small networks and a few steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import networks
from agents.qsm import SPREAD_INTERVAL
from tests.agents.analytic import (
    compiled_update,
    distance,
    initial,
    small_agent,
    small_batch,
    update,
    with_hyperparameters,
)

BOTH = ["qsm", "qsm-clean"]
METRICS = {
    *(f"critic/{name}" for name in ("q_replay", "target", "td_error_abs", "loss", "disagreement")),
    *(f"score/{name}" for name in ("loss", "target_cosine", "action_gradient_norm", "scaled_gradient_norm")),
    *(f"policy/{name}" for name in ("q", "saturation", "spread")),
}
MORE_METRICS = {"qsm": set(), "qsm-clean": {"score/temperature", "policy/q_drawn"}}


def with_samples(agent: Any, actions: Any) -> Any:
    """`agent` whose sampler answers with `actions(key, batch)` `[batch, A]` whatever its network says."""

    class Sampled(type(agent)):
        def sample(self, params: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
            return actions(key, observation.shape[0])

    return Sampled(agent.config, agent.observation_size, agent.action_size)


def act(agent: Any, state: Any, observation: jax.Array, seed: int, mode: str) -> jax.Array:
    """`agent.act` as one program: compiling it operation by operation takes longer."""
    return jax.jit(agent.act, static_argnames="mode")(state, observation, jax.random.key(seed), mode=mode)


# ---- Acting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "std"), [("qsm", 0.1), ("qsm-clean", 0.0)])
def test_exploration_adds_noise_and_evaluation_none(name: str, std: float):
    agent = with_samples(small_agent(name), lambda key, batch: jnp.full((batch, 2), 0.4))
    state, observation = initial(agent), jnp.zeros((20_000, 3))
    evaluated = act(agent, state, observation, 0, "evaluate")
    np.testing.assert_array_equal(evaluated, jnp.float32(0.4))
    explored = np.asarray(act(agent, state, observation, 0, "explore"))
    assert explored.std() == pytest.approx(std, rel=0.02, abs=1e-6)
    assert explored.mean() == pytest.approx(0.4, abs=0.005)
    loud = with_hyperparameters(state, action_noise=5.0)
    explored = np.asarray(act(agent, loud, observation, 0, "explore"))
    assert explored.max() == 1.0 and explored.min() == -1.0


def test_published_targets_take_noisy_clipped_actions_and_replay_actions_for_the_score():
    agent = with_samples(small_agent("qsm"), lambda key, batch: jnp.full((batch, 2), 0.4))
    batch = small_batch(0, size=20_000)
    draw = jax.jit(agent.draw)
    next_action, clean = draw(initial(agent), batch, jax.random.key(0))
    assert float(next_action.std()) == pytest.approx(0.1, rel=0.02)
    np.testing.assert_array_equal(clean, batch.action)
    loud = with_hyperparameters(initial(agent), action_noise=5.0)
    assert float(jnp.abs(draw(loud, batch, jax.random.key(0))[0]).max()) == 1.0


def test_clean_draws_come_from_the_slow_network_at_both_observations():
    agent = small_agent("qsm-clean")
    state = initial(agent)._replace(draw_params=initial(agent, seed=9).score_params)
    batch = small_batch(0)
    next_action, clean = jax.jit(agent.draw)(state, batch, jax.random.key(3))
    # One pass of the sampler over (s', s): the same keys give the same actions.
    both = jnp.concatenate([batch.next_observation, batch.observation])
    sample_key = jax.random.split(jax.random.key(3))[0]
    expected = jax.jit(agent.sample_unsquashed)(state.draw_params, both, sample_key)
    np.testing.assert_allclose(next_action, np.tanh(expected[:8]), atol=1e-5)
    np.testing.assert_allclose(clean, expected[8:], atol=1e-5)


@pytest.mark.parametrize("with_average", [False, True])
def test_clean_acts_with_the_network_that_was_asked_for(with_average: bool):
    agent = small_agent("qsm-clean", act_with_average=with_average)
    state = initial(agent)._replace(draw_params=initial(agent, seed=9).score_params)
    observation = small_batch(0).observation
    acted = act(agent, state, observation, 3, "evaluate")
    sample = jax.jit(agent.sample)
    chosen, other = state.score_params, state.draw_params
    if with_average:
        chosen, other = other, chosen
    for params, same in ((chosen, True), (other, False)):
        expected = sample(params, observation, jax.random.split(jax.random.key(3))[0])
        assert np.allclose(acted, expected, atol=1e-4) == same


@pytest.mark.parametrize("name", BOTH)
def test_samples_stay_in_the_box(name: str):
    agent = small_agent(name)
    wild = jax.tree.map(lambda leaf: 100.0 * leaf, initial(agent).score_params)
    actions = jax.jit(agent.sample)(wild, small_batch(0, size=200).observation, jax.random.key(0))
    assert actions.shape == (200, 2)
    assert float(jnp.abs(actions).max()) <= 1.0
    if name == "qsm-clean":
        sample = jax.jit(agent.sample_unsquashed)
        unsquashed = sample(wild, small_batch(0, size=200).observation, jax.random.key(0))
        assert float(jnp.abs(unsquashed).max()) == pytest.approx(agent.config.sample_clip)


def test_evaluation_takes_the_best_sample_by_the_smaller_critic(monkeypatch: pytest.MonkeyPatch):
    def draws(key: jax.Array, batch: int) -> jax.Array:
        return jax.random.uniform(key, (batch, 2), minval=-1.0)

    def values(module: Any, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Two critics that pull apart: their mean and each alone prefer a bound, the smaller prefers a = o."""
        difference = (action - observation[:, :1]).sum(axis=1)
        return jnp.stack([difference, -3.0 * difference])

    plain = small_agent("qsm", eval_samples=16)
    agent = with_samples(plain, draws)
    observation = jnp.array([[0.5, 0, 0], [-0.5, 0, 0], [0.0, 0, 0]])
    state = initial(agent)
    monkeypatch.setattr(networks, "apply", values)
    chosen = act(agent, state, observation, 0, "evaluate")
    candidates = np.asarray(draws(jax.random.split(jax.random.key(0))[0], 48)).reshape(3, 16, 2)
    difference = (candidates - np.asarray(observation)[:, None, :1]).sum(axis=2)
    best = np.minimum(difference, -3 * difference).argmax(axis=1)
    np.testing.assert_array_equal(chosen, candidates[np.arange(3), best])
    assert not np.array_equal(best, difference.argmax(axis=1))
    # Exploring takes one sample, however many evaluation weighs.
    assert act(agent, state, observation, 0, "explore").shape == (3, 2)


# ---- Updating -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_every_metric_is_there_and_finite(name: str):
    _, metrics = update(small_agent(name), step=0)
    assert set(metrics) == METRICS | MORE_METRICS[name]
    for metric_name, metric in metrics.items():
        assert float(metric.count) == 1.0, metric_name
        assert np.isfinite(metric.total), metric_name
    assert -1 <= float(metrics["score/target_cosine"].total) <= 1
    assert 0 <= float(metrics["policy/saturation"].total) <= 1


def test_spread_is_measured_at_its_interval_and_skipped_between():
    agent = small_agent("qsm")
    for step, count in ((0, 1.0), (1, 0.0), (SPREAD_INTERVAL - 1, 0.0), (SPREAD_INTERVAL, 1.0)):
        spread = update(agent, step=step)[1]["policy/spread"]
        assert float(spread.count) == count
        assert (float(spread.total) > 0) == (count > 0)


def test_spread_is_the_std_within_a_state():
    # Samples 0.1 and 0.5 in turn, for every observation: std 0.2.
    agent = with_samples(
        small_agent("qsm"), lambda key, batch: jnp.tile(jnp.array([[0.1], [0.5]]), (batch // 2, 2))
    )
    observation = small_batch(0).observation
    spread = jax.jit(agent.spread)(initial(agent), observation, jax.random.key(0), jnp.asarray(0))
    assert float(spread.total) == pytest.approx(0.2, rel=1e-5)


def test_the_score_learning_rate_decays_by_a_cosine():
    agent = small_agent("qsm")
    assert agent.config.score_decay_steps == 100
    before = with_hyperparameters(initial(agent), score_learning_rate=0.1)

    def moved(step: int) -> float:
        return distance(update(agent, before, step=step)[0].score_params, before.score_params)

    # Adam's first step is the rate itself.
    assert moved(0) == pytest.approx(0.1, rel=1e-3)
    assert moved(25) == pytest.approx(0.05 * (1 + np.sqrt(0.5)), rel=1e-3)
    assert moved(50) == pytest.approx(0.05, rel=1e-3)
    assert moved(100) == moved(1000) == pytest.approx(0.0, abs=1e-7)
    # The critics' rate is constant.
    assert distance(update(agent, step=1000)[0].critic_params, before.critic_params) == pytest.approx(
        3e-4, rel=1e-2
    )


@pytest.mark.parametrize("name", BOTH)
def test_update_is_a_pure_function(name: str):
    agent = small_agent(name)
    state = initial(agent)
    copies = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    first, again, other = update(agent), update(agent), update(agent, seed=2)
    assert distance(first, again) == 0.0
    assert distance(first[0].score_params, other[0].score_params) > 0.0
    for leaf, copy in zip(jax.tree.leaves(state), copies, strict=True):
        np.testing.assert_array_equal(leaf, copy)


@pytest.mark.slow
def test_update_is_the_same_without_jit():
    agent = small_agent("qsm-clean")
    plain = agent.update(initial(agent), small_batch(0), jax.random.key(1), jnp.asarray(1))
    for got, expected in zip(jax.tree.leaves(plain), jax.tree.leaves(update(agent)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "option"), [("qsm", "score_scale"), ("qsm-clean", "inverse_temperature")])
def test_hyperparameters_are_read_from_the_state(name: str, option: str):
    agent = small_agent(name)
    default, changed = (
        update(agent, state)[0].score_params
        for state in (initial(agent), with_hyperparameters(initial(agent), **{option: 0.25}))
    )
    assert distance(default, changed) > 1e-5
    assert compiled_update(agent).num_traces == 1
    # What an agent that was built so starts from.
    assert float(initial(small_agent(name, **{option: 0.25})).hyperparameters[option]) == 0.25


@pytest.mark.parametrize("name", BOTH)
def test_critics_learn_first_and_from_target_critics(name: str):
    """The backup is that of the target critics; the score target is that of the critics just updated."""
    plain, batch = small_agent(name), small_batch(0)

    class Watched(type(plain)):
        def sample(self, params: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
            return jnp.full((observation.shape[0], 2), 0.4)

        def sample_unsquashed(self, params: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
            return jnp.arctanh(self.sample(params, observation, key))

        def score_target(self, state: Any, critic_params: Any, *rest: Any) -> Any:
            target, size, metrics = super().score_target(state, critic_params, *rest)
            return target, size, metrics | {"given": critic_params}

    agent = Watched(plain.config, 3, 2)
    state = with_hyperparameters(initial(plain), action_noise=0.0)
    state = state._replace(target_critic_params=initial(plain, seed=9).critic_params)
    new_state, metrics = update(agent, state)
    assert distance(metrics["given"], new_state.critic_params) == 0.0
    assert distance(metrics["given"], state.critic_params) > 1e-4

    values = networks.apply(
        agent.critic, state.target_critic_params, batch.next_observation, jnp.full((8, 2), 0.4)
    )
    expected = np.asarray(batch.reward) + np.asarray(batch.discount) * np.asarray(values).min(axis=0)
    assert float(metrics["critic/target"].total) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(metrics["policy/q"].total) == pytest.approx(np.asarray(values).mean(), rel=1e-4)
    followed = jax.tree.map(
        lambda old, new: old + 0.005 * (new - old), state.target_critic_params, new_state.critic_params
    )
    assert distance(new_state.target_critic_params, followed) < 1e-6


def test_the_slow_network_follows_by_its_rate():
    agent = small_agent("qsm-clean")
    before = with_hyperparameters(initial(agent), draw_rate=0.25, score_learning_rate=0.1)
    after, _ = update(agent, before)
    expected = jax.tree.map(lambda old, new: old + 0.25 * (new - old), before.draw_params, after.score_params)
    assert distance(after.draw_params, expected) < 1e-6
    assert distance(after.draw_params, before.draw_params) > 0.01
    assert initial(small_agent("qsm")).draw_params == ()
