"""How both forms of Q-score matching act and update: with real critics, small networks and a few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import score
from tests.agents.analytic import (
    compiled_update,
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

BOTH = ["qsm", "qsm-clean"]
Draw = Callable[[jax.Array, int], jax.Array]


def with_samples(agent: Any, actions: Draw) -> Any:
    """`agent` whose sampler answers with `actions(key, batch)` `[batch, A]` whatever its network says."""
    plain = agent.denoiser

    class Sampled(type(plain)):
        def sample(self, params: Any, observation: jax.Array, key: jax.Array, *way: Any, **clips: Any) -> Any:
            drawn = actions(key, observation.shape[0])
            return drawn if "clip" in clips else jnp.arctanh(drawn)  # clean QSM samples before its tanh

    fields = plain.network, plain.schedule, plain.step_variance, plain.decay_steps
    return with_part(agent, denoiser=Sampled(*fields))


def always(value: float) -> Draw:
    return lambda key, batch: jnp.full((batch, 2), value)


def act(agent: Any, state: Any, observation: jax.Array, seed: int, mode: str) -> jax.Array:
    """`agent.act` as one program: compiling it operation by operation takes longer."""
    return jax.jit(agent.act, static_argnames="mode")(state, observation, jax.random.key(seed), mode=mode)


def sample(agent: Any, state: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
    """What the network that acts draws."""
    source = state if hasattr(state, "average") else state.score.params
    return jax.jit(agent.sample)(source, observation, key)


def with_average_of(state: Any, other: Any) -> Any:
    return state._replace(average=other.score.params)


# ---- Acting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "std"), [("qsm", 0.1), ("qsm-clean", 0.0)])
def test_exploration_adds_noise_and_evaluation_none(name: str, std: float):
    agent = with_samples(small_agent(name), always(0.4))
    state, observation = initial(agent), jnp.zeros((20_000, 3))
    evaluated = act(agent, state, observation, 0, "evaluate")
    np.testing.assert_allclose(evaluated, 0.4, rtol=1e-6)
    explored = np.asarray(act(agent, state, observation, 0, "explore"))
    assert explored.std() == pytest.approx(std, rel=0.02, abs=1e-6)
    assert explored.mean() == pytest.approx(0.4, abs=0.005)
    loud = with_hyperparameters(state, action_noise=5.0)
    explored = np.asarray(act(agent, loud, observation, 0, "explore"))
    assert explored.max() == 1.0 and explored.min() == -1.0


def test_published_targets_take_noisy_clipped_actions():
    agent = with_samples(small_agent("qsm"), always(0.4))
    observation = jnp.zeros((20_000, 3))
    target_action = jax.jit(agent.target_action)
    assert float(target_action(initial(agent), observation, jax.random.key(0)).std()) == pytest.approx(
        0.1, rel=0.02
    )
    loud = with_hyperparameters(initial(agent), action_noise=5.0)
    assert float(jnp.abs(target_action(loud, observation, jax.random.key(0))).max()) == 1.0


def test_clean_draws_come_from_the_slow_network_at_both_observations():
    agent = small_agent("qsm-clean")
    state = with_average_of(initial(agent), initial(agent, seed=9))
    batch = small_batch(0)
    drawn = jax.jit(agent.draw)(state, batch, jax.random.key(3))
    # One pass of the sampler over (s', s): the same keys give the same actions.
    both = jnp.concatenate([batch.next_observation, batch.observation])
    sample_key = jax.random.split(jax.random.key(3))[0]
    expected = jax.jit(agent.sample_unsquashed)(state, state.average, both, sample_key)
    np.testing.assert_allclose(drawn.action, np.tanh(expected[:8]), atol=1e-5)
    np.testing.assert_allclose(drawn.unsquashed, expected[8:], atol=1e-5)


@pytest.mark.parametrize("with_average", [False, True])
def test_clean_acts_with_the_network_that_was_asked_for(with_average: bool):
    agent = small_agent("qsm-clean", act_with_average=with_average)
    state = with_average_of(initial(agent), initial(agent, seed=9))
    observation = small_batch(0).observation
    acted = act(agent, state, observation, 3, "evaluate")
    unsquashed = jax.jit(agent.sample_unsquashed)
    chosen, other = state.score.params, state.average
    if with_average:
        chosen, other = other, chosen
    for params, same in ((chosen, True), (other, False)):
        expected = np.tanh(unsquashed(state, params, observation, jax.random.split(jax.random.key(3))[0]))
        assert np.allclose(acted, expected, atol=1e-4) == same


@pytest.mark.parametrize("name", BOTH)
def test_samples_stay_in_the_box(name: str):
    agent = small_agent(name)
    state = initial(agent)
    wild = jax.tree.map(lambda leaf: 100.0 * leaf, state.score.params)
    state = state._replace(score=state.score._replace(params=wild))
    if name == "qsm-clean":
        state = with_average_of(state, state)
    observation = small_batch(0, size=200).observation
    actions = sample(agent, state, observation, jax.random.key(0))
    assert actions.shape == (200, 2)
    assert float(jnp.abs(actions).max()) <= 1.0
    if name == "qsm-clean":
        # The bound is a hyperparameter: one program serves any.
        for bound in (3.0, 1.5):
            state = with_hyperparameters(state, sample_clip=bound)
            unsquashed = jax.jit(agent.sample_unsquashed)(state, wild, observation, jax.random.key(0))
            assert float(jnp.abs(unsquashed).max()) == pytest.approx(bound)


def pulling_apart(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """Two critics whose mean and each alone prefer a bound; the smaller prefers a = `params`."""
    difference = (action - params).sum(axis=1)
    return jnp.stack([difference, -3.0 * difference])


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("use", ["eval", "explore", "target"])
def test_the_best_sample_is_taken_by_the_smaller_critic(name: str, use: str):
    """To explore and in evaluation by the critics; for a critic target by the target critics."""

    def draws(key: jax.Array, batch: int) -> jax.Array:
        return jnp.tile(jnp.linspace(-0.9, 0.9, 16)[:, None], (batch // 16, 2))

    plain = small_agent(name, action_noise=0.0, **{f"{use}_samples": 16})
    agent = with_values(with_samples(plain, draws), pulling_apart)
    state = initial(plain)
    learned = state.critic.online._replace(params=jnp.float32(0.3))
    state = state._replace(critic=state.critic._replace(online=learned, target=jnp.float32(-0.3)))
    if use == "target":
        batch = small_batch(0, size=16)
        if name == "qsm":
            chosen = agent.target_action(state, batch.next_observation, jax.random.key(0))
        else:
            chosen = (drawn := agent.draw(state, batch, jax.random.key(0))).action
            assert drawn.unsquashed.shape == (16, 2)
    else:
        mode = "evaluate" if use == "eval" else "explore"
        chosen = act(agent, state, jnp.zeros((3, 3)), 0, mode)
    # 0.3 and -0.3 are among the candidates.
    np.testing.assert_allclose(chosen, -0.3 if use == "target" else 0.3, atol=1e-5)


# ---- Updating -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qsm", pytest.param("qsm-clean", marks=pytest.mark.slow)])
def test_saturation_is_of_the_actions_in_the_critic_target(name: str):
    bounds = jnp.array([-0.999, 0.999, 0.0])
    plain = small_agent(name, action_noise=0.0)
    plain = type(plain)(plain.config, 3, 3)
    agent = with_samples(plain, lambda key, batch: jnp.tile(bounds, (batch, 1)))
    batch = small_batch(0)._replace(action=jnp.zeros((8, 3)))
    _, metrics = update(agent, jax.jit(plain.init)(jax.random.key(0)), batch=batch)
    assert float(metrics["policy/saturation"].total) == pytest.approx(2 / 3)


def test_spread_is_measured_at_its_interval():
    agent = small_agent("qsm")
    for step, count in ((0, 1.0), (1, 0.0), (score.SPREAD_INTERVAL, 1.0)):
        spread = update(agent, step=step)[1]["policy/spread"]
        assert float(spread.count) == count and (float(spread.total) > 0) == (count > 0)


def test_the_score_learning_rate_decays_by_a_cosine():
    agent = small_agent("qsm")
    assert agent.config.score_decay_steps == 100
    before = with_hyperparameters(initial(agent), score_learning_rate=0.1)

    def moved(step: int) -> float:
        return distance(update(agent, before, step=step)[0].score.params, before.score.params)

    # Adam's first step is the rate itself.
    assert moved(0) == pytest.approx(0.1, rel=1e-3)
    assert moved(25) == pytest.approx(0.05 * (1 + np.sqrt(0.5)), rel=1e-3)
    assert moved(50) == pytest.approx(0.05, rel=1e-3)
    assert moved(100) == moved(1000) == pytest.approx(0.0, abs=1e-7)
    # The critics' rate is constant.
    critics = update(agent, step=1000)[0].critic.online.params
    assert distance(critics, before.critic.online.params) == pytest.approx(3e-4, rel=1e-2)


@pytest.mark.parametrize(("name", "option"), [("qsm", "score_scale"), ("qsm-clean", "inverse_temperature")])
def test_hyperparameters_are_read_from_the_state(name: str, option: str):
    agent = small_agent(name)
    default, changed = (
        update(agent, state)[0].score.params
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
    given = []

    class Watched(type(plain)):
        def score_target(self, *inputs: Any) -> Any:
            given.append(inputs[0] if name == "qsm" else inputs[1])
            *found, metrics = super().score_target(*inputs)
            return *found, metrics | {"given": given[-1]}

    agent = with_samples(Watched(plain.config, 3, 2), always(0.4))
    state = with_hyperparameters(initial(plain), action_noise=0.0)
    state = with_critic_of(state, initial(plain, seed=9))
    new_state, metrics = update(agent, state)
    assert distance(metrics["given"], new_state.critic.online.params) == 0.0
    assert distance(metrics["given"], state.critic.online.params) > 1e-4

    values = plain.critic.value(state.critic.target, batch.next_observation, jnp.full((8, 2), 0.4))
    expected = np.asarray(batch.reward) + np.asarray(batch.discount) * np.asarray(values).min(axis=0)
    assert float(metrics["critic/target"].total) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(metrics["policy/q"].total) == pytest.approx(np.asarray(values).mean(), rel=1e-4)
    followed = jax.tree.map(
        lambda old, new: old + 0.005 * (new - old), state.critic.target, new_state.critic.online.params
    )
    assert distance(new_state.critic.target, followed) < 1e-6


def test_the_slow_network_follows_by_its_rate():
    agent = small_agent("qsm-clean")
    before = with_hyperparameters(initial(agent), draw_rate=0.25, score_learning_rate=0.1)
    after, _ = update(agent, before)
    expected = jax.tree.map(lambda old, new: old + 0.25 * (new - old), before.average, after.score.params)
    assert distance(after.average, expected) < 1e-6
    assert distance(after.average, before.average) > 0.01
