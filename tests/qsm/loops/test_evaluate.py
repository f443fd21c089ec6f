"""Evaluation: the same episodes whatever was trained before, counted in control steps, and nothing touched."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import pytest

from envs.api import EnvSpec, StepType, TimeStep, time_step
from qsm.learning.learner import Learner
from qsm.loops.evaluate import Evaluation, episode_seed, evaluate
from tests.tally_agent import TallyAgent

SPEC = EnvSpec("scripted", observation_size=1, action_size=1, episode_steps=10, action_repeat=1)


class Scripted:
    """Rewards each tick with the action plus the number of the tick, and ends after `num_ticks`.

    Its observations tell the seed of the episode. It must not be stepped past its end.
    """

    def __init__(self, num_ticks: int = 4, spec: EnvSpec = SPEC) -> None:
        self.spec = spec
        self.num_ticks = num_ticks
        self.seeds: list[int] = []
        self.actions: list[float] = []
        self._tick: int | None = None

    def reseed(self, seed: int) -> None:
        self.seeds.append(seed)
        self._tick = None

    def reset(self) -> TimeStep:
        self._tick = 0
        return time_step(StepType.FIRST, 0.0, 1.0, self._observe())

    def step(self, action: np.ndarray) -> TimeStep:
        assert self._tick is not None
        assert self._tick < self.num_ticks
        self._tick += 1
        self.actions.append(float(action[0]))
        step_type = StepType.LAST if self._tick == self.num_ticks else StepType.MID
        return time_step(step_type, float(action[0]) + self._tick, 1.0, self._observe())

    def save(self) -> dict[str, np.ndarray]:
        raise NotImplementedError  # evaluation saves nothing

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    def _observe(self) -> np.ndarray:
        return np.full(1, self.seeds[-1] % 1000, np.float32)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(TallyAgent(), SPEC, seeds=0, capacity=8)


def play(
    learner: Learner, lengths: Sequence[int] = (4, 4, 4), seed: int = 0, step: int = 100
) -> tuple[Evaluation, list[Scripted]]:
    environments = [Scripted(length) for length in lengths]
    return evaluated(learner, environments, seed, step), environments


def evaluated(
    learner: Learner,
    environments: Sequence[Scripted],
    seed: int = 0,
    step: int = 100,
    record: list[np.ndarray] | None = None,
) -> Evaluation:
    """The evaluation of a fresh agent, of one seed."""
    other = Learner(learner.agent, learner.spec, seed, capacity=8) if seed else learner
    (result,) = evaluate(other, learner.init().agent, [environments], step, record)
    assert result is not None
    return result


def test_seeds_depend_on_run_step_and_episode_alone():
    seeds = [episode_seed(*entropy) for entropy in itertools.product((0, 1), (0, 1, 5000), range(10))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_episodes_do_not_depend_on_what_was_played_before(learner: Learner):
    one, environments = play(learner)
    assert [environment.seeds for environment in environments] == [
        [episode_seed(0, 100, i)] for i in range(3)
    ]
    evaluated(learner, environments, step=50)
    again = evaluated(learner, environments)
    assert again == one == play(learner)[0]
    assert play(learner, step=101)[0].returns != one.returns
    assert play(learner, seed=1)[0].returns != one.returns


def test_returns_are_undiscounted_and_each_episode_its_own(learner: Learner):
    result, environments = play(learner, lengths=(2, 5, 3))
    assert result.lengths == [2, 5, 3]
    for total, environment in zip(result.returns, environments, strict=True):
        # An episode that is over is not stepped again, though the batch of actions stays as it was.
        assert len(environment.actions) == environment.num_ticks
        assert total == pytest.approx(
            sum(environment.actions) + sum(range(environment.num_ticks + 1)), rel=1e-6
        )
    assert len({round(action, 6) for environment in environments for action in environment.actions}) == 10


@pytest.mark.parametrize(("num_ticks", "length"), [(4, 10), (3, 9), (1, 3)])
def test_lengths_are_control_steps(num_ticks: int, length: int):
    """The last action of a whole episode is held for the control steps that are left."""
    spec = dataclasses.replace(SPEC, action_repeat=3)
    learner = Learner(TallyAgent(), spec, seeds=0, capacity=8)
    result = evaluated(learner, [Scripted(num_ticks, spec)], step=0)
    assert result.lengths == [length]


def test_the_first_episode_can_be_recorded(learner: Learner):
    record: list[np.ndarray] = []
    environments = [Scripted(2), Scripted(5)]
    evaluated(learner, environments, record=record)
    assert [float(action[0]) for action in record] == environments[0].actions
    assert len(record) == 2


def test_training_is_not_touched(learner: Learner):
    state = learner.init()
    before = jax.tree.map(np.array, state)
    observation = np.zeros((1, 1, 1), np.float32)
    explored = np.array(learner.act_to_explore(state, observation, np.int32(100), np.bool_(False)))
    evaluated(learner, [Scripted(), Scripted()])
    jax.tree.map(np.testing.assert_array_equal, state, before)
    again = learner.act_to_explore(state, observation, np.int32(100), np.bool_(False))
    np.testing.assert_array_equal(again, explored)


def test_metrics_are_one_row():
    row = Evaluation([1.0, 3.0], [10, 20], num_failures=1).metrics()
    assert row == {
        "return_mean": 2, "return_std": 1, "length_mean": 15, "failure_rate": 0.5, "return_0": 1, "return_1": 3,
    }  # fmt: skip
