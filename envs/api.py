"""What every environment is: `TimeStep` with the semantics of dm_env, a spec, and the host protocol."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple, Protocol

import numpy as np


class StepType(enum.IntEnum):
    """Place of a time step in its episode (dm_env)."""

    FIRST = 0  # just reset: its reward and discount mean nothing
    MID = 1
    LAST = 2  # holds the final observation; discount says whether it terminated (0) or was cut off (1)


class TimeStep(NamedTuple):
    """What the environment answers on arrival at a state.

    Truncation is `step_type == LAST` with `discount == 1`; termination is `LAST` with `discount == 0`.
    """

    step_type: np.ndarray  # [] int8
    reward: np.ndarray  # [] float32, summed over action repeats
    discount: np.ndarray  # [] float32, the environment's own, without gamma
    observation: np.ndarray  # [O] float32


def time_step(step_type: StepType, reward: float, discount: float, observation: np.ndarray) -> TimeStep:
    """Casts the scalars of a `TimeStep`; `observation` `[O]` float32 is handed on as it is.

    The scalars are fresh arrays: JAX's CPU backend aliases NumPy arguments, so nothing handed out is reused.
    """
    return TimeStep(
        np.array(step_type, np.int8),
        np.array(reward, np.float32),
        np.array(discount, np.float32),
        observation,
    )


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Sizes and timing of a task."""

    task: str
    observation_size: int
    action_size: int
    episode_steps: int  # control steps (action repeat 1) in an episode that is not cut short
    action_repeat: int


class HostEnvironment(Protocol):
    """An environment stepped in Python on the CPU."""

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing."""
        ...

    def reset(self) -> TimeStep:
        """Starts a new episode, drawn from the environment's own seeded stream; returns its FIRST step."""
        ...

    def reseed(self, seed: int) -> None:
        """Starts the stream that later episodes are drawn from anew; ends the episode under way."""
        ...

    def step(self, action: np.ndarray) -> TimeStep:
        """Applies `action` `[A]` in [-1, 1] for `action_repeat` control steps, fewer where the episode ends.

        Raises:
            ValueError: `action` has another shape than `[A]`.
            RuntimeError: no episode is under way: before the first `reset`, or after a LAST time step.
        """
        ...
