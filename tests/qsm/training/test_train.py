"""A run that was stopped, failed or is finished: what it leaves, what it says, and how it goes on."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

import agents
from agents.config import AgentConfig
from envs.api import StepType
from qsm.base.errors import UserError
from qsm.checkpoints import orbax_manager
from qsm.checkpoints.integrity import is_whole
from qsm.data import segments
from qsm.data.replay import ROW_FIELDS, Rows
from qsm.data.segments import Segment
from qsm.learning.build import Simulators
from qsm.loops.host_loop import HostLoop
from qsm.record.status import Outcome
from qsm.record.tables import read_csv, read_table
from qsm.training.group import Member
from qsm.training.session import best_return
from qsm.training.train import AGENT, train
from tests.counted_task import Task, options
from tests.tally_agent import TALLY

EPISODE_STEPS = 3
FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST


class Run:
    """`train` of the counting agent.

    Attributes:
      made: the environments of all calls; of each call that of training comes first.
    """

    def __init__(self) -> None:
        self.made: list[Task] = []

    def __call__(
        self,
        path: Path,
        at_step: Callable[[int], None] = lambda step: None,
        end_process: Callable[[int], Any] = os._exit,
        task: str = "probe",
        **changes: Any,
    ) -> Outcome:
        """Trains in `path`; `at_step` is called in the environment of training."""
        before = len(self.made)

        def make(task: str, seed: int, action_repeat: int) -> Task:
            is_training = len(self.made) == before
            self.made.append(Task(at_step if is_training else lambda step: None, action_repeat))
            return self.made[-1]

        runs = [Member(AgentConfig(), options(**changes), path)]
        return train("tally", task, runs, simulators=Simulators(make), end_process=end_process)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setitem(agents.AGENTS, "tally", TALLY)
    return Run()


def status(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def steps_in(path: Path) -> list[int]:
    return [int(row["step"]) for row in read_csv(path)]


def assert_complete(path: Path) -> None:
    """What every finished run leaves, in one piece or in several."""
    assert status(path)["state"] == "finished"
    assert status(path)["step"] == 10
    assert steps_in(path / "eval.csv") == [0, 4, 8, 10]
    assert steps_in(path / "train.csv") == [5, 10]
    assert [row["loop/num_updates"] for row in read_csv(path / "train.csv")] == [1, 6]
    assert (path / "checkpoints" / "10").is_dir()


def interrupt(at: int, by: signal.Signals = signal.SIGINT) -> Callable[[int], None]:
    def at_step(step: int) -> None:
        if step == at:
            signal.raise_signal(by)

    return at_step


def test_a_finished_run_is_left_alone(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run"
    assert run(path) == "finished"
    assert_complete(path)
    for row in read_csv(path / "eval.csv"):
        assert (row["return_mean"], row["return_0"], row["return_1"], row["length_mean"]) == (3, 3, 3, 3)
    assert f"qsm eval {path}" in capsys.readouterr().out
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    number = len(run.made)
    assert run(path) == "finished"
    assert f"{path} is finished (10 steps); nothing to do." in capsys.readouterr().out
    assert sum(task.num_steps for task in run.made[number:]) == 0
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(("task", "full"), [("gridworld-open", "1"), ("walker-run", "1000")])
def test_the_bar_of_returns_ends_at_the_most_of_the_task(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, full: str
):
    run(tmp_path / "run", task=task)
    assert ["step", "return", "0", full] in [row.split()[:4] for row in capsys.readouterr().out.splitlines()]


def test_ctrl_c_saves_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(path, interrupt(at=7)) == "interrupted"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (status(path)["state"], status(path)["step"]) == ("interrupted", 7)
    assert "Stopped and saved at step 7. Go on with the same command." in capsys.readouterr().out
    number = len(run.made)
    assert run(path) == "finished"
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(AGENT) == 1 and lines.index(AGENT) == lines.index("resuming at step 7") + 1
    assert_complete(path)
    assert run.made[number].num_steps == 3


def test_it_is_said_that_programs_are_compiled_before_the_first_row(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Into a pipe, too, where nothing was to be seen until the first evaluation."""
    assert run(tmp_path / "run") == "finished"
    lines = capsys.readouterr().out.splitlines()
    first_row = next(i for i, line in enumerate(lines) if line.split()[:1] == ["step"])
    assert [i for i, line in enumerate(lines) if line.startswith("compiling")] == [first_row - 1]
    assert lines[first_row - 1] == AGENT and "10 to 30 s" in AGENT


def test_ctrl_c_before_the_first_step_says_what_is_waited_for(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path, begin = tmp_path / "run", HostLoop.begin

    def interrupted(loop: HostLoop) -> Any:
        assert threading.current_thread() is not threading.main_thread()  # which goes on to hear signals
        os.kill(os.getpid(), signal.SIGINT)
        return begin(loop)

    monkeypatch.setattr(HostLoop, "begin", interrupted)
    assert run(path) == "interrupted"
    assert (status(path)["state"], status(path)["step"]) == ("interrupted", 0)
    shown = capsys.readouterr().out
    assert "warning: stopping when all is compiled and the first evaluation is made" in shown
    assert "after this step" not in shown
    monkeypatch.undo()
    monkeypatch.setitem(agents.AGENTS, "tally", TALLY)
    assert run(path) == "finished"
    assert_complete(path)


def test_the_best_of_a_resumed_run_is_that_of_the_whole_run(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run"
    assert run(path, interrupt(at=7)) == "interrupted"
    table = read_table(path / "eval.csv")
    column = table.columns.index("return_mean")
    table.rows[0][column], table.rows[1][column] = "81.4", "8.6"
    (path / "eval.csv").write_text("".join(",".join(row) + "\n" for row in [table.columns, *table.rows]))
    capsys.readouterr()
    assert run(path) == "finished"
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert [(line[0], line[-2]) for line in lines] == [("8", "81.4"), ("10", "81.4")]


def test_the_best_of_several_runs_is_that_of_their_mean(tmp_path: Path):
    one, other, nothing = (tmp_path / name for name in ("one.csv", "other.csv", "nothing.csv"))
    one.write_text("step,return_mean\n0,10\n5,nan\n10,30\n")
    other.write_text("step,return_mean\n0,40\n5,99\n10,0\n")
    assert best_return([one, other]) == 25
    assert best_return([one]) == 30
    assert best_return([other, nothing]) == 99
    assert best_return([nothing]) == best_return([]) == -np.inf


def test_the_best_policy_is_kept_and_stays_that_of_the_whole_run(run: Run, tmp_path: Path):
    """Every evaluation returns 3 here, so that only the first is better than all before it."""
    path = tmp_path / "run"
    assert run(path, interrupt(at=7)) == "interrupted"
    (kept,) = (path / "best").iterdir()
    assert kept.name == "0.npz"
    before = kept.read_bytes()
    assert run(path) == "finished"
    assert [file.read_bytes() for file in (path / "best").iterdir()] == [before]


def test_sigterm_is_told_from_ctrl_c(run: Run, tmp_path: Path):
    path = tmp_path / "run"
    assert run(path, interrupt(7, signal.SIGTERM)) == "preempted"
    assert (status(path)["state"], status(path)["step"]) == ("preempted", 7)
    assert run(path) == "finished"
    assert_complete(path)


def full_disk(from_step: int, to_step: int) -> Any:
    """In place of `segments.write`: fails for checkpoints in that range."""
    write = segments.write

    def fail(folder: Path, step: int, rows: Rows) -> Segment:
        if from_step <= step <= to_step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, step, rows)

    return fail


def test_training_goes_on_while_the_disk_is_full(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    whole, path = tmp_path / "whole", tmp_path / "run"
    assert run(whole, checkpoint_interval=2) == "finished"
    monkeypatch.setattr(segments, "write", full_disk(4, 7))
    assert run(path, interrupt(at=9), checkpoint_interval=2) == "interrupted"
    assert len(re.findall(r"cannot be written: No space left on device\.", capsys.readouterr().out)) == 1
    assert sorted(file.name for file in (path / "replay").iterdir()) == ["2.npz", "8.npz", "9.npz"]
    assert run(path, checkpoint_interval=2) == "finished"
    assert_complete(path)
    assert is_whole(path / "checkpoints" / "10")
    assert all_rows(path) == all_rows(whole)


def all_rows(path: Path) -> list[bytes]:
    """The fields of all rows that the files of a run hold, joined."""
    files = sorted((path / "replay").iterdir(), key=lambda file: int(file.stem))
    parts = [np.load(file, allow_pickle=False) for file in files]
    return [np.concatenate([part[name] for part in parts]).tobytes() for name in ROW_FIELDS]


def test_former_checkpoints_that_cannot_be_removed_are_no_loss(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(ocp.CheckpointManager, "delete", refuse)
    path = tmp_path / "run"
    assert run(path, checkpoint_interval=3) == "finished"
    assert_complete(path)
    assert [(path / "checkpoints" / name).is_dir() for name in ("3", "6", "9", "10")] == [True] * 4


def test_a_run_whose_end_cannot_be_saved_says_so_and_can_be_ended_later(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "write", full_disk(7, 10))
        assert run(path) == "unsaved"
    assert status(path)["state"] == "failed"
    assert "step 10 could not be saved: No space left on device" in status(path)["message"]
    assert "The newest checkpoint is of step 6" in capsys.readouterr().out
    assert run(path) == "finished"
    assert_complete(path)


@pytest.mark.parametrize(("by", "state"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "preempted")])
def test_a_second_signal_ends_at_once(by: signal.Signals, state: str, run: Run, tmp_path: Path):
    def at_step(step: int) -> None:
        if step == 7:
            signal.raise_signal(by)
            signal.raise_signal(by)

    def end(code: int) -> None:
        ended.append(code)
        raise KeyboardInterrupt  # in place of the end of the process

    ended: list[int] = []
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(path, at_step, end)
    assert ended == [128 + by]
    assert (status(path)["state"], status(path)["step"]) == (state, 6)
    assert run(path) == "finished"
    assert_complete(path)


@pytest.mark.parametrize(("at", "resumed_from"), [(3, 0), (9, 6)])
def test_a_failed_run_says_so_and_goes_on_from_its_checkpoint(
    at: int, resumed_from: int, run: Run, tmp_path: Path
):
    """Rows written after the checkpoint come again and are not there twice."""

    def fail(step: int) -> None:
        if step == at:
            raise RuntimeError("the simulator is unstable\nin two lines")

    path = tmp_path / "run"
    with pytest.raises(RuntimeError, match="unstable"):
        run(path, fail)
    assert status(path)["state"] == "failed"
    assert status(path)["step"] == at - 1
    assert status(path)["message"] == "RuntimeError: the simulator is unstable"
    number = len(run.made)
    assert run(path) == "finished"
    assert run.made[number].num_steps == 10 - resumed_from
    assert_complete(path)


def test_other_options_are_refused_for_an_unfinished_run(run: Run, tmp_path: Path):
    path = tmp_path / "run"
    assert run(path, interrupt(at=2)) == "interrupted"
    with pytest.raises(UserError, match="--replay-ratio is"):
        run(path, replay_ratio="2")
    assert status(path)["state"] == "interrupted"


def test_an_impossible_task_is_a_mistake_of_the_user(tmp_path: Path):
    with pytest.raises(UserError, match="no-such-task"):
        train("sac", "no-such-task", [Member(AgentConfig(), options(), tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_the_tracebacks_of_orbax_are_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def record(path: str, level: int, text: str) -> logging.LogRecord:
        return logging.LogRecord("absl", level, path, 1, text, None, None)

    logger = logging.getLogger("absl")
    with orbax_manager.collected_errors() as said:
        logger.handle(record("site-packages/orbax/futures.py", logging.ERROR, "Traceback of orbax"))
        logger.handle(record("site-packages/orbax/futures.py", logging.WARNING, "a warning"))
        logger.handle(record("site-packages/other.py", logging.ERROR, "another's"))
    logger.handle(record("site-packages/orbax/futures.py", logging.ERROR, "later"))
    assert said == ["Traceback of orbax"]
    assert caplog.messages == ["a warning", "another's", "later"]
