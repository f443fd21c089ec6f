"""A quadratic form with a constant: what values are in linear-quadratic problems."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Quadratic(NamedTuple):
    """x' M x + c, of vectors x `[..., N]`."""

    matrix: np.ndarray  # [N, N], symmetric
    constant: float

    def value(self, x: np.ndarray) -> np.ndarray:
        """`[...]`."""
        return np.einsum("...i,ij,...j->...", x, self.matrix, x) + self.constant

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """By x, `[..., N]`."""
        return 2.0 * x @ self.matrix

    def mean(self, covariance: np.ndarray) -> float:
        """Expected value at x ~ N(0, `covariance` `[N, N]`)."""
        return float(np.sum(self.matrix * covariance)) + self.constant


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """`matrix` without what rounding has left of its asymmetry."""
    return 0.5 * (matrix + matrix.T)


def block_diagonal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`first` `[N, N]` and `second` `[M, M]` along the diagonal, zeros elsewhere."""
    n, m = len(first), len(second)
    joined = np.zeros((n + m, n + m))
    joined[:n, :n], joined[n:, n:] = first, second
    return joined


def matrix_of(name: str, given: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`given` as float64.

    Raises:
      ValueError: another shape, or numbers that are not finite.
    """
    matrix = np.asarray(given, np.float64)
    if matrix.shape != shape:
        raise ValueError(f"{name} is of shape {matrix.shape}; it must be {shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return matrix


def semidefinite(name: str, given: np.ndarray, size: int) -> np.ndarray:
    """`given` `[size, size]` as float64.

    Raises:
      ValueError: another shape, or a matrix that is not symmetric or has an eigenvalue below 0.
    """
    matrix = matrix_of(name, given, (size, size))
    smallest = np.linalg.eigvalsh(symmetric(matrix)).min()
    if not np.allclose(matrix, matrix.T, rtol=0.0, atol=1e-9) or smallest < -1e-9:
        raise ValueError(f"{name} must be symmetric, with no eigenvalue below 0")
    return symmetric(matrix)
