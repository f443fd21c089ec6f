"""Standard output and standard error where they are closed, full, or read by nobody."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from qsm.base.errors import printable


def complain(line: str) -> None:
    """Prints one line to standard error, if that takes it."""
    with contextlib.suppress(OSError, ValueError):
        print("qsm:", " ".join(map(printable, line.splitlines())), file=sys.stderr)


def prepare() -> None:
    """Makes the standard streams safe to print to.

    One that was closed (`qsm train >&-`) leads nowhere: the next file to be opened would otherwise get its number, and
    what a library prints would be written into that file. What an encoding lacks is printed as an escape.
    """
    is_closed = sys.stdout is None
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            _occupy(number)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    # A path may hold bytes that are no text, and a locale may have no more than ASCII. (A test's stream may be any.)
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")
    if is_closed:
        complain("standard output is closed; what would be printed is lost")


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")


def _occupy(number: int) -> None:
    """Opens the null device under `number`, unless something has been opened there since."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        os.dup2(opened, number)
        if opened != number:
            os.close(opened)
        os.set_inheritable(number, True)  # for children that print


def is_lost() -> bool:
    """Whether standard output takes nothing more: asked after an OSError, to learn whether it came from there."""
    try:
        # What was to be printed waits in the buffer, unless there is none (PYTHONUNBUFFERED).
        sys.stdout.write("\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False


def discard() -> None:
    """Lets standard output lead nowhere from now on: at exit Python would print what is left, and fail again."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
