"""Soft actor-critic (Haarnoja et al. 2018, 1812.05905) with automatic temperature. Equations: docs/sac.md."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.config import INFINITY, AgentConfig, Limits
from agents.parts.base import AgentBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.networks import actors
    from agents.parts import critic, gaussian, measure, optimizer


@dataclasses.dataclass(frozen=True)
class SACConfig(AgentConfig):
    """Soft actor-critic."""

    actor_learning_rate: float = 3e-4
    """Adam's learning rate for the actor."""
    temperature_learning_rate: float = 3e-4
    """Adam's learning rate for the log of the temperature."""
    initial_temperature: float = 1.0
    """Weight alpha of the entropy at the start."""
    target_entropy_per_action: float = -0.5
    """Entropy that the temperature holds the policy to, per action component (-0.5 gives -A/2; -1 gives -A)."""

    initial: ClassVar[tuple[str, ...]] = ("initial_temperature",)
    limits: ClassVar[Limits] = AgentConfig.limits | {
        "actor_learning_rate": (0, 10),
        "temperature_learning_rate": (0, 10),
        "initial_temperature": (1e-8, INFINITY),
        "target_entropy_per_action": (-INFINITY, INFINITY),
    }


class State(NamedTuple):
    """Everything SAC learns."""

    actor: optimizer.Learned
    critic: critic.CriticState
    log_temperature: optimizer.Learned  # a scalar is learned like any other
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class SAC(AgentBase):
    """Soft actor-critic."""

    config: SACConfig

    @property
    def policy(self) -> gaussian.GaussianPolicy:
        return gaussian.GaussianPolicy(
            actors.TanhGaussian(self.action_size, self.actor_torso), rule=self.rule
        )

    def init(self, key: jax.Array) -> State:
        actor_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, self.observation_size))
        return State(
            actor=self.policy.init(actor_key, observation),
            critic=self.init_critic(critic_key),
            log_temperature=optimizer.start(
                jnp.asarray(math.log(self.config.initial_temperature), jnp.float32)
            ),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """A sample to explore, the tanh of the Gaussian's mean in evaluation; `[B, A]`."""
        observation = self.normalized(state, observation)
        if mode == "evaluate":
            return self.policy.mode(state.actor.params, observation)
        return self.policy.sample(state.actor.params, observation, key)[0]

    # ---- Losses -------------------------------------------------------------------------------------------------

    def critic_target(
        self, state: State, batch: Transition, key: jax.Array, temperature: jax.Array
    ) -> critic.Target:
        """y = r + discount * min_i (Q'_i(s', a') - alpha log pi(a'|s')), a' ~ pi."""
        action, log_prob = self.policy.sample(state.actor.params, batch.next_observation, key)
        return self.critic.target(state.critic, batch, action, bonus=-temperature * log_prob)

    def actor_loss(
        self, params: Any, critic_params: Any, temperature: jax.Array, observation: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
        """mean (alpha log pi(a|s) - min_i Q_i(s, a)), a ~ pi; and log pi `[B]` with metrics."""
        action, log_prob = self.policy.sample(params, observation, key)
        value = self.critic.reduced_value(critic_params, observation, action)
        loss = (temperature * log_prob - value).mean()
        metrics = {
            "actor/loss": measure.mean(loss),
            "policy/entropy": measure.mean(-log_prob),
            "policy/q": measure.mean(value),
            "policy/saturation": measure.saturation(action),
        }
        return loss, (log_prob, metrics)

    def temperature_gradient(
        self, temperature: jax.Array, log_prob: jax.Array, target_entropy_per_action: jax.Array
    ) -> jax.Array:
        """d/d(log alpha) of alpha (entropy - target entropy): entropy, -mean log pi, above its target lowers alpha.

        Written out: XLA rounds what it makes of the loss and `jax.grad` otherwise, and old runs went on by this.
        """
        entropy = -log_prob.mean()
        return temperature * (entropy - target_entropy_per_action * self.action_size)

    # ---- Learning -----------------------------------------------------------------------------------------------

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the actor against the critics just updated, then the temperature."""
        next_key, actor_key = jax.random.split(key)
        batch = self.normalized_batch(state, batch)
        hyper, temperature = state.hyperparameters, jnp.exp(state.log_temperature.params)

        target = self.critic_target(state, batch, next_key, temperature)
        critics, _, metrics = self.critic.regress(state.critic, batch, target, hyper["critic_learning_rate"])
        actor, (log_prob, actor_metrics) = self.policy.descend(
            self.actor_loss,
            state.actor,
            hyper["actor_learning_rate"],
            critics.online.params,
            temperature,
            batch.observation,
            actor_key,
        )
        gradient = self.temperature_gradient(temperature, log_prob, hyper["target_entropy_per_action"])
        log_temperature = optimizer.step(state.log_temperature, gradient, hyper["temperature_learning_rate"])

        metrics |= actor_metrics | {"actor/temperature": measure.mean(temperature)}
        critics = self.critic.follow(critics, hyper["target_rate"])
        return State(actor, critics, log_temperature, state.normalizer, hyper), metrics
