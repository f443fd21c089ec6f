"""Clean-gradient Q-score matching: `exp(Q/tau)` is a fixed point of its score target. Equations: docs/qsm-clean.md.

Diffusion lives before a tanh, a = tanh(u); u_0 is drawn from a slow average of the policy itself, and the critics'
gradient is taken at these clean actions only.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.config import INFINITY, DiffusionConfig, Limits
from agents.parts.base import AgentBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp
    import numpy as np

    from agents.parts import critic, diffusion, measure, noise, optimizer, score


@dataclasses.dataclass(frozen=True)
class CleanQSMConfig(DiffusionConfig):
    """Q-score matching on the exact score target."""

    denoising_steps: int = 10
    critic_layer_norm: bool = True
    action_noise: float = 0.0
    inverse_temperature: float = 10.0
    """Size of the critic's action gradient in the score target, after it is scaled to mean length one."""
    gradient_size_rate: float = 0.005
    """Rate of the running mean that the action gradient is scaled by, per update."""
    draw_rate: float = 0.005
    """Polyak rate of the slow score network that actions are drawn from, per update."""
    sample_clip: float = 3.0
    """Bound of the clean action, before its tanh, that the sampler may imply at any step."""
    act_with_average: bool = True
    """Act with the slow score network instead of the latest one."""

    limits: ClassVar[Limits] = DiffusionConfig.limits | {
        "inverse_temperature": (0, INFINITY),
        "gradient_size_rate": (0, 1),
        "draw_rate": (0, 1),
        "sample_clip": (0.1, INFINITY),
    }


class State(NamedTuple):
    """Everything clean-gradient QSM learns."""

    score: optimizer.Learned
    average: Any  # parameters of the slow score network
    critic: critic.CriticState
    gradient_size: jax.Array  # [], running mean of |grad_a Q|; 0 before the first update
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class CleanQSM(AgentBase):
    """Clean-gradient Q-score matching."""

    config: CleanQSMConfig

    @property
    def denoiser(self) -> score.Denoiser:
        return score.denoiser(self.config, self.observation_size, self.action_size)

    def init(self, key: jax.Array) -> State:
        score_key, critic_key = jax.random.split(key)
        learned = self.denoiser.start(score_key)
        return State(
            score=learned,
            average=jax.tree.map(jnp.copy, learned.params),
            critic=self.init_critic(critic_key),
            gradient_size=jnp.zeros(()),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    # ---- Acting -------------------------------------------------------------------------------------------------

    def sample_unsquashed(
        self, state: State, params: Any, observation: jax.Array, key: jax.Array
    ) -> jax.Array:
        """u_0 `[B, A]` by reverse diffusion, the clean action implied at each step clipped to `sample_clip`."""
        clip = state.hyperparameters["sample_clip"]
        return self.denoiser.sample(params, observation, key, clip_clean=clip)

    def sample(self, state: State, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[B, A]` of the network that acts."""
        params = state.average if self.config.act_with_average else state.score.params
        return jnp.tanh(self.sample_unsquashed(state, params, observation, key))

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """The best of N samples, with action noise to explore; `[B, A]`."""
        sample_key, noise_key = jax.random.split(key)
        sample = functools.partial(self.sample, state, key=sample_key)
        value = functools.partial(self.critic.smallest_value, state.critic.online.params)
        observation = self.normalized(state, observation)
        if mode == "evaluate":
            return score.best_of(self.config.eval_samples, sample, value, observation)
        action = score.best_of(self.config.explore_samples, sample, value, observation)
        return noise.perturb(action, state.hyperparameters["action_noise"], noise_key)

    # ---- Losses -------------------------------------------------------------------------------------------------

    def draw(self, state: State, batch: Transition, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """a' at s' for the critic target and u_0 at s for the score target, `[B, A]`, in one pass of the sampler."""
        sample_key, noise_key = jax.random.split(key)
        size, num_samples = batch.observation.shape[0], self.config.target_samples
        repeated = jnp.repeat(batch.next_observation, num_samples, axis=0)
        both = jnp.concatenate([repeated, batch.observation])
        unsquashed = self.sample_unsquashed(state, state.average, both, sample_key)
        candidates, clean = jnp.split(unsquashed, [size * num_samples])

        value = functools.partial(self.critic.smallest_value, state.critic.target)
        action = score.best_of(num_samples, lambda _: jnp.tanh(candidates), value, batch.next_observation)
        return noise.perturb(action, state.hyperparameters["action_noise"], noise_key), clean

    def gradient_size(self, state: State, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean length of `gradient` `[B, A]`, and the running mean with it."""
        size = jnp.linalg.norm(gradient, axis=-1).mean()
        rate, before = state.hyperparameters["gradient_size_rate"], state.gradient_size
        return size, jnp.where(before > 0, before + rate * (size - before), size)

    def score_target(
        self, state: State, critic_params: Any, observation: jax.Array, clean: jax.Array, key: jax.Array
    ) -> tuple[score.ScoreTarget, jax.Array, Metrics]:
        """eps* = sigma_t^2 eps - sigma_t sqrt(abar_t) grad_u, at drawn u_0 (`clean` `[B, A]`).

        grad_u = (1 - tanh(u)^2) grad_a Q / tau - 2 tanh(u), where tau = gradient_size / inverse_temperature; only
        grad_a Q is scaled by its running size, never the term that comes from the tanh's Jacobian.

        Returns:
          The target, the new `gradient_size`, and metrics.
        """
        schedule = self.denoiser.schedule
        noised = self.denoiser.add_noise(clean, key)
        squashed = jnp.tanh(clean)
        value, gradient = self.critic.action_gradient(critic_params, observation, squashed)
        size, gradient_size = self.gradient_size(state, gradient)
        temperature = jnp.maximum(gradient_size, 1e-8) / state.hyperparameters["inverse_temperature"]
        gradient_u = (1 - jnp.square(squashed)) * gradient / temperature - 2 * squashed

        sigma = diffusion.per_level(schedule.sigma, noised.level)
        root_abar = diffusion.per_level(np.sqrt(schedule.abar), noised.level)
        target = jnp.square(sigma) * noised.noise - sigma * root_abar * gradient_u
        metrics = {
            "score/action_gradient_norm": measure.mean(size),
            "score/scaled_gradient_norm": measure.mean(size / temperature),
            "score/temperature": measure.mean(temperature),
            "policy/q_drawn": measure.mean(value),
        }
        target = score.ScoreTarget(noised.action, noised.level, jax.lax.stop_gradient(target))
        return target, gradient_size, metrics

    # ---- Learning -----------------------------------------------------------------------------------------------

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the score network against the critics just updated, then the slow copies."""
        draw_key, score_key, spread_key = jax.random.split(key, 3)
        batch = self.normalized_batch(state, batch)
        hyper = state.hyperparameters

        next_action, clean = self.draw(state, batch, draw_key)
        target = self.critic.target(state.critic, batch, next_action)
        critics, next_value, metrics = self.critic.regress(
            state.critic, batch, target, hyper["critic_learning_rate"]
        )

        score_target, gradient_size, target_metrics = self.score_target(
            state, critics.online.params, batch.observation, clean, score_key
        )
        learned, score_metrics = self.denoiser.regress(
            state.score, batch.observation, score_target, hyper["score_learning_rate"], step
        )

        sample = functools.partial(self.sample, state, key=spread_key)
        metrics |= target_metrics | score_metrics
        metrics |= score.policy_metrics(sample, batch.next_observation, next_action, next_value, step)
        average = optimizer.polyak(state.average, learned.params, hyper["draw_rate"])
        critics = self.critic.follow(critics, hyper["target_rate"])
        return State(learned, average, critics, gradient_size, state.normalizer, hyper), metrics
