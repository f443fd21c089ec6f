"""Boltzmann policies on a table: Q-score matching (Psenka et al. 2024, equations 19 and 20) and soft policy iteration.

The two differ in what they call Q. Equation 20 takes the Q of the rewards alone, so nothing is paid for entropy and no
objective is known that every step improves: it can have several fixed points, and it can go in a circle (docs/paper.md
has the example of one state for each). Soft policy iteration (Haarnoja et al. 2018) adds entropy to the rewards, and
each of its steps raises the soft value of every state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agents.tabular.mdp import MDP
from agents.tabular.planning import Values, evaluate, evaluate_rewards


class Iterated(NamedTuple):
    """Where repeated updates of a policy came to."""

    policy: np.ndarray  # [S, A]
    value: np.ndarray  # [S], of the policy; soft of soft policy iteration
    action_value: np.ndarray  # [S, A], likewise
    residuals: np.ndarray  # [K], the largest change of a probability that each undamped update asked for
    converged: bool  # whether the last of them is within the tolerance


def boltzmann(action_value: np.ndarray, inverse_temperature: float) -> np.ndarray:
    """pi(a | s) proportional to exp(alpha Q(s, a)), `[S, A]` (equation 19)."""
    logits = inverse_temperature * action_value
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def entropy(policy: np.ndarray) -> np.ndarray:
    """-sum_a pi log pi in nats, `[S]`; an action of probability 0 adds 0."""
    return -np.sum(policy * _log(policy), axis=-1)


def q_score_matching(
    mdp: MDP,
    inverse_temperature: float,
    start: np.ndarray | None = None,
    damping: float = 0.0,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Iterated:
    """pi <- softmax(alpha Q^pi), again and again (equation 20); Q^pi is exact.

    Args:
      inverse_temperature: the paper's alpha, above 0.
      start: policy to begin with; the uniform one by default.
      damping: share of the former policy that every update keeps, in [0, 1): pi <- damping pi + (1 - damping)
        softmax(alpha Q^pi). It changes no fixed point, and settles circles. 0 is equation 20.
      tolerance: largest distance of a probability from softmax(alpha Q^pi) at which it is done.

    Raises:
      ValueError: an argument out of its range, or a discount of 1.
    """
    if not 0.0 <= damping < 1.0:
        raise ValueError(f"damping is {damping}; it must lie in [0, 1)")
    return _iterate(mdp, inverse_temperature, start, damping, tolerance, max_iterations, evaluate)


def soft_evaluate(mdp: MDP, policy: np.ndarray, inverse_temperature: float) -> Values:
    """Soft V and Q of `policy` `[S, A]`: each state pays the policy's entropy / alpha beside the rewards.

    V = sum_a pi (Q - log pi / alpha), Q = r + discount P V. When an episode is over, nothing is paid any more.

    Raises:
      ValueError: the discount is 1, or `policy` is none.
    """
    policy = mdp.check_policy(policy)
    bonus = np.where(mdp.is_terminal[:, None], 0.0, -_log(policy) / inverse_temperature)
    return evaluate_rewards(mdp, policy, mdp.reward + bonus)


def soft_policy_iteration(
    mdp: MDP,
    inverse_temperature: float,
    start: np.ndarray | None = None,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Iterated:
    """pi <- softmax(alpha Q_soft^pi), again and again: every step raises the soft value of every state.

    Args and errors as of `q_score_matching`.
    """

    def evaluate_softly(mdp: MDP, policy: np.ndarray) -> Values:
        return soft_evaluate(mdp, policy, inverse_temperature)

    return _iterate(mdp, inverse_temperature, start, 0.0, tolerance, max_iterations, evaluate_softly)


def _iterate(
    mdp, inverse_temperature, start, damping, tolerance, max_iterations, evaluate_policy
) -> Iterated:
    if not inverse_temperature > 0.0:
        raise ValueError(f"inverse_temperature is {inverse_temperature}; it must be above 0")
    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations}; it must be 1 or more")
    policy = mdp.uniform_policy() if start is None else mdp.check_policy(start)
    residuals = []
    while True:
        value, action_value = evaluate_policy(mdp, policy)
        matched = boltzmann(action_value, inverse_temperature)
        residuals.append(float(np.abs(matched - policy).max()))
        converged = residuals[-1] <= tolerance
        if converged or len(residuals) > max_iterations:
            return Iterated(policy, value, action_value, np.array(residuals), converged)
        policy = damping * policy + (1.0 - damping) * matched


def _log(policy: np.ndarray) -> np.ndarray:
    """Logarithms, of which those of 0 are 0: in a sum weighted by `policy` they count for nothing."""
    return np.log(np.where(policy > 0.0, policy, 1.0))
