"""A diffusion policy: its score network, how it is sampled and regressed, and the choice among N samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.config import DiffusionConfig, Prediction
from agents.networks.score import ScoreNetwork
from agents.parts import diffusion
from agents.parts.approximator import Approximator
from agents.parts.measure import mean, saturation, skipped
from agents.parts.optimizer import Learned, cosine_decay, rule_of
from agents.parts.samplers.steps import Sampler, steps_of
from agents.parts.types import Mean, Metrics

SPREAD_INTERVAL = 100  # updates between measurements of the policy's spread
SPREAD_STATES = 32
SPREAD_SAMPLES = 8


class Noised(NamedTuple):
    """Actions noised to levels that are drawn uniformly: sqrt(abar_t) a_0 + sigma_t eps."""

    action: jax.Array  # [B, A], a_t
    level: jax.Array  # [B], t = 1..T
    noise: jax.Array  # [B, A], eps


class ScoreTarget(NamedTuple):
    """What the score network is regressed onto: the noise to predict at noised actions and levels."""

    noised: jax.Array  # [B, A]
    level: jax.Array  # [B], t = 1..T
    noise: jax.Array  # [B, A]
    weight: jax.Array | None = None  # [B], of each squared error; None for 1


@dataclasses.dataclass(frozen=True)
class Denoiser(Approximator):
    """A diffusion chain over actions with a score network.

    Where the network predicts the velocity v = sqrt(abar_t) eps - sigma_t a_0 (Salimans & Ho 2022, 2202.00512), the
    noise is sigma_t a_t + sqrt(abar_t) v. An error of the implied clean action is then sigma_t times one of the
    network; where it predicts the noise it is sigma_t / sqrt(abar_t) times, 12 at the last level of vp.

    Args:
      network: of (s, a_t, t).
      prediction: what it predicts.
      schedule: of the chain.
      step_variance: of a reverse step.
      decay_steps: updates over which the learning rate decays to zero.
    """

    network: ScoreNetwork
    schedule: diffusion.Schedule
    step_variance: diffusion.StepVariance
    decay_steps: int
    prediction: Prediction = "noise"

    def start(self, key: jax.Array) -> Learned:
        """A fresh score network."""
        observation, action = (
            jnp.zeros((1, self.network.observation_size)),
            jnp.zeros((1, self.network.action_size)),
        )
        return self.init(key, observation, action, jnp.ones((1,), jnp.int32))

    @jax.named_scope("sampler")
    def sample(
        self,
        params: Any,
        observation: jax.Array,
        key: jax.Array,
        sampler: Sampler | None = None,
        **clips: Any,
    ) -> jax.Array:
        """a_0 `[B, A]` by reverse diffusion.

        Args:
          sampler: the way down the chain; None for ancestral sampling through all levels.
          clips: `clip`, `clip_clean` or `clip_clean_with`, see `diffusion.sample`.
        """
        visited = None
        if sampler is not None:
            schedule = self.schedule
            visited = steps_of(sampler, schedule.alpha, schedule.abar, self.step_variance).level
        predict = self.predictor(params, observation, visited)
        shape = (observation.shape[0], self.network.action_size)
        return diffusion.sample(
            self.schedule, predict, key, shape, sampler=sampler, step_variance=self.step_variance, **clips
        )

    def predictor(
        self, params: Any, observation: jax.Array, levels: np.ndarray | None = None
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The score network as the sampler calls it, at `levels` `[N]`, or all; what they share is computed once."""
        encoded = self.apply(params, observation, method="encode_observation")
        visited = jnp.arange(1, self.schedule.num_levels + 1) if levels is None else jnp.asarray(levels)
        codes = self.apply(params, visited, method="encode_level")

        def predict(index: jax.Array, noised: jax.Array) -> jax.Array:
            output = self.apply(params, encoded, codes[index][None], noised, method="denoise")
            return self._noise(output, noised, visited[index][None])

        return predict

    def predict(self, params: Any, observation: jax.Array, noised: jax.Array, level: jax.Array) -> jax.Array:
        """Predicted noise `[B, A]` at observations `[B, O]`, noised actions `[B, A]` and levels t = 1..T, `[B]`."""
        return self._noise(self.apply(params, observation, noised, level), noised, level)

    def _noise(self, output: jax.Array, noised: jax.Array, level: jax.Array) -> jax.Array:
        """The noise that `output` of the network says."""
        if self.prediction == "noise":
            return output
        sigma, root_abar = self._factors(level)
        return sigma * noised + root_abar * output

    def _wanted(self, target: ScoreTarget) -> jax.Array:
        """The output of the network that says the noise of `target`."""
        if self.prediction == "noise":
            return target.noise
        sigma, root_abar = self._factors(target.level)
        return (target.noise - sigma * target.noised) / root_abar

    def _factors(self, level: jax.Array) -> tuple[jax.Array, jax.Array]:
        """sigma_t and sqrt(abar_t)."""
        constants = self.schedule.sigma, np.sqrt(self.schedule.abar)
        sigma, root_abar = (diffusion.per_level(values, level) for values in constants)
        return sigma, root_abar

    @jax.named_scope("add_noise")
    def add_noise(self, action: jax.Array, key: jax.Array) -> Noised:
        """Noises actions `[B, A]` to uniform levels."""
        level_key, noise_key = jax.random.split(key)
        level = jax.random.randint(level_key, action.shape[:1], 1, self.schedule.num_levels + 1)
        noise = jax.random.normal(noise_key, action.shape)
        return Noised(diffusion.add_noise(self.schedule, action, level, noise), level, noise)

    @jax.named_scope("score_loss")
    def loss(self, params: Any, observation: jax.Array, target: ScoreTarget) -> tuple[jax.Array, Metrics]:
        """Weighted squared error of what is predicted, mean over batch and action components."""
        predicted, wanted = self.apply(params, observation, target.noised, target.level), self._wanted(target)
        errors = jnp.square(predicted - wanted)
        loss = (errors if target.weight is None else target.weight[:, None] * errors).mean()
        norms = jnp.linalg.norm(predicted, axis=-1) * jnp.linalg.norm(wanted, axis=-1)
        cosine = (predicted * wanted).sum(axis=-1) / jnp.maximum(norms, 1e-8)
        return loss, {"score/loss": mean(loss), "score/target_cosine": mean(cosine)}

    def regress(
        self, learned: Learned, observation: jax.Array, target: ScoreTarget, rate: jax.Array, step: jax.Array
    ) -> tuple[Learned, Metrics]:
        """One step of the score network towards `target`; the learning rate `rate` decays by a cosine."""
        return self.descend(self.loss, learned, self.rate(rate, step), observation, target)

    def rate(self, rate: jax.Array, step: jax.Array) -> jax.Array:
        """The learning rate `rate` as it has decayed by `step`."""
        return cosine_decay(step, self.decay_steps) * rate


def mixed_target(
    schedule: diffusion.Schedule, noised: Noised, gradient: jax.Array, noise_share: jax.Array | None = None
) -> ScoreTarget:
    """lambda eps - (1 - lambda) (sigma_t / sqrt(abar_t)) gradient, for the log density's gradient at a_0 `[B, A]`.

    Args:
      noise_share: lambda `[B, A]`; None for sigma_t^2, and so sigma_t^2 eps - sigma_t sqrt(abar_t) gradient.
    """
    sigma = diffusion.per_level(schedule.sigma, noised.level)
    root_abar = diffusion.per_level(np.sqrt(schedule.abar), noised.level)
    if noise_share is None:
        target = jnp.square(sigma) * noised.noise - sigma * root_abar * gradient
    else:
        target = noise_share * noised.noise - (1 - noise_share) * (sigma / root_abar) * gradient
    return ScoreTarget(noised.action, noised.level, jax.lax.stop_gradient(target))


def denoiser(config: DiffusionConfig, observation_size: int, action_size: int) -> Denoiser:
    """The chain and the network that `config` asks for."""
    network = ScoreNetwork(
        observation_size,
        action_size,
        config.actor_hidden_sizes or config.hidden_sizes,
        config.time_embedding_size,
        config.time_hidden_sizes,
        config.score_layer_norm,
        config.actor_torso,
    )
    schedule = diffusion.make_schedule(
        config.schedule, config.denoising_steps, config.beta_min, config.beta_max
    )
    rule = rule_of(config, decays=False)  # its learning rate has a decay of its own
    return Denoiser(
        network, schedule, config.step_variance, config.score_decay_steps, config.prediction, rule=rule
    )


def best_of(
    num_samples: int,
    sample: Callable[[jax.Array], jax.Array],
    value: Callable[[jax.Array, jax.Array], jax.Array],
    observation: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """Of `num_samples` actions at each observation `[B, O]` the one of the largest value, `[B, A]`.

    Args:
      sample: observations `[B, O]` to actions `[B, A]`.
      value: observations and actions to values `[B]`; not asked where there is one sample.
      key: draws one by the softmax of the values instead.
    """
    if num_samples == 1:
        return sample(observation)
    repeated = jnp.repeat(observation, num_samples, axis=0)
    actions = sample(repeated)
    values = value(repeated, actions).reshape(-1, num_samples)
    best = values.argmax(axis=1) if key is None else jax.random.categorical(key, values, axis=1)
    rows = jnp.arange(observation.shape[0])
    return actions.reshape(-1, num_samples, actions.shape[-1])[rows, best]


@jax.named_scope("spread")
def spread(sample: Callable[[jax.Array], jax.Array], observation: jax.Array, step: jax.Array) -> Mean:
    """Std of the policy's actions within a state, mean over components; measured every SPREAD_INTERVAL updates."""

    def measure() -> Mean:
        repeated = jnp.repeat(observation[:SPREAD_STATES], SPREAD_SAMPLES, axis=0)
        actions = sample(repeated)
        return mean(actions.reshape(-1, SPREAD_SAMPLES, actions.shape[-1]).std(axis=1))

    return jax.lax.cond(step % SPREAD_INTERVAL == 0, measure, skipped)


def policy_metrics(
    sample: Callable[[jax.Array], jax.Array],
    observation: jax.Array,
    action: jax.Array,
    value: jax.Array,
    step: jax.Array,
) -> Metrics:
    """What is said of a diffusion policy: of its actions `[B, A]` in a critic target and their values `[E, B]`, and of
    its spread at observations `[B, O]`.
    """
    return {
        "policy/q": mean(value),
        "policy/saturation": saturation(action),
        "policy/spread": spread(sample, observation, step),
    }
