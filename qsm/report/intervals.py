"""What a handful of seeds says: interquartile means, stratified bootstrap intervals, profiles, improvement.

The statistics are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021). Scores of one agent are a mapping from task to an array whose first axis is the seeds `[n]` or
`[n, ...]`; tasks may have different numbers of seeds. Every task weighs the same, however many seeds it has: a run of a
task with n seeds has the weight 1/n. With as many seeds on every task, that is what the paper computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Scores = Mapping[str, np.ndarray]
"""Task -> scores of its seeds, `[n]` or `[n, ...]`."""

RESAMPLES = 2_000
"""Bootstrap resamples. An end of a 95 % interval is then known to about a tenth of the interval's width."""
LEVEL = 0.95
"""Of the intervals."""


class Estimate(NamedTuple):
    """A statistic with its interval, each `[...]`; the interval is NaN where it cannot be told."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def has_interval(self) -> bool:
        return not np.isnan(self.low).all()


def interquartile_mean(scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean of the middle half along the first axis: a quarter of n, rounded down, is cut off at each end.

    The cut is made in weight: floor(n / 4) / n of the whole at each end, where a run on the border is cut in part. With
    equal weights that is `scipy.stats.trim_mean(scores, 0.25)`, whole runs.

    Args:
      scores: `[n, ...]`.
      weights: `[n]`, above 0; None: equal.

    Returns:
      `[...]`; NaN where n is 0.
    """
    scores = np.asarray(scores, np.float64)
    if len(scores) == 0:
        return np.full(scores.shape[1:], np.nan)
    if weights is None:
        return np.asarray(stats.trim_mean(scores, 0.25, axis=0))
    order = np.argsort(scores, axis=0, kind="stable")
    shares = (np.asarray(weights, np.float64) / np.sum(weights))[order]
    end = np.cumsum(shares, axis=0)
    cut = len(scores) // 4 / len(scores)
    kept = np.clip(np.minimum(end, 1 - cut) - np.maximum(end - shares, cut), 0, None)
    return np.sum(kept * np.take_along_axis(scores, order, axis=0), axis=0) / np.sum(kept, axis=0)


def _values(scores: Scores) -> list[np.ndarray]:
    return [np.asarray(values, np.float64) for values in scores.values()]


def aggregate_iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean over all runs of all tasks, every task weighing the same."""
    tasks = _values(scores)
    # Where weights are equal, they are left out: sums of them would differ in the last bit from whole runs.
    is_equal = len({len(values) for values in tasks}) <= 1
    weights = (
        None if is_equal else np.concatenate([np.full(len(values), 1 / len(values)) for values in tasks])
    )
    return interquartile_mean(np.concatenate(tasks), weights)


def aggregate_mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of the mean over runs."""
    return np.mean([np.mean(values, axis=0) for values in _values(scores)], axis=0)


def aggregate_median(scores: Scores) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median([np.mean(values, axis=0) for values in _values(scores)], axis=0)


def optimality_gap(scores: Scores, best: float = 1.0) -> np.ndarray:
    """How far runs stay below `best` in the mean; what exceeds it does not make up for others."""
    return aggregate_mean({task: best - np.minimum(values, best) for task, values in scores.items()})


def probability_of_improvement(x: Scores, y: Scores) -> np.ndarray:
    """Mean over tasks of the probability that a run of `x` scores higher than one of `y`; a tie counts a half.

    Raises:
      ValueError: they have no task in common.
    """
    tasks = [task for task in x if task in y and len(x[task]) and len(y[task])]
    if not tasks:
        raise ValueError("no task has scores of both")
    return np.mean([_wins(np.asarray(x[task]), np.asarray(y[task])) for task in tasks], axis=0)


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    difference = x[:, None] - y[None, :]
    return np.mean((difference > 0) + 0.5 * (difference == 0), axis=(0, 1))


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs that score above each threshold, `[K]`; the mean of the tasks' shares."""
    return np.mean([np.mean(values[:, None] > thresholds, axis=0) for values in scores.values()], axis=0)


def bootstrap(
    statistic: Callable[..., Any],
    *samples: Scores,
    resamples: int | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """`statistic(*samples)` with its percentile interval under the stratified bootstrap.

    Each resample draws, for every task by itself, as many seeds as there are, with replacement; a seed's whole array is
    drawn at once, so that a curve stays a curve. The same seed gives the same interval.

    A task with a single seed would be drawn the same every time, and so count as certain: the interval is then NaN.

    Args:
      statistic: of `Scores`, one for each of `samples`.
      samples: drawn independently of each other.
      resamples: None: `RESAMPLES`.
    """
    value = np.asarray(statistic(*samples))
    if any(len(values) < 2 for scores in samples for values in scores.values()):
        return Estimate(value, np.full_like(value, np.nan, float), np.full_like(value, np.nan, float))
    rng = np.random.default_rng(seed)
    drawn = np.stack(
        [statistic(*(_resample(scores, rng) for scores in samples)) for _ in range(resamples or RESAMPLES)]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(value, low, high)


def _resample(scores: Scores, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {task: values[rng.integers(len(values), size=len(values))] for task, values in scores.items()}


def common_curve(curves: Sequence[Mapping[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps `[K]` at which every seed was evaluated, and the seeds' returns there, `[n, K]`.

    Args:
      curves: step -> return, of each seed. One that was stopped early, or misses an evaluation, shortens the result and
        is never filled in.
    """
    if not curves:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [[curve[step] for step in steps] for curve in curves]
    return np.array(steps, np.int64), np.array(values, np.float64).reshape(len(curves), len(steps))
