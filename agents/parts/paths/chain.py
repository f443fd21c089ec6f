"""Reverse chains that tell how likely they were: u_0, from which a = tanh(u_0), with a bound of a's log density.

The last step has noise too, so that every step is a density. Levels are as in `diffusion`: t = 1..T at index t - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.parts import diffusion


class Path(NamedTuple):
    """Where chains ended, and how likely they came there."""

    unsquashed: jax.Array  # [B, A], u_0
    ell: jax.Array  # [B], nats; E[ell] over the chain is at most the entropy of a = tanh(u_0)


class _Level(NamedTuple):
    """What one step needs; each `[T, ...]` when stacked."""

    sigma: jax.Array
    root_abar: jax.Array
    weight_clean: jax.Array
    weight_noised: jax.Array
    root_alpha: jax.Array
    beta: jax.Array
    step_std: jax.Array  # [A]


def step_variance(schedule: diffusion.Schedule, clean_variance: jax.Array) -> jax.Array:
    """Variance v_t `[T, A]` of a reverse step, given that of u_0 about the clean action implied at u_t.

    u_{t-1} given u_t and u_0 has the posterior variance about a mean linear in u_0; with u_0 uncertain by
    `clean_variance` `[T, A]` its square adds up (the best variance for an imperfect mean, Bao et al. 2022,
    2206.07309). For `fit.unit_variance` v_t is beta_t.
    """
    weight = jnp.asarray(_weight_clean(schedule), jnp.float32)[:, None]
    posterior = jnp.asarray(schedule.posterior_variance, jnp.float32)[:, None]
    return posterior + jnp.square(weight) * clean_variance


def _weight_clean(schedule: diffusion.Schedule) -> np.ndarray:
    """What a step's mean takes of the clean action, `[T]`."""
    return np.sqrt(schedule.abar_previous) * schedule.beta / (1 - schedule.abar)


def log_jacobian(unsquashed: jax.Array) -> jax.Array:
    """log |da/du| `[B]` of a = tanh(u) at u `[B, A]`, without overflow at large |u|."""
    return (2.0 * (math.log(2.0) - unsquashed - jax.nn.softplus(-2.0 * unsquashed))).sum(axis=-1)


def _log_normal(square: jax.Array, variance: jax.Array) -> jax.Array:
    """log N(x; m, variance) `[B]` for (x - m)^2 `[B, A]` and variance `[1, A]`."""
    return -0.5 * (square / variance + jnp.log(2 * math.pi * variance)).sum(axis=-1)


def _levels(schedule: diffusion.Schedule, variance: jax.Array) -> _Level:
    return _Level(
        *(
            jnp.asarray(value, jnp.float32)
            for value in (
                schedule.sigma,
                np.sqrt(schedule.abar),
                _weight_clean(schedule),
                np.sqrt(schedule.alpha) * (1 - schedule.abar_previous) / (1 - schedule.abar),
                np.sqrt(schedule.alpha),
                schedule.beta,
            )
        ),
        step_std=jnp.sqrt(variance),
    )


def _mean(
    level: _Level,
    noised: jax.Array,
    predicted: jax.Array,
    clip_clean: float | jax.Array,
    clip: diffusion.Clip = jnp.clip,
) -> jax.Array:
    """m(u_t, t) like u_t, from the predicted noise."""
    clean = diffusion.implied_clean(noised, predicted, level.sigma, level.root_abar, clip_clean, clip)
    return level.weight_clean * clean + level.weight_noised * noised


def _noise(
    schedule: diffusion.Schedule, key: jax.Array, batch: int, variance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """u_T `[B, A]`, and what the steps draw, `[T, B, A]`."""
    start_key, step_key = jax.random.split(key)
    shape = batch, variance.shape[1]
    return jax.random.normal(start_key, shape), jax.random.normal(step_key, (schedule.num_levels, *shape))


def _down(step: Callable[..., Any], start: Any, levels: _Level, noise: jax.Array) -> tuple[Any, Any]:
    """`step(carry, (index, level, noise))` from level T to 1."""
    num_levels = noise.shape[0]
    return jax.lax.scan(
        step,
        start,
        (jnp.arange(num_levels), levels, noise),
        reverse=True,
        unroll=num_levels <= diffusion.UNROLLED_LEVELS,
    )


@jax.named_scope("chain")
def draw(
    schedule: diffusion.Schedule,
    predict_noise: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    batch: int,
    variance: jax.Array,
    clip_clean: float | jax.Array,
) -> Path:
    """Chains u_T ~ N(0, I), u_{t-1} ~ N(m(u_t, t), v_t), with

        ell = log |da/du| + sum_t log q(u_t | u_{t-1}) - log N(u_T; 0, I) - sum_t log N(u_{t-1}; m(u_t, t), v_t)

    where q is the noising, N(sqrt(alpha_t) u_{t-1}, beta_t). E[f(a) exp(ell)] over chains is the integral of f over
    the box, so exp(ell) stands for 1 / density of a in any mean over chains (importance sampling on paths: Neal 2001;
    for diffusion Zhang & Chen 2022, Vargas et al. 2023); by Jensen's inequality E[ell] is at most a's entropy.

    Args:
      predict_noise: (index, u_t) -> predicted noise like u_t, where index = t - 1.
      variance: v_t `[T, A]`, above zero at every level.
      clip_clean: bound of the clean action that the network implies at each step.
    """
    levels = _levels(schedule, variance)
    start, noise = _noise(schedule, key, batch, variance)
    unit = jnp.ones((1, variance.shape[1]))

    def reverse_step(path: Path, inputs: tuple[jax.Array, _Level, jax.Array]) -> tuple[Path, None]:
        index, level, step_noise = inputs
        noised, std = path.unsquashed, level.step_std[None]
        below = _mean(level, noised, predict_noise(index, noised), clip_clean) + std * step_noise
        forward = _log_normal(jnp.square(noised - level.root_alpha * below), level.beta * unit)
        backward = _log_normal(jnp.square(std * step_noise), jnp.square(std))
        return Path(below, path.ell + forward - backward), None

    path = Path(start, -_log_normal(jnp.square(start), unit))
    path, _ = _down(reverse_step, path, levels, noise)
    return path._replace(ell=path.ell + log_jacobian(path.unsquashed))


@jax.named_scope("chain_states")
def states(
    schedule: diffusion.Schedule,
    predict_noise: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    batch: int,
    variance: jax.Array,
    clip_clean: float | jax.Array,
) -> jax.Array:
    """u_0, ..., u_T `[T + 1, B, A]` of the chains that `draw` draws, with the same arguments."""
    start, noise = _noise(schedule, key, batch, variance)

    def reverse_step(noised: jax.Array, inputs: tuple[jax.Array, _Level, jax.Array]) -> Any:
        index, level, step_noise = inputs
        mean = _mean(level, noised, predict_noise(index, noised), clip_clean)
        below = mean + level.step_std[None] * step_noise
        return below, below

    _, below = _down(reverse_step, start, _levels(schedule, variance), noise)
    return jnp.concatenate([below, start[None]])


@jax.named_scope("chain_log_density")
def log_density(
    schedule: diffusion.Schedule,
    predicted: jax.Array,
    states: jax.Array,
    variance: jax.Array,
    clip_clean: float | jax.Array,
    clip_clean_with: diffusion.Clip = jnp.clip,
) -> jax.Array:
    """sum_t log N(u_{t-1}; m(u_t, t), v_t) `[B]` of chains `states` `[T + 1, B, A]`, nats.

    Args:
      predicted: the noise that a network predicts at u_1, ..., u_T, `[T, B, A]`.
      variance: v_t `[T, A]`, above zero at every level.
      clip_clean_with: what bounds the clean action, for who differentiates.
    """
    levels = jax.tree.map(lambda constant: constant[:, None, None], _levels(schedule, variance))
    mean = _mean(levels, states[1:], predicted, clip_clean, clip_clean_with)
    return _log_normal(jnp.square(states[:-1] - mean), variance[:, None]).sum(axis=0)
