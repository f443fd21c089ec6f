"""`qsm bench`: a grid of agents, tasks and seeds, of which only what is missing is trained."""
