"""The rows of a run's replay buffer on disk: one file for each checkpoint, of the rows added since the one before.

A file is written once and never changed, so that checkpoints share it, and is removed when no checkpoint that is kept
names it: rows that the buffer has overwritten are dropped, a file at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsm.base.files import remove_quietly, replace_file, sha256_of
from qsm.data.replay import Rows

NAME = re.compile(r"(\d+)\.npz")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A file of rows, as checkpoints name it."""

    name: str
    sha256: str
    first: tuple[int, ...]  # for each environment the number of its first row
    stop: tuple[int, ...]  # and the one after its last

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Segment:
        """Raises ValueError, KeyError or TypeError where `value` is none."""
        name, sha256 = str(value["name"]), str(value["sha256"])
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no file of replay rows")
        return cls(name, sha256, tuple(map(int, value["first"])), tuple(map(int, value["stop"])))


def write(folder: Path, step: int, rows: Rows) -> Segment:
    """Writes `rows` as the file of the checkpoint at `step`.

    Raises:
      OSError: it cannot be written; nothing is left of it.
    """
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **rows.arrays())  # type: ignore[arg-type]
    data = file.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{step}.npz", data)
    stop = tuple(rows.stop.tolist())
    return Segment(f"{step}.npz", hashlib.sha256(data).hexdigest(), tuple(rows.first.tolist()), stop)


def is_whole(folder: Path, segment: Segment) -> bool:
    """Whether the file is as it was written, to the bit."""
    try:
        return sha256_of(folder / segment.name) == segment.sha256
    except OSError:
        return False


def read(folder: Path, segment: Segment) -> Rows:
    """The rows of `segment`.

    Raises:
      ValueError: the file is not as it was written.
      OSError: it cannot be read.
    """
    data = (folder / segment.name).read_bytes()
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        raise ValueError(f"{folder / segment.name} is damaged")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return Rows(**{name: file[name] for name in Rows._fields if name in file.files})


def still_there(segments: Sequence[Segment], written: np.ndarray, num_rows: int) -> list[Segment]:
    """Those with rows that a buffer of `num_rows` rows still holds when `written` `[N]` have been written.

    A segment whose rows a later one holds anew, because they were revised meanwhile, is none of them.
    """
    return [
        segment
        for i, segment in enumerate(segments)
        if np.any(np.asarray(segment.stop) > written - num_rows)
        and not any(np.any(np.asarray(later.first) < segment.stop) for later in segments[i + 1 :])
    ]


def remove_others(folder: Path, named: Sequence[Segment]) -> None:
    """Removes the files that are none of `named`."""
    names = {segment.name for segment in named}
    for path in folder.glob("*.npz") if folder.is_dir() else ():
        if NAME.fullmatch(path.name) and path.name not in names:
            remove_quietly(path)
