"""The chains of a diffusion policy weighted by exp(Q/tau) over their own likelihood, and what is learned of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.parts import measure, score
from agents.parts.optimizer import Learned
from agents.parts.paths import backup, chain, fit, temperature, weights
from agents.parts.paths.options import RATE, Fit
from agents.parts.paths.plain import Drawn, Hyper, PlainChains, Value
from agents.parts.samplers.steps import Sampler
from agents.parts.types import Metrics, Transition


class PathState(NamedTuple):
    """What is learned of chains besides their score network."""

    spread: jax.Array  # [A], running variance of u_0 within a state
    residual: (
        jax.Array
    )  # [T, A], running squared error of the clean action that the network implies, by level
    log_temperature: Learned  # of tau / G; only a tuned temperature reads it


@dataclasses.dataclass(frozen=True)
class WeightedChains(PlainChains):
    """Chains of `denoiser`, `config.chains_per_state` for each of fewer states; those of one state stand together."""

    def start(self) -> PathState:
        """As for a policy of unit spread: variances beta_t, and the clean target's mixture."""
        action_size = self.denoiser.network.action_size
        residual = chain.unit_variance(self.denoiser.schedule, action_size)
        return PathState(jnp.ones(action_size), residual, temperature.start(self.config.inverse_temperature))

    def clean_variance(self, state: PathState, fitted: Fit) -> jax.Array:
        """Variance `[T, A]` of u_0 about the clean action implied at u_t."""
        schedule = self.denoiser.schedule
        if fitted == "unit":
            return chain.unit_variance(schedule, state.spread.shape[0])
        if fitted == "spread":
            return chain.gaussian_variance(schedule, state.spread)
        return state.residual

    def log_temperature(self, state: PathState) -> Learned:
        return state.log_temperature

    def states(self, observation: jax.Array) -> jax.Array:
        """Of observations `[B, O]` the first B/K, each K times."""
        num_chains = self.config.chains_per_state
        return jnp.repeat(observation[: observation.shape[0] // num_chains], num_chains, axis=0)

    def paths(
        self, state: PathState, params: Any, observation: jax.Array, key: jax.Array, hyper: Hyper
    ) -> chain.Path:
        """One chain for each of observations `[B, O]`."""
        schedule = self.denoiser.schedule
        variance = chain.step_variance(schedule, self.clean_variance(state, self.config.step_fit))
        predict = self.denoiser.predictor(params, observation)
        return chain.draw(schedule, predict, key, observation.shape[0], variance, hyper["sample_clip"])

    def sample(
        self,
        state: PathState,
        params: Any,
        observation: jax.Array,
        key: jax.Array,
        hyper: Hyper,
        sampler: Sampler | None = None,
    ) -> jax.Array:
        if sampler is not None or not self.config.act_with_chain:
            return super().sample(state, params, observation, key, hyper, sampler)
        return self.paths(state, params, observation, key, hyper).unsquashed

    def draw(
        self,
        state: PathState,
        params: Any,
        batch: Transition,
        value: Value,
        tau: jax.Array,
        key: jax.Array,
        hyper: Hyper,
    ) -> Drawn:
        draw_key, choice_key = jax.random.split(key)
        num_samples = self.config.target_samples
        ahead = jnp.repeat(batch.next_observation, num_samples, axis=0)
        both = jnp.concatenate([ahead, self.states(batch.observation)])
        paths = self.paths(state, params, both, draw_key, hyper)
        size = ahead.shape[0]
        first = chain.Path(paths.unsquashed[:size], paths.ell[:size])
        values = functools.partial(value, ahead)
        action, bonus = backup.choose(self.config.critic_target, values, first, num_samples, tau, choice_key)
        clean, alike = paths.unsquashed[size:], None
        if self.holds_spread:
            alike = jnp.tanh(clean.reshape(-1, self.config.chains_per_state, clean.shape[-1]))
        return Drawn(action, clean, paths.ell[size:], bonus, alike)

    def target(
        self,
        state: PathState,
        noised: score.Noised,
        gradient: jax.Array,
        ell: jax.Array | None,
        log_density: jax.Array,
        hyper: Hyper,
    ) -> tuple[score.ScoreTarget, Metrics]:
        share = None
        if self.config.target_fit != "unit":
            variance = self.clean_variance(state, self.config.target_fit)
            share = fit.noise_share(self.denoiser.schedule, variance)[noised.level - 1]
        target = score.mixed_target(self.denoiser.schedule, noised, gradient, share)
        if ell is None:
            return target, {}
        ell = ell.reshape(-1, self.config.chains_per_state)
        log_weight = log_density.reshape(ell.shape) + ell
        eta = weights.tempering(log_weight, hyper["tempering_share"])
        metrics = {
            "path/effective_share": measure.mean(weights.effective(log_weight) / ell.shape[1]),
            "path/tempering": measure.mean(eta),
            "path/entropy_per_action": measure.mean(ell / gradient.shape[1]),
            "path/log_normalizer": measure.mean(weights.log_mean(log_weight)),
        }
        return target._replace(weight=weights.even(eta * log_weight).reshape(-1)), metrics

    def follow(
        self,
        state: PathState,
        params: Any,
        observation: jax.Array,
        drawn: Drawn,
        target: score.ScoreTarget,
        measured: Metrics,
        hyper: Hyper,
    ) -> tuple[PathState, Metrics]:
        schedule, rate = self.denoiser.schedule, hyper["fit_rate"]
        spread = fit.spread(drawn.unsquashed, self.config.chains_per_state)
        predicted = self.denoiser.apply(params, observation, target.noised, target.level)
        clean = fit.implied_clean(schedule, target.noised, target.level, predicted, hyper["sample_clip"])
        error = drawn.unsquashed - clean
        residual = fit.follow_residual(state.residual, error, target.level, target.weight, rate)
        learned = state.log_temperature
        if self.config.temperature == "entropy":
            slack = temperature.slack(
                measured["path/entropy_per_action"].total,
                measured["path/effective_share"].total,
                hyper["target_entropy_per_action"],
                hyper["effective_floor"],
            )
            learned = temperature.step(learned, slack, hyper[RATE], spread.shape[0])
        held: Metrics = {}
        if drawn.alike is not None:
            learned, held = temperature.hold_spread(learned, drawn.alike, hyper["target_spread"], hyper[RATE])
        metrics = held | {
            "path/spread": measure.mean(jnp.sqrt(spread)),
            "path/smallest_residual": measure.mean(jnp.sqrt(residual[0])),
        }
        return PathState(fit.follow(state.spread, spread, rate), residual, learned), metrics
