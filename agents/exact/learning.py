"""An agent in a linear-quadratic process: transitions drawn anew for every update, and what its policy returns.

States are drawn from one normal distribution and actions uniformly from the agent's box, as from a replay buffer that
explores: what is learned does not depend on what the policy visits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.exact.linear_quadratic import Process
from agents.parts.types import Transition


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """A process to learn, and where its states are.

    Args:
      process: its actions are the agent's, clipped to [-1, 1]; the agent's discount must be its own.
      spread: standard deviation of every component of a state that is drawn.
    """

    process: Process
    spread: float

    def states(self, num_states: int, key: jax.Array) -> jax.Array:
        """`[N, S]`."""
        return self.spread * jax.random.normal(key, (num_states, self.process.num_states))

    def reward(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """`[B]`."""
        p = self.process
        by_state, by_action = (jnp.asarray(cost, jnp.float32) for cost in (p.state_cost, p.action_cost))
        return -((state @ by_state * state).sum(axis=1) + (action @ by_action * action).sum(axis=1))

    def following(self, state: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
        """s' `[B, S]`."""
        p = self.process
        drawn = jax.random.normal(key, state.shape) @ jnp.asarray(_root(p.noise).T, jnp.float32)
        by_state = state @ jnp.asarray(p.state_matrix.T, jnp.float32)
        return by_state + action @ jnp.asarray(p.action_matrix.T, jnp.float32) + drawn

    def transitions(self, num_states: int, key: jax.Array) -> Transition:
        """A batch `[N, ...]`."""
        state_key, action_key, next_key = jax.random.split(key, 3)
        state = self.states(num_states, state_key)
        action = jax.random.uniform(action_key, (num_states, self.process.num_actions), minval=-1.0)
        discount = jnp.full(num_states, self.process.discount)
        return Transition(
            state, action, self.reward(state, action), discount, self.following(state, action, next_key)
        )

    def learn(self, agent: Any, state: Any, key: jax.Array, first: jax.Array, num_updates: int) -> Any:
        """The agent's state after its updates number `first` to `first + num_updates`."""

        def update(state: Any, number: jax.Array) -> tuple[Any, None]:
            batch_key, update_key = jax.random.split(jax.random.fold_in(key, number))
            batch = self.transitions(agent.config.batch_size, batch_key)
            return agent.update(state, batch, update_key, number)[0], None

        return jax.lax.scan(update, state, first + jnp.arange(num_updates))[0]

    def value(self, agent: Any, state: Any, key: jax.Array, num_states: int, num_steps: int) -> jax.Array:
        """Mean discounted return `[]` of the policy as it is evaluated, over paths of `num_steps` steps."""
        start_key, key = jax.random.split(key)

        def step(observation: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
            act_key, next_key = jax.random.split(jax.random.fold_in(key, number))
            action = agent.act(state, observation, act_key, mode="evaluate")
            paid = self.process.discount**number * self.reward(observation, action).mean()
            return self.following(observation, action, next_key), paid

        return jax.lax.scan(step, self.states(num_states, start_key), jnp.arange(num_steps))[1].sum()


def _root(covariance: np.ndarray) -> np.ndarray:
    """L of L L' = `covariance`, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))
