"""How fast this checkout trains beside another commit; `qsm.speed.compare` says how, and `--help` prints it."""

import sys

from qsm.speed.compare import main

if __name__ == "__main__":
    sys.exit(main())
