"""Where the numbers of a run go: CSV files, TensorBoard and Weights & Biases.

The CSV files are the record: complete, exact on resume and never given up on. TensorBoard and wandb show the
same rows; whatever befalls them is told in one line and training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal

from qsm.record.run_folder import RunDir
from qsm.record.sinks.tensorboard import TensorBoardSink
from qsm.record.sinks.wandb_sink import WandbSink
from qsm.record.tables import EPISODE_COLUMN, CsvSink, WaitingRow, Warn

Phase = Literal["train", "eval"]
_LOGGER = logging.getLogger(__name__)


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
          values: metrics by name (`critic/td_error_abs_mean`), with or without the phase before it.
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
