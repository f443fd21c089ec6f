"""The vp chain with exact moments, for tests of diffusion policies."""

from __future__ import annotations

import numpy as np


class Chain:
    """The vp chain and its reverse moments, written from the equations and not from agents/diffusion.py."""

    def __init__(self, num_levels: int, step_variance: str = "beta") -> None:
        t = np.arange(1, num_levels + 1)
        self.alpha = np.exp(-0.1 / num_levels - 9.9 * (2 * t - 1) / (2 * num_levels**2))
        self.abar = np.array([np.prod(self.alpha[:i]) for i in t])
        self.sigma = np.sqrt(1 - self.abar)
        before = np.append(1.0, self.abar[:-1])
        beta = 1 - self.alpha
        self.variance = beta if step_variance == "beta" else beta * (1 - before) / (1 - self.abar)

    def run(self, slope: np.ndarray, offset: np.ndarray) -> tuple[float, float]:
        """Mean and variance of a_0 when the predicted noise is `slope_t a_t + offset_t`; a_T ~ N(0, 1).

        a_{t-1} = (a_t - beta_t / sigma_t eps) / sqrt(alpha_t) + noise, none at t = 1 (Ho et al. 2020, algorithm 2).
        """
        mean, variance = 0.0, 1.0
        for i in reversed(range(len(self.alpha))):
            share = (1 - self.alpha[i]) / self.sigma[i]
            factor = (1 - share * slope[i]) / np.sqrt(self.alpha[i])
            mean = factor * mean - share * offset[i] / np.sqrt(self.alpha[i])
            variance = factor**2 * variance + (self.variance[i] if i > 0 else 0.0)
        return mean, variance

    def exact_score(self, mean: float, variance: float) -> tuple[np.ndarray, np.ndarray]:
        """Slope and offset of the exact noise prediction for a Gaussian a_0."""
        slope = self.sigma / (self.abar * variance + self.sigma**2)
        return slope, -slope * np.sqrt(self.abar) * mean

    def clean_target(
        self, drawn: tuple[float, float], mean: float, variance: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slope and offset of E[sigma^2 eps - sigma sqrt(abar) grad | a_t] for a_0 drawn from a Gaussian.

        grad = -(a_0 - mean) / variance is the target's score; `drawn` is the mean and variance of the policy.
        """
        m, v = drawn
        root = np.sqrt(self.abar)
        total = self.abar * v + self.sigma**2
        # a_0 and eps given a_t: m + root v / total (a_t - root m) and sigma / total (a_t - root m).
        slope = self.sigma**3 / total + self.sigma * root / variance * (root * v / total)
        return slope, -slope * root * m + self.sigma * root / variance * (m - mean)

    def on_policy_fixed_point(self, mean: float, variance: float) -> tuple[float, float]:
        """Mean and std of the policy that clean-gradient regression on its own samples leaves unchanged."""
        m, v = mean, variance
        for _ in range(1000):
            next_m, next_v = self.run(*self.clean_target((m, v), mean, variance))
            m, v = 0.9 * m + 0.1 * next_m, 0.9 * v + 0.1 * next_v
        return m, v**0.5
