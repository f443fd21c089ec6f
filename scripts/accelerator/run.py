"""What wants an accelerator, in one command that keeps to its minutes: ticks, rates by XLA's flags, trainings on MJX.

    python scripts/accelerator/run.py results/accelerator/NAME [--minutes 9.5]
    python scripts/accelerator/run.py /tmp/try --small --minutes 9      # the same on a CPU, in small

Writes as it goes: `tick.csv` (where a tick of the host loop goes; needs dm_control), `xla_flags.csv` (updates of one
seed by XLA's flags, and when the first one was made), below `runs/` the tables of `cheetah-run` under `--preset strong`
at one update an environment step, 50,000 steps, all agents side by side: sac and diffusion-ql with eight seeds,
qsm-clean and qsm with four at each of three temperatures, and qsm-clean with four at each of three spreads that a tuned
temperature holds; and `again`, a second start of sac. Each step has its share of the time and what those before it left
over; at its end it is told to stop, and what it has is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qsm.command.script import read_arguments
from qsm.options.parser import Positional
from qsm.speed.accelerator import Options, run_all

if __name__ == "__main__":
    given = read_arguments(Options, __doc__, [Positional("output", "Folder for the results.", Path)])
    sys.exit(run_all(given["output"].absolute(), given["options"]))
