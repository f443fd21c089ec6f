"""Environments so small that the value of every state is known, for tests of agents.

Each has one observation and one action, follows `envs.api.HostEnvironment`, and names its values in its
docstring, with gamma the agent's discount factor. They point at the fault: ConstantReward fails when the
critic's regression is wrong, ObservationReward when its input is, DelayedReward when bootstrapping is,
ActionReward when the policy is, and TruncatedReward when a time limit is taken for a termination.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs import snapshot
from envs.api import EnvSpec, StepType, TimeStep, time_step


class ProbeEnvironment:
    """The part that all probes share: the spec, the step counter and the checks; a probe writes the rest."""

    def __init__(self, seed: int = 0, episode_steps: int = 1):
        """Starts the probe's own random stream from `seed`."""
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._spec = EnvSpec(
            task=type(self).__name__,
            observation_size=1,
            action_size=1,
            episode_steps=episode_steps,
            action_repeat=1,
        )
        self._steps = episode_steps  # taken in this episode; all of them taken when none is under way
        self._observation = 0.0  # of the episode's beginning, where the probe draws one

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing."""
        return self._spec

    def reset(self) -> TimeStep:
        """Starts an episode."""
        self._steps = 0
        return time_step(StepType.FIRST, 0.0, 1.0, self._observe())

    def reseed(self, seed: int) -> None:
        """Starts the probe's random stream anew; ends the episode under way."""
        self._random = np.random.default_rng(seed)
        self._steps = self._spec.episode_steps

    def step(self, action: np.ndarray) -> TimeStep:
        """Takes `action` `[1]`, clipped to [-1, 1].

        Raises:
            ValueError: `action` has another shape.
            RuntimeError: no episode is under way.
        """
        action = np.asarray(action)
        if action.shape != (1,):
            raise ValueError(f"{self._spec.task} takes actions of shape (1,), not {action.shape}.")
        if self._steps == self._spec.episode_steps:
            raise RuntimeError("No episode is under way: call reset() first, and again after LAST.")
        reward = self._reward(float(np.clip(action[0], -1.0, 1.0)))
        self._steps += 1
        last = self._steps == self._spec.episode_steps
        discount = self._last_discount() if last else 1.0
        return time_step(StepType.LAST if last else StepType.MID, reward, discount, self._observe())

    def save(self) -> dict[str, np.ndarray]:
        """Returns all that `restore` needs, at any time."""
        state = self._random.bit_generator.state  # of PCG64: two whole numbers of 128 bits, and half a draw
        words = [word for name in ("state", "inc") for word in divmod(state["state"][name], 2**64)]
        return {
            "seed": np.array(self._seed, np.int64),
            "random": np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64),
            "steps": np.array(self._steps, np.int64),
            "observation": np.array(self._observation, np.float64),
        }

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Puts a fresh probe, made with the same arguments, where the saved one was.

        Raises:
            ValueError: `saved` is not what `save` returns.
        """
        snapshot.check(saved, self.save())
        snapshot.check_range(saved, "steps", self._spec.episode_steps)
        high, low, increment_high, increment_low, has_uint32, uinteger = saved["random"].tolist()
        self._random.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": high * 2**64 + low, "inc": increment_high * 2**64 + increment_low},
            "has_uint32": has_uint32,
            "uinteger": uinteger,
        }
        self._steps = int(saved["steps"])
        self._observation = float(saved["observation"])

    def _observe(self) -> np.ndarray:
        return np.zeros(1, np.float32)

    def _reward(self, action: float) -> float:
        raise NotImplementedError

    def _last_discount(self) -> float:
        return 0.0


class ConstantReward(ProbeEnvironment):
    """Observation 0, reward 1, and the episode terminates. Value: 1."""

    def _reward(self, action: float) -> float:
        return 1.0


class ObservationReward(ProbeEnvironment):
    """Observation -1 or +1 at random, reward equal to it, the episode terminates. Value: the observation."""

    def _observe(self) -> np.ndarray:
        if self._steps == 0:
            self._observation = float(self._random.choice((-1.0, 1.0)))
            return np.full(1, self._observation, np.float32)
        return np.zeros(1, np.float32)

    def _reward(self, action: float) -> float:
        return self._observation


class DelayedReward(ProbeEnvironment):
    """Observation 0 then 1, reward 0 then 1, and the episode terminates. Values: gamma, then 1."""

    def __init__(self, seed: int = 0):
        """Two steps an episode."""
        super().__init__(seed, episode_steps=2)

    def _observe(self) -> np.ndarray:
        return np.full(1, 1.0 if self._steps == 1 else 0.0, np.float32)

    def _reward(self, action: float) -> float:
        return float(self._steps)


class ActionReward(ProbeEnvironment):
    """Observation 0, a reward that depends on the action, and the episode terminates.

    With the optimum inside (-1, 1), the reward is 1 - (action - optimum)^2; with the optimum at a bound, -1
    or 1, it is action * optimum, which grows all the way to the bound. Value of the best policy: 1 in both.
    """

    def __init__(self, seed: int = 0, optimum: float = 0.3):
        """Raises ValueError if `optimum` lies outside [-1, 1]."""
        if not -1.0 <= optimum <= 1.0:
            raise ValueError(f"optimum is {optimum}; it must lie in [-1, 1], where the actions are.")
        super().__init__(seed)
        self.optimum = optimum

    def _reward(self, action: float) -> float:
        if abs(self.optimum) == 1.0:
            return action * self.optimum
        return 1.0 - (action - self.optimum) ** 2


class TruncatedReward(ProbeEnvironment):
    """Observation 0, reward 1, cut off after `episode_steps` with discount 1. Value: 1 / (1 - gamma).

    Who takes the time limit for a termination learns less, as no observation tells the last step.
    """

    def __init__(self, seed: int = 0, episode_steps: int = 5):
        """Raises ValueError if `episode_steps` is less than 1."""
        if episode_steps < 1:
            raise ValueError(f"episode_steps is {episode_steps}; it must be 1 or more.")
        super().__init__(seed, episode_steps)

    def _reward(self, action: float) -> float:
        return 1.0

    def _last_discount(self) -> float:
        return 1.0
