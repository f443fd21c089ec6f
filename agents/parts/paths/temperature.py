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


def spread(actions: jax.Array) -> jax.Array:
    """Std `[]` of an action component within a state: the root of its variance, mean over components and states.

    Args:
      actions: `[N, K, A]`, K independent ones at each of N states.
    """
    return jnp.sqrt(fit.spread(actions.reshape(-1, actions.shape[-1]), actions.shape[1]).mean())


def step(learned: Learned, excess: jax.Array, room: jax.Array, rate: jax.Array, action_size: int) -> Learned:
    """One step of Adam: tau falls while `excess` and `room` are both above zero, and rises while one is below.

    As SAC's dual variable on the entropy (Haarnoja et al. 2018, 1812.05905, equation 18) in the log of tau. tau stops
    rising at 2 G / sqrt(A), where Q/tau changes by one half per unit of each of the A components: exp(Q/tau) is flat
    there, and what makes the policy narrow, or keeps chains from being effective, is not Q. It stops falling at
    G / (1000 sqrt(A)), where no sampler is as narrow as exp(Q/tau).

    Args:
      excess: `[]`, by how much what is held (an entropy, a spread) is above its target.
      room: `[]`, above zero while the policy follows so low a tau. A critic may be so rough that no tau makes its
        policy as narrow as asked for; then tau would fall for ever.
    """
    moved = optimizer.step(learned, jnp.minimum(excess, room), rate)
    root = math.sqrt(action_size)
    return moved._replace(params=jnp.clip(moved.params, math.log(1e-3 / root), math.log(2.0 / root)))


def hold_spread(
    learned: Learned, actions: jax.Array, target_spread: jax.Array, room: jax.Array, rate: jax.Array
) -> tuple[Learned, dict[str, measure.Mean]]:
    """One step towards a policy whose actions `[N, K, A]` have `target_spread`, and metrics."""
    found = spread(actions)
    excess = jnp.log(jnp.maximum(found, 1e-6) / target_spread)
    return step(learned, excess, room, rate, actions.shape[-1]), {"score/spread": measure.mean(found)}
