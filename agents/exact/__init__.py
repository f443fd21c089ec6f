"""Continuous problems whose answers are exact: linear-quadratic control, flows of state and action, chains on a line.

NumPy and SciPy in float64; `alignment` is JAX, for it looks at agents. No agent imports any of it.
"""
