"""The options of a script beside the `qsm` command: read, refused and explained as those of a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
