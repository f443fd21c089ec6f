"""`qsm bench --engine ray`: the trainings of a grid as tasks of a Ray cluster.

A task starts `qsm train` in a process of its own, as the local engine does, and waits for it. The run folders lie on a
drive that all machines share: they are all that tasks and the benchmark have in common, and a task that begins again
elsewhere goes on from their checkpoints.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError, first_line
from qsm.bench.engines import (
    GRACE,
    PREEMPTED,
    Command,
    Outcome,
    close_log,
    device_variables,
    not_begun,
    thread_variables,
    train_command,
    was_preempted,
)
from qsm.bench.grid import Job
from qsm.record import lock
from qsm.record.status import read_status

RETRIES = 100
"""How often a training is begun again because its worker or machine was lost or preempted."""
ANSWER_TIMEOUT = 5.0
"""Seconds within which the machine at an address must take a connection."""
CLIENT_PORT = 10_001  # of ray://HOST
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Preempted(Exception):
    """A training was stopped, and not by us: Ray begins its task again."""


class RayEngine:
    """Trains on a Ray cluster.

    Args:
      address: of the cluster, as `ray.init` takes it.
      jobs: trainings at a time; None: as many as the cluster has room for.
      cpus, gpus: what each training asks the cluster for.
      command: what is run for a job.

    Raises:
      UserError: Ray is not installed, or there is no cluster at `address`.
    """

    def __init__(
        self,
        address: str = "auto",
        jobs: int | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
        command: Command = train_command,
    ) -> None:
        self._ray = ray = _import_ray()
        if not ray.is_initialized():
            if address == "auto":  # as Ray does, so that it is known which address answers or not
                address = os.environ.get("RAY_ADDRESS") or address
            try:
                _reach(address)
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"no Ray cluster at {address!r} ({first_line(error)}). Start one with: ray start --head, or name "
                    "its address with --ray-address"
                ) from error
        resources = ray.cluster_resources()
        rooms = [resources.get("CPU", 0) // cpus] if cpus else []
        rooms += [resources.get("GPU", 0) // gpus] if gpus else []
        self.jobs = jobs or max(int(min(rooms)), 1)
        self._limit = jobs
        self._cpus = cpus
        self._shared = gpus < 1  # several trainings may be given one device
        self._command = command
        # One process a task: what a training leaves in its worker would be the next one's.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_calls": 1, "max_retries": RETRIES}
        self._train = ray.remote(**options, retry_exceptions=[Preempted])(train_here)
        self._tasks: dict[Any, Job] = {}

    def running(self) -> list[Job]:
        """The jobs whose runs say that they are being trained."""
        return [
            job
            for job in self._tasks.values()
            if any(read_status(cell.path).state == "running" for cell in job.cells)
        ]

    def run(self, jobs: Sequence[Job], tick: Callable[[], None], interval: float = 1.0) -> Generator[Outcome]:
        ray, waiting = self._ray, list(reversed(jobs))
        try:
            while waiting or self._tasks:
                # Without a limit all are handed over at once: what waits tells a growing cluster how much it lacks.
                while waiting and (self._limit is None or len(self._tasks) < self._limit):
                    job = waiting.pop()
                    paths = [str(cell.path.absolute()) for cell in job.cells]
                    log = str(job.log.absolute())
                    task = self._train.remote(self._command(job), paths, log, self._cpus, self._shared)
                    self._tasks[task] = job
                done, _ = ray.wait(list(self._tasks), timeout=interval)
                for task in done:
                    yield self._outcome(task)
                tick()
        finally:
            self.stop()

    def stop(self) -> None:
        self._end(force=False)
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=GRACE)
        # A task may be cancelled just as its training begins, which then saves and ends after it.
        _wait_for_former([str(cell.path) for job in self._tasks.values() for cell in job.cells])

    def kill(self) -> None:
        self._end(force=True)

    def _end(self, force: bool) -> None:
        for task in list(self._tasks):
            self._ray.cancel(task, force=force)

    def _outcome(self, task: Any) -> Outcome:
        job = self._tasks.pop(task)
        try:
            status, reason = self._ray.get(task)
        except self._ray.exceptions.TaskCancelledError:
            return Outcome(job, PREEMPTED, "")
        except self._ray.exceptions.RayError as error:
            # An error within the task wraps its cause behind a page of traceback.
            return Outcome(job, 1, first_line(getattr(error, "cause", None) or error))
        return Outcome(job, status, reason)


def train_here(
    command: Sequence[str], paths: Sequence[str], log: str, cpus: int, shared: bool = False
) -> tuple[int, str]:
    """The task: trains in a process of this machine; its exit status and why it failed, where it did.

    Args:
      command: for the Python of this machine, whatever the first word is.
      paths: folders of the runs.
      log: file for what the training prints.
      cpus: cores that are its own.
      shared: whether other trainings may have its accelerator too.

    Raises:
      Preempted: it was stopped and has saved.
    """
    # Ray cancels a task as Ctrl-C would; a cluster started in the background by a script ignores that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _wait_for_former(paths)
    file = Path(log)
    process: subprocess.Popen[bytes] | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | thread_variables(cpus) | device_variables(shared),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        while (status := process.poll()) is None:
            time.sleep(0.2)  # in short turns: a cancelled task is interrupted between them
    except KeyboardInterrupt:
        if process is None:
            raise  # where it has just begun, it ends with this worker
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        return status, ""
    except OSError as error:
        return 1, not_begun(file, error)
    if was_preempted(status):
        raise Preempted
    return status, close_log(file, status)


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(
            f"--engine ray needs Ray ({first_line(error)}). Install it with: pip install 'qsm[cluster]'"
        ) from error
    return ray


def _reach(address: str) -> None:
    """Returns where a machine answers at `address`, or Ray is to look for one; Ray itself tries for minutes.

    Raises:
      OSError: nothing answers there.
      ValueError: it is no address.
    """
    if address in ("auto", "local"):
        return
    scheme, found, rest = address.rpartition("://")
    if found and scheme != "ray":
        return  # a service that finds the machines by itself
    try:
        parts = urllib.parse.urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or (CLIENT_PORT if found else None)
    except ValueError:
        host = port = None
    if not host or not port:
        raise ValueError("an address is HOST:PORT, ray://HOST:PORT, auto or local")
    socket.create_connection((host, port), ANSWER_TIMEOUT).close()


def _wait_for_former(paths: Sequence[str]) -> None:
    """A training whose worker was lost may be saving still."""
    deadline = time.monotonic() + GRACE
    while any(lock.is_owned(Path(path)) for path in paths) and time.monotonic() < deadline:
        time.sleep(0.5)


def _end_with_parent() -> None:
    """In the new process: SIGTERM when the worker dies, so that it saves and does not train on unseen."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
