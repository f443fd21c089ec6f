"""What runs have reached, gathered from their folders for `qsm report`."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from agents import AGENTS, Family
from envs.tasks import full_return
from qsm.base.errors import UserError
from qsm.base.files import read_json
from qsm.base.text import count
from qsm.record.find import find_runs, load_run
from qsm.record.status import read_progress
from qsm.record.tables import read_csv
from qsm.report.intervals import common_curve


class Result(NamedTuple):
    """One run."""

    backend: str
    task: str
    agent: str  # with its label: qsm@hot
    seed: int
    returns: Mapping[int, float]  # by environment step of the evaluation: mean over its episodes
    hours: Mapping[int, float]  # of training and evaluation, by step of the evaluation that they end with
    steps_per_second: float | None  # median over the rows of metrics
    state: str  # as `qsm runs` says it, and why it failed
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]  # of `provenance.json`
    path: Path

    @property
    def hardware(self) -> str:
        """What it was trained on, each machine once."""
        kinds = []
        for start in self.starts:
            cores = start.get("cores")
            parts = [start.get("device"), start.get("processor")]
            parts.append(count(cores, "core") if isinstance(cores, int) and cores else None)
            kinds.append(", ".join(str(part) for part in parts if part))
        return ", then ".join(dict.fromkeys(kinds)) or "not recorded"


def gather(folders: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """The runs at and below `folders`, and a line on each that cannot be read.

    Raises:
      UserError: the same agent, task and seed lie in two folders.
    """
    found: dict[tuple[str, str, str, int], Result] = {}
    problems = []
    for path in {path.resolve(): path for folder in folders for path in find_runs(folder)}.values():
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


def finished(
    results: Iterable[Result], tasks: Sequence[str], labels: Sequence[str], step: int, folders: Sequence[Path]
) -> dict[tuple[str, str], list[Result]]:
    """The runs on dm_control of every agent on every task that were evaluated at `step`, by (task, agent).

    Raises:
      UserError: there is none of one; the line has the command that makes them.
    """
    found: dict[tuple[str, str], list[Result]] = {
        (task, label): [] for task, label in itertools.product(tasks, labels)
    }
    for one in results:
        if one.backend == "dm_control" and step in one.returns and (one.task, one.agent) in found:
            found[one.task, one.agent].append(one)
    if missing := [place for place, runs in found.items() if not runs]:
        task, agent = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        of_tasks, of_labels = (list(dict.fromkeys(names)) for names in zip(*missing, strict=True))
        raise UserError(
            f"no finished run of {agent} on {task}{more} below {', '.join(map(str, folders))}: make them with "
            f"`{bench_command(of_tasks, of_labels, step)}`"
        )
    return found


def bench_command(tasks: Sequence[str], labels: Sequence[str], step: int) -> str:
    """The command that trains `labels` on `tasks` as the comparisons of docs/paper.md have it."""
    steps = f"{step // 1000}e3" if step % 1000 == 0 else str(step)
    return (
        f"qsm bench {' '.join(tasks)} --agents {' '.join(labels)} --steps {steps} --seeds 3 "
        "--out results/agents --wandb disabled"
    )


def range_of(returns: np.ndarray) -> dict[str, float]:
    """Mean, lowest and highest over the seeds, `[n]`."""
    return {
        "return_mean": float(returns.mean()),
        "return_low": float(returns.min()),
        "return_high": float(returns.max()),
    }


def agent_order(label: str) -> tuple[int, str]:
    """By family, each agent with its variants beside it; agents of another version come last."""
    families, name = list(get_args(Family)), label.partition("@")[0]
    return (families.index(AGENTS[name].family) if name in AGENTS else len(families), label)


def _read(path: Path) -> Result:
    run = load_run(path)
    config, run_id = run.config, run.id
    # A run that has only begun has no tables yet.
    tables = [read_csv(file) if file.exists() else [] for file in (run.train_csv, run.eval_csv)]
    training, evaluations = tables
    returns = {int(row["step"]): row["return_mean"] for row in evaluations if "return_mean" in row}
    rates = [row["loop/steps_per_second"] for row in training if "loop/steps_per_second" in row]
    try:
        starts = read_json(path / "provenance.json")
    except UserError:
        starts = []
    return Result(
        run_id.backend,
        run_id.task,
        run_id.label,
        run_id.seed,
        returns,
        hours_of(training, evaluations),
        statistics.median(rates) if rates else None,
        read_progress(path).describe(),
        config,
        [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else [],
        path,
    )


def hours_of(
    training: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]
) -> dict[int, float]:
    """Hours of training and evaluation up to the end of each evaluation, from the rows of a run's two tables.

    An interval without a rate, the first after each start, counts at the rate of the next one that has it, or at the
    last. An evaluation that is the first after a start, and waits for its program, counts at most like the median of
    the others. Empty where rates or the seconds of evaluations are not recorded; ends with the training metrics.
    """
    known = [row["loop/steps_per_second"] for row in training if row.get("loop/steps_per_second")]
    if not known or any("seconds" not in row for row in evaluations):
        return {}
    steps, seconds, passed, starts = [0.0], [0.0], 0, []
    for row in training:
        if not row.get("loop/steps_per_second"):
            # Behind the evaluation at a checkpoint's step; the first start is before that at 0.
            starts.append(steps[-1] if len(steps) > 1 else -1.0)
        rate = known[min(passed, len(known) - 1)]
        passed += bool(row.get("loop/steps_per_second"))
        seconds.append(seconds[-1] + (row["step"] - steps[-1]) / rate)
        steps.append(row["step"])
    firsts = {
        min((row["step"] for row in evaluations if row["step"] > start), default=None) for start in starts
    }
    usual = [row["seconds"] for row in evaluations if row["step"] not in firsts]
    most = statistics.median(usual) if usual else math.inf
    spent = itertools.accumulate(
        min(row["seconds"], most) if row["step"] in firsts else row["seconds"] for row in evaluations
    )
    return {
        int(row["step"]): (float(np.interp(row["step"], steps, seconds)) + evaluating) / 3600
        for row, evaluating in zip(evaluations, spent, strict=True)
        if row["step"] <= steps[-1]
    }


class Comparison:
    """The runs of one backend: never of two, for their scores are not comparable.

    Args:
      results: of one backend; also of runs that were not evaluated yet.
      step: at which runs are compared; None: of the steps that runs were to train for, that at which most of them have
        an evaluation, and the largest of several.
      num_seeds: expected of each agent on each task; None: those that some agent has on some task.

    Attributes:
      agents, tasks: in the order they are shown in.
      seeds: every seed of the grid.
    """

    def __init__(
        self, results: Sequence[Result], step: int | None = None, num_seeds: int | None = None
    ) -> None:
        self.results = list(results)
        self.backend = results[0].backend
        self.agents = sorted({one.agent for one in results}, key=agent_order)
        self.tasks = sorted({one.task for one in results})
        self.seeds = _expected({one.seed for one in results}, num_seeds or 0)
        self.lengths = sorted({one.config["run_config"]["steps"] for one in results})
        self.step = step if step is not None else max(self.lengths, key=self._evaluated_at)
        self._by_place = {(one.task, one.agent, one.seed): one for one in results}

    def _evaluated_at(self, step: int) -> tuple[int, int]:
        return sum(step in one.returns for one in self.results), step

    @property
    def compared(self) -> list[str]:
        """The agents that have a score."""
        return [agent for agent in self.agents if any(len(self.scores(task, agent)) for task in self.tasks)]

    def last_step(self, task: str) -> int:
        """The last step at which a run on `task` was evaluated."""
        return max((step for one in self.results if one.task == task for step in one.returns), default=0)

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
        for task, agent, seed in itertools.product(self.tasks, self.agents, self.seeds):
            one = self._by_place.get((task, agent, seed))
            if one is None:
                lines.append(f"{task} {agent} seed {seed}: not trained")
            elif self.score(one) is None:
                last = f"evaluated up to step {max(one.returns):,}" if one.returns else "no evaluation yet"
                lines.append(f"{task} {agent} seed {seed}: {last} ({one.state})")
        return lines

    def alone(self) -> list[str]:
        """Agents and tasks with the score of one seed only, which has no interval."""
        pairs = itertools.product(self.tasks, self.agents)
        return [f"{agent} on {task}" for task, agent in pairs if len(self.scores(task, agent)) == 1]

    def few(self, enough: int) -> list[str]:
        """Each agent with fewer scores than `enough` on a task, and how many where; those with none are apart."""
        lines = []
        for agent in self.agents:
            numbers = {task: len(self.scores(task, agent)) for task in self.tasks}
            found = [f"{number} on {task}" for task, number in numbers.items() if 0 < number < enough]
            lines += [f"{agent}: {', '.join(found)}"] if found else []
        return lines

    def without_scores(self) -> list[str]:
        """Agents and tasks without a score."""
        pairs = itertools.product(self.agents, self.tasks)
        return [f"{agent} on {task}" for agent, task in pairs if not len(self.scores(task, agent))]

    def common_tasks(self) -> list[str]:
        """Tasks on which every agent that has a score has one: only these are put together."""
        agents = self.compared
        return [task for task in self.tasks if agents and all(len(self.scores(task, a)) for a in agents)]

    @property
    def score_name(self) -> str:
        """What returns are where tasks are put together: divided by the most that an episode of their task yields."""
        most = {full_return(task) for task in self.common_tasks() or self.tasks}
        if len(most) > 1:
            return "return / most of its task"
        return "return" if most == {1.0} else f"return / {most.pop():.0f}"

    def normalized(self, agent: str) -> dict[str, np.ndarray]:
        """Scores, 1 at most, by common task."""
        return {task: self.scores(task, agent) / full_return(task) for task in self.common_tasks()}

    def normalized_curves(self, agent: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Steps `[K]` that all runs with a score share, and their scores, 1 at most, by common task, `[n, K]`."""
        steps, curves = self._curves(agent, lambda one: one.returns)
        return steps, {task: values / full_return(task) for task, values in curves.items()}

    def hours(self, agent: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `normalized_curves`, of the hours up to the end of each evaluation."""
        return self._curves(agent, lambda one: one.hours)

    def _curves(
        self, agent: str, curve: Callable[[Result], Mapping[int, float]]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        runs = {
            task: [curve(one) for one in self.of(task, agent) if self.score(one) is not None]
            for task in self.common_tasks()
        }
        steps, values = common_curve([one for curves in runs.values() for one in curves])
        parts, first = {}, 0
        for task, curves in runs.items():
            parts[task] = values[first : first + len(curves)]
            first += len(curves)
        return steps, parts


def _expected(found: set[int], number: int) -> list[int]:
    """The seeds that were found, and those after the first of them that make them `number`."""
    others = (seed for seed in itertools.count(min(found)) if seed not in found)
    return sorted(found | set(itertools.islice(others, max(number - len(found), 0))))
