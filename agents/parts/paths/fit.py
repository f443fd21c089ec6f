"""How uncertain u_0 is at each noise level: measured on what the score network learns from, and what follows from it.

`clean_variance` `[T, A]` is the variance of u_0 about the clean action that the network implies at u_t. It gives the
variances of a chain's steps (`chain.step_variance`) and the mixture of the two noise predictions that has least noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from agents.parts import diffusion


def unit_variance(schedule: diffusion.Schedule, action_size: int) -> jax.Array:
    """`clean_variance` where u_0 is Gaussian of variance one: sigma_t^2."""
    sigma = jnp.asarray(np.square(schedule.sigma), jnp.float32)
    return jnp.broadcast_to(sigma[:, None], (schedule.num_levels, action_size))


def gaussian_variance(schedule: diffusion.Schedule, variance: jax.Array) -> jax.Array:
    """`clean_variance` where u_0 is Gaussian of `variance` `[A]`."""
    abar = jnp.asarray(schedule.abar, jnp.float32)[:, None]
    noise = jnp.asarray(1 - schedule.abar, jnp.float32)[:, None]
    return noise * variance[None] / (abar * variance[None] + noise)


def spread(unsquashed: jax.Array, num_chains: int) -> jax.Array:
    """Variance `[A]` of u_0 `[B, A]` within states, whose `num_chains` chains stand together; unbiased."""
    groups = unsquashed.reshape(-1, num_chains, unsquashed.shape[-1])
    return groups.var(axis=1).mean(axis=0) * (num_chains / (num_chains - 1))


def follow(before: jax.Array, measured: jax.Array, rate: float | jax.Array) -> jax.Array:
    """A running mean."""
    return before + rate * (measured - before)


def follow_residual(
    before: jax.Array, error: jax.Array, level: jax.Array, weight: jax.Array | None, rate: float | jax.Array
) -> jax.Array:
    """The running mean `[T, A]` of squared errors of the clean action, each level by the samples that fell on it.

    Args:
      error: `[B, A]`, u_0 less what the network implies.
      level: `[B]`, t = 1..T.
      weight: `[B]`, of each sample; None for 1.
      rate: with which a level that has its share of the batch, B / T, moves.
    """
    num_levels = before.shape[0]
    share = num_levels / level.shape[0]
    member = jax.nn.one_hot(level - 1, num_levels, axis=0)  # [T, B]
    if weight is not None:
        member = member * weight[None]
    number = member.sum(axis=1, keepdims=True)
    mean = member @ jnp.square(error) / jnp.maximum(number, 1e-8)
    return before + jnp.minimum(rate * share * number, 1.0) * (mean - before)


def implied_clean(
    schedule: diffusion.Schedule, noised: jax.Array, level: jax.Array, predicted: jax.Array, clip: jax.Array
) -> jax.Array:
    """u_0 `[B, A]` that predicted noise `[B, A]` implies at u_t and t, bounded as the chain bounds it."""
    sigma = diffusion.per_level(schedule.sigma, level)
    root_abar = diffusion.per_level(np.sqrt(schedule.abar), level)
    return diffusion.implied_clean(noised, predicted, sigma, root_abar, clip)


def usable(schedule: diffusion.Schedule, clean_variance: jax.Array) -> jax.Array:
    """`clean_variance` `[T, A]` up to sigma_t^2 / abar_t, beyond which u_t says nothing that the noise does not."""
    most = jnp.asarray(np.square(schedule.sigma) / schedule.abar, jnp.float32)[:, None]
    return jnp.minimum(clean_variance, most)


def noise_share(schedule: diffusion.Schedule, clean_variance: jax.Array) -> jax.Array:
    """lambda `[T, A]` of the target lambda eps - (1 - lambda) (sigma_t / sqrt(abar_t)) grad_u.

    Both terms are unbiased for the noise to predict. For u_0 Gaussian with variance c given u_t, lambda =
    1 - abar_t c / sigma_t^2 cancels all that varies at given u_t; where u_0 has variance one this is sigma_t^2. Of c
    counts what is `usable`.
    """
    ratio = jnp.asarray(schedule.abar / np.square(schedule.sigma), jnp.float32)[:, None]
    return jnp.clip(1.0 - ratio * clean_variance, 0.0, 1.0)
