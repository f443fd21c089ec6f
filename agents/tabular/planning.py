"""Dynamic programming on a known `MDP`: exact evaluation, value and policy iteration, backward induction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agents.tabular.mdp import MDP


class Values(NamedTuple):
    """What a policy is worth; over H steps with a leading axis of steps."""

    value: np.ndarray  # [S], or [H + 1, S] of which the last is 0
    action_value: np.ndarray  # [S, A], or [H, S, A]


class Plan(NamedTuple):
    """A best policy, and what it is worth."""

    policy: np.ndarray  # [S, A], or [H, S, A]; all on one action
    value: np.ndarray  # [S], or [H + 1, S]
    action_value: np.ndarray  # [S, A], or [H, S, A]
    iterations: int  # sweeps of value iteration, improvements of policy iteration, or H


def action_values(mdp: MDP, value: np.ndarray) -> np.ndarray:
    """Q(s, a) = r(s, a) + discount * sum_s' P(s' | s, a) V(s'), `[S, A]`, from `value` `[S]`."""
    return mdp.reward + mdp.discount * mdp.transition @ value


def greedy(action_value: np.ndarray) -> np.ndarray:
    """All probability on a best action, the first of several: `[..., A]` from `[..., A]`."""
    return np.eye(action_value.shape[-1])[action_value.argmax(axis=-1)]


def evaluate(mdp: MDP, policy: np.ndarray) -> Values:
    """V and Q of `policy` `[S, A]`, exactly: solves (I - discount P_pi) V = r_pi.

    Raises:
      ValueError: the discount is 1, where the sum of rewards need not be finite; or `policy` is none.
    """
    return evaluate_rewards(mdp, mdp.check_policy(policy), mdp.reward)


def evaluate_rewards(mdp: MDP, policy: np.ndarray, reward: np.ndarray) -> Values:
    """As `evaluate`, for other rewards `[S, A]` of what `policy` does; Q is of the rewards of the process itself."""
    _check_discounted(mdp)
    transition = np.einsum("sa,sat->st", policy, mdp.transition)
    system = np.eye(mdp.num_states) - mdp.discount * transition
    value = np.linalg.solve(system, np.sum(policy * reward, axis=1))
    return Values(value, action_values(mdp, value))


def value_iteration(mdp: MDP, tolerance: float = 1e-10) -> Plan:
    """V <- max_a Q(s, a) until V is within `tolerance` of the best value, by the bound of the contraction.

    Raises:
      ValueError: the discount is 1.
    """
    _check_discounted(mdp)
    value, bound, sweeps = np.zeros(mdp.num_states), np.inf, 0
    while bound > tolerance:
        swept = action_values(mdp, value).max(axis=1)
        # The distance to the fixed point shrinks by the discount each time, in rounded numbers too.
        first = np.abs(swept - value).max() * mdp.discount / (1.0 - mdp.discount)
        bound, value, sweeps = min(first, bound * mdp.discount), swept, sweeps + 1
    best = action_values(mdp, value)
    return Plan(greedy(best), value, best, sweeps)


def policy_iteration(mdp: MDP) -> Plan:
    """Evaluates exactly, then takes the greedy policy, until no action is better: finitely many times.

    Raises:
      ValueError: the discount is 1.
    """
    policy, improvements = greedy(mdp.reward), 0
    while True:
        value, action_value = evaluate(mdp, policy)
        # An action is changed only for one that is better by more than rounding, or ties could change for ever.
        slack = 1e-12 * max(1.0, float(np.abs(action_value).max()))
        is_better = action_value.max(axis=1) > np.sum(policy * action_value, axis=1) + slack
        if not is_better.any():
            return Plan(policy, value, action_value, improvements)
        policy = np.where(is_better[:, None], greedy(action_value), policy)
        improvements += 1


def evaluate_steps(mdp: MDP, policy: np.ndarray) -> Values:
    """V_h and Q_h of a policy `[H, S, A]` that depends on the step, over H steps; a discount of 1 is allowed.

    Raises:
      ValueError: `policy` is none.
    """
    horizon = np.shape(policy)[0] if np.ndim(policy) == 3 else 0
    policy = mdp.check_policy(policy, horizon)
    value = np.zeros((horizon + 1, mdp.num_states))
    action_value = np.zeros((horizon, *mdp.reward.shape))
    for step in reversed(range(horizon)):
        action_value[step] = action_values(mdp, value[step + 1])
        value[step] = np.sum(policy[step] * action_value[step], axis=1)
    return Values(value, action_value)


def backward_induction(mdp: MDP, horizon: int) -> Plan:
    """The best policy over `horizon` steps, from the last backward: V_h = max_a Q_h, V_H = 0.

    A discount of 1 is allowed: the sum is finite.

    Raises:
      ValueError: `horizon` is less than 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; it must be 1 or more steps")
    value = np.zeros((horizon + 1, mdp.num_states))
    action_value = np.zeros((horizon, *mdp.reward.shape))
    for step in reversed(range(horizon)):
        action_value[step] = action_values(mdp, value[step + 1])
        value[step] = action_value[step].max(axis=1)
    return Plan(greedy(action_value), value, action_value, horizon)


def _check_discounted(mdp: MDP) -> None:
    if mdp.discount == 1.0:
        raise ValueError(
            "discount is 1, and a sum of endlessly many rewards need not be finite; take less than 1, or a horizon"
        )
