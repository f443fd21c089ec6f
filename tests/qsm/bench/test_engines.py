"""Trainings run in processes, share the cores, and are stopped or killed as they are told."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from qsm.bench.engines import LocalEngine
from qsm.bench.grid import (
    progress_of,
)
from tests.benchmarks import (
    STEPS,
    command,
    filled,
    grid,
    starts,
)


def test_processes_share_the_cores_without_overlap(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    found = grid(tmp_path, 2)
    filled(found, lambda seed: "finishes", jobs=len(cores))
    assert all(starts(cell)[0] in [f"[{core}] 1" for core in cores] for cell in found.cells)
    # One that shares an accelerator leaves memory to the others.
    expected = "false" if len(cores) > 1 else "not set"
    assert all((cell.path / "memory.txt").read_text() == expected for cell in found.cells)
    found = grid(tmp_path / "one", 1)
    filled(found, lambda seed: "finishes", jobs=1)
    assert starts(found.cells[0]) == [f"{cores} {len(cores)}"]
    assert (found.cells[0].path / "memory.txt").read_text() == "not set"


@pytest.mark.parametrize(
    ("behaviour", "state", "reason"),
    [
        ("SIGKILL", "failed", "killed by SIGKILL (as where memory runs out); the last it said: step 300"),
        ("SIGTERM", "stopped", ""),
    ],
)
def test_a_training_ended_by_a_signal_is_told_and_stops_no_other(
    behaviour: str, state: str, reason: str, tmp_path: Path
) -> None:
    whole = grid(tmp_path, 2)
    first, _ = whole.cells
    status, output = filled(whole, lambda seed: "finishes" if seed else behaviour)
    assert status == 1 and "1 of 2 runs finished" in output
    assert f"{state}: {first.path}" + (f": {reason}" if reason else "") in output.splitlines()
    status, output = filled(whole, lambda seed: "finishes")
    assert status == 0 and len(starts(first)) == 2


def test_a_training_whose_log_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2)
    job, _ = whole.jobs(whole.cells)
    job.log.mkdir(parents=True)
    status, output = filled(whole, lambda seed: "finishes")
    assert status == 1 and "1 of 2 runs finished, 1 failed" in output
    assert f"failed: {job.cells[0].path}: {job.log}: Is a directory" in output


def test_a_second_signal_kills_wherever_the_first_has_come(tmp_path: Path) -> None:
    engine = LocalEngine(1, command(lambda seed: "finishes"))
    killer = threading.Thread(target=lambda: (engine._lock.acquire(), engine.kill(), engine._lock.release()))
    killer.daemon = True
    killer.start()
    killer.join(10)
    assert not killer.is_alive()
    whole = grid(tmp_path, 2)
    outcomes = list(engine.run(whole.jobs(whole.cells), lambda: None, interval=0.01))
    assert [outcome.status for outcome in outcomes] == [143, 143]
    assert not list(tmp_path.iterdir())  # not even logs of what was not begun


def test_stopping_saves_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    whole = grid(tmp_path, 3)
    found = whole.cells
    engine = LocalEngine(1, command(lambda seed: "waits"))
    seen: list[Any] = []

    def tick() -> None:
        if not seen and progress_of(found[0], STEPS).step == 300:
            seen.append(engine.running())
            engine.stop()

    outcomes = list(engine.run(whole.jobs(found), tick, interval=0.01))
    assert [[job.cells for job in running] for running in seen] == [[(found[0],)]]
    assert [outcome.status for outcome in outcomes] == [143] * 3
    assert progress_of(found[0], STEPS) == ("stopped", 400, 5.0, "")
    assert not found[1].path.exists()
