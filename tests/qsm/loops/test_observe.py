"""Agents are shown every row that is stored, once, in the order of storing; by both loops alike."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from envs.api import SimulationError, StepType, TimeStep
from envs.vector import VectorEnvironment
from qsm.learning.learner import Learner
from qsm.learning.programs import TrainState
from qsm.loops.device_loop import DeviceLoop
from qsm.loops.host_loop import HostLoop
from qsm.options.run import RunConfig
from tests.arrivals import stored
from tests.probe_device_environments import Counter
from tests.probe_environments import TruncatedReward
from tests.recorder import START, Recorder
from tests.witness_agent import WitnessAgent, shown

FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST


class FailingOnHost(TruncatedReward):
    """Observes how many steps it has made in all; every seventh of them fails."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, episode_steps=4)
        self.num_steps = 100 * seed

    def step(self, action: np.ndarray) -> TimeStep:
        self.num_steps += 1
        if self.num_steps % 7 == 0:
            self._steps = self._spec.episode_steps
            raise SimulationError("it fails")
        return super().step(action)

    def _observe(self) -> np.ndarray:
        return np.full(1, self.num_steps, np.float32)


class FailingOnDevice(Counter):
    """Fails in environments whose draw is below a half, at their second step, with numbers that are not finite."""

    def step(self, state: Any, action: jax.Array) -> Any:
        reached = super().step(state, action)
        fails = (reached.physics.draw < 0.5) & (reached.physics.step == 2)
        return reached._replace(
            reward=jax.numpy.where(fails, jax.numpy.nan, reached.reward), valid=reached.valid & ~fails
        )


def host_loop(num_seeds: int) -> HostLoop:
    environments = [FailingOnHost(seed) for seed in range(num_seeds)]
    learner = Learner(WitnessAgent(observation_size=1), environments[0].spec, range(num_seeds), 1000)
    return HostLoop(learner, environments, [], RunConfig(steps=50, random_steps=6))


def device_loop(num_seeds: int, num_envs: int = 3) -> DeviceLoop:
    vector = VectorEnvironment(FailingOnDevice(), num_envs)
    learner = Learner(WitnessAgent(), vector.spec, range(num_seeds), 1000, num_envs)
    config = RunConfig(
        steps=20 * num_envs, random_steps=2 * num_envs, num_envs=num_envs, replay_ratio="1/2", eval_episodes=1
    )
    return DeviceLoop(learner, vector, config)


def kept(state: TrainState, seed: int) -> list[np.ndarray]:
    """The rows `[L, 3 + O]` of each environment that lie in replay, as `shown` has them."""
    rows = stored(jax.device_get(jax.tree.map(lambda leaf: leaf[seed], state.replay)))
    scalars = [rows.step_type, rows.reward, rows.discount]
    table = np.concatenate(
        [*(np.asarray(value, np.float32)[..., None] for value in scalars), rows.observation], -1
    )
    return [table[: rows.size[env], env] for env in range(table.shape[1])]


def in_order(rows: np.ndarray) -> np.ndarray:
    """Rows sorted, so that two tables with the same ones, as often, are equal."""
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("num_seeds", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("make", [host_loop, device_loop])
def test_every_stored_row_is_shown_once(make: Any, num_seeds: int):
    loop = make(num_seeds)
    state, _ = Recorder().run(loop)
    for seed in range(num_seeds):
        rows = np.concatenate(kept(state, seed))
        np.testing.assert_array_equal(in_order(shown(state.agent, seed)), in_order(rows))
        # There are ends, failures, and beginnings besides those of the run.
        kinds = rows[:, 0].tolist()
        num_envs = loop.learner.num_envs
        assert kinds.count(LAST) > num_envs
        assert kinds.count(FIRST) > kinds.count(LAST) + num_envs


def test_rows_are_shown_in_the_order_of_storing():
    for loop in (host_loop(1), device_loop(1, num_envs=1)):
        state, _ = Recorder().run(loop)
        np.testing.assert_array_equal(shown(state.agent, 0), kept(state, 0)[0])


def test_the_first_starts_are_shown_before_the_first_action():
    """The agent explores with the number of rows that it has seen."""
    for loop in (host_loop(2), device_loop(2)):
        loop.schedule = loop.schedule._replace(random_steps=0)
        state, num_envs = loop.begin(), loop.learner.num_envs
        assert state.agent.count.tolist() == [num_envs] * 2
        assert np.all(shown(state.agent, 0)[:, 0] == FIRST)
        state, _ = loop.advance(state, START, loop.schedule.increment)
        np.testing.assert_array_equal(state.replay.action[:, 1], num_envs)


def test_a_frozen_seed_is_shown_nothing():
    for loop in (host_loop(2), device_loop(2)):
        state, at = Recorder(stop_at=20).run(loop)
        before = shown(state.agent, 0)
        loop.learner.active[0] = False
        state, _ = Recorder().run(loop, state, at)
        np.testing.assert_array_equal(shown(state.agent, 0), before)
        np.testing.assert_array_equal(
            in_order(shown(state.agent, 1)), in_order(np.concatenate(kept(state, 1)))
        )
