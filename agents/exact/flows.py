"""State and action that flow together, as the theory of Psenka et al. (2024) has them, in the linear-quadratic case.

With z = (s, a), a reward of the state and a discount of exp(-rho t) (equations 1, 2 and 12),

    ds = F z dt + dB_s        da = Psi(z) dt + dB_a        Q^Psi(z) = E int exp(-rho t) r(s(t)) dt,  r(s) = -s' C s

The action is part of what flows: Q^Psi is the value of a state and the action that it begins with. For a linear score
Psi(z) = G z it is quadratic. Of any two scores, with grad Q along the path z(t) of the second,

    Q^Psi'(z) - Q^Psi(z) = E int exp(-rho t) grad_a Q^Psi(z(t)) . (Psi' - Psi)(z(t)) dt

which follows from Ito's formula for exp(-rho t) Q^Psi(z(t)), and which the improvements of this file rest on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.integrate
import scipy.linalg

from agents.exact.quadratic import Quadratic, block_diagonal, matrix_of, semidefinite, symmetric

Field = Callable[[np.ndarray], np.ndarray]
"""A score: z `[N, S + A]` to velocities of the action `[N, A]`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """What is given: the dynamics of the state, its cost, the discount rate and the noise.

    Raises:
      ValueError: shapes that do not fit, a cost or covariance with an eigenvalue below 0, or a rate of 0 or less.
    """

    drift: np.ndarray  # [S, S + A], F
    cost: np.ndarray  # [S, S], C
    rate: float  # rho, so that the discount after a time t is exp(-rho t)
    noise: np.ndarray | None = None  # [S + A, S + A], see `covariance`; None for none

    def __post_init__(self) -> None:
        if np.ndim(self.drift) != 2:
            raise ValueError(f"drift is of shape {np.shape(self.drift)}; it must be [S, S + A]")
        states, both = np.shape(self.drift)
        object.__setattr__(self, "drift", matrix_of("drift", self.drift, (states, both)))
        object.__setattr__(self, "cost", semidefinite("cost", self.cost, states))
        if self.noise is not None:
            object.__setattr__(self, "noise", semidefinite("noise", self.noise, both))
        if not self.rate > 0.0:
            raise ValueError(f"rate is {self.rate}; it must be above 0")

    @property
    def num_states(self) -> int:
        """S, the components of a state."""
        return self.drift.shape[0]

    @property
    def num_actions(self) -> int:
        """A, the components of an action."""
        return self.drift.shape[1] - self.num_states

    @property
    def covariance(self) -> np.ndarray:
        """Of the Brownian motions in a unit of time, `[S + A, S + A]`."""
        return np.zeros((self.drift.shape[1],) * 2) if self.noise is None else self.noise

    @property
    def reward(self) -> np.ndarray:
        """r as a quadratic form of z, `[S + A, S + A]`."""
        return -block_diagonal(self.cost, np.zeros((self.num_actions, self.num_actions)))


def evaluate(flow: Flow, score: np.ndarray, alpha: float = np.inf) -> Quadratic:
    """Q^Psi of a linear score G `[A, S + A]`: J' P + P J - rho P + R = 0 with J = (F; G), and tr(P noise) / rho.

    Args:
      alpha: where it is finite, moving the action costs |Psi|^2 / (2 alpha) a unit of time.

    Raises:
      ValueError: another shape, or a score of infinite cost.
    """
    score = matrix_of("score", score, (flow.num_actions, len(flow.reward)))
    shifted = np.concatenate([flow.drift, score]) - 0.5 * flow.rate * np.eye(len(flow.reward))
    slowest = np.linalg.eigvals(shifted).real.max()
    if slowest >= 0.0:
        raise ValueError(
            f"the score's cost is infinite: the flow grows by exp({slowest:g} t) after its discount"
        )
    paid = flow.reward - score.T @ score / (2.0 * alpha)
    matrix = symmetric(scipy.linalg.solve_continuous_lyapunov(shifted.T, -paid))
    return Quadratic(matrix, float(np.sum(matrix * flow.covariance)) / flow.rate)


def evaluate_steps(flow: Flow, score: np.ndarray, step: float, action_steps: int = 1) -> Quadratic:
    """Q of the flow in Euler's steps (equation 6): sum over n of exp(-rho n step) step r(s_n).

    In a step of the state, the action makes `action_steps` steps of a size that many times smaller at the old state.

    Raises:
      ValueError: another shape, or steps of infinite cost, as they are where the score is large for its step.
    """
    num_states, size = flow.num_states, len(flow.reward)
    small = np.eye(size)
    small[num_states:] += step / action_steps * matrix_of("score", score, (flow.num_actions, size))
    is_action = np.arange(size) >= num_states
    of_action = np.where(is_action[:, None] & is_action, flow.covariance, 0.0)
    joint, arriving = np.eye(size), np.zeros((size, size))
    for _ in range(action_steps):
        joint, arriving = small @ joint, small @ arriving @ small.T + step / action_steps * of_action
    joint[:num_states] += step * flow.drift
    arriving = arriving + step * (flow.covariance - of_action)
    discount = float(np.exp(-flow.rate * step))
    radius = np.abs(np.linalg.eigvals(joint)).max() * np.sqrt(discount)
    if radius >= 1.0:
        raise ValueError(
            f"the cost of these steps is infinite: they grow by a factor {radius:g} after their discount"
        )
    matrix = symmetric(scipy.linalg.solve_discrete_lyapunov(np.sqrt(discount) * joint.T, step * flow.reward))
    return Quadratic(matrix, discount * float(np.sum(matrix * arriving)) / (1.0 - discount))


def action_gradient(flow: Flow, action_value: Quadratic) -> np.ndarray:
    """The linear field grad_a Q `[A, S + A]`."""
    return 2.0 * action_value.matrix[flow.num_states :]


def best(flow: Flow, alpha: float) -> tuple[np.ndarray, Quadratic]:
    """The best score `[A, S + A]` where moving the action costs |Psi|^2 / (2 alpha) a unit of time, and its value.

    It is alpha grad_a of that value: the bound on scores of Theorem 4.1 as a price, by the Riccati equation.

    Returns:
      The score, and its value with what the moves cost (`evaluate` with `alpha`).
    """
    size = len(flow.reward)
    free = np.concatenate([flow.drift, np.zeros((flow.num_actions, size))]) - 0.5 * flow.rate * np.eye(size)
    moves = np.concatenate([np.zeros((flow.num_states, flow.num_actions)), np.eye(flow.num_actions)])
    price = np.eye(flow.num_actions) / (2.0 * alpha)
    cost = scipy.linalg.solve_continuous_are(free, moves, -flow.reward, price)
    value = Quadratic(-symmetric(cost), -float(np.sum(cost * flow.covariance)) / flow.rate)
    return alpha * action_gradient(flow, value), value


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines `[...]` between vectors `[..., A]`; 0 where one of them is."""
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.sum(first * second, axis=-1) / np.maximum(lengths, 1e-300)


@dataclasses.dataclass(frozen=True, eq=False)
class Bump:
    """The score that the proof of Theorem 4.1 constructs (equation 37): turned to grad_a Q(center) in one ball.

    Psi' = (1 - w) Psi + w |Psi(center)| grad_a Q(center) / |grad_a Q(center)|, where w is 1 up to half of the radius
    and falls to 0 at the radius. `share` turns it only that far.
    """

    flow: Flow
    score: np.ndarray  # [A, S + A], Psi
    center: np.ndarray  # [S + A]
    radius: float
    share: float = 1.0

    @property
    def direction(self) -> np.ndarray:
        """What the score is in the middle of the ball at share 1, `[A]`."""
        gradient = self.center @ action_gradient(self.flow, evaluate(self.flow, self.score)).T
        return np.linalg.norm(self.score @ self.center) * gradient / np.linalg.norm(gradient)

    def field(self) -> Field:
        """The constructed score."""
        direction = self.direction

        def at(z: np.ndarray) -> np.ndarray:
            distance = np.linalg.norm(z - self.center, axis=-1, keepdims=True) / self.radius
            ramp = np.clip(2.0 - 2.0 * distance, 0.0, 1.0)
            weight = self.share * ramp**2 * (3.0 - 2.0 * ramp)  # without kinks, as the theorem asks for
            return (1.0 - weight) * (z @ self.score.T) + weight * direction

        return at


def linear(score: np.ndarray) -> Field:
    """The field of a linear score `[A, S + A]`."""
    return lambda z: z @ score.T


def simulate(
    flow: Flow, field: Field, starts: np.ndarray, time: float, after: Quadratic, max_step: float = np.inf
) -> np.ndarray:
    """Values `[N]` of a field from `starts` `[N, S + A]`, without noise, by integration to 1e-10.

    Args:
      time: after which a path is worth exp(-rho time) `after`, that is, where it no longer meets what is not linear.
      max_step: of the solver, so that it steps over no small ball.
    """
    shape = np.shape(starts)

    def velocity(t: float, flat: np.ndarray) -> np.ndarray:
        z = flat[: -shape[0]].reshape(shape)
        paid = np.exp(-flow.rate * t) * Quadratic(flow.reward, 0.0).value(z)
        return np.concatenate([np.concatenate([z @ flow.drift.T, field(z)], axis=1).ravel(), paid])

    begin = np.concatenate([np.ravel(starts), np.zeros(shape[0])])
    solved = scipy.integrate.solve_ivp(
        velocity, (0.0, time), begin, "DOP853", (time,), rtol=1e-10, atol=1e-12, max_step=max_step
    )
    last = solved.y[:, -1]
    return last[-shape[0] :] + np.exp(-flow.rate * time) * after.value(last[: -shape[0]].reshape(shape))
