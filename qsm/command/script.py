"""What scripts beside the `qsm` command share: options read and refused as those of a command, and tables written."""

from __future__ import annotations

import contextlib
import csv
import math
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError
from qsm.command import output
from qsm.options.parser import Parser, Positional
from qsm.record.status import MISTAKE


def read_arguments(
    group: type, description: str | None, positionals: Sequence[Positional] = ()
) -> dict[str, Any]:
    """What this process was given: an instance of `group` by the name `options`, and the positionals by theirs.

    Raises:
      SystemExit: a mistake, told in one line; or help was asked for.
    """
    summary = " ".join((description or "").partition("\n\n")[0].split())
    parser = Parser(f"python {sys.argv[0]}", summary, {"script": group}, positionals)
    with mistakes_told():
        given = parser.parse(sys.argv[1:])
    return given | {"options": given["script"]}


def read_folders(group: type, description: str | None) -> tuple[Any, tuple[Path, ...]]:
    """`read_arguments` of a script about runs: its options, and the folders with runs below them.

    Raises:
      SystemExit: as of `read_arguments`.
    """
    folders = Positional("folders", "Folders with runs below them.", tuple[Path, ...])
    given = read_arguments(group, description, [folders])
    return given["options"], given["folders"]


@contextlib.contextmanager
def mistakes_told() -> Iterator[None]:
    """Ends the process at a mistake, told in one line, and at Ctrl-C without a traceback.

    Raises:
      SystemExit: a `UserError` was raised inside, or the process was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        output.complain("stopped")
        raise SystemExit(128 + signal.SIGINT) from interrupt
    except UserError as error:
        output.complain(f"error: {error}")
        raise SystemExit(MISTAKE) from error


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], digits: int = 6) -> None:
    """Writes a CSV file of `rows`, which have the same columns; numbers to so many digits, None and NaN as nothing."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value, digits) for name, value in row.items()})
    print(f"written to {path}")


def _cell(value: Any, digits: int) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.{digits}g}"
