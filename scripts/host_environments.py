"""Stepping S dm_control environments in turn, in threads, or in processes: which is fastest?

    python scripts/host_environments.py [--task cheetah-run] [--seeds 1 4 16]

The three take turns in blocks. Beside them stands one update of S seeds, behind which the environments are stepped:
what takes less time than that costs nothing.
"""

from __future__ import annotations

import dataclasses
import os

from rich.console import Console
from rich.table import Table

from qsm.command.script import read_arguments
from qsm.speed.environments import measure


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure ways of stepping environments."""

    task: str = "cheetah-run"
    """Task."""
    seeds: tuple[int, ...] = (1, 4, 16)
    """Numbers of environments."""
    blocks: int = 61
    """Blocks of each way, in turn; many short ones, for shared machines stand still for moments."""
    block_steps: int = 10
    """Steps of every environment in a block."""
    update: bool = True
    """Time an update beside them; its programs take minutes to compile."""


def main() -> None:
    """Measures and prints a table."""
    options = read_arguments(Options, __doc__)["options"]
    rows = {
        number: measure(options.task, number, options.blocks, options.block_steps, options.update)
        for number in options.seeds
    }
    names = list(next(iter(rows.values())))
    table = Table("environments", *names, title=f"{options.task}, milliseconds, {os.cpu_count()} cores")
    for number, row in rows.items():
        table.add_row(str(number), *(f"{row[name]:.2f}" for name in names))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
