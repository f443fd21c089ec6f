"""`qsm runs`: what was trained, how far it came, and why it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qsm.base.errors import UserError, printable
from qsm.base.text import decimal
from qsm.options.saved import check_saved
from qsm.record.find import find_runs, load_run
from qsm.record.status import read_progress, read_status


class Row(NamedTuple):
    """One run, as texts."""

    task: str
    agent: str  # with its label
    seed: str
    backend: str
    progress: str
    last_return: str
    state: str
    path: str


def rows(folder: Path) -> list[Row]:
    """The runs at and below `folder`, by name. A damaged one is listed with what is wrong."""
    # A name on disk may hold line ends, tabs, or bytes that are no text.
    return [Row(*map(printable, _row(path))) for path in find_runs(folder)]


def _row(path: Path) -> Row:
    try:
        run = load_run(path)
        read_status(path, strict=True)  # what is no JSON would look like a run that has not begun
    except (UserError, OSError) as error:
        return Row("", "", "", "", "", "", f"damaged: {' '.join(str(error).split())}", str(path))
    run_id, progress = run.id, read_progress(path)
    last = progress.last_return
    return Row(
        run_id.task,
        run_id.label,
        str(run_id.seed),
        run_id.backend,
        "" if progress.state == "not begun" else _share(progress.step, run.config["run_config"].get("steps")),
        "" if last is None else decimal(last),
        progress.describe() + _fault(run.config),
        str(path),
    )


def _share(step: int, steps: Any) -> str:
    if not isinstance(steps, int) or steps < 1:
        return ""
    return f"{step:,} of {steps:,} ({min(step / steps, 1):.0%})"


def _fault(config: Mapping[str, Any]) -> str:
    """`; why` where this version of qsm can do nothing with a run of `config`; empty where it can."""
    try:
        check_saved(config)
    except ValueError as error:
        return "; " + " ".join(str(error).split())
    return ""
