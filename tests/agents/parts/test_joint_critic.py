"""Critics that normalise batches: both batches in one pass, running statistics, no slow copy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.networks.critics import CriticEnsemble
from agents.networks.torsos import Torso
from agents.parts.critic import JointCritic
from agents.parts.heads import Reduction, Scalar
from tests.agents.analytic import distance, small_batch

CRITIC = JointCritic(CriticEnsemble(2, Torso((8,), kind="batchnorm")), Scalar(reduction=Reduction("mean")))
BATCH = small_batch(0)
NEXT_ACTION = jnp.tanh(BATCH.action[::-1] + 0.5)
BONUS = jnp.linspace(-1.0, 1.0, 8)
STATE = jax.jit(CRITIC.init_state)(jax.random.key(0), BATCH.observation, BATCH.action)


@jax.jit
def regress(state: Any, rate: float) -> Any:
    return CRITIC.regress(state, BATCH, CRITIC.target(state, BATCH, NEXT_ACTION, BONUS), rate)


def two_passes(params: Any, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Values of one member at both batches, each normalised by the moments of the two pooled; and those moments."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf[index], np.float64), params)["params"]["members"]
    t = p["torso"]
    halves = [
        np.concatenate([BATCH.observation, BATCH.action], axis=1).astype(np.float64),
        np.concatenate([BATCH.next_observation, NEXT_ACTION], axis=1).astype(np.float64),
    ]
    moments = []

    def normalize(halves: list[np.ndarray], p: Any) -> list[np.ndarray]:
        means, squares = [h.mean(axis=0) for h in halves], [np.square(h).mean(axis=0) for h in halves]
        mean = (means[0] + means[1]) / 2
        variance = (squares[0] + squares[1]) / 2 - np.square(mean)
        moments.append((mean, variance))
        return [(h - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"] for h in halves]

    halves = normalize(halves, t["BatchNorm_0"])
    halves = [np.maximum(h @ t["Dense_0"]["kernel"] + t["Dense_0"]["bias"], 0) for h in halves]
    halves = normalize(halves, t["BatchNorm_1"])
    one, other = ((h @ p["value"]["kernel"] + p["value"]["bias"])[:, 0] for h in halves)
    return one, other, moments


def test_one_pass_is_two_by_the_moments_of_both_batches():
    _, next_value, metrics = regress(STATE, 0.0)
    values, next_values = zip(*(two_passes(STATE.online.params, i)[:2] for i in range(2)), strict=True)
    np.testing.assert_allclose(next_value, next_values, rtol=1e-3, atol=1e-4)
    target = BATCH.reward + BATCH.discount * (np.mean(next_values, axis=0) + BONUS)
    loss = np.square(np.stack(values) - np.asarray(target)[None]).mean()
    assert float(metrics["critic/loss"].total) == pytest.approx(loss, rel=1e-3)
    assert float(metrics["critic/target"].total) == pytest.approx(float(target.mean()), abs=1e-3)
    assert float(metrics["critic/q_replay"].total) == pytest.approx(np.mean(values), abs=1e-3)


def test_running_statistics_move_by_a_hundredth_and_the_rest_is_by_them():
    state, _, _ = regress(STATE, 0.0)
    stats = state.online.params["batch_stats"]["members"]["torso"]
    for index in range(2):
        for layer, (mean, variance) in enumerate(two_passes(STATE.online.params, index)[2]):
            got = stats[f"BatchNorm_{layer}"]
            np.testing.assert_allclose(got["mean"][index], 0.01 * mean, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(got["var"][index], 0.99 + 0.01 * variance, rtol=1e-3)
    # Learned numbers stay as they were at a rate of zero; statistics are none of them.
    assert distance(state.online.params["params"], STATE.online.params["params"]) == 0.0
    # A row outside a regression is normalised by the statistics, whoever stands beside it.
    inputs = BATCH.observation, BATCH.action
    whole = CRITIC.value(state.online.params, *inputs)
    one = CRITIC.value(state.online.params, *(x[:1] for x in inputs))
    np.testing.assert_allclose(one, whole[:, :1], rtol=1e-4, atol=1e-5)
    first = CRITIC.first_value(state.online.params, *inputs)
    np.testing.assert_allclose(first, whole[0], rtol=1e-4, atol=1e-5)


def test_the_target_is_no_copy_and_no_gradient_flows_through_it():
    state, _, _ = regress(STATE, 0.1)
    assert distance(state.target, state.online.params) == 0.0 < distance(state.target, STATE.target)
    assert CRITIC.follow(state, 0.5) is state

    # The gradient is that of the error at the values of (s, a) alone: moments and targets of (s', a') are given.
    torso = Torso((8,), kind="batchnorm", is_training=True)
    training = CRITIC.network.clone(torso=torso)
    next_value = regress(STATE, 0.0)[1]
    target = BATCH.reward + BATCH.discount * (next_value.mean(axis=0) + BONUS)

    def loss(params: Any) -> jax.Array:
        pooled = (
            jnp.concatenate([BATCH.observation, BATCH.next_observation]),
            jnp.concatenate([BATCH.action, NEXT_ACTION]),
        )
        out, _ = training.apply(params, *pooled, mutable=["batch_stats"])
        return jnp.square(out[:, :8, 0] - target[None]).mean(axis=1).sum()

    gradient = jax.jit(jax.grad(loss))(STATE.online.params)["params"]
    mu = state.online.optimizer.mu["params"]  # a tenth of the gradient, after Adam's first step
    for got, expected in zip(jax.tree.leaves(mu), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(got, 0.1 * expected, rtol=1e-3, atol=1e-5)
