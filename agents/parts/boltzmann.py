"""The density exp(Q/tau) of actions in a box, as samplers need it: its score before a tanh, and the size of tau.

a = tanh(u), so that the density of u carries the tanh's Jacobian. Langevin dynamics follow any score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Score(NamedTuple):
    """grad_u log density at a = tanh(u), in its two terms."""

    pull: jax.Array  # [B, A], (1 - a^2) grad_a Q / tau
    volume: jax.Array  # [B, A], -2 a, of the tanh's Jacobian: whatever tau is

    @property
    def total(self) -> jax.Array:
        """`[B, A]`."""
        return self.pull + self.volume


def score(squashed: jax.Array, gradient: jax.Array, temperature: jax.Array) -> Score:
    """grad_u log density at a = tanh(u): (1 - a^2) grad_a Q / tau - 2 a.

    Args:
      squashed: a `[B, A]`.
      gradient: grad_a Q `[B, A]`.
      temperature: tau `[]`; only grad_a Q is scaled by it, never the term that comes from the tanh's Jacobian.
    """
    return Score((1 - jnp.square(squashed)) * gradient / temperature, -2 * squashed)


def size(gradient: jax.Array) -> jax.Array:
    """Mean length `[]` of grad_a Q `[B, A]`."""
    return jnp.linalg.norm(gradient, axis=-1).mean()


def follow_size(
    before: jax.Array, gradient: jax.Array, rate: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean length `[]` of grad_a Q `[B, A]`, and the running mean with it; `before` is 0 where there is none yet."""
    now = size(gradient)
    return now, jnp.where(before > 0, before + rate * (now - before), now)


def step_sizes(first: float | jax.Array, last: float | jax.Array, num_steps: int) -> jax.Array:
    """Step sizes eta `[N]` from `first` to `last`, by the same factor from one to the next; one step is `first`."""
    return first * (last / first) ** (jnp.arange(num_steps) / max(num_steps - 1, 1))


@jax.named_scope("langevin")
def langevin(
    score_of: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    key: jax.Array,
    sizes: jax.Array,
    bound: float | jax.Array,
) -> jax.Array:
    """u `[B, A]` after the unadjusted steps u <- u + eta/2 score(u) + sqrt(eta) xi, xi ~ N(0, I).

    For a Gaussian of variance s^2 the variance tends to s^2 / (1 - eta / (4 s^2)) about the right mean, for eta below
    4 s^2; with larger ones it diverges, up to the bound.

    Args:
      score_of: u `[B, A]` to the gradient of the log density there.
      start: u `[B, A]` to begin with.
      sizes: eta `[N]` of the steps, in their order.
      bound: of each component of u, after every step.
    """

    def step(unsquashed: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        size, noise = inputs
        moved = unsquashed + 0.5 * size * score_of(unsquashed) + jnp.sqrt(size) * noise
        return jnp.clip(moved, -bound, bound), None

    noise = jax.random.normal(key, (sizes.shape[0], *start.shape))
    unsquashed, _ = jax.lax.scan(step, start, (sizes, noise))
    return unsquashed
