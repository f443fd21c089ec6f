"""The chains of a diffusion policy as they come: drawn, noised and regressed on, all with the same weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.parts import boltzmann, score
from agents.parts.paths.options import PathConfig
from agents.parts.samplers.steps import Sampler
from agents.parts.types import Metrics, Transition

Value = Callable[[jax.Array, jax.Array], jax.Array]
"""Observations and actions to values `[B]`, of the smaller target critic."""
PAIRED_STATES = 32
"""States at which a second action is drawn where the policy's spread is held."""
Hyper = dict[str, jax.Array]


class Drawn(NamedTuple):
    """What an update learns from, of the policy."""

    action: jax.Array  # [B, A], a' at s'
    unsquashed: jax.Array  # [B, A], u_0 at s
    ell: jax.Array | None = None  # [B], of the chains at s; None where they are not weighted
    bonus: jax.Array | None = None  # [B], to the value at (s', a')
    alike: jax.Array | None = (
        None  # [N, K, A], actions of which K are drawn at one state; None where none are wanted
    )


@dataclasses.dataclass(frozen=True)
class PlainChains:
    """Chains of `denoiser`, one for each state; they learn nothing besides their network, and their state is ()."""

    config: PathConfig
    denoiser: score.Denoiser

    @property
    def holds_spread(self) -> bool:
        """Whether tau is tuned to a spread of the policy."""
        return self.config.temperature == "spread"

    def start(self) -> Any:
        """What is kept between updates."""
        return ()

    def temperature(self, state: Any, gradient_size: jax.Array, hyper: Hyper) -> jax.Array:
        """tau `[]` for an action gradient of `gradient_size`."""
        if self.config.temperature == "fixed":
            return 1 / hyper["inverse_temperature"]
        tau = gradient_size / hyper["inverse_temperature"]
        if self.config.temperature == "component":
            tau /= math.sqrt(self.denoiser.network.action_size)
        return tau

    def states(self, observation: jax.Array) -> jax.Array:
        """Those of observations `[B, O]` at which the chains of `draw` begin, `[B, O]`."""
        return observation

    def sample(
        self,
        state: Any,
        params: Any,
        observation: jax.Array,
        key: jax.Array,
        hyper: Hyper,
        sampler: Sampler | None = None,
    ) -> jax.Array:
        """u_0 `[B, A]` to act with; where there is a `sampler`, by it."""
        return self.denoiser.sample(params, observation, key, sampler, clip_clean=hyper["sample_clip"])

    def sample_to_learn(
        self, state: Any, params: Any, observation: jax.Array, key: jax.Array, hyper: Hyper
    ) -> jax.Array:
        """u_0 `[B, A]` for an update."""
        return self.sample(state, params, observation, key, hyper)

    def draw(
        self,
        state: Any,
        params: Any,
        batch: Transition,
        value: Value,
        tau: jax.Array,
        key: jax.Array,
        hyper: Hyper,
    ) -> Drawn:
        """a' at s' and u_0 at `states` of s, in one pass of the network `params`."""
        size, num_samples = batch.observation.shape[0], self.config.target_samples
        repeated = jnp.repeat(batch.next_observation, num_samples, axis=0)
        again = batch.observation[: PAIRED_STATES if self.holds_spread else 0]
        all_states = jnp.concatenate([repeated, batch.observation, again])
        unsquashed = self.sample_to_learn(state, params, all_states, key, hyper)
        candidates, clean, second = jnp.split(unsquashed, [size * num_samples, size * (num_samples + 1)])
        action = score.best_of(num_samples, lambda _: jnp.tanh(candidates), value, batch.next_observation)
        if not self.holds_spread:
            return Drawn(action, clean)
        return Drawn(action, clean, alike=jnp.tanh(jnp.stack([clean[: again.shape[0]], second], axis=1)))

    def target(
        self,
        state: Any,
        noised: score.Noised,
        of_density: boltzmann.Score,
        ell: jax.Array | None,
        log_density: jax.Array,
        hyper: Hyper,
    ) -> tuple[score.ScoreTarget, Metrics]:
        """What the score network is regressed onto at noised u_0, and metrics.

        Args:
          of_density: grad_u at u_0.
          ell: `[B]`, of the chains.
          log_density: `[B]`, Q/tau.
        """
        return score.mixed_target(self.denoiser.schedule, noised, of_density.total), {}

    def follow(
        self,
        state: Any,
        params: Any,
        observation: jax.Array,
        drawn: Drawn,
        target: score.ScoreTarget,
        measured: Metrics,
        hyper: Hyper,
    ) -> tuple[Any, Metrics]:
        """What is kept after an update by chains that network `params` drew at `states`, and metrics.

        Args:
          measured: the metrics of `target`.
        """
        return state, {}
