"""Rows that are sampled are named, and may be changed: the actions that were taken, and how often they are drawn."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agents.parts.types import Index, Revision, Sampling
from envs.api import StepType, TimeStep
from qsm.data import replay, segments
from qsm.data.replay import Replay
from qsm.data.sampling import sample
from tests.arrivals import stored

NUM_ROWS, NUM_ENVS = 6, 2
insert = jax.jit(replay.insert)


def filled(num_ticks: int, prioritized: bool = True) -> Replay:
    """One long episode of each environment: observation (tick, environment), action minus the tick."""
    buffer = replay.create(NUM_ROWS, NUM_ENVS, 2, 1, prioritized)
    for tick in range(num_ticks):
        buffer = insert(buffer, *arrival(tick))
    return buffer


def arrival(tick: int) -> tuple[np.ndarray, TimeStep]:
    kind = StepType.FIRST if tick == 0 else StepType.MID
    step = TimeStep(
        np.full(NUM_ENVS, kind, np.int8),
        np.full(NUM_ENVS, tick, np.float32),
        np.ones(NUM_ENVS, np.float32),
        np.stack([np.full(NUM_ENVS, tick), np.arange(NUM_ENVS)], axis=1).astype(np.float32),
    )
    return np.full((NUM_ENVS, 1), -tick, np.float32), step


def index(*starts: tuple[int, int]) -> Index:
    row, environment = np.array(starts, np.int32).T
    return Index(jnp.asarray(row), jnp.asarray(environment))


@pytest.mark.parametrize("prioritized", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("num_ticks", [4, NUM_ROWS + 3])
def test_a_batch_names_the_rows_it_begins_at(num_ticks: int, prioritized: bool):
    buffer = filled(num_ticks, prioritized)
    batch = jax.jit(sample, static_argnames="sampling")(
        buffer, sampling=Sampling(64, 2, prioritized=prioritized), discount=0.5, key=jax.random.key(0)
    )
    assert batch.index is not None
    row, environment = np.asarray(batch.index.row), np.asarray(batch.index.environment)
    np.testing.assert_array_equal(buffer.observation[row, environment], batch.observation)
    np.testing.assert_array_equal(buffer.action[(row + 1) % NUM_ROWS, environment], batch.action)
    assert np.unique(row).size > 1 and np.unique(environment).size == NUM_ENVS


def test_a_revision_changes_its_rows_and_no_others():
    """The action lies in the row after the start, also across the end of the ring; the priority in the start's own."""
    before = filled(NUM_ROWS + 3)
    change = Revision(jnp.array([[7.0], [8.0]]), jnp.array([0.5, 2.0]))
    after = jax.jit(replay.revise)(before, index((1, 0), (NUM_ROWS - 1, 1)), change)
    action, priority = np.array(before.action), np.array(before.priority)
    action[2, 0], action[0, 1] = 7, 8
    priority[1, 0], priority[NUM_ROWS - 1, 1] = 0.5, 2
    np.testing.assert_array_equal(after.action, action)
    np.testing.assert_array_equal(after.priority, priority)
    same = {"action": before.action, "priority": before.priority, "largest_priority": before.largest_priority}
    jax.tree.map(np.testing.assert_array_equal, after._replace(**same), before)


@pytest.mark.parametrize(("action", "priority"), [(None, 2.0), (7.0, None), (None, None)])
def test_what_a_revision_leaves_out_stays(action: float | None, priority: float | None):
    before = filled(4)
    change = Revision(
        None if action is None else jnp.full((1, 1), action),
        None if priority is None else jnp.full(1, priority),
    )
    after = replay.revise(before, index((1, 0)), change)
    assert np.array_equal(after.action, before.action) == (action is None)
    assert np.array_equal(after.priority, before.priority) == (priority is None)  # type: ignore[arg-type]


def test_of_a_start_that_was_drawn_twice_the_last_counts():
    change = Revision(jnp.array([[7.0], [8.0], [9.0]]), jnp.array([5.0, 2.0, 3.0]))
    after = replay.revise(filled(4), index((1, 0), (1, 1), (1, 0)), change)
    assert after.priority is not None and after.largest_priority is not None
    assert after.action[2, :, 0].tolist() == [9, 8]
    assert after.priority[1].tolist() == [3, 2]
    assert after.largest_priority.item() == 5


def test_nothing_changes_where_it_is_not_to():
    before = filled(4)
    after = replay.revise(before, index((1, 0)), Revision(jnp.ones((1, 1)), jnp.full(1, 9.0)), np.False_)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_new_rows_get_the_largest_priority_that_was_set():
    buffer = filled(2)
    assert buffer.priority is not None
    np.testing.assert_array_equal(buffer.priority[:3], [[1, 1], [1, 1], [0, 0]])
    buffer = replay.revise(buffer, index((0, 0)), Revision(priority=jnp.full(1, 4.0)))
    buffer = replay.revise(buffer, index((0, 0)), Revision(priority=jnp.full(1, 0.5)))
    buffer = insert(buffer, *arrival(2))
    assert buffer.priority is not None
    np.testing.assert_array_equal(buffer.priority[:3], [[0.5, 1], [1, 1], [4, 4]])


def test_starts_are_drawn_in_proportion_to_their_priorities():
    buffer = filled(5)  # starts are rows 0 to 3 of both
    starts = [(row, env) for row in range(4) for env in range(NUM_ENVS)]
    weights = np.array([1, 2, 3, 4, 0, 5, 6, 0.5])
    buffer = replay.revise(buffer, index(*starts), Revision(priority=jnp.asarray(weights, jnp.float32)))
    batch = jax.jit(sample, static_argnames="sampling")(
        buffer, sampling=Sampling(40_000, 1, prioritized=True), discount=1.0, key=jax.random.key(3)
    )
    assert batch.index is not None and np.isfinite(batch.reward).all()
    place = np.asarray(batch.index.row) * NUM_ENVS + np.asarray(batch.index.environment)
    counts = np.bincount(place, minlength=len(starts))
    assert counts[4] == 0
    drawn = weights > 0
    expected = weights[drawn] / weights.sum() * counts.sum()
    assert stats.chisquare(counts[drawn], expected).pvalue > 0.001


def test_priorities_without_a_place_are_refused():
    with pytest.raises(ValueError, match="its Sampling is not prioritized"):
        replay.revise(filled(4, False), index((1, 0)), Revision(priority=jnp.ones(1)))


# ---- On disk -----------------------------------------------------------------------------------------------------


def test_priorities_come_back_from_the_disk(tmp_path: Path):
    buffer = filled(NUM_ROWS + 3)
    buffer = replay.revise(buffer, index((1, 0), (4, 1)), Revision(priority=jnp.array([7.0, 0.5])))
    rows = stored(buffer)
    segment = segments.write(tmp_path, 10, rows)
    again = replay.from_rows(jax.eval_shape(lambda: buffer), [segments.read(tmp_path, segment)])
    jax.tree.map(np.testing.assert_array_equal, again, buffer)


def test_rows_without_priorities_are_told_apart():
    rows = stored(filled(4, False))
    assert "priority" not in rows.arrays()
    with pytest.raises(ValueError, match="hold no priority"):
        replay.from_rows(filled(4), [rows])


def test_rows_that_were_saved_anew_replace_the_former():
    def segment(name: str, first: int, stop: int) -> segments.Segment:
        return segments.Segment(f"{name}.npz", "", (first, first), (stop, stop + 1))

    old, next_one = segment("1", 0, 4), segments.Segment("2.npz", "", (4, 5), (8, 8))
    assert segments.still_there([old, next_one], np.array([8, 8]), 100) == [old, next_one]
    assert segments.still_there([old, next_one], np.array([9, 9]), 4) == [next_one]
    # Revised, so that the whole buffer was saved: also where the ring has gone round meanwhile.
    for first in (0, 3):
        whole = segment("2", first, 8)
        assert segments.still_there([old, whole], np.array([8, 9]), 100) == [whole]
