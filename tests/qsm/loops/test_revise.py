"""An agent that revises what it sampled finds its changes in replay, in the next batch, and after a resume."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from envs.api import StepType
from qsm.learning.learner import Learner
from qsm.learning.programs import TrainState
from qsm.loops.host_loop import HostLoop
from qsm.options.run import RunConfig
from tests.arrivals import arrival
from tests.probe_environments import TruncatedReward
from tests.recorder import Recorder
from tests.tally_agent import TallyAgent
from tests.witness_agent import RevisingAgent

SPEC = TruncatedReward().spec


def filled(
    agent: Any, num_updates: int = 0, seeds: tuple[int, ...] = (0,), frozen: int | None = None
) -> TrainState:
    """Four rows of one episode, with actions 0.1, 0.2, 0.3 between them, and then the updates."""
    learner = Learner(agent, SPEC, seeds, capacity=16)
    state = learner.init()
    for tick in range(4):
        kind = StepType.FIRST if tick == 0 else StepType.MID
        here = arrival(kind, tick, size=SPEC.observation_size)
        here = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(seeds)), here)
        if frozen is not None:
            learner.active[frozen] = tick < 3
        action = np.full((len(seeds), 1, 1), 0.1 * tick, np.float32)
        state = learner.learn(state, action, here, np.int32(0), np.int32(num_updates if tick == 3 else 0))
    return state


def test_each_update_changes_the_rows_that_it_sampled():
    """Starts are rows 0 to 2; a batch of 64 holds all of them, and every update turns a into -a - 1."""
    agent = RevisingAgent(batch_size=64)
    for num_updates, sign, offset in ((0, 1, 0), (1, -1, -1), (2, 1, 0), (3, -1, -1)):
        state = filled(agent, num_updates)
        expected = sign * np.array([0.1, 0.2, 0.3]) + offset
        np.testing.assert_allclose(state.replay.action[0, 1:4, 0, 0], expected, rtol=1e-5)
        assert state.replay.priority is not None
        new = np.asarray(state.replay.priority[0, :4, 0])
        assert np.all(new == 1) == (num_updates == 0)
        assert new[3] == 1  # no start yet
    # Draws belong to the update's number.
    jax.tree.map(np.testing.assert_array_equal, filled(agent, 2), filled(agent, 2))


def test_a_frozen_seed_keeps_its_rows():
    state = filled(RevisingAgent(batch_size=64), 1, seeds=(0, 1), frozen=1)
    assert np.all(np.asarray(state.replay.action[0, 1:4]) < -1)
    np.testing.assert_allclose(state.replay.action[1, 1:3, 0, 0], [0.1, 0.2], rtol=1e-6)
    assert state.replay.priority is not None
    assert np.all(np.asarray(state.replay.priority[1, :3]) == 1)


def test_only_who_says_so_is_asked():
    class Silent(TallyAgent):
        def revise(self, *arguments: Any) -> Any:
            raise AssertionError("asked")

    state = filled(Silent(), 2)
    assert state.replay.priority is None and state.replay.largest_priority is None
    np.testing.assert_allclose(state.replay.action[0, 1:4, 0, 0], [0.1, 0.2, 0.3], rtol=1e-6)


@pytest.mark.parametrize("prioritized", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_goes_on_from_its_whole_buffer_as_if_it_had_not_stopped(prioritized: bool):
    agent = RevisingAgent(prioritized=prioritized)
    learner = Learner(agent, SPEC, seeds=0, capacity=20)  # the ring goes round

    def loop() -> HostLoop:
        config = RunConfig(steps=40, random_steps=6)
        return HostLoop(learner, [TruncatedReward()], [], config)

    whole, _ = Recorder().run(loop())
    first, second = loop(), loop()
    state, at = Recorder(stop_at=27).run(first)
    parts = jax.device_get((state.agent, state.metrics))
    rows = learner.rows_since(state, 0, None)
    environment = second.restore([first.save(state, 0)])
    again, _ = Recorder().run(second, learner.place(parts[0], [[rows]], parts[1], environment), at)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert np.any(np.asarray(whole.replay.action) < -1)
