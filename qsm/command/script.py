"""What scripts beside the `qsm` command share: options read and refused as those of a command, and tables written."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
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
    try:
        given = parser.parse(sys.argv[1:])
    except UserError as error:
        output.complain(f"error: {error}")
        raise SystemExit(MISTAKE) from error
    return given | {"options": given["script"]}


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
