"""What was measured, as it is written and printed; what had to be left out, and how long all may take."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from qsm.base.errors import first_line
from qsm.base.files import replace_file
from qsm.record.provenance import git_commit, package_versions, processor

OURS = ("agents", "envs", "qsm")
MAX_COLUMNS = 12


class OutOfTimeError(Exception):
    """What was to be measured does not fit any more."""


class Budget:
    """How long all may take.

    Args:
      minutes: from now on.
      clock: seconds, of any beginning.
    """

    def __init__(self, minutes: float, clock: Callable[[], float]) -> None:
        self.limit = 60 * minutes
        self._clock, self._began = clock, clock()

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._began

    def left(self) -> float:
        """Seconds that are left; negative where it took longer."""
        return self.limit - self.elapsed()

    def check(self, expected: float = 0.0) -> None:
        """Raises OutOfTimeError where fewer than `expected` seconds are left."""
        left = self.left()
        if left <= 0 or left < expected:
            about = f", and this takes about {expected:.0f} s" if expected else ""
            raise OutOfTimeError(f"{max(left, 0):.0f} s of {self.limit / 60:g} minutes are left{about}")


class Report:
    """What was measured, printed and written as it comes.

    A row is in the file from a case's start on, and its rates join when they are there. `skipped` lists what was left
    out: `why` is `missing` (a package is not installed), `time`, or `failed`.
    """

    def __init__(self, output: Path | None) -> None:
        self.output = output
        device = jax.devices()[0]
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self.part_seconds: dict[str, float] = {}
        self.content: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "commit": git_commit(),
            "device": device.device_kind,
            "platform": device.platform,
            "machine": platform.machine(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "packages": package_versions(),
            "rows": self.rows,
            "skipped": self.skipped,
            "part_seconds": self.part_seconds,
        }

    def add(self, row: dict[str, Any]) -> None:
        """A case that has started; `update` adds to it."""
        self.rows.append(row)
        self.write()

    def update(self, row: dict[str, Any], more: dict[str, Any]) -> None:
        """Adds to a case that is there."""
        row |= more
        self.write()

    def print_line(self, line: str) -> None:
        """Prints a line, at once also where it goes to a file."""
        print(line, flush=True)

    def skip(self, what: dict[str, Any], why: str, reason: str) -> None:
        """Records that `what` (a part, or a case of it) is left out."""
        self.skipped.append(what | {"why": why, "reason": reason})
        self.print_line(f"skipped ({why}): {describe(what)}: {reason}")
        self.write()

    @contextlib.contextmanager
    def guarded(self, what: dict[str, Any]) -> Iterator[None]:
        """Goes on after it whatever happens inside, and records why `what` is left out."""
        try:
            yield
        except OutOfTimeError as error:
            self.skip(what, "time", str(error))
        except Exception as error:
            # One of our own modules that cannot be imported is a mistake, and no missing package.
            missing = isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in OURS
            if not missing:
                traceback.print_exc()
            reason = first_line(error) if missing else f"{type(error).__name__}: {first_line(error)}"
            self.skip(what, "missing" if missing else "failed", reason)

    def failures(self) -> list[str]:
        """What was left out because it failed."""
        return [describe(what) for what in self.skipped if what["why"] == "failed"]

    def write(self) -> None:
        """Replaces the file by all that is known so far."""
        if self.output is not None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.output, (json.dumps(self.content, indent=1) + "\n").encode())

    def table(self, part: str) -> None:
        """Prints the rows of `part`, a column for each; a line for each where they are many."""
        rows = [row for row in self.rows if row["part"] == part]
        given = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
        names = [name for name in given if name != "part"]
        cells = [[name.replace("_", " "), *(show(row.get(name)) for row in rows)] for name in names]
        if len(rows) > MAX_COLUMNS:
            cells = [list(column) for column in zip(*cells, strict=True)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for first, *others in cells:
            rest = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
            self.print_line("  ".join([f"{first:<{widths[0]}}", *rest]).rstrip())


def describe(what: dict[str, Any]) -> str:
    """`device (seeds 1, num_envs 16)`."""
    details = ", ".join(
        f"{name} {value}" for name, value in what.items() if name not in ("part", "why", "reason")
    )
    return f"{what['part']} ({details})" if details else what["part"]


def show(value: Any) -> str:
    """Three digits of a number, or thousands."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
