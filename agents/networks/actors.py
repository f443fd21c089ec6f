"""Actor networks over observations: a tanh-Gaussian, and a deterministic one."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agents.networks.torsos import Torso


class TanhGaussian(nn.Module):
    """Mean and log-std `[B, A]` each of a Gaussian before its tanh, for observations `[B, O]`."""

    action_size: int
    torso: Torso
    log_std_min: float = -20.0
    log_std_max: float = 2.0

    @nn.compact
    def __call__(self, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = self.torso.build("torso")(observation)
        x = self.torso.output(2 * self.action_size, 1.0, "unsquashed")(features)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, self.log_std_min, self.log_std_max)

    def project(self, params: Any) -> Any:
        """See `Torso.project`."""
        return self.torso.project(params)


class DeterministicActor(nn.Module):
    """Actions `[B, A]` in [-1, 1] for observations `[B, O]`; nearly zero at the start."""

    action_size: int
    torso: Torso

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        features = self.torso.build("torso")(observation)
        return jnp.tanh(self.torso.output(self.action_size, 1e-2, "unsquashed")(features))

    def project(self, params: Any) -> Any:
        """See `Torso.project`."""
        return self.torso.project(params)
