"""A temperature that tunes itself, relative to the size of the critic's action gradient."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from agents.parts import optimizer
from agents.parts.optimizer import Learned


def start(inverse_temperature: float) -> Learned:
    """log(tau / G) for tau = G / `inverse_temperature`, to be learned as any parameter is."""
    return optimizer.start(-jnp.log(jnp.asarray(inverse_temperature, jnp.float32)))


def slack(
    entropy: jax.Array, effective_share: jax.Array, least_entropy: jax.Array, least_share: jax.Array
) -> jax.Array:
    """By how much the nearer of two floors is exceeded, `[]`; below zero where one is not kept.

    Args:
      entropy: bound of the policy's entropy per action component, nats.
      effective_share: effective chains over all chains, of weights that are not tempered.
    """
    return jnp.minimum(entropy - least_entropy, effective_share - least_share)


def step(learned: Learned, slack: jax.Array, rate: jax.Array, action_size: int) -> Learned:
    """One step of Adam: tau falls while both floors are kept, and rises while one is not.

    As SAC's dual variable on the entropy (Haarnoja et al. 2018, 1812.05905, equation 18) in the log of tau, with the
    second floor for a critic that is sharper than the chains can follow. tau stops rising at 2 G / sqrt(A), where Q/tau
    changes by one half per unit of each of the A components: exp(Q/tau) is flat there, and what keeps chains from
    being effective is not Q.
    """
    moved = optimizer.step(learned, slack, rate)
    return moved._replace(params=jnp.minimum(moved.params, math.log(2.0 / math.sqrt(action_size))))
