"""Network definitions: MLP, critic ensemble, score network, tanh-Gaussian. The only file that imports flax.linen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]
Initializer = Callable[..., jax.Array]


def orthogonal(scale: float) -> Initializer:
    """Uniformly distributed (Haar) matrices with orthonormal rows or columns, whichever are fewer, times `scale`.

    The polar factor of a Gaussian matrix, by Newton-Schulz steps, which multiply a small singular value by 1.5. Matrix
    products alone, for flax's own takes a QR factorisation: on the CPU, programs that held it and ran at the same time
    (one for each seed) stood still for minutes on two cores with jaxlib 0.10.2.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        x = jax.random.normal(key, (max(rows, columns), min(rows, columns)), dtype)

        def excess(x: jax.Array) -> jax.Array:
            return x.T @ x - jnp.eye(x.shape[1], dtype=dtype)

        def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            x, gram, count = carry
            x = x - 0.5 * x @ gram
            return x, excess(x), count + 1

        with jax.default_matmul_precision("float32"):
            x = x / jnp.linalg.norm(x)
            # 60 steps lift even a singular value of 1e-10; about 20 are the rule.
            x, _, _ = jax.lax.while_loop(
                lambda carry: (jnp.abs(carry[1]).max() > 1e-5) & (carry[2] < 60),
                step,
                (x, excess(x), jnp.zeros((), jnp.int32)),
            )
        return scale * (x if rows >= columns else x.T).reshape(shape)

    return init


# Orthogonal hidden layers scaled for ReLU are what the strong public SAC baselines use.
hidden_init = orthogonal(math.sqrt(2.0))


def mish(x: jax.Array) -> jax.Array:
    """x tanh(softplus(x)), by one exponential: tanh(log(1 + e^x)) = (w^2 + 2w) / (w^2 + 2w + 2) with w = e^x.

    Written out because the composed form costs three transcendental functions, a sizeable share of a small
    network's time on a CPU.
    """
    w = jnp.exp(jnp.minimum(x, 20.0))  # beyond 20 the ratio is one in float32
    n = w * (w + 2.0)
    return x * (n / (n + 2.0))


def apply(module: nn.Module, params: Any, *inputs: jax.Array, method: str | None = None) -> Any:
    """Output of `module`, which for a module with parameters alone is all that flax returns."""
    return module.apply(params, *inputs, method=method)


class MLP(nn.Module):
    """Hidden layers of `sizes`, then a linear layer of `output_size` if it is given."""

    sizes: tuple[int, ...]
    output_size: int | None = None
    activation: Activation = nn.relu
    layer_norm: bool = False
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.sizes:
            x = nn.Dense(size, kernel_init=hidden_init)(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = self.activation(x)
        if self.output_size is not None:
            x = nn.Dense(self.output_size, kernel_init=orthogonal(self.output_scale))(x)
        return x


class _Critic(nn.Module):
    sizes: tuple[int, ...]
    layer_norm: bool

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        x = jnp.concatenate([observation, action], axis=-1)
        return MLP(self.sizes, 1, layer_norm=self.layer_norm)(x).squeeze(-1)


class CriticEnsemble(nn.Module):
    """Q-values `[E, B]` of `num_critics` independent critics for observations `[B, O]` and actions `[B, A]`."""

    num_critics: int
    sizes: tuple[int, ...]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        ensemble = nn.vmap(
            _Critic,
            variable_axes={"params": 0},
            split_rngs={"params": True},  # members must differ from the start
            in_axes=None,  # type: ignore[arg-type]
            axis_size=self.num_critics,
        )
        return ensemble(self.sizes, self.layer_norm)(observation, action)


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

    def setup(self) -> None:
        half = self.time_embedding_size // 2
        self.frequencies = self.param("frequencies", nn.initializers.normal(0.2), (half,))
        self.time_mlp = MLP(self.time_sizes, activation=mish)
        code_size = self.time_sizes[-1] if self.time_sizes else 2 * half
        fan_in = self.observation_size + self.action_size + code_size
        self.kernel = self.param("kernel", hidden_init, (fan_in, self.sizes[0]))
        self.bias = self.param("bias", nn.initializers.zeros, (self.sizes[0],))
        if self.layer_norm:
            self.first_norm = nn.LayerNorm()
        self.rest = MLP(self.sizes[1:], self.action_size, activation=mish, layer_norm=self.layer_norm)

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
        if self.layer_norm:
            x = self.first_norm(x)
        return self.rest(mish(x))

    def __call__(self, observation: jax.Array, action: jax.Array, level: jax.Array) -> jax.Array:
        """Predicted noise `[B, A]` for observations `[B, O]`, noised actions `[B, A]` and levels `[B]`."""
        return self.denoise(self.encode_observation(observation), self.encode_level(level), action)


class TanhGaussian(nn.Module):
    """Mean and log-std `[B, A]` each of a Gaussian before its tanh, for observations `[B, O]`."""

    action_size: int
    sizes: tuple[int, ...]
    log_std_min: float = -20.0
    log_std_max: float = 2.0

    @nn.compact
    def __call__(self, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = MLP(self.sizes, 2 * self.action_size)(observation)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, self.log_std_min, self.log_std_max)


class DeterministicActor(nn.Module):
    """Actions `[B, A]` in [-1, 1] for observations `[B, O]`."""

    action_size: int
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        return jnp.tanh(MLP(self.sizes, self.action_size, output_scale=1e-2)(observation))
