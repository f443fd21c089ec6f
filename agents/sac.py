"""Soft actor-critic (Haarnoja et al. 2018, 1812.05905) with automatic temperature."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.config import INFINITY, AgentConfig, Limits
from agents.parts.types import Metrics, Mode, Sampling, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents import critic as critics
    from agents import networks


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

    limits: ClassVar[Limits] = AgentConfig.limits | {
        "actor_learning_rate": (0, 10),
        "temperature_learning_rate": (0, 10),
        "initial_temperature": (1e-8, INFINITY),
        "target_entropy_per_action": (-INFINITY, INFINITY),
    }


class State(NamedTuple):
    """Everything SAC learns."""

    actor_params: Any
    actor_optimizer: Any
    critic_params: Any
    critic_optimizer: Any
    target_critic_params: Any
    log_temperature: jax.Array
    temperature_optimizer: Any
    hyperparameters: dict[str, jax.Array]


def log_probability(unsquashed: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """log pi(a|s) `[B]` of a = tanh(u), u ~ N(mean, exp(log_std)^2), all `[B, A]`.

    log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2 u)), which does not overflow at large |u|.
    """
    standard = (unsquashed - mean) * jnp.exp(-log_std)
    gaussian = -0.5 * jnp.square(standard) - log_std - 0.5 * math.log(2 * math.pi)
    log_jacobian = 2.0 * (math.log(2.0) - unsquashed - jax.nn.softplus(-2.0 * unsquashed))
    return (gaussian - log_jacobian).sum(axis=-1)


@dataclasses.dataclass(frozen=True)
class SAC:
    """Soft actor-critic."""

    config: SACConfig
    observation_size: int
    action_size: int

    @property
    def sampling(self) -> Sampling:
        return self.config.sampling

    @property
    def critic(self) -> networks.CriticEnsemble:
        c = self.config
        return networks.CriticEnsemble(c.num_critics, c.hidden_sizes, c.critic_layer_norm)

    @property
    def actor(self) -> networks.TanhGaussian:
        return networks.TanhGaussian(self.action_size, self.config.hidden_sizes)

    def init(self, key: jax.Array) -> State:
        actor_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, self.observation_size))
        action = jnp.zeros((1, self.action_size))
        actor_params = networks.init(self.actor, actor_key, observation)
        critic_params = networks.init(self.critic, critic_key, observation, action)
        log_temperature = jnp.asarray(math.log(self.config.initial_temperature), jnp.float32)
        return State(
            actor_params=actor_params,
            actor_optimizer=critics.adam_init(actor_params),
            critic_params=critic_params,
            critic_optimizer=critics.adam_init(critic_params),
            target_critic_params=jax.tree.map(jnp.copy, critic_params),
            log_temperature=log_temperature,
            temperature_optimizer=critics.adam_init(log_temperature),
            hyperparameters={
                k: jnp.asarray(v, jnp.float32) for k, v in self.config.hyperparameters().items()
            },
        )

    def discount(self, state: State) -> jax.Array:
        return state.hyperparameters["discount"]

    def observe(self, state: State, time_step: Any, is_valid: jax.Array) -> State:
        return state

    def revise(self, state: State, batch: Transition, key: jax.Array) -> None:
        return None

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """A sample to explore, the tanh of the Gaussian's mean in evaluation; `[B, A]`."""
        if mode == "evaluate":
            mean, _ = networks.apply(self.actor, state.actor_params, observation)
            return jnp.tanh(mean)
        action, _ = self.sample(state.actor_params, observation, key)
        return action

    def sample(
        self, actor_params: Any, observation: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Reparametrised actions `[B, A]` and their log-probabilities `[B]`."""
        mean, log_std = networks.apply(self.actor, actor_params, observation)
        unsquashed = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return jnp.tanh(unsquashed), log_probability(unsquashed, mean, log_std)

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the actor against the critics just updated, then the temperature."""
        next_key, actor_key = jax.random.split(key)
        hyper = state.hyperparameters
        temperature = jnp.exp(state.log_temperature)

        next_action, next_log_prob = self.sample(state.actor_params, batch.next_observation, next_key)
        next_values = networks.apply(
            self.critic, state.target_critic_params, batch.next_observation, next_action
        )
        target = critics.td_target(
            batch.reward, batch.discount, next_values - temperature * next_log_prob[None]
        )

        def loss_of_critics(params: Any) -> tuple[jax.Array, jax.Array]:
            values = networks.apply(self.critic, params, batch.observation, batch.action)
            return critics.critic_loss(values, target), values

        grads, values = jax.grad(loss_of_critics, has_aux=True)(state.critic_params)
        critic_params, critic_optimizer = critics.adam_step(
            grads, state.critic_optimizer, state.critic_params, hyper["critic_learning_rate"]
        )

        def loss_of_actor(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
            action, log_prob = self.sample(params, batch.observation, actor_key)
            value = networks.apply(self.critic, critic_params, batch.observation, action).min(axis=0)
            return (temperature * log_prob - value).mean(), (action, log_prob, value)

        (actor_loss, (action, log_prob, value)), grads = jax.value_and_grad(loss_of_actor, has_aux=True)(
            state.actor_params
        )
        actor_params, actor_optimizer = critics.adam_step(
            grads, state.actor_optimizer, state.actor_params, hyper["actor_learning_rate"]
        )

        # Gradient of alpha (entropy - target entropy) by log alpha: entropy above its target lowers alpha.
        temperature_grad = self.temperature_gradient(
            temperature, log_prob, hyper["target_entropy_per_action"]
        )
        log_temperature, temperature_optimizer = critics.adam_step(
            temperature_grad,
            state.temperature_optimizer,
            state.log_temperature,
            hyper["temperature_learning_rate"],
        )

        metrics = critics.critic_metrics(values, target) | {
            "actor/loss": critics.mean(actor_loss),
            "actor/temperature": critics.mean(temperature),
            "policy/entropy": critics.mean(-log_prob),
            "policy/q": critics.mean(value),
            "policy/saturation": critics.mean(jnp.abs(action) > critics.SATURATED),
        }
        state = state._replace(
            actor_params=actor_params,
            actor_optimizer=actor_optimizer,
            critic_params=critic_params,
            critic_optimizer=critic_optimizer,
            target_critic_params=critics.polyak(
                state.target_critic_params, critic_params, hyper["target_rate"]
            ),
            log_temperature=log_temperature,
            temperature_optimizer=temperature_optimizer,
        )
        return state, metrics

    def temperature_gradient(
        self, temperature: jax.Array, log_prob: jax.Array, target_entropy_per_action: jax.Array
    ) -> jax.Array:
        """d/d(log alpha) of alpha (entropy - target entropy), with entropy = -mean log pi."""
        entropy = -log_prob.mean()
        return temperature * (entropy - target_entropy_per_action * self.action_size)
