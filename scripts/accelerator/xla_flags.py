"""How fast updates are under settings of XLA_FLAGS, and how soon the first one is made.

    python scripts/accelerator/xla_flags.py OUTPUT.csv [--agents qsm sac] [--seeds 1,64]
        [--flags none xla_gpu_autotune_level=0+xla_gpu_enable_triton_gemm=false]

Each agent, number of seeds and setting has a process of its own. They compile side by side, so that the seconds to the
first update are those of a busy machine; when all are ready their updates are timed in blocks that take turns, with
nothing beside them.
"""

from __future__ import annotations

from pathlib import Path

from qsm.command.script import mistakes_told, read_arguments, write_rows
from qsm.options.parser import Positional
from qsm.speed.parts.flags import Options, compare


def main() -> None:
    """Prints a line for each case and writes the table."""
    given = read_arguments(Options, __doc__, [Positional("output", "CSV file to write.", Path)])
    with mistakes_told():
        rows = compare(given["options"])
        for row in rows:
            rate = f"{row['updates_per_second']:,.0f} updates/s, {row['ratio']:.2f} of the first"
            first = f"first update after {row['first_update_seconds']:.0f} s"
            print(f"{row['agent']:<12} {row['seeds']:>4} {rate}; {first}: {row['flags']}")
        write_rows(given["output"], rows)


if __name__ == "__main__":
    main()
