"""What every environment is: `TimeStep` with the semantics of dm_env, a spec, the host and the device protocol."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import jax  # the host's environments need none


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
    # What the simulator itself takes, `[A]`: an environment scales actions from [-1, 1] to it. [-1, 1] by default.
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    # Names and sizes of what `observation` is joined from, in its order; () where it has no parts.
    observation_entries: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError if the bounds are not `action_size` numbers each, or not in their order."""
        for name, default in (("action_low", -1.0), ("action_high", 1.0)):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * self.action_size)
        bounds = tuple(zip(self.action_low, self.action_high, strict=False))
        is_whole = len(self.action_low) == len(self.action_high) == self.action_size
        if not is_whole or any(low >= high for low, high in bounds):
            raise ValueError(
                f"the bounds of {self.task}'s {self.action_size} actions are {self.action_low} and "
                f"{self.action_high}; they must be as many numbers, the first below the second"
            )


class Arrival(NamedTuple):
    """What an action leads to in N environments: a time step each, and the next episode's first where one begins.

    Where the simulation failed, `time_step` holds no measurement.
    """

    time_step: TimeStep  # [N, ...] MID or LAST; LAST keeps the observation that the episode ended with
    is_valid: Any  # [N] bool, False where the simulation failed: not to be stored
    first: TimeStep  # [N, ...] FIRST of the new episode where `is_reset`
    is_reset: Any  # [N] bool: a new episode began, after LAST or because the simulation failed


class SimulationError(Exception):
    """The simulation diverged: the episode is lost, the environment is not."""


class HostEnvironment(Protocol):
    """An environment stepped in Python on the CPU."""

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing."""
        ...

    def reset(self) -> TimeStep:
        """Starts a new episode, drawn from the environment's own seeded stream; returns its FIRST step.

        Raises:
            SimulationError: no beginning that was drawn could be simulated.
        """
        ...

    def reseed(self, seed: int) -> None:
        """Starts the stream that later episodes are drawn from anew; ends the episode under way."""
        ...

    def step(self, action: np.ndarray) -> TimeStep:
        """Applies `action` `[A]` in [-1, 1] for `action_repeat` control steps, fewer where the episode ends.

        Raises:
            ValueError: `action` has another shape than `[A]`.
            RuntimeError: no episode is under way: before the first `reset`, or after a LAST time step.
            SimulationError: the simulation diverged; only `reset` is possible now.
        """
        ...

    def save(self) -> dict[str, np.ndarray]:
        """Returns all that `restore` needs to go on bit for bit, at any time, and disturbs nothing.

        Plain arrays of numbers and booleans; names, shapes and dtypes are the same at any time.
        """
        ...

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Puts a fresh environment, made with the same arguments, where the saved one was.

        Steps and resets then answer bit for bit what they would have answered there, on a machine and with
        libraries that calculate alike.

        Raises:
            ValueError: `saved` is of an environment made with other arguments, or not what `save` returns;
                this environment is as it was.
        """
        ...


class DeviceState(NamedTuple):
    """One environment on the accelerator, on arrival at a state: a pytree without a batch axis."""

    physics: Any  # a pytree: all that the simulator needs to go on
    observation: jax.Array  # [O] float32
    reward: jax.Array  # [] float32, received on arriving here; 0 after a reset
    discount: jax.Array  # [] float32, 0 at true termination, which ends the episode, else 1
    valid: jax.Array  # [] bool, False where the simulation has become non-finite


class DeviceEnvironment(Protocol):
    """An environment of pure JAX functions, un-jitted, of one environment each.

    Batches, time limits, action repeat and the next episode are `envs.vector`'s.
    """

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing; `episode_steps` is the time limit in control steps."""
        ...

    @property
    def step_bytes(self) -> int:
        """Memory that a step of one environment takes besides its state, about."""
        ...

    def reset(self, key: jax.Array) -> DeviceState:
        """The beginning of an episode, drawn from a typed key; finite."""
        ...

    def step(self, state: DeviceState, action: jax.Array) -> DeviceState:
        """Applies `action` `[A]` in [-1, 1] for one control step; shapes and dtypes stay those of `reset`."""
        ...
