"""What runs have reached, gathered from their folders for `qsm report`."""

from __future__ import annotations

import collections
import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qsm.csvfile import read_csv
from qsm.errors import UserError
from qsm.files import read_json
from qsm.rundir import find_runs, load_run
from qsm.statistics import common_curve

FULL_RETURN = 1000.0
"""The most that an episode of the suite yields: returns are divided by it where tasks are put together."""


class Result(NamedTuple):
    """One run."""

    backend: str
    task: str
    agent: str  # with its label: qsm@hot
    seed: int
    returns: Mapping[int, float]  # by environment step of the evaluation: mean over its episodes
    steps_per_second: float | None  # median over the rows of metrics
    state: str
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]  # of `provenance.json`
    path: Path


def gather(folders: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """The runs at and below `folders`, and a line on each that cannot be read.

    Raises:
      UserError: the same agent, task and seed lie in two folders.
    """
    found: dict[tuple[str, str, str, int], Result] = {}
    problems = []
    for path in dict.fromkeys(path.resolve() for folder in folders for path in find_runs(folder)):
        try:
            result = _read(path)
        except UserError as error:
            problems.append(str(error))
            continue
        key = result[:4]
        if key in found:
            raise UserError(
                f"{path} and {found[key].path} are both {result.agent} on {result.task} with seed {result.seed}; "
                "name one of the folders only"
            )
        found[key] = result
    order = sorted(found.values(), key=lambda one: (one.backend, one.task, agent_order(one.agent), one.seed))
    return order, problems


def agent_order(label: str) -> tuple[int, str]:
    """QSM first, its variants beside it, then the baselines, by name."""
    return (0 if label.startswith("qsm") else 1, label)


def _read(path: Path) -> Result:
    run = load_run(path)
    config = run.config
    returns = {int(row["step"]): row["return_mean"] for row in read_csv(run.eval_csv) if "return_mean" in row}
    rates = [
        row["loop/steps_per_second"] for row in read_csv(run.train_csv) if "loop/steps_per_second" in row
    ]
    try:
        starts = read_json(path / "provenance.json")
    except UserError:
        starts = []
    return Result(
        config["backend"],
        config["task"],
        run.label,
        config["run_config"].get("seed", 0),
        returns,
        statistics.median(rates) if rates else None,
        str(run.status().get("state", "not begun")),
        config,
        [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else [],
        path,
    )


class Comparison:
    """The runs of one backend: never of two, for their scores are not comparable.

    Args:
      results: of one backend.
      step: at which runs are compared; None: the steps that most of them were to train for.

    Attributes:
      agents, tasks: in the order they are shown in.
      seeds: every seed of the grid.
    """

    def __init__(self, results: Sequence[Result], step: int | None = None) -> None:
        self.results = list(results)
        self.backend = results[0].backend
        self.agents = sorted({one.agent for one in results}, key=agent_order)
        self.tasks = sorted({one.task for one in results})
        self.seeds = sorted({one.seed for one in results})
        wanted = collections.Counter(one.config["run_config"]["steps"] for one in results)
        self.step = step if step is not None else max(wanted, key=lambda steps: (wanted[steps], steps))
        self._by_place = {(one.task, one.agent, one.seed): one for one in results}

    def of(self, task: str, agent: str) -> list[Result]:
        """The runs of `agent` on `task`, by seed."""
        return [one for seed in self.seeds if (one := self._by_place.get((task, agent, seed))) is not None]

    def score(self, one: Result) -> float | None:
        """Return at the step of comparison; None where the run has no evaluation there (yet)."""
        return one.returns.get(self.step)

    def scores(self, task: str, agent: str) -> np.ndarray:
        """Returns at the step of comparison `[n]`, of the seeds that reached it."""
        return np.array([score for one in self.of(task, agent) if (score := self.score(one)) is not None])

    def median(self, task: str, agent: str) -> Result | None:
        """The run whose score is the median over seeds, the lower one of an even number; None without scores."""
        scored = [(score, one.seed) for one in self.of(task, agent) if (score := self.score(one)) is not None]
        if not scored:
            return None
        _, seed = sorted(scored)[(len(scored) - 1) // 2]
        return self._by_place[task, agent, seed]

    def missing(self) -> list[str]:
        """Cells of the grid without a score, and how far they are."""
        lines = []
        for task in self.tasks:
            for agent in self.agents:
                for seed in self.seeds:
                    one = self._by_place.get((task, agent, seed))
                    if one is None:
                        lines.append(f"{task} {agent} seed {seed}: not trained")
                    elif self.score(one) is None:
                        last = max(one.returns, default=0)
                        lines.append(
                            f"{task} {agent} seed {seed}: evaluated up to step {last:,} ({one.state})"
                        )
        return lines

    def common_tasks(self) -> list[str]:
        """Tasks on which every agent has a score: only these are put together."""
        return [task for task in self.tasks if all(len(self.scores(task, agent)) for agent in self.agents)]

    def normalised(self, agent: str) -> dict[str, np.ndarray]:
        """Scores in [0, 1] by common task."""
        return {task: self.scores(task, agent) / FULL_RETURN for task in self.common_tasks()}

    def normalised_curves(self, agent: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Steps `[K]` that all runs with a score share, and their scores in [0, 1] by common task, `[n, K]`."""
        runs = {
            task: [one.returns for one in self.of(task, agent) if self.score(one) is not None]
            for task in self.common_tasks()
        }
        steps, values = common_curve([curve for curves in runs.values() for curve in curves])
        kept = steps <= self.step
        parts, first = {}, 0
        for task, curves in runs.items():
            parts[task] = values[first : first + len(curves), kept] / FULL_RETURN
            first += len(curves)
        return steps[kept], parts


class Reference(NamedTuple):
    """A published curve: of one algorithm on one task, from one source."""

    source: str
    algorithm: str
    task: str
    seeds: int
    action_repeat: str
    points: Mapping[int, tuple[float, float]]  # environment steps -> mean and standard deviation over seeds


REFERENCE_COLUMNS = ("source", "task", "env_steps", "algo", "mean", "std", "n_seeds", "action_repeat")


def read_reference(file: Path) -> list[Reference]:
    """Published curves from a CSV file with the columns `REFERENCE_COLUMNS`, in any order.

    Raises:
      UserError: it cannot be read, or lacks a column, or has a row that is no number where it must be.
    """
    found: dict[tuple[str, str, str], dict[int, tuple[float, float]]] = {}
    details: dict[tuple[str, str, str], tuple[int, str]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as table:
            rows = csv.DictReader(table)
            lacking = [name for name in REFERENCE_COLUMNS if name not in (rows.fieldnames or ())]
            if lacking:
                raise UserError(
                    f"--reference {file} lacks the column {lacking[0]!r}; it needs {', '.join(REFERENCE_COLUMNS)}"
                )
            for row in rows:
                key = (row["source"], row["algo"], row["task"])
                point = float(row["mean"]), float(row["std"] or "nan")
                found.setdefault(key, {})[int(row["env_steps"])] = point
                details[key] = int(row["n_seeds"]), row["action_repeat"]
    except OSError as error:
        raise UserError(f"--reference {file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"--reference {file}, line {rows.line_num}: {error}") from error  # type: ignore[possibly-undefined]
    return [
        Reference(source, algorithm, task, *details[source, algorithm, task], dict(sorted(points.items())))
        for (source, algorithm, task), points in found.items()
    ]
