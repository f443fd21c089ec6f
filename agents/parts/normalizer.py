"""Running statistics of observations and of returns. The replay buffer keeps raw rows, so resume stays exact."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

FIRST = 0  # step type of a start, as dm_env has it
EPSILON = 1e-8  # added to the variance
LARGEST_COUNT = 1e7  # observations from which on old ones fade: float32 counts no further by ones than 1.6e7


TRACKED = 64  # environments whose returns are followed: a state has one shape, whatever their number


class Statistics(NamedTuple):
    """Mean and variance of all observations so far."""

    count: jax.Array  # []
    mean: jax.Array  # [O]
    variance: jax.Array  # [O]


def init(observation_size: int) -> Statistics:
    """Statistics of nothing: they leave observations as they are."""
    return Statistics(jnp.zeros(()), jnp.zeros(observation_size), jnp.ones(observation_size))


def observe(statistics: Statistics, observation: jax.Array, is_valid: jax.Array) -> Statistics:
    """Adds observations `[N, O]` where `is_valid` `[N]` (Chan et al. 1979: the same over any split into batches)."""
    weight = jnp.broadcast_to(is_valid, observation.shape[:1]).astype(jnp.float32)[:, None]
    # Where an observation is invalid it may be NaN, which no weight of zero takes away.
    observation = jnp.where(weight > 0, observation, 0.0)
    added = weight.sum()
    mean = (weight * observation).sum(axis=0) / jnp.maximum(added, 1.0)
    variance = (weight * jnp.square(observation - mean[None])).sum(axis=0) / jnp.maximum(added, 1.0)
    count = statistics.count + added
    share = added / jnp.maximum(count, 1.0)
    difference = mean - statistics.mean
    # Of nothing so far, the variance counts with weight zero.
    merged = (
        (1 - share) * statistics.variance + share * variance + share * (1 - share) * jnp.square(difference)
    )
    is_new = added > 0
    return Statistics(
        jnp.minimum(count, LARGEST_COUNT),
        jnp.where(is_new, statistics.mean + share * difference, statistics.mean),
        jnp.where(is_new, merged, statistics.variance),
    )


def normalize(statistics: Statistics, observation: jax.Array) -> jax.Array:
    """Observations `[B, O]` with mean zero and variance one, as far as is known."""
    return (observation - statistics.mean[None]) * jax.lax.rsqrt(statistics.variance + EPSILON)[None]


# ---- Rewards --------------------------------------------------------------------------------------------------------


class Returns(NamedTuple):
    """Statistics of the rewards so far, each row's added up and discounted backwards in time."""

    running: jax.Array  # [TRACKED], G of the first environments
    statistics: Statistics  # of all G, [1]
    largest: jax.Array  # [], of all |G|


class Normalizer(NamedTuple):
    """What a state has where rewards are normalized, too."""

    observation: Statistics | tuple[()]
    returns: Returns


def init_returns() -> Returns:
    """Statistics of nothing: they leave rewards as they are."""
    return Returns(jnp.zeros(TRACKED), init(1), jnp.zeros(()))


def observe_returns(returns: Returns, time_step: Any, is_valid: jax.Array, discount: jax.Array) -> Returns:
    """Adds rows `[N]`: G = r + discount * G before, from zero at the start of an episode.

    Lee et al. 2025, section 4.3. What led to a first observation is no reward, and counts for nothing.
    """
    number = min(time_step.reward.shape[0], TRACKED)
    is_valid = jnp.broadcast_to(is_valid, time_step.reward.shape)[:number]
    is_first = time_step.step_type[:number] == FIRST
    before = returns.running[:number]
    after = jnp.where(is_first, 0.0, time_step.reward[:number] + discount * before)
    running = jnp.where(is_valid, after, before)
    is_reward = is_valid & ~is_first
    return Returns(
        returns.running.at[:number].set(running),
        observe(returns.statistics, running[:, None], is_reward),
        jnp.maximum(returns.largest, jnp.where(is_reward, jnp.abs(running), 0.0).max()),
    )


def reward_scale(returns: Returns, bound: float) -> jax.Array:
    """What rewards are divided by, `[]`: the standard deviation of G, or more where that leaves a |G| above `bound`."""
    deviation = jnp.sqrt(returns.statistics.variance[0] + EPSILON)
    return jnp.maximum(deviation, returns.largest / bound)
