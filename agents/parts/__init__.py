"""What algorithms are made of: critics, actors, diffusion chains, optimizers, statistics. Imports no JAX by itself."""
