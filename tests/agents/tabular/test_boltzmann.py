"""Equations 19 and 20 of Psenka et al. (2024) on gridworlds and on a state worked out by hand; soft iteration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.tabular.boltzmann import (
    boltzmann,
    entropy,
    q_score_matching,
    soft_evaluate,
    soft_policy_iteration,
)
from agents.tabular.mdp import MDP, stay_or_leave
from agents.tabular.planning import evaluate, greedy, policy_iteration, value_iteration
from envs.gridworld import TASKS

ALPHAS = (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
WORLDS = {name: task.world for name, task in TASKS.items()}
PROCESSES = {name: MDP(world.transition, world.reward, 0.9) for name, world in WORLDS.items()}
EACH = pytest.mark.parametrize("name", PROCESSES)


def test_the_boltzmann_policy_by_hand():
    np.testing.assert_allclose(boltzmann(np.array([[0.0, np.log(3) / 2]]), 2.0), [[0.25, 0.75]])
    np.testing.assert_array_equal(boltzmann(np.array([[0.0, 1e6]]), 1e6), [[0, 1]])  # without overflow


def test_entropy_by_hand():
    policy = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    np.testing.assert_allclose(
        entropy(policy), [np.log(2), 0, 0.25 * np.log(4) + 0.75 * np.log(4 / 3)], atol=1e-15
    )


@EACH
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_fixed_point_is_the_boltzmann_policy_of_its_own_q(name: str, alpha: float):
    """Equation 19, with the Q that is found by following the policy for long instead of by solving for it."""
    mdp = PROCESSES[name]
    found = q_score_matching(mdp, alpha)
    assert found.converged
    transition = np.einsum("sa,sat->st", found.policy, mdp.transition)
    value, reward = np.zeros(mdp.num_states), np.sum(found.policy * mdp.reward, axis=1)
    for _ in range(400):
        value = reward + mdp.discount * transition @ value
    logits = alpha * (mdp.reward + mdp.discount * mdp.transition @ value)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.policy, expected, rtol=0, atol=1e-6)


@EACH
def test_entropy_falls_and_value_rises_with_alpha(name: str):
    world, mdp = WORLDS[name], PROCESSES[name]
    found = [q_score_matching(mdp, alpha) for alpha in ALPHAS]
    entropies = [entropy(one.policy)[~world.is_terminal].mean() for one in found]
    assert np.all(np.diff(entropies) < 0)
    assert np.all(np.diff([world.start @ one.value for one in found]) > 0)


@EACH
def test_a_small_alpha_is_near_the_uniform_policy(name: str):
    policy = q_score_matching(PROCESSES[name], 1e-3).policy
    np.testing.assert_allclose(policy, 0.25, rtol=0, atol=1e-3)


@EACH
def test_a_large_alpha_is_value_iteration_s_policy(name: str):
    """Best actions share the probability; their number is that of all that are equally good."""
    mdp = PROCESSES[name]
    best = value_iteration(mdp)
    found = q_score_matching(mdp, 1e5)
    is_best = best.action_value > best.value[:, None] - 1e-8
    np.testing.assert_allclose(found.value, best.value, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.policy, is_best / is_best.sum(axis=1, keepdims=True), rtol=0, atol=1e-3)
    greedily = evaluate(mdp, greedy(found.action_value)).value
    np.testing.assert_allclose(greedily, best.value, rtol=0, atol=1e-8)


@EACH
@pytest.mark.parametrize("alpha", [1.0, 30.0])
def test_each_soft_step_raises_the_soft_value_of_every_state(name: str, alpha: float):
    mdp = PROCESSES[name]
    policy = np.random.default_rng(1).dirichlet(np.full(4, 0.3), mdp.num_states)
    former, gains = None, []
    for _ in range(8):
        value, action_value = soft_evaluate(mdp, policy, alpha)
        if former is not None:
            assert np.all(value >= former - 1e-12)
            gains.append(np.max(value - former))
        former, policy = value, boltzmann(action_value, alpha)
    assert gains[0] > 0.01  # there was something to be gained
    assert gains[-1] < 1e-9


@EACH
@pytest.mark.parametrize("alpha", [1.0, 30.0])
def test_soft_policy_iteration_solves_the_soft_equation(name: str, alpha: float):
    """V = log(sum_a exp(alpha Q)) / alpha, and 0 when the episode is over, whatever it began with."""
    mdp = PROCESSES[name]
    found = soft_policy_iteration(mdp, alpha, start=greedy(mdp.reward))
    assert found.converged
    q = mdp.reward + mdp.discount * mdp.transition @ found.value
    expected = q.max(axis=1) + np.log(np.exp(alpha * (q - q.max(axis=1, keepdims=True))).sum(axis=1)) / alpha
    expected[WORLDS[name].is_terminal] = 0.0
    np.testing.assert_allclose(found.value, expected, rtol=0, atol=1e-9)


def test_soft_values_by_hand():
    """Leave or stay for nothing, half each: each visit pays log(2) / alpha, and half of them go on."""
    mdp = stay_or_leave(1, 0.0, 0.9)
    np.testing.assert_array_equal(mdp.is_terminal, [False, True])
    value, action_value = soft_evaluate(mdp, mdp.uniform_policy(), 4.0)
    expected = np.log(2) / 4 / (1 - 0.45)
    np.testing.assert_allclose(value, [expected, 0], atol=1e-15)
    np.testing.assert_allclose(action_value, [[0, 0.9 * expected], [0, 0]], atol=1e-15)


@given(st.integers(1, 8), st.floats(-1, 0.2), st.floats(0.05, 4), st.floats(0, 0.9))
def test_a_state_that_is_left_or_stayed_in_has_the_known_fixed_point(
    num_stays: int, reward: float, alpha: float, discount: float
):
    """p / (1 - p) = n exp(alpha reward / (1 - discount p))."""
    found = q_score_matching(stay_or_leave(num_stays, reward, discount), alpha, damping=0.5)
    assert found.converged
    stay = found.policy[0, 1:].sum()
    expected = num_stays * np.exp(alpha * reward / (1 - discount * stay))
    np.testing.assert_allclose(stay / found.policy[0, 0], expected, rtol=1e-7)


def test_equation_20_can_go_in_a_circle_which_damping_settles():
    """A hundred ways to stay at a cost: who stays often finds leaving so much better that all leave, and back."""
    mdp = stay_or_leave(100, -1.0, 0.99)
    plain = q_score_matching(mdp, 0.5)
    assert not plain.converged
    assert plain.residuals.shape == (1001,)
    np.testing.assert_allclose(plain.residuals[-10:], plain.residuals[-1], atol=1e-9)  # it does not shrink
    assert plain.residuals[-1] > 0.9
    damped = q_score_matching(mdp, 0.5, damping=0.5)
    assert damped.converged
    np.testing.assert_allclose(
        boltzmann(evaluate(mdp, damped.policy).action_value, 0.5), damped.policy, atol=1e-9
    )
    assert soft_policy_iteration(mdp, 0.5).converged  # with entropy in Q there is no circle


def test_equation_20_can_have_several_fixed_points_where_soft_policy_iteration_has_one():
    mdp = stay_or_leave(1, 0.1, 0.99)
    leaving, staying = np.array([[0.99, 0.01], [1, 0]]), np.array([[0.01, 0.99], [1, 0]])
    plain = [q_score_matching(mdp, 1.0, start=start) for start in (leaving, staying)]
    soft = [soft_policy_iteration(mdp, 1.0, start=start) for start in (leaving, staying)]
    assert all(one.converged for one in (*plain, *soft))
    assert plain[0].policy[0, 1] < 0.6 and plain[1].policy[0, 1] > 0.999
    np.testing.assert_allclose(soft[0].policy, soft[1].policy, atol=1e-8)


def test_damping_changes_no_fixed_point():
    mdp = PROCESSES["gridworld-cliff"]
    plain, damped = q_score_matching(mdp, 10.0), q_score_matching(mdp, 10.0, damping=0.5)
    assert damped.converged and len(damped.residuals) != len(plain.residuals)
    np.testing.assert_allclose(damped.policy, plain.policy, atol=1e-8)


def test_one_update_is_equation_20():
    mdp = PROCESSES["gridworld-rooms"]
    start = np.random.default_rng(0).dirichlet(np.ones(4), mdp.num_states)
    found = q_score_matching(mdp, 5.0, start=start, max_iterations=1)
    np.testing.assert_allclose(found.policy, boltzmann(evaluate(mdp, start).action_value, 5.0), atol=1e-15)
    assert not found.converged
    np.testing.assert_allclose(found.value, evaluate(mdp, found.policy).value)
    assert found.residuals[0] == pytest.approx(np.abs(found.policy - start).max())


def test_what_cannot_be_is_refused():
    mdp = PROCESSES["gridworld-open"]
    with pytest.raises(ValueError, match="inverse_temperature is 0"):
        q_score_matching(mdp, 0)
    with pytest.raises(ValueError, match="inverse_temperature is nan"):
        soft_policy_iteration(mdp, float("nan"))
    for damping in (-0.1, 1.0):
        with pytest.raises(ValueError, match="damping is"):
            q_score_matching(mdp, 1.0, damping=damping)
    with pytest.raises(ValueError, match="max_iterations is 0"):
        q_score_matching(mdp, 1.0, max_iterations=0)
    with pytest.raises(ValueError, match="policy is of shape"):
        q_score_matching(mdp, 1.0, start=np.ones(3))
    with pytest.raises(ValueError, match="discount is 1"):
        q_score_matching(MDP(mdp.transition, mdp.reward, 1.0), 1.0)
    assert policy_iteration(mdp).iterations > 0
