"""Checkpoints written behind the training, for all runs of a group at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from qsm.base.errors import first_line
from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.checkpoints.orbax_manager import collected_errors
from qsm.loops.schedule import Counters


class Saver:
    """Writes one checkpoint of the group at a time, in a thread of its own.

    Training goes on where a disk is full or a drive is gone: the rows that could not be written are still in the replay
    buffer, and come with the next checkpoint that can be.

    Args:
      checkpoints: of each run.
      capacity: rows that a replay buffer holds of each environment.

    Attributes:
      problem: why the last checkpoint could not be written; None where it was.
      details: what orbax said of that, with its tracebacks.
      seconds: what the last one that was written took.
    """

    def __init__(self, checkpoints: Sequence[Checkpoints], capacity: int) -> None:
        self._checkpoints = checkpoints
        self._capacity = capacity
        self._thread: threading.Thread | None = None
        self.problem: str | None = None
        self.details = ""
        self.seconds = 0.0

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, parts: Mapping[int, Saved], counters: Counters) -> None:
        """Begins to write `parts`, by the number of their run; waits for the one before."""
        self.wait()
        # A daemon: who asks twice to stop does not wait for a drive that is gone.
        self._thread = threading.Thread(target=self._write, args=(parts, counters), daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Until the last one is written, or could not be; at most `seconds`. Whether it is done."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.is_busy

    def _write(self, parts: Mapping[int, Saved], counters: Counters) -> None:
        began = time.perf_counter()
        with collected_errors() as errors:
            try:
                self._save_all(parts, counters)
            except Exception as error:  # whatever orbax makes of a full disk: the training is worth more
                self.details = "\n".join(errors)
                self.problem = first_line(error)
                return
        self.problem = None
        self.seconds = time.perf_counter() - began

    def _save_all(self, parts: Mapping[int, Saved], counters: Counters) -> None:
        """Writes every run's checkpoint, or none: the runs go on from a step that all of them have."""
        done: list[Checkpoints] = []
        try:
            for i, saved in parts.items():
                if self._checkpoints[i].latest_step != counters.step:
                    self._checkpoints[i].save(saved, counters, self._capacity)
                    done.append(self._checkpoints[i])
        except Exception:
            for checkpoints in done:
                checkpoints.drop(counters.step)
            raise
        for checkpoints in done:
            checkpoints.prune()
