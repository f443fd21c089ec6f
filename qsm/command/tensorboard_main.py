"""TensorBoard as `qsm dashboard` starts it: without the notices of its start, and with every warning and error."""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

NOTICES = (
    # It reads the runs of qsm without.
    re.compile(r"TensorFlow installation not found - running with reduced feature set\."),
    re.compile(r"NOTE: Using experimental fast data loading logic\. To disable, pass\s.*", re.DOTALL),
    # `qsm dashboard` has said where, in the address that groups the seeds.
    re.compile(r"TensorBoard \S+ at \S+ \(Press CTRL\+C to quit\)"),
)
"""What is written whole and is no news; another wording is shown."""


class WithoutNotices:
    """A text stream that leaves out the notices, with the ends of their lines; all else passes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drops_end = False

    def write(self, text: str) -> int:
        is_end, self._drops_end = self._drops_end and text == "\n", False
        if is_end:
            return len(text)
        if any(notice.fullmatch(text.strip()) for notice in NOTICES):
            self._drops_end = not text.endswith("\n")
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run() -> None:
    """Serves until it is ended."""
    from tensorboard.main import run_main

    sys.stderr = WithoutNotices(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
    run_main()


if __name__ == "__main__":
    run()
