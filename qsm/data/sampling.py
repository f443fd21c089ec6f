"""n-step transitions drawn from the replay buffer. Pure and un-jitted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from agents.parts.types import Index, Sampling, Transition
from envs.api import StepType
from qsm.data.replay import Replay

MAX_ROUNDS = 1_000
"""Rounds of rejection after which a buffer counts as one without a valid start."""


def sample(
    replay: Replay, sampling: Sampling, discount: jax.Array | float, key: jax.Array, wanted: Any = True
) -> Transition:
    """A batch of n-step transitions, uniform over valid starts and environments. All arrays are fresh.

    Where the buffer holds priorities, a start is drawn in proportion to its own.

    A row is a valid start if another row of its episode follows and its window is closed: n rows have been written
    after it, or its episode ended before that, in which case n is shortened with the matching power of gamma. An
    episode ends at its LAST row, or where the next row is FIRST (a simulation that failed). Starts are drawn by
    rejection, so the buffer must hold at least one: n + 1 rows of an episode do, or any whole episode. Where there is
    none (every environment fails at every step) the rewards are NaN, so that the run is stopped and does not hang.

    Args:
      discount: gamma per row; an argument so that it may be a swept hyperparameter.
      wanted: `[]` bool; where false any rows will do, so that a frozen seed keeps no other waiting.
    """
    num_rows, num_envs = replay.step_type.shape
    oldest = (replay.cursor - replay.size) % num_rows  # [N]
    newest = jnp.maximum(replay.size.max() - 1, 1)
    n = sampling.n_step

    def propose(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if sampling.prioritized:
            key, accept_key = jax.random.split(key)
        age_key, env_key = jax.random.split(key)
        age = jax.random.randint(age_key, (sampling.batch_size,), 0, newest)
        env = jax.random.randint(env_key, (sampling.batch_size,), 0, num_envs)
        valid = _is_start(replay, oldest[env], age, env, n)
        if sampling.prioritized:
            valid &= _is_accepted(replay, (oldest[env] + age) % num_rows, env, accept_key)
        return age, env, valid | ~jnp.asarray(wanted)

    def redraw(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        key, age, env, valid, count = carry
        key, proposal_key = jax.random.split(key)
        new_age, new_env, new_valid = propose(proposal_key)
        age, env = jnp.where(valid, age, new_age), jnp.where(valid, env, new_env)
        return key, age, env, valid | new_valid, count + 1

    key, first_key = jax.random.split(key)
    _, age, env, valid, _ = jax.lax.while_loop(
        lambda carry: ~carry[3].all() & (carry[4] < MAX_ROUNDS),
        redraw,
        (key, *propose(first_key), jnp.ones((), jnp.int32)),
    )
    batch = _transition(replay, (oldest[env] + age) % num_rows, env, discount, n)
    return batch._replace(reward=jnp.where(valid, batch.reward, jnp.nan))


def _is_accepted(replay: Replay, row: jax.Array, env: jax.Array, key: jax.Array) -> jax.Array:
    """Which candidates `[B]` are taken: each with the probability that its priority is of the largest."""
    priority, largest = replay.priority, replay.largest_priority
    assert priority is not None and largest is not None, "the buffer was made without priorities"
    return jax.random.uniform(key, row.shape) * largest < priority[row, env]


def _is_start(replay: Replay, oldest: jax.Array, age: jax.Array, env: jax.Array, n: int) -> jax.Array:
    """Which candidates `[B]` (rows after their environment's oldest, environment) are valid starts."""
    num_rows, size = replay.num_rows, replay.size[env]
    closed = age + n < size
    for k in range(1, n):
        last = replay.step_type[(oldest + age + k) % num_rows, env] == StepType.LAST
        closed |= last & (age + k < size)
        after = age + k + 1
        interrupted = replay.step_type[(oldest + after) % num_rows, env] == StepType.FIRST
        closed |= interrupted & (after < size)
    # A LAST row needs no check of its own: what follows it is FIRST, or not there yet.
    return closed & (replay.step_type[(oldest + age + 1) % num_rows, env] != StepType.FIRST)


def _transition(
    replay: Replay, row: jax.Array, env: jax.Array, gamma: jax.Array | float, n: int
) -> Transition:
    """The n-step transitions that start at `row` `[B]`, shortened where the episode ends."""
    num_rows = replay.num_rows
    reward = jnp.zeros(row.shape)
    discount = jnp.ones(row.shape)
    end = row
    goes_on = jnp.ones(row.shape, bool)
    for k in range(1, n + 1):
        here = (row + k) % num_rows
        # A FIRST row belongs to the next episode; past the first step only (valid starts have a successor).
        goes_on &= replay.step_type[here, env] != StepType.FIRST
        reward += jnp.where(goes_on, discount * replay.reward[here, env], 0.0)
        discount *= jnp.where(goes_on, gamma * replay.discount[here, env], 1.0)
        end = jnp.where(goes_on, here, end)
        goes_on &= replay.step_type[here, env] != StepType.LAST
    return Transition(
        observation=replay.observation[row, env],
        action=replay.action[(row + 1) % num_rows, env],
        reward=reward,
        discount=discount,
        next_observation=replay.observation[end, env],
        index=Index(row, env),
    )
