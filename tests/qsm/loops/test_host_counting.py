"""The host loop counts steps, updates and events exactly, and goes on from its counters."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.api import StepType
from qsm.learning.learner import Learner, TrainState
from qsm.loops.host_loop import HostLoop
from qsm.loops.schedule import Counters, updates_due
from tests.arrivals import stored
from tests.counted_task import Task, options
from tests.recorder import Recorder
from tests.tally_agent import TallyAgent

EPISODE_STEPS = 3
FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(TallyAgent(), Task().spec, seeds=0, capacity=64)


def loop(
    learner: Learner, recorder: Recorder, environment: Task | None = None, **changes: Any
) -> tuple[TrainState, Counters]:
    loop = HostLoop(learner, [environment or Task()], [], options(**changes))
    return recorder.run(loop)


def kinds(state: TrainState) -> list[int]:
    return rows_of(state)["step_type"][:, 0].tolist()


def rows_of(state: TrainState, seed: int = 0) -> dict[str, np.ndarray]:
    """The rows of one seed's buffer."""
    return stored(jax.tree.map(lambda leaf: leaf[seed], state.replay))._asdict()


def actions(state: TrainState) -> np.ndarray:
    """The actions of a buffer's rows, those of FIRST rows apart."""
    rows = rows_of(state)
    return rows["action"][rows["step_type"][:, 0] != FIRST, 0, 0]


# ---- Counting ----------------------------------------------------------------------------------------------------

ratios = st.fractions(min_value=0, max_value=1024, max_denominator=1000)


@given(step=st.integers(0, 10**12), random_steps=st.integers(0, 10**9), ratio=ratios)
def test_updates_due_is_the_floor_of_exact_arithmetic(step: int, random_steps: int, ratio: Fraction):
    due = updates_due(step, random_steps, ratio)
    assert isinstance(due, int)
    exact = max(step - random_steps, 0) * ratio
    assert due <= exact < due + 1
    assert due <= updates_due(step + 1, random_steps, ratio) <= due + ratio + 1


def test_updates_due_by_hand():
    assert [updates_due(step, 2, Fraction(1, 3)) for step in range(10)] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert [updates_due(step, 1, Fraction(5, 2)) for step in range(5)] == [0, 0, 2, 5, 7]


def test_every_event_comes_at_its_step(learner: Learner):
    recorder = Recorder()
    _, end = loop(learner, recorder)
    assert end == Counters(10, 6)
    assert recorder.steps == list(range(1, 11))
    assert recorder.evaluations == [4, 8, 10]  # the last step too, whatever the interval
    assert recorder.metrics == [(5, 1), (10, 6)]
    assert recorder.checkpoints == [Counters(6, 2)]


def test_resets_are_stored_and_are_no_environment_steps(learner: Learner):
    environment = Task()
    state, _ = loop(learner, Recorder(), environment)
    assert environment.num_steps == 10
    assert kinds(state) == [FIRST, MID, MID, LAST] * 3 + [FIRST, MID]
    rows = rows_of(state)
    is_step = rows["step_type"] != FIRST
    np.testing.assert_array_equal(rows["reward"][is_step], 1)
    np.testing.assert_array_equal(rows["discount"][is_step], 1)
    np.testing.assert_array_equal(rows["action"][~is_step], 0)
    assert state.agent.num_observed.item() == 14  # every row that was stored, resets among them
    assert state.agent.num_updates.item() == 6
    assert state.agent.step_sum.item() == sum(range(6))


def test_the_random_start_ends_after_its_steps(learner: Learner):
    state, _ = loop(learner, Recorder())
    made = actions(state)
    assert np.all(np.abs(made[:4]) < 1)
    assert np.all(made[4:] >= 2)  # the agent's own
    assert np.unique(made).size == 10


@pytest.mark.parametrize(("ratio", "updates"), [("1/4", [0, 1]), ("3", [3, 18])])
def test_the_replay_ratio(learner: Learner, ratio: str, updates: list[int]):
    recorder = Recorder()
    state, end = loop(learner, recorder, replay_ratio=ratio)
    assert recorder.metrics == list(zip((5, 10), updates, strict=True))
    assert end.num_updates == state.agent.num_updates.item() == updates[-1]
    assert state.agent.step_sum.item() == sum(range(updates[-1]))


def test_steps_are_control_steps_under_action_repeat(learner: Learner):
    recorder, environment = Recorder(), Task(action_repeat=3)
    state, end = loop(learner, recorder, environment, steps=20, eval_interval=5)
    assert environment.num_steps == 7
    assert recorder.steps == [3, 6, 9, 12, 15, 18, 21]
    assert recorder.evaluations == [6, 12, 15, 21]  # the first arrival at or past each multiple
    assert recorder.metrics == [(6, 2), (12, 8), (15, 11), (21, 17)]
    assert [counters.step for counters in recorder.checkpoints] == [6, 12, 18]
    assert end == Counters(21, 17)
    assert np.all(np.abs(actions(state)[:2]) < 1)
    assert np.all(actions(state)[2:] >= 2)


def test_no_update_before_a_window_is_closed():
    learner = Learner(TallyAgent(n_step=3), Task().spec, seeds=0, capacity=64)
    recorder = Recorder()
    _, end = loop(learner, recorder, random_steps=1, log_interval=1, steps=6)
    assert recorder.metrics == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 3)]
    assert end == Counters(6, 3)


# ---- Stopping and going on ---------------------------------------------------------------------------------------


def test_a_request_to_stop_ends_the_loop_between_steps(learner: Learner):
    environment = Task()
    recorder = Recorder(lambda: environment.num_steps == 7)
    state, end = loop(learner, recorder, environment)
    assert end == Counters(7, 3)
    assert environment.num_steps == 7
    assert recorder.steps == list(range(1, 8))
    # The arrival at the last step is stored and learned from.
    assert kinds(state) == [FIRST, MID, MID, LAST] * 2 + [FIRST, MID]
    assert state.agent.num_updates.item() == 3


def test_the_loop_goes_on_from_its_counters(learner: Learner):
    """Another process that is given what the first saved ends where an uninterrupted one does."""
    whole, _ = loop(learner, Recorder())
    environment = Task()
    first = HostLoop(learner, [environment], [], options())
    state, counters = Recorder(lambda: environment.num_steps == 7).run(first)
    recorder, second = Recorder(), HostLoop(learner, [Task()], [], options())
    second.restore([first.save(state, 0)])
    state, end = recorder.run(second, state, counters)
    assert end == Counters(10, 6)
    assert recorder.steps == [8, 9, 10]
    assert recorder.evaluations == [8, 10]
    assert recorder.metrics == [(10, 6)]
    assert recorder.checkpoints == []
    jax.tree.map(np.testing.assert_array_equal, state, whole)
