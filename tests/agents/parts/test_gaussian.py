from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from agents.networks.actors import TanhGaussian
from agents.networks.torsos import Torso
from agents.parts.gaussian import GaussianPolicy, log_probability


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.3), (-1.5, 0.5), (0.3, 0.05), (0.0, 2.0)])
def test_density_integrates_to_one_and_matches_the_distribution(mean: float, std: float):
    # Cells uniform in the probability of u, so that narrow densities and those heaped at the bounds are both resolved.
    u = np.linspace(mean - 8 * std, mean + 8 * std, 4001)
    log_prob = log_probability(
        jnp.asarray(u, jnp.float32)[:, None], jnp.full((4001, 1), mean), jnp.full((4001, 1), math.log(std))
    )
    density = np.exp(np.asarray(log_prob, np.float64))
    # Over the action itself; beyond |u| of 7 float32's tanh no longer tells actions apart, float64's does.
    cumulative = integrate.cumulative_trapezoid(density, np.tanh(u), initial=0)
    assert cumulative[-1] == pytest.approx(1.0, abs=2e-3)
    normal = np.array([0.5 * (1 + math.erf((x - mean) / std / math.sqrt(2))) for x in u])
    np.testing.assert_allclose(cumulative, normal, atol=2e-3)


def test_log_probability_adds_over_components():
    u, mean = jnp.array([[0.3, -0.9]]), jnp.array([[0.1, -0.5]])
    log_std = jnp.log(jnp.array([[0.5, 0.2]]))
    single = [
        log_probability(u[:, i : i + 1], mean[:, i : i + 1], log_std[:, i : i + 1])[0] for i in range(2)
    ]
    assert float(log_probability(u, mean, log_std)[0]) == pytest.approx(float(sum(single)), rel=1e-5)


@pytest.mark.parametrize("u", [-1000.0, -50.0, -10.0, 0.0, 10.0, 50.0, 1000.0])
def test_log_probability_is_finite_far_out(u: float):
    def total(unsquashed: jax.Array) -> jax.Array:
        # With the mean alongside, as for a policy that has saturated; log-std at both of its limits.
        low, high = (
            log_probability(unsquashed, unsquashed, jnp.full((1, 1), log_std)).sum()
            for log_std in (-20.0, 2.0)
        )
        return low + high

    value, gradient = jax.value_and_grad(total)(jnp.full((1, 1), u))
    # -log(1 - tanh(u)^2) tends to 2|u| - 2 log 2.
    expected = 2 * (abs(2 * u) - 4 * math.log(2) / 2) if abs(u) >= 10 else 0.0
    expected += 18.0 - math.log(2 * math.pi)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(gradient).all()


def test_sampled_log_probability_is_that_of_the_sampled_action():
    policy = GaussianPolicy(TanhGaussian(2, Torso((16, 16))))
    observation = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    params = jax.jit(policy.init)(jax.random.key(0), observation).params
    action, log_prob = jax.jit(policy.sample)(params, observation, jax.random.key(1))
    mean, log_std = (np.asarray(x, np.float64) for x in policy.apply(params, observation))
    np.testing.assert_allclose(policy.mode(params, observation), np.tanh(mean), rtol=1e-5)
    u = np.arctanh(np.asarray(action, np.float64))
    gaussian = -0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    expected = (gaussian - np.log(1 - np.tanh(u) ** 2)).sum(axis=1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-3, atol=1e-3)
