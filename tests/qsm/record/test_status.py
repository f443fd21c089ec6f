"""What a run's folder says of its state and of how far it is, however old or damaged the files are."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, get_args

import pytest

from qsm.base.errors import UserError
from qsm.record import lock
from qsm.record.status import (
    EXIT_STATUS,
    Outcome,
    Progress,
    Status,
    last_step,
    read_progress,
    read_status,
    write_status,
)


def leave(folder: Path, **entries: Any) -> None:
    (folder / "status.json").write_text(json.dumps(entries))


def no_warning(message: str) -> None:
    raise AssertionError(message)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    status = Status("diverged", 5, 3, 10, "noon", 1.5, "diverged by step 5: loss is nan")
    write_status(tmp_path, status)
    assert read_status(tmp_path, strict=True) == status
    write_status(tmp_path, Status("finished", 10, last_return=float("nan")))
    assert read_status(tmp_path).last_return is None


def test_a_run_that_diverged_before_there_was_such_a_state_is_known(tmp_path: Path) -> None:
    message = "diverged by step 500: critic/loss is nan"
    leave(tmp_path, state="failed", step=500, message=message)
    assert read_status(tmp_path).state == "diverged"
    assert read_progress(tmp_path).describe() == message
    leave(tmp_path, state="failed", step=500, message="step 500 could not be saved: it diverged")
    assert read_status(tmp_path).state == "failed"


@pytest.mark.parametrize(
    ("entries", "saved_step"),
    [
        ({"state": "finished", "step": 10}, 10),
        ({"state": "interrupted", "step": 10}, None),
        ({"state": "finished", "step": 10, "saved_step": None}, None),
        ({"state": "running", "step": 10, "saved_step": 5}, 5),
    ],
)
def test_where_a_run_was_saved_by_a_version_that_did_not_say(
    tmp_path: Path, entries: dict[str, Any], saved_step: int | None
) -> None:
    leave(tmp_path, **entries)
    assert read_status(tmp_path).saved_step == saved_step


@pytest.mark.parametrize("content", ["{", "\xff", "[" * 100_000])
def test_a_damaged_file_is_refused_only_where_that_is_asked(tmp_path: Path, content: str) -> None:
    assert read_status(tmp_path, strict=True) == Status()
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) == Status()
    with pytest.raises(UserError, match="is damaged"):
        read_status(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"state": "sleeping", "step": 5}, Status(step=5)),
        ({"state": "running", "step": "5"}, Status("running")),
        ({"state": "running", "step": True, "last_return": "x", "message": 3, "odd": 1}, Status("running")),
    ],
)
def test_entries_that_are_none_are_left_out(
    tmp_path: Path, entries: dict[str, Any], expected: Status
) -> None:
    leave(tmp_path, **entries)
    assert read_status(tmp_path) == expected


def test_a_run_that_says_it_runs_and_has_no_owner_was_killed(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == Progress("not begun", 0)
    leave(tmp_path, state="running", step=20, last_return=3.0)
    assert read_progress(tmp_path) == Progress("killed", 20, 3.0)
    with lock.owned(tmp_path, "noon", no_warning):
        assert read_progress(tmp_path) == Progress("running", 20, 3.0)
        leave(tmp_path, state="finished", step=30)
        assert read_progress(tmp_path).state == "finished"


def test_rows_of_metrics_tell_more_than_an_older_status(tmp_path: Path) -> None:
    leave(tmp_path, state="running", step=20)
    (tmp_path / "train.csv").write_text("step,loss\n10,1\n30,2\n40")
    assert read_progress(tmp_path).step == 30
    leave(tmp_path, state="running", step=50)
    assert read_progress(tmp_path).step == 50


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ("step,a\n5,1\n6,2\n", 6),
        ("step,a\n5,1\n6", 5),
        ("a,step\n1,7\n", 7),
        ("step\n", 0),
        ("", 0),
        ("x\n1\n", 0),
    ],
)
def test_the_last_whole_row_of_a_table(tmp_path: Path, content: str, step: int) -> None:
    (tmp_path / "train.csv").write_text(content)
    assert last_step(tmp_path / "train.csv") == step


def test_exit_statuses_are_those_of_shells() -> None:
    assert set(EXIT_STATUS) == set(get_args(Outcome))
    assert EXIT_STATUS["finished"] == 0 and 0 not in [EXIT_STATUS[name] for name in ("diverged", "unsaved")]
    assert EXIT_STATUS["interrupted"] == 128 + signal.SIGINT
    assert EXIT_STATUS["preempted"] == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress("failed", 5, None, "OSError: no\n space"), "failed: OSError: no space"),
        (Progress("failed", 5), "failed"),
        (Progress("diverged", 5, None, "diverged by step 5"), "diverged by step 5"),
        (Progress("diverged", 5, None, "loss is nan"), "diverged: loss is nan"),
        (Progress("interrupted", 5, None, "a second signal"), "interrupted"),
    ],
)
def test_a_state_is_told_in_one_line(progress: Progress, text: str) -> None:
    assert progress.describe() == text
