"""The score of exp(Q/tau) before a tanh, and Langevin dynamics against their closed forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import boltzmann

FREE = 1e6  # a bound that nothing reaches


def dynamics(score: Any, start: jax.Array, sizes: Any, bound: float = FREE, seed: int = 0) -> np.ndarray:
    draw = jax.jit(lambda u, key, sizes: boltzmann.langevin(score, u, key, sizes, bound))
    return np.asarray(draw(start, jax.random.key(seed), jnp.asarray(sizes, jnp.float32)), np.float64)


def test_the_score_is_the_gradient_of_the_log_density_before_the_tanh():
    u = jnp.linspace(-2, 2, 10).reshape(5, 2)

    def log_density(u: jax.Array) -> jax.Array:
        a = jnp.tanh(u)
        value = jnp.sin(3 * a[:, 0]) + a.prod(axis=1)
        return (value / 0.3).sum() + jnp.log(1 - jnp.square(a)).sum()

    a = jnp.tanh(u)
    gradient = jax.grad(lambda a: (jnp.sin(3 * a[:, 0]) + a.prod(axis=1)).sum())(a)
    found = boltzmann.score(a, gradient, jnp.asarray(0.3)).total
    np.testing.assert_allclose(found, jax.grad(log_density)(u), rtol=1e-4, atol=1e-4)
    # At an infinite temperature what is left is the uniform density on the box.
    np.testing.assert_allclose(boltzmann.score(a, gradient, jnp.asarray(jnp.inf)).total, -2 * a)


@pytest.mark.parametrize("size", [0.02, 0.2, 0.6])
def test_the_stationary_law_is_the_known_one(size: float):
    """For N(mu, s^2): mean mu and variance s^2 / (1 - eta / (4 s^2)); the last is twelve times s^2's error of 0.02."""
    mu, std, chains = 0.7, 0.5, 40_000
    steps = int(np.ceil(8 * std**2 / size))  # what is left of the start: below e^-4 of its variance
    expected = std**2 / (1 - size / (4 * std**2))
    start = mu + np.sqrt(expected) * jax.random.normal(jax.random.key(9), (chains, 1))
    drawn = dynamics(lambda u: -(u - mu) / std**2, start, np.full(steps, size))
    assert drawn.mean() == pytest.approx(mu, abs=4 * np.sqrt(expected / chains))
    assert drawn.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / chains))


def test_one_step_by_hand():
    drawn = dynamics(lambda u: 3.0 - 0 * u, jnp.full((40_000, 2), 0.5), [0.04])
    assert drawn.mean() == pytest.approx(0.5 + 0.02 * 3.0, abs=4 * 0.2 / np.sqrt(80_000))
    assert drawn.std() == pytest.approx(0.2, rel=0.01)
    assert np.abs(dynamics(lambda u: 3.0 - 0 * u, jnp.zeros((1000, 2)), [4.0, 4.0], 1.5)).max() == 1.5


def test_step_sizes_fall_by_one_factor():
    np.testing.assert_allclose(boltzmann.step_sizes(0.4, 0.05, 4), [0.4, 0.2, 0.1, 0.05], rtol=1e-5)
    np.testing.assert_allclose(boltzmann.step_sizes(0.4, 0.05, 1), [0.4])


@pytest.mark.parametrize(("sizes", "variance"), [([0.02, 0.01], 0.015), ([0.01, 0.02], 0.02)])
def test_steps_are_made_in_their_order(sizes: list[float], variance: float):
    """For s^2 = 0.01 a step of 0.02 forgets all before it, and one of 0.01 keeps half of it."""
    drawn = dynamics(lambda u: -u / 0.01, jnp.ones((40_000, 1)), sizes)
    assert drawn.var() == pytest.approx(variance, rel=0.03)


def test_the_size_follows_by_its_rate_from_the_first_on():
    gradient = jnp.array([[3.0, 4.0], [0.0, 1.0]])
    for before, expected in ((0.0, 3.0), (2.0, 2.25)):
        size, running = boltzmann.follow_size(jnp.asarray(before), gradient, 0.25)
        assert (float(size), float(running)) == pytest.approx((3.0, expected))
