"""How a training ended: what its status says, what a person is shown, and what the command answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from qsm.base.text import shorten, spread
from qsm.record.status import Outcome, State


class Ending(NamedTuple):
    """The end of a training."""

    outcome: Outcome
    state: State  # of the runs that were not frozen
    message: str  # why they could not be saved; empty where they were
    lines: list[str]  # what to do next


def ending(
    step: int,
    is_last: bool,
    active: Sequence[Path],
    frozen: Mapping[str, str],
    stop_signal: int,
    problem: str | None,
    newest_step: int | None,
    returns: Mapping[str, Sequence[float]],
    command: str,
) -> Ending:
    """Says how a training ended.

    Args:
      step: where it ended; `is_last` where no step is left.
      active: folders of the runs that were not frozen.
      frozen: why the others were, by their labels.
      stop_signal: number of the signal that stopped it, or 0.
      problem: why the last checkpoint could not be written; None where it was.
      newest_step: of the newest checkpoint; None where there is none.
      returns: of the last evaluation, one a seed, by the values of a sweep; by "" without one.
      command: how `qsm` is called.
    """
    lines = [
        f"Failed   {label} {reason}. Try again alone with another --seed or other options"
        for label, reason in frozen.items()
    ]
    if active and problem is not None:
        kept = "There is no checkpoint"
        if newest_step is not None:
            kept = f"The newest checkpoint is of step {newest_step:,}"
        message = f"step {step:,} could not be saved: {problem}. {kept}"
        mend = "Free space or restore the drive, then go on with the same command."
        return Ending("unsaved", "failed", message, [*lines, f"Failed   {message}. {mend}"])
    if active and not is_last:
        stopped = "preempted" if stop_signal == signal.SIGTERM else "interrupted"
        line = f"Stopped and saved at step {step:,}. Go on with the same command."
        return Ending(stopped, stopped, "", [*lines, line])
    if active:
        above = Path(os.path.commonpath(active)) if len(active) > 1 else active[0]
        width = max(map(len, returns), default=0)
        lines += [
            f"Return   {variant + ':' if variant else '':<{width + 2 if width else 0}}{spread(values)}"
            for variant, values in returns.items()
        ]
        lines += [
            f"Run      {shorten([str(path) for path in active], 1)}",
            f"Play     {command} eval {active[0]}",
            f"Look     {command} dashboard {above}",
        ]
    return Ending("diverged" if frozen else "finished", "finished", "", lines)
