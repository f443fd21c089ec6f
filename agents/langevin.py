"""Langevin dynamics on Q in place of a policy network. Equations: docs/langevin.md.

An action is drawn by following the critics' gradient, with noise, at the time it is needed: exp(Q/tau) as an energy.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple

from etils import epy

from agents.conditions import Conditions, left_out, never, other_than
from agents.config import INFINITY, AgentConfig, Limits
from agents.parts.base import AgentBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.parts import boltzmann, critic, measure, score

NO_ACTOR = never("its actions come from the critics, without an actor network")


@dataclasses.dataclass(frozen=True)
class LangevinConfig(AgentConfig):
    """Langevin dynamics on Q."""

    critic_layer_norm: bool = True
    langevin_steps: int = 20
    """Steps to an action; each takes one gradient of the critics."""
    first_step_size: float = 0.1
    """Size eta of the first step, before the tanh: half of it times the gradient, and noise of variance eta."""
    last_step_size: float = 0.01
    """Size of the last step; those between fall by the same factor each."""
    target_start: Literal["noise", "replay"] = "noise"
    """Where the steps to an action of a critic target begin: standard noise, or the action replayed with the state."""
    inverse_temperature: float = 10.0
    """Size of the critic's action gradient that is followed, after it is scaled to mean length one."""
    gradient_size_rate: float = 0.005
    """Rate of the running mean that the action gradient is scaled by, per update."""
    sample_clip: float = 3.0
    """Bound of the action, before its tanh, after every step."""
    explore_samples: int = 1
    """Actions drawn while exploring, of which the one with the largest smaller-critic value is taken."""
    target_samples: int = 1
    """Actions drawn for a critic target, of which the one with the largest smaller-target-critic value is taken."""
    eval_samples: int = 1
    """Actions drawn in evaluation, of which the one with the largest smaller-critic value is taken."""

    limits: ClassVar[Limits] = AgentConfig.limits | {
        "langevin_steps": (1, 10_000),
        "first_step_size": (1e-8, 100),
        "last_step_size": (1e-8, 100),
        "inverse_temperature": (0, INFINITY),
        "gradient_size_rate": (0, 1),
        "sample_clip": (0.1, INFINITY),
        "explore_samples": (1, 4096),
        "target_samples": (1, 4096),
        "eval_samples": (1, 4096),
    }
    conditions: ClassVar[Conditions] = AgentConfig.conditions | {
        "hidden_sizes": left_out("critic_hidden_sizes"),
        "weight_decay": other_than("critic_torso", "simbav2"),
        "actor_torso": NO_ACTOR,
        "actor_hidden_sizes": NO_ACTOR,
    }


class State(NamedTuple):
    """Everything it learns: critics."""

    critic: critic.CriticState
    gradient_size: jax.Array  # [], running mean of |grad_a Q|; 0 before the first update
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Langevin(AgentBase):
    """Langevin dynamics on Q."""

    config: LangevinConfig

    def init(self, key: jax.Array) -> State:
        return State(
            critic=self.init_critic(key),
            gradient_size=jnp.zeros(()),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    # ---- Acting -------------------------------------------------------------------------------------------------

    def temperature(self, state: State) -> jax.Array:
        """tau = gradient_size / inverse_temperature; infinite before the first update, when nothing is known of Q."""
        tau = jnp.maximum(state.gradient_size, 1e-8) / state.hyperparameters["inverse_temperature"]
        return jnp.where(state.gradient_size > 0, tau, jnp.inf)

    def sample(
        self,
        state: State,
        critic_params: Any,
        observation: jax.Array,
        key: jax.Array,
        start: jax.Array | None = None,
    ) -> jax.Array:
        """Actions `[B, A]` by Langevin dynamics on mean_i Q_i / tau, before a tanh.

        Args:
          start: actions `[B, A]` to begin with; standard noise before the tanh if None.
        """
        hyper, tau = state.hyperparameters, self.temperature(state)
        start_key, step_key = jax.random.split(key)
        if start is None:
            unsquashed = jax.random.normal(start_key, (observation.shape[0], self.action_size))
        else:
            bound = jnp.tanh(hyper["sample_clip"])
            unsquashed = jnp.arctanh(jnp.clip(start, -bound, bound))

        def score_at(unsquashed: jax.Array) -> jax.Array:
            squashed = jnp.tanh(unsquashed)
            _, gradient = self.critic.action_gradient(critic_params, observation, squashed)
            return boltzmann.score(squashed, gradient, tau).total

        sizes = boltzmann.step_sizes(
            hyper["first_step_size"], hyper["last_step_size"], self.config.langevin_steps
        )
        return jnp.tanh(boltzmann.langevin(score_at, unsquashed, step_key, sizes, hyper["sample_clip"]))

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """The best of N draws; `[B, A]`."""
        params = state.critic.online.params
        sample = functools.partial(self.sample, state, params, key=key)
        value = functools.partial(self.critic.reduced_value, params)
        num_samples = self.config.eval_samples if mode == "evaluate" else self.config.explore_samples
        return score.best_of(num_samples, sample, value, self.normalized(state, observation))

    # ---- Learning -----------------------------------------------------------------------------------------------

    def target_action(self, state: State, batch: Transition, key: jax.Array) -> jax.Array:
        """a' `[B, A]` at s', by the gradient of the target critics."""
        num_samples = self.config.target_samples
        start = None
        if self.config.target_start == "replay":
            start = jnp.repeat(batch.action, num_samples, axis=0)
        sample = functools.partial(self.sample, state, state.critic.target, key=key, start=start)
        value = functools.partial(self.critic.reduced_value, state.critic.target)
        return score.best_of(num_samples, sample, value, batch.next_observation)

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the size of their gradient, then the target critics."""
        target_key, spread_key = jax.random.split(key)
        batch = self.normalized_batch(state, batch)
        hyper = state.hyperparameters

        next_action = self.target_action(state, batch, target_key)
        target = self.critic.target(state.critic, batch, next_action)
        critics, next_value, metrics = self.critic.regress(
            state.critic, batch, target, hyper["critic_learning_rate"]
        )

        value, gradient = self.critic.action_gradient(
            critics.online.params, batch.next_observation, next_action
        )
        rate = hyper["gradient_size_rate"]
        size, gradient_size = boltzmann.follow_size(state.gradient_size, gradient, rate)

        critics = self.critic.follow(critics, hyper["target_rate"])
        new_state = State(critics, gradient_size, state.normalizer, hyper)
        sample = functools.partial(self.sample, state, state.critic.online.params, key=spread_key)
        tau = self.temperature(new_state)
        metrics |= {
            "score/action_gradient_norm": measure.mean(size),
            "score/scaled_gradient_norm": measure.mean(size / tau),
            "score/temperature": measure.mean(tau),
            "policy/q_drawn": measure.mean(value),
        }
        metrics |= score.policy_metrics(sample, batch.next_observation, next_action, next_value, step)
        return new_state, metrics
