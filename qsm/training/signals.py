"""Ctrl-C and SIGTERM: the first asks a training to stop and save, a second ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

POLL_INTERVAL = {"dm_control": 64, "mjx": 1}
"""How often several processes agree on whether to stop: every so many ticks, or dispatches of the device loop."""


class Console(Protocol):
    """Where a person reads what comes of a signal."""

    @property
    def stopping(self) -> str:
        """What the first signal comes to, in words."""
        ...

    def warn(self, line: str) -> None: ...

    def finish(self, lines: list[str]) -> None: ...


@contextmanager
def interrupts(
    console: Console,
    poll_interval: int,
    abandon: Callable[[int], None],
    end_process: Callable[[int], Any] = os._exit,
) -> Iterator[Callable[[], int]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step under way; a second one ends at once.

    At once means that nothing is waited for, neither a drive nor wandb: `abandon` is given the signal, and the process
    ends with the status that shells give it.

    Args:
      poll_interval: calls of the function between two exchanges of several processes.

    Yields:
      A function that returns the signal's number, 0 before it; the same on all processes.
    """
    asked = 0
    agreed = 0  # by all processes
    calls = 0

    is_told = True

    def ask(number: int, frame: Any) -> None:
        nonlocal asked, is_told
        if asked:
            abandon(number)
            # A signal may come amid a line that is being written, which admits no other.
            with contextlib.suppress(RuntimeError):
                console.finish(["Ended at once. The same command goes on from the newest checkpoint."])
            end_process(128 + number)
        asked = number
        is_told = False
        with contextlib.suppress(RuntimeError):
            console.warn(console.stopping)
            is_told = True

    def stop_signal() -> int:
        nonlocal agreed, calls, is_told
        if not is_told:
            is_told = True
            console.warn(console.stopping)
        if jax.process_count() == 1:
            return asked
        # All processes must stop at the same step, and a signal reaches them at different ones.
        calls += 1
        if not agreed and calls % poll_interval == 0:
            agreed = int(np.max(multihost_utils.process_allgather(np.array(asked))))
        return agreed

    if threading.current_thread() is not threading.main_thread():
        yield stop_signal  # signals can only be handled in the main thread
        return
    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_signal
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
