"""Published learning curves: what is drawn beside ours, and what our baselines are held against."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agents import AGENTS
from qsm.base.errors import UserError

COLUMNS = ("source", "task", "env_steps", "algo", "mean", "std", "n_seeds", "action_repeat")
SEEDS = 3
"""Published points of fewer seeds are neither drawn nor compared with."""
COUNTERPARTS = {name: entry.published for name, entry in AGENTS.items() if entry.published}
"""Our baselines, and the algorithms of the file that they are implementations of."""
DRAWN = {name.upper(): names for name, names in COUNTERPARTS.items()} | {"SimbaV2": ("SimbaV2(utd2)",)}
"""What is drawn under which name: the baselines, and a strong recent method."""
FLOOR_STEP = 100_000
"""The earliest step at which most sources have a point."""


class Point(NamedTuple):
    """What one source has at one step."""

    mean: float
    std: float  # sample standard deviation over seeds; NaN where none is given
    seeds: int

    @property
    def low(self) -> float:
        """mean - std, or the mean where no std is given."""
        return self.mean - (0 if math.isnan(self.std) else self.std)

    @property
    def high(self) -> float:
        """mean + std, or the mean where no std is given."""
        return self.mean + (0 if math.isnan(self.std) else self.std)


class Reference(NamedTuple):
    """A published curve: of one algorithm on one task, from one source."""

    source: str
    algorithm: str
    task: str
    action_repeat: str
    points: Mapping[int, Point]  # by environment step

    def __str__(self) -> str:
        """For a caption: the source, its seeds and its action repeat."""
        counts = sorted({point.seeds for point in self.points.values()})
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        repeat = self.action_repeat if self.action_repeat.isdigit() else "not known"
        return f"{self.source} (n = {seeds}, action repeat {repeat})"


def read_reference(file: Path) -> list[Reference]:
    """Published curves from a CSV file with the columns `COLUMNS`, in any order.

    Raises:
      UserError: it cannot be read, or lacks a column, or has a row that is no number where it must be.
    """
    found: dict[tuple[str, str, str, str], dict[int, Point]] = {}
    line = 1
    try:
        with file.open(newline="", encoding="utf-8") as table:
            rows = csv.DictReader(table)
            lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if lacking:
                raise UserError(
                    f"--reference {file} lacks the column {lacking[0]!r}; it needs {', '.join(COLUMNS)}"
                )
            for row in rows:
                line = rows.line_num
                key = (row["source"], row["algo"], row["task"], row["action_repeat"])
                point = Point(float(row["mean"]), float(row["std"] or "nan"), int(row["n_seeds"]))
                found.setdefault(key, {})[int(row["env_steps"])] = point
    except OSError as error:
        raise UserError(f"--reference {file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"--reference {file}, line {line}: {error}") from error
    return [Reference(*key, dict(sorted(points.items()))) for key, points in found.items()]


def beside(published: Iterable[Reference], task: str, last: int) -> dict[str, list[Reference]]:
    """What is drawn of `published` beside our curves of `task`: points of enough seeds up to the step `last`.

    Returns:
      By its name in `DRAWN`; nothing that has no such point.
    """
    found: dict[str, list[Reference]] = {}
    for name, algorithms in DRAWN.items():
        for one in published:
            if one.task != task or one.algorithm not in algorithms:
                continue
            points = {s: point for s, point in one.points.items() if s <= last and point.seeds >= SEEDS}
            if points:
                found.setdefault(name, []).append(one._replace(points=points))
    return found


def has_points(published: Iterable[Reference], step: int) -> bool:
    """Whether a counterpart of one of our baselines has a point at `step`."""
    algorithms = [name for names in COUNTERPARTS.values() for name in names]
    return any(step in one.points for one in published if one.algorithm in algorithms)


class Floor(NamedTuple):
    """The lowest mean - std among the sources that count."""

    reference: Reference
    point: Point

    @property
    def value(self) -> float:
        return self.point.low


def floor_of(published: Sequence[Reference], agent: str, task: str, step: int) -> Floor | None:
    """What `agent`, a key of `COUNTERPARTS`, is held against on `task` at `step`; None: nothing is published.

    Of sources with `SEEDS` seeds or more and a standard deviation: those of action repeat 1, and only where there are
    none the others.
    """
    found = [
        Floor(one, one.points[step])
        for one in published
        if one.task == task and one.algorithm in COUNTERPARTS[agent] and step in one.points
    ]
    found = [one for one in found if one.point.seeds >= SEEDS and not math.isnan(one.point.std)]
    alike = [one for one in found if one.reference.action_repeat == "1"]
    return min(alike or found, key=lambda one: one.value, default=None)
