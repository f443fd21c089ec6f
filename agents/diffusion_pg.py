"""The policy gradient of a diffusion policy, equation 9 of Psenka et al. 2024. Equations: docs/diffusion-pg.md.

A chain is a sequence of Gaussian steps, whose log densities are weighted by the advantage of the action in the end. No
gradient flows through actions or critics.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from etils import epy

from agents.config import FEWEST_STATES, INFINITY, DiffusionConfig, Limits, check_chains
from agents.parts.base import DiffusionBase
from agents.parts.types import Metrics, Mode, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.parts import critic, diffusion, measure, optimizer, score
    from agents.parts.paths import chain


@dataclasses.dataclass(frozen=True)
class DiffusionPGConfig(DiffusionConfig):
    """Policy gradient through the densities of a chain's steps."""

    action_noise: float = 0.1
    """Std of a chain's last step, before its tanh, while exploring and in updates; none in evaluation."""
    sample_clip: float = 3.0
    """Bound of the clean action, before its tanh, that the chain may imply at any step."""
    chains_per_state: int = 8
    """Chains drawn at each of batch_size / chains_per_state states, whose other values are a chain's baseline."""
    inward_gradient: bool = True
    """Where the chain clips a clean action, pass on the gradient that leads back inside; off: none of it."""
    normalize_advantages: bool = False
    """Divide advantages by their standard deviation over the batch."""

    limits: ClassVar[Limits] = DiffusionConfig.limits | {
        "action_noise": (1e-3, INFINITY),
        "sample_clip": (0.1, INFINITY),
        "chains_per_state": (2, 4096),
        "batch_size": (2 * FEWEST_STATES, 2**20),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chains(self)


class State(NamedTuple):
    """Everything it learns."""

    score: optimizer.Learned
    critic: critic.CriticState
    normalizer: Any
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class DiffusionPG(DiffusionBase):
    """Policy gradient through the densities of a chain's steps."""

    config: DiffusionPGConfig

    def init(self, key: jax.Array) -> State:
        score_key, critic_key = jax.random.split(key)
        return State(
            score=self.denoiser.start(score_key),
            critic=self.init_critic(critic_key),
            normalizer=self.init_normalizer(),
            hyperparameters=self.hyperparameters(),
        )

    # ---- The chain ----------------------------------------------------------------------------------------------

    def step_variance(self, hyper: dict[str, jax.Array]) -> jax.Array:
        """v_t `[T, A]`: that of `step_variance`, but action_noise^2 in the last step, so that it is a density too."""
        schedule = self.denoiser.schedule
        variance = schedule.beta if self.config.step_variance == "beta" else schedule.posterior_variance
        variance = jnp.asarray(variance, jnp.float32).at[0].set(jnp.square(hyper["action_noise"]))
        return jnp.broadcast_to(variance[:, None], (schedule.num_levels, self.action_size))

    def states(
        self, params: Any, hyper: dict[str, jax.Array], observation: jax.Array, key: jax.Array
    ) -> jax.Array:
        """u_0, ..., u_T `[T + 1, B, A]` of a chain at each of observations `[B, O]`; the action is tanh(u_0)."""
        predict, variance = self.denoiser.predictor(params, observation), self.step_variance(hyper)
        batch, clip = observation.shape[0], hyper["sample_clip"]
        return chain.states(self.denoiser.schedule, predict, key, batch, variance, clip)

    def log_density(
        self, params: Any, hyper: dict[str, jax.Array], observation: jax.Array, states: jax.Array
    ) -> jax.Array:
        """sum_t log p(u_{t-1} | u_t, s) `[B]` of chains `states`, under the network `params`."""
        predict = self.denoiser.predictor(params, observation)
        predicted = jax.vmap(predict)(jnp.arange(self.denoiser.schedule.num_levels), states[1:])
        clip = diffusion.clip_inward if self.config.inward_gradient else jnp.clip
        variance, bound = self.step_variance(hyper), hyper["sample_clip"]
        return chain.log_density(self.denoiser.schedule, predicted, states, variance, bound, clip)

    # ---- Acting -------------------------------------------------------------------------------------------------

    def sample(self, state: State, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[B, A]` of the chain that is trained; of another sampler with the same noise before the tanh."""
        if self.acting_sampler is None:
            return jnp.tanh(self.states(state.score.params, state.hyperparameters, observation, key)[0])
        sample_key, noise_key = jax.random.split(key)
        unsquashed = self.sample_quietly(state, observation, sample_key)
        noise = jax.random.normal(noise_key, unsquashed.shape)
        return jnp.tanh(unsquashed + state.hyperparameters["action_noise"] * noise)

    def sample_quietly(self, state: State, observation: jax.Array, key: jax.Array) -> jax.Array:
        """u_0 `[B, A]` without noise in the last step, by `acting_sampler` or the whole chain."""
        clip, params = state.hyperparameters["sample_clip"], state.score.params
        return self.denoiser.sample(params, observation, key, self.acting_sampler, clip_clean=clip)

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """The best of N samples, without noise in the last step in evaluation; `[B, A]`."""
        observation = self.normalized(state, observation)
        value = functools.partial(self.critic.reduced_value, state.critic.online.params)
        if mode == "explore":
            sample = functools.partial(self.sample, state, key=key)
            return score.best_of(self.config.explore_samples, sample, value, observation)

        def quiet(observation: jax.Array) -> jax.Array:
            return jnp.tanh(self.sample_quietly(state, observation, key))

        return score.best_of(self.config.eval_samples, quiet, value, observation)

    # ---- Losses -------------------------------------------------------------------------------------------------

    def advantage(self, value: jax.Array) -> jax.Array:
        """Q `[B]` less the mean of the other chains of its state, which stand together; `[B]`."""
        num_chains = self.config.chains_per_state
        values = value.reshape(-1, num_chains)
        others = (values.sum(axis=1, keepdims=True) - values) / (num_chains - 1)
        advantage = (values - others).reshape(-1)
        if self.config.normalize_advantages:
            advantage = advantage / jnp.maximum(advantage.std(), 1e-8)
        return advantage

    def actor_loss(
        self,
        params: Any,
        hyper: dict[str, jax.Array],
        observation: jax.Array,
        states: jax.Array,
        advantage: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """-mean advantage * sum_t log p(u_{t-1} | u_t, s), of chains that were drawn with the same `params`."""
        log_density = self.log_density(params, hyper, observation, states)
        loss = -(advantage * log_density).mean()
        return loss, {
            "actor/loss": measure.mean(loss),
            "actor/log_density": measure.mean(log_density),
            "actor/advantage_std": measure.mean(advantage.std()),
        }

    # ---- Learning -----------------------------------------------------------------------------------------------

    def draw(self, state: State, batch: Transition, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """a' `[B, A]` at s', and observations `[C, O]` with chains `[T + 1, C, A]` to learn from, in one pass."""
        num_samples, num_chains = self.config.target_samples, self.config.chains_per_state
        size = batch.observation.shape[0]
        ahead = jnp.repeat(batch.next_observation, num_samples, axis=0)
        observation = jnp.repeat(batch.observation[: size // num_chains], num_chains, axis=0)
        both = jnp.concatenate([ahead, observation])
        states = self.states(state.score.params, state.hyperparameters, both, key)
        candidates, states = jnp.tanh(states[0, : ahead.shape[0]]), states[:, ahead.shape[0] :]
        value = functools.partial(self.critic.reduced_value, state.critic.target)
        action = score.best_of(num_samples, lambda _: candidates, value, batch.next_observation)
        return action, observation, states

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the score network against the critics just updated, then the target critics."""
        draw_key, spread_key = jax.random.split(key)
        batch, hyper = self.normalized_batch(state, batch), state.hyperparameters

        next_action, observation, states = self.draw(state, batch, draw_key)
        target = self.critic.target(state.critic, batch, next_action)
        critics, next_value, metrics = self.critic.regress(
            state.critic, batch, target, hyper["critic_learning_rate"]
        )

        value = self.critic.reduced_value(critics.online.params, observation, jnp.tanh(states[0]))
        rate = self.denoiser.rate(hyper["score_learning_rate"], step)
        inputs = hyper, observation, states, self.advantage(value)
        learned, actor_metrics = self.denoiser.descend(self.actor_loss, state.score, rate, *inputs)

        sample = functools.partial(self.sample, state, key=spread_key)
        metrics |= actor_metrics | {"policy/q_drawn": measure.mean(value)}
        metrics |= score.policy_metrics(sample, batch.next_observation, next_action, next_value, step)
        critics = self.critic.follow(critics, hyper["target_rate"])
        return State(learned, critics, state.normalizer, hyper), metrics
