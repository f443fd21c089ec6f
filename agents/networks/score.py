"""The score network of a diffusion policy."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from agents.networks.initializers import hidden_init, orthogonal
from agents.networks.simba import Blocks
from agents.networks.torsos import MLP, mish


class ScoreNetwork(nn.Module):
    """Predicts the noise `[B, A]` in a noised action `[B, A]` at level t of the diffusion chain.

    The first layer is one dense layer over (observation, action, time code), kept as three slices of one kernel:
    during sampling the observation's part is the same at every level and the time code's part the same for the
    whole batch, so each is computed once instead of T times (`encode_observation`, `encode_level`, `denoise`).
    """

    observation_size: int
    action_size: int
    sizes: tuple[int, ...]
    time_embedding_size: int
    time_sizes: tuple[int, ...]
    layer_norm: bool = False
    torso: Literal["mlp", "simba"] = "mlp"

    def setup(self) -> None:
        half = self.time_embedding_size // 2
        self.frequencies = self.param("frequencies", nn.initializers.normal(0.2), (half,))
        self.time_mlp = MLP(self.time_sizes, activation=mish)
        code_size = self.time_sizes[-1] if self.time_sizes else 2 * half
        fan_in = self.observation_size + self.action_size + code_size
        self.kernel = self.param("kernel", hidden_init, (fan_in, self.sizes[0]))
        self.bias = self.param("bias", nn.initializers.zeros, (self.sizes[0],))
        if self.torso == "simba":
            self.rest = Blocks(self.sizes, activation=mish)
        else:
            if self.layer_norm:
                self.first_norm = nn.LayerNorm()
            self.rest = MLP(self.sizes[1:], activation=mish, layer_norm=self.layer_norm)
        self.score = nn.Dense(self.action_size, kernel_init=orthogonal(1.0))

    def encode_observation(self, observation: jax.Array) -> jax.Array:
        """First-layer contribution `[B, H]` of observations `[B, O]`."""
        return observation @ self.kernel[: self.observation_size] + self.bias[None]

    def encode_level(self, level: jax.Array) -> jax.Array:
        """First-layer contribution `[L, H]` of levels t = 1..T, `[L]`, through a learnable Fourier embedding."""
        phase = 2.0 * jnp.pi * level.astype(jnp.float32)[:, None] * self.frequencies[None]
        code = self.time_mlp(jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1))
        return code @ self.kernel[self.observation_size + self.action_size :]

    def denoise(
        self, encoded_observation: jax.Array, encoded_level: jax.Array, action: jax.Array
    ) -> jax.Array:
        """Predicted noise `[B, A]` from both contributions `[B, H]` and the noised action `[B, A]`."""
        own = action @ self.kernel[self.observation_size : self.observation_size + self.action_size]
        x = encoded_observation + encoded_level + own
        if self.torso == "simba":  # the first layer is its embedding, which is linear
            return self.score(self.rest(x))
        if self.layer_norm:
            x = self.first_norm(x)
        return self.score(self.rest(mish(x)))

    def __call__(self, observation: jax.Array, action: jax.Array, level: jax.Array) -> jax.Array:
        """Predicted noise `[B, A]` for observations `[B, O]`, noised actions `[B, A]` and levels `[B]`."""
        return self.denoise(self.encode_observation(observation), self.encode_level(level), action)
