"""Linear-quadratic control against brute force: simulated costs, value iteration, and integrals of densities."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agents.exact import linear_quadratic
from agents.exact.linear_quadratic import Policy, Process
from agents.exact.quadratic import Quadratic

PROCESS = Process(
    state_matrix=np.array([[0.9, 0.3, 0.0], [-0.2, 0.9, 0.1], [0.1, 0.0, 0.7]]),
    action_matrix=np.array([[0.5, 0.1], [0.0, 0.4], [0.2, -0.3]]),
    noise=np.array([[0.02, 0.01, 0.0], [0.01, 0.03, 0.0], [0.0, 0.0, 0.0]]),
    state_cost=np.array([[1.0, 0.2, 0.0], [0.2, 0.5, 0.0], [0.0, 0.0, 0.1]]),
    action_cost=np.array([[0.3, 0.1], [0.1, 0.6]]),
    discount=0.9,
)
POLICY = Policy(np.array([[-0.5, 0.1, 0.2], [0.0, -0.3, 0.4]]), np.array([[0.2, 0.05], [0.05, 0.1]]))


def values_by_steps(process: Process, policy: Policy, state: np.ndarray, num_steps: int) -> float:
    """Expected discounted return from `state`, by the mean and covariance of the state at every step."""
    mean, covariance, total = state, np.zeros_like(process.noise), 0.0
    for step in range(num_steps):
        second = np.outer(mean, mean) + covariance
        acted = policy.gain @ second @ policy.gain.T + policy.covariance
        cost = np.sum(process.state_cost * second) + np.sum(process.action_cost * acted)
        total -= process.discount**step * cost
        closed = process.state_matrix + process.action_matrix @ policy.gain
        arriving = process.action_matrix @ policy.covariance @ process.action_matrix.T + process.noise
        mean, covariance = closed @ mean, closed @ covariance @ closed.T + arriving
    return float(total)


def test_values_are_the_sums_that_they_stand_for():
    values = linear_quadratic.evaluate(PROCESS, POLICY)
    for state in np.random.default_rng(0).normal(size=(4, 3)):
        assert values.value.value(state) == pytest.approx(
            values_by_steps(PROCESS, POLICY, state, 400), rel=1e-9
        )


def test_action_values_pay_once_and_go_on_with_the_policy():
    """Q(s, a) = r + discount E V(s'), E V by the two points of each noise direction, exact for a quadratic."""
    values, rng = linear_quadratic.evaluate(PROCESS, POLICY), np.random.default_rng(1)
    state, action = rng.normal(size=3), rng.normal(size=2)
    arrival = PROCESS.state_matrix @ state + PROCESS.action_matrix @ action
    scales, directions = np.linalg.eigh(PROCESS.noise)
    points = np.sqrt(3 * np.maximum(scales, 0)) * directions
    around = np.concatenate([arrival + points.T, arrival - points.T])
    expected = PROCESS.reward(state, action) + 0.9 * values.value.value(around).mean()
    joint = np.concatenate([state, action])
    assert values.action_value.value(joint) == pytest.approx(expected, rel=1e-9)
    # V is the mean of Q over the policy.
    jacobian = np.concatenate([np.eye(3), POLICY.gain])
    within = np.zeros((5, 5))
    within[3:, 3:] = POLICY.covariance
    mean = values.action_value.value(jacobian @ state) + np.sum(values.action_value.matrix * within)
    assert values.value.value(state) == pytest.approx(mean, rel=1e-9)


def test_values_are_what_simulated_policies_return():
    rng, num_paths = np.random.default_rng(2), 5_000
    start = np.array([1.0, -0.5, 0.3])
    state, returns = np.tile(start, (num_paths, 1)), np.zeros(num_paths)
    for step in range(100):
        action = state @ POLICY.gain.T + rng.multivariate_normal(np.zeros(2), POLICY.covariance, num_paths)
        returns += 0.9**step * PROCESS.reward(state, action)
        drawn = rng.multivariate_normal(np.zeros(3), PROCESS.noise, num_paths)
        state = state @ PROCESS.state_matrix.T + action @ PROCESS.action_matrix.T + drawn
    expected = linear_quadratic.evaluate(PROCESS, POLICY).value.value(start)
    assert returns.mean() == pytest.approx(expected, abs=4 * returns.std() / np.sqrt(num_paths))


def test_the_best_policy_is_that_of_value_iteration():
    value = Quadratic(np.zeros((3, 3)), 0.0)
    for _ in range(400):
        action_value = linear_quadratic.backup(PROCESS, value)
        gain = linear_quadratic.greedy_gain(action_value, 3)
        jacobian = np.concatenate([np.eye(3), gain])
        value = Quadratic(jacobian.T @ action_value.matrix @ jacobian, action_value.constant)
    best = linear_quadratic.best(PROCESS)
    np.testing.assert_allclose(best.gain, gain, atol=1e-9)
    found = linear_quadratic.evaluate(PROCESS, best).value
    np.testing.assert_allclose(found.matrix, value.matrix, atol=1e-9)
    assert found.constant == pytest.approx(value.constant, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 20.0])
def test_equation_20_has_one_fixed_point_and_its_price_is_known(alpha: float):
    """The gain of pi = exp(alpha Q^pi) is the best one, and its noise costs A / (2 alpha (1 - discount)) in value."""
    best = linear_quadratic.best(PROCESS)
    policy = Policy(np.zeros((2, 3)), np.zeros((2, 2)))
    for _ in range(12):
        policy = linear_quadratic.boltzmann(linear_quadratic.evaluate(PROCESS, policy).action_value, 3, alpha)
    np.testing.assert_allclose(policy.gain, best.gain, atol=1e-9)
    found, free = (linear_quadratic.evaluate(PROCESS, one).value for one in (policy, best))
    np.testing.assert_allclose(found.matrix, free.matrix, atol=1e-9)
    assert free.constant - found.constant == pytest.approx(2 / (2 * alpha * (1 - 0.9)), rel=1e-9)


def test_a_boltzmann_policy_has_the_moments_of_its_density():
    action_value = linear_quadratic.evaluate(PROCESS, POLICY).action_value
    policy = linear_quadratic.boltzmann(action_value, 3, 4.0)
    state = np.array([0.4, -0.2, 0.6])
    line = np.linspace(-4, 4, 201)
    actions = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    joint = np.concatenate([np.tile(state, (len(actions), 1)), actions], axis=1)
    weights = np.exp(4.0 * (action_value.value(joint) - action_value.value(joint).max()))
    weights /= weights.sum()
    mean = weights @ actions
    np.testing.assert_allclose(policy.gain @ state, mean, atol=1e-8)
    np.testing.assert_allclose(
        policy.covariance, (weights[:, None] * (actions - mean)).T @ (actions - mean), atol=1e-8
    )


def test_moving_actions_along_the_gradient_raises_every_state_up_to_the_step_that_is_known():
    """Below 2 over the largest curvature of Q every state gains; a step beyond 2 over the smallest loses somewhere."""
    values = linear_quadratic.evaluate(PROCESS, POLICY)
    curvature = -2 * np.linalg.eigvalsh(values.action_value.matrix[3:, 3:])
    for size in (0.01, 0.5, 0.99 * 2 / curvature.max()):
        moved = linear_quadratic.transported(POLICY, values.action_value, size)
        after = linear_quadratic.evaluate(PROCESS, moved).value
        assert np.linalg.eigvalsh(after.matrix - values.value.matrix).min() > -1e-12
        assert after.constant > values.value.constant
    moved = linear_quadratic.transported(POLICY, values.action_value, 1.2 * 2 / curvature.min())
    assert linear_quadratic.evaluate(PROCESS, moved).value.constant < values.value.constant


def test_moved_actions_are_those_of_the_gradient():
    action_value, state = linear_quadratic.evaluate(PROCESS, POLICY).action_value, np.array([0.3, -1.0, 0.5])
    action = np.random.default_rng(3).multivariate_normal(POLICY.gain @ state, POLICY.covariance, 50_000)
    joint = np.concatenate([np.tile(state, (len(action), 1)), action], axis=1)
    expected = action + 0.3 * action_value.gradient(joint)[:, 3:]
    moved = linear_quadratic.transported(POLICY, action_value, 0.3)
    np.testing.assert_allclose(moved.gain @ state, expected.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(moved.covariance, np.cov(expected.T), rtol=0.03, atol=2e-3)


def test_a_fit_finds_the_policy_that_drew():
    rng = np.random.default_rng(4)
    states = rng.normal(size=(50_000, 3))
    actions = states @ POLICY.gain.T + rng.multivariate_normal(np.zeros(2), POLICY.covariance, 50_000)
    found, share = linear_quadratic.fit(states, actions)
    np.testing.assert_allclose(found.gain, POLICY.gain, atol=0.01)
    np.testing.assert_allclose(found.covariance, POLICY.covariance, atol=0.005)
    signal = np.trace(POLICY.gain @ POLICY.gain.T)
    assert share == pytest.approx(signal / (signal + np.trace(POLICY.covariance)), abs=0.01)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"state_matrix": np.eye(2)}, r"state_matrix is of shape \(2, 2\); it must be \(3, 3\)"),
        ({"action_matrix": np.zeros(3)}, r"action_matrix is of shape \(3,\)"),
        ({"state_cost": -np.eye(3)}, "state_cost must be symmetric, with no eigenvalue below 0"),
        ({"noise": np.triu(np.ones((3, 3)))}, "noise must be symmetric"),
        ({"action_cost": np.full((2, 2), np.nan)}, "action_cost holds numbers that are not finite"),
        ({"discount": 1.0}, r"discount is 1.0; it must lie in \[0, 1\)"),
    ],
)
def test_what_is_no_process_is_refused(changed: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PROCESS, **changed)


def test_what_has_no_value_is_refused():
    with pytest.raises(ValueError, match="the policy's cost is infinite"):
        linear_quadratic.evaluate(PROCESS, Policy(np.full((2, 3), 3.0), np.zeros((2, 2))))
    with pytest.raises(ValueError, match=r"gain is of shape \(3, 2\)"):
        linear_quadratic.evaluate(PROCESS, Policy(np.zeros((3, 2)), np.zeros((2, 2))))
    with pytest.raises(ValueError, match="is no density"):
        linear_quadratic.boltzmann(Quadratic(np.eye(5), 0.0), 3, 1.0)
    out_of_reach = dataclasses.replace(PROCESS, state_matrix=2 * np.eye(3), action_matrix=np.zeros((3, 2)))
    with pytest.raises(
        ValueError, match="no policy of this process has a finite cost that the Riccati equation finds"
    ):
        linear_quadratic.best(out_of_reach)
