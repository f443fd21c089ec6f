"""`qsm bench`: a grid of agents, tasks and seeds in one folder, of which only what is missing is trained.

Every cell is a run as `qsm train` makes it, in a process of its own, and can be resumed, evaluated and exported like
any other. The grid keeps no record beside the runs: what is done is read from them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import agents
from qsm.errors import UserError, nearest
from qsm.files import remove_quietly
from qsm.options import Parser
from qsm.rundir import load_run, run_path

State = Literal["missing", "running", "finished", "stopped", "failed"]

GRACE = 120.0
"""Seconds that a training may take to save when the benchmark is stopped; then it is killed."""


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
    arguments: tuple[str, ...]  # of `qsm`


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


def grid(
    specs: Sequence[AgentSpec],
    tasks: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    folder: Path,
    options: Sequence[str] = (),
    backend: str = "dm_control",
) -> list[Cell]:
    """The cells, seed by seed, so that every comparison is there early and grows.

    Raises:
      UserError: two agents have the same label.
    """
    labels = [spec.label for spec in specs]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"--agents names '{twice}' twice; give one of them another name: {twice}@NAME")
    cells = []
    for seed in seeds:
        for task in tasks:
            for spec in specs:
                path = run_path(backend, task, spec.agent, seed, spec.name, folder)
                arguments = ["train", spec.agent, task, *spec.options, f"--seed={seed}", f"--steps={steps}"]
                arguments += [f"--backend={backend}", f"--run-dir={path}", "--extend-steps", *options]
                cells.append(Cell(spec, task, seed, path, tuple(arguments)))
    return cells


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


class Outcome(NamedTuple):
    """How a process of a cell ended."""

    cell: Cell
    status: int
    reason: str  # the last line that it printed, where it failed


Command = Callable[[Cell], list[str]]


def train_command(cell: Cell) -> list[str]:
    """The command line of `cell`."""
    return [sys.executable, "-m", "qsm", *cell.arguments]


class LocalEngine:
    """Trains cells in processes of this machine, so many at a time, each on cores of its own.

    Small networks gain little from a second core: processes of one thread each, side by side, get more done.

    Args:
      jobs: processes at a time; None: one a core.
      command: what is run for a cell.
    """

    def __init__(self, jobs: int | None = None, command: Command = train_command) -> None:
        cores = (
            sorted(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else [*range(os.cpu_count() or 1)]
        )
        self.jobs = jobs or len(cores)
        self._cores: queue.Queue[set[int]] = queue.Queue()
        for slot in range(self.jobs):
            share = cores[slot * len(cores) // self.jobs : (slot + 1) * len(cores) // self.jobs]
            self._cores.put(set(share or [cores[slot % len(cores)]]))
        self._command = command
        self._lock = threading.Lock()
        self._processes: dict[Cell, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def running(self) -> list[Cell]:
        """The cells that are being trained."""
        with self._lock:
            return list(self._processes)

    def run(
        self, cells: Sequence[Cell], tick: Callable[[], None], interval: float = 1.0
    ) -> Iterator[Outcome]:
        """Trains `cells` and yields how each ended, as they do.

        Args:
          tick: called every `interval` seconds or so.
        """
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            pending = {pool.submit(self._train, cell) for cell in cells}
            try:
                while pending:
                    done, pending = concurrent.futures.wait(
                        pending, interval, concurrent.futures.FIRST_COMPLETED
                    )
                    for future in done:
                        yield future.result()
                    tick()
            finally:
                for future in pending:
                    future.cancel()
                self.stop()

    def stop(self) -> None:
        """Asks every training to save and end, and waits for it."""
        with self._lock:
            self._stopping = True
            processes = list(self._processes.values())
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()

    def kill(self) -> None:
        """Ends every training at once; the next start goes on from its last checkpoint."""
        with self._lock:
            self._stopping = True
            for process in self._processes.values():
                process.kill()

    def _train(self, cell: Cell) -> Outcome:
        cores = self._cores.get()
        log = cell.path.parent / f"{cell.path.name}.output.txt"
        _pin(cores)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                with self._lock:
                    if self._stopping:
                        return Outcome(cell, 128 + signal.SIGTERM, "")
                    # A session of its own: Ctrl-C at the terminal is passed on by `stop`, once.
                    process = subprocess.Popen(
                        self._command(cell),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=os.environ | _threads(len(cores)),
                        start_new_session=True,
                    )
                    self._processes[cell] = process
                status = process.wait()
        except OSError as error:
            return Outcome(cell, 1, f"{error.strerror or error}")
        finally:
            with self._lock:
                self._processes.pop(cell, None)
            self._cores.put(cores)
        reason = "" if status == 0 else _last_line(log)
        if status == 0:
            remove_quietly(log)  # the run keeps its own
        return Outcome(cell, status, reason)


def _threads(cores: int) -> dict[str, str]:
    """Variables that keep a process to as many threads as it has cores."""
    flags = os.environ.get("XLA_FLAGS", "")
    single = {"XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip()} if cores == 1 else {}
    return single | {"OMP_NUM_THREADS": str(cores)}


def _pin(cores: set[int]) -> None:
    """Keeps the calling thread to `cores`, and so the processes that it starts, from their first instruction."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "it said nothing"
