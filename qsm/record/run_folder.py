"""The folder of a run: where it lies, what it holds, and when it may be created, resumed or read.

`config.json` marks a folder as a run and is the first file written, so a folder either is a run or holds
nothing of ours. Every JSON file is replaced as a whole: a crash leaves the former content, never half of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError, nearest
from qsm.base.files import read_json, remove_quietly, write_json
from qsm.record import lock, provenance
from qsm.record.run_id import RunId, run_id_at
from qsm.record.status import State, Status, read_status, write_status

FORMAT = 1
"""Version of the folder's layout; a reader refuses a larger number."""

CONFIG_KEYS: dict[str, type] = {
    "format": int,
    "agent": str,
    "task": str,
    "backend": str,
    "agent_config": dict,
    "run_config": dict,
}
SEARCH_LIMIT = 2_000
"""Folders looked into when a path is no run and the runs below it are to be named."""


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


def resolved_config(
    agent: str, task: str, backend: str, agent_config: Any, run_config: Any
) -> dict[str, Any]:
    """The content of `config.json` from the two option dataclasses, as it reads back (tuples as lists)."""
    config = {
        "format": FORMAT,
        "agent": agent,
        "task": task,
        "backend": backend,
        "agent_config": dataclasses.asdict(agent_config),
        "run_config": dataclasses.asdict(run_config),
    }
    return json.loads(json.dumps(config, allow_nan=False))


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """`field is X there and Y here` for each field that differs, in the order of the fields."""
    old, new = flatten(there), flatten(here)
    absent = object()

    def show(value: Any) -> str:
        return "not set" if value is absent else json.dumps(value)

    pairs = ((name, old.get(name, absent), new.get(name, absent)) for name in dict.fromkeys([*old, *new]))
    return [f"{name} is {show(a)} there and {show(b)} here" for name, a, b in pairs if a != b]


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of the run at `path`, its shape checked.

    Raises:
      UserError: it is damaged, or was written by a newer version.
    """
    file = path / "config.json"
    config = read_json(file)
    found = config.get("format") if isinstance(config, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{path} was written by a newer qsm (format {found}; this one reads {FORMAT}); update qsm."
        )
    for key, kind in CONFIG_KEYS.items():
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            raise UserError(
                f"{file} is damaged ({key!r} is missing or of the wrong type); restore it or start anew."
            )
    return config


def _with_steps(there: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """`there` with the steps of `here`, where those are more."""
    try:
        old, new = there["run_config"]["steps"], here["run_config"]["steps"]
        if not new > old:
            return there
    except (KeyError, TypeError):
        return there
    return there | {"run_config": there["run_config"] | {"steps": new}}


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

        With `extend_steps` the run that is there may have fewer steps; it then has those of `config`.

        Look at `finished` to tell a run that is done, and at `created` to tell a new one. Nothing is written
        in an existing folder, and nothing is left behind by a refusal.

        Raises:
          UserError: the folder holds something else or a run of another configuration, or cannot be written.
        """
        path = Path(path)
        run = cls.examine(path, config, command, extend_steps)
        if run is not None:
            try:
                if run.config != read_config(path):
                    write_json(path / "config.json", run.config)
            except OSError as error:
                raise explain(path, error) from error
            return run
        missing = missing_folders(path)
        config = json.loads(json.dumps(config, allow_nan=False))
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
        config = json.loads(json.dumps(config, allow_nan=False))
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
        longer = _with_steps(there, config) if extend_steps else there
        if changed := differences(longer, config):
            more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            mend = "Repeat its options to go on with it, or start another with --name or --run-dir."
            if not extend_steps and not differences(_with_steps(there, config), config):
                mend = "Add --extend-steps to go on with it for longer, or start another with --name or --run-dir."
            raise UserError(f"{path} holds a run of other options: {'; '.join(changed[:5])}{more}. {mend}")
        run = cls(path, longer, command)
        if not run.finished:
            probe = path / f".probe.{os.getpid()}.tmp"
            try:
                probe.write_bytes(b"")
            finally:
                remove_quietly(probe)
        return run

    def record_start(self, device: str, warn: Callable[[str], None] | None = None) -> None:
        """Appends to `provenance.json` how this process runs, at the beginning and at each resumption.

        Args:
          device: kind of the device, such as `cpu` or `NVIDIA H200`.
          warn: told, once, when a later `write_status` fails; the module's logger by default.

        Raises:
          UserError: the file cannot be written.
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


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run."""
    return os.path.exists(path / "config.json")


def _is_ours(path: Path) -> bool:
    """A file left by `replace_file` in a process that was killed, or by `qsm.record.lock`."""
    return path.name == lock.NAME or (path.name.startswith(".") and path.name.endswith(".tmp"))


def find_runs(path: str | Path, limit: int | None = None) -> Iterator[Path]:
    """The runs at and below `path`, by name; looks into at most `limit` folders."""
    for looked, (folder, folders, files) in enumerate(os.walk(path)):
        if looked == limit:
            return
        if "config.json" in files or "config.json" in folders:  # where it is a folder, reading it says so
            folders.clear()
            yield Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def load_run(path: str | Path) -> RunDir:
    """The run at `path`, to be read.

    Raises:
      UserError: there is no run, or it cannot be read; names the runs nearby.
    """
    path = Path(path)
    if is_run(path):
        return RunDir(path, read_config(path))
    inside = next((parent for parent in path.parents if parent.name and is_run(parent)), None)
    if inside is not None:
        raise UserError(f"{path} is no run folder but lies in one; give {inside}.")
    exists = os.path.exists(path)
    if exists and not os.path.isdir(path):
        raise UserError(f"{path} is a file; give the folder of a run (the one that holds config.json).")
    what = f"{path} is no run (it holds no config.json)" if exists else f"There is no folder {path}"
    # A name mistyped at any level: look below the deepest folder that exists, unless that is everything.
    base = next((folder for folder in (path, *path.parents) if os.path.isdir(folder)), Path())
    vast = (
        base.resolve() in (Path.cwd(), Path(os.path.expanduser("~")), Path(base.resolve().anchor))
        and base != path
    )
    runs = [str(run) for run in find_runs("runs" if vast else base, SEARCH_LIMIT)]
    if not runs:
        raise UserError(f"{what}; train one with: qsm train AGENT TASK")
    if not exists and (meant := nearest(str(path), runs)):
        raise UserError(f"{what}.{meant}")
    named = ", ".join(runs[:3])
    raise UserError(f"{what}. Runs nearby: {named}{f' and {len(runs) - 3} more' if len(runs) > 3 else ''}.")
