"""What `qsm bench` does and shows: the grid is filled, every cell's progress stands in a table, failures are named."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from qsm.base.text import duration
from qsm.bench.engines import Engine, Outcome, was_preempted
from qsm.bench.grid import Cell, Grid, Job, progress_of


class GridView:
    """The state of every cell, its speed and the time that is left.

    Args:
      cells: of the whole grid.
      steps: environment steps of each run.
      clock: seconds that only ever grow.
    """

    def __init__(
        self, cells: Sequence[Cell], steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cells = cells
        self.steps = steps
        self._clock = clock
        self._begun: dict[Cell, tuple[float, int]] = {}  # when its process began, and at which step
        self.progress = {cell: progress_of(cell, steps) for cell in cells}

    def wait_for(self, jobs: Sequence[Job]) -> None:
        """Takes note of what will be trained: a cell that failed before waits like any other."""
        for cell in (cell for job in jobs for cell in job.cells):
            if self.progress[cell].state == "failed":
                self.progress[cell] = self.progress[cell]._replace(state="stopped", reason="")

    def stop(self) -> None:
        """Reads anew where the cells are, after those under way were stopped."""
        for cell, one in self.progress.items():
            found = progress_of(cell, self.steps)
            # A failure that is read is of before, unless it was under way; one that was told stays told.
            if cell in self._begun or "failed" not in (one.state, found.state):
                self.progress[cell] = found
        self._begun.clear()

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
            elif was_preempted(outcome.status) and found.state != "finished":
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
        """From the speed of the cells under way, of which there are as many until the end; None until one is known.

        A cell is trained by one program only: the last to end may have most of its steps before it.
        """
        rates = [rate for cell in self._begun if (rate := self.rate(cell)) is not None]
        if not rates:
            return None
        left = {
            cell: max(self.steps - one.step, 0)
            for cell, one in self.progress.items()
            if one.state in ("missing", "stopped", "running")
        }
        longest = max(left.get(cell, 0) for cell in self._begun)
        return max(sum(left.values()) / len(self._begun), longest) / (sum(rates) / len(rates))

    def count(self, state: str) -> int:
        """How many cells are in `state`."""
        return sum(one.state == state for one in self.progress.values())

    def whole(self, console: Console) -> Group:
        """Every row of the table, and below it a line on the whole."""
        return Group(self._table(self.rows(), console), Text(self.summary()))

    def screen(self, console: Console) -> Group:
        """As `whole`, with the line above and only the rows that matter most where the console is too low for all."""
        summary, rows = Text(self.summary()), self.rows()
        lines = console.render_lines(Group(summary, self._table(rows, console)), pad=False)
        if len(lines) < console.height:
            return Group(summary, self._table(rows, console))
        open_rows = [row for row in rows if any(self.progress[cell].state != "finished" for cell in row)]
        # The first lines are those that are seen.
        open_rows.sort(key=lambda row: all(self.progress[cell].state != "running" for cell in row))
        hidden = len(rows) - len(open_rows)
        note = [Text(f"{hidden} rows that are finished are left out", style="dim")] if hidden else []
        return Group(summary, *note, self._table(open_rows, console))

    def lines(self) -> list[str]:
        """The table as text of whatever width it takes, for a file or another program."""
        seeds = self._seeds()
        rows = [["task", "agent", *(f"seed {seed}" for seed in seeds)]]
        rows += [
            [row[0].task, row[0].spec.label, *(self._text(cell).plain for cell in row)] for row in self.rows()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                text.ljust(width) if place < 2 else text.rjust(width)
                for place, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]

    def rows(self) -> list[list[Cell]]:
        """The cells of each task and agent, by seed."""
        rows: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            rows.setdefault((cell.task, cell.spec.label), []).append(cell)
        return [sorted(row, key=lambda cell: cell.seed) for row in rows.values()]

    def _seeds(self) -> list[int]:
        return sorted({cell.seed for cell in self.cells})

    def _table(self, rows: Sequence[Sequence[Cell]], console: Console) -> Table:
        """A row for each task and agent, and a column for each seed, or one that wraps where those are too wide."""
        seeds = self._seeds()
        wide, narrow = (Table(box=None, pad_edge=False, padding=(0, 2, 0, 0)) for _ in range(2))
        for table in (wide, narrow):
            table.add_column("task", no_wrap=True)
            table.add_column("agent", no_wrap=True)
        for seed in seeds:
            wide.add_column(f"seed {seed}", justify="right", no_wrap=True)
        narrow.add_column(f"seeds {seeds[0]} to {seeds[-1]}")
        before = None
        for row in rows:
            task, label = row[0].task, row[0].spec.label
            head = task if task != before else "", label
            wide.add_row(*head, *(self._text(cell) for cell in row))
            narrow.add_row(*head, Text("  ").join(self._text(cell, rates=False) for cell in row))
            before = task
        widest = console.options.update(max_width=100_000)
        return wide if Measurement.get(console, widest, wide).maximum <= console.width else narrow

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

    def _text(self, cell: Cell, rates: bool = True) -> Text:
        """`612` finished with that return; `41% 250/s` under way; `41%` stopped; `failed`; `-` not begun.

        Args:
          rates: whether those under way are shown with theirs.
        """
        one = self.progress[cell]
        share = f"{min(one.step / self.steps, 1):.0%}"
        if one.state == "finished":
            return Text("done" if one.last_return is None else f"{one.last_return:.0f}", style="bold")
        if one.state == "running":
            rate = self.rate(cell) if rates else None
            return Text(share if rate is None else f"{share} {rate:.0f}/s", style="cyan")
        if one.state == "failed":
            return Text("failed", style="red")
        return Text("-" if one.state == "missing" and one.step == 0 else share, style="dim")


def fill(grid: Grid, engine: Engine, console: Console, together: int = 1, dry_run: bool = False) -> int:
    """Trains what is missing of `grid`, or shows what that is; the exit status of `qsm bench`.

    Args:
      together: seeds that are trained in one program.

    Returns:
      0 where every cell is finished, 1 where one is not, 129, 130 or 143 where SIGHUP, Ctrl-C or SIGTERM stopped it.

    Raises:
      UserError: a cell holds a run of other options, or the folder cannot be written; nothing was trained.
    """
    cells = grid.cells()
    grid.refuse_other_options()
    view = GridView(cells, grid.steps)
    waiting = [cell for cell in cells if view.progress[cell].state != "finished"]
    jobs = grid.jobs(waiting, together)
    if waiting:
        grid.refuse_unwritable()
    console.print(announcement(grid, jobs, engine.jobs))
    if dry_run:
        _print_whole(view, console)
        return 0
    view.wait_for(jobs)
    live = Live(view.screen(console), console=console, auto_refresh=False) if console.is_terminal else None

    def tick() -> None:
        view.update(engine.running())
        if live is not None:
            live.update(view.screen(console), refresh=True)

    stopped = _Stop(engine.kill)
    with stopped:
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
    if live is None:
        _print_whole(view, console)
    if stopped.by is not None:
        ended_as = "Killed; what was not saved is lost" if stopped.twice else "Stopped and saved"
        console.print(f"{ended_as}. Go on with the same command.")
        return 128 + stopped.by
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
    total, waiting = len(grid.cells()), sum(len(job.cells) for job in jobs)
    line = f"{total} runs of {grid.steps:,} steps, "
    if not waiting:
        return f"{line}all of them finished"
    line += f"{total - waiting} of them finished"
    if len(jobs) < waiting:
        line += f"; up to {max(len(job.cells) for job in jobs)} seeds in one program"
    return f"{line}; {min(at_a_time, len(jobs))} at a time"


def _print_whole(view: GridView, console: Console) -> None:
    if console.is_terminal:
        console.print(view.whole(console))
        return
    for line in (*view.lines(), view.summary()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def ended(cell: Cell, view: GridView) -> str:
    """A line on a cell whose training has ended."""
    one = view.progress[cell]
    said = "finished" if one.last_return is None else f"finished with a return of {one.last_return:.1f}"
    said = said if one.state == "finished" else f"{one.state}: {one.reason}" if one.reason else one.state
    return f"{cell.task} {cell.spec.label} seed {cell.seed} {said} ({view.summary()})"


class _Stop:
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
