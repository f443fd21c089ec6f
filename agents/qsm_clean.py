"""Clean-gradient Q-score matching: `exp(Q/tau)` is a fixed point of its score target. Equations: docs/qsm-clean.md.

Diffusion lives before a tanh, a = tanh(u); u_0 is drawn from a slow average of the policy itself, and the critics'
gradient is taken at these clean actions only.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.conditions import Conditions, other_than
from agents.config import Limits
from agents.parts.base import DiffusionBase
from agents.parts.paths.options import PathConfig
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.parts import boltzmann, critic, measure, noise, optimizer, score
    from agents.parts.paths import kinds, plain


@dataclasses.dataclass(frozen=True)
class CleanQSMConfig(PathConfig):
    """Q-score matching on the exact score target."""

    denoising_steps: int = 10
    critic_layer_norm: bool = True
    action_noise: float = 0.0
    gradient_size_rate: float = 0.005
    """Rate of the running mean that the action gradient is scaled by, per update."""
    draw_rate: float = 0.005
    """Polyak rate of the slow score network that actions are drawn from, per update."""
    act_with_average: bool = True
    """Act with the slow score network instead of the latest one."""

    limits: ClassVar[Limits] = PathConfig.limits | {
        "gradient_size_rate": (0, 1),
        "draw_rate": (0, 1),
    }
    conditions: ClassVar[Conditions] = PathConfig.conditions | {
        "gradient_size_rate": other_than("temperature", "fixed")
    }


class State(NamedTuple):
    """Everything clean-gradient QSM learns."""

    score: optimizer.Learned
    average: Any  # parameters of the slow score network
    critic: critic.CriticState
    gradient_size: jax.Array  # [], running mean of |grad_a Q|; 0 before the first update
    paths: Any  # what `chains` keeps; () where they learn nothing
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class CleanQSM(DiffusionBase):
    """Clean-gradient Q-score matching."""

    config: CleanQSMConfig

    @property
    def chains(self) -> plain.PlainChains:
        """How chains are drawn and what they weigh."""
        return kinds.chains_of(self.config, self.denoiser)

    def init(self, key: jax.Array) -> State:
        score_key, critic_key = jax.random.split(key)
        learned = self.denoiser.start(score_key)
        return State(
            score=learned,
            average=jax.tree.map(jnp.copy, learned.params),
            critic=self.init_critic(critic_key),
            gradient_size=jnp.zeros(()),
            paths=self.chains.start(),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    # ---- Acting -------------------------------------------------------------------------------------------------

    def sample_unsquashed(
        self, state: State, params: Any, observation: jax.Array, key: jax.Array
    ) -> jax.Array:
        """u_0 `[B, A]` by reverse diffusion, the clean action implied at each step clipped to `sample_clip`."""
        hyper, sampler = state.hyperparameters, self.acting_sampler
        return self.chains.sample(state.paths, params, observation, key, hyper, sampler)

    def sample(self, state: State, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[B, A]` of the network that acts."""
        params = state.average if self.config.act_with_average else state.score.params
        return jnp.tanh(self.sample_unsquashed(state, params, observation, key))

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """The best of N samples, with action noise to explore; `[B, A]`."""
        sample_key, noise_key = jax.random.split(key)
        sample = functools.partial(self.sample, state, key=sample_key)
        value = functools.partial(self.critic.reduced_value, state.critic.online.params)
        observation = self.normalized(state, observation)
        if mode == "evaluate":
            return score.best_of(self.config.eval_samples, sample, value, observation)
        action = score.best_of(self.config.explore_samples, sample, value, observation)
        return noise.perturb(action, state.hyperparameters["action_noise"], noise_key)

    # ---- Losses -------------------------------------------------------------------------------------------------

    def draw(self, state: State, batch: Transition, key: jax.Array) -> plain.Drawn:
        """a' at s' for the critic target and u_0 at s for the score target, `[B, A]`, in one pass of the sampler."""
        sample_key, noise_key = jax.random.split(key)
        hyper, temperature = state.hyperparameters, self.temperature(state, state.gradient_size)
        value = functools.partial(self.critic.reduced_value, state.critic.target)
        drawn = self.chains.draw(state.paths, state.average, batch, value, temperature, sample_key, hyper)
        return drawn._replace(action=noise.perturb(drawn.action, hyper["action_noise"], noise_key))

    def gradient_size(self, state: State, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean length of `gradient` `[B, A]`, and the running mean with it, which a fixed tau does without."""
        if self.config.temperature == "fixed":
            return boltzmann.size(gradient), state.gradient_size
        rate = state.hyperparameters["gradient_size_rate"]
        return boltzmann.follow_size(state.gradient_size, gradient, rate)

    def temperature(self, state: State, gradient_size: jax.Array) -> jax.Array:
        """tau = gradient_size / inverse_temperature, unless it is fixed or tuned."""
        return self.chains.temperature(state.paths, jnp.maximum(gradient_size, 1e-8), state.hyperparameters)

    def score_target(
        self,
        state: State,
        critic_params: Any,
        observation: jax.Array,
        clean: jax.Array,
        key: jax.Array,
        ell: jax.Array | None = None,
    ) -> tuple[score.ScoreTarget, jax.Array, Metrics]:
        """eps* = sigma_t^2 eps - sigma_t sqrt(abar_t) grad_u, at drawn u_0 (`clean` `[B, A]`).

        grad_u = (1 - tanh(u)^2) grad_a Q / tau - 2 tanh(u), where tau = gradient_size / inverse_temperature; only
        grad_a Q is scaled by its running size, never the term that comes from the tanh's Jacobian. Fitted and weighted
        chains (these of `ell` `[B]`) may be tuned to another tau, and mix eps and grad_u in another proportion.

        Returns:
          The target, the new `gradient_size`, and metrics.
        """
        noised = self.denoiser.add_noise(clean, key)
        squashed = jnp.tanh(clean)
        value, gradient = self.critic.action_gradient(critic_params, observation, squashed)
        size, gradient_size = self.gradient_size(state, gradient)
        tau = self.temperature(state, gradient_size)
        of_density = boltzmann.score(squashed, gradient, tau)
        hyper = state.hyperparameters
        target, metrics = self.chains.target(state.paths, noised, of_density, ell, value / tau, hyper)
        metrics |= {
            "score/action_gradient_norm": measure.mean(size),
            "score/scaled_gradient_norm": measure.mean(size / tau),
            "score/temperature": measure.mean(tau),
            "policy/q_drawn": measure.mean(value),
        }
        return target, gradient_size, metrics

    # ---- Learning -----------------------------------------------------------------------------------------------

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the score network against the critics just updated, then the slow copies."""
        draw_key, score_key, spread_key = jax.random.split(key, 3)
        batch = self.normalized_batch(state, batch)
        hyper = state.hyperparameters

        drawn = self.draw(state, batch, draw_key)
        target = self.critic.target(state.critic, batch, drawn.action, drawn.bonus)
        critics, next_value, metrics = self.critic.regress(
            state.critic, batch, target, hyper["critic_learning_rate"]
        )

        observation = self.chains.states(batch.observation)
        score_target, gradient_size, target_metrics = self.score_target(
            state, critics.online.params, observation, drawn.unsquashed, score_key, drawn.ell
        )
        learned, score_metrics = self.denoiser.regress(
            state.score, observation, score_target, hyper["score_learning_rate"], step
        )
        metrics |= target_metrics | score_metrics
        paths, path_metrics = self.chains.follow(
            state.paths, state.average, observation, drawn, score_target, target_metrics, hyper
        )

        sample = functools.partial(self.sample, state, key=spread_key)
        metrics |= path_metrics
        metrics |= score.policy_metrics(sample, batch.next_observation, drawn.action, next_value, step)
        average = optimizer.polyak(state.average, learned.params, hyper["draw_rate"])
        critics = self.critic.follow(critics, hyper["target_rate"])
        return State(learned, average, critics, gradient_size, paths, state.normalizer, hyper), metrics
