"""Hidden layers that critics and actors share, and their activation functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from agents.networks import simbav2
from agents.networks.batchnorm import BatchNormMLP
from agents.networks.initializers import hidden_init, orthogonal
from agents.networks.simba import Simba

Kind = Literal["mlp", "simba", "simbav2", "batchnorm"]
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
    """What stands between a network's inputs and its outputs: which layers, and how wide.

    A value and not a module, so that an ensemble can build one for each member.

    Args:
      sizes: widths of the layers; of the blocks, all equal, for `simba` and `simbav2`.
      layer_norm: of `mlp`.
      kind: see docs/critics.md.
      weight_norm: of `batchnorm`.
      is_training: of `batchnorm`, see there.
    """

    sizes: tuple[int, ...]
    layer_norm: bool = False
    kind: Kind = "mlp"
    weight_norm: bool = False
    is_training: bool = False

    @property
    def normalizes_batches(self) -> bool:
        """Whether what it says of one row depends on those beside it."""
        return self.kind == "batchnorm"

    def build(self, name: str) -> nn.Module:
        """The module, to be called in the network that holds it: `[B, ...]` to features `[B, F]`."""
        if self.kind == "simba":
            return Simba(self.sizes, name=name)
        if self.kind == "simbav2":
            return simbav2.SimbaV2(self.sizes, name=name)
        if self.kind == "batchnorm":
            return BatchNormMLP(self.sizes, self.weight_norm, self.is_training, name=name)
        return MLP(self.sizes, layer_norm=self.layer_norm, name=name)

    def output(self, size: int, scale: float, name: str) -> nn.Module:
        """The layer behind the features, `[B, F]` to `[B, size]`.

        Args:
          scale: of its orthogonal kernel, where it has one.
        """
        if self.kind == "simbav2":
            return simbav2.UnitOutput(size, name=name)
        return nn.Dense(size, kernel_init=orthogonal(scale), name=name)

    def project(self, params: Any) -> Any:
        """Parameters of a network that is built of it, after a step."""
        return simbav2.project(params) if self.kind == "simbav2" or self.weight_norm else params
