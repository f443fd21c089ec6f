"""A temperature that tunes itself, relative to the size of the critic's action gradient."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from agents.parts import measure, optimizer
from agents.parts.optimizer import Learned
from agents.parts.paths import fit


def start(inverse_temperature: float) -> Learned:
    """log(tau / G) for tau = G / `inverse_temperature`, to be learned as any parameter is."""
    return optimizer.start(-jnp.log(jnp.asarray(inverse_temperature, jnp.float32)))


def slack(
    entropy: jax.Array, effective_share: jax.Array, least_entropy: jax.Array, least_share: jax.Array
) -> jax.Array:
    """By how much the nearer of two floors is exceeded, `[]`; below zero where one is not kept: a critic may be sharper
    than the chains can follow.

    Args:
      entropy: bound of the policy's entropy per action component, nats.
      effective_share: effective chains over all chains, of weights that are not tempered.
    """
    return jnp.minimum(entropy - least_entropy, effective_share - least_share)


def spread(actions: jax.Array) -> jax.Array:
    """Std `[]` of an action component within a state: the root of its variance, mean over components and states.

    Args:
      actions: `[N, K, A]`, K independent ones at each of N states.
    """
    return jnp.sqrt(fit.spread(actions.reshape(-1, actions.shape[-1]), actions.shape[1]).mean())


def step(learned: Learned, slack: jax.Array, rate: jax.Array, action_size: int) -> Learned:
    """One step of Adam: tau falls while `slack` is above zero (what is held is exceeded), and rises while it is below.

    As SAC's dual variable on the entropy (Haarnoja et al. 2018, 1812.05905, equation 18) in the log of tau. tau stops
    rising at 2 G / sqrt(A), where Q/tau changes by one half per unit of each of the A components: exp(Q/tau) is flat
    there, and what makes the policy narrow, or keeps chains from being effective, is not Q. It stops falling at
    G / (1000 sqrt(A)), where no sampler is as narrow as exp(Q/tau).
    """
    moved = optimizer.step(learned, slack, rate)
    root = math.sqrt(action_size)
    return moved._replace(params=jnp.clip(moved.params, math.log(1e-3 / root), math.log(2.0 / root)))


def hold_spread(
    learned: Learned,
    actions: jax.Array,
    target_spread: jax.Array,
    rate: jax.Array,
    room: jax.Array,
) -> tuple[Learned, dict[str, measure.Mean]]:
    """One step towards a policy whose actions `[N, K, A]` have `target_spread`, and metrics.

    Args:
      room: `[]`, a second slack: where it is the smaller one, tau follows it. A critic may be so rough that no tau
        makes its policy as narrow as asked for; then tau would fall for ever.
    """
    found = spread(actions)
    slack = jnp.minimum(jnp.log(jnp.maximum(found, 1e-6) / target_spread), room)
    return step(learned, slack, rate, actions.shape[-1]), {"score/spread": measure.mean(found)}
