"""A grid is filled, each cell once; what fails is told and tried again, and stopping saves."""

from __future__ import annotations

import functools
import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qsm.bench.engines import LocalEngine, Outcome
from qsm.bench.fill import fill
from qsm.bench.grid import (
    Job,
    progress_of,
)
from qsm.bench.suites import SUITES
from tests.benchmarks import (
    STEPS,
    Seen,
    command,
    filled,
    grid,
    leave,
    starts,
)


def test_a_grid_is_filled_once_and_a_failed_cell_stops_no_other(tmp_path: Path) -> None:
    whole = grid(tmp_path, 3)
    found = whole.cells
    status, output = filled(whole, lambda seed: "fails" if seed == 1 else "finishes")
    assert status == 1
    assert "walker-walk sac seed 1 failed: qsm: error: the reason" in output
    assert f"failed: {found[1].path}: qsm: error: the reason" in output
    assert "2 of 3 runs finished, 1 failed" in output
    status, output = filled(whole, lambda seed: "finishes")
    assert status == 0 and "3 runs of 1,000 steps, 2 of them finished; 1 at a time" in output
    assert [len(starts(cell)) for cell in found] == [1, 2, 1]
    assert not list(tmp_path.rglob("*.output.txt"))
    status, output = filled(whole, lambda seed: "fails")
    assert status == 0 and [len(starts(cell)) for cell in found] == [1, 2, 1]
    assert "3 runs of 1,000 steps, all of them finished" in output and "at a time" not in output


def test_more_steps_or_seeds_train_what_is_missing(tmp_path: Path) -> None:
    found = grid(tmp_path, 1).cells
    assert filled(grid(tmp_path, 1), lambda seed: "finishes")[0] == 0
    assert progress_of(found[0], STEPS).state == "finished"
    assert progress_of(found[0], 2 * STEPS).state == "stopped"
    assert [progress_of(cell, STEPS).state for cell in grid(tmp_path, 2).cells] == ["finished", "missing"]


def test_a_run_that_was_trained_for_longer_has_its_return_of_the_grid_s_last_step(tmp_path: Path) -> None:
    cell = grid(tmp_path, 1).cells[0]
    run = leave(cell, "finished", 2 * STEPS, 2 * STEPS)
    run.eval_csv.write_text(f"step,return_mean\n0,1\n{STEPS},3\n{2 * STEPS},7\n")
    assert progress_of(cell, STEPS) == ("finished", 2 * STEPS, 3.0, "")
    assert progress_of(cell, 2 * STEPS) == ("finished", 2 * STEPS, 7.0, "")
    assert progress_of(cell, STEPS // 2).last_return is None  # it was not evaluated there


def test_a_second_signal_ends_a_training_that_takes_long_to_save(tmp_path: Path) -> None:
    whole = grid(tmp_path, 1)
    (cell,) = whole.cells

    class Engine(LocalEngine):
        def running(self) -> list[Job]:
            if progress_of(cell, STEPS).step == 300:
                signal.raise_signal(signal.SIGINT)
            return super().running()

        def stop(self) -> None:
            if super().running():
                signal.raise_signal(signal.SIGINT)  # while it saves
            super().stop()

    output = io.StringIO()
    engine = Engine(1, command(lambda seed: "waits"))
    assert fill(whole, engine, Console(file=output, width=200)) == 130
    assert "Killed; what was not saved is lost. Go on with the same command." in output.getvalue()
    assert progress_of(cell, STEPS).step == 300


def test_whatever_ends_the_benchmark_stops_the_trainings(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2)
    waiting, _ = whole.cells

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "seed 1 finished" in text:
                raise OSError("no terminal")
            return super().write(text)

    engine = LocalEngine(2, command(lambda seed: "finishes" if seed else "waits"))
    with pytest.raises(OSError, match="no terminal"):
        fill(whole, engine, Console(file=Gone(), width=200))
    assert not engine.running() and progress_of(waiting, STEPS).state != "running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_benchmark_with_its_status(
    tmp_path: Path, number: int, request: pytest.FixtureRequest
) -> None:
    # Whoever started the tests in the background, or by nohup, may have had it ignored.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, usual)))
    whole, former = grid(tmp_path, 1), usual
    found = whole.cells
    running = threading.Event()

    class Engine(LocalEngine):
        def running(self) -> list[Job]:
            if progress_of(found[0], STEPS).step == 300 and not running.is_set():
                running.set()
                signal.raise_signal(number)
            return super().running()

    output = io.StringIO()
    engine = Engine(1, command(lambda seed: "waits"))
    status = fill(whole, engine, Console(file=output, width=200))
    assert status == 128 + number and running.is_set()
    assert "40%" in output.getvalue() and "Go on with the same command" in output.getvalue()
    assert signal.getsignal(number) == former


def test_the_live_view_begins_with_the_summary(tmp_path: Path) -> None:
    whole = grid(tmp_path, 1, ("sac", "td3"), SUITES["dmc28"].tasks)
    console, frames = Seen(), []

    class Engine(LocalEngine):
        def run(self, jobs: Any, tick: Any, interval: float = 1.0) -> Any:
            tick()
            frames.append(console.file.getvalue())  # type: ignore[attr-defined]
            for job in jobs:
                leave(job.cells[0], "finished", STEPS)
                yield Outcome(job, 0, "")

    assert fill(whole, Engine(1), console) == 0
    assert "0 of 56 runs finished" in frames[0] and frames[0].rstrip().endswith("...")
    last = console.file.getvalue()  # type: ignore[attr-defined]
    assert "56 of 56 runs finished\n" in last and last.count("humanoid-walk") == 1


def test_tables_for_a_file_are_as_wide_as_they_are(tmp_path: Path) -> None:
    whole = grid(tmp_path, 16, ("qsm-clean",), ("cartpole-balance_sparse", "finger-turn_hard"))
    for cell in whole.cells:
        leave(cell, "interrupted", 120)
    output = io.StringIO()
    assert fill(whole, LocalEngine(1), Console(file=output, width=80), dry_run=True) == 0
    _, head, first, second, summary = output.getvalue().splitlines()
    assert head.split() == ["task", "agent", *(word for n in range(16) for word in ("seed", str(n)))]
    assert first.split() == ["cartpole-balance_sparse", "qsm-clean", *["12%"] * 16]
    assert second.split()[0] == "finger-turn_hard" and len(first) == len(second) == len(head)
    assert summary == "0 of 32 runs finished"


def test_a_new_grid_looks_for_no_runs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("folders are searched for each cell"))
    assert fill(grid(tmp_path, 2), LocalEngine(1), Console(file=io.StringIO()), dry_run=True) == 0
