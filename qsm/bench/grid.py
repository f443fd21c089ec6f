"""`qsm bench`: a grid of agents, tasks and seeds in one folder, of which only what is missing is trained.

Every cell is a run as `qsm train` makes it, and can be resumed, evaluated and exported like any other. The grid keeps
no record beside the runs: what is done is read from them.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import agents
from qsm.base.errors import UserError, first_line, nearest
from qsm.options.parser import Parser
from qsm.options.run import Backend, MjxRunConfig, RunConfig
from qsm.record.config_file import differences, is_run, read_config, resolved_config
from qsm.record.run_folder import missing_folders
from qsm.record.run_id import RunId, check_name
from qsm.record.status import read_progress

State = Literal["missing", "running", "finished", "stopped", "failed"]

SHOWN = 3
"""Options named where a cell has others than the grid."""
RECORDING = ("steps", "wandb", "wandb_project")
"""Options of a run that change nothing in one that is finished: how far, and where it was recorded too."""


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
    backend: Backend = "dm_control"
    options: Sequence[str] = ()  # of every `qsm train`

    def cells(self) -> list[Cell]:
        """The cells, seed by seed, so that every comparison is there early and grows.

        Raises:
          UserError: two agents have the same label.
        """
        labels = [spec.label for spec in self.specs]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            other = f"{twice.partition('@')[0]}@NAME:OPTION=VALUE"
            raise UserError(f"--agents names '{twice}' twice; give one of them another name: {other}")
        return [
            Cell(spec, task, seed, RunId(self.backend, task, spec.agent, spec.name, seed).path(self.folder))
            for seed in self.seeds
            for task in self.tasks
            for spec in self.specs
        ]

    def configuration(self, cell: Cell) -> dict[str, Any]:
        """What `config.json` of `cell` holds where it was trained as this grid would train it.

        Raises:
          UserError: the options of the grid do not go together.
        """
        agent_config = _agent_config(cell.spec.agent, cell.spec.options)
        config = _run_config(self.backend, (*self.options, f"--steps={self.steps}"))
        config = dataclasses.replace(config, seed=cell.seed)
        return resolved_config(cell.spec.agent, cell.task, self.backend, agent_config, config)

    def refuse_other_options(self) -> None:
        """Returns where every run that is there has the options of the grid: only such runs may be compared.

        A finished run may have been trained for longer; others must be able to go on to the steps of the grid.

        Raises:
          UserError: runs of other options; names the first of them, and what differs.
        """
        found = []
        for cell in self.cells():
            try:
                there = read_config(cell.path)
            except UserError:
                continue  # none, or a damaged one, of which its training tells
            here = self.configuration(cell)
            if progress_of(cell, self.steps).state == "finished":
                there, here = _without(there, RECORDING), _without(here, RECORDING)
            elif _steps_of(there) <= self.steps:
                there, here = _without(there, ["steps"]), _without(here, ["steps"])
            if changed := differences(there, here):
                found.append((cell, changed))
        if not found:
            return
        cell, changed = found[0]
        more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        others = f" (one of {len(found)})" if len(found) > 1 else ""
        other = "choose another folder with --out"
        if cell.spec.name is not None and all(text.startswith("agent_config.") for text in changed):
            other = f"give the variant another name than '{cell.spec.name}'"
        raise UserError(
            f"{cell.path}{others} holds a run of other options: {'; '.join(changed[:SHOWN])}{more}. Repeat its "
            f"options, or {other}"
        )

    def refuse_unwritable(self) -> None:
        """Returns where runs can be written below the folder; nothing is left there.

        Raises:
          UserError: they cannot.
        """
        missing = missing_folders(self.folder)
        there = missing[-1].parent if missing else self.folder
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            reason = f"{there} is a file" if there.is_file() else first_line(error)
            raise UserError(
                f"Cannot write in --out {self.folder} ({reason}). Choose a folder that you may write to"
            ) from error

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
      UserError: no such agent or option, a value that is not allowed, options without a name to tell them by, or a
        name without options.
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
        check_name(name)
    if at and not options:
        raise UserError(
            f"--agents has '{text}', which differs from {agent} in nothing; add its options, as in "
            f"{text}:OPTION=VALUE, or leave the name out"
        )
    arguments = tuple(f"--{option.lstrip('-')}" for option in options)
    _agent_config(agent, arguments)
    return AgentSpec(agent, name or None, arguments)


@functools.cache  # a parser takes 50 ms, and a grid has hundreds of cells
def _agent_config(agent: str, arguments: tuple[str, ...]) -> Any:
    parser = Parser(
        f"qsm train {agent}", "", {"agent": agents.config_class(agent)}, subject=f"agent {agent!r}"
    )
    return parser.parse(arguments)["agent"]


@functools.cache
def _run_config(backend: Backend, arguments: tuple[str, ...]) -> RunConfig:
    kind = MjxRunConfig if backend == "mjx" else RunConfig
    return Parser("qsm train", "", {"run": kind}).parse(arguments)["run"]


def _without(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """`config` without these options of the run."""
    run = {name: value for name, value in config["run_config"].items() if name not in names}
    return config | {"run_config": run}


def _steps_of(config: dict[str, Any]) -> float:
    steps = config["run_config"].get("steps", 0)
    return steps if isinstance(steps, int) else 0


def progress_of(cell: Cell, steps: int) -> Progress:
    """What the run of `cell` has reached, of `steps`."""
    if not is_run(cell.path):
        return Progress("missing", 0, None)
    found = read_progress(cell.path)
    if found.state == "finished" and found.step >= steps:
        return Progress("finished", found.step, found.last_return)
    if found.state in ("failed", "diverged"):
        return Progress("failed", found.step, found.last_return, found.message)
    return Progress("stopped", found.step, found.last_return)
