"""Runs trained together leave what each leaves alone; one that diverges is frozen; the group goes on where it was."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import agents
from agents.sac import SACConfig
from envs import dmc
from envs.api import SimulationError, TimeStep
from qsm.base.errors import UserError
from qsm.checkpoints import checkpoint
from qsm.data import segments
from qsm.data.replay import Rows
from qsm.data.segments import Segment
from qsm.learning.learner import FAILURE_RATE, Learner
from qsm.options.run import LaunchOptions, RunConfig
from qsm.record.tables import read_csv
from qsm.training.group import Group, Member, members
from qsm.training.resume import common_step
from qsm.training.train import Outcome, train
from tests.probe_environments import ObservationReward, TruncatedReward

OPTIONS: dict[str, Any] = {
    "steps": 40,
    "random_steps": 10,
    "replay_capacity": 1000,
    "eval_interval": 20,
    "eval_episodes": 2,
    "log_interval": 10,
    "checkpoint_interval": 15,
    "wandb": "disabled",
}
CONFIG = SACConfig(hidden_sizes=(8,), batch_size=8)


class Task(ObservationReward):
    """Random episodes of one step; calls `at_step` before each with its number."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seed = seed
        self.num_steps = 0
        self.at_step: Callable[[Task], None] = lambda task: None

    def step(self, action: np.ndarray) -> TimeStep:
        self.num_steps += 1
        self.at_step(self)
        return super().step(action)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The environments that were made; those of training first."""
    tasks: list[Task] = []

    def make(task: str, seed: int, action_repeat: int) -> Task:
        tasks.append(Task(seed))
        return tasks[-1]

    monkeypatch.setattr(dmc, "make_env", make)
    return tasks


def group(
    root: Path, seeds: int = 2, seed: int = 0, sweep: str | None = None, **changes: Any
) -> list[Member]:
    launch = LaunchOptions(num_seeds=seeds, sweep=sweep)
    options: dict[str, Any] = OPTIONS | {"seed": seed} | changes
    config = RunConfig(**options)
    return members("sac", "probe", CONFIG, config, launch, root=root)


def run(root: Path, **arguments: Any) -> Outcome:
    return train("sac", "probe", group(root, **arguments))


def at_steps(made: list[Task], monkeypatch: pytest.MonkeyPatch, at_step: Callable[[Task], None]) -> None:
    """Has `at_step` called by every environment made from now on."""
    make = dmc.make_env

    def make_watched(*arguments: Any) -> Any:
        task: Any = make(*arguments)
        task.at_step = at_step
        return task

    monkeypatch.setattr(dmc, "make_env", make_watched)


def status(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def folder(root: Path, seed: int, name: str = "sac") -> Path:
    return root / "dm_control" / "probe" / name / f"seed_{seed}"


def rows(path: Path) -> list[dict[str, float]]:
    """Rows without what depends on the clock."""
    return [{name: value for name, value in row.items() if "second" not in name} for row in read_csv(path)]


def close(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    """Tables of the same draws, computed by programs that take sums in another order."""
    assert [row["step"] for row in one] == [row["step"] for row in other]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3, atol=1e-5)


def close_trees(one: Any, other: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), one, other)


def learned(path: Path, step: int, options: SACConfig = CONFIG) -> Any:
    """What the checkpoint of a run at its last `step` has learned."""
    spec = ObservationReward().spec
    agent = agents.build("sac", options, spec.observation_size, spec.action_size)
    state, found = checkpoint.restore_agent(path / "checkpoints", Learner(agent, spec, 0, capacity=1))
    assert found == step
    return state


def test_seeds_trained_together_are_what_each_is_alone(made: list[Task], tmp_path: Path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert run(together) == run(alone, seeds=1, seed=1) == "finished"
    ours, theirs = folder(together, 1), folder(alone, 1)
    assert json.loads((ours / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())
    names = {path.relative_to(ours) for path in ours.iterdir()}
    assert names == {path.relative_to(theirs) for path in theirs.iterdir()}
    for file in ("train.csv", "eval.csv"):
        close(rows(ours / file), rows(theirs / file))
    first = [row["critic/loss"] for row in rows(folder(together, 0) / "train.csv")[1:]]
    second = [row["critic/loss"] for row in rows(ours / "train.csv")[1:]]
    assert not np.allclose(first, second)


def test_a_group_is_resumed_bit_for_bit_and_each_can_be_gone_on_with_alone(
    made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, parts, alone = tmp_path / "whole", tmp_path / "parts", tmp_path / "alone"
    assert run(whole) == "finished"

    def fail(task: Task) -> None:
        if task.num_steps == 33:
            raise OSError("the machine is gone")

    with monkeypatch.context() as patch:
        at_steps(made, patch, fail)
        with pytest.raises(OSError, match="gone"):
            run(parts)
    assert status(folder(parts, 0))["state"] == "failed"
    shutil.copytree(parts, alone)
    assert run(parts) == "finished"
    for seed in (0, 1):
        for file in ("train.csv", "eval.csv"):
            assert rows(folder(parts, seed) / file) == rows(folder(whole, seed) / file)

    longer = LaunchOptions(num_seeds=2, extend_steps=True)
    assert train("sac", "probe", group(parts, steps=60), longer) == "finished"
    made.clear()
    longer = LaunchOptions(extend_steps=True)
    assert train("sac", "probe", group(alone, seeds=1, seed=1, steps=60), longer) == "finished"
    assert made[0].num_steps == 30  # from the checkpoint of the group at step 30
    ours, theirs = folder(alone, 1), folder(parts, 1)
    for file in ("train.csv", "eval.csv"):
        one, other = rows(ours / file), rows(theirs / file)
        close(one, other)
        before = [row for row in other if row["step"] <= 30]
        assert one[: len(before)] == before != other
    close_trees(learned(ours, 60), learned(theirs, 60))
    assert status(folder(alone, 0))["state"] == "failed"  # the other is left as it was


@pytest.mark.parametrize(
    ("option", "values"),
    # One that the agent reads, and one that the loop does where it samples.
    [("critic_learning_rate", (1e-3, 1e-2)), pytest.param("discount", (0.0, 0.9), marks=pytest.mark.slow)],
)
def test_a_swept_value_is_what_it_is_alone(
    option: str, values: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Three steps an episode: where each terminates, no discount is ever looked at.
    monkeypatch.setattr(dmc, "make_env", lambda task, seed, action_repeat: TruncatedReward(seed, 3))
    sweep = f"{option}={values[0]},{values[1]}"
    swept = group(tmp_path / "swept", seeds=1, sweep=sweep)
    assert train("sac", "probe", swept, LaunchOptions(sweep=sweep)) == "finished"
    states = [learned(member.path, 40, member.agent_config) for member in swept]
    for value, member, state in zip(values, swept, states, strict=True):
        assert getattr(member.agent_config, option) == value
        assert state.hyperparameters[option] == np.float32(value)
    # The second: a group that took every value from its first member would pass with that one.
    own = dataclasses.replace(CONFIG, **{option: values[1]})
    alone = members("sac", "probe", own, swept[1].config, LaunchOptions(), root=tmp_path / "alone")
    assert train("sac", "probe", alone) == "finished"
    for file in ("train.csv", "eval.csv"):
        close(rows(swept[1].path / file), rows(alone[0].path / file))
    close_trees(states[1], learned(alone[0].path, 40, own))

    differs = jax.tree.map(lambda a, b: not np.allclose(a, b, rtol=1e-2, atol=1e-3), *states)
    assert any(jax.tree.leaves(differs.critic.online.params))


def test_one_that_diverges_is_frozen_and_the_others_go_on(
    made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runs = members(
        "sac",
        "probe",
        CONFIG,
        RunConfig(**OPTIONS),
        LaunchOptions(sweep="critic_learning_rate=0.001,10"),
        root=tmp_path,
    )
    poisoned = runs[1].path

    original = ObservationReward._reward
    # Whose square is beyond float32, in the environment of the second run.
    monkeypatch.setattr(
        ObservationReward,
        "_reward",
        lambda self, action: 3e38 if self is made[1] else original(self, action),
    )
    assert train("sac", "probe", runs) == "diverged"
    good = runs[0].path
    assert status(good)["state"] == "finished"
    assert status(poisoned)["state"] == "diverged"
    assert status(poisoned)["message"].startswith("diverged by step 15: ")  # before it was saved
    assert [row["step"] for row in rows(good / "train.csv")] == [10, 20, 30, 40]
    assert [row["step"] for row in rows(poisoned / "train.csv")] == [10]
    assert all(np.isfinite(list(row.values())).all() for row in rows(good / "train.csv"))
    text = capsys.readouterr().out
    assert "critic_learning_rate=10 seed 0 diverged by step 15" in text
    assert list((poisoned / "checkpoints").iterdir()) == []  # nothing that is not finite is kept
    report = json.loads((poisoned / "diverged_15" / "report.json").read_text())
    assert (report["step"], report["num_updates"], report["first_bad_update"]) == (15, 5, 1)
    assert report["metrics"]["critic/loss"] in ("inf", "nan")
    assert "since update 1; not finite: " in status(poisoned)["message"]
    assert {name.partition(".")[0] for name in report["arrays"]} >= {"critic"}
    # 3e38 is a finite reward; the actions that followed the first updates were not.
    assert {tuple(row["fields"]) for row in report["rows"]} == {("action",)}
    with np.load(poisoned / "diverged_15" / "state.npz", allow_pickle=False) as state:
        assert state["replay/reward"].max() == np.float32(3e38)
        for name, found in report["arrays"].items():
            assert np.isnan(state[f"agent/{name}"]).sum() == found["nan"]
    # The same command again: one is finished, the other is tried anew, here in a world that was mended.
    assert train("sac", "probe", runs) == "finished"
    assert f"{good} is finished" in capsys.readouterr().out


def test_a_group_with_one_that_diverged_is_resumed(
    made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(task: Task) -> None:
        if task.num_steps == 33:
            raise OSError("the machine is gone")

    original = ObservationReward._reward
    with monkeypatch.context() as patch:
        at_steps(made, patch, fail)
        patch.setattr(
            ObservationReward,
            "_reward",
            lambda self, action: 3e38 if self is made[1] else original(self, action),
        )
        with pytest.raises(OSError, match="gone"):
            run(tmp_path)
    diverged = status(folder(tmp_path, 1))
    assert (diverged["state"], diverged["saved_step"]) == ("diverged", None)
    assert run(tmp_path) == "diverged"
    assert status(folder(tmp_path, 1)) == diverged
    assert status(folder(tmp_path, 0))["state"] == "finished"
    assert [row["step"] for row in rows(folder(tmp_path, 0) / "train.csv")] == [10, 20, 30, 40]


def test_where_one_of_a_group_cannot_be_saved_none_is(
    made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else the runs would have no step in common to go on from."""
    write = segments.write

    def fail(folder: Path, step: int, rows: Rows) -> Segment:
        if step == 30 and "seed_1" in str(folder):
            raise OSError(errno.EDQUOT, "quota")
        return write(folder, step, rows)

    def stop(task: Task) -> None:
        if task.num_steps == 35:
            raise RuntimeError("gone")

    monkeypatch.setattr(segments, "write", fail)
    with monkeypatch.context() as patch:
        at_steps(made, patch, stop)
        with pytest.raises(RuntimeError, match="gone"):
            run(tmp_path)
    for seed in (0, 1):
        checkpoints = folder(tmp_path, seed) / "checkpoints"
        assert [path.name for path in checkpoints.iterdir() if path.name.isdigit()] == ["15"]


def test_a_simulation_that_fails_is_counted_and_the_run_goes_on(
    made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(task: Task) -> None:
        if task is made[0] and task.num_steps in (5, 25):
            task._steps = 1  # no episode is under way
            raise SimulationError("diverged")

    at_steps(made, monkeypatch, fail)
    assert run(tmp_path, seeds=1) == "finished"
    table = rows(folder(tmp_path, 0) / "train.csv")
    assert [row[FAILURE_RATE] for row in table] == pytest.approx([0.1, 0, 0.1, 0])


@pytest.mark.parametrize(
    ("failed", "outcome"), [({*range(5, 24)} - {14}, "finished"), (set(range(5, 16)), "diverged")]
)
def test_one_failed_step_is_no_end_however_short_the_rows(
    made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: set[int], outcome: Outcome
):
    def fail(task: Task) -> None:
        if task is made[0] and task.num_steps in failed:
            task._steps = 1  # no episode is under way
            raise SimulationError("diverged")

    at_steps(made, monkeypatch, fail)
    assert run(tmp_path, seeds=1, log_interval=1) == outcome
    expected = "at every step of the last 10 rows of metrics" if outcome == "diverged" else ""
    assert expected in status(folder(tmp_path, 0))["message"]


def test_runs_without_a_common_step_are_told_apart():
    assert common_step([[], []], ["a", "b"]) is None
    assert common_step([[10, 20], [20, 30]], ["a", "b"]) == 20
    with pytest.raises(UserError, match=r"seed 0 at 20, seed 1 at the beginning.* give its --seed$"):
        common_step([[10, 20], []], ["seed 0", "seed 1"])


def test_a_group_of_which_some_are_finished_trains_the_rest(
    made: list[Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path, seeds=1, seed=1) == "finished"
    before = (folder(tmp_path, 1) / "train.csv").read_bytes()
    assert run(tmp_path, seeds=2) == "finished"
    assert f"{folder(tmp_path, 1)} is finished (40 steps); nothing to do." in capsys.readouterr().out
    assert (folder(tmp_path, 1) / "train.csv").read_bytes() == before
    assert status(folder(tmp_path, 0))["state"] == "finished"
    assert len(list((folder(tmp_path, 0) / "checkpoints").iterdir())) == checkpoint.KEPT


def test_a_run_has_one_owner(made: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refused = []

    def start_again(task: Task) -> None:
        if task is made[0] and task.num_steps == 12:
            before = len(made)
            with pytest.raises(UserError) as error:
                run(tmp_path, seeds=1)
            del made[before:]
            refused.append(str(error.value))

    at_steps(made, monkeypatch, start_again)
    assert run(tmp_path, seeds=1) == "finished"
    (message,) = refused
    assert message.startswith(f"{folder(tmp_path, 0)} is in use: process ")
    assert [row["step"] for row in rows(folder(tmp_path, 0) / "train.csv")] == [10, 20, 30, 40]


def test_a_finished_run_is_extended_or_overwritten_only_if_asked(made: list[Task], tmp_path: Path):
    path = folder(tmp_path, 0)

    def again(launch: LaunchOptions, **changes: Any) -> Outcome:
        runs = members("sac", "probe", CONFIG, RunConfig(**(OPTIONS | changes)), launch, root=tmp_path)
        return train("sac", "probe", runs, launch)

    assert again(LaunchOptions()) == "finished"
    first = rows(path / "train.csv")
    with pytest.raises(UserError, match="Add --extend-steps"):
        again(LaunchOptions(), steps=60)
    assert again(LaunchOptions(extend_steps=True), steps=60) == "finished"
    assert rows(path / "train.csv")[:4] == first
    assert [row["step"] for row in rows(path / "train.csv")] == [10, 20, 30, 40, 50, 60]
    assert status(path)["step"] == 60

    with pytest.raises(UserError, match="Repeat its options"):
        again(LaunchOptions())
    assert again(LaunchOptions(overwrite=True)) == "finished"
    assert rows(path / "train.csv") == first
    assert json.loads((path / "config.json").read_text())["run_config"]["steps"] == 40


def test_returns_are_those_of_each_value_of_a_sweep():
    """Runs that are frozen have none."""
    swept = [
        Member(SACConfig(), RunConfig(seed=seed), Path("run"), variant)
        for variant in ("discount=0.9", "discount=0.99")
        for seed in (0, 1)
    ]
    assert [member.label for member in swept][1::2] == ["discount=0.9 seed 1", "discount=0.99 seed 1"]
    group = Group(swept, [], [])
    group.runs = [None] * 4  # type: ignore[list-item]
    group.last_returns = [1.0, 2.0, 3.0, None]
    assert group.returns() == {"discount=0.9": [1.0, 2.0], "discount=0.99": [3.0]}
    group.frozen[0] = "diverged"
    assert group.returns() == {"discount=0.9": [2.0], "discount=0.99": [3.0]}
