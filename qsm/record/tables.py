"""The CSV files of a run: rows of metrics, one file for training and one for evaluation.

They are the record that plots and comparisons read. A column that first appears late reaches the file, a row
is never there twice, and a file that cannot be written for a while loses nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import numbers
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from qsm.base.errors import UserError
from qsm.base.files import replace_file

Warn = Callable[[str], None]
WaitingRow = tuple[int, dict[str, float]]
"""Step and values of a row that has not been written yet."""

EPISODE_COLUMN = re.compile(r"return_\d+")
"""Returns of single episodes: in `eval.csv` only, for as curves they would drown the others."""
PENDING_ROWS = 10_000
"""Rows kept in memory while a file cannot be written; beyond these the oldest are lost."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file of ours: its columns (`step` first) and its whole rows as text."""

    columns: list[str]
    rows: list[list[str]]
    torn: bool
    """True where the last line was cut off, as by a kill in the middle of a write; it is left out."""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of metrics in the order of their columns, which is the same whatever was logged first.

    `step`, those of the loop, the agent's by name, and the returns of single episodes at the end.
    """

    def place(name: str) -> tuple[bool, bool, bool, list[tuple[str, int]]]:
        # Numbers within a name by their size: return_2 before return_10.
        parts = [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]
        return name != "step", EPISODE_COLUMN.fullmatch(name) is not None, not name.startswith("loop/"), parts

    return sorted(set(names), key=place)


def read_table(path: Path) -> Table:
    """Reads `path` without interpreting any cell but the step.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged (no text); move it away to go on without it.") from error
    whole, newline, tail = text.rpartition("\n")
    try:
        lines = list(csv.reader(io.StringIO(whole + newline)))
    except csv.Error as error:
        raise UserError(f"{path} is damaged ({error}); mend it or move it away.") from error
    columns = lines[0] if lines else ["step"]
    if columns[:1] != ["step"] or len(set(columns)) != len(columns):
        raise UserError(f"{path} does not begin with a header of metrics (step,...); move it away to go on.")
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(columns) or not re.fullmatch(r"\d+", cells[0]):
            raise UserError(f"{path} is damaged at line {number}; mend that line or move it away.")
    return Table(columns, lines[1:], torn=bool(tail))


def rearranged(table: Table, columns: Sequence[str]) -> list[list[str]]:
    """The rows of `table` with the cells of `columns`; those that it lacks are empty."""
    places = {name: place for place, name in enumerate(table.columns)}
    return [[row[places[name]] if name in places else "" for name in columns] for row in table.rows]


def read_csv(path: str | Path) -> list[dict[str, float]]:
    """The rows of `train.csv` or `eval.csv`, by column; a metric that a row lacks is no key of it.

    Raises:
      UserError: the file cannot be read, or a cell is no number.
    """
    table = read_table(Path(path))
    rows = []
    for number, cells in enumerate(table.rows, start=2):
        try:
            pairs = zip(table.columns, cells, strict=True)
            rows.append({name: float(cell) for name, cell in pairs if cell})
        except ValueError as error:
            raise UserError(f"{path} is damaged at line {number} ({error}); mend that line.") from error
    return rows


def return_at(path: Path, step: int) -> float | None:
    """The mean return that an `eval.csv` has of `step`; None where it has none.

    Raises:
      UserError: the file is damaged.
    """
    rows = read_csv(path) if path.exists() else []
    return next((row.get("return_mean") for row in rows if row["step"] == step), None)


def format_cell(value: float | None) -> str:
    """Nine significant digits, which tell any two float32 values apart; whole numbers in full."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, numbers.Integral) else f"{float(value):.9g}"


class CsvSink:
    """One CSV file that grows by a row at a time, and by columns, each in its place, when a metric first appears.

    While the file cannot be written its rows wait in memory; one line warns of it, one tells of the recovery.

    Args:
      keep_until: rows after this step are dropped, all of them where it is None.

    Raises:
      UserError: the file that is there is damaged, or cannot be written.
    """

    def __init__(self, path: Path, keep_until: int | None, warn: Warn) -> None:
        self.path = path
        self._warn = warn
        self._columns = ["step"]
        self._size = 0
        self._pending: deque[WaitingRow] = deque(maxlen=PENDING_ROWS)
        self._failing = False
        self._lost = 0
        self.last_step = -1
        self.found_step = -1
        """The last step found in the file, before any row was dropped."""
        if not path.exists():
            return
        table = read_table(path)
        self._columns = in_order(table.columns)
        self.found_step = max((int(row[0]) for row in table.rows), default=-1)
        rows = rearranged(table, self._columns)
        kept = [row for row in rows if keep_until is not None and int(row[0]) <= keep_until]
        self.last_step = max((int(row[0]) for row in kept), default=-1)
        try:
            self._rewrite(kept)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"Cannot write {path}: {reason}. Mend that and start again.") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row. A second row of the same step takes the place of the first.

        Raises:
          ValueError: `step` lies before the last row's, or a name does not serve as a column.
        """
        if step < self.last_step:
            raise ValueError(f"row of step {step} after that of step {self.last_step} in {self.path.name}")
        for name in values:
            if name == "step" or not re.fullmatch(r"[^\s,\"]+", name):
                raise ValueError(f"{name!r} is no name of a metric: empty, taken, or with a space or comma")
        again = step == self.last_step
        if self._pending and self._pending[-1][0] == step:
            self._pending.pop()
        self._lost += len(self._pending) == PENDING_ROWS
        self._pending.append((step, dict(values)))
        self.last_step = step
        self._flush(again)

    def waiting(self) -> list[WaitingRow]:
        """The rows that have not reached the file."""
        return [(step, dict(values)) for step, values in self._pending]

    def close(self) -> None:
        """Tries once more to write what is waiting."""
        if self._pending:
            self._flush(True)
        if self._pending:
            self._warn(f"{len(self._pending)} rows of {self.path} could not be written and are lost.")

    def _flush(self, rewrite: bool) -> None:
        try:
            self._write_pending(rewrite)
        except (OSError, UserError) as error:
            if not self._failing:
                reason = getattr(error, "strerror", None) or error
                self._warn(
                    f"Cannot write {self.path}: {reason}. Training goes on and its rows are kept in memory; "
                    "free space or restore the folder and they will be written."
                )
            self._failing = True
            return
        if self._failing:
            lost = f"the oldest {self._lost} rows are lost" if self._lost else "no row was lost"
            self._warn(f"{self.path} is being written again; {lost}.")
        self._failing = False
        self._lost = 0

    def _write_pending(self, rewrite: bool) -> None:
        names = {name for _, values in self._pending for name in values}
        rewrite = rewrite or self._failing or not names <= set(self._columns)
        if rewrite or not self.path.exists() or self.path.stat().st_size < self._size:
            former = read_table(self.path) if self.path.exists() else Table(["step"], [], False)
            columns = in_order([*self._columns, *names, *former.columns])
            rows = self._pending_rows(columns)
            steps = {row[0] for row in rows}
            former_columns, self._columns = self._columns, columns
            try:
                self._rewrite([row for row in rearranged(former, columns) if row[0] not in steps] + rows)
            except OSError:
                self._columns = former_columns
                raise
        else:
            data = _encode(self._pending_rows(self._columns))
            with open(self.path, "r+b") as file:
                # A write that failed half way, on a full disk, may have left part of a row behind.
                file.truncate(self._size)
                file.seek(self._size)
                file.write(data)
            self._size += len(data)
        self._pending.clear()

    def _pending_rows(self, columns: Sequence[str]) -> list[list[str]]:
        return [
            [str(step), *(format_cell(values.get(name)) for name in columns[1:])]
            for step, values in self._pending
        ]

    def _rewrite(self, rows: Sequence[Sequence[str]]) -> None:
        data = _encode([self._columns, *rows])
        replace_file(self.path, data)
        self._size = len(data)


def _encode(rows: Sequence[Sequence[str]]) -> bytes:
    return "".join(",".join(row) + "\n" for row in rows).encode()
