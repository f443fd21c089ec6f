"""Layers with batch normalisation, for critics without target networks (Bhatt et al. 2024)."""

from __future__ import annotations

import flax.linen as nn
import jax

from agents.networks.initializers import hidden_init
from agents.networks.simbav2 import UnitDense

MOMENTUM = 0.99
"""Of the running statistics, per update."""
EPSILON = 1e-5


class BatchNormMLP(nn.Module):
    """BN of the inputs, then for each of `sizes` a dense layer, a ReLU and BN; `[B, ...]` to features `[B, H]`.

    Args:
      weight_norm: kernels of columns of length one, without biases (Palenicek et al. 2025).
      is_training: normalise by the batch's own statistics, and move the running ones, in the collection
        `batch_stats`; otherwise normalise by those.
    """

    sizes: tuple[int, ...]
    weight_norm: bool = False
    is_training: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.normalize(x)
        for size in self.sizes:
            dense = UnitDense(size) if self.weight_norm else nn.Dense(size, kernel_init=hidden_init)
            x = self.normalize(nn.relu(dense(x)))
        return x

    def normalize(self, x: jax.Array) -> jax.Array:
        """BN with a learned scale and offset."""
        return nn.BatchNorm(
            use_running_average=not self.is_training,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            use_fast_variance=False,  # raw observations may have means far above their spread
        )(x)
