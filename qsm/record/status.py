"""The states of a run, the exit statuses that follow from them, and how far a run is: read from its folder."""

from __future__ import annotations

import csv
import dataclasses
import math
import signal
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from qsm.base.errors import UserError
from qsm.base.files import read_json, write_json
from qsm.record import lock

State = Literal["running", "finished", "failed", "diverged", "interrupted", "preempted"]
"""What `status.json` says: `interrupted` by Ctrl-C, `preempted` by SIGTERM, `diverged` where not finite."""
SeenState = State | Literal["not begun", "killed"]
"""What a reader sees: `killed` says that it is running, and no process owns it."""
Outcome = Literal["finished", "diverged", "unsaved", "interrupted", "preempted"]
"""How `qsm train` ends where nothing is raised: `unsaved` where the last checkpoint could not be written."""

EXIT_STATUS: dict[Outcome, int] = {
    "finished": 0,
    "diverged": 1,
    "unsaved": 1,
    "interrupted": 128 + signal.SIGINT,
    "preempted": 128 + signal.SIGTERM,
}
"""Of `qsm train`; a signal's number is added to 128, as shells do."""
MISTAKE = 2
"""Exit status of every command for a mistake of the caller."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Content of `status.json`; without a state nothing has been trained yet."""

    state: State | None = None
    step: int = 0
    saved_step: int | None = None
    """Step of the newest checkpoint that was written to its end; None where there is none."""
    steps: int = 0
    """Steps that the run is to have."""
    updated: str = ""
    last_return: float | None = None
    """Mean return of the last evaluation."""
    message: str = ""
    """Why it ended, in one line; empty where nothing went wrong."""


def read_status(folder: Path, strict: bool = False) -> Status:
    """The status of the run in `folder`; entries of another type than they should have are left out.

    Args:
      strict: refuse a damaged file, which is otherwise read as if it were not there.

    Raises:
      UserError: `strict`, and the file is there and cannot be read, or is no JSON.
    """
    file = folder / "status.json"
    try:
        found = read_json(file)
    except UserError:
        if strict and file.exists():
            raise
        return Status()
    entries = found if isinstance(found, dict) else {}
    values = {name: entries[name] for name in _TYPES if name in entries and _fits(name, entries[name])}
    if values.get("state") == "failed" and values.get("message", "").startswith("diverged"):
        values["state"] = "diverged"  # written before there was such a state
    if "saved_step" not in entries and values.get("state") == "finished":
        values["saved_step"] = values.get("step")  # written by a version that did not note it
    return Status(**values)


_TYPES: dict[str, Any] = {
    "state": str,
    "step": int,
    "saved_step": int | None,
    "steps": int,
    "updated": str,
    "last_return": int | float | None,
    "message": str,
}


def _fits(name: str, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, _TYPES[name]):
        return False
    return name != "state" or value in get_args(State)


def write_status(folder: Path, status: Status) -> None:
    """Replaces `status.json` in `folder`; raises OSError."""
    if status.last_return is not None and not math.isfinite(status.last_return):
        status = dataclasses.replace(status, last_return=None)
    write_json(folder / "status.json", dataclasses.asdict(status))


class Progress(NamedTuple):
    """How far a run is."""

    state: SeenState
    step: int
    last_return: float | None = None
    message: str = ""

    def describe(self) -> str:
        """The state, and why the run ended where it failed, in one line."""
        message = " ".join(self.message.split())
        if self.state not in ("failed", "diverged") or not message:
            return self.state
        return message if message.startswith(self.state) else f"{self.state}: {message}"


def seen_state(folder: Path, status: Status) -> SeenState:
    """The state of the run in `folder`, whose process may have ended without a word."""
    if status.state is None:
        return "not begun"
    return "killed" if status.state == "running" and not lock.is_owned(folder) else status.state


def read_progress(folder: Path) -> Progress:
    """How far the run in `folder` is: by its status, or by its last row of metrics, which come oftener."""
    status = read_status(folder)
    step = max(status.step, last_step(folder / "train.csv"))
    return Progress(seen_state(folder, status), step, status.last_return, status.message)


def last_step(table: Path) -> int:
    """Step of the last whole row of the CSV file `table`; 0 where there is none."""
    try:
        with table.open("rb") as file:
            columns = next(csv.reader([file.readline().decode()]), [])
            file.seek(max(0, table.stat().st_size - 16_384))
            # Behind the last end of a line may stand the beginning of a row that is being written.
            lines = file.read().rpartition(b"\n")[0].decode().splitlines()
        return int(float(next(csv.reader(lines[-1:]))[columns.index("step")]))
    except (OSError, ValueError, IndexError, StopIteration, UnicodeDecodeError, csv.Error):
        return 0
