"""Flows of state and action: values against integration, and the improvements that Theorem 4.1 constructs."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.integrate

from agents.exact import flows
from agents.exact.flows import Bump, Flow

FLOW = Flow(np.array([[-0.2, 0.6, 1.0, 0.0], [-0.6, -0.2, 0.0, 0.7]]), np.diag([1.0, 0.6]), 0.4)
SCORE = np.array([[-0.2, 0.3, -1.2, 0.4], [-0.3, -0.2, -0.3, -1.0]])
NOISE = np.diag([0.1, 0.0, 0.3, 0.2]) + 0.02
CENTER = np.array([1.0, 0.5, -0.3, 0.8])
VALUE = flows.evaluate(FLOW, SCORE)


def test_the_value_is_the_integral_of_the_reward_along_the_path():
    joint = np.concatenate([FLOW.drift, SCORE])

    def velocity(t: float, z: np.ndarray) -> np.ndarray:
        return np.append(joint @ z[:4], -np.exp(-0.4 * t) * (z[0] ** 2 + 0.6 * z[1] ** 2))

    paid = scipy.integrate.solve_ivp(velocity, (0, 40), np.append(CENTER, 0.0), rtol=1e-10, atol=1e-12).y[
        4, -1
    ]
    assert VALUE.value(CENTER) == pytest.approx(paid, abs=1e-7)
    found = flows.simulate(FLOW, flows.linear(SCORE), CENTER[None], 1.0, VALUE)
    np.testing.assert_allclose(found, VALUE.value(CENTER), rtol=1e-8)


def test_noise_costs_what_the_covariance_of_the_path_says():
    """From the origin, the expected reward at t is tr(R S(t)), where S' = J S + S J' + noise."""
    noisy = dataclasses.replace(FLOW, noise=NOISE)
    joint = np.concatenate([FLOW.drift, SCORE])

    def velocity(t: float, flat: np.ndarray) -> np.ndarray:
        spread = flat[:16].reshape(4, 4)
        paid = np.exp(-0.4 * t) * np.sum(noisy.reward * spread)
        return np.append((joint @ spread + spread @ joint.T + NOISE).ravel(), paid)

    paid = scipy.integrate.solve_ivp(velocity, (0, 60), np.zeros(17), rtol=1e-9, atol=1e-11).y[16, -1]
    found = flows.evaluate(noisy, SCORE)
    assert found.constant == pytest.approx(paid, abs=1e-7)
    np.testing.assert_allclose(found.matrix, VALUE.matrix)


def test_adding_the_gradient_raises_the_value_everywhere_whatever_its_size():
    gradient = flows.action_gradient(FLOW, VALUE)
    for size in (1e-3, 0.1, 1.0, 30.0, 1000.0):
        after = flows.evaluate(FLOW, SCORE + size * gradient)
        assert np.linalg.eigvalsh(after.matrix - VALUE.matrix).min() > 0
    worse = flows.evaluate(FLOW, SCORE - 0.05 * gradient)
    assert np.linalg.eigvalsh(worse.matrix - VALUE.matrix).max() < 0


def test_the_rise_is_the_integral_of_gradient_and_change():
    """Q' - Q is quadratic with J'' X + X J' - rho X + sym(2 P_a' (G' - G)) = 0, for a change of any size."""
    changed = SCORE + np.array([[0.1, -0.4, 0.2, 0.0], [0.3, 0.1, -0.6, 0.2]])
    joint, after = np.concatenate([FLOW.drift, changed]), flows.evaluate(FLOW, changed)
    paid = flows.action_gradient(FLOW, VALUE).T @ (changed - SCORE)
    rise = after.matrix - VALUE.matrix
    left = joint.T @ rise + rise @ joint - 0.4 * rise + 0.5 * (paid + paid.T)
    np.testing.assert_allclose(left, 0.0, atol=1e-9)


@pytest.mark.parametrize("action_steps", [1, 4])
def test_steps_are_those_of_equation_6(action_steps: int):
    """Against the sum itself, noise included; and the value of the flow is their limit, with an error of order one."""
    noisy, step = dataclasses.replace(FLOW, noise=NOISE), 0.05
    blocks = np.kron(np.eye(2), np.ones((2, 2)))  # the state's noise and the action's
    noisy = dataclasses.replace(noisy, noise=NOISE * blocks)
    found = flows.evaluate_steps(noisy, SCORE, step, action_steps)
    z, spread, total = CENTER.copy(), np.zeros((4, 4)), 0.0
    for number in range(1300):
        total += np.exp(-0.4 * step * number) * step * np.sum(noisy.reward * (np.outer(z, z) + spread))
        state, action, jacobian = z[:2], z[2:], np.eye(4)
        noise = np.zeros((4, 4))
        for _ in range(action_steps):
            small = np.eye(4)
            small[2:] += step / action_steps * SCORE
            action = action + step / action_steps * SCORE @ np.concatenate([state, action])
            jacobian, noise = small @ jacobian, small @ noise @ small.T
            noise[2:, 2:] += step / action_steps * noisy.covariance[2:, 2:]
        jacobian[:2] += step * FLOW.drift
        noise[:2, :2] += step * noisy.covariance[:2, :2]
        z = np.concatenate([state + step * FLOW.drift @ z, action])
        spread = jacobian @ spread @ jacobian.T + noise
    assert found.value(CENTER) == pytest.approx(total, rel=1e-9)
    limit = flows.evaluate(noisy, SCORE)
    errors = [
        flows.evaluate_steps(noisy, SCORE, h, action_steps).value(CENTER) - limit.value(CENTER)
        for h in (2e-3, 1e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.03)


def test_in_steps_a_score_can_be_too_large():
    value = flows.evaluate_steps(FLOW, SCORE, 0.1)
    gradient = flows.action_gradient(FLOW, value)
    small = flows.evaluate_steps(FLOW, SCORE + gradient, 0.1)
    assert np.linalg.eigvalsh(small.matrix - value.matrix).min() > 0
    with pytest.raises(ValueError, match="the cost of these steps is infinite"):
        flows.evaluate_steps(FLOW, SCORE + 30 * gradient, 0.1)
    # More steps of the action for each of the state make room again.
    flows.evaluate_steps(FLOW, SCORE + 30 * gradient, 0.1, action_steps=10)


@pytest.mark.parametrize("alpha", [0.3, 5.0])
def test_the_best_score_at_a_price_is_alpha_times_the_gradient(alpha: float):
    """The Riccati solution is the value of its own score, and no other linear score has a better one."""
    noisy = dataclasses.replace(FLOW, noise=NOISE)
    score, value = flows.best(noisy, alpha)
    own = flows.evaluate(noisy, score, alpha)
    np.testing.assert_allclose(own.matrix, value.matrix, atol=1e-8)
    assert value.constant == pytest.approx(own.constant)
    np.testing.assert_allclose(score, alpha * 2 * value.matrix[2:], atol=1e-10)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = flows.evaluate(noisy, score + 0.05 * rng.normal(size=score.shape), alpha)
        assert np.linalg.eigvalsh(other.matrix - value.matrix).max() < 1e-9


def test_a_price_is_the_integral_of_what_moving_costs():
    joint = np.concatenate([FLOW.drift, SCORE])

    def velocity(t: float, z: np.ndarray) -> np.ndarray:
        moved = np.square(SCORE @ z[:4]).sum() / (2 * 0.7)
        return np.append(joint @ z[:4], -np.exp(-0.4 * t) * (z[0] ** 2 + 0.6 * z[1] ** 2 + moved))

    paid = scipy.integrate.solve_ivp(velocity, (0, 40), np.append(CENTER, 0.0), rtol=1e-9, atol=1e-11).y[
        4, -1
    ]
    assert flows.evaluate(FLOW, SCORE, 0.7).value(CENTER) == pytest.approx(paid, abs=1e-6)


def test_matching_again_and_again_is_monotone_at_a_price_only():
    """Psi <- alpha grad_a Q^Psi: policy iteration where moves have a price; without one the value falls now and then.

    Without a price a fixed point has the Riccati value of twice alpha: its equation is rho P = R + ... + 4 alpha P E P,
    where that of the best score at a price has 2 alpha.
    """
    alpha = 0.3
    for price, limit in ((alpha, flows.best(FLOW, alpha)[1]), (np.inf, flows.best(FLOW, 2 * alpha)[1])):
        score, values = SCORE, []
        for _ in range(60):
            values.append(flows.evaluate(FLOW, score, price).matrix)
            score = alpha * 2 * values[-1][2:]
        changes = [after - before for before, after in itertools.pairwise(values)]
        np.testing.assert_allclose(values[-1], limit.matrix, atol=1e-5)
        if price == alpha:
            assert min(np.linalg.eigvalsh(change).min() for change in changes) > -1e-9
        else:
            assert min(np.trace(change) for change in changes) < -0.5


def test_the_constructed_score_is_turned_in_its_ball_only():
    bump = Bump(FLOW, SCORE, CENTER, 0.4)
    gradient = VALUE.gradient(CENTER)[2:]
    plain = flows.linear(SCORE)
    direction = np.array([1.0, 0.0, 0.0, 0.0])
    points = CENTER + np.outer([0.0, 0.19, 0.3, 0.41, 2.0], direction)
    found, before = bump.field()(points), plain(points)
    turned = np.linalg.norm(SCORE @ CENTER) * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(found[:2], np.tile(turned, (2, 1)))
    np.testing.assert_allclose(found[2], 0.5 * turned + 0.5 * before[2])
    np.testing.assert_allclose(found[3:], before[3:])
    half = dataclasses.replace(bump, share=0.5).field()(points)
    np.testing.assert_allclose(half, 0.5 * (found + before))


def test_theorem_4_1_small_balls_raise_the_value_in_proportion_and_large_ones_lower_it():
    def rise(radius: float, starts: np.ndarray = CENTER[None]) -> np.ndarray:
        bump = Bump(FLOW, SCORE, CENTER, radius)
        speed = float(np.linalg.norm(np.concatenate([FLOW.drift, SCORE]) @ CENTER))
        found = flows.simulate(
            FLOW, bump.field(), starts, min(12.0, 20 * radius / speed), VALUE, radius / speed / 4
        )
        return found - VALUE.value(starts)

    small, twice = rise(0.01)[0], rise(0.02)[0]
    assert small > 0 and twice / small == pytest.approx(2.0, rel=0.01)
    assert rise(4.0)[0] < 0
    # Corollary 4.2: a small ball lowers the value of no start around it.
    rng = np.random.default_rng(1)
    around = CENTER + 0.1 * rng.normal(size=(60, 4))
    changes = rise(0.1, around)
    assert changes.min() > -1e-9 and changes.mean() > 1e-3


def test_cosines():
    first = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    second = np.array([[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(flows.cosine(first, second), [0.0, np.sqrt(0.5), -1.0, 0.0])


def test_what_is_no_flow_is_refused():
    with pytest.raises(ValueError, match="rate is 0; it must be above 0"):
        dataclasses.replace(FLOW, rate=0)
    with pytest.raises(ValueError, match=r"drift is of shape \(4,\)"):
        Flow(np.zeros(4), np.eye(2), 0.1)
    with pytest.raises(ValueError, match=r"score is of shape \(4, 2\); it must be \(2, 4\)"):
        flows.evaluate(FLOW, SCORE.T)
    with pytest.raises(ValueError, match="the score's cost is infinite"):
        flows.evaluate(FLOW, -10 * SCORE)
