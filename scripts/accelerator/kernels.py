"""How many kernels an update has on an NVIDIA H100, by part and kind, on a machine that has none.

    python scripts/accelerator/kernels.py OUTPUT.csv [--agents qsm sac] [--preset strong] [--seeds 1,64]

Needs JAX's CUDA plugin (`pip install 'jax[cuda12]'`), no card and no driver: XLA compiles for one that is described.
With one seed an update takes about 1.6 microseconds a kernel on such a card (docs/speed.md).
"""

from __future__ import annotations

import collections
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: no device is looked for

from qsm.command.script import mistakes_told, read_arguments, write_rows
from qsm.options.parser import Positional
from qsm.speed.parts.kernels import Options, count


def main() -> None:
    """Prints a line for each part of each agent's update, and writes the rows."""
    given = read_arguments(Options, __doc__, [Positional("output", "CSV file to write.", Path)])
    options: Options = given["options"]
    rows = []
    with mistakes_told():
        for agent in options.agents:
            for num_seeds in options.seeds:
                found = count(agent, num_seeds, options.preset)
                numbers = collections.Counter[str]()
                for row in found:
                    numbers[row["of"]] += row["kernels"]
                besides = f"{numbers['branch']} in branches, {numbers['dispatch']} more a dispatch"
                print(f"{agent} x {num_seeds}: {numbers['update']} kernels an update, {besides}", flush=True)
                rows += found
        write_rows(given["output"], rows)


if __name__ == "__main__":
    main()
