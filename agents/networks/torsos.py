"""Hidden layers that critics and actors share, and their activation functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from agents.networks.initializers import hidden_init

Activation = Callable[[jax.Array], jax.Array]


def mish(x: jax.Array) -> jax.Array:
    """x tanh(softplus(x)), by one exponential: tanh(log(1 + e^x)) = (w^2 + 2w) / (w^2 + 2w + 2) with w = e^x.

    Written out because the composed form costs three transcendental functions, a sizeable share of a small
    network's time on a CPU.
    """
    w = jnp.exp(jnp.minimum(x, 20.0))  # beyond 20 the ratio is one in float32
    n = w * (w + 2.0)
    return x * (n / (n + 2.0))


class MLP(nn.Module):
    """Dense layers of `sizes`, each with an optional layer normalization and an activation."""

    sizes: tuple[int, ...]
    activation: Activation = nn.relu
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.sizes:
            x = nn.Dense(size, kernel_init=hidden_init)(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = self.activation(x)
        return x


@dataclasses.dataclass(frozen=True)
class Torso:
    """What stands between a network's inputs and its output layer: which layers, and how wide.

    A value and not a module, so that an ensemble can build one for each member.
    """

    sizes: tuple[int, ...]
    layer_norm: bool = False

    def build(self, name: str) -> nn.Module:
        """The module, to be called in the network that holds it: `[B, ...]` to features `[B, F]`."""
        return MLP(self.sizes, layer_norm=self.layer_norm, name=name)
