"""What is not finite in a run that diverged: where, since when, and all of it on disk to be looked at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qsm.base.files import replace_file, write_json
from qsm.checkpoints.leaves import named_leaves
from qsm.data.replay import ROW_FIELDS, Rows

ROWS_NAMED = 100
"""Rows of the replay buffer that a report names at most."""


class Diagnosis(NamedTuple):
    """What was found in the state of one run at the step where it was frozen."""

    step: int
    num_updates: int
    first_bad_update: int | None  # counted from 1; None where no update's metrics were at fault
    metrics: dict[str, str]  # those that are not finite, as text: JSON knows no NaN
    arrays: dict[str, dict[str, int]]  # by path: numbers that are NaN, infinite, and all
    rows: list[dict[str, Any]]  # of the replay buffer: number, environment, fields
    cause: str = ""  # where it is known, and no number that is not finite

    @property
    def modules(self) -> list[str]:
        """The parts of the agent's state that hold a number that is not finite."""
        return list(dict.fromkeys(name.partition(".")[0] for name in self.arrays))

    def describe(self) -> str:
        """For a person, in one line."""
        if self.cause:
            return self.cause
        name, value = next(iter(self.metrics.items()), ("a number", "not finite"))
        since = f" since update {self.first_bad_update:,}" if self.first_bad_update is not None else ""
        where = f"; not finite: {', '.join(self.modules)}" if self.arrays else "; all parameters are finite"
        if self.rows:
            first = self.rows[0]
            fields = ", ".join(first["fields"])
            where += f"; row {first['row']:,} of the replay buffer is not finite ({fields})"
        return f"{name} is {value}{since}{where}"


def diagnose(
    step: int,
    num_updates: int,
    bad_updates: int,
    metrics: Mapping[str, float],
    agent: Any,
    rows: Rows,
) -> Diagnosis:
    """Looks through the state of one run.

    Args:
      bad_updates: from the first update whose metrics were not finite to the last; 0 for none.
      metrics: those that are not finite.
      agent: learned state, on the host.
      rows: of the replay buffer, all of them.
    """
    arrays = {}
    for name, leaf in named_leaves(agent).items():
        leaf = np.asarray(leaf)
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            nan, infinite = int(np.isnan(leaf).sum()), int(np.isinf(leaf).sum())
            arrays[name] = {"nan": nan, "infinite": infinite, "numbers": int(leaf.size)}
    age = np.arange(len(rows.step_type))[:, None]
    bad = {}
    for name in ROW_FIELDS:
        values = getattr(rows, name)
        if np.issubdtype(values.dtype, np.floating):
            wrong = ~np.isfinite(values).reshape(*values.shape[:2], -1).all(-1)
            bad[name] = wrong & (age < rows.size)
    where = np.argwhere(np.any(list(bad.values()), axis=0))[:ROWS_NAMED]
    found = [
        {
            "row": int(rows.first[env] + place),
            "environment": int(env),
            "fields": [name for name, wrong in bad.items() if wrong[place, env]],
        }
        for place, env in where
    ]
    first = num_updates - bad_updates + 1 if bad_updates else None
    texts = {name: str(value) for name, value in metrics.items()}
    return Diagnosis(step, num_updates, first, texts, arrays, found)


def write(
    folder: Path, diagnosis: Diagnosis, agent: Any, rows: Rows, environment: Mapping[str, np.ndarray]
) -> None:
    """Writes `report.json` and `state.npz` (`agent/...`, `replay/...`, `environment/...`).

    Raises:
      OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"agent/{name}": np.asarray(leaf) for name, leaf in named_leaves(agent).items()}
    arrays |= {f"replay/{name}": value for name, value in rows.arrays().items()}
    arrays |= {f"environment/{name}": np.asarray(value) for name, value in environment.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    replace_file(folder / "state.npz", file.getvalue())
    write_json(folder / "report.json", diagnosis._asdict())
