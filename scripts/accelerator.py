"""Everything that wants an accelerator, in one command that keeps to its minutes: rates, then trainings on MJX.

    python scripts/accelerator.py results/accelerator/NAME [--minutes 9.5]
    python scripts/accelerator.py /tmp/try --small --minutes 9      # the same on a CPU, in small

Writes as it goes: `speed.json` (updates alone over seeds and precisions, every agent), `device.json` (the device loop),
and below `runs/` the tables of `cheetah-run` for sac and qsm-clean at one update an environment step, eight seeds
together, 100,000 steps. Each step has its share of the time and what those before it left over; at its end it is told
to stop, and what it has is kept.
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
