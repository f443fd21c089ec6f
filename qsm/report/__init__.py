"""`qsm report`: runs compared on one page, with its figures and their tables."""

from qsm.report.matplotlib_folders import import_quietly

import_quietly()  # before any file of this room imports matplotlib
