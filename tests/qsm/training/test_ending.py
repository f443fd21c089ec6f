"""What is said and answered when a training ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from qsm.training.ending import Ending, ending

RUNS = [Path("runs/a/seed_0"), Path("runs/a/seed_1")]


def end(**changes: Any) -> Ending:
    usual: dict[str, Any] = {
        "step": 1500, "is_last": True, "active": RUNS[:1], "frozen": {}, "stop_signal": 0, "problem": None,
        "newest_step": 1500, "returns": {"": [839.25]}, "command": "qsm",
    }  # fmt: skip
    return ending(**(usual | changes))


def test_a_finished_run_says_what_to_do_next():
    lines = [
        "Return   839.2",
        "Run      runs/a/seed_0",
        "Play     qsm eval runs/a/seed_0",
        "Look     qsm dashboard runs/a/seed_0",
    ]
    assert end() == Ending("finished", "finished", "", lines)
    several = end(active=RUNS, returns={"": [600.0, 624.0]}, command=".venv/bin/qsm").lines
    assert several[0] == "Return   612.0 ± 17.0"
    assert several[1] == "Run      runs/a/seed_0 and 1 more"
    assert several[2] == "Play     .venv/bin/qsm eval runs/a/seed_0"
    assert several[3] == f"Look     .venv/bin/qsm dashboard {Path('runs/a')}"


def test_values_of_a_sweep_are_not_thrown_together():
    found = end(active=RUNS, returns={"score_scale=1": [3.0, 5.0], "score_scale=100": [700.0]}).lines
    assert found[:2] == ["Return   score_scale=1:   4.00 ± 1.41", "Return   score_scale=100: 700.0"]


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "preempted")]
)
def test_a_run_that_was_stopped_says_how_to_go_on(number: int, expected: str):
    line = "Stopped and saved at step 1,500. Go on with the same command."
    assert end(is_last=False, stop_signal=number) == Ending(expected, expected, "", [line])  # type: ignore[arg-type]


def test_a_signal_at_the_last_step_takes_nothing_from_a_finished_run():
    assert end(stop_signal=signal.SIGTERM).outcome == "finished"


def test_a_run_that_was_frozen_is_named_and_the_others_finish():
    found = end(frozen={"seed 3": "diverged by step 10: critic/loss is nan"})
    assert (found.outcome, found.state) == ("diverged", "finished")
    assert found.lines[0] == (
        "Failed   seed 3 diverged by step 10: critic/loss is nan. Try again alone with another --seed or other options"
    )
    assert len(found.lines) == 5


def test_where_all_were_frozen_there_is_nothing_to_play():
    found = end(
        active=[], is_last=False, frozen={"seed 0": "diverged"}, problem="disk full", newest_step=None
    )
    assert found.outcome == "diverged"
    assert len(found.lines) == 1


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize(
    ("newest", "kept"), [(None, "There is no checkpoint"), (1000, "The newest checkpoint is of step 1,000")]
)
def test_a_run_that_could_not_be_saved_says_what_there_is(is_last: bool, newest: int | None, kept: str):
    found = end(is_last=is_last, problem="No space left on device", newest_step=newest)
    message = f"step 1,500 could not be saved: No space left on device. {kept}"
    mend = "Free space or restore the drive, then go on with the same command."
    assert found == Ending("unsaved", "failed", message, [f"Failed   {message}. {mend}"])
