"""What takes long in one piece, a compiler most of all, beside the main thread, which goes on to hear signals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")

TICK_SECONDS = 1.0


def beside(program: Callable[[], Result], tick: Callable[[], None], interval: float = TICK_SECONDS) -> Result:
    """What `program` returns or raises, run in a thread of its own while this one waits for it.

    A handler of signals runs in the main thread alone, between two operations of Python: never while the compiler is at
    work there.

    Args:
      tick: called every `interval` seconds of waiting.
    """
    if threading.current_thread() is not threading.main_thread():
        return program()  # no signal is handled here
    with ThreadPoolExecutor(1, "beside") as threads:
        future = threads.submit(program)
        while not wait([future], interval).done:
            tick()
        return future.result()
