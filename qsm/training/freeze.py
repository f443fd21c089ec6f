"""Runs whose numbers are no longer finite, or whose simulation only fails: they learn no more, and the others go on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from qsm.learning.learner import FAILURE_RATE, REWARD, Means, TrainState
from qsm.loops.loop import Loop
from qsm.loops.schedule import Counters
from qsm.training import diagnosis
from qsm.training.group import Group

MIN_FAILED_TICKS = 10
"""So many ticks of the loop must have failed in a row before a run is frozen for it: rows may be as short as one."""


class Freezer:
    """Freezes runs of a group, says where their numbers went wrong, and writes all of them.

    Args:
      close: called with the index of a run that has been frozen, once its status says so.
    """

    def __init__(
        self, group: Group, loop: Loop, warn: Callable[[str], None], close: Callable[[int], None]
    ) -> None:
        self._group, self._loop = group, loop
        self._warn, self._close = warn, close
        self._warned_of: set[int] = set()  # runs whose simulation was said to have failed
        self._failed_rows: Counter[int] = Counter()  # in a row, of each run
        self._rows_to_fail = -(
            -MIN_FAILED_TICKS // max(1, loop.schedule.log_interval // loop.schedule.increment)
        )

    def freeze_diverged(self, at: Counters, state: TrainState, means: Sequence[Means]) -> None:
        """Freezes the runs whose metrics or learned numbers are not finite."""
        for i in self._group.active_runs:
            # Rewards are the environment's: their sum may overflow, and what they do to the learned shows there.
            learned = {name: value for name, value in means[i].values.items() if name != REWARD}
            wrong = {name: value for name, value in learned.items() if not math.isfinite(value)}
            if wrong or means[i].bad_updates or not means[i].is_finite:
                self._freeze(i, at, state, wrong, means[i].bad_updates)

    def freeze_failing(self, at: Counters, state: TrainState, means: Sequence[Means]) -> None:
        """Freezes the runs whose simulation has come to fail at every step; warns once of one that fails at times."""
        for i in self._group.active_runs:
            rate = means[i].values.get(FAILURE_RATE, 0.0)
            self._failed_rows[i] = self._failed_rows[i] + 1 if rate >= 1.0 else 0
            if self._failed_rows[i] >= self._rows_to_fail:
                rows = self._rows_to_fail
                cause = "the simulation failed at every step since the last row of metrics"
                if rows > 1:
                    cause = f"the simulation failed at every step of the last {rows} rows of metrics"
                self._freeze(i, at, state, {FAILURE_RATE: rate}, 0, cause)
            elif rate > 0.0 and i not in self._warned_of:
                self._warned_of.add(i)
                self._warn(
                    f"the simulation of {self._group.members[i].label} failed in {rate:.2%} of the last steps before "
                    f"{at.step:,}; those episodes ended there, and the failed steps are not learned from. "
                    f"train.csv goes on counting them ({FAILURE_RATE})"
                )

    def _freeze(
        self,
        i: int,
        at: Counters,
        state: TrainState,
        metrics: dict[str, float],
        bad_updates: int,
        cause: str = "",
    ) -> None:
        """Run `i` learns no more; what was found is said, and written with all its numbers."""
        group, learner = self._group, self._loop.learner
        agent, rows = learner.placement.member(state.agent, i), learner.rows_since(state, i, None)
        found = diagnosis.diagnose(at.step, at.num_updates, bad_updates, metrics, agent, rows)
        reason = f"diverged by step {at.step:,}: {found._replace(cause=cause).describe()}"
        newest = group.checkpoints[i].latest_step
        kept = f"its checkpoint of step {newest:,} is kept" if newest is not None else "it has no checkpoint"
        environment = self._loop.save(state, i)  # by all processes together
        learner.active[i] = False
        group.frozen[i] = reason
        if group.is_writer:
            folder = group.runs[i].path / f"diverged_{at.step}"
            try:
                diagnosis.write(folder, found._replace(cause=cause), agent, rows, environment)
                kept += f", and all its numbers are in {folder}"
            except OSError as error:
                kept += f", and its numbers could not be written ({error.strerror or error})"
        self._warn(f"{group.members[i].label} {reason}; it is frozen, {kept}")
        group.write_status("diverged", at.step, reason, i)
        self._close(i)
