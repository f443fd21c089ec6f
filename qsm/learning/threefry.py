"""JAX's own random numbers, bit for bit, from fewer operations.

On a CPU JAX lowers each hash to loops of small operations (one update of SAC ran some 330 of them, half of all that it
ran), and on a GPU to a kernel of its own; written out, it is elementwise, and the compiler merges it with whatever
uses the numbers. The hash is Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), counted as JAX does with `jax_threefry_partitionable`, its default.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
FEW = 128
"""Fewer numbers than these are merged with whatever uses them."""


def threefry_2x32(key: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The hash of counters (`high`, `low`), uint32 arrays of one shape, by the words of `key` `[2]`."""
    words = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    high, low = high + words[0], low + words[1]
    for i in range(5):
        for rotation in ROTATIONS[i % 2]:
            high = high + low
            low = high ^ ((low << np.uint32(rotation)) | (low >> np.uint32(32 - rotation)))
        high = high + words[(i + 1) % 3]
        low = low + (words[(i + 2) % 3] + np.uint32(i + 1))
    return high, low


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _counted(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Hashes of 0, 1, 2, ... in `shape`."""
    size = math.prod(shape)
    assert size < 2**32, "as many numbers as this are not drawn at once"
    low = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return threefry_2x32(key, jnp.zeros_like(low), low)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_counted(key, shape), axis=-1)


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    low = jnp.asarray(data, jnp.uint32)
    return jnp.stack(threefry_2x32(key, jnp.zeros_like(low), low))


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    dtype = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bit_width]

    def bits(key: jax.Array) -> jax.Array:
        high, low = _counted(key, shape)
        if bit_width == 64:
            return (high.astype(dtype) << np.uint64(32)) | low.astype(dtype)
        return (high ^ low).astype(dtype)

    def none(key: jax.Array) -> jax.Array:
        return jnp.zeros(shape, dtype)

    if math.prod(shape) < FEW:
        return bits(key)
    # Always so, which the compiler does not see: a CPU would else hash anew in each operation that uses the numbers,
    # as it heeds no barrier, and do so without vectors where they are concatenated with others.
    is_word = (key[0] >> np.uint32(1)) != np.uint32(0xFFFFFFFF)
    return jax.lax.platform_dependent(
        key, cpu=lambda key: jax.lax.cond(is_word, bits, none, key), default=bits
    )


IMPLEMENTATION = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,  # type: ignore[arg-type]
    fold_in=_fold_in,  # type: ignore[arg-type]
    name="qsm_threefry2x32",
    tag="qsm",
)


def key(seed: int) -> jax.Array:
    """`jax.random.key(seed)`, with the same numbers to come."""
    return jax.random.key(seed, impl=IMPLEMENTATION)
