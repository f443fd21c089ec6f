"""Gaussian noise on actions: to explore, and to smooth critic targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.named_scope("action_noise")
def perturb(
    action: jax.Array, std: float | jax.Array, key: jax.Array, bound: float | jax.Array | None = None
) -> jax.Array:
    """Actions `[B, A]` plus N(0, std^2), itself clipped to +-`bound` where that is given, clipped to [-1, 1]."""
    noise = std * jax.random.normal(key, action.shape)
    if bound is not None:
        noise = jnp.clip(noise, -bound, bound)
    return jnp.clip(action + noise, -1.0, 1.0)
