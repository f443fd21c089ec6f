"""Critic networks: a torso over observation and action, and an output layer as wide as the head asks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agents.networks.torsos import Torso


class _Critic(nn.Module):
    torso: Torso
    output_size: int

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        features = self.torso.build("torso")(jnp.concatenate([observation, action], axis=-1))
        return self.torso.output(self.output_size, 1.0, "value")(features)


class CriticEnsemble(nn.Module):
    """Outputs `[E, B, K]` of `num_critics` independent critics for observations `[B, O]` and actions `[B, A]`.

    What they mean is the head's business (`agents.parts.heads`).
    """

    num_critics: int
    torso: Torso
    output_size: int = 1

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        ensemble = nn.vmap(
            _Critic,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},  # members must differ from the start
            in_axes=None,  # type: ignore[arg-type]
            axis_size=self.num_critics,
        )
        return ensemble(self.torso, self.output_size, name="members")(observation, action)

    def project(self, params: Any) -> Any:
        """See `Torso.project`."""
        return self.torso.project(params)
