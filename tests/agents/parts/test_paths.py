"""Weights of chains, what is fitted to them, the temperature's two floors and the backup: by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import diffusion
from agents.parts.paths import backup, chain, fit, temperature, weights

SCHEDULE = diffusion.make_schedule("vp", 3)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


LOG_WEIGHT = np.random.default_rng(0).normal(size=(5, 8)) * np.array([[0.1], [1.0], [3.0], [10.0], [0.0]])


# ---- Weights ------------------------------------------------------------------------------------------------------


def test_effective_chains_run_from_one_to_all():
    given = jnp.array([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0], [1.0, 1.0, -90.0, -90.0]])
    np.testing.assert_allclose(weights.effective(given), [4.0, 1.0, 2.0], rtol=1e-5)
    p = softmax(LOG_WEIGHT)
    np.testing.assert_allclose(weights.effective(jnp.asarray(LOG_WEIGHT)), 1 / (p**2).sum(1), rtol=1e-4)


def test_weights_have_mean_one_in_each_state_and_mind_no_constant():
    found = np.asarray(weights.even(jnp.asarray(LOG_WEIGHT)))
    np.testing.assert_allclose(found, 8 * softmax(LOG_WEIGHT), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.mean(axis=1), 1.0, rtol=1e-5)
    moved = weights.even(jnp.asarray(LOG_WEIGHT + np.arange(5)[:, None]))
    np.testing.assert_allclose(moved, found, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [3.0, 1e3, 1e9])
def test_tempering_keeps_its_share_and_no_more(scale: float):
    log_weight = jnp.asarray(scale * LOG_WEIGHT, jnp.float32)
    eta = float(jax.jit(weights.tempering)(log_weight, 0.6))
    assert 0 < eta < 1
    assert float(weights.effective(eta * log_weight).mean()) == pytest.approx(4.8, rel=5e-3)


def test_what_is_effective_enough_is_not_tempered():
    log_weight = jnp.asarray(LOG_WEIGHT)
    share = float(weights.effective(log_weight).mean()) / 8
    assert float(weights.tempering(log_weight, share - 0.01)) == 1.0
    assert float(weights.tempering(log_weight, share + 0.01)) < 1.0


def test_the_log_mean_is_a_bound_that_tightens_with_chains():
    assert float(weights.log_mean(jnp.array([[3.0]]))[0]) == pytest.approx(3.0)
    np.testing.assert_allclose(
        weights.log_mean(jnp.asarray(LOG_WEIGHT)), np.log(np.exp(LOG_WEIGHT).mean(axis=1)), rtol=1e-4
    )
    # Standard normal log weights: their exact log normalizer is 1/2.
    normal = jax.random.normal(jax.random.key(0), (4096 * 8,))
    one, eight = (float(weights.log_mean(normal.reshape(-1, k)).mean()) for k in (1, 8))
    assert one == pytest.approx(0.0, abs=0.03)
    assert 0.3 < eight < 0.5


# ---- Fits ---------------------------------------------------------------------------------------------------------


def test_spread_is_the_variance_within_states():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2000, 1, 2)) * 5
    unsquashed = states + rng.normal(size=(2000, 4, 2)) * np.array([0.3, 2.0])
    found = fit.spread(jnp.asarray(unsquashed.reshape(-1, 2), jnp.float32), 4)
    np.testing.assert_allclose(found, [0.09, 4.0], rtol=0.05)


def test_errors_are_averaged_level_by_level_with_their_weights():
    before = jnp.full((3, 2), 10.0)
    error = jnp.array([[1.0, 2.0], [3.0, 0.0], [5.0, 1.0], [7.0, 0.0]])
    level, weight = jnp.array([1, 1, 3, 3]), jnp.array([1.0, 3.0, 0.5, 0.0])
    found = np.asarray(fit.follow_residual(before, error, level, weight, 0.1))
    # Level 1 has weight 4 of the 4/3 that are its share, so three times the rate; level 2 has none and stays.
    np.testing.assert_allclose(found[0], 10 + 0.3 * (np.array([28 / 4, 4 / 4]) - 10), rtol=1e-5)
    np.testing.assert_allclose(found[1], 10.0)
    np.testing.assert_allclose(found[2], 10 + 0.1 * 0.375 * (np.array([25.0, 1.0]) - 10), rtol=1e-5)
    alike = fit.follow_residual(before, error, level, None, 0.1)
    np.testing.assert_allclose(alike, fit.follow_residual(before, error, level, jnp.ones(4), 0.1))
    # However large the share, a running mean does not overshoot.
    np.testing.assert_allclose(
        fit.follow_residual(before, error, level, weight, 1.0)[0], [7.0, 1.0], rtol=1e-5
    )


def test_the_implied_action_undoes_the_noising():
    unsquashed, noise = jnp.array([[0.5, -1.0], [2.0, 0.1]]), jnp.array([[1.0, -2.0], [0.3, 0.2]])
    level = jnp.array([1, 3])
    noised = diffusion.add_noise(SCHEDULE, unsquashed, level, noise)
    found = fit.implied_clean(SCHEDULE, noised, level, noise, jnp.asarray(3.0))
    np.testing.assert_allclose(found, unsquashed, atol=1e-4)
    bounded = fit.implied_clean(SCHEDULE, noised, level, noise, jnp.asarray(0.3))
    np.testing.assert_allclose(bounded, np.clip(unsquashed, -0.3, 0.3), atol=1e-4)


@pytest.mark.parametrize("std", [0.2, 1.0, 1.7])
def test_the_target_of_a_gaussian_of_that_spread_has_no_noise(std: float):
    """lambda eps - (1 - lambda) (sigma / sqrt(abar)) grad is the same for all u_0, eps of one u_t, and exact."""
    variance = fit.gaussian_variance(SCHEDULE, jnp.array([std**2]))
    share = np.asarray(fit.noise_share(SCHEDULE, variance), np.float64)[:, 0]
    sigma, root = SCHEDULE.sigma, np.sqrt(SCHEDULE.abar)
    unsquashed, noised = np.array([[-0.7], [0.1], [2.0]]), 0.6
    noise = (noised - root * unsquashed) / sigma
    target = share * noise + (1 - share) * sigma / root * unsquashed / std**2
    exact = sigma * noised / (root**2 * std**2 + sigma**2)
    np.testing.assert_allclose(target, np.broadcast_to(exact, (3, 3)), rtol=1e-4, atol=1e-5)
    if std == 1.0:
        np.testing.assert_allclose(share, sigma**2, rtol=1e-5)


def test_the_share_of_noise_stays_between_none_and_all():
    share = fit.noise_share(SCHEDULE, jnp.array([[0.0, 1e6]] * 3))
    np.testing.assert_allclose(share, [[1.0, 0.0]] * 3)


# ---- Temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("excess", "room", "falls"),
    [(1.0, 0.2, True), (-0.1, 0.2, False), (1.0, -0.1, False), (-0.1, -0.1, False)],
)
def test_the_temperature_falls_only_while_both_floors_are_kept(excess: float, room: float, falls: bool):
    learned = temperature.start(10.0)
    assert float(learned.params) == pytest.approx(-np.log(10.0))
    moved = temperature.step(learned, jnp.float32(excess), jnp.float32(room), jnp.float32(0.01), 4)
    # Adam's first step is the rate itself.
    assert float(moved.params - learned.params) == pytest.approx(-0.01 if falls else 0.01, rel=1e-3)


def test_the_temperature_stops_where_the_density_is_flat():
    learned = temperature.start(1.0)
    for _ in range(3):
        learned = temperature.step(learned, jnp.float32(-1.0), jnp.float32(1.0), jnp.float32(5.0), 16)
        assert float(learned.params) == pytest.approx(np.log(0.5))


@pytest.mark.parametrize(("excess", "room"), [(0.05, 1.0), (1.0, 0.05)])
def test_the_nearer_floor_counts(excess: float, room: float):
    """Adam's mean of gradients after a step from rest is a tenth of the gradient."""
    learned = temperature.start(10.0)
    moved = temperature.step(learned, jnp.float32(excess), jnp.float32(room), jnp.float32(0.01), 4)
    adam: Any = moved.optimizer
    assert float(adam.mu) == pytest.approx(0.1 * 0.05)


def test_the_spread_is_the_unbiased_std_within_states():
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 3, 4))
    expected = np.sqrt(np.var(actions, axis=1, ddof=1).mean())
    assert float(temperature.spread(jnp.asarray(actions, jnp.float32))) == pytest.approx(expected, rel=1e-5)
    # What differs between states is no spread.
    moved = actions + np.arange(50)[:, None, None]
    assert float(temperature.spread(jnp.asarray(moved))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("std", "room", "falls"), [(0.3, 9.0, True), (0.1, 9.0, False), (0.0, 9.0, False), (0.3, -0.1, False)]
)
def test_the_temperature_falls_while_the_policy_is_too_wide_and_follows(std: float, room: float, falls: bool):
    actions = jnp.asarray(std * np.array([[[1.0], [-1.0]]] * 4) / np.sqrt(2), jnp.float32)
    learned = temperature.start(10.0)
    moved, metrics = temperature.hold_spread(
        learned, actions, jnp.float32(0.2), jnp.float32(room), jnp.float32(0.01)
    )
    assert float(metrics["score/spread"].total) == pytest.approx(std, abs=1e-6)
    assert float(moved.params - learned.params) == pytest.approx(-0.01 if falls else 0.01, rel=1e-3)


def test_the_temperature_stops_falling_where_no_sampler_follows():
    learned = temperature.start(900.0)
    for _ in range(3):
        learned = temperature.step(learned, jnp.float32(1.0), jnp.float32(1.0), jnp.float32(5.0), 16)
        assert float(learned.params) == pytest.approx(np.log(1e-3 / 4))


# ---- Backup -------------------------------------------------------------------------------------------------------


UNSQUASHED = jnp.arctanh(jnp.array([[0.1], [0.2], [0.3], [-0.1], [0.5], [-0.5]]))
ELL = jnp.array([0.0, 1.0, -1.0, 2.0, 0.5, -2.0])


def chosen(kind: Any, seed: Any = 0, tau: float = 0.5, num_samples: int = 3) -> tuple[Any, Any]:
    """Of two states' three chains, with the value ten times the action."""
    paths, key = chain.Path(UNSQUASHED, ELL), jax.random.key(seed)

    def value(action: jax.Array) -> jax.Array:
        return 10 * action[:, 0]

    action, bonus = backup.choose(kind, value, paths, num_samples, jnp.float32(tau), key)
    return action[:, 0], bonus


def test_plain_takes_the_largest_value_without_a_bonus():
    action, bonus = chosen("plain")
    np.testing.assert_allclose(action, [0.3, 0.5], rtol=1e-5)
    assert bonus is None


def test_entropy_adds_that_of_the_chain_it_takes():
    action, bonus = chosen("entropy")
    np.testing.assert_allclose(action, [0.3, 0.5], rtol=1e-5)
    np.testing.assert_allclose(bonus, [-0.5, 0.25], rtol=1e-5)


def test_soft_brings_the_value_of_a_chain_drawn_by_weight_to_the_soft_value():
    values = np.array([[1.0, 2.0, 3.0], [-1.0, 5.0, -5.0]])
    log_weight = values / 2.0 + np.asarray(ELL).reshape(2, 3)
    soft = 2.0 * np.log(np.exp(log_weight).mean(axis=1))
    draw = jax.jit(jax.vmap(lambda seed: chosen("soft", seed, tau=2.0)))
    actions, bonuses = draw(jnp.arange(2000))
    np.testing.assert_allclose(10 * actions + bonuses, np.broadcast_to(soft, (2000, 2)), rtol=1e-4)
    shares = [np.isclose(actions[:, 0], a, atol=1e-4).mean() for a in (0.1, 0.2, 0.3)]
    np.testing.assert_allclose(shares, softmax(log_weight)[0], atol=0.03)


@pytest.mark.parametrize("kind", ["entropy", "soft"])
def test_with_one_chain_soft_is_the_entropy_bonus(kind: Any):
    action, bonus = chosen(kind, num_samples=1)
    np.testing.assert_allclose(action, np.tanh(UNSQUASHED)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(bonus, 0.5 * np.asarray(ELL), rtol=1e-6)
    assert chosen("plain", num_samples=1)[1] is None
