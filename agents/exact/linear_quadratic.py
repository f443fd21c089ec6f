"""Linear-quadratic control in discrete time with Gaussian policies: exact values, the best policy, Boltzmann policies.

    s' = A s + B a + w,  w ~ N(0, W)        r = -(s' C s + a' D a)        a ~ N(K s, Sigma)

Q^pi and V^pi are quadratic, so exp(alpha Q^pi) is a Gaussian policy again, and equation 20 of Psenka et al. (2024) can
be repeated exactly. Actions and states have no bounds.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.linalg

from agents.exact.quadratic import Quadratic, block_diagonal, matrix_of, semidefinite, symmetric


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """A linear system with quadratic costs.

    Raises:
      ValueError: shapes that do not fit, a cost or covariance with an eigenvalue below 0, a discount outside [0, 1).
    """

    state_matrix: np.ndarray  # [S, S], A
    action_matrix: np.ndarray  # [S, A], B
    noise: np.ndarray  # [S, S], W
    state_cost: np.ndarray  # [S, S], C
    action_cost: np.ndarray  # [A, A], D
    discount: float

    def __post_init__(self) -> None:
        if np.ndim(self.action_matrix) != 2:
            raise ValueError(f"action_matrix is of shape {np.shape(self.action_matrix)}; it must be [S, A]")
        states, actions = np.shape(self.action_matrix)
        checked = {
            "state_matrix": matrix_of("state_matrix", self.state_matrix, (states, states)),
            "action_matrix": matrix_of("action_matrix", self.action_matrix, (states, actions)),
            "noise": semidefinite("noise", self.noise, states),
            "state_cost": semidefinite("state_cost", self.state_cost, states),
            "action_cost": semidefinite("action_cost", self.action_cost, actions),
        }
        for name, matrix in checked.items():
            object.__setattr__(self, name, matrix)
        if not 0.0 <= self.discount < 1.0:
            raise ValueError(f"discount is {self.discount}; it must lie in [0, 1)")

    @property
    def num_states(self) -> int:
        """S, the components of a state."""
        return self.action_matrix.shape[0]

    @property
    def num_actions(self) -> int:
        """A, the components of an action."""
        return self.action_matrix.shape[1]

    def reward(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        """`[...]`, of states `[..., S]` and actions `[..., A]`."""
        cost = Quadratic(block_diagonal(self.state_cost, self.action_cost), 0.0)
        return -cost.value(np.concatenate([state, action], axis=-1))


class Policy(NamedTuple):
    """a ~ N(K s, Sigma)."""

    gain: np.ndarray  # [A, S], K
    covariance: np.ndarray  # [A, A], Sigma


class Values(NamedTuple):
    """What a policy is worth."""

    value: Quadratic  # of the state [S]
    action_value: Quadratic  # of state and action together [S + A]


def evaluate(process: Process, policy: Policy) -> Values:
    """V^pi and Q^pi, by the Lyapunov equation X = C + K' D K + discount M' X M with M = A + B K.

    Raises:
      ValueError: shapes that do not fit, or a policy of infinite cost.
    """
    p = process
    gain = matrix_of("gain", policy.gain, (p.num_actions, p.num_states))
    covariance = semidefinite("covariance", policy.covariance, p.num_actions)
    closed = np.sqrt(p.discount) * (p.state_matrix + p.action_matrix @ gain)
    radius = np.abs(np.linalg.eigvals(closed)).max()
    if radius >= 1.0:
        raise ValueError(
            f"the policy's cost is infinite: sqrt(discount) (A + B K) has an eigenvalue of magnitude {radius:g}, "
            "and it must be below 1"
        )
    cost = scipy.linalg.solve_discrete_lyapunov(closed.T, p.state_cost + gain.T @ p.action_cost @ gain)
    arriving = p.noise + p.action_matrix @ covariance @ p.action_matrix.T
    paid = np.sum(p.action_cost * covariance) + p.discount * np.sum(cost * arriving)
    value = Quadratic(-symmetric(cost), -float(paid) / (1.0 - p.discount))
    return Values(value, backup(p, value))


def backup(process: Process, value: Quadratic) -> Quadratic:
    """Q(s, a) = r + discount E V(s'), of the state and the action together."""
    p = process
    joint = np.concatenate([p.state_matrix, p.action_matrix], axis=1)
    matrix = -block_diagonal(p.state_cost, p.action_cost) + p.discount * joint.T @ value.matrix @ joint
    return Quadratic(symmetric(matrix), p.discount * value.mean(p.noise))


def best(process: Process) -> Policy:
    """The best policy, a = K s without noise, by the algebraic Riccati equation.

    Raises:
      ValueError: SciPy's solver finds none, as where no policy has a finite cost.
    """
    p, root = process, np.sqrt(process.discount)
    try:
        cost = scipy.linalg.solve_discrete_are(
            root * p.state_matrix, root * p.action_matrix, p.state_cost, p.action_cost
        )
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"no policy of this process has a finite cost that the Riccati equation finds: {error}"
        ) from error
    action_value = backup(p, Quadratic(-symmetric(cost), 0.0))
    return Policy(greedy_gain(action_value, p.num_states), np.zeros((p.num_actions, p.num_actions)))


def greedy_gain(action_value: Quadratic, num_states: int) -> np.ndarray:
    """K `[A, S]` of the action K s that is best by a concave Q."""
    by_action = action_value.matrix[num_states:]
    return -np.linalg.solve(by_action[:, num_states:], by_action[:, :num_states])


def boltzmann(action_value: Quadratic, num_states: int, inverse_temperature: float) -> Policy:
    """The policy proportional to exp(alpha Q(s, a)), for a Q that is strictly concave in the action (equation 19).

    Its mean is the greedy action, whatever alpha is, and its covariance (-2 alpha Q_aa)^-1 is the same in every state.

    Raises:
      ValueError: Q is not strictly concave in the action, so that the density has no integral.
    """
    curvature = -2.0 * inverse_temperature * action_value.matrix[num_states:, num_states:]
    if np.linalg.eigvalsh(curvature).min() <= 0.0:
        raise ValueError(
            "exp(alpha Q) is no density: Q must be strictly concave in the action, and alpha above 0"
        )
    return Policy(greedy_gain(action_value, num_states), np.linalg.inv(curvature))


def transported(policy: Policy, action_value: Quadratic, size: float) -> Policy:
    """The policy of a + size grad_a Q(s, a), a ~ `policy`: every action moved along the gradient of Q.

    For Q concave in the action of curvature at most L = -2 Q_aa, Q rises at every state and action for sizes below
    2 / L, and may fall beyond.
    """
    num_states = policy.gain.shape[1]
    by_action = 2.0 * size * action_value.matrix[num_states:]
    moved = np.eye(len(policy.gain)) + by_action[:, num_states:]
    return Policy(
        moved @ policy.gain + by_action[:, :num_states], symmetric(moved @ policy.covariance @ moved.T)
    )


def fit(states: np.ndarray, actions: np.ndarray) -> tuple[Policy, float]:
    """The linear Gaussian policy closest to `actions` `[N, A]` drawn at `states` `[N, S]`, by least squares.

    Returns:
      The policy, and the share of the actions' mean square that K s makes up.
    """
    solution = np.linalg.lstsq(states, actions, rcond=None)[0]
    left = actions - states @ solution
    policy = Policy(solution.T, symmetric(left.T @ left / len(left)))
    return policy, 1.0 - float(np.square(left).sum() / np.square(actions).sum())
