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


class FittedChain:
    """A Gaussian policy of mean 0 under the fitted target, update after update, for several drift limits at once.

    The network is linear: at level t it implies the clean action k_t u_t. Each update draws from its slow average, has
    it regressed without error onto the target at these draws, and the running residual follow.

    Args:
      limits: `[L]`, of the drift.
      std: of the density N(0, std^2).
      start: std of the policy in the beginning.
    """

    def __init__(self, num_levels: int, limits: list[float], std: float, start: float) -> None:
        chain = Chain(num_levels)
        self.abar, self.noise, self.limits, self.density = (
            chain.abar,
            chain.sigma**2,
            np.array(limits),
            std**2,
        )
        before = np.append(1.0, chain.abar[:-1])
        beta = 1 - chain.alpha
        self.of_clean = np.sqrt(before) * beta / self.noise
        self.of_noised = np.sqrt(chain.alpha) * (1 - before) / self.noise
        self.posterior = beta * (1 - before) / self.noise
        each = np.ones((len(limits), 1))
        self.slope = each * np.sqrt(self.abar) * start**2 / (self.abar * start**2 + self.noise)  # [L, T]
        self.residual = each * self.noise * start**2 / (self.abar * start**2 + self.noise)

    def variance(self) -> np.ndarray:
        """Of u_0, `[L]`."""
        steps = self.posterior + self.of_clean**2 * self.residual
        variance = np.ones(len(self.limits))
        for t in reversed(range(len(self.abar))):
            factor = self.of_clean[t] * self.slope[:, t] + self.of_noised[t]
            variance = factor**2 * variance + steps[:, t]
        return variance

    def update(self, draw_rate: float = 0.005, fit_rate: float = 0.01) -> None:
        """The slow network and the residuals after one update."""
        root, variance = np.sqrt(self.abar), self.variance()[:, None]
        posterior = root * variance / (self.abar * variance + self.noise)  # E[u_0 | u_t] = posterior u_t
        usable = np.minimum(self.residual, self.noise / self.abar)
        drift = np.sqrt((usable * variance / self.density**2).mean(axis=1, keepdims=True))
        share = np.minimum(1.0, self.limits[:, None] / drift)
        # u_t / root - (sigma_t / root) eps* for (6), given u_t: the noise counts lambda, the gradient c_t.
        aim = (usable / self.noise) * root + (1 - self.abar * usable / self.noise) * posterior
        aim -= usable * share / self.density * posterior
        left_open = variance * (1 - root * self.slope) ** 2 + self.slope**2 * self.noise
        self.residual += fit_rate * (left_open - self.residual)
        self.slope += draw_rate * (aim - self.slope)
