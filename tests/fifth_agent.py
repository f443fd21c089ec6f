"""An agent that the project does not have, as somebody would add it: one file and one registry line.

Started as a program it is the `qsm` command with that line added, for processes that a test starts.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar, NamedTuple

from etils import epy

import agents
from agents.config import INFINITY, AgentConfig, Limits
from agents.parts.base import AgentBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp

    from agents.networks import actors
    from agents.parts import approximator, critic, measure, noise, optimizer

NAME = "plain-ddpg"
ENTRY = agents.Entry(
    "tests.fifth_agent",
    "PlainDDPGConfig",
    "PlainDDPG",
    "Deterministic policy gradient without a target actor",
    "deterministic",
    agents.Style("#8C564B", "-", "*"),
)


@dataclasses.dataclass(frozen=True)
class PlainDDPGConfig(AgentConfig):
    """Deterministic policy gradient."""

    actor_learning_rate: float = 1e-3
    """Adam's learning rate for the actor."""
    action_noise: float = 0.2
    """Std of the Gaussian noise added to actions while exploring."""

    limits: ClassVar[Limits] = AgentConfig.limits | {
        "actor_learning_rate": (0, 10),
        "action_noise": (0, INFINITY),
    }


class State(NamedTuple):
    """Everything it learns."""

    actor: optimizer.Learned
    critic: critic.CriticState
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class PlainDDPG(AgentBase):
    """Deterministic policy gradient without a target actor."""

    config: PlainDDPGConfig

    @property
    def actor(self) -> approximator.Approximator:
        return approximator.Approximator(actors.DeterministicActor(self.action_size, self.actor_torso))

    def init(self, key: jax.Array) -> State:
        actor_key, critic_key = jax.random.split(key)
        actor = self.actor.init(actor_key, jnp.zeros((1, self.observation_size)))
        return State(actor, self.init_critic(critic_key), self.init_normalizer(), self.hyperparameters())

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        action = self.actor.apply(state.actor.params, self.normalized(state, observation))
        return (
            action
            if mode == "evaluate"
            else noise.perturb(action, state.hyperparameters["action_noise"], key)
        )

    def actor_loss(
        self, params: Any, critic_params: Any, observation: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        value = self.critic.first_value(critic_params, observation, self.actor.apply(params, observation))
        return -value.mean(), {"policy/q": measure.mean(value)}

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        batch, hyper = self.normalized_batch(state, batch), state.hyperparameters
        next_action = self.actor.apply(state.actor.params, batch.next_observation)
        target = self.critic.target(state.critic, batch, next_action)
        critics, _, metrics = self.critic.regress(state.critic, batch, target, hyper["critic_learning_rate"])
        actor, more = self.actor.descend(
            self.actor_loss,
            state.actor,
            hyper["actor_learning_rate"],
            critics.online.params,
            batch.observation,
        )
        critics = self.critic.follow(critics, hyper["target_rate"])
        return State(actor, critics, state.normalizer, hyper), metrics | more


if __name__ == "__main__":
    agents.AGENTS[NAME] = ENTRY
    from qsm.command.cli import main

    sys.exit(main())
