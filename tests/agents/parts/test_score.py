from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import noise, score
from tests.agents.analytic import initial, small_agent, small_batch

AGENT = small_agent("qsm")
DENOISER = AGENT.denoiser


def predicted(target: score.ScoreTarget) -> jax.Array:
    params, observation = initial(AGENT).score.params, small_batch(0).observation
    return jax.jit(DENOISER.apply)(params, observation, target.noised, target.level)


def loss(target: score.ScoreTarget) -> tuple[float, dict[str, float]]:
    params, observation = initial(AGENT).score.params, small_batch(0).observation
    value, metrics = jax.jit(DENOISER.loss)(params, observation, target)
    return float(value), {name: float(mean.total / mean.count) for name, mean in metrics.items()}


def target_of(noise: Any = None, weight: Any = None) -> score.ScoreTarget:
    batch = small_batch(0)
    blank = score.ScoreTarget(batch.action, jnp.array([1, 2, 3, 1, 2, 3, 1, 2]), jnp.zeros((8, 2)))
    return blank._replace(noise=predicted(blank) if noise is None else noise, weight=weight)


def test_the_cosine_is_one_for_what_is_predicted_and_minus_one_for_its_negative():
    same = target_of()
    value, metrics = loss(same)
    assert value == pytest.approx(0.0, abs=1e-10)
    assert metrics["score/target_cosine"] == pytest.approx(1.0, abs=1e-5)
    value, metrics = loss(same._replace(noise=-same.noise))
    assert value == pytest.approx(4 * float(jnp.square(same.noise).mean()), rel=1e-5)
    assert metrics["score/target_cosine"] == pytest.approx(-1.0, abs=1e-5)
    crossed = same._replace(noise=jnp.stack([-same.noise[:, 1], same.noise[:, 0]], axis=1))
    assert loss(crossed)[1]["score/target_cosine"] == pytest.approx(0.0, abs=1e-5)
    # Where there is nothing to match, the cosine is no NaN.
    assert loss(same._replace(noise=jnp.zeros((8, 2))))[1]["score/target_cosine"] == 0.0


def test_each_squared_error_counts_by_its_weight():
    zero = target_of(noise=jnp.zeros((8, 2)))
    squares = np.square(np.asarray(predicted(zero)))
    assert loss(zero)[0] == pytest.approx(squares.mean(), rel=1e-5)
    weight = np.arange(8, dtype=np.float32)
    value, metrics = loss(zero._replace(weight=jnp.asarray(weight)))
    assert value == pytest.approx((weight[:, None] * squares).mean(), rel=1e-5)
    assert metrics["score/loss"] == pytest.approx(value, rel=1e-6)
    assert loss(zero._replace(weight=jnp.ones(8)))[0] == pytest.approx(squares.mean(), rel=1e-5)


VELOCITY = small_agent("qsm-clean", prediction="velocity").denoiser


def velocity_case() -> tuple[Any, jax.Array, jax.Array, jax.Array, np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, observations, u_t and t; what the network says, sigma_t and sqrt(abar_t)."""
    params, batch = VELOCITY.start(jax.random.key(1)).params, small_batch(0)
    level = jnp.array([1, 2, 3, 1, 2, 3, 1, 2])
    output = np.asarray(VELOCITY.apply(params, batch.observation, batch.action, level))
    index = np.asarray(level)[:, None] - 1
    schedule = VELOCITY.schedule
    return (
        params,
        batch.observation,
        batch.action,
        level,
        output,
        *(constants[index] for constants in (schedule.sigma, np.sqrt(schedule.abar))),
    )


def test_a_velocity_implies_the_clean_action_and_the_noise_that_were_mixed():
    """sqrt(abar) u_t - sigma v and sigma u_t + sqrt(abar) v, at each level and in the sampler."""
    params, observation, noised, level, velocity, sigma, root_abar = velocity_case()
    noise = np.asarray(VELOCITY.predict(params, observation, noised, level))
    np.testing.assert_allclose(noise, sigma * noised + root_abar * velocity, rtol=1e-4, atol=1e-5)
    clean = (noised - sigma * noise) / root_abar
    np.testing.assert_allclose(clean, root_abar * noised - sigma * velocity, rtol=1e-3, atol=1e-4)
    for visited in ([1, 2, 3], [1, 3]):  # all levels, and those of a shorter way down
        predict = VELOCITY.predictor(params, observation, np.array(visited))
        for index, one in enumerate(visited):
            at = np.asarray(level) == one
            found = predict(jnp.asarray(index), noised)[at]
            np.testing.assert_allclose(found, noise[at], rtol=1e-4, atol=1e-5)


def test_a_velocity_is_regressed_in_its_own_units():
    """Towards (eps* - sigma u_t) / sqrt(abar), so that an error counts alike at each level."""
    params, observation, noised, level, velocity, sigma, root_abar = velocity_case()
    noise = np.random.default_rng(0).normal(size=noised.shape).astype(np.float32)
    target = score.ScoreTarget(noised, level, jnp.asarray(noise))
    value, metrics = VELOCITY.loss(params, observation, target)
    wanted = (noise - sigma * np.asarray(noised)) / root_abar
    assert float(value) == pytest.approx(np.square(velocity - wanted).mean(), rel=1e-3)
    lengths = np.linalg.norm(velocity, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = ((velocity * wanted).sum(axis=1) / lengths).mean()
    assert float(metrics["score/target_cosine"].total) == pytest.approx(cosine, rel=1e-3)


def test_the_score_of_published_qsm_is_no_velocity():
    with pytest.raises(ValueError, match=r"prediction is 'velocity'.*leave it out"):
        small_agent("qsm", prediction="velocity")


def test_noised_actions_follow_the_forward_equation_at_uniform_levels():
    action = jnp.full((6000, 2), 0.5)
    noised = jax.jit(DENOISER.add_noise)(action, jax.random.key(0))
    counts = np.bincount(np.asarray(noised.level), minlength=5)
    assert counts[0] == counts[4] == 0 and counts[1:4] == pytest.approx([2000] * 3, abs=150)
    schedule = DENOISER.schedule
    index = np.asarray(noised.level) - 1
    expected = np.sqrt(schedule.abar)[index, None] * 0.5 + schedule.sigma[index, None] * np.asarray(
        noised.noise
    )
    np.testing.assert_allclose(noised.action, expected, rtol=1e-4, atol=1e-5)


def test_the_best_of_several_samples_has_the_largest_value_at_each_observation():
    observation = jnp.array([[0.5], [-0.5], [0.0]])
    candidates = jax.random.uniform(jax.random.key(0), (48, 2), minval=-1.0)

    def value(observation: jax.Array, action: jax.Array) -> jax.Array:
        return -jnp.square(action - observation).sum(axis=1)

    def sample(repeated: jax.Array) -> jax.Array:
        np.testing.assert_array_equal(repeated, np.repeat(observation, 16, axis=0))
        return candidates

    chosen = score.best_of(16, sample, value, observation)
    distances = np.square(np.asarray(candidates).reshape(3, 16, 2) - np.asarray(observation)[:, None]).sum(2)
    np.testing.assert_array_equal(
        chosen, np.asarray(candidates).reshape(3, 16, 2)[range(3), distances.argmin(1)]
    )
    # One sample is taken as it is, and nobody is asked for its value.
    alone = score.best_of(1, lambda o: o, lambda *_: pytest.fail("a value was asked for"), observation)
    np.testing.assert_array_equal(alone, observation)


def test_a_key_draws_one_sample_by_the_softmax_of_their_values():
    candidates, logits = jnp.array([[-0.5], [0.0], [0.5]]), np.log([0.2, 0.5, 0.3])
    observation = jnp.zeros((20_000, 1))
    value = jnp.tile(jnp.asarray(logits, jnp.float32) + 7.0, 20_000)
    chosen = score.best_of(
        3, lambda o: jnp.tile(candidates, (20_000, 1)), lambda o, a: value, observation, jax.random.key(0)
    )
    shares = [float((chosen == candidate).mean()) for candidate in candidates[:, 0]]
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=0.012)  # three standard errors: 0.0106


def test_spread_is_the_std_within_a_state_and_skipped_between_its_intervals():
    def sample(observation: jax.Array) -> jax.Array:
        """0.1 and 0.5 in turn about the observation: std 0.2, whatever the states."""
        offsets = jnp.tile(jnp.array([[0.1], [0.5]]), (observation.shape[0] // 2, 2))
        return observation[:, :2] + offsets

    observation = small_batch(0).observation
    for step, count in ((0, 1.0), (1, 0.0), (score.SPREAD_INTERVAL - 1, 0.0), (score.SPREAD_INTERVAL, 1.0)):
        found = score.spread(sample, observation, jnp.asarray(step))
        assert float(found.count) == count
        assert float(found.total) == pytest.approx(0.2 * count, rel=1e-5)


def test_noise_has_its_std_and_bound_and_leaves_no_box():
    action, keys = jnp.full((20_000, 2), 0.4), jax.random.split(jax.random.key(0), 3)
    free = np.asarray(noise.perturb(action, 0.1, keys[0]))
    assert free.std() == pytest.approx(0.1, rel=0.02) and free.mean() == pytest.approx(0.4, abs=0.005)
    bounded = np.asarray(noise.perturb(action, 100.0, keys[1], 0.25))
    np.testing.assert_allclose(np.unique(np.round(bounded[np.abs(bounded - 0.4) > 0.249], 4)), [0.15, 0.65])
    loud = np.asarray(noise.perturb(action, 100.0, keys[2]))
    assert loud.min() == -1.0 and loud.max() == 1.0
