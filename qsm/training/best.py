"""The best evaluations of the runs of a group, those of before a resumption included."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qsm.record.tables import WaitingRow, read_csv

Evaluations = Mapping[int, float]
"""Mean return of each evaluation of a run, by its step."""


def read_evaluations(table: Path, waiting: Sequence[WaitingRow] = ()) -> Evaluations:
    """The evaluations in `eval.csv` at `table` and those that wait for it; none where there is no such file.

    Raises:
      UserError: the file cannot be read.
    """
    rows = read_csv(table) if table.exists() else []
    rows += [{"step": step, **values} for step, values in waiting]
    return {int(row["step"]): row["return_mean"] for row in rows if "return_mean" in row}


class BestReturns:
    """The best mean return of each run so far.

    Args:
      evaluations: those that were made before, by the index of their run.

    Attributes:
      shown: the best of one step's evaluations, as the mean over runs; -inf where there is none.
    """

    def __init__(self, evaluations: Mapping[int, Evaluations]) -> None:
        self._best = {i: _largest(returns.values()) for i, returns in evaluations.items()}
        by_step: dict[int, list[float]] = {}
        for returns in evaluations.values():
            for step, value in returns.items():
                by_step.setdefault(step, []).append(value)
        self.shown = _largest(math.fsum(values) / len(values) for values in by_step.values())

    def improves(self, index: int, return_mean: float) -> bool:
        """Whether run `index` was never as good as `return_mean`, which is then its best."""
        if not return_mean > self._best.get(index, -math.inf):
            return False
        self._best[index] = return_mean
        return True


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=-math.inf)
