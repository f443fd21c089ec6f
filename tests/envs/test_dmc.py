"""Every task of the suite, and what `envs.dmc` promises of scaling, ends of episodes, seeds and repeat."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from dm_control import suite
from dm_control.rl import control

from envs import dmc, tasks
from envs.api import SimulationError, StepType, TimeStep
from envs.tasks import GRIDWORLD_NAMES, RECORDED_NAMES, task_names

ROOT = pathlib.Path(__file__).parents[2]
TASKS = RECORDED_NAMES
# The tasks of a domain share its model and most of its code: the first of each stands for them where time is short.
FIRST = {task.partition("-")[0]: task for task in reversed(TASKS)}.values()
EACH = [task if task in FIRST else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]
NUM_STEPS = 5  # enough to tell streams apart; dog and stacker take milliseconds for one


def actions(environment: dmc.DmcEnvironment, num_steps: int, seed: int = 0) -> np.ndarray:
    """Uniform actions `[num_steps, A]`."""
    size = (num_steps, environment.spec.action_size)
    return np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)


def stream(environment: dmc.DmcEnvironment, num_steps: int = NUM_STEPS) -> list[TimeStep]:
    """Two episodes' beginnings under fixed actions, so that a reset in mid-episode is among them."""
    steps = []
    for _ in range(2):
        steps.append(environment.reset())
        steps.extend(environment.step(action) for action in actions(environment, num_steps))
    return steps


def assert_equal(left: list[TimeStep], right: list[TimeStep]) -> None:
    """Bit for bit."""
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for field, value, same in zip(TimeStep._fields, one, other, strict=True):
            assert value.dtype == same.dtype and value.tobytes() == same.tobytes(), field


def play_out(environment: dmc.DmcEnvironment, action: np.ndarray) -> list[TimeStep]:
    """The rest of an episode under one action, from its reset."""
    steps = [environment.reset()]
    while steps[-1].step_type != StepType.LAST:
        steps.append(environment.step(action))
    return steps


def test_task_names_are_the_suite_s_and_then_the_gridworlds():
    assert tasks.suite_task_names() == TASKS
    assert task_names() == TASKS + GRIDWORLD_NAMES
    assert len(TASKS) == len(set(TASKS)) == len(suite.ALL_TASKS)
    assert {"ball_in_cup-catch", "cartpole-swingup_sparse", "quadruped-escape", "lqr-lqr_2_1"} <= set(TASKS)


def test_another_version_of_the_suite_is_asked_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "RECORDED_VERSION", "0.0.0")
    monkeypatch.setattr(suite, "ALL_TASKS", (("new", "task"),))
    assert tasks.task_names() == ("new-task", *GRIDWORLD_NAMES)


@pytest.mark.parametrize("task", EACH)
def test_every_task(task: str):
    environment = dmc.make_env(task, seed=1)
    steps = stream(environment)

    spec = environment.spec
    assert spec.task == task
    assert spec.episode_steps == 1_000  # of every task of the suite, and ours for those without a limit
    for time_step in steps:
        observation = time_step.observation
        assert observation.shape == (spec.observation_size,)
        assert observation.dtype == np.float32
        assert observation.flags.c_contiguous and observation.flags.owndata
        assert np.isfinite(observation).all()
        assert (time_step.step_type.dtype, time_step.step_type.shape) == (np.int8, ())
        assert (time_step.reward.dtype, time_step.reward.shape) == (np.float32, ())
        assert (time_step.discount.dtype, time_step.discount.shape) == (np.float32, ())
        assert time_step.discount == 1
        # The suite promises [0, 1] for all rewards but lqr's, which are 1 less a cost.
        assert time_step.reward <= 1 and (time_step.reward >= 0 or task.startswith("lqr"))
    assert [time_step.step_type for time_step in steps] == 2 * ([StepType.FIRST] + NUM_STEPS * [StepType.MID])

    assert_equal(steps, stream(dmc.make_env(task, seed=1)))
    other = dmc.make_env(task, seed=2).reset()
    assert not np.array_equal(other.observation, steps[0].observation)
    assert not np.array_equal(steps[0].observation, steps[NUM_STEPS + 1].observation)


@pytest.mark.parametrize("task", EACH)
def test_actions_span_the_bounds(task: str):
    environment = dmc.make_env(task, seed=0)
    limited = environment.physics.model.actuator_ctrllimited.astype(bool)
    low, high = environment.physics.model.actuator_ctrlrange.T
    low, high = np.where(limited, low, -1), np.where(limited, high, 1)
    assert environment.spec.action_low == tuple(low) and environment.spec.action_high == tuple(high)
    assert limited.all() != task.startswith("lqr")
    environment.reset()
    for value, expected in ((1, high), (-1, low), (7, high), (-7, low), (0, (low + high) / 2)):
        environment.step(np.full(environment.spec.action_size, value, np.float32))
        np.testing.assert_array_equal(environment.physics.control(), expected)


def test_observations_are_the_dictionary_in_order():
    # humanoid has a scalar among its entries, stacker matrices.
    for domain, task in (("humanoid", "run"), ("stacker", "stack_2")):
        raw = suite.load(domain, task, task_kwargs={"random": 4}).reset().observation
        expected = np.concatenate([np.ravel(entry).astype(np.float32) for entry in raw.values()])
        np.testing.assert_array_equal(dmc.make_env(f"{domain}-{task}", seed=4).reset().observation, expected)


def test_agrees_with_dm_control_and_hands_out_fresh_arrays():
    environment = dmc.make_env("cheetah-run", seed=5)
    raw = suite.load("cheetah", "run", task_kwargs={"random": 5})
    kept, expected = [environment.reset()], [raw.reset()]
    for action in actions(environment, 50):
        kept.append(environment.step(action))
        expected.append(raw.step(action))
    for ours, theirs in zip(kept, expected, strict=True):  # compared last: a reused array would show
        flat = np.concatenate(list(theirs.observation.values())).astype(np.float32)
        np.testing.assert_array_equal(ours.observation, flat)
        assert ours.reward == np.float32(theirs.reward or 0)


def test_a_time_limit_truncates():
    steps = play_out(dmc.make_env("cartpole-swingup", seed=0), np.zeros(1, np.float32))
    assert len(steps) == 1 + 1_000
    assert {int(time_step.step_type) for time_step in steps[1:-1]} == {StepType.MID}
    assert all(time_step.discount == 1 for time_step in steps)


def test_a_termination_has_discount_zero():
    environment = dmc.make_env("lqr-lqr_2_1", seed=0)
    environment.reset()
    # The suite's only terminating tasks do so at rest in the middle.
    environment.physics.data.qpos[:] = 0
    environment.physics.data.qvel[:] = 0
    environment.physics.forward()
    last = environment.step(np.zeros(environment.spec.action_size, np.float32))
    assert (last.step_type, last.discount) == (StepType.LAST, 0)


def test_endless_tasks_are_truncated():
    environment = dmc.make_env("lqr-lqr_6_2", seed=0)
    for _ in range(2):  # the limit starts anew with the episode
        steps = play_out(environment, np.full(2, 0.1, np.float32))
        assert len(steps) == 1 + dmc.ENDLESS_EPISODE_STEPS == 1 + environment.spec.episode_steps
        assert steps[-1].discount == 1


def test_action_repeat_is_repeated_steps():
    single, repeated = (dmc.make_env("walker-walk", 3, action_repeat=repeat) for repeat in (1, 4))
    assert repeated.spec.episode_steps == 1_000
    assert_equal([single.reset()], [repeated.reset()])
    for action in actions(single, 10):
        parts = [single.step(action) for _ in range(4)]
        whole = repeated.step(action)
        np.testing.assert_array_equal(whole.observation, parts[-1].observation)
        np.testing.assert_allclose(whole.reward, sum(float(part.reward) for part in parts), rtol=1e-6)
        assert (whole.step_type, whole.discount) == (StepType.MID, 1)


@pytest.mark.parametrize("task", ["cartpole-balance", "lqr-lqr_2_1"])
def test_action_repeat_stops_at_the_end(task: str):
    environment = dmc.make_env(task, seed=0, action_repeat=300)
    steps = play_out(environment, np.zeros(environment.spec.action_size, np.float32))
    assert len(steps) == 1 + 4  # 300, 300, 300 and the 100 that are left
    assert steps[-1].discount == 1
    if (
        task == "cartpole-balance"
    ):  # nearly balanced without a force, so rewards tell the length of the repeat
        assert 0 < steps[-1].reward < 100 < steps[1].reward < 300


def test_steps_outside_an_episode_are_refused():
    environment = dmc.make_env("lqr-lqr_2_1", seed=0, action_repeat=1_000)
    action = np.zeros(environment.spec.action_size, np.float32)
    with pytest.raises(RuntimeError, match=r"No episode is under way: call reset\(\) first"):
        environment.step(action)
    play_out(environment, action)
    with pytest.raises(RuntimeError, match="again after LAST"):
        environment.step(action)


@pytest.mark.parametrize("is_error", [True, False], ids=["error", "not finite"])
def test_a_beginning_that_cannot_be_simulated_is_drawn_again(is_error: bool, monkeypatch: pytest.MonkeyPatch):
    environment, other = (dmc.make_env("cartpole-swingup", seed=0) for _ in range(2))
    task = environment._environment.task
    begin, failures = task.initialize_episode, []

    def fail_twice(physics: object) -> None:
        begin(physics)
        if len(failures) < 2:
            failures.append(environment.physics.data.qpos.copy())
            environment.physics.data.qpos[:] = np.nan
            if is_error:
                raise control.PhysicsError("Physics state is invalid.")

    monkeypatch.setattr(task, "initialize_episode", fail_twice)
    for _ in range(2):
        other.reset()
    # The third of the stream, as if the two before had been episodes.
    assert_equal([environment.reset()], [other.reset()])
    assert len(failures) == 2 and not np.array_equal(*failures)
    for action in actions(environment, 5):
        assert_equal([environment.step(action)], [other.step(action)])


def test_a_task_that_cannot_begin_is_told(monkeypatch: pytest.MonkeyPatch):
    environment = dmc.make_env("cartpole-swingup", seed=0)
    environment.reset()

    def fail(physics: object) -> None:
        raise control.PhysicsError("Physics state is invalid.")

    monkeypatch.setattr(environment._environment.task, "initialize_episode", fail)
    with pytest.raises(SimulationError) as error:
        environment.reset()
    message = "cartpole-swingup cannot begin an episode: 10 beginnings failed (Physics state is invalid)."
    assert str(error.value) == message
    with pytest.raises(RuntimeError, match="No episode is under way"):
        environment.step(np.zeros(1, np.float32))


def test_bad_arguments():
    with pytest.raises(ValueError, match="cheeta-run") as error:
        dmc.make_env("cheeta-run", seed=0)
    message = "Unknown task 'cheeta-run'. Did you mean 'cheetah-run'? List tasks with: qsm tasks"
    assert str(error.value) == message
    with pytest.raises(ValueError, match="Unknown task") as error:
        dmc.make_env("???", seed=0)
    assert str(error.value) == "Unknown task '???'. List tasks with: qsm tasks"
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"seed is {seed}; it must lie between 0 and 4294967295"):
            dmc.make_env("cartpole-swingup", seed=seed)
    with pytest.raises(ValueError, match="action_repeat is 0; it must be 1 or more"):
        dmc.make_env("cartpole-swingup", seed=0, action_repeat=0)
    environment = dmc.make_env("cartpole-swingup", seed=0)
    environment.reset()
    with pytest.raises(ValueError, match=r"takes actions of shape \(1,\), not \(2,\)"):
        environment.step(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("display", "given", "expected"),
    [(None, None, "disable"), (None, "egl", "egl"), (":0", None, "None")],
)
def test_the_backend_is_chosen_on_import(display: str | None, given: str | None, expected: str):
    """Only where there is no display and no choice, before dm_control reads it, and without JAX."""
    names = {"DISPLAY": display, "MUJOCO_GL": given}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {name: value for name, value in names.items() if value is not None}
    # dm_control is kept out, so that neither a display nor a backend is needed to ask.
    program = (
        "import os, sys, types, unittest.mock as mock\n"
        "for name in ('dm_control', 'dm_control.rl'): sys.modules[name] = mock.MagicMock()\n"
        "import envs.dmc\n"
        "print(os.environ.get('MUJOCO_GL'), 'jax' in sys.modules)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert child.stdout.split() == [expected, "False"], child.stderr


def test_no_context_is_created_for_the_terrain():
    environment = dmc.make_env("quadruped-escape", seed=0)
    assert environment.physics.contexts is None
    environment.reset()
    terrain = environment.physics.model.hfield_data.copy()
    assert np.ptp(terrain) > 0.1
    environment.reset()
    assert not np.array_equal(terrain, environment.physics.model.hfield_data)
