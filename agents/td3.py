"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, 1802.09477). Equations: docs/td3.md."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.conditions import Conditions, without
from agents.config import INFINITY, AgentConfig, Limits
from agents.parts.base import AgentBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.networks import actors
    from agents.parts import approximator, critic, measure, noise, optimizer


@dataclasses.dataclass(frozen=True)
class TD3Config(AgentConfig):
    """Twin delayed DDPG."""

    actor_learning_rate: float = 3e-4
    """Adam's learning rate for the actor."""
    policy_delay: int = 2
    """Critic updates for each update of the actor and of both targets."""
    action_noise: float = 0.1
    """Std of the Gaussian noise added to actions while exploring."""
    target_noise: float = 0.2
    """Std of the Gaussian noise added to target actions (target policy smoothing)."""
    target_noise_clip: float = 0.5
    """Bound of that noise."""

    limits: ClassVar[Limits] = AgentConfig.limits | {
        "actor_learning_rate": (0, 10),
        "policy_delay": (1, 1000),
        "action_noise": (0, INFINITY),
        "target_noise": (0, INFINITY),
        "target_noise_clip": (0, INFINITY),
    }
    # The target actor follows by target_rate, whatever the critics do.
    conditions: ClassVar[Conditions] = without(AgentConfig.conditions, "target_rate")


class State(NamedTuple):
    """Everything TD3 learns."""

    actor: optimizer.Learned
    target_actor: Any  # parameters of the slow copy
    critic: critic.CriticState
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TD3(AgentBase):
    """Twin delayed DDPG."""

    config: TD3Config

    @property
    def actor(self) -> approximator.Approximator:
        """pi(s), actions `[B, A]` in [-1, 1]."""
        network = actors.DeterministicActor(self.action_size, self.actor_torso)
        return approximator.Approximator(network, rule=self.rule)

    def init(self, key: jax.Array) -> State:
        actor_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, self.observation_size))
        actor = self.actor.init(actor_key, observation)
        return State(
            actor=actor,
            target_actor=jax.tree.map(jnp.copy, actor.params),
            critic=self.init_critic(critic_key),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """The actor's action `[B, A]`, plus Gaussian noise to explore."""
        action = self.actor.apply(state.actor.params, self.normalized(state, observation))
        if mode == "evaluate":
            return action
        return noise.perturb(action, state.hyperparameters["action_noise"], key)

    # ---- Losses -------------------------------------------------------------------------------------------------

    def target_action(self, state: State, next_observation: jax.Array, key: jax.Array) -> jax.Array:
        """Target policy smoothing: the target actor plus clipped noise, clipped to [-1, 1]; `[B, A]` (eq. 14)."""
        hyper = state.hyperparameters
        action = self.actor.apply(state.target_actor, next_observation)
        return noise.perturb(action, hyper["target_noise"], key, hyper["target_noise_clip"])

    def actor_loss(
        self, params: Any, critic_params: Any, observation: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """-mean Q_1(s, pi(s)): the deterministic policy gradient through the first critic."""
        action = self.actor.apply(params, observation)
        value = self.critic.first_value(critic_params, observation, action)
        loss = -value.mean()
        return loss, {
            "actor/loss": measure.mean(loss),
            "policy/q": measure.mean(value),
            "policy/saturation": measure.saturation(action),
        }

    # ---- Learning -----------------------------------------------------------------------------------------------

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics every time; the actor and both targets every `policy_delay` updates (Algorithm 1)."""
        batch = self.normalized_batch(state, batch)
        next_action = self.target_action(state, batch.next_observation, key)
        target = self.critic.target(state.critic, batch, next_action)
        critics, _, metrics = self.critic.regress(
            state.critic, batch, target, state.hyperparameters["critic_learning_rate"]
        )
        state = state._replace(critic=critics)

        def wait(state: State) -> tuple[State, Metrics]:
            return state, {
                name: measure.skipped() for name in ("actor/loss", "policy/q", "policy/saturation")
            }

        def delayed(state: State) -> tuple[State, Metrics]:
            return self.update_actor_and_targets(state, batch)

        is_due = (step + 1) % self.config.policy_delay == 0
        state, actor_metrics = jax.lax.cond(is_due, delayed, wait, state)
        return state, metrics | actor_metrics

    def update_actor_and_targets(self, state: State, batch: Transition) -> tuple[State, Metrics]:
        """The actor against the critics just updated, then Polyak averaging of actor and critics."""
        hyper = state.hyperparameters
        actor, metrics = self.actor.descend(
            self.actor_loss,
            state.actor,
            hyper["actor_learning_rate"],
            state.critic.online.params,
            batch.observation,
        )
        return state._replace(
            actor=actor,
            target_actor=optimizer.polyak(state.target_actor, actor.params, hyper["target_rate"]),
            critic=self.critic.follow(state.critic, hyper["target_rate"]),
        ), metrics
