"""Variance-preserving diffusion chains: noise schedules, forward noising and the reverse sampler (Ho et al. 2020).

Levels run t = 1..T; arrays over levels put level t at index t - 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.config import StepVariance
from agents.parts.samplers.steps import Sampler, Steps, steps_of

ScheduleName = Literal["vp", "cosine", "linear", "geometric"]
LEAST_NOISE, MOST_NOISE = 0.04, 10.0  # sigma_t / sqrt(abar_t) at the ends of the geometric schedule
UNROLLED_LEVELS = 20  # longer chains run as a compiled loop, so that compile time stays flat in T


class Schedule(NamedTuple):
    """Constants of a chain, each `[T]`: a_t = sqrt(abar_t) a_0 + sigma_t eps."""

    alpha: np.ndarray
    abar: np.ndarray  # product of alpha up to t
    abar_previous: np.ndarray  # abar_{t-1}, with abar_0 = 1
    beta: np.ndarray  # 1 - alpha
    sigma: np.ndarray  # sqrt(1 - abar)

    @property
    def num_levels(self) -> int:
        return len(self.alpha)

    @property
    def posterior_variance(self) -> np.ndarray:
        """Variance of a_{t-1} given a_t and a_0; zero at t = 1."""
        return self.beta * (1 - self.abar_previous) / (1 - self.abar)


@functools.cache
def make_schedule(
    name: ScheduleName, num_levels: int, beta_min: float = 0.1, beta_max: float = 10.0
) -> Schedule:
    """The chain `name` with T = `num_levels` levels.

    vp:     alpha_t = exp(-beta_min/T - (beta_max - beta_min)(2t - 1)/(2 T^2)), the schedule of the QSM code.
    linear: beta_t evenly spaced from 1e-4 to 2e-2 as in Ho et al. (2020), stretched by 1000/T.
    cosine: abar_t proportional to cos^2((t/T + s)/(1 + s) pi/2), s = 0.008 (Nichol & Dhariwal 2021).
    geometric: sigma_t / sqrt(abar_t) grows by the same factor at each level, from 0.04 to 10 (as Song & Ermon 2019):
            even steps in the log of the signal-to-noise ratio, so that few levels draw narrow modes too.

    Raises:
      ValueError: an unknown name or no level.
    """
    if num_levels < 1:
        raise ValueError(f"a chain needs at least 1 level; given {num_levels}")
    level = np.arange(1, num_levels + 1, dtype=np.float64)
    if name == "vp":
        alpha = np.exp(-beta_min / num_levels - (beta_max - beta_min) * (2 * level - 1) / (2 * num_levels**2))
    elif name == "linear":
        scale = 1000.0 / num_levels
        alpha = 1 - np.clip(np.linspace(1e-4 * scale, 2e-2 * scale, num_levels), 0, 0.999)
    elif name == "cosine":
        time = np.arange(num_levels + 1, dtype=np.float64) / num_levels
        curve = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        alpha = 1 - np.clip(1 - curve[1:] / curve[:-1], 0, 0.999)
    elif name == "geometric":
        exponent = (num_levels - level) / max(num_levels - 1, 1)
        abar = 1 / (1 + (MOST_NOISE * (LEAST_NOISE / MOST_NOISE) ** exponent) ** 2)
        alpha = abar / np.concatenate([[1.0], abar[:-1]])
    else:
        raise ValueError(f"unknown schedule {name!r}; schedules are vp, cosine, linear and geometric")
    abar = np.cumprod(alpha)
    abar_previous = np.concatenate([[1.0], abar[:-1]])
    return Schedule(alpha, abar, abar_previous, 1 - alpha, np.sqrt(1 - abar))


def per_level(constants: np.ndarray, level: jax.Array) -> jax.Array:
    """Picks `constants` `[T]` at levels `[B]`, shaped `[B, 1]` to go with actions."""
    return jnp.asarray(constants, jnp.float32)[level - 1][:, None]


def add_noise(schedule: Schedule, action: jax.Array, level: jax.Array, noise: jax.Array) -> jax.Array:
    """Forward process: a_t `[B, A]` from a_0 and standard noise `[B, A]` at levels `[B]`."""
    return per_level(np.sqrt(schedule.abar), level) * action + per_level(schedule.sigma, level) * noise


Clip = Callable[[jax.Array, Any, Any], jax.Array]
"""`clip(x, low, high)`."""


@jax.custom_vjp
def clip_inward(x: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """x from `low` to `high`; where it is clipped, a loss's gradient counts only if descent leads back.

    The gradient of `jnp.clip` is zero there, and what was clipped once would never come back.
    """
    return jnp.clip(x, low, high)


def _clip_inward_forward(x: jax.Array, low: Any, high: Any) -> tuple[jax.Array, Any]:
    return jnp.clip(x, low, high), (x, low, high)


def _clip_inward_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    x, low, high = saved
    leads_out = ((x > high) & (gradient < 0)) | ((x < low) & (gradient > 0))
    return jnp.where(leads_out, 0.0, gradient), None, None


clip_inward.defvjp(_clip_inward_forward, _clip_inward_backward)


def implied_clean(
    noised: jax.Array,
    predicted: jax.Array,
    sigma: float | jax.Array,
    root_abar: float | jax.Array,
    bound: float | jax.Array | None,
    clip: Clip = jnp.clip,
) -> jax.Array:
    """The clean action that predicted noise implies, from -bound to bound where there is one; like `noised`."""
    clean = (noised - sigma * predicted) / root_abar
    return clean if bound is None else clip(clean, -bound, bound)


def sample(
    schedule: Schedule,
    predict_noise: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
    *,
    sampler: Sampler | None = None,
    step_variance: StepVariance = "beta",
    clip: float | jax.Array | None = None,
    clip_clean: float | jax.Array | None = None,
    clip_clean_with: Clip = jnp.clip,
) -> jax.Array:
    """Draws a_0 of `shape` from a_T ~ N(0, I), by ancestral (DDPM) sampling; no noise is added in the last step.

    Args:
      predict_noise: (index, a_t) -> predicted noise like a_t, where index counts the levels that are visited from the
        least noise on: t - 1 where all of them are.
      key: a typed key.
      sampler: another way down the chain, or fewer steps.
      step_variance: variance of an ancestral step, beta_t or the posterior variance.
      clip: bound of |a_{t-1}| after every step, if any (published QSM: 1).
      clip_clean: bound of the clean action that the network implies at each step, if any.
      clip_clean_with: what brings it there, for who differentiates.
    """
    table = steps_of(sampler or Sampler(), schedule.alpha, schedule.abar, step_variance)
    num_steps = len(table.level)
    constants = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), table._replace(level=None))
    # All noise at once: row 0 starts the chain, row i > 0 belongs to the step that leaves index i.
    noise = jax.random.normal(key, (1 if constants.std is None else num_steps, *shape))

    def reverse_step(carry: Any, inputs: tuple[jax.Array, Steps, jax.Array | None]) -> tuple[Any, None]:
        index, step, step_noise = inputs
        noised, clean_before = carry if step.weight_before is not None else (carry, None)
        predicted = predict_noise(index, noised)
        clean = implied_clean(noised, predicted, step.sigma, step.root_abar, clip_clean, clip_clean_with)
        noised = step.weight_clean * clean + step.weight_noised * noised
        if step.std is not None:
            noised = noised + step.std * step_noise
        if step.weight_before is not None:
            noised = noised + step.weight_before * clean_before
        if clip is not None:
            noised = jnp.clip(noised, -clip, clip)
        return (noised if step.weight_before is None else (noised, clean)), None

    # Index 0 adds no noise (its std is zero), so its slot can hold the start of the chain.
    start = noise[0]
    carry, _ = jax.lax.scan(
        reverse_step,
        # The first step has no clean action before it, and no weight for one.
        start if constants.weight_before is None else (start, jnp.zeros_like(start)),
        (jnp.arange(num_steps), constants, None if constants.std is None else noise),
        reverse=True,
        unroll=num_steps <= UNROLLED_LEVELS,
    )
    return carry if constants.weight_before is None else carry[0]
