"""The chains of a diffusion policy weighted by exp(Q/tau) over their own likelihood, and what is learned of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from agents.parts import boltzmann, measure, score
from agents.parts.paths import backup, chain, fit, temperature, weights
from agents.parts.paths.fitted import FittedChains, PathState
from agents.parts.paths.options import RATE, TUNED, Fit
from agents.parts.paths.plain import Drawn, Hyper, Value
from agents.parts.types import Metrics, Transition


@dataclasses.dataclass(frozen=True)
class WeightedChains(FittedChains):
    """Chains of `denoiser`, `config.chains_per_state` for each of fewer states; those of one state stand together."""

    def start(self) -> PathState:
        return super().start()._replace(spread=jnp.ones(self.denoiser.network.action_size))

    def clean_variance(self, state: PathState, fitted: Fit) -> jax.Array:
        if fitted == "spread":
            return fit.gaussian_variance(self.denoiser.schedule, state.spread)
        return super().clean_variance(state, fitted)

    def states(self, observation: jax.Array) -> jax.Array:
        """Of observations `[B, O]` the first B/K, each K times."""
        num_chains = self.config.chains_per_state
        return jnp.repeat(observation[: observation.shape[0] // num_chains], num_chains, axis=0)

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
        of_density: boltzmann.Score,
        ell: jax.Array | None,
        log_density: jax.Array,
        hyper: Hyper,
    ) -> tuple[score.ScoreTarget, Metrics]:
        target = self.mixed(state, noised, of_density.total)
        if ell is None:
            return target, {}
        ell = ell.reshape(-1, self.config.chains_per_state)
        log_weight = log_density.reshape(ell.shape) + ell
        eta = weights.tempering(log_weight, hyper["tempering_share"])
        metrics = {
            "path/effective_share": measure.mean(weights.effective(log_weight) / ell.shape[1]),
            "path/tempering": measure.mean(eta),
            "path/entropy_per_action": measure.mean(ell / noised.action.shape[1]),
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
        spread = fit.spread(drawn.unsquashed, self.config.chains_per_state)
        residual = self.follow_residual(state, params, observation, drawn, target, hyper)
        learned, held = state.log_temperature, {}
        if self.config.temperature in TUNED:
            room = measured["path/effective_share"].total - hyper["effective_floor"]
            learned, held = self.hold_spread(learned, drawn, room, hyper)
            if self.config.temperature == "entropy":
                excess = measured["path/entropy_per_action"].total - hyper["target_entropy_per_action"]
                learned = temperature.step(learned, excess, room, hyper[RATE], spread.shape[0])
        metrics = held | {
            "path/spread": measure.mean(jnp.sqrt(spread)),
            "path/smallest_residual": measure.mean(jnp.sqrt(residual[0])),
        }
        return PathState(fit.follow(state.spread, spread, hyper["fit_rate"]), residual, learned), metrics
