"""Drives a training loop and writes down what happens when."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qsm.learning.programs import TrainState
from qsm.loops.loop import Loop
from qsm.loops.schedule import Counters

START = Counters(0, 0)


@dataclasses.dataclass
class Recorder:
    """Steps of each event; stops from `stop_at` on, or when `should_stop` says so."""

    should_stop: Callable[[], bool] = lambda: False
    stop_at: int = 10**9
    steps: list[int] = dataclasses.field(default_factory=list)
    evaluations: list[int] = dataclasses.field(default_factory=list)
    metrics: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    checkpoints: list[Counters] = dataclasses.field(default_factory=list)

    def run(
        self, loop: Loop, state: TrainState | None = None, at: Counters = START
    ) -> tuple[TrainState, Counters]:
        """Trains from `at` to the last step, from the beginning where no state is given. Drains no metrics."""
        if state is None:
            state = loop.begin()
        while at.step < min(loop.schedule.steps, self.stop_at) and not self.should_stop():
            before = at.step
            state, at = loop.advance(state, at, loop.schedule.next_event(before))
            self.steps.append(at.step)
            due = loop.schedule.due(before, at.step)
            if "metrics" in due:
                self.metrics.append((at.step, at.num_updates))
            if "evaluation" in due:
                self.evaluations.append(at.step)
            if "checkpoint" in due:
                self.checkpoints.append(at)
        return state, at
