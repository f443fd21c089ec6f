"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, 1802.09477)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.config import INFINITY, AgentConfig, Limits
from agents.parts.types import Mean, Metrics, Mode, Sampling, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents import critic as critics
    from agents import networks


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


class State(NamedTuple):
    """Everything TD3 learns."""

    actor_params: Any
    actor_optimizer: Any
    target_actor_params: Any
    critic_params: Any
    critic_optimizer: Any
    target_critic_params: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TD3:
    """Twin delayed DDPG."""

    config: TD3Config
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
    def actor(self) -> networks.DeterministicActor:
        return networks.DeterministicActor(self.action_size, self.config.hidden_sizes)

    def init(self, key: jax.Array) -> State:
        actor_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, self.observation_size))
        action = jnp.zeros((1, self.action_size))
        actor_params = networks.init(self.actor, actor_key, observation)
        critic_params = networks.init(self.critic, critic_key, observation, action)
        return State(
            actor_params=actor_params,
            actor_optimizer=critics.adam_init(actor_params),
            target_actor_params=jax.tree.map(jnp.copy, actor_params),
            critic_params=critic_params,
            critic_optimizer=critics.adam_init(critic_params),
            target_critic_params=jax.tree.map(jnp.copy, critic_params),
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
        """The actor's action `[B, A]`, plus clipped Gaussian noise to explore."""
        action = networks.apply(self.actor, state.actor_params, observation)
        if mode == "evaluate":
            return action
        noise = state.hyperparameters["action_noise"] * jax.random.normal(key, action.shape)
        return jnp.clip(action + noise, -1.0, 1.0)

    def target_action(self, state: State, next_observation: jax.Array, key: jax.Array) -> jax.Array:
        """Target policy smoothing: the target actor plus clipped noise, clipped to [-1, 1]; `[B, A]` (eq. 14)."""
        hyper = state.hyperparameters
        action = networks.apply(self.actor, state.target_actor_params, next_observation)
        noise = hyper["target_noise"] * jax.random.normal(key, action.shape)
        noise = jnp.clip(noise, -hyper["target_noise_clip"], hyper["target_noise_clip"])
        return jnp.clip(action + noise, -1.0, 1.0)

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics every time; the actor and both targets every `policy_delay` updates (Algorithm 1)."""
        hyper = state.hyperparameters
        next_action = self.target_action(state, batch.next_observation, key)
        next_values = networks.apply(
            self.critic, state.target_critic_params, batch.next_observation, next_action
        )
        target = critics.td_target(batch.reward, batch.discount, next_values)

        def loss_of_critics(params: Any) -> tuple[jax.Array, jax.Array]:
            values = networks.apply(self.critic, params, batch.observation, batch.action)
            return critics.critic_loss(values, target), values

        grads, values = jax.grad(loss_of_critics, has_aux=True)(state.critic_params)
        critic_params, critic_optimizer = critics.adam_step(
            grads, state.critic_optimizer, state.critic_params, hyper["critic_learning_rate"]
        )
        state = state._replace(critic_params=critic_params, critic_optimizer=critic_optimizer)
        metrics = critics.critic_metrics(values, target)

        def delayed(state: State) -> tuple[State, Metrics]:
            return self.update_actor_and_targets(state, batch)

        def wait(state: State) -> tuple[State, dict[str, Mean]]:
            return state, {
                name: critics.skipped() for name in ("actor/loss", "policy/q", "policy/saturation")
            }

        is_due = (step + 1) % self.config.policy_delay == 0
        state, actor_metrics = jax.lax.cond(is_due, delayed, wait, state)
        return state, metrics | actor_metrics

    def update_actor_and_targets(self, state: State, batch: Transition) -> tuple[State, Metrics]:
        """Deterministic policy gradient through the first critic, then Polyak averaging of actor and critics."""
        hyper = state.hyperparameters

        def loss_of_actor(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            action = networks.apply(self.actor, params, batch.observation)
            first = jax.tree.map(lambda leaf: leaf[:1], state.critic_params)
            value = networks.apply(self.first_critic, first, batch.observation, action)
            return -value.mean(), (action, value)

        (loss, (action, value)), grads = jax.value_and_grad(loss_of_actor, has_aux=True)(state.actor_params)
        actor_params, actor_optimizer = critics.adam_step(
            grads, state.actor_optimizer, state.actor_params, hyper["actor_learning_rate"]
        )
        state = state._replace(
            actor_params=actor_params,
            actor_optimizer=actor_optimizer,
            target_actor_params=critics.polyak(state.target_actor_params, actor_params, hyper["target_rate"]),
            target_critic_params=critics.polyak(
                state.target_critic_params, state.critic_params, hyper["target_rate"]
            ),
        )
        return state, {
            "actor/loss": critics.mean(loss),
            "policy/q": critics.mean(value),
            "policy/saturation": critics.mean(jnp.abs(action) > critics.SATURATED),
        }

    @property
    def first_critic(self) -> networks.CriticEnsemble:
        """The critic ensemble's definition cut down to its first member."""
        return dataclasses.replace(self.critic, num_critics=1)
