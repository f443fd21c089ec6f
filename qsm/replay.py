"""One replay buffer for the host loop, the device loop and the seed axis (docs/architecture.md).

Each time step is stored once, in the row of its arrival: the observation, with the action, reward and discount
that led to it. n-step transitions are formed when sampling. All functions are pure and un-jitted; a `Replay` is
donated to the jitted function that inserts into it, so rows are written in place.

Write before you read: on the CPU backend a gather before the write in the same program copies the whole buffer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.api import Sampling, Transition
from envs.api import StepType, TimeStep

ROW_FIELDS = ("observation", "action", "reward", "discount", "step_type")


class Replay(NamedTuple):
    """Ring of T rows for each of N environments stepped together.

    Fields of a FIRST row other than its observation mean nothing.
    """

    observation: jax.Array  # [T, N, O] float32
    action: jax.Array  # [T, N, A] float32, the action that led here
    reward: jax.Array  # [T, N] float32, received on arriving here
    discount: jax.Array  # [T, N] float32, the environment's own: 0 at termination, else 1
    step_type: jax.Array  # [T, N] int8
    cursor: jax.Array  # [] int32, row that the next insert writes
    size: jax.Array  # [] int32, rows written so far, at most T

    @property
    def capacity(self) -> int:
        return self.step_type.shape[0]


def create(capacity: int, num_envs: int, observation_size: int, action_size: int) -> Replay:
    """An empty buffer of `capacity` rows `[T]`."""
    return Replay(
        observation=jnp.zeros((capacity, num_envs, observation_size), jnp.float32),
        action=jnp.zeros((capacity, num_envs, action_size), jnp.float32),
        reward=jnp.zeros((capacity, num_envs), jnp.float32),
        discount=jnp.zeros((capacity, num_envs), jnp.float32),
        step_type=jnp.zeros((capacity, num_envs), jnp.int8),
        cursor=jnp.zeros((), jnp.int32),
        size=jnp.zeros((), jnp.int32),
    )


def nbytes(capacity: int, num_envs: int, observation_size: int, action_size: int) -> int:
    """Bytes that `create` will take."""
    return capacity * num_envs * (4 * (observation_size + action_size + 2) + 1) + 8


def insert(replay: Replay, action: jax.Array, time_step: TimeStep) -> Replay:
    """Writes one row: `action` `[N, A]` and the `time_step` (leading axis `[N]`) that it led to."""
    row = (time_step.observation, action, time_step.reward, time_step.discount, time_step.step_type)

    def write(name: str, values: Any) -> jax.Array:
        storage = getattr(replay, name)
        return jax.lax.dynamic_update_index_in_dim(storage, values.astype(storage.dtype), replay.cursor, 0)

    return replay._replace(
        **{name: write(name, values) for name, values in zip(ROW_FIELDS, row, strict=True)},
        cursor=(replay.cursor + 1) % replay.capacity,
        size=jnp.minimum(replay.size + 1, replay.capacity),
    )


def sample(replay: Replay, sampling: Sampling, discount: jax.Array | float, key: jax.Array) -> Transition:
    """A batch of n-step transitions, uniform over valid starts and environments. All arrays are fresh.

    A row is a valid start if another row of its episode follows and its window is closed: n rows have been written
    after it, or its episode ended before that, in which case n is shortened with the matching power of gamma. An
    episode ends at its LAST row, or where the next row is FIRST (a run that was interrupted). Starts are drawn by
    rejection, so the buffer must hold at least one: n + 1 rows of an episode do, or any whole episode.

    Args:
      discount: gamma per row; an argument so that it may be a swept hyperparameter.
    """
    num_rows, num_envs = replay.step_type.shape
    oldest = (replay.cursor - replay.size) % num_rows
    n = sampling.n_step

    def propose(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        age_key, env_key = jax.random.split(key)
        age = jax.random.randint(age_key, (sampling.batch_size,), 0, replay.size - 1)
        env = jax.random.randint(env_key, (sampling.batch_size,), 0, num_envs)
        return age, env, _is_start(replay, oldest, age, env, n)

    def redraw(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        key, age, env, valid = carry
        key, proposal_key = jax.random.split(key)
        new_age, new_env, new_valid = propose(proposal_key)
        return key, jnp.where(valid, age, new_age), jnp.where(valid, env, new_env), valid | new_valid

    key, first_key = jax.random.split(key)
    carry = jax.lax.while_loop(lambda carry: ~carry[3].all(), redraw, (key, *propose(first_key)))
    _, age, env, _ = carry
    return _transition(replay, (oldest + age) % num_rows, env, discount, n)


def _is_start(replay: Replay, oldest: jax.Array, age: jax.Array, env: jax.Array, n: int) -> jax.Array:
    """Which candidates `[B]` (rows after the oldest, environment) are valid starts."""
    num_rows = replay.capacity
    valid = replay.step_type[(oldest + age + 1) % num_rows, env] != StepType.FIRST
    valid &= replay.step_type[(oldest + age) % num_rows, env] != StepType.LAST
    closed = age + n < replay.size
    for k in range(1, n):
        last = replay.step_type[(oldest + age + k) % num_rows, env] == StepType.LAST
        closed |= last & (age + k < replay.size)
        after = age + k + 1
        interrupted = replay.step_type[(oldest + after) % num_rows, env] == StepType.FIRST
        closed |= interrupted & (after < replay.size)
    return valid & closed


def _transition(
    replay: Replay, row: jax.Array, env: jax.Array, gamma: jax.Array | float, n: int
) -> Transition:
    """The n-step transitions that start at `row` `[B]`, shortened where the episode ends."""
    num_rows = replay.capacity
    reward = jnp.zeros(row.shape)
    discount = jnp.ones(row.shape)
    end = row
    going = jnp.ones(row.shape, bool)
    for k in range(1, n + 1):
        here = (row + k) % num_rows
        # A FIRST row belongs to the next episode; past the first step only (valid starts have a successor).
        going &= replay.step_type[here, env] != StepType.FIRST
        reward += jnp.where(going, discount * replay.reward[here, env], 0.0)
        discount *= jnp.where(going, gamma * replay.discount[here, env], 1.0)
        end = jnp.where(going, here, end)
        going &= replay.step_type[here, env] != StepType.LAST
    return Transition(
        observation=replay.observation[row, env],
        action=replay.action[(row + 1) % num_rows, env],
        reward=reward,
        discount=discount,
        next_observation=replay.observation[end, env],
    )


def rows(replay: Replay) -> dict[str, np.ndarray]:
    """What a buffer holds, on the host, to be saved: the rows written so far, oldest first. Copies them."""
    size, cursor = int(replay.size), int(replay.cursor)
    order = (cursor - size + np.arange(size)) % replay.capacity
    return {name: np.asarray(getattr(replay, name))[order] for name in ROW_FIELDS}


def from_rows(empty: Replay, saved: dict[str, np.ndarray]) -> Replay:
    """A buffer with the rows that `rows` gave; the newest of them where the buffer holds fewer."""
    size = min(len(saved["step_type"]), empty.capacity)

    def load(name: str) -> jax.Array:
        storage = getattr(empty, name)
        return storage.at[:size].set(saved[name][len(saved[name]) - size :])

    fields = {name: load(name) for name in ROW_FIELDS}
    cursor = jnp.asarray(size % empty.capacity, jnp.int32)
    return empty._replace(**fields, cursor=cursor, size=jnp.asarray(size, jnp.int32))
