"""Grids for the tests of `qsm bench`, and trainings that behave as they are told."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from qsm.bench.engines import LocalEngine
from qsm.bench.fill import fill
from qsm.bench.grid import (
    Cell,
    Grid,
    Job,
    Progress,
    make_grid,
    parse_agent,
    progress_of,
)
from qsm.options.run import RunConfig
from qsm.record.run_folder import RunDir

STEPS = 1000
RANDOM_STEPS = 100
ROOT = Path(__file__).parents[1]

TRAIN = """
import json, os, pathlib, signal, sys
path, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
path.mkdir(parents=True, exist_ok=True)
with (path / "starts.txt").open("a") as file:
    print(sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], file=file)
(path / "memory.txt").write_text(os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "not set"))
(path / "config.json").write_text(sys.argv[3])
def status(state, step, message=""):
    content = {"state": state, "step": step, "steps": 1000, "last_return": 5.0, "message": message}
    (path / "status.json").write_text(json.dumps(content))
if behaviour == "fails":
    print("something first", "qsm: error: the reason", sep="\\n", file=sys.stderr)
    sys.exit(2)
if behaviour.startswith("SIG"):
    print("step 300", flush=True)
    status("running", 300)
    os.kill(os.getpid(), getattr(signal, behaviour))
if behaviour == "waits":
    # Not a handler and pause(): a signal between the two would be waited for in vain.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    status("running", 300)
    signal.sigwait({signal.SIGTERM})
    status("preempted", 400)
    sys.exit(143)
status("finished", 1000)
"""


def command(behaviour: Any) -> Any:
    """Of a training that behaves as `behaviour` says of its first seed."""

    def arguments(job: Job) -> list[str]:
        first = job.cells[0]
        config = json.dumps(config_of(first))
        return [sys.executable, "-c", TRAIN, str(first.path), behaviour(first.id.seed), config]

    return arguments


def config_of(cell: Cell, steps: int = STEPS) -> dict[str, Any]:
    """Of the run that this file's grids make of `cell`."""
    return cell._replace(run_config=dataclasses.replace(cell.run_config, steps=steps)).resolved()


def leave(cell: Cell, state: Any, step: int, steps: int = STEPS, message: str = "") -> RunDir:
    """A run as a training leaves it."""
    run = RunDir.create_or_open(cell.path, config_of(cell, steps))
    run.write_status(state, step, steps, 7.0, message)
    return run


def grid(
    folder: Path,
    seeds: int = 2,
    agents: tuple[str, ...] = ("sac",),
    tasks: tuple[str, ...] = ("walker-walk",),
) -> Grid:
    specs = [parse_agent(agent) for agent in agents]
    return make_grid(specs, tasks, range(seeds), RunConfig(steps=STEPS, random_steps=RANDOM_STEPS), folder)


def progress_of_all(found: Grid) -> dict[Cell, Progress]:
    return {cell: progress_of(cell, found.steps) for cell in found.cells}


def filled(found: Grid, behaviour: Any, jobs: int = 2) -> tuple[int, str]:
    output = io.StringIO()
    engine = LocalEngine(jobs, command(behaviour))
    status = fill(found, engine, Console(file=output, width=200))
    return status, output.getvalue()


def starts(cell: Cell) -> list[str]:
    return (cell.path / "starts.txt").read_text().splitlines()


class Seen(Console):
    """A terminal of 80 x 24."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)

    def shows(self, what: Any) -> list[str]:
        """The lines of `what` that are seen while it is live."""
        from rich.live_render import LiveRender

        lines = self.render_lines(LiveRender(what), pad=False)
        return ["".join(segment.text for segment in line).rstrip() for line in lines]
