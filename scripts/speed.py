"""How fast training runs; `qsm.speed.measure` says what is measured, and `--help` prints it.

python scripts/speed.py --output results/speed/NAME.json [--parts seeds precision device agents host processes]
"""

import sys

from qsm.speed.measure import main

if __name__ == "__main__":
    sys.exit(main())
