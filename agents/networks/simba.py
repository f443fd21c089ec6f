"""SimBa: residual blocks with layer normalisation before each, and one behind the last (Lee et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from agents.networks.initializers import orthogonal

EXPANSION = 4
"""Of a block's hidden layer."""


class Blocks(nn.Module):
    """x + W_2 f(W_1 LN(x)) for each of `sizes`, which are equal, and a last LN; `[B, H]` to `[B, H]` (eq. 3, 4)."""

    sizes: tuple[int, ...]
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.sizes:
            inner = nn.Dense(EXPANSION * size, kernel_init=nn.initializers.he_normal())(nn.LayerNorm()(x))
            x = x + nn.Dense(size, kernel_init=nn.initializers.he_normal())(self.activation(inner))
        return nn.LayerNorm()(x)


class Simba(nn.Module):
    """A linear embedding and its blocks, one for each of `sizes`: `[B, ...]` to features `[B, H]`."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.sizes[0], kernel_init=orthogonal(1.0), name="embedding")(x)
        return Blocks(self.sizes, name="blocks")(x)
