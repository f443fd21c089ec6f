"""Where the numbers of a run go: CSV files, TensorBoard and Weights & Biases.

The CSV files are the record: complete, exact on resume and never given up on. TensorBoard and wandb show the
same rows; whatever befalls them is told in one line and training goes on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from qsm.base.errors import first_line
from qsm.record.run_folder import RunDir
from qsm.record.tables import CsvSink, WaitingRow, Warn, read_csv
from qsm.record.wandb_sink import WandbSink

__all__ = ["MetricWriter", "Phase", "TensorBoardSink", "read_csv"]

Phase = Literal["train", "eval"]
_LOGGER = logging.getLogger(__name__)

FIRST_RETRY = 10
"""Rows TensorBoard misses after its first failure before it is tried again; doubled at each failure."""
EPISODE_COLUMN = re.compile(r"return_\d+")
"""Returns of single episodes: in `eval.csv` only, for as curves they would drown the others."""


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


class MetricWriter:
    """Writes rows of scalars to every sink of a run. A context manager.

    Args:
      run: the run's folder.
      wandb_mode: `offline`, `online` or `disabled` (wandb is not even imported).
      resume_step: step of the checkpoint that training goes on from: rows up to and including it are kept,
        later ones dropped, for they come again. None starts afresh and drops every row.
      warn: told in one line of each sink that fails.
      waiting: rows, by phase, that waited for their CSV file when the checkpoint was saved; it may lack them.

    Raises:
      UserError: a CSV file that is there is damaged or cannot be written.
    """

    def __init__(
        self,
        run: RunDir,
        wandb_mode: Literal["offline", "online", "disabled"] = "offline",
        resume_step: int | None = None,
        warn: Warn = _LOGGER.warning,
        waiting: Mapping[str, Sequence[WaitingRow]] | None = None,
    ) -> None:
        self._csv: dict[Phase, CsvSink] = {
            "train": CsvSink(run.train_csv, resume_step, warn),
            "eval": CsvSink(run.eval_csv, resume_step, warn),
        }
        self._tensorboard = TensorBoardSink(run.tensorboard, resume_step, warn)
        self._wandb: WandbSink | None = None
        if wandb_mode != "disabled":
            self._wandb = WandbSink(run, wandb_mode, warn)
        for phase, sink in self._csv.items():
            for step, values in (waiting or {}).get(phase, ()):
                if step > sink.last_step:
                    self.write(phase, step, values)

    def waiting(self) -> dict[str, list[WaitingRow]]:
        """Rows, by phase, that have not reached their CSV file: a checkpoint keeps them."""
        return {phase: rows for phase, sink in self._csv.items() if (rows := sink.waiting())}

    def write(self, phase: Phase, step: int, values: Mapping[str, float]) -> None:
        """Writes one row, at once.

        Args:
          phase: `train` or `eval`; its rows come in the order of their steps.
          step: environment step.
          values: metrics by name (`critic/td_error_abs_mean`), with or without the phase before it. Their
            order is that of the columns.
        """
        row = {name.removeprefix(f"{phase}/"): value for name, value in values.items()}
        self._csv[phase].write(step, row)
        curves = {
            f"{phase}/{name}": float(x) for name, x in row.items() if not EPISODE_COLUMN.fullmatch(name)
        }
        self._tensorboard.write(step, curves)
        # wandb has the rows that the file had when training began, those after the checkpoint included.
        if self._wandb is not None and step > self._csv[phase].found_step:
            self._wandb.write(step, curves)

    def close(self, failed: bool = False) -> None:
        """Writes what waits and ends every sink; wandb lists the run as failed where `failed`."""
        for sink in self._csv.values():
            sink.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.close(exit_code=int(failed))

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)
