"""Hooks of a training loop that write down when they are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qsm.learning.learner import TrainState
from qsm.learning.schedule import Counters, Hooks


@dataclasses.dataclass
class Recorder:
    """Steps at which each hook was called; asks to stop from `stop_at` on, or when `should_stop` says so."""

    should_stop: Callable[[], bool] = lambda: False
    stop_at: int = 10**9
    steps: list[int] = dataclasses.field(default_factory=list)
    evaluations: list[int] = dataclasses.field(default_factory=list)
    metrics: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    checkpoints: list[Counters] = dataclasses.field(default_factory=list)

    @property
    def hooks(self) -> Hooks:
        return Hooks(
            self.steps.append,
            lambda step, state: self.evaluations.append(step),
            self._on_metrics,
            lambda state, counters: self.checkpoints.append(counters),
            lambda: self.should_stop() or self.steps[-1:] >= [self.stop_at],
        )

    def _on_metrics(self, step: int, state: TrainState, num_updates: int) -> TrainState:
        self.metrics.append((step, num_updates))
        return state
