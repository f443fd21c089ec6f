"""Network definitions: the only files that import flax."""
