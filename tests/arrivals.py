"""Arrivals by hand, for tests that feed a learner without an environment."""

from __future__ import annotations

import numpy as np

from envs.api import Arrival, StepType, TimeStep
from qsm.data import replay
from qsm.data.replay import Replay, Rows


def stored(buffer: Replay, since: np.ndarray | None = None) -> Rows:
    """What the buffer of one seed holds, in the order of arrival."""

    def fetch(start: int, length: int) -> dict[str, np.ndarray]:
        return {name: np.array(getattr(buffer, name)[start : start + length]) for name in buffer.row_fields}

    rows = replay.rows_since(buffer, np.asarray(buffer.written), since, fetch)
    largest = buffer.largest_priority
    return rows._replace(largest_priority=None if largest is None else np.array(largest))


def arrival(
    step_type: StepType, observation: float, reward: float = 0.0, discount: float = 1.0, size: int = 2
) -> Arrival:
    """What one environment of one seed, leaves `[1, 1, ...]`, arrives at; a FIRST step is the start of an episode."""
    step = TimeStep(
        np.full((1, 1), step_type, np.int8),
        np.full((1, 1), reward, np.float32),
        np.full((1, 1), discount, np.float32),
        np.full((1, 1, size), observation, np.float32),
    )
    none = TimeStep(*(np.zeros_like(value) for value in step))
    yes, no = np.ones((1, 1), bool), np.zeros((1, 1), bool)
    if step_type == StepType.FIRST:
        return Arrival(none, no, step, yes)
    return Arrival(step, yes, none, no)
