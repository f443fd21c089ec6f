"""What a checkpoint costs: seconds that training stands still, seconds behind it, bytes on disk.

    python scripts/checkpoint_cost.py [--agent qsm] [--intervals 1000 10000 100000] [--folder /where/runs/lie]

Each checkpoint goes the way of those of a training: state and new rows are copied from the device, then written by
`qsm.checkpoints.saver`. Medians over several.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import agents
from qsm.command.script import read_arguments
from qsm.speed.checkpoint_cost import measure
from qsm.speed.limits import SPEC


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure checkpoints."""

    agent: str = "qsm"
    """Agent, at its defaults, with the sizes of cheetah-run."""
    capacity: int = 1_000_000
    """Rows of the replay buffer."""
    intervals: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """New rows of each checkpoint."""
    repeats: int = 7
    """Checkpoints of each interval."""
    folder: Path | None = None
    """Where to write; none: the folder for temporary files."""


def main() -> None:
    """Measures and prints a table."""
    options = read_arguments(Options, __doc__)["options"]
    agent = agents.make_agent(options.agent, SPEC.observation_size, SPEC.action_size)
    table = Table("new rows", "copied, s", "written, s", "learned state, MB", "rows, MB")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        try:
            for cost in measure(agent, options.capacity, options.intervals, options.repeats, Path(temporary)):
                table.add_row(
                    f"{cost.new_rows:,}",
                    f"{cost.copied_seconds:.3f}",
                    f"{cost.written_seconds:.3f}",
                    f"{cost.state_bytes / 1e6:.2f}",
                    f"{cost.row_bytes / 1e6:.2f}",
                )
        except OSError as error:
            sys.exit(str(error))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
