"""A finite Markov decision process that is known: transition tensor, rewards, discount."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class MDP:
    """S states, A actions, and what each action leads to.

    The end of an episode is a state that always leads to itself with reward 0.

    Raises:
      ValueError: shapes that do not fit, rows that are no distributions, numbers that are not finite, or a discount
        outside [0, 1].
    """

    transition: np.ndarray  # [S, A, S] float64, P(s' | s, a)
    reward: np.ndarray  # [S, A] float64, expected on taking a in s
    discount: float

    def __post_init__(self) -> None:
        for name in ("transition", "reward"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        shape = self.transition.shape
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
            raise ValueError(f"transition is of shape {shape}; it must be [S, A, S], at least one of each")
        if self.reward.shape != shape[:2]:
            raise ValueError(f"reward is of shape {self.reward.shape}; it must be [S, A], here {shape[:2]}")
        if not np.isfinite(self.reward).all():
            raise ValueError("reward holds numbers that are not finite")
        wrong = ~np.isclose(self.transition.sum(axis=2), 1.0, rtol=0.0, atol=1e-9)
        wrong |= (self.transition < 0).any(axis=2)
        if wrong.any():
            state, action = np.argwhere(wrong)[0]
            raise ValueError(
                f"transition[{state}, {action}] is no distribution: its entries must be 0 or more and sum to 1, "
                f"not {self.transition[state, action].sum():g}"
            )
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount is {self.discount}; it must lie in [0, 1]")

    @property
    def num_states(self) -> int:
        """S."""
        return self.transition.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.transition.shape[1]

    @functools.cached_property
    def is_terminal(self) -> np.ndarray:
        """Which states are the end of an episode, `[S]` bool."""
        to_itself = self.transition[np.arange(self.num_states), :, np.arange(self.num_states)]
        return np.all((to_itself == 1.0) & (self.reward == 0.0), axis=1)

    def uniform_policy(self) -> np.ndarray:
        """Every action as likely as every other, `[S, A]`."""
        return np.full((self.num_states, self.num_actions), 1.0 / self.num_actions)

    def check_policy(self, policy: np.ndarray, steps: int | None = None) -> np.ndarray:
        """`policy` as float64, `[S, A]`, or `[H, S, A]` where there are `steps`.

        Raises:
          ValueError: another shape, or rows that are no distributions.
        """
        policy = np.asarray(policy, np.float64)
        shape = (self.num_states, self.num_actions) if steps is None else (steps, *self.reward.shape)
        if policy.shape != shape:
            raise ValueError(f"policy is of shape {policy.shape}; it must be {shape}")
        if not (np.all(policy >= 0) and np.allclose(policy.sum(axis=-1), 1.0, rtol=0.0, atol=1e-9)):
            raise ValueError("policy has rows that are no distributions over actions")
        return policy


def stay_or_leave(num_stays: int, stay_reward: float, discount: float) -> MDP:
    """A state with one action that leaves for the end and `num_stays` that stay, each for `stay_reward`.

    Action 0 leaves and pays nothing. With p the probability of staying, Q(stay) - Q(leave) = stay_reward / (1 -
    discount p): whether that grows or falls with p is the sign of `stay_reward`, so equation 20 can have several fixed
    points where staying pays, and can go in a circle where it costs and there are many ways to stay.
    """
    transition = np.zeros((2, num_stays + 1, 2))
    transition[0, 0, 1] = transition[0, 1:, 0] = transition[1, :, 1] = 1.0
    reward = np.zeros((2, num_stays + 1))
    reward[0, 1:] = stay_reward
    return MDP(transition, reward, discount)
