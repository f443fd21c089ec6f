"""What published Q-score matching learns, with analytic values in place of a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from tests.agents.analytic import (
    LONG_RUN,
    implied_noise,
    initial,
    small_agent,
    small_batch,
    train_score,
    update,
    with_gradient,
)
from tests.agents.exact_chain import Chain

NETWORKS = {"hidden_sizes": (32, 32), "time_embedding_size": 16, "time_hidden_sizes": (16,)}
CHAIN = Chain(5)


def test_published_target_is_the_gradient_of_the_critics_mean_at_the_noised_action():
    agent, batch = small_agent("qsm"), small_batch(0, size=400)
    critic_params = initial(agent, seed=9).critic.online.params
    hyper = initial(agent).hyperparameters | {"score_scale": jnp.float32(7.0)}
    target, _, metrics = jax.jit(agent.score_target)(critic_params, hyper, batch, jax.random.key(1))

    def member(i: int) -> Callable[[jax.Array], jax.Array]:
        return lambda action: agent.critic.value(critic_params, batch.observation, action)[i].sum()

    gradients = [np.asarray(jax.jit(jax.grad(member(i)))(target.noised)) for i in range(2)]
    gradient = (gradients[0] + gradients[1]) / 2
    np.testing.assert_allclose(target.noise, -7.0 * gradient, rtol=1e-4, atol=1e-5)
    norm = np.linalg.norm(gradient, axis=1).mean()
    assert float(metrics["score/action_gradient_norm"].total) == pytest.approx(norm, rel=1e-4)
    assert float(metrics["score/scaled_gradient_norm"].total) == pytest.approx(7 * norm, rel=1e-4)

    # Levels are uniform over 1..T, and the replay action is noised to them.
    assert np.bincount(target.level, minlength=5) == pytest.approx([0, 133, 133, 133, 0], abs=40)
    noise, _, _ = implied_noise(target, batch.action, Chain(3))
    assert noise.mean() == pytest.approx(0.0, abs=0.1) and noise.std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_a_relative_scale_is_the_same_for_rewards_of_any_size(factor: float):
    """Two components, (3, 4) at half of the actions and nothing elsewhere: mean length G = 2.5, then followed."""
    agent = with_gradient(
        agents.make_agent("qsm", 3, 2, relative_scale=True, score_scale=5.0, gradient_size_rate=0.25),
        lambda action: factor * jnp.outer(jnp.arange(len(action)) % 2, jnp.array([3.0, 4.0])),
    )
    batch, hyper = small_batch(0, size=400), initial(agent).hyperparameters
    first, size, _ = agent.score_target((), hyper, batch, jax.random.key(1), jnp.zeros(()))
    assert float(size) == pytest.approx(factor * 2.5, rel=1e-5)
    np.testing.assert_allclose(first.noise[1], -5 * np.sqrt(2) * np.array([3, 4]) / 2.5, rtol=1e-5)
    np.testing.assert_array_equal(first.noise[0], 0)
    later, size, _ = agent.score_target((), hyper, batch, jax.random.key(1), jnp.float32(4.5 * factor))
    assert float(size) == pytest.approx(factor * 4.0, rel=1e-5)
    np.testing.assert_allclose(later.noise[1], -5 * np.sqrt(2) * np.array([3, 4]) / 4.0, rtol=1e-5)


def test_the_size_of_the_gradient_is_kept_where_the_scale_is_relative():
    fixed, relative = small_agent("qsm"), small_agent("qsm", relative_scale=True, score_scale=1.0)
    assert initial(fixed).gradient_size == update(fixed)[0].gradient_size == ()
    after, metrics = update(relative)
    size = float(metrics["score/action_gradient_norm"].total)
    assert float(initial(relative).gradient_size) == 0.0
    assert float(after.gradient_size) == pytest.approx(size, rel=1e-5)
    assert float(metrics["score/scaled_gradient_norm"].total) == pytest.approx(np.sqrt(2), rel=1e-4)
    further, metrics = update(relative, after._replace(gradient_size=jnp.float32(4.0)))
    size = float(metrics["score/action_gradient_norm"].total)
    assert float(further.gradient_size) == pytest.approx(4 + 0.005 * (size - 4), rel=1e-5)


@pytest.fixture(scope="module")
def published() -> np.ndarray:
    """Samples `[3, N, 1]` of QSM trained on Q = -(a - 0.3)^2 with M_q = 1, 10 and 50, in one program."""
    agent = with_gradient(agents.make_agent("qsm", 1, 1, **NETWORKS), lambda action: -2 * (action - 0.3))

    def train(state: Any, scale: jax.Array, key: jax.Array) -> jax.Array:
        train_key, sample_key = jax.random.split(key)
        swept = {"score_scale": scale, "score_learning_rate": jnp.float32(5e-3)}
        state = state._replace(hyperparameters=state.hyperparameters | swept)

        def replay(state: Any, key: jax.Array) -> jax.Array:
            return jax.random.uniform(key, (256, 1), minval=-1.0)

        state = train_score(agent, state, train_key, 1500, replay)
        return agent.sample(state.score.params, jnp.zeros((5000, 1)), sample_key)

    keys = jax.random.split(jax.random.key(0), 3)
    over_scales = jax.jit(jax.vmap(train, in_axes=(None, 0, 0)), compiler_options=LONG_RUN)
    return np.asarray(over_scales(initial(agent), jnp.array([1.0, 10.0, 50.0]), keys))


def exact_published(scale: float, num_samples: int = 100_000) -> np.ndarray:
    """Samples of the published chain with the exact target for prediction, clipped at each step."""
    rng = np.random.default_rng(0)
    action = rng.normal(size=num_samples)
    for i in reversed(range(5)):
        predicted = scale * 2 * (action - 0.3)
        beta = 1 - CHAIN.alpha[i]
        mean = (action - beta / CHAIN.sigma[i] * predicted) / np.sqrt(CHAIN.alpha[i])
        action = np.clip(mean + (np.sqrt(beta) * rng.normal(size=num_samples) if i else 0.0), -1, 1)
    return action


@pytest.mark.slow
def test_published_qsm_climbs_a_quadratic_to_its_peak(published: np.ndarray):
    exact = exact_published(1.0)
    assert exact.mean() == pytest.approx(0.337, abs=0.003) and exact.std() == pytest.approx(0.07, abs=0.005)
    # A wrong sign would drive the samples to the bounds.
    assert published[0].mean() == pytest.approx(exact.mean(), abs=0.015)
    assert published[0].std() == pytest.approx(exact.std(), abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "scale"), [(1, 10.0), (2, 50.0)])
def test_published_qsm_saturates_at_large_scales(published: np.ndarray, index: int, scale: float):
    exact = exact_published(scale)
    assert (np.abs(exact) == 1.0).mean() > 0.97
    assert (np.abs(published[index]) == 1.0).mean() > 0.97
    assert published[index].mean() == pytest.approx(exact.mean(), abs=0.15)
