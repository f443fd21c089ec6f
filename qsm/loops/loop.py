"""What a training loop offers to whoever drives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from qsm.learning.learner import Learner
from qsm.learning.programs import TrainState
from qsm.loops.evaluate import Evaluation
from qsm.loops.schedule import Counters, Schedule


class Loop(Protocol):
    """A training loop of S seeds: dm_control on the host (`host_loop`) or MJX on the device (`device_loop`).

    It acts, steps the environments, stores and learns, and owns no events: its caller asks `schedule` how far it may
    go, and does between two advances whatever is due. `begin` or `restore` comes first.
    """

    learner: Learner
    schedule: Schedule

    def begin(self) -> TrainState:
        """A fresh state, with the starts of the first episodes stored."""
        ...

    def compiles(self, at: Counters) -> bool:
        """Whether the next `advance` waits for a program that is being compiled."""
        ...

    def advance(self, state: TrainState, at: Counters, until: int) -> tuple[TrainState, Counters]:
        """Makes one dispatch towards environment step `until`, which lies a whole number of ticks after `at.step`.

        Args:
          state: donated.
          until: never passed; `schedule.next_event(at.step)`, say.

        Returns:
          The new state, and how far it has come: at least one tick.
        """
        ...

    def evaluate(self, state: TrainState, step: int) -> list[Evaluation | None]:
        """One evaluation of each seed that goes on, None for the others."""
        ...

    def save(self, state: TrainState, index: int) -> dict[str, np.ndarray]:
        """All that the environments of seed `index` need to go on exactly."""
        ...

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> object:
        """Puts the environments of `learner.active` where `save` found them; returns `TrainState.environment`.

        Raises:
          ValueError: what was saved is of another environment.
        """
        ...
