"""Environments of pure JAX functions, so small that every observation is known, for tests of `envs.vector`.

Each follows `envs.api.DeviceEnvironment` and has one action. The first entry of an observation is a number drawn
at the reset, which tells one start from all others; the second is the control step within the episode.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from envs.api import DeviceState, EnvSpec


class Physics(NamedTuple):
    """What all probes go on from."""

    draw: jax.Array  # [] float32, uniform in [0, 1): other for every start
    step: jax.Array  # [] int32, control steps since the reset
    length: jax.Array  # [] int32, control steps after which the episode terminates


class Counter:
    """Observation (draw, step), reward 1 at every control step; never terminates by itself."""

    def __init__(self, episode_steps: int = 5, action_repeat: int = 1):
        """Sets the time limit in control steps, and the action repeat."""
        self._spec = EnvSpec(
            task=type(self).__name__,
            observation_size=2,
            action_size=1,
            episode_steps=episode_steps,
            action_repeat=action_repeat,
        )

    def __eq__(self, other: object) -> bool:
        """Equal ones have equal programs, which are compiled once."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing."""
        return self._spec

    @property
    def step_bytes(self) -> int:
        """Nothing worth counting."""
        return 0

    def reset(self, key: jax.Array) -> DeviceState:
        """Starts an episode."""
        draw = jax.random.uniform(key)
        physics = Physics(draw=draw, step=jnp.zeros((), jnp.int32), length=self._length(draw))
        return self._arrive(physics, jnp.zeros(()))

    def step(self, state: DeviceState, action: jax.Array) -> DeviceState:
        """Takes `action` `[1]`."""
        physics = state.physics._replace(step=state.physics.step + 1)
        return self._arrive(physics, self._reward(state, action[0]))

    def _length(self, draw: jax.Array) -> jax.Array:
        return jnp.full((), 2**30, jnp.int32)

    def _reward(self, state: DeviceState, action: jax.Array) -> jax.Array:
        return jnp.ones(())

    def _arrive(self, physics: Physics, reward: jax.Array) -> DeviceState:
        return DeviceState(
            physics=physics,
            observation=jnp.stack([physics.draw, physics.step.astype(jnp.float32)]),
            reward=reward,
            discount=jnp.where(physics.step >= physics.length, 0.0, 1.0),
            valid=jnp.isfinite(physics.draw),
        )


class Terminating(Counter):
    """Terminates after a random number of control steps, 1 to `longest`, drawn at the reset."""

    def __init__(self, longest: int, episode_steps: int = 1_000, action_repeat: int = 1):
        """Raises ValueError if `longest` is less than 1."""
        if longest < 1:
            raise ValueError(f"longest is {longest}; it must be 1 or more.")
        super().__init__(episode_steps, action_repeat)
        self.longest = longest

    def _length(self, draw: jax.Array) -> jax.Array:
        # From the one draw: every other hash of a key takes a second to compile.
        return 1 + (draw * self.longest).astype(jnp.int32)


class Fragile(Counter):
    """Becomes NaN for good under an action above 0.5, and in its reward alone under one below -0.5."""

    def step(self, state: DeviceState, action: jax.Array) -> DeviceState:
        """Takes `action` `[1]`."""
        draw = jnp.where(action[0] > 0.5, jnp.nan, state.physics.draw)
        return super().step(state._replace(physics=state.physics._replace(draw=draw)), action)

    def _reward(self, state: DeviceState, action: jax.Array) -> jax.Array:
        return jnp.where(action < -0.5, jnp.nan, 1.0)


class ActionReward(Counter):
    """Reward 1 - (action - optimum)^2 at every control step; 1 for the best policy."""

    def __init__(self, episode_steps: int = 1, action_repeat: int = 1, optimum: float = 0.3):
        """Raises ValueError if `optimum` lies outside [-1, 1]."""
        if not -1.0 <= optimum <= 1.0:
            raise ValueError(f"optimum is {optimum}; it must lie in [-1, 1], where the actions are.")
        super().__init__(episode_steps, action_repeat)
        self.optimum = optimum

    def _reward(self, state: DeviceState, action: jax.Array) -> jax.Array:
        return 1.0 - (jnp.clip(action, -1.0, 1.0) - self.optimum) ** 2
