"""Ways down a diffusion chain: which levels are visited, and what each step is made of. NumPy alone."""
