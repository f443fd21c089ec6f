"""Words on a command line become one call, and what went wrong one line and an exit status."""
