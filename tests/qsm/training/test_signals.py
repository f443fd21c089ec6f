"""The first signal asks, the second ends at once, and the handlers of before come back."""

from __future__ import annotations

import signal
import threading

import pytest

from qsm.training.signals import interrupts


class Screen:
    """Notes what it is to show."""

    stopping = "stopping in time"

    def __init__(self) -> None:
        self.warned: list[str] = []
        self.last: list[str] = []

    def warn(self, line: str) -> None:
        self.warned.append(line)

    def finish(self, lines: list[str]) -> None:
        self.last += lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends_at_once(number: signal.Signals):
    screen, abandoned, ended = Screen(), [], []
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with interrupts(screen, 1, abandoned.append, ended.append) as stop_signal:
        assert stop_signal() == 0
        signal.raise_signal(number)
        assert stop_signal() == number
        assert (abandoned, ended, screen.last) == ([], [], [])
        assert screen.warned == ["stopping in time"]
        signal.raise_signal(signal.SIGTERM)
        assert (abandoned, ended) == ([signal.SIGTERM], [128 + signal.SIGTERM])
        assert screen.last == ["Ended at once. The same command goes on from the newest checkpoint."]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_amid_a_line_of_output_is_told_at_the_next_step():
    """Python's buffers admit no second write from a handler, which must not end the training."""

    class Busy(Screen):
        is_busy = True

        def warn(self, line: str) -> None:
            if self.is_busy:
                raise RuntimeError("reentrant call")
            super().warn(line)

        def finish(self, lines: list[str]) -> None:
            raise RuntimeError("reentrant call")

    screen, abandoned, ended = Busy(), [], []
    with interrupts(screen, 1, abandoned.append, ended.append) as stop_signal:
        signal.raise_signal(signal.SIGTERM)
        screen.is_busy = False
        assert [stop_signal(), stop_signal()] == [signal.SIGTERM] * 2
        assert screen.warned == ["stopping in time"]
        signal.raise_signal(signal.SIGTERM)
        assert (abandoned, ended) == ([signal.SIGTERM], [128 + signal.SIGTERM])


def test_handlers_of_before_come_back_after_an_error():
    def fail() -> None:
        with interrupts(Screen(), 1, lambda number: None):
            inside.append(signal.getsignal(signal.SIGINT))
            raise RuntimeError

    before, inside = signal.getsignal(signal.SIGINT), []
    with pytest.raises(RuntimeError):
        fail()
    assert inside != [before]
    assert signal.getsignal(signal.SIGINT) == before


def test_beside_the_main_thread_signals_are_let_be():
    found: list[object] = []

    def other_thread() -> None:
        with interrupts(Screen(), 1, lambda number: None) as stop_signal:
            found.extend([signal.getsignal(signal.SIGINT), stop_signal()])

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT), 0]
