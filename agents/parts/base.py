"""What every agent shares: its sizes, its critics, its normalizer. Imports no JAX before it is used."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epy

from agents.config import AgentConfig
from agents.parts.types import Sampling, Transition

with epy.lazy_imports():  # the command line reads the options of agents without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.networks import critics, torsos
    from agents.parts import critic, heads, normalizer


@dataclasses.dataclass(frozen=True)
class AgentBase:
    """The part of `agents.api.Agent` that does not tell one algorithm from another.

    An algorithm adds `init`, `act` and `update`. Its state is a NamedTuple with, at least, the entries `normalizer`
    and `hyperparameters`.
    """

    config: AgentConfig
    observation_size: int
    action_size: int

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.config.batch_size, self.config.n_step)

    def discount(self, state: Any) -> jax.Array:
        return state.hyperparameters["discount"]

    def revise(self, state: Any, batch: Transition, key: jax.Array) -> None:
        return None

    # ---- What the options choose --------------------------------------------------------------------------------

    @property
    def critic(self) -> critic.Critic:
        """The ensemble of critics."""
        c = self.config
        torso = torsos.Torso(c.hidden_sizes, c.critic_layer_norm)
        return critic.Critic(critics.CriticEnsemble(c.num_critics, torso), heads.Scalar())

    @property
    def actor_torso(self) -> torsos.Torso:
        """Hidden layers of an actor network."""
        return torsos.Torso(self.config.hidden_sizes)

    def init_critic(self, key: jax.Array) -> critic.CriticState:
        """Fresh critics."""
        return self.critic.init_state(
            key, jnp.zeros((1, self.observation_size)), jnp.zeros((1, self.action_size))
        )

    def hyperparameters(self) -> dict[str, jax.Array]:
        """The float options, to be kept in the state."""
        return {
            name: jnp.asarray(value, jnp.float32) for name, value in self.config.hyperparameters().items()
        }

    # ---- Observations -------------------------------------------------------------------------------------------

    def init_normalizer(self) -> Any:
        """Statistics of no observation; () where observations are not normalized."""
        return normalizer.init(self.observation_size) if self.config.normalize_observations else ()

    def observe(self, state: Any, time_step: Any, is_valid: jax.Array) -> Any:
        if not self.config.normalize_observations:
            return state
        seen = normalizer.observe(state.normalizer, time_step.observation, is_valid)
        return state._replace(normalizer=seen)

    def normalized(self, state: Any, observation: jax.Array) -> jax.Array:
        """Observations `[B, O]` as the networks see them."""
        if not self.config.normalize_observations:
            return observation
        return normalizer.normalize(state.normalizer, observation)

    def normalized_batch(self, state: Any, batch: Transition) -> Transition:
        """`batch` with its observations as the networks see them."""
        return batch._replace(
            observation=self.normalized(state, batch.observation),
            next_observation=self.normalized(state, batch.next_observation),
        )
