"""The table of `qsm bench` tells where every cell is, on terminals of any size."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from qsm.bench import fill as filling
from qsm.bench.engines import Outcome
from qsm.bench.grid import (
    Progress,
)
from qsm.bench.suites import SUITES
from qsm.bench.view import GridView
from tests.benchmarks import (
    STEPS,
    Seen,
    filled,
    grid,
    leave,
)


def test_the_view_knows_rates_and_the_time_left(tmp_path: Path) -> None:
    clock = [0.0]
    whole = grid(tmp_path, 4)
    found = whole.cells
    leave(found[0], "finished", STEPS)
    leave(found[1], "running", 200)
    view = GridView(found, STEPS, lambda: clock[0])
    jobs = whole.jobs(found[1:])
    view.update(jobs[:1])
    assert view.rate(found[1]) is None and view.seconds_left() is None
    clock[0] = 10.0
    # The last row is being written: of 500, or of 5,000.
    (found[1].path / "train.csv").write_text("step,updates\n100,1\n400,2\n5")
    view.update(jobs[:1])
    assert view.rate(found[1]) == 20.0
    assert view.seconds_left() == (600 + 2 * 1000) / 20
    assert view.summary() == "1 of 4 runs finished, 20 steps/s, about 2 min left"
    console = Console(width=100, file=io.StringIO())
    console.print(view.whole(console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7.00" in shown and "40% 20/s" in shown
    view.end(Outcome(jobs[0], 1, "no disk"))
    assert view.progress[found[1]].state == "failed" and view.count("failed") == 1
    assert filling.ended(found[1], view).startswith("walker-walk sac seed 1 failed: no disk")


def test_seeds_in_one_program_are_trained_at_a_time(tmp_path: Path) -> None:
    clock = [0.0]
    whole = grid(tmp_path, 8)
    view = GridView(whole.cells, STEPS, lambda: clock[0])
    jobs = whole.jobs(whole.cells, seeds_together=4)
    for step in (0, 200):
        for cell in jobs[0].cells:
            leave(cell, "running", step)
        view.update(jobs[:1])
        clock[0] += 10.0
    clock[0] = 10.0
    assert view.seconds_left() == 800 / 20 + 1000 / 20
    # The last to end does so alone.
    view = GridView(whole.cells[:2], STEPS, lambda: clock[0])
    for step in (0, 200):
        leave(whole.cells[0], "running", step)
        leave(whole.cells[1], "running", 700 + step)
        view.update(whole.jobs(whole.cells[:2]))
        clock[0] += 10.0
    clock[0] -= 10.0
    assert view.seconds_left() == 800 / 20


def test_what_failed_before_waits_until_it_fails_again(tmp_path: Path) -> None:
    clock = [0.0]
    whole = grid(tmp_path, 3)
    found = whole.cells
    leave(found[0], "running", 0)
    leave(found[2], "failed", 400, message="diverged")
    view = GridView(found, STEPS, lambda: clock[0])
    assert view.summary() == "0 of 3 runs finished, 1 failed"
    jobs = whole.jobs(found)
    view.wait_for(jobs)
    view.update(jobs[:1])
    clock[0] = 10.0
    leave(found[0], "running", 200)
    view.update(jobs[:1])
    assert view.summary() == "0 of 3 runs finished, 20 steps/s, about 2 min left"
    assert view.seconds_left() == (800 + 1000 + 600) / 20
    view.stop()
    assert view.count("failed") == 0
    view.update(jobs[2:])
    view.end(Outcome(jobs[2], 1, ""))
    view.stop()
    assert view.progress[found[2]] == ("failed", 400, 7.0, "diverged")
    _, output = filled(whole, lambda seed: "fails" if seed == 2 else "finishes", jobs=1)
    first, *_ = [line for line in output.splitlines() if "seed 0 finished" in line]
    assert "(1 of 3 runs finished" in first and "failed" not in first
    assert "2 of 3 runs finished, 1 failed" in output


def test_the_summary_and_what_runs_are_seen_on_a_low_terminal(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2, ("sac", "td3"), SUITES["dmc28"].tasks)
    cells = whole.cells
    view, console = GridView(cells, STEPS), Seen()
    running = cells[-1]
    leave(running, "running", 300)
    view.update(whole.jobs([running]))
    shown = console.shows(view.screen(console))
    assert len(shown) <= 24 and shown[0] == "0 of 112 runs finished"
    assert shown[1].split()[0] == "task" and shown[2].split() == ["walker-walk", "td3", "-", "30%"]
    for cell in cells:
        if cell.id.task < "w":
            view.progress[cell] = Progress("finished", STEPS, 7.0)
    shown = console.shows(view.screen(console))
    assert len(shown) == 9 and shown[:2] == [
        "100 of 112 runs finished",
        "50 rows that are finished are left out",
    ]
    assert len(console.shows(view.whole(console))) == 24  # cut off; at the end it is printed whole
    few = GridView(cells[:4], STEPS)
    assert len(console.shows(few.screen(console))) == 6  # nothing is left out


def test_every_cell_is_seen_on_a_narrow_terminal(tmp_path: Path) -> None:
    whole = grid(tmp_path, 16)
    for cell in whole.cells:
        leave(cell, "finished", STEPS)
    view, console = GridView(whole.cells, STEPS), Seen()
    for number, cell in enumerate(whole.cells):
        view.progress[cell] = Progress("finished", STEPS, 900.0 + number)
    shown = console.shows(view.screen(console))
    words = " ".join(shown[2:]).split()
    assert words == ["walker-walk", "sac", *(str(900 + number) for number in range(16))]


def test_of_several_seeds_in_one_program_only_those_fail_that_did(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2)
    view = GridView(whole.cells, STEPS)
    (job,) = whole.jobs(whole.cells, seeds_together=2)
    for cell, state in zip(job.cells, ("finished", "failed"), strict=True):
        leave(cell, state, STEPS, message="" if state == "finished" else "diverged")
    view.end(Outcome(job, 1, "the last line"))
    assert [view.progress[cell][0] for cell in job.cells] == ["finished", "failed"]
    assert view.progress[job.cells[1]].reason == "diverged"
