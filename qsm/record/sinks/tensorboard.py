"""Rows of metrics in TensorBoard's event files."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qsm.base.errors import first_line
from qsm.record.tables import Warn

FIRST_RETRY = 10
"""Rows TensorBoard misses after its first failure before it is tried again; doubled at each failure."""


def _messages(name: str) -> Any:
    """TensorBoard's protocol messages, which are made at import and so unknown to a type checker."""
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")


class TensorBoardSink:
    """Scalars in TensorBoard's event files.

    Written through tensorboardX's record writer and not its `SummaryWriter`, whose thread dies at the first
    failed write (a full disk) and then blocks training for ever, and which overwrites the former file when a
    run resumes within a second.
    """

    def __init__(self, folder: Path, keep_until: int | None, warn: Warn) -> None:
        self._folder = folder
        self._warn = warn
        self._writer: Any = None
        self._skip = 0
        self._next_skip = FIRST_RETRY
        self._warned = False
        self._first_dropped: int | None = 0 if keep_until is None else keep_until + 1
        self._guard(self._open)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one event with all of `values`, by full name."""
        if self._skip:
            self._skip -= 1
            return
        self._guard(functools.partial(self._write, step, values))

    def close(self) -> None:
        if self._writer is not None:
            self._guard(self._writer.close)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # no fault of a mere view of the numbers may end the training
            if not self._warned:
                self._warn(
                    f"TensorBoard misses rows: {first_line(error)}. Training goes on, train.csv and eval.csv "
                    "have every row; it is tried again later."
                )
            self._warned = True
            # What follows a torn record cannot be read, so the next attempt begins another file.
            with contextlib.suppress(Exception):
                if self._writer is not None:
                    self._writer.close()
            self._writer = None
            self._skip, self._next_skip = self._next_skip, 2 * self._next_skip

    def _open(self) -> None:
        from tensorboardX.record_writer import RecordWriter

        event_pb2 = _messages("event")
        self._folder.mkdir(parents=True, exist_ok=True)
        # Readers take the files in the order of their names, so each is later than those before it, even
        # where the clock went backwards.
        former = [re.match(r"events\.out\.tfevents\.(\d+)", path.name) for path in self._folder.iterdir()]
        number = max([int(time.time()), *(int(match[1]) + 1 for match in former if match)])
        self._writer = RecordWriter(str(self._folder / f"events.out.tfevents.{number:010d}.qsm"))
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if self._first_dropped is not None and any(former):
            # Readers then forget what earlier files hold from this step on, and the curve does not fork.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(wall_time=time.time(), step=self._first_dropped, session_log=start))
        self._first_dropped = None

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            self._open()
        event_pb2, summary_pb2 = _messages("event"), _messages("summary")
        summary = summary_pb2.Summary(
            value=[summary_pb2.Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        )
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()
