"""Weights of chains by exp(Q/tau) over their own likelihood, normalised within each state.

K chains are drawn at each of G states; log weights are Q/tau + ell `[G, K]`, with ell of `chain.draw`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

FEWEST_LOG2 = -40.0  # tempering goes down to 2^-40: log weights of 1e12 become even
HALVINGS = 16


def effective(log_weight: jax.Array) -> jax.Array:
    """Effective chains 1 / sum w^2 of normalised weights, between 1 and K, at each state, `[G]` (Kong 1992)."""
    return 1.0 / jnp.square(jax.nn.softmax(log_weight, axis=-1)).sum(axis=-1)


def tempering(log_weight: jax.Array, least_share: float | jax.Array) -> jax.Array:
    """The largest eta <= 1, `[]`, with which w^eta leaves `least_share` of the chains effective, mean over states.

    Where the chains are those of exp(Q/tau) already, all weights are even and eta is 1; else the regression aims at
    a distribution between the policy and exp(Q/tau) on the way there. Found by bisection of log2(eta).
    """
    least = least_share * log_weight.shape[-1]

    def enough(log2: jax.Array) -> jax.Array:
        return effective(jnp.exp2(log2) * log_weight).mean() >= least

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        keeps = enough(middle)
        return jnp.where(keeps, middle, low), jnp.where(keeps, high, middle)

    zero = jnp.zeros(())
    low, _ = jax.lax.fori_loop(0, HALVINGS, halve, (zero + FEWEST_LOG2, zero))
    return jnp.where(enough(zero), 1.0, jnp.exp2(low))


def even(log_weight: jax.Array) -> jax.Array:
    """Weights of mean one over each state's chains, `[G, K]`: K softmax."""
    return log_weight.shape[-1] * jax.nn.softmax(log_weight, axis=-1)


def log_mean(log_weight: jax.Array) -> jax.Array:
    """log mean_k exp(log_weight_k), `[G]`: a lower bound, in expectation, of log of the integral of exp(Q/tau).

    It tightens with K (Burda et al. 2016, 1509.00519); with one chain it is Q/tau + ell.
    """
    return jax.nn.logsumexp(log_weight, axis=-1) - math.log(log_weight.shape[-1])
