"""What samples say of a distribution of actions: its modes, the mass at the bounds, its spread. NumPy and SciPy alone.

The density of a component is a Gaussian kernel estimate of bandwidth `BANDWIDTH` over [-1, 1], reflected at the bounds,
so that mass at a bound is as high as it would be inside. Of its peaks, those are modes that are set apart from every
higher one by a valley that is at most `VALLEY` times as high as they are, and `SIGNIFICANCE` standard errors of the
estimate below them, and to which at least `LEAST_SHARE` of the samples belong. A uniform density has one mode. Modes
of several components together are combinations of theirs that hold at least `LEAST_SHARE`.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

BANDWIDTH = 0.05
"""Standard deviation of the kernel; modes nearer than about 0.2 are one."""
VALLEY = 0.5
SIGNIFICANCE = 4.0
LEAST_SHARE = 0.05
CELLS = 400  # of the density over [-1, 1]
EDGE = 0.02
"""What counts as at a bound: a hundredth of the range [-1, 1]."""
ENTROPY_BINS = 40


class Component(NamedTuple):
    """Of one component of the action."""

    modes: list[float]  # where the density is highest, in their order
    cuts: np.ndarray  # [modes - 1], the lowest points between them
    at_low: float  # share of samples in the lowest hundredth of the range
    at_high: float
    mean: float
    std: float
    entropy: float  # nats, of a histogram: log 2 at most, log 0.05 where all samples share a bin


class Joint(NamedTuple):
    """Of all components together."""

    num_modes: int  # 0 where no combination holds enough
    share: float  # of the samples, that these modes hold


def component(samples: np.ndarray) -> Component:
    """What samples `[N]` in [-1, 1] say."""
    density = _density(samples)
    edges = _cuts(density, len(samples))
    bounds = [0, *edges, CELLS]
    width = 2 / CELLS
    tops = [start + int(density[start:stop].argmax()) for start, stop in itertools.pairwise(bounds)]
    counts, _ = np.histogram(samples, ENTROPY_BINS, (-1, 1))
    shares = counts[counts > 0] / len(samples)
    return Component(
        [-1 + (top + 0.5) * width for top in tops],
        -1 + np.array(edges) * width,
        float((samples <= -1 + EDGE).mean()),
        float((samples >= 1 - EDGE).mean()),
        float(samples.mean()),
        float(samples.std()),
        float(-(shares * np.log(shares)).sum() + math.log(2 / ENTROPY_BINS)),
    )


def joint(samples: np.ndarray, components: list[Component]) -> Joint:
    """Of samples `[N, A]`, by the modes of the components that each belongs to."""
    codes = [np.searchsorted(one.cuts, samples[:, i], side="right") for i, one in enumerate(components)]
    _, counts = np.unique(np.stack(codes, axis=1), axis=0, return_counts=True)
    shares = counts / len(samples)
    is_mode = shares >= LEAST_SHARE
    return Joint(int(is_mode.sum()), float(shares[is_mode].sum()))


def _density(samples: np.ndarray) -> np.ndarray:
    """The kernel estimate `[CELLS]`."""
    counts, _ = np.histogram(np.clip(samples, -1, 1), CELLS, (-1, 1), density=True)
    return gaussian_filter1d(counts, BANDWIDTH * CELLS / 2, mode="reflect", truncate=5)


def _cuts(density: np.ndarray, number: int) -> list[int]:
    """Cells that begin a mode, the first mode apart, in their order.

    Cells are added from the highest down. Where two peaks meet, in a valley, the lower is a mode of its own if the
    valley is deep enough, and a part of the higher otherwise.
    """
    peak_of = np.arange(len(density))  # a higher cell of the same group, or the cell itself: the group's peak
    is_in = np.zeros(len(density), bool)
    cuts: dict[int, float] = {}

    def peak(cell: int) -> int:
        while peak_of[cell] != cell:
            cell = int(peak_of[cell])
        return cell

    for i in np.argsort(-density, kind="stable").tolist():
        is_in[i] = True
        for side in (i - 1, i + 1):
            if not 0 <= side < len(density) or not is_in[side]:
                continue
            lower, higher = sorted((peak(i), peak(side)), key=lambda cell: density[cell])
            if _is_apart(float(density[lower]), float(density[i]), number):
                cuts[i] = float(density[i])
            peak_of[lower] = higher
    return _with_enough(cuts, density)


def _is_apart(peak: float, valley: float, number: int) -> bool:
    # Variance of a kernel estimate f: f / (2 sqrt(pi) N h).
    error = math.sqrt((peak + valley) / (2 * math.sqrt(math.pi) * number * BANDWIDTH))
    return valley <= VALLEY * peak and peak - valley > SIGNIFICANCE * error


def _with_enough(cuts: dict[int, float], density: np.ndarray) -> list[int]:
    """The cuts, without those beside a mode of too few samples: it goes to the side of the higher valley."""
    left = sorted(cuts)
    while left:
        shares = [part.sum() / density.sum() for part in np.split(density, left)]
        least = int(np.argmin(shares))
        if shares[least] >= LEAST_SHARE:
            break
        beside = left[max(least - 1, 0) : least + 1]
        left.remove(max(beside, key=lambda cut: cuts[cut]))
    return left
