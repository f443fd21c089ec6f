"""When updates and events are due, in environment steps."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

from qsm.options.run import RunConfig

Event = Literal["metrics", "evaluation", "checkpoint"]
"""What happens between steps, in the order in which it does where several fall on one step."""


class Counters(NamedTuple):
    """How far a loop has come."""

    step: int  # environment steps made
    num_updates: int


def updates_due(step: int, random_steps: int, ratio: Fraction) -> int:
    """Updates that must have been made by environment step `step`: floor(k p/q), k steps after the random start."""
    return int(max(step - random_steps, 0) * ratio)


def crossed(before: int, step: int, interval: int) -> bool:
    """Whether the way from `before` to `step` reached or passed a multiple of `interval`."""
    return step // interval > before // interval


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
        return self.in_ticks(target, step)

    def in_ticks(self, target: int, step: int = 0) -> int:
        """The first step from `step` on, in whole ticks, that is `target` or more."""
        return step + -(-(target - step) // self.increment) * self.increment

    def due(self, before: int, step: int) -> tuple[Event, ...]:
        """What happens on having gone from step `before` to `step`, no further than the next event.

        The last step has metrics and an evaluation whatever the intervals.
        """
        is_last = step >= self.steps
        found: list[Event] = []
        if is_last or crossed(before, step, self.log_interval):
            found.append("metrics")
        if is_last or crossed(before, step, self.eval_interval):
            found.append("evaluation")
        if crossed(before, step, self.checkpoint_interval):
            found.append("checkpoint")
        return tuple(found)
