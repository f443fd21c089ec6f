"""Q-score matching (QSM): a diffusion policy whose score network is regressed onto the critic's action gradient.

Two agents share this file. `QSM` is the published method (Psenka et al. 2024, Algorithm 1). `CleanQSM` changes only
the regression target, so that `exp(Q/tau)` is a fixed point at every noise level, and what that target needs
around it. No gradient ever flows through the sampling chain. Equations: docs/qsm.md and docs/qsm-clean.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

from etils import epy

from agents.config import INFINITY, AgentConfig, Limits
from agents.parts.types import Mean, Metrics, Mode, Sampling, Transition

with epy.lazy_imports():  # the command line reads the options below without loading JAX
    import jax
    import jax.numpy as jnp
    import numpy as np

    from agents import critic as critics
    from agents import diffusion, networks

SPREAD_INTERVAL = 100  # updates between measurements of the policy's spread
SPREAD_STATES = 32
SPREAD_SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(AgentConfig):
    """Options shared by the two forms of Q-score matching."""

    denoising_steps: int = 5
    """Levels T of the diffusion chain."""
    schedule: Literal["vp", "cosine", "linear"] = "vp"
    """Noise schedule of the chain."""
    beta_min: float = 0.1
    """Noise rate at the start of the vp schedule."""
    beta_max: float = 10.0
    """Noise rate at the end of the vp schedule."""
    step_variance: Literal["beta", "posterior"] = "beta"
    """Variance of a reverse step: beta_t, or the smaller posterior variance."""
    score_learning_rate: float = 3e-4
    """Adam's learning rate for the score network, before its cosine decay."""
    score_decay_steps: int = 2_000_000
    """Updates over which the score network's learning rate decays to zero."""
    score_layer_norm: bool = False
    """Layer normalisation after each hidden layer of the score network."""
    time_embedding_size: int = 64
    """Size of the learnable Fourier embedding of the noise level (even)."""
    time_hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the MLP that turns the embedding into a time code."""
    action_noise: float = 0.1
    """Std of Gaussian noise added to actions while exploring and in critic targets."""
    eval_samples: int = 1
    """Actions sampled in evaluation, of which the one with the largest smaller-critic value is taken."""

    constants: ClassVar[tuple[str, ...]] = ("beta_min", "beta_max")  # the schedule is fixed when compiled
    limits: ClassVar[Limits] = AgentConfig.limits | {
        "denoising_steps": (1, 1000),
        "beta_min": (1e-6, 1000),
        "beta_max": (1e-6, 1000),
        "score_learning_rate": (0, 10),
        "score_decay_steps": (1, INFINITY),
        "time_embedding_size": (2, 2**16),
        "time_hidden_sizes": (1, 2**16),
        "action_noise": (0, INFINITY),
        "eval_samples": (1, 4096),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_embedding_size % 2:
            raise ValueError(
                f"time_embedding_size is {self.time_embedding_size}; it must be even (cosines and sines)"
            )


@dataclasses.dataclass(frozen=True)
class QSMConfig(DiffusionConfig):
    """Q-score matching as published."""

    score_scale: float = 50.0
    """Scale M_q of the critic's action gradient in the score target (the paper's alpha)."""

    limits: ClassVar[Limits] = DiffusionConfig.limits | {"score_scale": (0, INFINITY)}


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
    """Everything a QSM agent learns."""

    score_params: Any
    score_optimizer: Any
    draw_params: (
        Any  # slow average of score_params that clean-gradient QSM draws its actions from; () as published
    )
    critic_params: Any
    critic_optimizer: Any
    target_critic_params: Any
    gradient_size: jax.Array  # running mean of |grad_a Q| (clean-gradient QSM)
    hyperparameters: dict[str, jax.Array]


class ScoreTarget(NamedTuple):
    """A regression problem for the score network: predict `noise` from `(observation, noised, level)`."""

    noised: jax.Array  # [B, A]
    level: jax.Array  # [B], t = 1..T
    noise: jax.Array  # [B, A]


@dataclasses.dataclass(frozen=True)
class QSM:
    """Q-score matching as published (Psenka et al. 2024, Algorithm 1)."""

    config: QSMConfig
    observation_size: int
    action_size: int

    @property
    def sampling(self) -> Sampling:
        return self.config.sampling

    @property
    def critic(self) -> networks.CriticEnsemble:
        c = self.config
        return networks.CriticEnsemble(c.num_critics, c.hidden_sizes, c.critic_layer_norm)

    @property
    def score(self) -> networks.ScoreNetwork:
        c = self.config
        return networks.ScoreNetwork(
            self.observation_size,
            self.action_size,
            c.hidden_sizes,
            c.time_embedding_size,
            c.time_hidden_sizes,
            c.score_layer_norm,
        )

    @property
    def schedule(self) -> diffusion.Schedule:
        c = self.config
        return diffusion.make_schedule(c.schedule, c.denoising_steps, c.beta_min, c.beta_max)

    # ---- Losses -------------------------------------------------------------------------------------------------

    def score_target(
        self, state: State, critic_params: Any, observation: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[ScoreTarget, jax.Array, Metrics]:
        """eps*(s, a_t, t) = -M_q mean_i grad_a Q_i(s, a_t), at replay actions `[B, A]` noised to uniform levels.

        Returns the target, the new `gradient_size` and metrics.
        """
        level_key, noise_key = jax.random.split(key)
        level = jax.random.randint(level_key, action.shape[:1], 1, self.config.denoising_steps + 1)
        noised = diffusion.add_noise(self.schedule, action, level, jax.random.normal(noise_key, action.shape))
        _, gradient = self.action_gradient(critic_params, observation, noised)
        scaled = state.hyperparameters["score_scale"] * gradient
        metrics = {
            "score/action_gradient_norm": critics.mean(jnp.linalg.norm(gradient, axis=-1)),
            "score/scaled_gradient_norm": critics.mean(jnp.linalg.norm(scaled, axis=-1)),
        }
        return ScoreTarget(noised, level, -scaled), state.gradient_size, metrics

    def action_gradient(
        self, critic_params: Any, observation: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """mean_i Q_i(s, a) `[B]` and its gradient by the action `[B, A]`."""

        def total(action: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = networks.apply(self.critic, critic_params, observation, action).mean(axis=0)
            return value.sum(), value

        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(action)
        return value, gradient

    def score_loss(
        self, params: Any, observation: jax.Array, target: ScoreTarget
    ) -> tuple[jax.Array, Metrics]:
        """Mean squared error of the predicted noise, over batch and action components."""
        predicted = networks.apply(self.score, params, observation, target.noised, target.level)
        loss = jnp.square(predicted - target.noise).mean()
        norms = jnp.linalg.norm(predicted, axis=-1) * jnp.linalg.norm(target.noise, axis=-1)
        cosine = (predicted * target.noise).sum(axis=-1) / jnp.maximum(norms, 1e-8)
        return loss, {"score/loss": critics.mean(loss), "score/target_cosine": critics.mean(cosine)}

    # ---- Acting -------------------------------------------------------------------------------------------------

    def sample(self, params: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[B, A]` by full reverse diffusion, clipped to [-1, 1] at every step."""
        return diffusion.sample(
            self.schedule,
            self.noise_predictor(params, observation),
            key,
            (observation.shape[0], self.action_size),
            step_variance=self.config.step_variance,
            clip=1.0,
        )

    def noise_predictor(
        self, params: Any, observation: jax.Array
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The score network as the sampler calls it; what every level shares is computed here, once."""
        module = self.score
        encoded = networks.apply(module, params, observation, method="encode_observation")
        levels = networks.apply(
            module, params, jnp.arange(1, self.config.denoising_steps + 1), method="encode_level"
        )
        return lambda index, noised: networks.apply(
            module, params, encoded, levels[index][None], noised, method="denoise"
        )

    def noisy(self, action: jax.Array, hyperparameters: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        """Actions plus Gaussian noise, clipped to [-1, 1]."""
        noise = hyperparameters["action_noise"] * jax.random.normal(key, action.shape)
        return jnp.clip(action + noise, -1.0, 1.0)

    def acting_params(self, state: State) -> Any:
        """The score network that acts and draws the actions of critic targets."""
        return state.score_params

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """Samples actions `[B, A]`: with action noise to explore; in evaluation the best of `eval_samples`."""
        sample_key, noise_key = jax.random.split(key)
        params = self.acting_params(state)
        if mode == "explore":
            action = self.sample(params, observation, sample_key)
            return self.noisy(action, state.hyperparameters, noise_key)
        num_samples, batch = self.config.eval_samples, observation.shape[0]
        repeated = jnp.repeat(observation, num_samples, axis=0)
        actions = self.sample(params, repeated, sample_key)
        if num_samples == 1:
            return actions
        values = (
            networks.apply(self.critic, state.critic_params, repeated, actions)
            .min(axis=0)
            .reshape(batch, num_samples)
        )
        best = values.argmax(axis=1)
        return actions.reshape(batch, num_samples, -1)[jnp.arange(batch), best]

    # ---- Learning -----------------------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> State:
        score_key, critic_key = jax.random.split(key)
        observation = jnp.zeros((1, self.observation_size))
        action = jnp.zeros((1, self.action_size))
        score_params = networks.init(self.score, score_key, observation, action, jnp.ones((1,), jnp.int32))
        critic_params = networks.init(self.critic, critic_key, observation, action)
        return State(
            score_params=score_params,
            score_optimizer=critics.adam_init(score_params),
            draw_params=self.initial_draw_params(score_params),
            critic_params=critic_params,
            critic_optimizer=critics.adam_init(critic_params),
            target_critic_params=jax.tree.map(jnp.copy, critic_params),
            gradient_size=jnp.zeros(()),
            hyperparameters={
                k: jnp.asarray(v, jnp.float32) for k, v in self.config.hyperparameters().items()
            },
        )

    def discount(self, state: State) -> jax.Array:
        return state.hyperparameters["discount"]

    def observe(self, state: State, time_step: Any, is_valid: jax.Array) -> State:
        return state

    def revise(self, state: State, batch: Transition, key: jax.Array) -> None:
        return None

    def initial_draw_params(self, score_params: Any) -> Any:
        return ()

    def next_draw_params(self, state: State, score_params: Any) -> Any:
        return ()

    def draw(self, state: State, batch: Transition, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Actions for the critic target at s', and the clean actions that the score target starts from."""
        sample_key, noise_key = jax.random.split(key)
        sampled = self.sample(self.acting_params(state), batch.next_observation, sample_key)
        return self.noisy(sampled, state.hyperparameters, noise_key), batch.action

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """Critics, then the score network against the critics just updated, then the slow copies."""
        draw_key, score_key, spread_key = jax.random.split(key, 3)
        hyper = state.hyperparameters
        next_action, clean = self.draw(state, batch, draw_key)

        next_values = networks.apply(
            self.critic, state.target_critic_params, batch.next_observation, next_action
        )
        target = critics.td_target(batch.reward, batch.discount, next_values)

        def loss_of_critics(params: Any) -> tuple[jax.Array, jax.Array]:
            values = networks.apply(self.critic, params, batch.observation, batch.action)
            return critics.critic_loss(values, target), values

        grads, values = jax.grad(loss_of_critics, has_aux=True)(state.critic_params)
        critic_params, critic_optimizer = critics.adam_step(
            grads, state.critic_optimizer, state.critic_params, hyper["critic_learning_rate"]
        )

        score_target, gradient_size, target_metrics = self.score_target(
            state, critic_params, batch.observation, clean, score_key
        )
        grads, score_metrics = jax.grad(self.score_loss, has_aux=True)(
            state.score_params, batch.observation, jax.lax.stop_gradient(score_target)
        )
        decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / self.config.score_decay_steps, 1.0)))
        score_params, score_optimizer = critics.adam_step(
            grads, state.score_optimizer, state.score_params, decay * hyper["score_learning_rate"]
        )

        metrics = critics.critic_metrics(values, target) | target_metrics | score_metrics
        metrics["policy/q"] = critics.mean(next_values)
        metrics["policy/saturation"] = critics.mean(jnp.abs(next_action) > critics.SATURATED)
        metrics["policy/spread"] = self.spread(state, batch.next_observation, spread_key, step)
        state = state._replace(
            score_params=score_params,
            score_optimizer=score_optimizer,
            draw_params=self.next_draw_params(state, score_params),
            critic_params=critic_params,
            critic_optimizer=critic_optimizer,
            target_critic_params=critics.polyak(
                state.target_critic_params, critic_params, hyper["target_rate"]
            ),
            gradient_size=gradient_size,
        )
        return state, metrics

    def spread(self, state: State, observation: jax.Array, key: jax.Array, step: jax.Array) -> Mean:
        """Std of the policy's actions within a state, mean over components; measured every SPREAD_INTERVAL updates."""

        def measure() -> Mean:
            few = jnp.repeat(observation[:SPREAD_STATES], SPREAD_SAMPLES, axis=0)
            actions = self.sample(self.acting_params(state), few, key)
            return critics.mean(actions.reshape(-1, SPREAD_SAMPLES, self.action_size).std(axis=1))

        return jax.lax.cond(step % SPREAD_INTERVAL == 0, measure, critics.skipped)


@dataclasses.dataclass(frozen=True)
class CleanQSM(QSM):
    """Q-score matching on the exact score target (docs/qsm-clean.md): `exp(Q/tau)` is its fixed point.

    Diffusion lives before a tanh, a = tanh(u); u_0 is drawn from a slow average of the policy itself.
    """

    config: CleanQSMConfig

    def score_target(
        self, state: State, critic_params: Any, observation: jax.Array, action: jax.Array, key: jax.Array
    ) -> tuple[ScoreTarget, jax.Array, Metrics]:
        """eps* = sigma_t^2 eps - sigma_t sqrt(abar_t) grad_u, at drawn u_0 (`action`, before its tanh).

        grad_u = (1 - tanh(u)^2) grad_a Q / tau - 2 tanh(u), where tau = gradient_size / inverse_temperature; only
        grad_a Q is scaled by its running size, never the term that comes from the tanh's Jacobian.
        """
        level_key, noise_key = jax.random.split(key)
        level = jax.random.randint(level_key, action.shape[:1], 1, self.config.denoising_steps + 1)
        noise = jax.random.normal(noise_key, action.shape)
        noised = diffusion.add_noise(self.schedule, action, level, noise)

        squashed = jnp.tanh(action)
        value, gradient = self.action_gradient(critic_params, observation, squashed)
        size = jnp.linalg.norm(gradient, axis=-1).mean()
        rate = state.hyperparameters["gradient_size_rate"]
        gradient_size = jnp.where(
            state.gradient_size > 0, state.gradient_size + rate * (size - state.gradient_size), size
        )
        temperature = jnp.maximum(gradient_size, 1e-8) / state.hyperparameters["inverse_temperature"]
        gradient_u = (1 - jnp.square(squashed)) * gradient / temperature - 2 * squashed

        sigma = diffusion.per_level(self.schedule.sigma, level)
        root_abar = diffusion.per_level(np.sqrt(self.schedule.abar), level)
        target = jnp.square(sigma) * noise - sigma * root_abar * gradient_u
        metrics = {
            "score/action_gradient_norm": critics.mean(size),
            "score/scaled_gradient_norm": critics.mean(size / temperature),
            "score/temperature": critics.mean(temperature),
            "policy/q_drawn": critics.mean(value),
        }
        return ScoreTarget(noised, level, target), gradient_size, metrics

    def sample(self, params: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Actions `[B, A]` in [-1, 1]: the tanh of `sample_unsquashed`."""
        return jnp.tanh(self.sample_unsquashed(params, observation, key))

    def sample_unsquashed(self, params: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        """u_0 `[B, A]` by reverse diffusion, the clean action implied at each step clipped to `sample_clip`."""
        return diffusion.sample(
            self.schedule,
            self.noise_predictor(params, observation),
            key,
            (observation.shape[0], self.action_size),
            step_variance=self.config.step_variance,
            clip_clean=self.config.sample_clip,
        )

    def acting_params(self, state: State) -> Any:
        return state.draw_params if self.config.act_with_average else state.score_params

    def initial_draw_params(self, score_params: Any) -> Any:
        return jax.tree.map(jnp.copy, score_params)

    def next_draw_params(self, state: State, score_params: Any) -> Any:
        return critics.polyak(state.draw_params, score_params, state.hyperparameters["draw_rate"])

    def draw(self, state: State, batch: Transition, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both batches in one pass of the sampler: a' at s', and u_0 at s."""
        sample_key, noise_key = jax.random.split(key)
        both = jnp.concatenate([batch.next_observation, batch.observation])
        unsquashed = self.sample_unsquashed(state.draw_params, both, sample_key)
        next_unsquashed, clean = jnp.split(unsquashed, 2)
        return self.noisy(jnp.tanh(next_unsquashed), state.hyperparameters, noise_key), clean
