"""Running statistics of observations. The replay buffer keeps raw rows, so resume stays exact."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

EPSILON = 1e-8  # added to the variance
LARGEST_COUNT = 1e7  # observations from which on old ones fade: float32 counts no further by ones than 1.6e7


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
