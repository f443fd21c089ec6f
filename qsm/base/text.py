"""Numbers and lists in the words of a person: `3 h 20 min`, `2:44`, `1.2 GB`, `2 runs`, `a, b and 3 more`."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path


def shorten(texts: Sequence[str], number: int = 8, separator: str = ", ") -> str:
    """The first `number` of `texts`, and how many there are besides: `a, b and 3 more`."""
    more = f" and {len(texts) - number} more" if len(texts) > number else ""
    return separator.join(texts[:number]) + more


def count(number: int, noun: str) -> str:
    """`1 run` or `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def decimal(value: float) -> str:
    """A return or a rate as a person reads it: `624.3`, `8.31` or `0.07`."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def spread(values: Sequence[float]) -> str:
    """The mean of some returns, of several with their sample standard deviation: `624.3`, `624.3 ± 6.0`."""
    mean = statistics.fmean(values)
    return f"{decimal(mean)} ± {decimal(statistics.stdev(values))}" if len(values) > 1 else decimal(mean)


def own_command() -> str:
    """How this process's user calls `qsm`: by its name where it is on the path, else as it was called."""
    if shutil.which("qsm") is not None:
        return "qsm"
    called = Path(sys.argv[0])
    return str(called) if called.name == "qsm" else "python -m qsm"


def duration(seconds: float) -> str:
    """A rough duration: `40 s`, `12 min`, `3 h 20 min` or `4 d 3 h`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def clock_time(seconds: float) -> str:
    """A duration to the second: `2:44`, or `1:02:44` from an hour on; `0:00` for less than none."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def byte_size(number: int) -> str:
    """Bytes to three digits: `1.2 GB`, `340 MB`, `12 kB` or `7 B`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"
