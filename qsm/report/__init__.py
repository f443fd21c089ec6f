"""`qsm report`: runs compared on one page, with its figures and their tables."""
