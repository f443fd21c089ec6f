"""`python -m qsm`: the same as the `qsm` command."""

import sys

from qsm.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
