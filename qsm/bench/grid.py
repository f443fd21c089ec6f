"""`qsm bench`: a grid of agents, tasks and seeds in one folder, of which only what is missing is trained.

Every cell is a run as `qsm train` makes it, and can be resumed, evaluated and exported like any other. The grid keeps
no record beside the runs: what is done is read from them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import agents
from qsm.base.errors import UserError, first_line, nearest
from qsm.options import effects
from qsm.options.arguments import to_arguments
from qsm.options.commands import OutputOptions
from qsm.options.parser import Parser
from qsm.options.run import Backend, LaunchOptions, RunConfig
from qsm.record.config_file import as_option, conflicts, is_run, read_config, resolved_config
from qsm.record.run_id import RunId, check_name
from qsm.record.status import read_progress
from qsm.record.tables import return_at

State = Literal["missing", "running", "finished", "stopped", "failed"]

SHOWN = 3
"""Options named where a cell has others than the grid."""


class AgentSpec(NamedTuple):
    """An agent, or a variant of one: `qsm`, or `qsm@hot:score_scale=120:discount=0.98`."""

    agent: str
    name: str | None
    config: Any
    warnings: tuple[str, ...] = ()  # of options that change nothing


class Cell(NamedTuple):
    """One run of the grid, with all its options."""

    id: RunId
    path: Path
    agent_config: Any
    run_config: RunConfig

    def resolved(self) -> dict[str, Any]:
        """What `config.json` holds where this grid has trained the run."""
        return resolved_config(
            self.id.agent, self.id.task, self.id.backend, self.agent_config, self.run_config
        )


class Job(NamedTuple):
    """One training: a cell, or several seeds of an agent and task in one program."""

    cells: tuple[Cell, ...]
    folder: Path

    @property
    def log(self) -> Path:
        """What it prints goes there."""
        path = self.cells[0].path
        return path.parent / f"{path.name}.output.txt"

    def arguments(self) -> list[str]:
        """The words of `qsm` that train it, or go on with it."""
        first = self.cells[0]
        backend: Any = first.id.backend
        launch = LaunchOptions(backend, num_seeds=len(self.cells), extend_steps=True)
        output = OutputOptions(self.folder, first.id.name)
        agent, preset = first.id.agent, first.agent_config.preset
        return [
            "train",
            agent,
            first.id.task,
            *([] if preset == agents.PLAIN else [f"--preset={preset}"]),
            *to_arguments(first.agent_config, agents.config_of(agent, preset)),
            *(word for one in (first.run_config, launch, output) for word in to_arguments(one)),
        ]


class Grid(NamedTuple):
    """What is trained: every cell in the order of its training."""

    cells: tuple[Cell, ...]
    steps: int  # of each
    folder: Path

    def jobs(self, cells: Sequence[Cell], seeds_together: int = 1) -> list[Job]:
        """The trainings of `cells`, in their order.

        Args:
          seeds_together: seeds of one agent and task that are trained in one program at most; they have consecutive
            numbers and have been trained equally far, as a group that goes on must.
        """
        if seeds_together == 1:
            return [Job((cell,), self.folder) for cell in cells]
        groups: dict[RunId, list[Cell]] = {}
        for cell in cells:
            groups.setdefault(cell.id._replace(seed=0), []).append(cell)
        chunks = [
            tuple(alike[i : i + seeds_together])
            for group in groups.values()
            for alike in self._alike(group)
            for i in range(0, len(alike), seeds_together)
        ]
        order = {cell: place for place, cell in enumerate(cells)}
        return [Job(chunk, self.folder) for chunk in sorted(chunks, key=lambda chunk: order[chunk[0]])]

    def _alike(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Cells with consecutive seeds that are equally far."""
        found: list[list[Cell]] = []
        before: tuple[int, int] | None = None
        for cell in sorted(cells, key=lambda cell: cell.id.seed):
            here = cell.id.seed, progress_of(cell, self.steps).step
            if before is not None and here == (before[0] + 1, before[1]):
                found[-1].append(cell)
            else:
                found.append([cell])
            before = here
        return found


def make_grid(
    specs: Sequence[AgentSpec],
    tasks: Sequence[str],
    seeds: Sequence[int],
    run_config: RunConfig,
    folder: Path,
    backend: Backend = "dm_control",
) -> Grid:
    """The grid of `specs` on `tasks`: seed by seed, so that every comparison is there early and grows.

    Args:
      run_config: options of every run, but for the seed.

    Raises:
      UserError: two agents have the same label.
    """
    labels = [RunId(backend, "", spec.agent, spec.name).label for spec in specs]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        other = f"{twice.partition('@')[0]}@NAME:OPTION=VALUE"
        raise UserError(f"--agents names '{twice}' twice; give one of them another name: {other}")
    cells = []
    for seed in seeds:
        seeded = dataclasses.replace(run_config, seed=seed)
        for task in tasks:
            for spec in specs:
                run_id = RunId(backend, task, spec.agent, spec.name, seed)
                cells.append(Cell(run_id, run_id.path(folder), spec.config, seeded))
    return Grid(tuple(cells), run_config.steps, folder)


class Progress(NamedTuple):
    """Where a cell is."""

    state: State
    step: int
    last_return: float | None
    reason: str = ""


def progress_of(cell: Cell, steps: int) -> Progress:
    """What the run of `cell` has reached, of `steps`."""
    if not is_run(cell.path):
        return Progress("missing", 0, None)
    found = read_progress(cell.path)
    if found.state == "finished" and found.step >= steps:
        try:
            read_config(cell.path)
            # A run that was trained for longer is compared where the others end.
            reached = found.last_return if found.step == steps else return_at(cell.path / "eval.csv", steps)
        except UserError as error:
            return Progress("failed", found.step, None, f"damaged: {first_line(error)}")
        return Progress("finished", found.step, reached)
    if found.state in ("failed", "diverged"):
        return Progress("failed", found.step, found.last_return, found.message)
    return Progress("stopped", found.step, found.last_return)


def check_options(progress: Mapping[Cell, Progress]) -> None:
    """Returns where every run that is there has the options of its cell: only such runs may be compared.

    A finished run may have been trained for longer; others must be able to go on to the steps of the grid.

    Raises:
      UserError: runs of other options; names the first of them, and what differs.
    """
    found = [
        (cell, changed)
        for cell, one in progress.items()
        if (changed := conflicts(cell.path, cell.resolved(), one.state == "finished"))
    ]
    if not found:
        return
    cell, changed = found[0]
    more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    others = f" (one of {len(found)})" if len(found) > 1 else ""
    other = "choose another folder with --out"
    if cell.id.name is not None and all(text.startswith("agent_config.") for text in changed):
        other = f"give the variant another name than '{cell.id.name}'"
    shown = "; ".join(map(as_option, changed[:SHOWN]))
    raise UserError(
        f"{cell.path}{others} holds a run of other options: {shown}{more}. Repeat its options, or {other}"
    )


def check_writable(folder: Path) -> None:
    """Returns where runs can be written below `folder`; nothing is left there.

    Raises:
      UserError: they cannot.
    """
    there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = f"{there} is a file" if there.is_file() else first_line(error)
        raise UserError(
            f"Cannot write in --out {folder} ({reason}). Choose a folder that you may write to"
        ) from error


def parse_agent(text: str, preset: agents.PresetName = agents.PLAIN) -> AgentSpec:
    """Reads `AGENT[@NAME][:OPTION=VALUE...]`; options that are not there are those of `preset`, as is a missing name.

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
    parser = Parser(
        f"qsm train {agent}",
        "",
        {"agent": agents.config_class(agent)},
        subject=f"agent {agent!r}",
        implied=lambda given: agents.preset_options(agent, given.get("preset", preset)),
    )
    given = parser.parse([f"--{option.lstrip('-')}" for option in options])
    config = given["agent"]
    warnings = tuple(effects.of_agent(agent, config, given["named"]))
    return AgentSpec(agent, name or agents.label_of(config.preset), config, warnings)
