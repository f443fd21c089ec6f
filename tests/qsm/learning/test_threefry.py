"""Keys of our own give JAX's numbers, in fewer operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm.learning import threefry

DRAWS: dict[str, Callable[[jax.Array], Any]] = {
    "bits": lambda key: jax.random.bits(key, (3, 5)),
    "bytes": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "words": lambda key: jax.random.bits(key, (7,), jnp.uint16),
    "one": lambda key: jax.random.uniform(key),
    "none": lambda key: jax.random.uniform(key, (0, 2)),
    "uniform": lambda key: jax.random.uniform(key, (4, 3), minval=-1.0, maxval=1.0),
    "normal": lambda key: jax.random.normal(key, (257,)),
    "integers": lambda key: jax.random.randint(key, (33,), 0, 1000),
    "permutation": lambda key: jax.random.permutation(key, 20),
    "split": lambda key: jax.random.normal(jax.random.split(key, (2, 3))[1, 2], (4,)),
    "folded": lambda key: jax.random.normal(jax.random.fold_in(key, 7), (4,)),
    "vmapped": lambda key: jax.vmap(jax.random.normal)(jax.random.split(key, 5)),
    "vmapped folds": lambda key: jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(
        jnp.arange(5)
    ),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_every_draw_is_jax_own(draw: str):
    program = jax.jit(DRAWS[draw])
    for seed in (0, 1, 2**31 - 1):
        np.testing.assert_array_equal(program(threefry.key(seed)), program(jax.random.key(seed)))


@given(seed=st.integers(0, 2**31 - 1), data=st.integers(0, 2**32 - 1))
def test_keys_are_folded_as_jax_folds_them(seed: int, data: int):
    own, other = (
        jax.random.fold_in(key, np.uint32(data)) for key in (threefry.key(seed), jax.random.key(seed))
    )
    np.testing.assert_array_equal(jax.random.key_data(own), jax.random.key_data(other))


def test_numbers_of_64_bits():
    with jax.enable_x64(True):
        own, other = (jax.random.bits(key, (5,), jnp.uint64) for key in (threefry.key(3), jax.random.key(3)))
        np.testing.assert_array_equal(own, other)


def test_no_loop_is_left_in_the_program():
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, 1), (256, 6))

    own, other = (
        str(jax.jit(draw).lower(key).compile().as_text()) for key in (threefry.key(0), jax.random.key(0))
    )
    assert "while(" not in own
    assert "while(" in other  # what this module is for: JAX may have mended it
