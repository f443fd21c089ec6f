"""A tanh-Gaussian policy: a = tanh(u), u ~ N(mean(s), exp(log_std(s))^2)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from agents.parts.approximator import Approximator


class GaussianPolicy(Approximator):
    """Samples, densities and modes of a network that gives mean and log-std `[B, A]` before the tanh."""

    @jax.named_scope("policy_sample")
    def sample(self, params: Any, observation: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Reparametrized actions `[B, A]` and their log-probabilities `[B]`."""
        mean, log_std = self.apply(params, observation)
        unsquashed = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return jnp.tanh(unsquashed), log_probability(unsquashed, mean, log_std)

    def mode(self, params: Any, observation: jax.Array) -> jax.Array:
        """The tanh of the Gaussian's mean, `[B, A]`."""
        return jnp.tanh(self.apply(params, observation)[0])


def log_probability(unsquashed: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """log pi(a|s) `[B]` of a = tanh(u), u ~ N(mean, exp(log_std)^2), all `[B, A]`.

    log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2 u)), which does not overflow at large |u|.
    """
    standard = (unsquashed - mean) * jnp.exp(-log_std)
    gaussian = -0.5 * jnp.square(standard) - log_std - 0.5 * math.log(2 * math.pi)
    log_jacobian = 2.0 * (math.log(2.0) - unsquashed - jax.nn.softplus(-2.0 * unsquashed))
    return (gaussian - log_jacobian).sum(axis=-1)
