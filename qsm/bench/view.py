"""The table of `qsm bench`: where every cell is, how fast, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from qsm.base.text import decimal, duration
from qsm.bench.engines import Outcome, was_preempted
from qsm.bench.grid import Cell, Job, progress_of


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
            [row[0].id.task, row[0].id.label, *(self._text(cell).plain for cell in row)]
            for row in self.rows()
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
            rows.setdefault((cell.id.task, cell.id.label), []).append(cell)
        return [sorted(row, key=lambda cell: cell.id.seed) for row in rows.values()]

    def _seeds(self) -> list[int]:
        return sorted({cell.id.seed for cell in self.cells})

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
            task, label = row[0].id.task, row[0].id.label
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
        """`612` or `0.84` finished with that return; `41% 250/s` under way; `41%` stopped; `failed`; `-` not begun.

        Args:
          rates: whether those under way are shown with theirs.
        """
        one = self.progress[cell]
        share = f"{min(one.step / self.steps, 1):.0%}"
        if one.state == "finished":
            return Text("done" if one.last_return is None else _return(one.last_return), style="bold")
        if one.state == "running":
            rate = self.rate(cell) if rates else None
            return Text(share if rate is None else f"{share} {rate:.0f}/s", style="cyan")
        if one.state == "failed":
            return Text("failed", style="red")
        return Text("-" if one.state == "missing" and one.step == 0 else share, style="dim")


def _return(value: float) -> str:
    """`612`, or `0.84` where it is small, as in a gridworld."""
    return decimal(value) if abs(value) < 10 else f"{value:.0f}"
