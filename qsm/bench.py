"""What `qsm bench` does and shows: the grid is filled, every cell's progress stands in a table, failures are named."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qsm.benchmark import Cell, Grid, Job, Progress, progress_of
from qsm.engines import PREEMPTED, Engine, Outcome


class GridView:
    """The state of every cell, its speed and the time that is left.

    Args:
      cells: of the whole grid.
      steps: environment steps of each run.
      jobs: trainings at a time.
      clock: seconds that only ever grow.
    """

    def __init__(
        self, cells: Sequence[Cell], steps: int, jobs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cells = cells
        self.steps = steps
        self._jobs = jobs
        self._clock = clock
        self._begun: dict[Cell, tuple[float, int]] = {}  # when its process began, and at which step
        self.progress: dict[Cell, Progress] = {}
        self.look()

    def look(self) -> None:
        """Reads anew where every cell is, none of them under way."""
        self._begun.clear()
        self.progress = {cell: progress_of(cell, self.steps) for cell in self.cells}

    def update(self, running: Sequence[Job]) -> None:
        """Reads anew how far the cells in `running` are."""
        now = self._clock()
        for cell in (cell for job in running for cell in job.cells):
            if self.progress[cell].state == "finished":
                continue  # before the others of its program
            found = progress_of(cell, self.steps)
            self._begun.setdefault(cell, (now, found.step))
            self.progress[cell] = found._replace(state="running")

    def end(self, outcome: Outcome) -> None:
        """Takes note of how a training ended."""
        for cell in outcome.job.cells:
            found = progress_of(cell, self.steps)
            if outcome.status == 0:
                found = found._replace(state="finished")
            elif outcome.status == PREEMPTED:
                found = found._replace(state="stopped")
            elif found.state != "finished":  # one of several seeds may have failed alone
                found = found._replace(state="failed", reason=found.reason or outcome.reason)
            self.progress[cell] = found
            self._begun.pop(cell, None)

    def rate(self, cell: Cell) -> float | None:
        """Environment steps per second since its process began; None until there is a row of metrics since."""
        if cell not in self._begun:
            return None
        began, first = self._begun[cell]
        made, seconds = self.progress[cell].step - first, self._clock() - began
        return made / seconds if made > 0 and seconds > 0 else None

    def seconds_left(self) -> float | None:
        """From the speed of the cells under way; None until one is known."""
        rates = [rate for cell in self._begun if (rate := self.rate(cell)) is not None]
        if not rates:
            return None
        left = sum(
            max(self.steps - one.step, 0)
            for one in self.progress.values()
            if one.state in ("missing", "stopped", "running")
        )
        return left / (sum(rates) / len(rates) * min(self._jobs, max(len(self._begun), 1)))

    def count(self, state: str) -> int:
        """How many cells are in `state`."""
        return sum(one.state == state for one in self.progress.values())

    def table(self) -> Group:
        """A row for each task and agent, a column for each seed, and a line on the whole."""
        seeds = sorted({cell.seed for cell in self.cells})
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("task")
        table.add_column("agent")
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right")
        by_place = {(cell.task, cell.spec.label, cell.seed): cell for cell in self.cells}
        before = None
        for task, label in dict.fromkeys((cell.task, cell.spec.label) for cell in self.cells):
            table.add_row(
                task if task != before else "", label, *(self._text(by_place[task, label, s]) for s in seeds)
            )
            before = task
        return Group(table, Text(self.summary()))

    def summary(self) -> str:
        """One line on the whole."""
        done, rates = self.count("finished"), [self.rate(cell) for cell in self._begun]
        text = f"{done} of {len(self.cells)} runs finished"
        if failed := self.count("failed"):
            text += f", {failed} failed"
        if known := [rate for rate in rates if rate is not None]:
            text += f", {sum(known):,.0f} steps/s"
        left = self.seconds_left()
        return text + (f", about {duration(left)} left" if left else "")

    def _text(self, cell: Cell) -> Text:
        """`612` finished with that return; `41% 250/s` under way; `41%` stopped; `failed`; `-` not begun."""
        one = self.progress[cell]
        share = f"{min(one.step / self.steps, 1):.0%}"
        if one.state == "finished":
            return Text("done" if one.last_return is None else f"{one.last_return:.0f}", style="bold")
        if one.state == "running":
            rate = self.rate(cell)
            return Text(share if rate is None else f"{share} {rate:.0f}/s", style="cyan")
        if one.state == "failed":
            return Text("failed", style="red")
        return Text("-" if one.state == "missing" and one.step == 0 else share, style="dim")


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min` or `4 d 3 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def fill(grid: Grid, engine: Engine, console: Console, together: int = 1, dry_run: bool = False) -> int:
    """Trains what is missing of `grid`, or shows what that is; the exit status of `qsm bench`.

    Args:
      together: seeds that are trained in one program.

    Returns:
      0 where every cell is finished, 1 where one failed, 130 or 143 where Ctrl-C or SIGTERM stopped it.
    """
    cells = grid.cells()
    view = GridView(cells, grid.steps, engine.jobs)
    waiting = [cell for cell in cells if view.progress[cell].state != "finished"]
    jobs = grid.jobs(waiting, together)
    line = f"{len(cells)} runs of {grid.steps:,} steps, {len(cells) - len(waiting)} of them finished"
    if len(jobs) < len(waiting):
        line += f"; up to {max(len(job.cells) for job in jobs)} seeds in one program"
    console.print(f"{line}; {min(engine.jobs, len(jobs))} at a time")
    if dry_run:
        console.print(view.table())
        return 0
    live = Live(view.table(), console=console, auto_refresh=False) if console.is_terminal else None

    def tick() -> None:
        view.update(engine.running())
        if live is not None:
            live.update(view.table(), refresh=True)

    stopped = _Stop(engine.kill)
    with stopped:
        if live is not None:
            live.start()
        try:
            for outcome in engine.run(jobs, tick):
                view.end(outcome)
                for cell in outcome.job.cells:
                    if live is None or view.progress[cell].state == "failed":
                        console.print(ended(cell, view), highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            view.look()
        finally:
            if live is not None:
                live.update(view.table())
                live.stop()
    if live is None:
        console.print(view.table())
    if stopped.by is not None:
        console.print("Stopped and saved. Go on with the same command.")
        return 128 + stopped.by
    for cell, one in view.progress.items():
        if one.state == "failed":
            console.print(f"failed: {cell.path}: {one.reason}", highlight=False, soft_wrap=True)
    if view.count("failed"):
        console.print("The same command tries the failed runs again.")
        return 1
    console.print(f"Compare them with: qsm report {grid.folder}", highlight=False, soft_wrap=True)
    return 0


def ended(cell: Cell, view: GridView) -> str:
    """A line on a cell whose training has ended."""
    one = view.progress[cell]
    said = "finished" if one.last_return is None else f"finished with a return of {one.last_return:.1f}"
    said = said if one.state == "finished" else f"{one.state}: {one.reason}" if one.reason else one.state
    return f"{cell.task} {cell.spec.label} seed {cell.seed} {said} ({view.summary()})"


class _Stop:
    """Turns the first SIGINT or SIGTERM into KeyboardInterrupt and keeps which it was; calls `at_second` at the next.

    A context manager.
    """

    def __init__(self, at_second: Callable[[], None]) -> None:
        self.by: int | None = None
        self._at_second = at_second
        self._former: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._raise)

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None:
            self._at_second()
            return
        self.by = number
        print("stopping: every training saves and ends; once more kills them", file=sys.stderr, flush=True)
        raise KeyboardInterrupt
