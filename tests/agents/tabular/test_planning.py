"""Dynamic programming: a process worked out by hand, methods against each other, and what is refused."""

from __future__ import annotations

import itertools
import re
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.tabular.mdp import MDP
from agents.tabular.planning import (
    backward_induction,
    evaluate,
    evaluate_steps,
    greedy,
    policy_iteration,
    value_iteration,
)

# Two states. In the first, action 0 stays for 1 and action 1 goes to the second for 0; in the second, action 0 stays
# for 2 and action 1 goes to either, half each, for 3.
TRANSITION = [[[1, 0], [0, 1]], [[0, 1], [0.5, 0.5]]]
REWARD = [[1, 0], [2, 3]]
TWO = MDP(TRANSITION, REWARD, 0.5)  # pyright: ignore[reportArgumentType]  (lists are taken too)


@st.composite
def processes(draw: st.DrawFn) -> MDP:
    """A few states and actions, sparse transitions, rewards in [-1, 1]."""
    states, actions = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    transition = random.dirichlet(np.full(states, 0.3), size=(states, actions))
    return MDP(transition, random.uniform(-1, 1, (states, actions)), draw(st.floats(0.0, 0.95)))


def some_policy(mdp: MDP, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(mdp.num_actions), mdp.num_states)


def test_evaluation_of_two_states_by_hand():
    """V0 = 1/2 + V0/4 + V1/4 and V1 = 5/2 + V0/8 + 3 V1/8: 3 V0 - V1 = 2 and 5 V1 - V0 = 20."""
    value, action_value = evaluate(TWO, TWO.uniform_policy())
    np.testing.assert_allclose(value, [15 / 7, 31 / 7], rtol=1e-14)
    expected = [[1 + 15 / 14, 31 / 14], [2 + 31 / 14, 3 + (15 + 31) / 28]]
    np.testing.assert_allclose(action_value, expected, rtol=1e-14)


def test_the_best_of_two_states_by_hand():
    """V0 = V1/2 and V1 = 3 + V0/4 + V1/4, so 12/5 and 24/5; staying is worth 11/5 and 22/5."""
    for plan in (value_iteration(TWO), policy_iteration(TWO)):
        np.testing.assert_array_equal(plan.policy, [[0, 1], [0, 1]])
        np.testing.assert_allclose(plan.value, [12 / 5, 24 / 5], atol=1e-9)


@given(processes())
def test_value_iteration_is_policy_iteration(mdp: MDP):
    swept, improved = value_iteration(mdp), policy_iteration(mdp)
    np.testing.assert_allclose(swept.value, improved.value, rtol=0, atol=1e-9)
    np.testing.assert_allclose(evaluate(mdp, swept.policy).value, improved.value, rtol=0, atol=1e-8)
    np.testing.assert_allclose(improved.action_value.max(axis=1), improved.value, rtol=0, atol=1e-11)


@given(processes())
def test_no_policy_of_single_actions_is_better(mdp: MDP):
    best = policy_iteration(mdp).value
    for actions in itertools.islice(itertools.product(range(mdp.num_actions), repeat=mdp.num_states), 50):
        policy = np.eye(mdp.num_actions)[list(actions)]
        assert np.all(evaluate(mdp, policy).value <= best + 1e-9)


@given(processes())
def test_evaluation_satisfies_its_equation(mdp: MDP):
    policy = some_policy(mdp)
    value, action_value = evaluate(mdp, policy)
    np.testing.assert_allclose(np.sum(policy * action_value, axis=1), value, rtol=0, atol=1e-12)


@hypothesis.settings(max_examples=20)
@given(processes())
def test_many_steps_of_a_stationary_policy_are_its_value(mdp: MDP):
    policy = some_policy(mdp)
    value, action_value = evaluate_steps(mdp, np.broadcast_to(policy, (500, *policy.shape)))
    endless = evaluate(mdp, policy)
    np.testing.assert_allclose(value[0], endless.value, rtol=0, atol=1e-9)
    np.testing.assert_allclose(action_value[0], endless.action_value, rtol=0, atol=1e-9)


def test_backward_induction_by_hand_without_a_discount():
    """Last step: 1 and 3. Before it: max(1 + 1, 3) = 3 and max(2 + 3, 3 + 2) = 5: the two actions are equal, the first
    is taken. Before that: max(1 + 3, 5) = 5, and max(2 + 5, 3 + 4) = 7.
    """
    plan = backward_induction(MDP(TWO.transition, TWO.reward, 1.0), 3)
    np.testing.assert_array_equal(plan.value, [[5, 7], [3, 5], [1, 3], [0, 0]])
    np.testing.assert_array_equal(plan.policy.argmax(axis=2), [[1, 0], [1, 0], [0, 1]])


@given(processes(), st.integers(1, 4))
def test_backward_induction_is_worth_what_it_says_and_no_policy_is_better(mdp: MDP, horizon: int):
    plan = backward_induction(mdp, horizon)
    evaluated = evaluate_steps(mdp, plan.policy)
    np.testing.assert_allclose(evaluated.value, plan.value, rtol=0, atol=1e-12)
    np.testing.assert_allclose(evaluated.action_value, plan.action_value, rtol=0, atol=1e-12)
    for seed in range(5):
        other = np.stack([some_policy(mdp, seed * 10 + step) for step in range(horizon)])
        assert np.all(evaluate_steps(mdp, other).value <= plan.value + 1e-12)


def test_a_long_horizon_is_endless():
    np.testing.assert_allclose(backward_induction(TWO, 60).value[0], policy_iteration(TWO).value, atol=1e-12)


def test_equal_actions_do_not_change_for_ever():
    """Many actions that are the same but for rounding."""
    transition = np.full((3, 4, 3), 1 / 3)
    plan = policy_iteration(MDP(transition, np.full((3, 4), 0.1), 0.9))
    assert plan.iterations == 0
    np.testing.assert_allclose(plan.value, 1.0)


def test_value_iteration_without_a_future_is_one_sweep_after_which_nothing_changes():
    plan = value_iteration(MDP(TWO.transition, TWO.reward, 0.0))
    np.testing.assert_array_equal(plan.value, [1, 3])
    assert plan.iterations == 1


def test_the_first_of_several_best_actions_is_greedy():
    np.testing.assert_array_equal(greedy(np.array([[1.0, 1.0], [0.0, 2.0]])), [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transition": np.ones((2, 2))}, "transition is of shape (2, 2); it must be [S, A, S]"),
        ({"transition": np.ones((2, 2, 3))}, "transition is of shape (2, 2, 3)"),
        ({"reward": np.ones(2)}, "reward is of shape (2,); it must be [S, A], here (2, 2)"),
        ({"reward": [[np.nan, 0], [0, 0]]}, "reward holds numbers that are not finite"),
        (
            {"transition": [[[1, 0], [0.5, 0.4]], [[0, 1], [1, 0]]]},
            "transition[0, 1] is no distribution: its entries must be 0 or more and sum to 1, not 0.9",
        ),
        ({"transition": [[[1, 0], [0, 1]], [[0, 1], [1.5, -0.5]]]}, "transition[1, 1] is no distribution"),
        ({"discount": 1.1}, "discount is 1.1; it must lie in [0, 1]"),
        ({"discount": float("nan")}, "discount is nan"),
    ],
)
def test_what_is_no_process_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        MDP(**({"transition": TRANSITION, "reward": REWARD, "discount": 0.5} | changes))


def test_the_end_of_an_episode_leads_to_itself_for_nothing():
    transition = [[[1, 0, 0, 0]] * 2, [[0, 1, 0, 0]] * 2, [[0, 0, 1, 0], [0, 0, 0, 1]], [[0, 0, 0, 1]] * 2]
    mdp = MDP(np.array(transition), np.array([[0, 0], [0, 1], [0, 0], [1, 1]]), 0.5)
    np.testing.assert_array_equal(mdp.is_terminal, [True, False, False, False])


def test_endless_sums_need_a_discount():
    mdp = MDP(TWO.transition, TWO.reward, 1.0)
    for call in (lambda: evaluate(mdp, mdp.uniform_policy()), lambda: value_iteration(mdp)):
        with pytest.raises(ValueError, match="discount is 1, and a sum of endlessly many rewards"):
            call()


def test_what_is_no_policy_or_horizon_is_refused():
    with pytest.raises(ValueError, match=re.escape("policy is of shape (2, 3); it must be (2, 2)")):
        evaluate(TWO, np.ones((2, 3)) / 3)
    with pytest.raises(ValueError, match="rows that are no distributions"):
        evaluate(TWO, np.ones((2, 2)))
    with pytest.raises(ValueError, match="rows that are no distributions"):
        evaluate(TWO, np.array([[1.5, -0.5], [0.5, 0.5]]))
    with pytest.raises(ValueError, match=re.escape("policy is of shape (2, 2); it must be (0, 2, 2)")):
        evaluate_steps(TWO, TWO.uniform_policy())
    with pytest.raises(ValueError, match="horizon is 0; it must be 1 or more"):
        backward_induction(TWO, 0)
