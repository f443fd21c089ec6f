"""Q-score matching as published (Psenka et al. 2024, Algorithm 1). Equations: docs/qsm.md.

A diffusion policy whose score network is regressed onto the critics' action gradient; no gradient flows through the
sampling chain.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.conditions import Conditions, is_on
from agents.config import INFINITY, DiffusionConfig, Limits
from agents.parts.base import DiffusionBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.parts import boltzmann, critic, measure, noise, optimizer, score
    from agents.parts.samplers import steps


@dataclasses.dataclass(frozen=True)
class QSMConfig(DiffusionConfig):
    """Q-score matching as published."""

    score_scale: float = 50.0
    """Scale M_q of the critic's action gradient in the score target (the paper's alpha)."""
    relative_scale: bool = False
    """Count score_scale in running mean sizes of a gradient's component: the same whatever the size of rewards."""
    gradient_size_rate: float = 0.005
    """Rate of the running mean of the action gradient's length, per update."""

    limits: ClassVar[Limits] = DiffusionConfig.limits | {
        "score_scale": (0, INFINITY),
        "gradient_size_rate": (0, 1),
    }
    # No hyperparameter, so that checkpoints from before it are read.
    constants: ClassVar[tuple[str, ...]] = (*DiffusionConfig.constants, "gradient_size_rate")
    conditions: ClassVar[Conditions] = DiffusionConfig.conditions | {
        "gradient_size_rate": is_on("relative_scale")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prediction != "noise":
            # Its target has no part of the noised action, which a velocity would have to take away at every level.
            raise ValueError(
                f"prediction is {self.prediction!r}; the score of published QSM denoises nothing: leave it out"
            )


class State(NamedTuple):
    """Everything QSM learns."""

    score: optimizer.Learned
    critic: critic.CriticState
    gradient_size: Any  # [], running mean of |grad_a Q|, 0 before the first; () unless the scale is relative
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class QSM(DiffusionBase):
    """Q-score matching as published."""

    config: QSMConfig

    def init(self, key: jax.Array) -> State:
        score_key, critic_key = jax.random.split(key)
        return State(
            score=self.denoiser.start(score_key),
            critic=self.init_critic(critic_key),
            gradient_size=jnp.zeros(()) if self.config.relative_scale else (),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    # ---- Acting -------------------------------------------------------------------------------------------------

    def sample(
        self, params: Any, observation: jax.Array, key: jax.Array, sampler: steps.Sampler | None = None
    ) -> jax.Array:
        """Actions `[B, A]` by reverse diffusion, clipped to [-1, 1] at every step."""
        return self.denoiser.sample(params, observation, key, sampler, clip=1.0)

    def best_action(
        self,
        state: State,
        critic_params: Any,
        observation: jax.Array,
        key: jax.Array,
        num_samples: int,
        sampler: steps.Sampler | None = None,
    ) -> jax.Array:
        """Of `num_samples` samples at each state that with the largest min_i Q_i, `[B, A]`."""
        sample = functools.partial(self.sample, state.score.params, key=key, sampler=sampler)
        value = functools.partial(self.critic.reduced_value, critic_params)
        return score.best_of(num_samples, sample, value, observation)

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """The best of N samples, with action noise to explore; `[B, A]`."""
        sample_key, noise_key = jax.random.split(key)
        observation, critic_params = self.normalized(state, observation), state.critic.online.params
        num_samples = self.config.eval_samples if mode == "evaluate" else self.config.explore_samples
        action = self.best_action(
            state, critic_params, observation, sample_key, num_samples, self.acting_sampler
        )
        if mode == "evaluate":
            return action
        return noise.perturb(action, state.hyperparameters["action_noise"], noise_key)

    # ---- Losses -------------------------------------------------------------------------------------------------

    def target_action(self, state: State, next_observation: jax.Array, key: jax.Array) -> jax.Array:
        """a' ~ pi(.|s') plus N(0, action_noise^2), clipped to [-1, 1]; `[B, A]`."""
        sample_key, noise_key = jax.random.split(key)
        action = self.best_action(
            state, state.critic.target, next_observation, sample_key, self.config.target_samples
        )
        return noise.perturb(action, state.hyperparameters["action_noise"], noise_key)

    def score_target(
        self,
        critic_params: Any,
        hyper: dict[str, jax.Array],
        batch: Transition,
        key: jax.Array,
        gradient_size: Any = (),
    ) -> tuple[score.ScoreTarget, Any, Metrics]:
        """eps*(s, a_t, t) = -M_q mean_i grad_a Q_i(s, a_t), at replay actions noised to uniform levels.

        Returns:
          The target, the new `gradient_size`, and metrics.
        """
        noised = self.denoiser.add_noise(batch.action, key)
        _, gradient = self.critic.action_gradient(critic_params, batch.observation, noised.action)
        scale, gradient_size = self.scale(hyper, gradient, gradient_size)
        scaled = scale * gradient
        metrics = {
            "score/action_gradient_norm": measure.mean(jnp.linalg.norm(gradient, axis=-1)),
            "score/scaled_gradient_norm": measure.mean(jnp.linalg.norm(scaled, axis=-1)),
        }
        target = score.ScoreTarget(noised.action, noised.level, jax.lax.stop_gradient(-scaled))
        return target, gradient_size, metrics

    def scale(
        self, hyper: dict[str, jax.Array], gradient: jax.Array, gradient_size: Any
    ) -> tuple[jax.Array, Any]:
        """What multiplies `gradient` `[B, A]`, and the new `gradient_size` G.

        M_q, or M_q sqrt(A) / G where the scale is relative: M_q is then the size of a component of the target.
        """
        if not self.config.relative_scale:
            return hyper["score_scale"], ()
        _, size = boltzmann.follow_size(gradient_size, gradient, self.config.gradient_size_rate)
        return hyper["score_scale"] * jnp.sqrt(gradient.shape[-1]) / jnp.maximum(size, 1e-8), size

    # ---- Learning -----------------------------------------------------------------------------------------------

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the score network against the critics just updated, then the target critics."""
        action_key, score_key, spread_key = jax.random.split(key, 3)
        batch = self.normalized_batch(state, batch)
        hyper = state.hyperparameters

        next_action = self.target_action(state, batch.next_observation, action_key)
        target = self.critic.target(state.critic, batch, next_action)
        critics, next_value, metrics = self.critic.regress(
            state.critic, batch, target, hyper["critic_learning_rate"]
        )

        score_target, gradient_size, target_metrics = self.score_target(
            critics.online.params, hyper, batch, score_key, state.gradient_size
        )
        learned, score_metrics = self.denoiser.regress(
            state.score, batch.observation, score_target, hyper["score_learning_rate"], step
        )

        sampler = self.acting_sampler
        sample = functools.partial(self.sample, state.score.params, key=spread_key, sampler=sampler)
        metrics |= target_metrics | score_metrics
        metrics |= score.policy_metrics(sample, batch.next_observation, next_action, next_value, step)
        critics = self.critic.follow(critics, hyper["target_rate"])
        return State(learned, critics, gradient_size, state.normalizer, hyper), metrics
