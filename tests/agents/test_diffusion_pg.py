"""The policy gradient of a chain, on linear-Gaussian chains and a quadratic Q, where the true gradient is known."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import score
from tests.agents.analytic import (
    distance,
    initial,
    small_agent,
    small_batch,
    update,
    with_hyperparameters,
    with_part,
    with_values,
)
from tests.agents.exact_chain import Chain

OPTIMUM, LAST_STD, NUM_CHAINS = 0.4, 0.3, 4
PARAMS = {"slope": jnp.array([0.9, 1.0]), "offset": jnp.array([-0.2, -0.1])}
HYPER = {
    "action_noise": jnp.float32(LAST_STD),
    "sample_clip": jnp.float32(1e6),
}  # a bound that nothing reaches


class LinearDenoiser(score.Denoiser):
    """Predicts the noise slope_t u_t + offset_t."""

    def predictor(self, params: Any, observation: jax.Array, levels: Any = None) -> Any:
        return lambda index, noised: params["slope"][index] * noised + params["offset"][index]


@functools.cache
def linear_agent(num_levels: int = 2) -> Any:
    """The agent for one observation and one action with a linear network and Q = -(u_0 - OPTIMUM)^2."""
    plain = small_agent("diffusion-pg", denoising_steps=num_levels, chains_per_state=NUM_CHAINS)
    plain = type(plain)(plain.config, 1, 1)
    of = plain.denoiser
    return with_part(
        plain, denoiser=LinearDenoiser(of.network, of.schedule, of.step_variance, of.decay_steps)
    )


def moments(params: Any, last_std: float) -> tuple[Any, Any]:
    """Mean and variance of u_0 in the chain, noise in the last step included; differentiable by `params`."""
    exact, mean, variance = Chain(2), 0.0, 1.0
    for i in (1, 0):
        share = (1 - exact.alpha[i]) / exact.sigma[i]
        factor = (1 - share * params["slope"][i]) / np.sqrt(exact.alpha[i])
        mean = factor * mean - share * params["offset"][i] / np.sqrt(exact.alpha[i])
        variance = factor**2 * variance + (exact.variance[i] if i else last_std**2)
    return mean, variance


def objective(params: Any) -> Any:
    """E[Q]."""
    mean, variance = moments(params, LAST_STD)
    return -((mean - OPTIMUM) ** 2) - variance


@functools.cache
def gradients(shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the loss at each of many states, with and without the baseline, for Q + `shift`; each `[G, 4]`."""
    agent, num_states = linear_agent(), 20_000

    @jax.jit
    def found(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation = jnp.zeros((num_states * NUM_CHAINS, 1))
        states = agent.states(PARAMS, HYPER, observation, key)
        value = shift - jnp.square(states[0, :, 0] - OPTIMUM)

        def at_state(states: jax.Array, advantage: jax.Array) -> jax.Array:
            inputs = HYPER, jnp.zeros((NUM_CHAINS, 1)), states, advantage
            gradient = jax.grad(agent.actor_loss, has_aux=True)(PARAMS, *inputs)[0]
            return jnp.concatenate([gradient["slope"], gradient["offset"]])

        apart = jnp.moveaxis(states.reshape(3, num_states, NUM_CHAINS, 1), 1, 0)
        both = (agent.advantage(value), value)
        return tuple(jax.vmap(at_state)(apart, each.reshape(num_states, NUM_CHAINS)) for each in both)  # type: ignore[return-value]

    with_baseline, without = found(jax.random.key(0))
    return np.asarray(with_baseline, np.float64), np.asarray(without, np.float64)


def standard_error(samples: np.ndarray) -> np.ndarray:
    return samples.std(axis=0) / np.sqrt(len(samples))


def test_the_gradient_is_unbiased():
    found, _ = gradients(0.0)
    exact = jax.grad(objective)(PARAMS)
    expected = -np.concatenate([exact["slope"], exact["offset"]])
    assert np.all(np.abs(expected) > 8 * standard_error(found))  # what is measured is no noise
    assert np.all(np.abs(found.mean(axis=0) - expected) < 4 * standard_error(found))


def test_the_baseline_leaves_the_mean_and_lowers_the_variance():
    """A value common to all actions of a state moves the gradient without a baseline, and none with it."""
    found, without = gradients(5.0)
    error = standard_error(found - without)
    assert np.all(np.abs((found - without).mean(axis=0)) < 4 * error)
    assert np.all(found.var(axis=0) < 0.1 * without.var(axis=0))
    np.testing.assert_allclose(found, gradients(0.0)[0], atol=1e-3)


def test_the_chain_has_its_closed_form_moments_to_explore_and_in_evaluation():
    agent = linear_agent()
    state = initial(small_agent("diffusion-pg"))
    state = state._replace(score=state.score._replace(params=PARAMS), hyperparameters=HYPER)
    for mode, last_std in (("explore", LAST_STD), ("evaluate", 0.0)):
        act = jax.jit(agent.act, static_argnames="mode")
        action = act(state, jnp.zeros((40_000, 1)), jax.random.key(1), mode=mode)
        unsquashed = np.arctanh(np.asarray(action, np.float64))
        mean, variance = map(float, moments(PARAMS, last_std))
        assert unsquashed.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / 40_000))
        assert unsquashed.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / 40_000))


def test_the_baseline_is_the_mean_of_the_other_chains():
    value = jnp.array([1.0, 2.0, 3.0, 6.0, 10.0, 10.0, 10.0, 10.0])
    expected = np.array([1 - 11 / 3, 2 - 10 / 3, 3 - 3, 6 - 2, 0, 0, 0, 0])
    np.testing.assert_allclose(linear_agent().advantage(value), expected, rtol=1e-5, atol=1e-6)
    normalizing = small_agent("diffusion-pg", chains_per_state=4, normalize_advantages=True)
    for factor in (1.0, 1e-3):
        np.testing.assert_allclose(
            normalizing.advantage(factor * value), expected / np.std(expected), rtol=1e-4, atol=1e-5
        )


def test_chains_begin_at_replay_states_and_the_best_of_several_enters_the_target():
    plain = small_agent("diffusion-pg", chains_per_state=4, target_samples=3)
    agent = with_values(plain, lambda params, o, a: jnp.stack([-jnp.square(a - 0.3).sum(axis=1)] * 2))
    state, batch, key = initial(plain), small_batch(0), jax.random.key(2)
    action, observation, states = jax.jit(agent.draw)(state, batch, key)
    np.testing.assert_array_equal(observation, np.repeat(batch.observation[:2], 4, axis=0))
    both = jnp.concatenate([jnp.repeat(batch.next_observation, 3, axis=0), observation])
    expected = jax.jit(agent.states)(state.score.params, state.hyperparameters, both, key)
    np.testing.assert_allclose(states, expected[:, 24:], atol=1e-5)
    candidates = np.tanh(expected[0, :24]).reshape(8, 3, 2)
    best = np.square(candidates - 0.3).sum(axis=2).argmin(axis=1)
    np.testing.assert_allclose(action, candidates[range(8), best], atol=1e-5)


@pytest.mark.slow
def test_an_update_climbs_the_critics_just_updated():
    """The network's step is that of the loss at the chains drawn, by the advantage under the new critics."""
    agent = small_agent("diffusion-pg", chains_per_state=4)
    state = with_hyperparameters(initial(agent), critic_learning_rate=0.05)
    new_state, metrics = update(agent, state)
    draw_key = jax.random.split(jax.random.key(1))[0]
    _, observation, states = jax.jit(agent.draw)(state, small_batch(0), draw_key)
    params = new_state.critic.online.params
    value = agent.critic.reduced_value(params, observation, jnp.tanh(states[0]))
    assert float(metrics["policy/q_drawn"].total) == pytest.approx(float(value.mean()), rel=1e-4)
    others = agent.critic.reduced_value(state.critic.online.params, observation, jnp.tanh(states[0]))
    assert distance(value, others) > 1e-3
    log_density = jax.jit(agent.log_density)(state.score.params, state.hyperparameters, observation, states)
    expected = -(np.asarray(agent.advantage(value)) * np.asarray(log_density)).mean()
    assert float(metrics["actor/loss"].total) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("inward", [True, False])
def test_a_chain_at_the_clip_learns_to_come_back_only_where_asked(inward: bool):
    """One level, whose clean action is clipped from far above: a chain drawn below its mean, of a large advantage."""
    plain = small_agent("diffusion-pg", denoising_steps=1, inward_gradient=inward)
    agent = type(plain)(plain.config, 1, 1)
    of = agent.denoiser
    linear = LinearDenoiser(of.network, of.schedule, of.step_variance, of.decay_steps)
    agent = with_part(agent, denoiser=linear)
    params = {"slope": jnp.zeros(1), "offset": jnp.full(1, -50.0)}
    hyper = HYPER | {"sample_clip": jnp.float32(3.0)}
    states = jnp.array([[[2.9], [3.1]], [[0.0], [0.0]]])  # u_0 on either side of the mean, from u_1 = 0
    slopes = []
    for weight in ([1.0, 0.0], [0.0, 1.0]):
        inputs = hyper, jnp.zeros((2, 1)), states, jnp.array(weight)
        slopes.append(float(jax.grad(agent.actor_loss, has_aux=True)(params, *inputs)[0]["offset"][0]))
    # A larger offset is a smaller action: descent raises it for the first chain, and does not lower it for the other.
    assert (slopes[0] < 0.0) == inward and slopes[1] == 0.0
