"""Rows of metrics to Weights & Biases, behind the training.

wandb hands rows to a service process of its own. Where that does not answer (a network drive that hangs, a process that
was stopped), a call to wandb waits for ever: the calls are therefore a thread's, and only so many rows wait for it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import psutil

from qsm.base.errors import first_line
from qsm.base.files import replace_file
from qsm.record.run_folder import RunDir
from qsm.record.tables import Warn

ONLINE_TIMEOUT = 20.0
"""Seconds that wandb may take to reach its server before the run is recorded offline."""
FINISH_TIMEOUT = 60.0
"""Seconds wandb may take at the end to upload what is left; the rest stays on disk for `qsm sync`."""
PATIENCE = 90.0
"""Seconds after which a wandb that was asked to end, and says nothing, is ended."""
ROWS_WAITING = 1_000
"""Rows that wait for wandb at most; further ones are in the CSV files only."""
CACHE = "WANDB_CACHE_DIR"
"""Variable that names the folder of wandb's cache and of the log of its service."""
SERVICE = "wandb-core"
"""Name of wandb's own process."""


class _Row(NamedTuple):
    step: int
    values: dict[str, float]


class _End(NamedTuple):
    exit_code: int


class WandbSink:
    """One Weights & Biases run for each run folder, resumed under the same id.

    wandb keeps what it was once given: after a resume, rows that it has must not be sent a second time.
    """

    _active: ClassVar[set[WandbSink]] = set()
    """Sinks whose run is going on in this process, one for each seed."""

    def __init__(self, run: RunDir, mode: Literal["offline", "online"], warn: Warn) -> None:
        self._warn = warn
        self._off = False
        self._behind = False
        self._waiting: queue.Queue[_Row | _End] = queue.Queue(ROWS_WAITING)
        self._thread = threading.Thread(target=self._send, name="wandb", daemon=True)
        try:
            try:
                self._run = self._start(run, mode)
            except Exception as error:
                if mode == "offline":
                    raise
                warn(
                    f"wandb cannot go online: {first_line(error)}. Recording offline instead; log in with: "
                    f"wandb login, and upload afterwards with: qsm sync {run.path}"
                )
                self._forget_failed_start()
                self._run = self._start(run, "offline")
        except Exception as error:  # as for TensorBoard: never the end of the training
            self._fail(error)
        else:
            WandbSink._active.add(self)
            self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Passes one row on, by full name; returns at once."""
        if self._off:
            return
        try:
            self._waiting.put_nowait(_Row(step, dict(values)))
        except queue.Full:
            if not self._behind:
                self._warn(
                    f"wandb does not keep up and misses rows from step {step:,} on. Training goes on, train.csv and "
                    "eval.csv have every row; --wandb disabled does without it."
                )
            self._behind = True

    def close(self, exit_code: int = 0) -> None:
        """Ends the wandb run, waiting for its upload, but not for ever."""
        if not self._off:
            deadline = time.monotonic() + PATIENCE
            with contextlib.suppress(queue.Full):
                self._waiting.put(_End(exit_code), timeout=PATIENCE)
            self._thread.join(max(deadline - time.monotonic(), 0.0))
            if self._thread.is_alive():
                self._fail(TimeoutError("it does not answer"))
                _end_service()
        self._off = True
        WandbSink._active.discard(self)

    def _send(self) -> None:
        """The thread: what waits, in turn, until the end or the first failure."""
        try:
            while isinstance(item := self._waiting.get(), _Row):
                self._run.log(item.values, step=item.step)
            self._run.finish(exit_code=item.exit_code)
        except Exception as error:
            if not self._off:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._off = True
        WandbSink._active.discard(self)
        self._warn(
            f"wandb is off for the rest of this run: {first_line(error)}. Training goes on, train.csv and "
            "eval.csv have every row; --wandb disabled does without it."
        )

    def _start(self, run: RunDir, mode: Literal["offline", "online"]) -> Any:
        import wandb

        use_writable_cache(run.wandb / "cache")
        # Silent for the whole process: `online` without an account would ask for one and wait at a terminal.
        quiet = {"silent": True, "quiet": True, "console": "off"}
        wandb.setup(wandb.Settings(**quiet))
        config, label = run.config, run.id.label
        # Scores of the two simulators are not comparable, so neither are their groups.
        backend = "" if config["backend"] == "dm_control" else f"{config['backend']}/"
        return wandb.init(
            mode=mode,
            dir=run.path,
            id=self._identity(run.wandb / "id.txt"),
            resume="allow",
            reinit="create_new",
            project=config["run_config"].get("wandb_project", "qsm"),
            group=f"{backend}{config['task']}/{label}",
            job_type=label,
            name=f"{config['task']} {label} {run.path.name}",
            tags=[config["agent"], config["task"], config["backend"]],
            config=config | {"label": label},
            settings=wandb.Settings(
                **quiet,
                init_timeout=ONLINE_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
                disable_git=True,
                disable_code=True,
            ),
        )

    def _forget_failed_start(self) -> None:
        """wandb's service holds on to the id of a run that could not start, until the service ends."""
        import wandb

        if not WandbSink._active:
            wandb.teardown()

    def _identity(self, file: Path) -> str:
        if file.exists() and re.fullmatch(r"[0-9a-f]{16}", identity := file.read_text().strip()):
            return identity
        identity = uuid.uuid4().hex[:16]
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, f"{identity}\n".encode())
        return identity


def use_writable_cache(otherwise: Path) -> None:
    """Has wandb's service write its log into `otherwise` where it cannot be written in the user's own cache.

    As where HOME is read-only: it would print its whole log among our lines instead.
    """
    usual = os.environ.get("XDG_CACHE_HOME") or Path("~").expanduser() / ".cache"
    folder = Path(os.environ.get(CACHE) or usual)
    try:
        logs = folder / "wandb" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=logs):
            return
    except (OSError, RuntimeError):
        os.environ[CACHE] = str(otherwise.absolute())


def _end_service() -> None:
    """Ends wandb's process: at the end of ours, wandb would wait for its answer for ever."""
    import wandb

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() == SERVICE:
                process.kill()
    # What remains is wandb's hook at the end of our process, which would print a traceback; it goes before this fails.
    with contextlib.suppress(Exception):
        wandb.teardown()
