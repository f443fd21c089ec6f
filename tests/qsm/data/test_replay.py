"""The replay buffer against a reference made of plain lists, and what it costs in memory."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agents.parts.types import Sampling, Transition
from envs.api import StepType, TimeStep
from qsm.data import replay
from qsm.data.replay import Replay
from qsm.data.sampling import sample as sample_batch
from tests.arrivals import stored

CAPACITY = 11
GAMMA = 0.5  # with whole rewards, sums and powers are exact in float32
DRAWS = 1024  # of at most 20 starts: one is missed with probability 1e-21

insert = jax.jit(replay.insert, donate_argnums=0)


class Row(NamedTuple):
    """One time step of one environment. `identity` stands for the observation."""

    identity: int
    step_type: StepType
    reward: int
    discount: int


@functools.cache
def sampler(n_step: int, batch_size: int = DRAWS):
    """Compiled `sampling.sample`; one program for each n and shape."""
    return jax.jit(functools.partial(sample_batch, sampling=Sampling(batch_size, n_step)))


def sample(buffer: Replay, n_step: int, seed: int = 0, batch_size: int = DRAWS) -> Transition:
    return sampler(n_step, batch_size)(buffer, discount=GAMMA, key=jax.random.key(seed))


# ---- The reference -----------------------------------------------------------------------------------------------


def episodes_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Cuts one environment's rows before each FIRST."""
    episodes: list[list[Row]] = []
    for row in rows:
        if row.step_type == StepType.FIRST or not episodes:
            episodes.append([])
        episodes[-1].append(row)
    return episodes


def reference(rows: Sequence[Row], n_step: int) -> dict[int, tuple[int, float, float, int]]:
    """By the start's identity: identity of the row with the action, reward, discount, identity of the end."""
    found = {}
    episodes = episodes_of(rows)
    for number, episode in enumerate(episodes):
        goes_on = number == len(episodes) - 1 and episode[-1].step_type != StepType.LAST
        for start in range(len(episode) - 1):
            window = episode[start + 1 : start + 1 + n_step]
            if goes_on and len(window) < n_step:
                continue
            reward = sum(GAMMA**i * row.reward for i, row in enumerate(window))
            discount = GAMMA ** len(window) * np.prod([row.discount for row in window])
            found[episode[start].identity] = (window[0].identity, reward, discount, window[-1].identity)
    return found


# ---- Contents ----------------------------------------------------------------------------------------------------


@st.composite
def streams(draw: st.DrawFn, max_rows: int = 30) -> list[Row]:
    """Episodes of one environment, each terminated, cut off by a time limit or interrupted by the next reset."""
    rows: list[Row] = []
    length = draw(st.integers(2, max_rows))
    while len(rows) < length:
        steps = draw(st.integers(1, 7))
        end = draw(st.sampled_from(["terminated", "truncated", "interrupted"]))
        rewards = draw(st.lists(st.integers(-8, 8), min_size=steps, max_size=steps))
        # What a FIRST row says of reward and discount must not matter.
        rows.append(Row(len(rows), StepType.FIRST, 1000, 0))
        rows += [Row(len(rows) + i, StepType.MID, reward, 1) for i, reward in enumerate(rewards)]
        if end != "interrupted":
            rows[-1] = rows[-1]._replace(step_type=StepType.LAST, discount=int(end == "truncated"))
    return rows[:length]


def filled(streams_of_rows: Sequence[Sequence[Row]], capacity: int = CAPACITY) -> Replay:
    """A buffer after every row of equally long streams, one for each environment, was inserted."""
    buffer = replay.create(capacity, len(streams_of_rows), 2, 1)
    for tick in zip(*streams_of_rows, strict=True):
        buffer = insert(buffer, *arrival(tick))
    return buffer


def arrival(tick: Sequence[Row]) -> tuple[np.ndarray, TimeStep]:
    """Action `[N, 1]` and time step `[N]`: observation (identity, environment), action minus the identity."""
    identity = np.array([row.identity for row in tick], np.float32)
    time_step = TimeStep(
        step_type=np.array([row.step_type for row in tick], np.int8),
        reward=np.array([row.reward for row in tick], np.float32),
        discount=np.array([row.discount for row in tick], np.float32),
        observation=np.stack([identity, np.arange(len(tick), dtype=np.float32)], axis=1),
    )
    return -identity[:, None], time_step


def drawn(batch: Transition) -> set[tuple[int, int, int, float, float, int, int]]:
    """Distinct transitions: environment, start, row of the action, reward, discount, end, its environment."""
    columns = np.column_stack(
        [
            batch.observation[:, 1],
            batch.observation[:, 0],
            -batch.action[:, 0],
            batch.reward,
            batch.discount,
            batch.next_observation,
        ]
    )
    return {tuple(row) for row in columns.tolist()}


def expected(streams_of_rows: Sequence[Sequence[Row]], n_step: int, capacity: int = CAPACITY) -> set[tuple]:
    return {
        (env, start, action, reward, discount, end, env)
        for env, rows in enumerate(streams_of_rows)
        for start, (action, reward, discount, end) in reference(rows[-capacity:], n_step).items()
    }


FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST


def stream(*kinds: StepType) -> list[Row]:
    return [Row(i, kind, i, 1) for i, kind in enumerate(kinds)]


# ---- Transitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_step", "num_envs"),
    [(3, 2), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 1), (1, 2), (3, 1)))],
)
@settings(max_examples=60)
@given(data=st.data())
def test_samples_are_exactly_the_transitions_of_the_reference(
    n_step: int, num_envs: int, data: st.DataObject
):
    contents = [data.draw(streams()) for _ in range(num_envs)]
    length = min(len(rows) for rows in contents)
    contents = [rows[:length] for rows in contents]
    want = expected(contents, n_step)
    if want:  # sampling a buffer without a start is the caller's mistake
        assert drawn(sample(filled(contents), n_step)) == want


def test_the_reference_on_an_episode_worked_out_by_hand():
    rows = [
        Row(0, StepType.FIRST, 1000, 0),
        Row(1, StepType.MID, 4, 1),
        Row(2, StepType.MID, 2, 1),
        Row(3, StepType.LAST, 8, 0),
        Row(4, StepType.FIRST, 1000, 0),
        Row(5, StepType.MID, 1, 1),
    ]
    assert reference(rows, 1) == {0: (1, 4, 0.5, 1), 1: (2, 2, 0.5, 2), 2: (3, 8, 0, 3), 4: (5, 1, 0.5, 5)}
    # Start 2 is shortened to one step by the end of its episode; start 4 waits for two more rows.
    assert reference(rows, 3) == {0: (1, 4 + 1 + 2, 0, 3), 1: (2, 2 + 4, 0, 3), 2: (3, 8, 0, 3)}


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_rewards_of_one_add_up_to_a_geometric_series(n_step: int, end: str):
    """From k steps before the end: (1 - gamma^m) / (1 - gamma) with m = min(n, k), and gamma^m of the value there.

    A time limit shortens the window and keeps the value of the last observation; a termination has none.
    """
    rows = [
        Row(0, FIRST, 1000, 0),
        *(Row(i, MID, 1, 1) for i in range(1, 7)),
        Row(7, LAST, 1, int(end == "truncated")),
    ]
    # The oldest row is gone, so that a row of the same episode lies behind the last one.
    found = drawn(sample(filled([rows], 7), n_step))
    assert {start for _, start, *_ in found} == set(range(1, 7))
    for _, start, action, reward, discount, stop, _ in found:
        steps = min(n_step, 7 - start)
        assert (action, stop) == (start + 1, start + steps)
        assert reward == pytest.approx((1 - GAMMA**steps) / (1 - GAMMA))
        assert discount == (0.0 if end == "terminated" and stop == 7 else GAMMA**steps)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("num_rows", [CAPACITY - 1, CAPACITY, CAPACITY + 1, 2 * CAPACITY + 5])
def test_no_window_crosses_the_write_cursor(n_step: int, num_rows: int):
    contents = [stream(FIRST, *[MID] * (num_rows - 1))]
    batch = sample(filled(contents), n_step)
    oldest = max(0, num_rows - CAPACITY)
    assert set(np.unique(batch.observation[:, 0])) == set(range(oldest, num_rows - n_step))
    np.testing.assert_array_equal(batch.next_observation[:, 0], batch.observation[:, 0] + n_step)


@pytest.mark.parametrize("n_step", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_sampling_is_uniform_over_valid_starts(n_step: int):
    first = stream(*[FIRST, MID, LAST] * 3, *[FIRST, *[MID] * 4])
    second = stream(FIRST, *[MID] * 6, LAST, FIRST, MID, FIRST, MID, MID, LAST)
    contents = [first, second]
    assert len(first) == len(second) == 14 > CAPACITY
    batch = sample(filled(contents), n_step, seed=3, batch_size=50_000)
    counts = Counter(zip(*np.asarray(batch.observation).T.tolist(), strict=True))
    assert set(counts) == {(row[1], row[0]) for row in expected(contents, n_step)}
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_draws_follow_the_key():
    buffer = filled([stream(FIRST, *[MID] * 9)])
    same = (sample(buffer, 1, seed=5), sample(buffer, 1, seed=5), sample(buffer, 1, seed=6))
    np.testing.assert_array_equal(same[0].observation, same[1].observation)
    assert np.any(same[0].observation != same[2].observation)


def test_the_discount_is_an_argument():
    buffer = filled([stream(FIRST, *[MID] * 9)])
    batch = sampler(3)(buffer, discount=jnp.asarray(0.25), key=jax.random.key(0))
    np.testing.assert_array_equal(batch.discount, np.full(DRAWS, 0.25**3))


# ---- Storage -----------------------------------------------------------------------------------------------------


def test_a_batch_stays_as_it_is_when_the_buffer_moves_on():
    rows = stream(FIRST, *[MID] * 30)
    buffer = filled([rows[:11]])
    batch = sample(buffer, 3)
    before = jax.tree.map(np.array, batch)
    for row in rows[11:]:
        buffer = insert(buffer, *arrival([row]))
    jax.block_until_ready(buffer)
    jax.tree.map(np.testing.assert_array_equal, batch, before)


def test_what_was_inserted_may_be_reused():
    buffer = replay.create(CAPACITY, 1, 2, 1)
    action, time_step = arrival([Row(7, StepType.MID, 3, 1)])
    buffer = jax.block_until_ready(insert(buffer, action, time_step))
    for array in (action, *time_step):
        array[...] = 99
    row = stored(buffer)
    assert row.observation.tolist() == [[[7, 0]]]
    assert row.action.tolist() == [[[-7]]]
    assert (row.reward.item(), row.discount.item(), row.step_type.item()) == (3, 1, StepType.MID)


def test_a_row_is_written_in_the_order_of_arrival():
    saved = stored(filled([stream(FIRST, *[MID] * 14), stream(FIRST, *[MID] * 13, LAST)]))
    assert saved.observation[:, 0, 0].tolist() == list(range(4, 15))
    assert saved.action[:, 1, 0].tolist() == [-i for i in range(4, 15)]
    assert saved.step_type[-1].tolist() == [StepType.MID, StepType.LAST]


@pytest.mark.parametrize("num_rows", [0, 1, 7, CAPACITY, CAPACITY + 4])
@pytest.mark.parametrize("capacity", [5, CAPACITY])
def test_rows_round_trip_into_any_smaller_capacity(num_rows: int, capacity: int):
    rows = stream(*[FIRST, MID, MID, LAST] * 5)
    saved = stored(filled([rows[:num_rows]]))
    buffer = replay.from_rows(replay.create(capacity, 1, 2, 1), [saved])
    kept = rows[max(0, num_rows - min(CAPACITY, capacity)) : num_rows]
    again = stored(buffer)
    assert again.observation[:, 0, 0].tolist() == [row.identity for row in kept]
    assert again.stop.tolist() == [num_rows]
    for name in replay.ROW_FIELDS:
        there, here = getattr(saved, name), getattr(again, name)
        np.testing.assert_array_equal(here, there[len(there) - len(kept) :])
        assert here.dtype == there.dtype
    # It goes on as a buffer that was never saved would.
    for row in rows[num_rows : num_rows + 3]:
        buffer = insert(buffer, *arrival([row]))
    written = [*kept, *rows[num_rows : num_rows + 3]][-capacity:]
    assert stored(buffer).observation[:, 0, 0].tolist() == [row.identity for row in written]


@pytest.mark.parametrize("fetched", [1, 6, 1000])
def test_rows_saved_in_parts_are_the_buffer(fetched: int, monkeypatch: pytest.MonkeyPatch):
    """Environments that reset at different times, saved at every third arrival, the ring going round twice."""
    monkeypatch.setattr(replay, "FETCHED_ROWS", fetched)
    buffer = replay.create(CAPACITY, 2, 2, 1)
    shapes = jax.eval_shape(lambda: replay.create(CAPACITY, 2, 2, 1))
    parts: list[replay.Rows] = []
    for i in range(2 * CAPACITY + 3):
        present = np.array([True, i % 4 != 0])
        buffer = jax.jit(replay.insert)(buffer, *arrival([Row(i, MID, i, 1), Row(-i, MID, i, 1)]), present)
        if i % 3 == 0:
            parts.append(stored(buffer, parts[-1].stop if parts else None))
            assert len(parts[-1].step_type) <= 3
            jax.tree.map(np.testing.assert_array_equal, replay.from_rows(shapes, parts), buffer)
    needed = [part for part in parts if np.any(part.stop > np.asarray(buffer.written) - CAPACITY)]
    assert len(needed) < len(parts)
    assert parts[-1].stop.tolist() == np.asarray(buffer.written).tolist()
    jax.tree.map(np.testing.assert_array_equal, replay.from_rows(shapes, needed), buffer)
    with pytest.raises(ValueError, match="missing between"):
        replay.from_rows(shapes, [*needed[:1], *needed[2:]])
    with pytest.raises(ValueError, match="oldest rows"):
        replay.from_rows(shapes, needed[1:])
    with pytest.raises(ValueError, match="2 environments, not 1"):
        replay.from_rows(jax.eval_shape(lambda: replay.create(CAPACITY, 1, 2, 1)), needed)


def test_memory_is_within_five_percent_of_the_bare_frames():
    # The narrowest observations and actions of the suite (pendulum) leave the least room.
    capacity, num_envs, observation_size, action_size = 1_000_000, 1, 3, 1
    shapes = jax.eval_shape(lambda: replay.create(capacity, num_envs, observation_size, action_size))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    bare = capacity * num_envs * 4 * (observation_size + action_size + 2)
    assert bare < size <= 1.05 * bare
    assert replay.nbytes(capacity, num_envs, observation_size, action_size) == size


@pytest.mark.parametrize("sizes", [(7, 1, 3, 2), (5, 4, 1, 6), (5, 4, 1, 6, True)])
def test_nbytes_is_what_create_takes(sizes: Any):
    assert replay.nbytes(*sizes) == sum(leaf.nbytes for leaf in jax.tree.leaves(replay.create(*sizes)))


def test_insert_and_sample_write_in_place():
    """The compiled program aliases its donated buffer and holds no second one, at a million rows."""
    shapes = jax.eval_shape(lambda: replay.create(1_000_000, 1, 17, 6))
    row = jax.eval_shape(lambda: (jnp.zeros((1, 6)), TimeStep(*arrival([Row(0, FIRST, 0, 1)])[1])))
    time_step = row[1]._replace(observation=jax.ShapeDtypeStruct((1, 17), jnp.float32))

    def step(
        buffer: Replay, action: jax.Array, time_step: TimeStep, key: jax.Array
    ) -> tuple[Replay, Transition]:
        buffer = replay.insert(buffer, action, time_step)
        return buffer, sample_batch(buffer, Sampling(256, 1), 0.99, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(step, donate_argnums=0).lower(shapes, row[0], time_step, key).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= replay.nbytes(1_000_000, 1, 17, 6)
    assert memory.temp_size_in_bytes < 1_000_000  # not even the smallest field, of a byte a row
    assert not re.search(r"\[1000000\S* copy\(", compiled.as_text() or "")


def test_a_seed_axis_samples_as_its_members_do():
    contents = [stream(*[FIRST, MID, MID, LAST] * 4), stream(FIRST, *[MID] * 15)]
    buffers = [filled([rows]) for rows in contents]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *buffers)
    action, time_step = arrival([Row(16, FIRST, 0, 1)])
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), (action, time_step))
    stacked = jax.jit(jax.vmap(replay.insert))(stacked, *both)
    sampling = Sampling(64, 3)

    def draw(buffer: Replay, key: jax.Array) -> Transition:
        return sample_batch(buffer, sampling, GAMMA, key)

    batch = jax.jit(jax.vmap(draw))(stacked, jax.vmap(jax.random.key)(jnp.arange(2)))
    for i, buffer in enumerate(buffers):
        alone = jax.jit(draw)(insert(buffer, action, time_step), jax.random.key(i))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf, i=i: leaf[i], batch), alone)
