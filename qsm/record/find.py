"""Which runs lie below a folder, and the run that a path names."""

from __future__ import annotations

import os
from pathlib import Path

from qsm.base.errors import UserError, nearest
from qsm.record.config_file import is_run, read_config
from qsm.record.run_folder import RunDir

SEARCH_LIMIT = 2_000
"""Folders looked into when a path is no run and the runs below it are to be named."""


def find_runs(path: str | Path, limit: int | None = None) -> list[Path]:
    """The runs at and below `path`, by name, and each once: links are followed to what was not met without them.

    Args:
      limit: how many folders are looked into at most.
    """
    found: list[Path] = []
    # A link to a folder above would lead around in a circle.
    met = {_identity(parent) for parent in Path(path).resolve().parents}
    looked = 0
    waiting = [Path(path)]
    links: list[Path] = []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop()
        try:
            identity = _identity(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError:
            continue  # not a folder, not readable, or gone since
        if identity in met or looked == limit:
            continue
        met.add(identity)
        looked += 1
        if any(entry.name == "config.json" for entry in entries):  # where it is a folder, reading it says so
            found.append(folder)
            continue
        for entry in entries:
            if not entry.name.startswith(".") and _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(folder / entry.name)
    return sorted(found, key=lambda run: run.parts)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


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
