"""`qsm bench`: a grid of agents, tasks and seeds in one folder, of which only what is missing is trained.

Every cell is a run as `qsm train` makes it, and can be resumed, evaluated and exported like any other. The grid keeps
no record beside the runs: what is done is read from them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import agents
from qsm.errors import UserError, nearest
from qsm.options import Parser
from qsm.rundir import load_run, run_path

State = Literal["missing", "running", "finished", "stopped", "failed"]


class AgentSpec(NamedTuple):
    """An agent, or a variant of one: `qsm`, or `qsm@hot:score_scale=120:discount=0.98`."""

    agent: str
    name: str | None
    options: tuple[str, ...]  # as `qsm train` takes them

    @property
    def label(self) -> str:
        """As its runs are called: AGENT[@NAME]."""
        return self.agent if self.name is None else f"{self.agent}@{self.name}"


class Cell(NamedTuple):
    """One run of the grid."""

    spec: AgentSpec
    task: str
    seed: int
    path: Path


class Job(NamedTuple):
    """One training: a cell, or several seeds of an agent and task in one program."""

    cells: tuple[Cell, ...]
    arguments: tuple[str, ...]  # of `qsm`

    @property
    def log(self) -> Path:
        """What it prints goes there."""
        path = self.cells[0].path
        return path.parent / f"{path.name}.output.txt"


class Grid(NamedTuple):
    """What is trained, on what, and for how long."""

    specs: Sequence[AgentSpec]
    tasks: Sequence[str]
    seeds: Sequence[int]
    steps: int
    folder: Path
    backend: str = "dm_control"
    options: Sequence[str] = ()  # of every `qsm train`

    def cells(self) -> list[Cell]:
        """The cells, seed by seed, so that every comparison is there early and grows.

        Raises:
          UserError: two agents have the same label.
        """
        labels = [spec.label for spec in self.specs]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise UserError(f"--agents names '{twice}' twice; give one of them another name: {twice}@NAME")
        return [
            Cell(spec, task, seed, run_path(self.backend, task, spec.agent, seed, spec.name, self.folder))
            for seed in self.seeds
            for task in self.tasks
            for spec in self.specs
        ]

    def jobs(self, cells: Sequence[Cell], together: int = 1) -> list[Job]:
        """The trainings of `cells`, in their order.

        Args:
          together: seeds of one agent and task that are trained in one program at most; they have consecutive numbers
            and have been trained equally far, as a group that goes on must.
        """
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells:
            groups.setdefault((cell.spec.label, cell.task), []).append(cell)
        chunks = [
            run[i : i + together]
            for group in groups.values()
            for run in self._runs(group)
            for i in range(0, len(run), together)
        ]
        order = {cell: place for place, cell in enumerate(cells)}
        return [self._job(chunk) for chunk in sorted(chunks, key=lambda chunk: order[chunk[0]])]

    def _runs(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Cells with consecutive seeds that are equally far."""
        runs: list[list[Cell]] = []
        before: tuple[int, int] | None = None
        for cell in sorted(cells, key=lambda cell: cell.seed):
            here = cell.seed, progress_of(cell, self.steps).step
            if before is not None and here == (before[0] + 1, before[1]):
                runs[-1].append(cell)
            else:
                runs.append([cell])
            before = here
        return runs

    def _job(self, cells: Sequence[Cell]) -> Job:
        spec, task, seed, _ = cells[0]
        arguments = ["train", spec.agent, task, *spec.options, f"--seed={seed}", f"--steps={self.steps}"]
        arguments += [f"--num-seeds={len(cells)}"] if len(cells) > 1 else []
        arguments += [f"--backend={self.backend}", f"--runs={self.folder}"]
        arguments += [f"--name={spec.name}"] if spec.name else []
        return Job(tuple(cells), (*arguments, "--extend-steps", *self.options))


class Progress(NamedTuple):
    """Where a cell is."""

    state: State
    step: int
    last_return: float | None
    reason: str = ""


def parse_agent(text: str) -> AgentSpec:
    """Reads `AGENT[@NAME][:OPTION=VALUE...]`.

    Raises:
      UserError: no such agent or option, a value that is not allowed, or options without a name to tell them by.
    """
    head, *options = text.split(":")
    agent, at, name = head.partition("@")
    if agent not in agents.AGENTS:
        raise UserError(
            f"--agents names '{agent}', which is no agent.{nearest(agent, agents.AGENTS)} List agents with: qsm agents"
        )
    if (at and not name) or (options and not name):
        raise UserError(
            f"--agents has '{text}'; a variant needs a name, as in {agent}@NAME:OPTION=VALUE, to be told from {agent}"
        )
    if at:
        run_path("dm_control", "task", agent, 0, name)  # refuses what serves as no folder's name
    arguments = [f"--{option.lstrip('-')}" for option in options]
    parser = Parser(
        f"qsm train {agent}", "", {"agent": agents.config_class(agent)}, subject=f"agent {agent!r}"
    )
    parser.parse(arguments)
    return AgentSpec(agent, name or None, tuple(arguments))


def progress_of(cell: Cell, steps: int) -> Progress:
    """What the run of `cell` has reached, of `steps`."""
    try:
        run = load_run(cell.path)
    except UserError:
        return Progress("missing", 0, None)
    status = run.status()
    step = max(int(status.get("step", 0)), _last_step(run.train_csv))
    last = status.get("last_return")
    if status.get("state") == "finished" and step >= steps:
        return Progress("finished", step, last)
    if status.get("state") == "failed":
        return Progress("failed", step, last, str(status.get("message", "")))
    return Progress("stopped", step, last)


def _last_step(table: Path) -> int:
    """Step of the last whole row of metrics; those come oftener than the status."""
    try:
        with table.open("rb") as file:
            columns = next(csv.reader([file.readline().decode()]), [])
            file.seek(max(0, table.stat().st_size - 16_384))
            lines = file.read().decode().splitlines()
        return int(float(next(csv.reader(lines[-1:]))[columns.index("step")]))
    except (OSError, ValueError, IndexError, StopIteration, UnicodeDecodeError, csv.Error):
        return 0
