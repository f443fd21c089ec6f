"""How JAX runs here: cache, precision, processes, and the variables that rule them."""
