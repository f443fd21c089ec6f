"""What `qsm bench` does: the grid is filled, its table kept up to date, and failures are named."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from qsm.base.text import decimal
from qsm.bench.engines import Engine
from qsm.bench.grid import Cell, Grid, Job, check_options, check_writable
from qsm.bench.view import GridView


def fill(grid: Grid, engine: Engine, console: Console, seeds_together: int = 1, dry_run: bool = False) -> int:
    """Trains what is missing of `grid`, or shows what that is; the exit status of `qsm bench`.

    Args:
      seeds_together: seeds that are trained in one program.

    Returns:
      0 where every cell is finished, 1 where one is not, 129, 130 or 143 where SIGHUP, Ctrl-C or SIGTERM stopped it.

    Raises:
      UserError: a cell holds a run of other options, or the folder cannot be written; nothing was trained.
    """
    view = GridView(grid.cells, grid.steps)
    check_options(view.progress)
    jobs = grid.jobs([cell for cell in grid.cells if view.progress[cell].state != "finished"], seeds_together)
    if jobs:
        check_writable(grid.folder)
    console.print(announcement(grid, jobs, engine.jobs), highlight=False)
    if dry_run:
        print_whole(view, console)
        return 0
    stopped = Stop(engine.kill)
    with stopped:
        train(jobs, engine, view, console)
    if not console.is_terminal:
        print_whole(view, console)
    if stopped.by is not None:
        ended_as = "Killed; what was not saved is lost" if stopped.twice else "Stopped and saved"
        console.print(f"{ended_as}. Go on with the same command.")
        return 128 + stopped.by
    return conclude(grid, view, console)


def train(jobs: Sequence[Job], engine: Engine, view: GridView, console: Console) -> None:
    """Trains `jobs` to their end, or until Ctrl-C, and keeps `view` and what is shown up to date."""
    view.wait_for(jobs)
    live = Live(view.screen(console), console=console, auto_refresh=False) if console.is_terminal else None

    def tick() -> None:
        view.update(engine.running())
        if live is not None:
            live.update(view.screen(console), refresh=True)

    try:
        if live is not None:
            live.start()
        # Closed at once, whatever happens here: that stops the trainings, and they save.
        with contextlib.closing(engine.run(jobs, tick)) as outcomes:
            for outcome in outcomes:
                view.end(outcome)
                for cell in outcome.job.cells:
                    if live is None or view.progress[cell].state in ("failed", "stopped"):
                        console.print(ended(cell, view), highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        view.stop()
    finally:
        if live is not None:
            live.update(view.whole(console))
            live.stop()


def conclude(grid: Grid, view: GridView, console: Console) -> int:
    """Names what is not finished, and what to do next; the exit status."""
    unfinished = [(cell, one) for cell, one in view.progress.items() if one.state != "finished"]
    for cell, one in unfinished:
        text = f"{one.state}: {cell.path}" + (f": {one.reason}" if one.reason else "")
        console.print(text, highlight=False, soft_wrap=True)
    if unfinished:
        again = "tries the failed runs again" if view.count("failed") else "goes on with what was stopped"
        console.print(f"The same command {again}.")
        return 1
    console.print(f"Compare them with: qsm report {grid.folder}", highlight=False, soft_wrap=True)
    return 0


def announcement(grid: Grid, jobs: Sequence[Job], at_a_time: int) -> str:
    """A line on what there is and what will be trained."""
    total, waiting = len(grid.cells), sum(len(job.cells) for job in jobs)
    line = f"{total} runs of {grid.steps:,} steps, "
    if not waiting:
        return f"{line}all of them finished"
    line += f"{total - waiting} of them finished"
    if len(jobs) < waiting:
        line += f"; up to {max(len(job.cells) for job in jobs)} seeds in one program"
    return f"{line}; {min(at_a_time, len(jobs))} at a time"


def print_whole(view: GridView, console: Console) -> None:
    """Prints every row of the table, as wide as it is where that is not a terminal."""
    if console.is_terminal:
        console.print(view.whole(console))
        return
    for line in (*view.lines(), view.summary()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def ended(cell: Cell, view: GridView) -> str:
    """A line on a cell whose training has ended."""
    one = view.progress[cell]
    said = "finished" if one.last_return is None else f"finished with a return of {decimal(one.last_return)}"
    said = said if one.state == "finished" else f"{one.state}: {one.reason}" if one.reason else one.state
    return f"{cell.id.task} {cell.id.label} seed {cell.id.seed} {said} ({view.summary()})"


class Stop:
    """Turns the first signal to end into KeyboardInterrupt and keeps which it was; calls `at_second` at the next.

    SIGHUP is one, as where the terminal is closed: trainings are in sessions of their own and would go on unseen. Under
    `nohup`, which ignores it, it stays ignored.

    A context manager.
    """

    def __init__(self, at_second: Callable[[], None]) -> None:
        self.by: int | None = None
        self.twice = False
        self._at_second = at_second
        self._former: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._former[number] = signal.signal(number, self._raise)

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None:
            self.twice = True
            self._at_second()
            return
        self.by = number
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(
                "stopping: every training saves and ends; once more kills them", file=sys.stderr, flush=True
            )
        raise KeyboardInterrupt
