"""What the outputs of a critic mean: their value, the target they are regressed onto, and the error."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Head(Protocol):
    """Reads the outputs `[E, B, K]` of E critics."""

    @property
    def output_size(self) -> int:
        """K."""
        ...

    def value(self, out: jax.Array) -> jax.Array:
        """Values `[E, B]`."""
        ...

    def target(
        self, reward: jax.Array, discount: jax.Array, next_out: jax.Array, bonus: jax.Array | None
    ) -> Any:
        """What `errors` is given, `[B, ...]`.

        Args:
          next_out: the target critics' at (s', a').
          bonus: `[B]`, added to the values there before members are reduced to one: an entropy bonus. None for 0.
        """
        ...

    def target_value(self, target: Any) -> jax.Array:
        """The value `[B]` that a target stands for."""
        ...

    def errors(self, out: jax.Array, target: Any) -> jax.Array:
        """The loss `[E, B]` of each member on each transition."""
        ...


@dataclasses.dataclass(frozen=True)
class Scalar:
    """One number, with a squared error; the target takes the smallest member (Fujimoto et al. 2018)."""

    output_size: int = 1

    def value(self, out: jax.Array) -> jax.Array:
        return out.squeeze(-1)

    def target(
        self, reward: jax.Array, discount: jax.Array, next_out: jax.Array, bonus: jax.Array | None
    ) -> jax.Array:
        """y = r + discount * min_i (Q'_i(s', a') + bonus), `[B]`."""
        values = self.value(next_out)
        values = values if bonus is None else values + bonus[None]
        return reward + discount * values.min(axis=0)

    def target_value(self, target: jax.Array) -> jax.Array:
        return target

    def errors(self, out: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.square(self.value(out) - target[None])
