"""A refused command changes nothing, of a group neither; a run that was saved is never begun anew unasked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import agents
from agents.sac import SAC, SACConfig
from envs.api import SimulationError, TimeStep
from qsm.base.errors import UserError
from qsm.learning.build import Simulators
from qsm.options.run import LaunchOptions, RunConfig
from qsm.record import lock, tables
from qsm.record.config_file import resolved_config
from qsm.record.run_folder import RunDir
from qsm.record.tables import read_csv
from qsm.training.group import members
from qsm.training.opening import open_runs, unfinished
from qsm.training.train import Outcome, train
from tests.probe_environments import ObservationReward

CONFIG = SACConfig(hidden_sizes=(8,), batch_size=8)


class Task(ObservationReward):
    """Calls `at_step` before each step of training with its number."""

    def __init__(self, seed: int, at_step: Callable[[Task], None]) -> None:
        super().__init__(seed)
        self.num_steps = 0
        self.at_step = at_step

    def step(self, action: np.ndarray) -> TimeStep:
        self.num_steps += 1
        self.at_step(self)
        return super().step(action)


def run(
    root: Path,
    seeds: int = 2,
    first: int = 0,
    at_step: Callable[[Task], None] = lambda task: None,
    launch: LaunchOptions | None = None,
    **changes: Any,
) -> Outcome:
    """Trains a group; only the first environments, those of training, call `at_step`."""
    defaults: dict[str, Any] = {
        "steps": 40, "random_steps": 10, "replay_capacity": 1000, "eval_interval": 20, "eval_episodes": 2,
        "log_interval": 10, "checkpoint_interval": 10, "wandb": "disabled", "seed": first,
    }  # fmt: skip
    launch = dataclasses.replace(launch or LaunchOptions(), num_seeds=seeds)
    made: list[Task] = []

    def make(task: str, seed: int, action_repeat: int) -> Task:
        made.append(Task(seed, at_step if len(made) < seeds else lambda task: None))
        return made[-1]

    group = members("sac", "probe", CONFIG, RunConfig(**(defaults | changes)), launch, root=root)
    return train("sac", "probe", group, launch, simulators=Simulators(make))


def folder(root: Path, seed: int) -> Path:
    return root / "dm_control" / "probe" / "sac" / f"seed_{seed}"


def status(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def content(root: Path) -> dict[Path, bytes]:
    """Every file but who owned the run last."""
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != lock.NAME}


def fail(line: str) -> None:
    raise AssertionError(line)


def stop_at(step: int) -> Callable[[Task], None]:
    asked: list[int] = []

    def at_step(task: Task) -> None:
        if task.num_steps == step and not asked:  # once: a second signal ends at once
            asked.append(step)
            signal.raise_signal(signal.SIGTERM)

    return at_step


# ---- A refusal changes nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "launch", [LaunchOptions(), LaunchOptions(overwrite=True), LaunchOptions(extend_steps=True)]
)
def test_where_one_of_a_group_is_in_use_none_is_changed(tmp_path: Path, launch: LaunchOptions):
    assert run(tmp_path, at_step=stop_at(15)) == "preempted"
    before = content(tmp_path)
    with (
        lock.owned(folder(tmp_path, 1), "noon", fail),
        pytest.raises(UserError, match="seed_1 is in use"),
    ):
        run(tmp_path, launch=launch, steps=60 if launch.extend_steps else 40)
    assert content(tmp_path) == before


def test_where_one_of_a_group_is_refused_none_is_made(tmp_path: Path):
    foreign = folder(tmp_path, 1)
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        run(tmp_path)
    assert not folder(tmp_path, 0).exists()
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_a_run_that_another_process_has_just_finished_is_left_as_it_is(tmp_path: Path):
    launch, config = LaunchOptions(), RunConfig(steps=40, random_steps=10)
    group = members("sac", "probe", CONFIG, config, launch, root=tmp_path)
    saved = resolved_config("sac", "probe", "dm_control", CONFIG, config)
    RunDir.create_or_open(group[0].path, saved).write_status("finished", 40, 40)
    before = content(tmp_path)
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="just been finished by another"):
        open_runs(stack, group, "sac", "probe", launch, [], fail)
    assert content(tmp_path) == before
    assert unfinished(group, "sac", "probe", launch) == []
    assert unfinished(group, "sac", "probe", LaunchOptions(overwrite=True)) == group


# ---- Nothing that was saved is lost ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [40, pytest.param(60, marks=pytest.mark.slow)])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(tmp_path: Path, steps: int):
    """As of published results, which are committed without checkpoints."""
    assert run(tmp_path, seeds=1, at_step=stop_at(25) if steps == 40 else lambda task: None) != "diverged"
    path = folder(tmp_path, 0)
    shutil.rmtree(path / "checkpoints")
    before = content(path)
    launch = LaunchOptions(extend_steps=steps == 60)
    with pytest.raises(UserError, match=r"was saved at step .* --overwrite"):
        run(tmp_path, seeds=1, launch=launch, steps=steps)
    assert content(path) == before
    assert run(tmp_path, seeds=1, launch=LaunchOptions(overwrite=True)) == "finished"


def test_a_run_that_was_never_saved_begins_anew(tmp_path: Path):
    def crash(task: Task) -> None:
        if task.num_steps == 8:
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        run(tmp_path, seeds=1, at_step=crash)
    assert status(folder(tmp_path, 0))["saved_step"] is None
    assert run(tmp_path, seeds=1) == "finished"
    assert status(folder(tmp_path, 0))["saved_step"] == 40


@pytest.mark.slow
def test_a_group_killed_while_it_saved_for_the_first_time_begins_anew(tmp_path: Path):
    """One of the runs has its checkpoint then, and the other none."""
    assert run(tmp_path / "whole") == "finished"
    assert run(tmp_path / "part", at_step=stop_at(5)) == "preempted"
    shutil.rmtree(folder(tmp_path / "part", 1) / "checkpoints")
    for seed in (0, 1):
        path = folder(tmp_path / "part", seed)
        (path / "status.json").write_text(json.dumps(status(path) | {"state": "running", "saved_step": None}))
    assert run(tmp_path / "part") == "finished"
    for seed in (0, 1):
        for name in ("train.csv", "eval.csv"):
            one, other = (read_csv(folder(tmp_path / root, seed) / name) for root in ("part", "whole"))
            assert [row["step"] for row in one] == [row["step"] for row in other]


def test_checkpoints_without_their_checksums_are_all_kept(tmp_path: Path):
    assert run(tmp_path, seeds=1, at_step=stop_at(25)) == "preempted"
    path = folder(tmp_path, 0)
    for sums in (path / "checkpoints").glob("*/checksums.json"):
        sums.unlink()
    before = content(path / "checkpoints")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        run(tmp_path, seeds=1)
    assert content(path / "checkpoints") == before


def test_a_file_or_a_lost_drive_in_place_of_the_checkpoints(tmp_path: Path):
    assert run(tmp_path, seeds=1, at_step=stop_at(25)) == "preempted"
    checkpoints = folder(tmp_path, 0) / "checkpoints"
    shutil.rmtree(checkpoints)
    checkpoints.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be used for checkpoints"):
        run(tmp_path, seeds=1)
    checkpoints.unlink()
    checkpoints.write_text("no folder")
    with pytest.raises(UserError, match="no checkpoint is in"):
        run(tmp_path, seeds=1)


def test_one_that_went_on_alone_is_not_taken_back(tmp_path: Path):
    extend = LaunchOptions(extend_steps=True)
    assert run(tmp_path, at_step=stop_at(15), checkpoint_interval=50) == "preempted"
    assert run(tmp_path, seeds=1, first=1, checkpoint_interval=50) == "finished"
    before = content(folder(tmp_path, 1))
    with pytest.raises(UserError, match="seed 1 has gone on alone to step 40, and the others are at 15"):
        run(tmp_path, launch=extend, steps=60, checkpoint_interval=50)
    assert content(folder(tmp_path, 1)) == before


def test_one_that_diverged_alone_keeps_what_it_has(tmp_path: Path):
    """It is frozen at once, and what it saved is neither gone back to nor begun anew."""
    assert run(tmp_path, seeds=1, first=1, at_step=stop_at(25), checkpoint_interval=50) == "preempted"
    diverged = folder(tmp_path, 1)
    (diverged / "status.json").write_text(json.dumps(status(diverged) | {"state": "diverged"}))
    shutil.copy(next((diverged / "best").iterdir()), diverged / "best" / "20.npz")
    before = content(diverged)
    with pytest.raises(
        UserError, match="seed 1 diverged and was saved at step 25 before, and the others have not"
    ):
        run(tmp_path, checkpoint_interval=50)
    assert content(diverged) == before
    assert run(tmp_path, seeds=1, at_step=stop_at(15), checkpoint_interval=50) == "preempted"
    assert run(tmp_path, checkpoint_interval=50) == "diverged"
    after = content(diverged)
    assert {path.name for path in after if before.get(path) != after[path]} == {"log.txt"}
    assert after.keys() == before.keys()
    assert status(folder(tmp_path, 0))["state"] == "finished"


# ---- What the rows of metrics wait for ---------------------------------------------------------------------------


def test_rows_that_could_not_be_written_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`train.csv` cannot be written while checkpoints can; what waits for it is in the checkpoint."""
    assert run(tmp_path / "whole", seeds=1) == "finished"
    write = tables.CsvSink._write_pending

    def refuse(sink: tables.CsvSink, rewrite: bool) -> None:
        if sink.path.name == "train.csv":
            raise PermissionError("read-only")
        write(sink, rewrite)

    def crash(task: Task) -> None:
        if task.num_steps == 35:
            raise RuntimeError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(tables.CsvSink, "_write_pending", refuse)
        with pytest.raises(RuntimeError, match="gone"):
            run(tmp_path / "part", seeds=1, at_step=crash)
    path = folder(tmp_path / "part", 0)
    assert not (path / "train.csv").exists()
    assert run(tmp_path / "part", seeds=1) == "finished"

    def rows(root: Path, name: str) -> list[dict[str, float]]:
        table = read_csv(folder(root, 0) / name)
        return [{key: row[key] for key in row if "second" not in key} for row in table]

    for name in ("train.csv", "eval.csv"):
        assert rows(tmp_path / "part", name) == rows(tmp_path / "whole", name)


# ---- What is not finite, and simulators that fail ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PoisonedSAC(SAC):
    """Its critics are infinite after the last update before step `at`."""

    at: int

    def update(self, state: Any, batch: Any, key: Any, step: Any) -> Any:
        new, metrics = super().update(state, batch, key, step)
        wrong = np.float32(1.0) / (step != self.at - 11)
        critic = jax.tree.map(lambda leaf: leaf * wrong if leaf.dtype == np.float32 else leaf, new.critic)
        return new._replace(critic=critic), metrics


@pytest.mark.parametrize("at", [20, pytest.param(40, marks=pytest.mark.slow)])
def test_parameters_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    """An update's metrics are of the state before it: the last one before a checkpoint shows in the state alone."""
    monkeypatch.setattr(
        agents, "build", lambda name, config, size, actions: PoisonedSAC(config, size, actions, at)
    )
    assert run(tmp_path, seeds=1) == "diverged"
    path = folder(tmp_path, 0)
    assert status(path)["state"] == "diverged"
    assert f"diverged by step {at}" in status(path)["message"]
    assert "not finite: critic" in status(path)["message"]
    saved = [int(one.name) for one in (path / "checkpoints").iterdir() if one.name.isdigit()]
    assert max(saved) == at - 10


def test_a_simulation_that_fails_at_times_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def at_step(task: Task) -> None:
        if task.num_steps in (5, 25):
            task._steps = 1  # no episode is under way
            raise SimulationError("diverged")

    assert run(tmp_path, seeds=1, at_step=at_step) == "finished"
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("the simulation of seed 0 failed in 10.00% of the last steps before 10") == 1
    assert text.count("the simulation of") == 1


def test_a_simulation_that_fails_always_stops_its_run(tmp_path: Path):
    def at_step(task: Task) -> None:
        if task.num_steps > 15:
            task._steps = 1
            raise SimulationError("diverged")

    assert run(tmp_path, seeds=1, at_step=at_step) == "diverged"
    path = folder(tmp_path, 0)
    assert (status(path)["state"], status(path)["step"]) == ("diverged", 30)
    assert "the simulation failed at every step" in status(path)["message"]
    assert (path / "diverged_30" / "report.json").exists()
