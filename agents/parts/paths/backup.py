"""Which of a next state's chains enters the critics' target, and what its value is complemented by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from agents.parts.paths import weights
from agents.parts.paths.chain import Path


def choose(
    kind: Literal["plain", "entropy", "soft"],
    value: Callable[[jax.Array], jax.Array],
    paths: Path,
    num_samples: int,
    temperature: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """a' `[B, A]` of one of `num_samples` chains at each next state, and the bonus `[B]` to its value, if any.

    plain:   the chain of the largest value, as it is.
    entropy: the same, with tau ell.
    soft:    a chain drawn by its weight exp(Q/tau + ell), and what makes its value the soft value of all chains. So a
             head that learns a distribution of returns takes that of exp(Q/tau), moved to the soft value.

    Args:
      value: a' `[B * num_samples, A]` to the smaller target critic's value.
      paths: of all chains, those of one state together.
    """
    actions = jnp.tanh(paths.unsquashed)
    if num_samples == 1:  # nothing to choose, and the soft value is Q + tau ell
        return actions, None if kind == "plain" else temperature * paths.ell
    values = value(actions).reshape(-1, num_samples)
    ell = paths.ell.reshape(-1, num_samples)
    chosen = values.argmax(axis=1)
    if kind == "soft":
        chosen = jax.random.categorical(key, values / temperature + ell, axis=1)
    rows = jnp.arange(values.shape[0])
    action = actions.reshape(*values.shape, -1)[rows, chosen]
    if kind == "plain":
        return action, None
    if kind == "entropy":
        return action, temperature * ell[rows, chosen]
    soft = temperature * weights.log_mean(values / temperature + ell)
    return action, soft - values[rows, chosen]
