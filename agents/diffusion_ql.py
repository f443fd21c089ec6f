"""Diffusion-QL, trained online (Wang et al. 2022, 2208.06193). Equations: docs/diffusion-ql.md.

The gradient of Q flows through the whole sampling chain; behavior cloning of replay actions is an option.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal, NamedTuple

from etils import epy

from agents.conditions import Conditions, above
from agents.config import INFINITY, DiffusionConfig, Limits
from agents.parts.base import DiffusionBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.parts import critic, diffusion, measure, noise, optimizer, score
    from agents.parts.samplers import steps


@dataclasses.dataclass(frozen=True)
class DiffusionQLConfig(DiffusionConfig):
    """Diffusion-QL, trained online."""

    step_variance: Literal["beta", "posterior"] = "posterior"
    """Variance of a reverse step: beta_t, or the smaller posterior variance."""
    eta: float = 1.0
    """Weight of the normalized Q of drawn actions in the actor's loss."""
    bc_weight: float = 0.0
    """Weight of the denoising loss on replay actions (behavior cloning); 0: none, as online training has it."""
    draw_rate: float = 0.005
    """Polyak rate of the slow score network that critic targets are drawn from, per update."""
    action_noise: float = 0.1
    """Std of Gaussian noise added to actions while exploring."""
    inward_gradient: bool = True
    """Where the chain clips a clean action, pass on the gradient that leads back into the box; off: none of it."""
    choice: Literal["softmax", "best"] = "softmax"
    """Which of several samples acts: one drawn by the softmax of their values, or the one of the largest value."""
    explore_samples: int = 50
    """Actions sampled while exploring, of which one is taken by the smaller target critic's value."""
    target_samples: int = 1
    """Actions sampled for a critic target, of which the one with the largest smaller-target-critic value is taken."""
    eval_samples: int = 50
    """Actions sampled in evaluation, of which one is taken by the smaller target critic's value."""

    limits: ClassVar[Limits] = DiffusionConfig.limits | {
        "eta": (0, INFINITY),
        "bc_weight": (0, INFINITY),
        "draw_rate": (0, 1),
    }
    conditions: ClassVar[Conditions] = DiffusionConfig.conditions | {
        "choice": above("explore_samples", 1) | above("eval_samples", 1)
    }


class State(NamedTuple):
    """Everything Diffusion-QL learns."""

    score: optimizer.Learned
    average: Any  # parameters of the slow score network
    critic: critic.CriticState
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class DiffusionQL(DiffusionBase):
    """Diffusion-QL, trained online."""

    config: DiffusionQLConfig

    def init(self, key: jax.Array) -> State:
        score_key, critic_key = jax.random.split(key)
        learned = self.denoiser.start(score_key)
        return State(
            score=learned,
            average=jax.tree.map(jnp.copy, learned.params),
            critic=self.init_critic(critic_key),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    # ---- Acting -------------------------------------------------------------------------------------------------

    def sample(
        self, params: Any, observation: jax.Array, key: jax.Array, sampler: steps.Sampler | None = None
    ) -> jax.Array:
        """Actions `[B, A]` by reverse diffusion, the clean action implied at each step clipped to [-1, 1]."""
        clip = diffusion.clip_inward if self.config.inward_gradient else jnp.clip
        return self.denoiser.sample(params, observation, key, sampler, clip_clean=1.0, clip_clean_with=clip)

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """One of N samples, by the target critics, with action noise to explore; `[B, A]`."""
        sample_key, choice_key, noise_key = jax.random.split(key, 3)
        num_samples = self.config.eval_samples if mode == "evaluate" else self.config.explore_samples
        chosen_by = choice_key if self.config.choice == "softmax" else None
        sampler = self.acting_sampler
        sample = functools.partial(self.sample, state.score.params, key=sample_key, sampler=sampler)
        value = functools.partial(self.critic.reduced_value, state.critic.target)
        observation = self.normalized(state, observation)
        action = score.best_of(num_samples, sample, value, observation, chosen_by)
        if mode == "evaluate":
            return action
        return noise.perturb(action, state.hyperparameters["action_noise"], noise_key)

    # ---- Losses -------------------------------------------------------------------------------------------------

    def target_action(self, state: State, next_observation: jax.Array, key: jax.Array) -> jax.Array:
        """a' ~ pi'(.|s') of the slow score network, `[B, A]`."""
        sample = functools.partial(self.sample, state.average, key=key)
        value = functools.partial(self.critic.reduced_value, state.critic.target)
        return score.best_of(self.config.target_samples, sample, value, next_observation)

    def normalized_value(
        self, critic_params: Any, observation: jax.Array, action: jax.Array, member: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """mean Q_i / mean |Q_j| `[]` of a `member` i `[]` and the next one, j; no gradient flows into |Q_j|.

        Returns:
          It, and Q_i `[B]`.
        """
        values = self.critic.value(critic_params, observation, action)
        value, other = values[member], values[(member + 1) % values.shape[0]]
        size = jax.lax.stop_gradient(jnp.abs(other).mean())
        return value.mean() / jnp.maximum(size, 1e-8), value

    def actor_loss(
        self, params: Any, critic_params: Any, hyper: dict[str, jax.Array], batch: Transition, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """-eta mean Q_i(s, a_0(theta)) / mean |Q_j(s, a_0)| + bc_weight * mean |eps_theta(s, a_t, t) - eps|^2.

        The last term is an error of velocities where these are predicted.
        """
        sample_key, member_key, noise_key = jax.random.split(key, 3)
        action = self.sample(params, batch.observation, sample_key)
        member = jax.random.randint(member_key, (), 0, self.config.num_critics)
        normalized, value = self.normalized_value(critic_params, batch.observation, action, member)
        noised = self.denoiser.add_noise(batch.action, noise_key)
        cloning, metrics = self.denoiser.loss(params, batch.observation, score.ScoreTarget(*noised))
        loss = hyper["bc_weight"] * cloning - hyper["eta"] * normalized
        metrics |= {
            "actor/loss": measure.mean(loss),
            "actor/normalized_q": measure.mean(normalized),
            "policy/q_drawn": measure.mean(value),
        }
        return loss, metrics

    # ---- Learning -----------------------------------------------------------------------------------------------

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the score network against the critics just updated, then the slow copies."""
        target_key, actor_key, spread_key = jax.random.split(key, 3)
        batch = self.normalized_batch(state, batch)
        hyper = state.hyperparameters

        next_action = self.target_action(state, batch.next_observation, target_key)
        target = self.critic.target(state.critic, batch, next_action)
        critics, next_value, metrics = self.critic.regress(
            state.critic, batch, target, hyper["critic_learning_rate"]
        )

        learned, actor_metrics = self.denoiser.descend(
            self.actor_loss,
            state.score,
            self.denoiser.rate(hyper["score_learning_rate"], step),
            critics.online.params,
            hyper,
            batch,
            actor_key,
        )

        sampler = self.acting_sampler
        sample = functools.partial(self.sample, state.score.params, key=spread_key, sampler=sampler)
        metrics |= actor_metrics
        metrics |= score.policy_metrics(sample, batch.next_observation, next_action, next_value, step)
        average = optimizer.polyak(state.average, learned.params, hyper["draw_rate"])
        critics = self.critic.follow(critics, hyper["target_rate"])
        return State(learned, average, critics, state.normalizer, hyper), metrics
