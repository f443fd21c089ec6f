"""A way down a diffusion chain, of as many steps as it has levels or of fewer.

Every rule here is linear in the noised action, the clean action that the network implies there, and fresh noise; so a
way down is a table of weights (`Steps`), and one loop goes down any of them (`agents.parts.diffusion.sample`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agents.config import SamplerName, StepVariance


class Sampler(NamedTuple):
    """A rule, and how many steps it takes."""

    name: SamplerName = "ancestral"
    num_steps: int = 0  # 0: one for each level
    # Of ddim: the noise of a step, 1 for that of the ancestral chain of the posterior variance.
    eta: float = 0.0


class Steps(NamedTuple):
    """The steps of a way down, each an array `[N]`, from the least noise to the most; the last is taken first.

    With clean = (a - sigma eps) / root_abar at the level of the step, and clean_before that of the step before, the
    next action is weight_clean clean + weight_noised a + weight_before clean_before + std noise. At the first entry
    all of that is clean.
    """

    level: Any  # t = 1..T
    sigma: Any
    root_abar: Any
    weight_clean: Any
    weight_noised: Any
    std: Any  # None: no noise
    weight_before: Any = None  # None: steps look at their own level alone


def steps_of(
    sampler: Sampler, alpha: np.ndarray, abar: np.ndarray, step_variance: StepVariance = "beta"
) -> Steps:
    """The steps of `sampler` down a chain of `alpha` and `abar`, `[T]`.

    Args:
      step_variance: of an ancestral step, which takes it from the levels that are visited.

    Raises:
      ValueError: more steps than levels.
    """
    num_levels = len(abar)
    num_steps = sampler.num_steps or num_levels
    if num_steps > num_levels:
        raise ValueError(f"a chain of {num_levels} levels has no {num_steps} steps")
    if num_steps == num_levels:
        level = np.arange(1, num_levels + 1)
    else:
        level = _even_in_noise(abar, num_steps) if sampler.name == "dpm++" else _even(num_levels, num_steps)
        alpha, abar = abar[level - 1] / np.concatenate([[1.0], abar[level[:-1] - 1]]), abar[level - 1]
    abar_previous = np.concatenate([[1.0], abar[:-1]])
    sigma, root_abar = np.sqrt(1 - abar), np.sqrt(abar)
    if sampler.name == "dpm++":
        return Steps(level, sigma, root_abar, *_second_order(abar, abar_previous))
    beta = 1 - alpha
    posterior = beta * (1 - abar_previous) / (1 - abar)
    if sampler.name == "ancestral":
        variance = beta if step_variance == "beta" else posterior
        variance = np.where(np.arange(num_steps) == 0, 0.0, variance)
        weight_clean = np.sqrt(abar_previous) * beta / (1 - abar)
        weight_noised = np.sqrt(alpha) * (1 - abar_previous) / (1 - abar)
        return Steps(level, sigma, root_abar, weight_clean, weight_noised, np.sqrt(variance))
    variance = sampler.eta**2 * posterior
    # What is left of the noise of a_{t-1} points where the noise that is implied in a_t does.
    weight_noised = np.sqrt(1 - abar_previous - variance) / sigma
    weight_clean = np.sqrt(abar_previous) - weight_noised * root_abar
    std = np.sqrt(variance) if sampler.eta else None
    return Steps(level, sigma, root_abar, weight_clean, weight_noised, std)


def _even(num_levels: int, num_steps: int) -> np.ndarray:
    """Levels `[N]` evenly apart, T among them: where N divides T, those whose vp chain is that of N levels."""
    return np.arange(1, num_steps + 1) * num_levels // num_steps


def _even_in_noise(abar: np.ndarray, num_steps: int) -> np.ndarray:
    """Levels `[N]` from 1 to T, as even as may be in half the log of the signal-to-noise ratio; T where N = 1."""
    num_levels = len(abar)
    if num_steps == 1:
        return np.array([num_levels])
    ratio = _log_ratio(abar)
    nearest = np.abs(ratio[None] - np.linspace(ratio[0], ratio[-1], num_steps)[:, None]).argmin(axis=1)
    place = np.arange(num_steps)
    # Each once: pushed up by those below it, and down where too few are left above.
    apart = np.maximum.accumulate(nearest - place) + place
    return np.minimum(apart, num_levels - num_steps + place) + 1


def _log_ratio(abar: np.ndarray) -> np.ndarray:
    """log(sqrt(abar) / sigma) `[N]`."""
    return 0.5 * np.log(abar / (1 - abar))


def _second_order(
    abar: np.ndarray, abar_previous: np.ndarray
) -> tuple[np.ndarray, np.ndarray, None, np.ndarray]:
    """weight_clean, weight_noised, no noise, and weight_before of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    With l = log(sqrt(abar) / sigma) and h the growth of l in a step, the next action is

        (sigma' / sigma) a + sqrt(abar') (1 - exp(-h)) D,   D = clean + (clean - clean_before) h / (2 h_before)

    where D is clean in the first step, which has none before it, and in the last, whose h is infinite.
    """
    ratio = _log_ratio(abar)
    growth = np.append(ratio[:-1] - ratio[1:], np.nan)  # h of the step before, at each entry but the last
    ahead = np.roll(growth, 1)  # h of the step itself; NaN in the first entry
    weight_noised = np.sqrt((1 - abar_previous) / (1 - abar))
    weight = np.sqrt(abar_previous) * -np.expm1(-np.where(np.isnan(ahead), np.inf, ahead))
    share = np.nan_to_num(ahead / (2 * growth), nan=0.0)
    return weight * (1 + share), weight_noised, None, -weight * share
