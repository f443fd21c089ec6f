"""Where the trainings of a benchmark run: in processes of this machine, or on a Ray cluster (`ray_engine`)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from qsm.base.errors import first_line
from qsm.base.files import remove_quietly
from qsm.bench.grid import Job
from qsm.record.status import EXIT_STATUS

GRACE = 120.0
"""Seconds that trainings may take to save when the benchmark is stopped; then they are killed."""
PREEMPTED = EXIT_STATUS["preempted"]
"""Exit status of a training that was stopped by SIGTERM and saved."""


class Outcome(NamedTuple):
    """How a training ended."""

    job: Job
    status: int
    reason: str  # why it failed, with the last line that it printed


Command = Callable[[Job], list[str]]


def train_command(job: Job) -> list[str]:
    """The command line of `job`."""
    return [sys.executable, "-m", "qsm", *job.arguments()]


class Engine(Protocol):
    """Trains jobs, so many at a time."""

    jobs: int

    def running(self) -> Sequence[Job]:
        """What is being trained."""
        ...

    def run(self, jobs: Sequence[Job], tick: Callable[[], None], interval: float = 1.0) -> Generator[Outcome]:
        """Trains `jobs` and yields how each ended, as they do.

        Args:
          tick: called every `interval` seconds or so.
        """
        ...

    def stop(self) -> None:
        """Asks every training to save and end, and waits for it."""
        ...

    def kill(self) -> None:
        """Ends every training at once; the next start goes on from its last checkpoint."""
        ...


class LocalEngine:
    """Trains in processes of this machine, each on cores of its own.

    Small networks gain little from a second core: processes of one thread each, side by side, get more done.

    Args:
      jobs: processes at a time; None: one a core.
      command: what is run for a job.
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
        # A second Ctrl-C calls `kill` in the main thread, wherever that is: it may hold the lock already.
        self._lock = threading.RLock()
        self._processes: dict[Job, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def running(self) -> list[Job]:
        with self._lock:
            return list(self._processes)

    def run(self, jobs: Sequence[Job], tick: Callable[[], None], interval: float = 1.0) -> Generator[Outcome]:
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            pending: set[concurrent.futures.Future[Outcome]] = set()
            try:
                for (
                    job
                ) in jobs:  # Ctrl-C may come here too, and the pool would wait for what has been submitted
                    pending.add(pool.submit(self._train, job))
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
        with self._lock:
            self._stopping = True
            processes = list(self._processes.values())
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE  # of all of them: they save at the same time
        for process in processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()

    def kill(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    def _train(self, job: Job) -> Outcome:
        cores = self._cores.get()
        try:
            if self._stopping:
                return Outcome(job, PREEMPTED, "")
            _pin(cores)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("wb") as output:
                with self._lock:
                    if self._stopping:
                        return Outcome(job, PREEMPTED, "")
                    # A session of its own: Ctrl-C at the terminal is passed on by `stop`, once.
                    process = subprocess.Popen(
                        self._command(job),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=os.environ | thread_variables(len(cores)) | device_variables(self.jobs > 1),
                        start_new_session=True,
                    )
                    self._processes[job] = process
                status = process.wait()
        except OSError as error:
            return Outcome(job, 1, not_begun(job.log, error))
        finally:
            with self._lock:
                self._processes.pop(job, None)
            self._cores.put(cores)
        return Outcome(job, status, close_log(job.log, status))


def device_variables(shared: bool) -> dict[str, str]:
    """Variables for a process whose accelerator is `shared` with others.

    JAX takes most of the memory at its start otherwise, and the second process finds none; whoever has set the
    variable keeps it.
    """
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    return {name: os.environ.get(name, "false")} if shared else {}


def thread_variables(cores: int) -> dict[str, str]:
    """Variables that keep a process to as many threads as it has cores."""
    flags = os.environ.get("XLA_FLAGS", "")
    single = {"XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip()} if cores == 1 else {}
    return single | {"OMP_NUM_THREADS": str(cores)}


def was_preempted(status: int) -> bool:
    """Whether SIGTERM ended it: it has saved, or had nothing to save yet."""
    return status in (PREEMPTED, -signal.SIGTERM)


def close_log(log: Path, status: int) -> str:
    """Why a training failed, with its last line; the log of one that did not is removed, for the run keeps its own."""
    if status == 0:
        remove_quietly(log)
        return ""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = lines[-1][:300] if lines else "it said nothing"
    return last if status > 0 else f"killed by {_signal_name(-status)}; the last it said: {last}"


def not_begun(log: Path, error: OSError) -> str:
    """Why a training could not be started, with the file that was in the way."""
    return f"{error.filename or log}: {first_line(error)}"


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (as where memory runs out)" if name == "SIGKILL" else name


def _pin(cores: set[int]) -> None:
    """Keeps the calling thread to `cores`, and so the processes that it starts, from their first instruction."""
    # Cores may have been taken from us since; a training that is not pinned is slower and no worse.
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, cores)
