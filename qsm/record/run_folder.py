"""The folder of a run: what it holds, and when it may be created, resumed or extended.

A folder either is a run, and then has its `config.json`, or holds nothing of ours. Every JSON file is replaced as a
whole: a crash leaves the former content, never half of it.
"""

from __future__ import annotations

import datetime
import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError
from qsm.base.files import read_json, remove_quietly, write_json
from qsm.record import lock, provenance
from qsm.record.config_file import as_option, continued, differences, is_run, normalized, read_config
from qsm.record.run_id import RunId, run_id_at
from qsm.record.status import State, Status, read_status, write_status


def explain(path: Path, error: OSError) -> UserError:
    """One line for a folder that cannot be created or written."""
    # os.path answers False where Path would raise, as for a name that is too long.
    blocking = next((part for part in (path, *path.parents) if os.path.isfile(part)), None)
    if blocking is not None:
        return UserError(
            f"Cannot create the run folder {path}: {blocking} is a file. Move it away or choose --run-dir."
        )
    mend = "Choose a folder that you may write to with --run-dir."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "Free some space or choose another disk with --run-dir."
    return UserError(f"Cannot write in {path}: {error.strerror or error}. {mend}")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def empty_run(path: Path, keep: str) -> None:
    """Removes all that the run at `path` holds but the file `keep`; its configuration last, so that it stays a run.

    Raises:
      UserError: `path` is no run, or something cannot be removed.
    """
    if not is_run(path):
        raise UserError(f"{path} holds no run to overwrite.")
    try:
        for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "config.json"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != keep:
                entry.unlink()
    except OSError as error:
        raise explain(path, error) from error


def missing_folders(path: Path) -> list[Path]:
    """`path` and the folders above it that do not exist, the lowest first."""
    return [folder for folder in (path, *path.parents) if not os.path.exists(folder)]


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes `folders`, in their order, up to the first that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


class RunDir:
    """An existing run: its paths, its configuration, its status.

    Attributes:
      path: the folder.
      config: content of `config.json`.
      created: True where this process created the folder.
      saved_step: step of the newest checkpoint that was written to its end; None where there was none.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], command: Sequence[str] = (), created: bool = False
    ) -> None:
        self.path = path
        self.config = config
        self.created = created
        self._command = list(command)
        self._warned = False
        self._warn: Callable[[str], None] = logging.getLogger(__name__).warning
        self.train_csv = path / "train.csv"
        self.eval_csv = path / "eval.csv"
        self.tensorboard = path / "tensorboard"
        self.wandb = path / "wandb"
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.txt"
        self.saved_step: int | None = self.status().saved_step

    @property
    def id(self) -> RunId:
        """Which run it is."""
        return run_id_at(self.path, self.config)

    @classmethod
    def create_or_open(
        cls, path: str | Path, config: dict[str, Any], command: Sequence[str] = (), extend_steps: bool = False
    ) -> RunDir:
        """Creates the run, or opens the run of the same configuration that is there.

        What a run's numbers do not depend on may differ, and with `extend_steps` the run that is there may have fewer
        steps; it then has those of `config`, and its file from `record_start` on.

        Look at `finished` to tell a run that is done, and at `created` to tell a new one. Nothing is written
        in an existing folder, and nothing is left behind by a refusal.

        Raises:
          UserError: the folder holds something else or a run of another configuration, or cannot be written.
        """
        path = Path(path)
        run = cls.examine(path, config, command, extend_steps)
        if run is not None:
            return run
        missing = missing_folders(path)
        config = normalized(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "config.json", config)
        except OSError as error:
            refusal = explain(path, error)
            remove_empty(missing)
            raise refusal from error
        return cls(path, config, command, created=True)

    @classmethod
    def examine(
        cls, path: Path, config: dict[str, Any], command: Sequence[str] = (), extend_steps: bool = False
    ) -> RunDir | None:
        """What `create_or_open` would open, with its steps if they are extended; None where it would create.

        Nothing is written.

        Raises:
          UserError: as `create_or_open` does.
        """
        config = normalized(config)
        try:
            if is_run(path):
                return cls._examine_run(path, config, command, extend_steps)
            present = sorted(path.iterdir()) if path.is_dir() else []
        except OSError as error:
            raise explain(path, error) from error
        if foreign := [entry.name for entry in present if not _is_ours(entry)]:
            raise UserError(
                f"{path} is not empty and is no run (it holds {foreign[0]!r}); choose another folder with "
                "--run-dir."
            )
        return None

    @classmethod
    def _examine_run(
        cls, path: Path, config: dict[str, Any], command: Sequence[str], extend_steps: bool
    ) -> RunDir:
        there = read_config(path)
        goes_on = continued(there, config, extend_steps)
        if changed := differences(goes_on, config):
            more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            mend = "Repeat its options to go on with it, or start another with --name or --run-dir."
            if not extend_steps and not differences(continued(there, config, True), config):
                mend = "Add --extend-steps to go on with it for longer, or start another with --name or --run-dir."
            raise UserError(
                f"{path} holds a run of other options: {'; '.join(map(as_option, changed[:5]))}{more}. {mend}"
            )
        run = cls(path, goes_on, command)
        if not run.finished:
            probe = path / f".probe.{os.getpid()}.tmp"
            try:
                probe.write_bytes(b"")
            finally:
                remove_quietly(probe)
        return run

    def record_start(self, device: str, warn: Callable[[str], None] | None = None) -> None:
        """Appends to `provenance.json` how this process runs, at the beginning and at each resumption.

        `config.json` then has what this process was given, which may differ from what was there in the steps and in
        what no number depends on. Not before, so that a training that is refused leaves its runs as they were.

        Args:
          device: kind of the device, such as `cpu` or `NVIDIA H200`.
          warn: told, once, when a later `write_status` fails; the module's logger by default.

        Raises:
          UserError: a file cannot be written.
        """
        self._warn = warn or self._warn
        file = self.path / "provenance.json"
        try:
            starts = read_json(file) if file.exists() else []
        except UserError as error:
            self._warn(f"{error} Its former entries are replaced.")
            starts = []
        entry = {"started": now(), "command": self._command, "device": device, **provenance.here()}
        try:
            if self.config != read_config(self.path):
                write_json(self.path / "config.json", self.config)
            write_json(file, [*starts, entry] if isinstance(starts, list) else [entry])
        except OSError as error:
            raise explain(self.path, error) from error

    def write_status(
        self, state: State, step: int, steps: int, last_return: float | None = None, message: str = ""
    ) -> None:
        """Replaces `status.json`; a failure is warned of once, and the next call tries again."""
        try:
            write_status(self.path, Status(state, step, self.saved_step, steps, now(), last_return, message))
        except OSError as error:
            if not self._warned:
                self._warn(f"{explain(self.path, error)} Training goes on; status.json is out of date.")
            self._warned = True

    def status(self) -> Status:
        """Content of `status.json`, what is damaged left out."""
        return read_status(self.path)

    @property
    def finished(self) -> bool:
        """True where the run reached its last step; one that was extended since has not."""
        status, steps = self.status(), self.config["run_config"].get("steps", 0)
        if not isinstance(steps, int):
            return False
        return status.state == "finished" and status.step >= steps


def _is_ours(path: Path) -> bool:
    """A file left by `replace_file` in a process that was killed, or by `qsm.record.lock`."""
    return path.name == lock.NAME or (path.name.startswith(".") and path.name.endswith(".tmp"))
