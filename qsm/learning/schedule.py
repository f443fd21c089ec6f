"""What both loops share: when updates and events are due, what they call as they go, and what they offer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

from qsm.learning.evaluate import Evaluation
from qsm.learning.learner import Learner, TrainState
from qsm.options.run import RunConfig


class Counters(NamedTuple):
    """Where the loop is."""

    step: int  # environment steps made
    num_updates: int


def updates_due(step: int, random_steps: int, ratio: Fraction) -> int:
    """Updates that must have been made by environment step `step`: floor(k p/q), k steps after the random start."""
    return int(max(step - random_steps, 0) * ratio)


def crossed(step: int, increment: int, interval: int) -> bool:
    """Whether the last `increment` steps reached or passed a multiple of `interval`."""
    return step // interval > (step - increment) // interval


@dataclasses.dataclass
class Hooks:
    """What a loop calls as it goes; everything that is not acting, storing and learning."""

    on_step: Callable[[int], None]
    on_evaluation: Callable[[int, TrainState], None]
    on_metrics: Callable[[int, TrainState, int], TrainState]
    on_checkpoint: Callable[[TrainState, Counters], None]
    should_stop: Callable[[], bool]


class Loop(Protocol):
    """A training loop of S seeds: dm_control on the host (`host_loop`) or MJX on the device (`device_loop`)."""

    learner: Learner

    @property
    def steps_per_tick(self) -> int:
        """Environment steps of each seed between two actions."""
        ...

    def begin(self) -> TrainState:
        """A fresh state."""
        ...

    def run(self, state: TrainState, counters: Counters, hooks: Hooks) -> tuple[TrainState, Counters]:
        """Trains from `counters` to the last step, or until asked to stop; `state` is donated."""
        ...

    def evaluate(self, state: TrainState, step: int) -> list[Evaluation | None]:
        """One evaluation of each seed that goes on, None for the others."""
        ...

    def save(self, state: TrainState, index: int) -> dict[str, np.ndarray]:
        """All that the environments of seed `index` need to go on exactly."""
        ...

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> object:
        """Puts the environments where `save` found them; returns `TrainState.environment`.

        Raises:
          ValueError: what was saved is of another environment.
        """
        ...


class Schedule(NamedTuple):
    """When what is due, in environment steps of one seed."""

    steps: int
    random_steps: int
    ratio: Fraction
    increment: int  # steps in a tick
    log_interval: int
    eval_interval: int
    checkpoint_interval: int

    @classmethod
    def of(cls, config: RunConfig, repeat: int, n_step: int) -> Schedule:
        """Of a run whose agent acts every `repeat` control steps and learns from windows of `n_step` actions."""
        increment = config.num_envs * repeat
        # Sampling needs a closed window: no update before the first n decisions, however short the random start.
        random_steps = max(config.random_steps, n_step * increment)
        return cls(
            config.steps,
            random_steps,
            config.updates_per_step,
            increment,
            config.log_interval,
            config.eval_interval,
            config.checkpoint_interval,
        )

    def updates_due(self, step: int) -> int:
        return updates_due(step, self.random_steps, self.ratio)

    def next_event(self, step: int) -> int:
        """The first step after `step`, in whole ticks, at which anything but training happens."""
        intervals = (self.log_interval, self.eval_interval, self.checkpoint_interval)
        target = min(self.steps, *((step // interval + 1) * interval for interval in intervals))
        return step + -(-(target - step) // self.increment) * self.increment

    def events(self, step: int, state: TrainState, num_updates: int, hooks: Hooks) -> TrainState:
        """Calls what is due on having reached `step`."""
        is_last = step >= self.steps  # metrics and evaluation come whatever the intervals
        hooks.on_step(step)
        if is_last or crossed(step, self.increment, self.log_interval):
            state = hooks.on_metrics(step, state, num_updates)
        if is_last or crossed(step, self.increment, self.eval_interval):
            hooks.on_evaluation(step, state)
        if crossed(step, self.increment, self.checkpoint_interval):
            hooks.on_checkpoint(state, Counters(step, num_updates))
        return state
