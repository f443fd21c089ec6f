"""SimbaV2: features and weights on the unit sphere, with learned scales in between (Lee et al. 2025)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agents.networks.initializers import orthogonal

EXPANSION = 4
"""Of a block's hidden layer."""
SHIFT = 3.0
"""Constant beside the inputs, so that their length is not lost when they are brought to the sphere."""
UNIT_KERNEL = "unit_kernel"
"""Name of the kernels whose columns are kept at length one."""


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """`x` over its length along `axis`; zero stays zero."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=axis, keepdims=True) + 1e-16)


def project(params: Any) -> Any:
    """`params` with every kernel named `UNIT_KERNEL`, `[..., I, O]`, at columns of length one."""

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        return unit(leaf, -2) if getattr(path[-1], "key", None) == UNIT_KERNEL else leaf

    return jax.tree_util.tree_map_with_path(one, params)


class UnitDense(nn.Module):
    """x W, W's columns of length one after `project`; no bias."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.param(UNIT_KERNEL, orthogonal(1.0), (x.shape[-1], self.size))


class Scaler(nn.Module):
    """x times a learned vector: it starts at `value`, while the parameter behind it starts at, and moves as, `scale`.

    A small scale makes it move fast, whatever the learning rate of Adam (Loshchilov et al. 2024, nGPT).
    """

    value: float
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.constant(self.scale), (x.shape[-1],))
        return x * (scale * (self.value / self.scale))[(None,) * (x.ndim - 1)]


class SimbaV2(nn.Module):
    """An embedding of the shifted input and a block for each of `sizes`, which are equal: to features of length one.

    A block: h' = unit(h + alpha (m - h)), m = unit(W_2 relu(s W_1 h)) (eq. 10 to 12).
    """

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.sizes[0]
        scale = math.sqrt(2.0 / size)
        shift = jnp.full((*x.shape[:-1], 1), SHIFT, x.dtype)
        x = UnitDense(size, name="embedding")(unit(jnp.concatenate([x, shift], axis=-1)))
        x = unit(Scaler(scale, scale, name="embedding_scale")(x))
        inner_scale = scale / math.sqrt(EXPANSION)
        for i in range(len(self.sizes)):
            inner = UnitDense(EXPANSION * size, name=f"inner_{i}")(x)
            inner = nn.relu(Scaler(inner_scale, inner_scale, name=f"inner_scale_{i}")(inner))
            outer = unit(UnitDense(size, name=f"outer_{i}")(inner))
            step = Scaler(1 / (len(self.sizes) + 1), 1 / math.sqrt(size), name=f"step_{i}")
            x = unit(x + step(outer - x))
        return x


class UnitOutput(nn.Module):
    """W_2 (s W_1 h) + b: `[B, H]` to `[B, size]` (eq. 13)."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Scaler(1.0, 1.0, name="scale")(UnitDense(x.shape[-1], name="inner")(x))
        bias = self.param("bias", nn.initializers.zeros, (self.size,))
        return UnitDense(self.size, name="outer")(x) + bias[(None,) * (x.ndim - 1)]
