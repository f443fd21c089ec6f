"""What can be asked, and how it is read from a command line or a file. No JAX."""
