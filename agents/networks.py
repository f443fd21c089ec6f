"""Network definitions: MLP, critic ensemble, score network, tanh-Gaussian. The only file that imports flax.linen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]
Initializer = Callable[..., jax.Array]


def orthogonal(scale: float) -> Initializer:
    """Marks a kernel that `init` makes orthogonal, times `scale`."""
    return nn.initializers.constant(scale)


# Orthogonal hidden layers scaled for ReLU are what the strong public SAC baselines use.
hidden_init = orthogonal(math.sqrt(2.0))


def init(module: nn.Module, key: jax.Array, *inputs: Any) -> Any:
    """Parameters of `module`, in the place of its own `init`, which leaves each kernel filled with its scale.

    All kernels are drawn together, which compiles twice as fast as an initialiser for each.
    """
    rest_key, kernel_key = jax.random.split(key)
    leaves, structure = jax.tree_util.tree_flatten_with_path(module.init(rest_key, *inputs))
    names = [path[-1].key for path, _ in leaves]
    shapes = [leaf.shape for name, (_, leaf) in zip(names, leaves, strict=True) if name == "kernel"]
    drawn = iter(haar(kernel_key, shapes))
    values = [
        leaf * next(drawn) if name == "kernel" else leaf
        for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def haar(key: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Uniformly distributed matrices `[..., I, O]` of `shapes` with orthonormal rows or columns, whichever are fewer.

    The polar factors of Gaussian matrices, by Newton-Schulz steps, which multiply a small singular value by 1.5.
    Matrix products alone, for flax's own initialiser takes a QR factorisation: on the CPU, programs that held it and
    ran at the same time (one for each seed) stood still for minutes on two cores with jaxlib 0.10.2.
    """
    sizes = [math.prod(shape) for shape in shapes]
    ends = list(itertools.accumulate(sizes))
    normal = jax.random.normal(key, (sum(sizes),), jnp.float32)

    def upright(x: jax.Array) -> jax.Array:
        return x if x.shape[-2] >= x.shape[-1] else x.swapaxes(-1, -2)

    def excess(x: jax.Array) -> jax.Array:
        return x.swapaxes(-1, -2) @ x - jnp.eye(x.shape[-1], dtype=x.dtype)[None]

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        matrices, grams, count = carry
        matrices = [x - 0.5 * x @ gram for x, gram in zip(matrices, grams, strict=True)]
        return matrices, [excess(x) for x in matrices], count + 1

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        _, grams, count = carry
        # 60 steps lift even a singular value of 1e-10; about 20 are the rule.
        return jnp.stack([jnp.abs(gram).max() > 1e-5 for gram in grams]).any() & (count < 60)

    matrices = [
        upright(normal[end - size : end].reshape(-1, *shape[-2:]))
        for size, end, shape in zip(sizes, ends, shapes, strict=True)
    ]
    with jax.default_matmul_precision("float32"):
        matrices = [x / jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) for x in matrices]
        carry = (matrices, [excess(x) for x in matrices], jnp.zeros((), jnp.int32))
        matrices, _, _ = jax.lax.while_loop(goes_on, step, carry)
    return [
        (x if x.shape[-2:] == shape[-2:] else x.swapaxes(-1, -2)).reshape(shape)
        for x, shape in zip(matrices, shapes, strict=True)
    ]


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
