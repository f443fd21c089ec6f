"""Where a tick of the host loop goes on this machine: environments, acting, learning, waiting, and handing arrays over.

    python scripts/accelerator/tick.py OUTPUT.csv [--agents sac qsm-clean] [--seeds 1,4,16]

Writes at its end, or what it has where it is stopped. "Dispatch" is how long it takes to hand a program its work: on an
accelerator it returns before the work is done, on a CPU it may do a part of it. Parts are medians, the whole tick is
the mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qsm.command.script import mistakes_told, read_arguments, write_rows
from qsm.options.parser import Positional
from qsm.speed.parts.tick import Options, ticks, transfers


def main() -> None:
    """Prints the rows and writes them."""
    given = read_arguments(Options, __doc__, [Positional("output", "CSV file to write.", Path)])
    options: Options = given["options"]
    with mistakes_told():
        rows: list[dict[str, Any]] = []

        cases = [(agent, seeds) for agent in options.agents for seeds in options.seeds]
        try:
            rows += _told(transfers(options.ticks))
            for agent, num_seeds in cases:
                rows += _told(ticks(agent, num_seeds, options))
        finally:
            if rows:
                write_rows(given["output"], rows)


def _told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        which = f"{row['agent']:<12} {row['seeds']!s:>4} {row['phase']:<9}"
        print(f"{which} {row['milliseconds']:9.3f} ms  {row['part']}", flush=True)
    return rows


if __name__ == "__main__":
    main()
