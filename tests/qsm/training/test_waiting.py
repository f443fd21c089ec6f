"""Beside the main thread a program runs to its end, and signals are heard meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pytest

from qsm.training.waiting import beside


def test_what_a_program_returns_or_raises_comes_back() -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    assert beside(lambda: 3, lambda: None) == 3
    with pytest.raises(RuntimeError, match="no compiler"):
        beside(fail, lambda: None)


def test_a_signal_is_heard_while_the_program_runs() -> None:
    heard = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        heard.set()

    former = signal.signal(signal.SIGUSR1, hear)
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(len(ticks))
        if len(ticks) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    try:
        # Ends only when the handler has run, which it does in the main thread.
        assert beside(lambda: heard.wait(60), tick, interval=0.001)
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert len(ticks) >= 2


def test_beside_the_main_thread_it_runs_where_it_is() -> None:
    found: list[threading.Thread] = []

    def other_thread() -> None:
        found.append(beside(threading.current_thread, lambda: None))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert found == [thread]
