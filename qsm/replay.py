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
    """For each of N environments stepped together, a ring of T rows.

    Every environment has a cursor of its own, for the reset that follows an episode is a row more: environments whose
    episodes end at different times fill their rings at different rates. Fields of a FIRST row other than its
    observation mean nothing.
    """

    observation: jax.Array  # [T, N, O] float32
    action: jax.Array  # [T, N, A] float32, the action that led here
    reward: jax.Array  # [T, N] float32, received on arriving here
    discount: jax.Array  # [T, N] float32, the environment's own: 0 at termination, else 1
    step_type: jax.Array  # [T, N] int8
    cursor: jax.Array  # [N] int32, row that the next insert writes
    size: jax.Array  # [N] int32, rows written so far, at most T

    @property
    def capacity(self) -> int:
        return self.step_type.shape[0]


def create(capacity: int, num_envs: int, observation_size: int, action_size: int) -> Replay:
    """An empty buffer of `capacity` rows `[T]` for each environment."""
    return Replay(
        observation=jnp.zeros((capacity, num_envs, observation_size), jnp.float32),
        action=jnp.zeros((capacity, num_envs, action_size), jnp.float32),
        reward=jnp.zeros((capacity, num_envs), jnp.float32),
        discount=jnp.zeros((capacity, num_envs), jnp.float32),
        step_type=jnp.zeros((capacity, num_envs), jnp.int8),
        cursor=jnp.zeros((num_envs,), jnp.int32),
        size=jnp.zeros((num_envs,), jnp.int32),
    )


def nbytes(capacity: int, num_envs: int, observation_size: int, action_size: int) -> int:
    """Bytes that `create` will take."""
    return capacity * num_envs * bytes_per_row(observation_size, action_size) + 8 * num_envs


def bytes_per_row(observation_size: int, action_size: int) -> int:
    """Bytes of one row of one environment."""
    return 4 * (observation_size + action_size + 2) + 1


def insert(replay: Replay, action: jax.Array, time_step: TimeStep, present: Any = True) -> Replay:
    """Writes a row: `action` `[N, A]` and the `time_step` (leading axis `[N]`) that it led to.

    Args:
      present: `[N]` bool; the environments that have a row to write.
    """
    num_rows, num_envs = replay.step_type.shape
    present = jnp.broadcast_to(present, (num_envs,))
    row = (time_step.observation, action, time_step.reward, time_step.discount, time_step.step_type)
    env = jnp.arange(num_envs)
    # A row past the end is dropped. One scatter, in place: measured at 0.1 ms with a million rows on the CPU.
    target = jnp.where(present, replay.cursor, num_rows)

    def write(name: str, values: Any) -> jax.Array:
        storage = getattr(replay, name)
        return storage.at[target, env].set(values.astype(storage.dtype), mode="drop", unique_indices=True)

    return replay._replace(
        **{name: write(name, values) for name, values in zip(ROW_FIELDS, row, strict=True)},
        cursor=(replay.cursor + present) % num_rows,
        size=jnp.minimum(replay.size + present, num_rows),
    )


MAX_ROUNDS = 1_000
"""Rounds of rejection after which a buffer counts as one without a valid start."""


def sample(
    replay: Replay, sampling: Sampling, discount: jax.Array | float, key: jax.Array, wanted: Any = True
) -> Transition:
    """A batch of n-step transitions, uniform over valid starts and environments. All arrays are fresh.

    A row is a valid start if another row of its episode follows and its window is closed: n rows have been written
    after it, or its episode ended before that, in which case n is shortened with the matching power of gamma. An
    episode ends at its LAST row, or where the next row is FIRST (a simulation that failed). Starts are drawn by
    rejection, so the buffer must hold at least one: n + 1 rows of an episode do, or any whole episode. Where there is
    none (every environment fails at every step) the rewards are NaN, so that the run is stopped and does not hang.

    Args:
      discount: gamma per row; an argument so that it may be a swept hyperparameter.
      wanted: `[]` bool; where false any rows will do, so that a seed that is held keeps no other waiting.
    """
    num_rows, num_envs = replay.step_type.shape
    oldest = (replay.cursor - replay.size) % num_rows  # [N]
    newest = jnp.maximum(replay.size.max() - 1, 1)
    n = sampling.n_step

    def propose(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        age_key, env_key = jax.random.split(key)
        age = jax.random.randint(age_key, (sampling.batch_size,), 0, newest)
        env = jax.random.randint(env_key, (sampling.batch_size,), 0, num_envs)
        return age, env, _is_start(replay, oldest[env], age, env, n) | ~jnp.asarray(wanted)

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


def _is_start(replay: Replay, oldest: jax.Array, age: jax.Array, env: jax.Array, n: int) -> jax.Array:
    """Which candidates `[B]` (rows after their environment's oldest, environment) are valid starts."""
    num_rows, size = replay.capacity, replay.size[env]
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
    """What a buffer holds, on the host, to be saved: each environment's rows, oldest first, and `size` `[N]`.

    Environments with fewer rows than the fullest are padded with zeros at the end.
    """
    size, cursor = np.asarray(replay.size), np.asarray(replay.cursor)
    age = np.arange(size.max())[:, None]
    order = (cursor - size + age) % replay.capacity
    there = age < size
    env = np.arange(len(size))

    def select(name: str) -> np.ndarray:
        values = np.asarray(getattr(replay, name))[order, env]
        return np.where(there.reshape(there.shape + (1,) * (values.ndim - 2)), values, 0).astype(values.dtype)

    return {name: select(name) for name in ROW_FIELDS} | {"size": size.astype(np.int32)}


def from_rows(empty: Replay, saved: dict[str, np.ndarray]) -> Replay:
    """A buffer on the host with the rows that `rows` gave; the newest of them where the buffer holds fewer.

    Args:
      empty: any buffer of the same sizes, or its shapes.
    """
    num_rows, num_envs = empty.step_type.shape
    there = np.asarray(saved["size"])
    size = np.minimum(there, num_rows)
    age = np.arange(size.max(initial=0))[:, None]
    source = np.minimum(there - size + age, np.maximum(there - 1, 0))
    env = np.arange(num_envs)

    def load(name: str) -> np.ndarray:
        storage = np.zeros(getattr(empty, name).shape, getattr(empty, name).dtype)
        if len(age):
            kept = (age < size).reshape(len(age), num_envs, *(1,) * (storage.ndim - 2))
            storage[: len(age)] = np.where(kept, np.asarray(saved[name])[source, env], 0)
        return storage

    fields: dict[str, Any] = {name: load(name) for name in ROW_FIELDS}
    fields |= {"cursor": (size % num_rows).astype(np.int32), "size": size.astype(np.int32)}
    return Replay(**fields)
