"""Metrics as agents make them: means over a batch, and what was skipped."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from agents.parts.types import Mean

SATURATED = 0.99  # |a| above which an action component counts as saturated


def mean(values: jax.Array) -> Mean:
    """A metric over all entries of `values`, weighted as one observation."""
    return Mean(values.mean(), jnp.ones(()))


def skipped() -> Mean:
    """The metric of something that did not happen in this update."""
    return Mean(jnp.zeros(()), jnp.zeros(()))


def saturation(action: jax.Array) -> Mean:
    """Share of the components of actions `[B, A]` that lie at a bound."""
    return mean(jnp.abs(action) > SATURATED)
