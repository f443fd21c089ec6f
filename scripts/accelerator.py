"""Everything that wants an accelerator, in one command; `qsm.speed.accelerator` says what, and `--help` prints it.

python scripts/accelerator.py results/accelerator/NAME [--minutes 9.5]
"""

import sys

from qsm.speed.accelerator import main

if __name__ == "__main__":
    sys.exit(main())
