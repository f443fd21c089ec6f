"""`qsm train`: a group of runs from their folders to their last step, and what is done between steps."""
