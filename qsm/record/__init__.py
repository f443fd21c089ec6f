"""What a run leaves on disk for people and programs to read. No JAX."""
