"""`save` and `restore`: an environment goes on bit for bit in another one, at any point, for every task."""

from __future__ import annotations

import copy
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dm_control.rl import control

from envs.api import HostEnvironment, StepType, TimeStep
from envs.dmc import DmcEnvironment, make_env
from envs.tasks import RECORDED_NAMES
from tests.probe_environments import ObservationReward, TruncatedReward

ROOT = pathlib.Path(__file__).parents[2]
SEED = 3
NUM_STEPS = 12
# The dog takes many seconds to load, and the other tasks have a sibling of the same model among those left.
SLOW = (
    *("dog-stand", "dog-walk", "dog-trot", "dog-run", "dog-fetch", "humanoid_CMU-stand", "humanoid_CMU-walk"),
    *("acrobot-swingup_sparse", "cartpole-balance_sparse", "cartpole-swingup_sparse", "cartpole-two_poles"),
    *("hopper-stand", "humanoid-stand", "humanoid-walk", "humanoid-run_pure_state", "walker-stand"),
    *("walker-run", "quadruped-walk", "quadruped-run"),
)
TASKS = [pytest.param(task, marks=[pytest.mark.slow] if task in SLOW else []) for task in RECORDED_NAMES]


def actions(environment: HostEnvironment, num_steps: int, seed: int = 0) -> np.ndarray:
    """Uniform actions `[num_steps, A]`."""
    size = (num_steps, environment.spec.action_size)
    return np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)


def play(environment: HostEnvironment, num_steps: int, seed: int = 0) -> list[TimeStep]:
    """The next steps under fixed actions."""
    return [environment.step(action) for action in actions(environment, num_steps, seed)]


def assert_equal(left: HostEnvironment, right: HostEnvironment) -> None:
    """Bit for bit, all that they hold: in double precision, where time steps would hide a last bit."""
    assert_same_arrays(left.save(), right.save())


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype and value.shape == right[name].shape, name
        assert value.tobytes() == right[name].tobytes(), name


def assert_same_steps(left: list[TimeStep], right: list[TimeStep]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for field, value, same in zip(TimeStep._fields, one, other, strict=True):
            assert value.dtype == same.dtype, field
            np.testing.assert_array_equal(value, same, err_msg=field)


def assert_go_on_alike(left: HostEnvironment, right: HostEnvironment, num_steps: int = NUM_STEPS) -> None:
    """To the end of this episode's part, and into two more episodes."""
    assert_same_steps(play(left, num_steps, seed=1), play(right, num_steps, seed=1))
    assert_equal(left, right)
    for _ in range(2):  # the second one finds what the first one left
        assert_same_steps([left.reset()], [right.reset()])
        assert_same_steps(play(left, 3, seed=2), play(right, 3, seed=2))
        assert_equal(left, right)


def through_a_file(saved: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """`saved`, written and read without pickle."""
    np.savez(path, allow_pickle=False, **saved)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str, tmp_path: pathlib.Path):
    environment, other = (make_env(task, SEED) for _ in range(2))
    environment.reset()
    play(environment, 3)
    environment.reset()  # not the first episode: the model is as the first one left it
    play(environment, NUM_STEPS)
    other.restore(through_a_file(environment.save(), tmp_path / "saved.npz"))
    assert_equal(environment, other)
    assert_go_on_alike(environment, other)


def begin(environment: DmcEnvironment) -> None:
    environment.reset()


def play_to_the_end(environment: DmcEnvironment) -> None:
    environment.reset()
    assert play(environment, 1_000)[-1].step_type == StepType.LAST


def reseed_first(environment: DmcEnvironment) -> None:
    environment.reseed(11)


def reseed_within(environment: DmcEnvironment) -> None:
    environment.reset()
    environment.reseed(11)


def reset_after_reseed(environment: DmcEnvironment) -> None:
    reseed_within(environment)
    environment.reset()


@pytest.mark.parametrize("task", ["cartpole-balance", "reacher-hard"])
@pytest.mark.parametrize(
    "prepare",
    [lambda environment: None, begin, play_to_the_end, reseed_first, reseed_within, reset_after_reseed],
    ids=["new", "begin", "end", "reseed first", "reseed within", "reset after reseed"],
)
def test_any_time(task: str, prepare: Callable[[DmcEnvironment], None]):
    environment, other = (make_env(task, SEED) for _ in range(2))
    prepare(environment)
    other.restore(environment.save())
    assert_equal(environment, other)
    if prepare not in (begin, reset_after_reseed):
        with pytest.raises(RuntimeError, match="No episode is under way"):
            play(other, 1)
        assert_same_steps([environment.reset()], [other.reset()])
    assert_go_on_alike(environment, other)


@pytest.mark.parametrize("task", ["cartpole-swingup", "lqr-lqr_2_1"])  # dm_control's time limit and ours
def test_the_time_limit_and_action_repeat(task: str):
    environment, other = (make_env(task, SEED, action_repeat=3) for _ in range(2))
    environment.reset()
    play(environment, 300)
    other.restore(environment.save())
    ends = [play(one, 34, seed=1) for one in (environment, other)]
    assert_same_steps(*ends)
    assert [step.step_type for step in ends[1]] == 33 * [StepType.MID] + [StepType.LAST]
    assert ends[1][-1].discount == 1
    assert_same_steps([environment.reset()], [other.reset()])


def test_termination():
    environment, other = (make_env("lqr-lqr_2_1", SEED) for _ in range(2))
    environment.reset()
    environment.physics.data.qpos[:] = 0
    environment.physics.data.qvel[:] = 0
    environment.physics.forward()
    other.restore(environment.save())
    rest = np.zeros(environment.spec.action_size, np.float32)
    last, same = environment.step(rest), other.step(rest)
    assert (same.step_type, same.discount) == (StepType.LAST, 0)
    assert_same_steps([last], [same])

    third = make_env("lqr-lqr_2_1", SEED)
    third.restore(other.save())
    with pytest.raises(RuntimeError, match="No episode is under way"):
        third.step(rest)
    assert_same_steps([environment.reset()], [third.reset()])
    assert_go_on_alike(environment, third)


@pytest.mark.parametrize("task", ["reacher-hard", "point_mass-hard"])  # a reset moves or changes the model
def test_beginnings_that_failed(task: str, monkeypatch: pytest.MonkeyPatch):
    environment, other = (make_env(task, SEED) for _ in range(2))
    failures = []
    for one in (environment, other):
        inner = one._environment.task

        def begin(physics: Any, inner: Any = inner, begin: Callable[[Any], None] = inner.initialize_episode):
            begin(physics)
            if inner.random.uniform() < 0.5:
                failures.append(inner)
                raise control.PhysicsError("Physics state is invalid.")

        monkeypatch.setattr(inner, "initialize_episode", begin)
    for _ in range(8):
        environment.reset()
        play(environment, 3)
        other.restore(environment.save())
        assert_equal(environment, other)
        assert_go_on_alike(environment, other, 3)
    assert 8 < failures.count(environment._environment.task) != failures.count(other._environment.task) > 8


def test_again_and_again():
    """Of what was restored, and into an environment that has been used."""
    environment = make_env("stacker-stack_2", SEED)
    environment.reset()
    others = [make_env("stacker-stack_2", SEED) for _ in range(2)]
    others[1].reset()
    for other in others * 2:
        play(environment, 3)
        other.restore(environment.save())
        assert_same_steps(play(environment, 3), play(other, 3))
        environment = other


def test_saving_disturbs_nothing_and_keeps_nothing():
    environment, undisturbed = (make_env("point_mass-hard", SEED) for _ in range(2))
    environment.save()
    saved = []
    for _ in range(2):
        assert_same_steps([environment.reset()], [undisturbed.reset()])
        for _ in range(NUM_STEPS):
            arrays = environment.save()
            saved.append((arrays, copy.deepcopy(arrays)))
            assert_same_steps(play(environment, 1), play(undisturbed, 1))
    assert_equal(environment, undisturbed)
    for arrays, when_saved in saved:  # compared last: an array still in use would show
        assert_same_arrays(arrays, when_saved)


def test_arrays_are_plain_and_of_one_shape():
    environment = make_env("fish-swim", SEED)
    kinds = []
    for _ in range(3):
        saved = environment.save()
        assert all(type(array) is np.ndarray and array.dtype.kind in "biuf" for array in saved.values())
        kinds.append({name: (array.dtype, array.shape) for name, array in saved.items()})
        environment.reset()
        play(environment, 3)
    assert kinds[0] == kinds[1] == kinds[2]


def test_restoring_keeps_nothing_of_what_was_saved():
    environment, other = (make_env("fish-swim", SEED) for _ in range(2))
    environment.reset()
    saved = environment.save()
    other.restore(saved)
    for array in saved.values():
        array.fill(0)
    assert_go_on_alike(environment, other)


def test_in_another_process(tmp_path: pathlib.Path):
    environment = make_env("quadruped-escape", SEED)
    environment.reset()
    play(environment, NUM_STEPS)
    np.savez(tmp_path / "saved.npz", allow_pickle=False, **environment.save())
    program = (
        "import sys, numpy as np\n"
        "from envs.dmc import make_env\n"
        "from tests.envs.test_snapshot import SEED, NUM_STEPS, play\n"
        "environment = make_env('quadruped-escape', SEED)\n"
        "with np.load(sys.argv[1], allow_pickle=False) as saved: environment.restore(saved)\n"
        "steps = play(environment, NUM_STEPS) + [environment.reset()] + play(environment, 3)\n"
        "fields = {field: np.array(values) for field, values in zip(steps[0]._fields, zip(*steps))}\n"
        "np.savez(sys.argv[2], **fields)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved.npz"), str(tmp_path / "steps.npz")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    with np.load(tmp_path / "steps.npz") as file:
        theirs = [TimeStep(*row) for row in zip(*(file[field] for field in TimeStep._fields), strict=True)]
    assert_same_steps([*play(environment, NUM_STEPS), environment.reset(), *play(environment, 3)], theirs)


@pytest.fixture(scope="module")
def underway() -> DmcEnvironment:
    environment = make_env("cartpole-swingup", SEED)
    environment.reset()
    play(environment, 3)
    return environment


def misfit(name: str, what: str) -> str:
    return f"'{name}' of the saved environment is {what}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "The saved environment has no 'task'."),
        ({"physics": None}, "The saved environment has no 'physics'."),
        ({"wind": np.zeros(3)}, "The saved environment has 'wind', which this one does not know."),
        ({"steps_left": np.array(3.0)}, misfit("steps_left", "float64 []; it must be int64 [].")),
        ({"steps_left": np.array([3])}, misfit("steps_left", "int64 [1]; it must be int64 [].")),
        ({"steps_left": np.array(-1)}, misfit("steps_left", "-1; it must lie in 0 to 1000.")),
        ({"steps_left": np.array(1_001)}, misfit("steps_left", "1001; it must lie in 0 to 1000.")),
        ({"was_reset": np.array(False)}, misfit("steps_left", "997; it must lie in 0 to 0.")),
        ({"physics": np.zeros(7)}, misfit("physics", "float64 [7]; it must be float64 [{}].")),
        (
            {"random_key": np.zeros(6, np.uint32)},
            misfit("random_key", "uint32 [6]; it must be uint32 [624]."),
        ),
        ({"random_has_gauss": np.array(2)}, misfit("random_has_gauss", "2; it must lie in 0 to 1.")),
        ({"random_gauss": "0.5"}, misfit("random_gauss", "<U3 []; it must be float64 [].")),
        (
            {"random_at_reset_position": np.array(625)},
            misfit("random_at_reset_position", "625; it must lie in 0 to 624."),
        ),
    ],
)
def test_malformed(underway: DmcEnvironment, changes: dict[str, Any], message: str):
    saved = underway.save()
    saved |= {name: value for name, value in changes.items() if value is not None}
    for name in [name for name, value in changes.items() if value is None]:
        del saved[name]
    before = underway.save()
    with pytest.raises(ValueError, match="saved environment") as error:
        underway.restore(saved)
    assert str(error.value) == message.format(len(before["physics"]))
    assert_same_arrays(underway.save(), before)


@pytest.mark.parametrize(
    ("task", "seed", "action_repeat", "message"),
    [
        ("cheetah-run", SEED, 1, "with task cartpole-swingup, this one with cheetah-run."),
        ("cartpole-balance", SEED, 1, "with task cartpole-swingup, this one with cartpole-balance."),
        ("cartpole-swingup", 4, 1, "with seed 3, this one with 4."),
        ("cartpole-swingup", SEED, 2, "with action_repeat 1, this one with 2."),
    ],
)
def test_other_arguments(underway: DmcEnvironment, task: str, seed: int, action_repeat: int, message: str):
    other = make_env(task, seed, action_repeat)
    with pytest.raises(ValueError, match="made with") as error:
        other.restore(underway.save())
    assert str(error.value) == f"The saved environment was made {message}"


@pytest.mark.parametrize("probe", [ObservationReward, TruncatedReward])
def test_probes(probe: type[ObservationReward] | type[TruncatedReward], tmp_path: pathlib.Path):
    environment, other = probe(seed=SEED), probe(seed=SEED)
    other.reset()  # which moves its random stream on
    other.restore(environment.save())  # of one that is new
    assert_same_steps([environment.reset()], [other.reset()])
    assert_equal(environment, other)
    for _ in range(20):
        other = probe(seed=SEED)
        other.reset()
        other.restore(through_a_file(environment.save(), tmp_path / "saved.npz"))
        assert_same_steps(play(environment, 1), play(other, 1))
        assert_same_steps([environment.reset()], [other.reset()])
        assert_equal(environment, other)
    saved = environment.save()
    del saved["steps"]
    with pytest.raises(ValueError, match="has no 'steps'"):
        other.restore(saved)
