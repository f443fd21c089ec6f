"""A run is played where it was trained or on the other simulator, and what its policy loses there is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.parts.types import Mode
from agents.qsm import QSMConfig
from agents.sac import SACConfig
from envs import dmc, mjx, render
from envs.api import DeviceState
from qsm.base.errors import UserError
from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.loops.evaluate import episode_seed
from qsm.loops.schedule import Counters
from qsm.options.run import Backend, RunConfig
from qsm.policies.play import play
from qsm.record.config_file import resolved_config
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir
from tests.probe_device_environments import Counter
from tests.probe_environments import TruncatedReward
from tests.tally_agent import TallyAgent, TallyState

TASK = "cartpole-swingup"  # observed alike on both simulators
DEVICE_STEPS, HOST_STEPS = 5, 4  # control steps of an episode


@dataclasses.dataclass(frozen=True)
class Policy(TallyAgent):
    """Acts with the number that it has learned: the return tells it, and how many steps it was played for."""

    def act(self, state: TallyState, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        return jnp.full((observation.shape[0], self.action_size), state.weight)


class Device(Counter):
    """Rewards with the action."""

    factor = 1.0

    def _reward(self, state: DeviceState, action: jax.Array) -> jax.Array:
        return self.factor * action


class Host(TruncatedReward):
    """Rewards with the action; calls `at_step` before each step."""

    def __init__(self, action_repeat: int, at_step: Callable[[], None]) -> None:
        super().__init__(episode_steps=HOST_STEPS)
        self._spec = dataclasses.replace(super().spec, observation_size=2, action_repeat=action_repeat)
        self.seeds: list[int] = []
        self._at_step = at_step

    def _observe(self) -> np.ndarray:
        return np.zeros(2, np.float32)

    def reseed(self, seed: int) -> None:
        self.seeds.append(seed)
        super().reseed(seed)

    def _reward(self, action: float) -> float:
        self._at_step()
        return action


@dataclasses.dataclass
class World:
    """What was asked of the simulators and of the agent."""

    hosts: list[Host] = dataclasses.field(default_factory=list)
    made: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    options: list[Any] = dataclasses.field(default_factory=list)
    at_step: Callable[[], None] = lambda: None
    factor: float = 1.0  # of the rewards on the device


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    there = World()

    def make_host(*arguments: Any) -> Host:
        there.made.append(("dm_control", *arguments))
        there.hosts.append(Host(arguments[2], lambda: there.at_step()))
        return there.hosts[-1]

    def make_device(*arguments: Any) -> Device:
        there.made.append(("mjx", *arguments))
        device = Device(DEVICE_STEPS, arguments[1])
        device.factor = there.factor
        return device

    def build(name: str, options: Any, observation_size: int, action_size: int) -> Policy:
        assert (observation_size, action_size) == (2, 1)
        there.options.append(options)
        return Policy()

    monkeypatch.setattr(dmc, "make_env", make_host)
    monkeypatch.setattr(mjx, "make_env", make_device)
    monkeypatch.setattr(agents, "build", build)
    return there


def learn(path: Path, weight: float, step: int = 10) -> None:
    """Leaves a checkpoint of a policy that acts with `weight`."""
    state = Policy().init(jax.random.key(0))._replace(weight=np.float32(weight))
    with Checkpoints(path / "checkpoints") as checkpoints:
        checkpoints.save(Saved(jax.device_get(state), [], {}, {}), Counters(step, step), capacity=1)


def a_run(
    path: Path,
    backend: Backend,
    weight: float | None = 0.5,
    task: str = TASK,
    agent: str = "sac",
    action_repeat: int = 1,
) -> Path:
    options = SACConfig() if agent == "sac" else QSMConfig()
    config = RunConfig(seed=7, action_repeat=action_repeat)
    RunDir.create_or_open(path / "run", resolved_config(agent, task, backend, options, config))
    if weight is not None:
        learn(path / "run", weight)
    return path / "run"


@pytest.mark.parametrize(("backend", "total", "length"), [("dm_control", 2.0, 4), ("mjx", 2.5, 5)])
def test_a_run_is_played_on_its_own_simulator(
    backend: Backend, total: float, length: int, world: World, tmp_path: Path
):
    run = a_run(tmp_path, backend)
    expected = {"return_mean": total, "return_std": 0, "length_mean": length}
    expected |= {f"return_{i}": total for i in range(3)}
    result = play(run, episodes=3)
    assert (result["run"], result["step"], result["backend"]) == (str(run), 10, backend)
    assert expected.items() <= result.items()
    assert not any(name.startswith("lost") for name in result)
    # On dm_control with the seed of the training, which draws the system itself in lqr.
    once, each = ("mjx", TASK, 1), ("dm_control", TASK, 7, 1)
    assert world.made == ([once] if backend == "mjx" else [each] * 3)


@pytest.mark.parametrize(
    ("trained_on", "backend", "before", "after", "share"),
    [("mjx", "dm_control", 2.5, 2.0, "20.0%"), ("dm_control", "mjx", 2.0, 2.5, "-25.0%")],
)
def test_what_is_lost_on_the_other_simulator(
    trained_on: Backend,
    backend: Backend,
    before: float,
    after: float,
    share: str,
    world: World,
    tmp_path: Path,
):
    result = play(a_run(tmp_path, trained_on), episodes=2, backend=backend)
    assert (result["step"], result["backend"], result["return_mean"]) == (10, backend, after)
    assert result["length_mean"] == (HOST_STEPS if backend == "dm_control" else DEVICE_STEPS)
    assert result[f"return_mean on {trained_on}"] == before
    assert result["lost"] == before - after
    assert result["lost_share"] == share
    assert [one[0] for one in world.made].count("dm_control") == 2


def test_the_share_of_a_return_of_zero_is_undefined(world: World, tmp_path: Path):
    world.factor = 0.0
    result = play(a_run(tmp_path, "mjx"), episodes=1, backend="dm_control")
    assert (result["return_mean on mjx"], result["lost"], result["lost_share"]) == (0, -2, "undefined")


def test_lengths_and_rewards_under_action_repeat(world: World, tmp_path: Path):
    """The device is repeated for three of five control steps and then two; a host environment repeats by itself."""
    result = play(a_run(tmp_path, "mjx", action_repeat=3), episodes=1)
    assert (result["return_mean"], result["length_mean"]) == (2.5, 5)
    assert world.made == [("mjx", TASK, 3)]


def test_both_simulators_play_the_same_checkpoint(world: World, tmp_path: Path):
    """Training goes on while the first of them is played."""
    run = a_run(tmp_path, "mjx")

    def save_another() -> None:
        if not (run / "checkpoints" / "20").exists():
            learn(run, 0.25, step=20)

    world.at_step = save_another
    result = play(run, episodes=1, backend="dm_control")
    assert (result["step"], result["return_mean"], result["return_mean on mjx"]) == (10, 2.0, 2.5)
    result = play(run, episodes=1, backend="dm_control")
    assert (result["step"], result["return_mean"], result["return_mean on mjx"]) == (20, 1.0, 1.25)


def test_episodes_follow_from_the_seed_that_was_given(world: World, tmp_path: Path):
    run = a_run(tmp_path, "dm_control")
    play(run, episodes=2, seed=3)
    # One step past the checkpoint, so that they are none of the training's.
    assert [host.seeds for host in world.hosts] == [[episode_seed(3, 11, i)] for i in range(2)]


def test_an_option_may_be_overridden_that_the_agent_has(world: World, tmp_path: Path):
    run = a_run(tmp_path / "qsm", "dm_control", agent="qsm")
    play(run, episodes=1, overrides={"eval_samples": 5})
    play(run, episodes=1)
    assert [options.eval_samples for options in world.options] == [5, 1]
    with pytest.raises(UserError, match="--eval-samples is no option of this agent; leave it out"):
        play(a_run(tmp_path / "sac", "dm_control"), episodes=1, overrides={"eval_samples": 5})


# ---- Refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "trained_on", "backend", "message"),
    [
        (
            "walker-walk",
            "mjx",
            "dm_control",
            "observed differently on mjx and dm_control; .* only .* on mjx$",
        ),
        (
            "pendulum-swingup",
            "dm_control",
            "mjx",
            "observed differently on dm_control and mjx; .* only .* on dm_control$",
        ),
        ("dog-run", "dm_control", "mjx", "Task 'dog-run' exists on dm_control only"),
    ],
)
def test_tasks_that_are_not_the_same_on_both_are_refused(
    task: str, trained_on: Backend, backend: Backend, message: str, world: World, tmp_path: Path
):
    run = a_run(tmp_path, trained_on, task=task)
    with pytest.raises(UserError, match=message) as error:
        play(run, episodes=1, backend=backend)
    assert str(error.value).startswith(f"{run}: ")
    assert world.made == []
    play(run, episodes=1)  # where it was trained
    play(run, episodes=1, backend=trained_on)


def test_a_gridworld_is_not_filmed(world: World, tmp_path: Path):
    run = a_run(tmp_path, "dm_control", task="gridworld-open")
    with pytest.raises(UserError, match="gridworld-open has no camera to film with; leave out --video"):
        play(run, episodes=1, video=tmp_path / "a.mp4")
    assert world.made == []


@pytest.mark.parametrize(
    ("trained_on", "backend", "video", "message"),
    [
        ("mjx", None, "a.mp4", "videos are drawn by dm_control: add --backend dm_control"),
        ("dm_control", "mjx", "a.mp4", "videos are drawn by dm_control: add --backend dm_control"),
        ("dm_control", None, "a.txt", "the name must end in .mp4 or .gif"),
        ("mjx", "dm_control", "missing/a.mp4", "the folder '.*missing' does not exist"),
    ],
)
def test_a_video_that_cannot_be_made_is_refused_before_anything_is_played(
    trained_on: Backend, backend: Backend | None, video: str, message: str, world: World, tmp_path: Path
):
    run = a_run(tmp_path, trained_on)
    with pytest.raises(UserError, match=message):
        play(run, episodes=1, video=tmp_path / video, backend=backend)
    assert world.made == []


def test_a_video_shows_the_first_episode(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[tuple[Any, ...]] = []

    def draw(*arguments: Any, episode_seed: int) -> render.Video:
        drawn.append((*arguments, episode_seed))
        return render.Video(arguments[3], 1, 1.0, 0.0, "none")

    monkeypatch.setattr(render, "render_episode", draw)
    run = a_run(tmp_path, "mjx", action_repeat=2)
    result = play(run, episodes=2, seed=3, video=tmp_path / "a.gif", backend="dm_control")
    assert result["video"] == str(tmp_path / "a.gif")
    ((task, seed, actions, path, action_repeat, start),) = drawn
    assert (task, path, action_repeat) == (TASK, tmp_path / "a.gif", 2)
    assert seed == load_run(run).config["run_config"]["seed"]  # of lqr it draws the system
    assert start == episode_seed(3, 11, 0) == world.hosts[0].seeds[0]
    np.testing.assert_array_equal(actions, np.full((HOST_STEPS, 1), 0.5, np.float32))


def test_without_a_way_to_render_the_reason_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def draw(*arguments: Any, **options: Any) -> render.Video:
        raise render.RenderingUnavailable("No OpenGL backend can draw the video.")

    monkeypatch.setattr(render, "render_episode", draw)
    with pytest.raises(UserError, match=r"^No OpenGL backend can draw the video\.$"):
        play(a_run(tmp_path, "dm_control"), episodes=1, video=tmp_path / "a.mp4")


def test_a_run_without_a_checkpoint_is_told(world: World, tmp_path: Path):
    with pytest.raises(UserError, match="has no checkpoint: "):
        play(a_run(tmp_path, "mjx", weight=None), episodes=1)
