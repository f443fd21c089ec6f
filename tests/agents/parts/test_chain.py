"""Chains and their log-density bound against a linear-Gaussian chain, where everything is known in closed form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import diffusion
from agents.parts.paths import chain, fit
from tests.agents.exact_chain import Chain

LEVELS = 5
SCHEDULE = diffusion.make_schedule("vp", LEVELS)
FREE = 1e6  # a bound of the clean action that nothing reaches


def predictor(slope: np.ndarray, offset: np.ndarray) -> Any:
    """Noise prediction linear in u_t, from `[T]` each."""
    slopes, offsets = jnp.asarray(slope, jnp.float32), jnp.asarray(offset, jnp.float32)
    return lambda index, noised: slopes[index] * noised + offsets[index]


def drawn(
    slope: np.ndarray, offset: np.ndarray, variance: Any, action_size: int = 1, batch: int = 20_000
) -> tuple[np.ndarray, np.ndarray]:
    """u_0 `[B, A]` and ell `[B]` of chains with a linear network; `variance` `[T]`, the same for each component."""
    variances = jnp.broadcast_to(jnp.asarray(variance, jnp.float32)[:, None], (LEVELS, action_size))
    path = jax.jit(lambda key: chain.draw(SCHEDULE, predictor(slope, offset), key, batch, variances, FREE))(
        jax.random.key(0)
    )
    return np.asarray(path.unsquashed, np.float64), np.asarray(path.ell, np.float64)


def exact_step_variance(variance: float) -> np.ndarray:
    """Variance of u_{t-1} given u_t for u_0 of `variance`, from the joint Gaussian."""
    found = []
    for alpha, before in zip(SCHEDULE.alpha, SCHEDULE.abar_previous, strict=True):
        below = before * variance + 1 - before
        found.append(below - alpha * below**2 / (alpha * below + 1 - alpha))
    return np.array(found)


def log_jacobian(unsquashed: np.ndarray) -> np.ndarray:
    return np.log1p(-np.square(np.tanh(unsquashed))).sum(axis=-1)


def log_normal(x: np.ndarray, mean: Any, variance: Any) -> np.ndarray:
    return -0.5 * (np.square(x - mean) / variance + np.log(2 * np.pi * variance))


def joint_of_chain(
    slope: np.ndarray, offset: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean `[T+1]` and covariance of (u_T, ..., u_0) of the reverse chain in one dimension."""
    mean, covariance = np.zeros(1), np.ones((1, 1))
    for i in reversed(range(LEVELS)):
        share = SCHEDULE.beta[i] / SCHEDULE.sigma[i]
        factor = (1 - share * slope[i]) / np.sqrt(SCHEDULE.alpha[i])
        last = covariance[-1:] * factor
        mean = np.append(mean, factor * mean[-1] - share * offset[i] / np.sqrt(SCHEDULE.alpha[i]))
        covariance = np.block([[covariance, last.T], [last, factor**2 * covariance[-1:, -1:] + variance[i]]])
    return mean, covariance


def expected_ell(slope: np.ndarray, offset: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """E[ell] before the tanh and the entropy of u_0, for the linear chain in one dimension, without sampling."""
    mean, covariance = joint_of_chain(slope, offset, variance)
    log_q = 0.0
    for i in range(LEVELS):
        later, earlier = LEVELS - 1 - i, LEVELS - i  # positions of u_t and u_{t-1} for t = i + 1
        row = np.zeros(LEVELS + 1)
        row[later], row[earlier] = 1.0, -np.sqrt(SCHEDULE.alpha[i])
        square = row @ covariance @ row + (row @ mean) ** 2
        log_q += -0.5 * (square / SCHEDULE.beta[i] + np.log(2 * np.pi * SCHEDULE.beta[i]))
    # -log pi of the path: each step has its noise's entropy.
    entropies = 0.5 * np.log(2 * np.pi * np.e * np.append(1.0, variance))
    return log_q + entropies.sum(), 0.5 * np.log(2 * np.pi * np.e * covariance[-1, -1])


# ---- The bound ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 0.4), (0.6, 0.3)])
def test_an_exact_chain_gives_minus_the_log_density(mean: float, std: float):
    """With the exact score and reverse variances, but for the start, whose density is N(0, 1) and not that of u_T."""
    slope, offset = Chain(LEVELS).exact_score(mean, std**2)
    variance = exact_step_variance(std**2)
    unsquashed, ell = drawn(slope, offset, variance)
    joint_mean, joint = joint_of_chain(slope, offset, variance)
    # The chain's own density of u_0; it is the Gaussian's where the start is the right one.
    own_mean, own_variance = joint_mean[-1], joint[-1, -1]
    assert own_variance**0.5 == pytest.approx(std, rel=0.02)
    exact = -log_normal(unsquashed[:, 0], own_mean, own_variance) + log_jacobian(unsquashed)
    if (mean, std) == (0.0, 1.0):
        np.testing.assert_allclose(ell, exact, atol=2e-4)
    assert ell.mean() == pytest.approx(exact.mean(), abs=0.02)
    assert np.abs(ell - exact).std() < 0.15


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.4), (0.6, 0.3)])
def test_the_mean_of_ell_is_the_known_bound_of_the_entropy(mean: float, std: float, factor: float):
    slope, offset = Chain(LEVELS).exact_score(mean, std**2)
    variance = factor * exact_step_variance(std**2)
    bound, entropy = expected_ell(slope, offset, variance)
    assert bound < entropy - (0.1 if factor != 1.0 else -1e-9)
    unsquashed, ell = drawn(slope, offset, variance)
    assert (ell - log_jacobian(unsquashed)).mean() == pytest.approx(bound, abs=0.03)


def test_components_of_a_chain_add_up():
    slope, offset = Chain(LEVELS).exact_score(0.3, 0.25)
    variance = 1.5 * exact_step_variance(0.25)
    one, three = (drawn(slope, offset, variance, size)[1].mean() for size in (1, 3))
    assert three == pytest.approx(3 * one, abs=0.05)


def test_the_jacobian_is_that_of_tanh_far_out_too():
    unsquashed = jnp.linspace(-4, 4, 18).reshape(9, 2)
    _, determinant = np.linalg.slogdet(jax.vmap(jax.jacobian(jnp.tanh))(unsquashed))
    np.testing.assert_allclose(chain.log_jacobian(unsquashed), determinant, atol=2e-3)
    far = chain.log_jacobian(jnp.array([[40.0], [-40.0]]))
    np.testing.assert_allclose(far, 2 * np.log(2.0) - 80.0, rtol=1e-6)


@pytest.mark.parametrize("action_size", [1, 2])
def test_weights_integrate_over_the_box_whatever_the_chain(action_size: int):
    """E[f(a) exp(ell)] is the integral of f: the box's volume for 1, (2/3) a side for a^2."""
    slope, offset = Chain(LEVELS).exact_score(0.1, 0.8)
    unsquashed, ell = drawn(slope, offset, 1.2 * exact_step_variance(0.8), action_size, 200_000)
    weight = np.exp(ell)
    assert weight.mean() == pytest.approx(2.0**action_size, rel=0.02)
    squares = np.square(np.tanh(unsquashed[:, 0]))
    assert (weight * squares).mean() == pytest.approx(2.0**action_size / 3, rel=0.04)


# ---- The chain ----------------------------------------------------------------------------------------------------


def test_chains_have_the_moments_of_their_variances():
    slope, offset = Chain(LEVELS).exact_score(0.6, 0.25)
    variance = 2.0 * exact_step_variance(0.25)
    mean, joint = joint_of_chain(slope, offset, variance)
    unsquashed, _ = drawn(slope, offset, variance)
    assert unsquashed.mean() == pytest.approx(mean[-1], abs=0.02)
    assert unsquashed.std() == pytest.approx(joint[-1, -1] ** 0.5, rel=0.02)


def test_the_implied_clean_action_is_bounded():
    variance = jnp.full((LEVELS, 2), 1e-12)
    path = chain.draw(SCHEDULE, lambda _, noised: -10 * noised, jax.random.key(0), 50, variance, 1.5)
    # The last step's mean is the clean action itself.
    assert float(jnp.abs(path.unsquashed).max()) == pytest.approx(1.5, rel=1e-4)
    assert np.isfinite(path.ell).all()


@pytest.mark.parametrize("variance", [1.0, 0.16, 4.0])
def test_fitted_variances_are_those_of_a_gaussian(variance: float):
    clean = fit.gaussian_variance(SCHEDULE, jnp.array([variance, 1.0]))
    found = chain.step_variance(SCHEDULE, clean)
    np.testing.assert_allclose(found[:, 0], exact_step_variance(variance), rtol=1e-4)
    np.testing.assert_allclose(found[:, 1], SCHEDULE.beta, rtol=1e-5)
    np.testing.assert_allclose(clean[:, 1], fit.unit_variance(SCHEDULE, 2)[:, 1], rtol=1e-6)


def test_long_chains_run_as_a_loop(monkeypatch: pytest.MonkeyPatch):
    slope, offset = Chain(LEVELS).exact_score(0.3, 0.25)
    unrolled = drawn(slope, offset, SCHEDULE.beta, batch=64)
    monkeypatch.setattr(diffusion, "UNROLLED_LEVELS", 0)
    looped = drawn(slope, offset, SCHEDULE.beta, batch=64)
    np.testing.assert_allclose(unrolled[0], looped[0], atol=1e-5)
    np.testing.assert_allclose(unrolled[1], looped[1], atol=1e-3)


def test_the_states_of_a_chain_are_those_of_draw_and_their_density_that_of_each_step():
    slope, offset = np.linspace(0.2, 0.9, LEVELS), np.linspace(-0.3, 0.3, LEVELS)
    variance = jnp.linspace(0.05, 0.4, LEVELS)[:, None] * jnp.array([[1.0, 2.0]])
    inputs = SCHEDULE, predictor(slope, offset), jax.random.key(0), 50, variance, 1.5
    states = chain.states(*inputs)
    np.testing.assert_allclose(states[0], chain.draw(*inputs).unsquashed, atol=1e-6)
    noised, below = np.asarray(states[1:], np.float64), np.asarray(states[:-1], np.float64)
    predicted = slope[:, None, None] * noised + offset[:, None, None]
    expected = np.zeros(50)
    for t in range(LEVELS):
        abar, before, alpha = SCHEDULE.abar[t], SCHEDULE.abar_previous[t], SCHEDULE.alpha[t]
        clean = np.clip((noised[t] - SCHEDULE.sigma[t] * predicted[t]) / np.sqrt(abar), -1.5, 1.5)
        mean = np.sqrt(before) * (1 - alpha) * clean + np.sqrt(alpha) * (1 - before) * noised[t]
        expected += log_normal(below[t], mean / (1 - abar), np.asarray(variance[t])[None]).sum(axis=1)
    found = chain.log_density(SCHEDULE, jnp.asarray(predicted, jnp.float32), states, variance, 1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
