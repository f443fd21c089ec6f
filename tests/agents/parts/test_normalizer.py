from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import normalizer

observe = jax.jit(normalizer.observe)


def rows(seed: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(number, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, -100.0]).astype(np.float32)


@hypothesis.given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 5))
@hypothesis.settings(max_examples=25)
def test_any_split_into_batches_gives_the_moments_of_all(sizes: list[int], seed: int):
    values = rows(seed, sum(sizes))
    statistics = normalizer.init(3)
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        statistics = observe(statistics, part, np.ones(len(part), bool))
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0), rtol=1e-4, atol=1e-4)
    # About a mean of 100 times the spread, float32 leaves three digits of the variance.
    np.testing.assert_allclose(statistics.variance, values.var(axis=0), rtol=2e-2, atol=1e-5)
    assert float(statistics.count) == len(values)


def test_what_is_invalid_counts_for_nothing_whatever_it_holds():
    values = rows(0, 6)
    broken = values.copy()
    broken[[1, 4]] = np.nan
    is_valid = np.array([True, False, True, True, False, True])
    got = observe(normalizer.init(3), broken, is_valid)
    expected = observe(normalizer.init(3), values[is_valid], np.ones(4, bool))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    nothing = observe(got, broken, np.zeros(6, bool))
    for a, b in zip(nothing, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_seen_leaves_observations_as_they_are_and_all_seen_makes_them_standard():
    values = rows(0, 4000)
    np.testing.assert_allclose(
        normalizer.normalize(normalizer.init(3), jnp.asarray(values)), values, rtol=1e-6
    )
    statistics = observe(normalizer.init(3), values, np.ones(4000, bool))
    standard: Any = np.asarray(normalizer.normalize(statistics, jnp.asarray(values)))
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=2e-3)
    np.testing.assert_allclose(standard.std(axis=0), 1.0, rtol=2e-2)


def test_the_count_never_stops_new_observations_from_counting():
    """Beyond 2^24 a float32 would not grow by one, and the mean would stand still for ever."""
    old = normalizer.Statistics(jnp.asarray(normalizer.LARGEST_COUNT), jnp.zeros(3), jnp.ones(3))
    new = observe(old, np.full((100, 3), 1.0, np.float32), np.ones(100, bool))
    assert float(new.count) == normalizer.LARGEST_COUNT
    assert float(new.mean[0]) == pytest.approx(100 / (normalizer.LARGEST_COUNT + 100), rel=1e-3)
