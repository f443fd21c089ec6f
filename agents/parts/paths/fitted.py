"""The chains of a diffusion policy with variances that are fitted to it, and a score target that is stable with them.

The clean target moves the action that a noised one implies by sigma_t^2 times the density's gradient, which for a mode
of std s is sigma_t^2 / s^2 times the distance to it. Where that is far above one the policy is thrown from one bound to
the other, whatever the density. With the variance c_t that the policy leaves open at u_t in the place of sigma_t^2 the
step is at most the distance, once the policy is as narrow as the density; until then `drift_limit` holds it.
Equations: docs/qsm-clean.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.parts import boltzmann, measure, score
from agents.parts.optimizer import Learned
from agents.parts.paths import chain, fit, temperature
from agents.parts.paths.options import RATE, TUNED, Fit
from agents.parts.paths.plain import Drawn, Hyper, PlainChains
from agents.parts.samplers.steps import Sampler
from agents.parts.types import Metrics


class PathState(NamedTuple):
    """What is learned of chains besides their score network."""

    spread: Any  # [A], running variance of u_0 within a state; () where chains are not weighted
    residual: (
        jax.Array
    )  # [T, A], running squared error of the clean action that the network implies, by level
    log_temperature: Learned  # of tau / G; only a tuned temperature reads it


@dataclasses.dataclass(frozen=True)
class FittedChains(PlainChains):
    """Chains of `denoiser`, one for each state."""

    def start(self) -> PathState:
        """As for a policy of unit spread: variances beta_t, and the clean target's mixture."""
        residual = fit.unit_variance(self.denoiser.schedule, self.denoiser.network.action_size)
        return PathState((), residual, temperature.start(self.config.inverse_temperature))

    def temperature(self, state: PathState, gradient_size: jax.Array, hyper: Hyper) -> jax.Array:
        if self.config.temperature not in TUNED:
            return super().temperature(state, gradient_size, hyper)
        return gradient_size * jnp.exp(state.log_temperature.params)  # scales as Q does

    def clean_variance(self, state: PathState, fitted: Fit) -> jax.Array:
        """Variance `[T, A]` of u_0 about the clean action implied at u_t."""
        if fitted == "unit":
            return fit.unit_variance(self.denoiser.schedule, state.residual.shape[1])
        return state.residual

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

    def sample_to_learn(
        self, state: PathState, params: Any, observation: jax.Array, key: jax.Array, hyper: Hyper
    ) -> jax.Array:
        return self.paths(state, params, observation, key, hyper).unsquashed

    def mixed(self, state: PathState, noised: score.Noised, gradient: jax.Array) -> score.ScoreTarget:
        """The mixture of both noise predictions that has least noise where u_0 has the fitted variance."""
        share = None
        if self.config.target_fit != "unit":
            variance = self.clean_variance(state, self.config.target_fit)
            share = fit.noise_share(self.denoiser.schedule, variance)[noised.level - 1]
        return score.mixed_target(self.denoiser.schedule, noised, gradient, share)

    def target(
        self,
        state: PathState,
        noised: score.Noised,
        of_density: boltzmann.Score,
        ell: jax.Array | None,
        log_density: jax.Array,
        hyper: Hyper,
    ) -> tuple[score.ScoreTarget, Metrics]:
        left_open = self.clean_variance(state, self.config.target_fit)
        variance = fit.usable(self.denoiser.schedule, left_open)[noised.level - 1]
        # The step c_t grad_u in units of sqrt(c_t): at most one where the policy is a Gaussian density already.
        drift = jnp.sqrt(jnp.mean(variance * jnp.square(of_density.pull)))
        # A higher tau for this update: what keeps u off the bounds, the Jacobian's term, stays as it is.
        share = jnp.minimum(1.0, hyper["drift_limit"] / jnp.maximum(drift, 1e-8))
        metrics = {"score/drift": measure.mean(drift), "score/drift_share": measure.mean(share)}
        return self.mixed(state, noised, share * of_density.pull + of_density.volume), metrics

    def follow_residual(
        self,
        state: PathState,
        params: Any,
        observation: jax.Array,
        drawn: Drawn,
        target: score.ScoreTarget,
        hyper: Hyper,
    ) -> jax.Array:
        """The running squared errors `[T, A]` with those of an update's samples."""
        predicted = self.denoiser.predict(params, observation, target.noised, target.level)
        clean = fit.implied_clean(
            self.denoiser.schedule, target.noised, target.level, predicted, hyper["sample_clip"]
        )
        error = drawn.unsquashed - clean
        return fit.follow_residual(state.residual, error, target.level, target.weight, hyper["fit_rate"])

    def hold_spread(
        self, learned: Learned, drawn: Drawn, room: jax.Array, hyper: Hyper
    ) -> tuple[Learned, Metrics]:
        """The temperature after an update, as it was where it is not tuned to a spread; and metrics.

        Args:
          room: `[]`, above zero while the policy follows so low a temperature.
        """
        if drawn.alike is None:
            return learned, {}
        return temperature.hold_spread(learned, drawn.alike, hyper["target_spread"], room, hyper[RATE])

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
        residual = self.follow_residual(state, params, observation, drawn, target, hyper)
        # No colder than the policy follows: beyond the limit it is not pulled any harder.
        room = jnp.log(hyper["drift_limit"] / jnp.maximum(measured["score/drift"].total, 1e-8))
        learned, metrics = self.hold_spread(state.log_temperature, drawn, room, hyper)
        return state._replace(residual=residual, log_temperature=learned), metrics
