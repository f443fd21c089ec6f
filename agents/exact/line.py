"""Langevin dynamics on a line, by quadrature instead of draws: the stationary density of its steps, and their error.

Steps are x <- x + eta/2 score(x) + sqrt(eta) xi, as of `agents.parts.boltzmann.langevin`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.special

Curve = Callable[[np.ndarray], np.ndarray]
"""Points `[N]` to values `[N]`."""


def double_well(x: np.ndarray) -> np.ndarray:
    """Q = -(x^2 - 1)^2 + x / 4: two modes near -1 and 1, the right one higher."""
    return -((x**2 - 1.0) ** 2) + 0.25 * x


def double_well_gradient(x: np.ndarray) -> np.ndarray:
    """Its derivative; of arrays of NumPy or JAX."""
    return -4.0 * x * (x**2 - 1.0) + 0.25


def density(log_density: Curve, grid: np.ndarray) -> np.ndarray:
    """exp of `log_density` on an even grid `[N]`, of integral one."""
    values = log_density(grid)
    weights = np.exp(values - values.max())
    return weights / (weights.sum() * (grid[1] - grid[0]))


def stationary(score: Curve, grid: np.ndarray, step: float) -> np.ndarray:
    """Density `[N]` that Langevin steps of size `step` leave unchanged, on an even grid `[N]`.

    The chain is that of the grid's points, to which a step leads in proportion to its Gaussian density; what goes
    beyond the ends stays there, as the sampler's bound has it. For a grid finer than half of sqrt(step) that is the
    chain on the line, nearly to rounding: sums over an even grid are exact for what is smooth.

    Raises:
      ValueError: the grid is too coarse for the step.
    """
    spacing, root = grid[1] - grid[0], np.sqrt(step)
    if spacing > 0.5 * root:
        raise ValueError(
            f"the grid's spacing is {spacing:g}; it must be at most half of sqrt(step) = {root:g}"
        )
    moved = grid + 0.5 * step * score(grid)
    away = (grid[None, :] - moved[:, None]) / root
    kernel = np.exp(-0.5 * np.square(away)) * (spacing / (root * np.sqrt(2.0 * np.pi)))
    half = 0.5 * spacing / root
    kernel[:, 0] = scipy.special.ndtr(away[:, 0] + half)
    kernel[:, -1] = scipy.special.ndtr(half - away[:, -1])
    kernel /= kernel.sum(axis=1, keepdims=True)
    # pi K = pi and sum pi = 1: one equation of the first is replaced by the second.
    system = kernel.T - np.eye(len(grid))
    system[-1] = 1.0
    solution = np.maximum(np.linalg.solve(system, np.eye(len(grid))[-1]), 0.0)  # below 0 by rounding only
    return solution / (solution.sum() * spacing)


def moments(values: np.ndarray, grid: np.ndarray) -> tuple[float, float]:
    """Mean and variance of a density `[N]` on an even grid `[N]`."""
    weights = values / values.sum()
    mean = float(weights @ grid)
    return mean, float(weights @ np.square(grid - mean))


def total_variation(first: np.ndarray, second: np.ndarray, grid: np.ndarray) -> float:
    """Half of the integral of |first - second|: the largest difference in the probability of any set."""
    return 0.5 * float(np.abs(first - second).sum() * (grid[1] - grid[0]))
