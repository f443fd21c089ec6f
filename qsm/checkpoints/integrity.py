"""Whether the folder of a checkpoint is as it was written, to the bit."""

from __future__ import annotations

import itertools
from pathlib import Path

from qsm.base.errors import UserError
from qsm.base.files import read_json, sha256_of, write_json

CHECKSUMS = "checksums.json"
"""File in the folder of a checkpoint, written last: SHA-256 of every other."""


def seal(folder: Path) -> None:
    """Writes the checksums of all that lies below `folder`; raises OSError where they cannot be written."""
    write_json(folder / CHECKSUMS, _checksums(folder))


def is_complete(folder: Path) -> bool:
    """Whether `folder` was written to its end, however it may have been damaged since."""
    return (folder / CHECKSUMS).exists()


def is_whole(folder: Path) -> bool:
    """Whether `folder` is as it was when it was sealed."""
    try:
        return read_json(folder / CHECKSUMS) == _checksums(folder)
    except (UserError, OSError):
        return False


def free_place(path: Path) -> Path:
    """`path`, or with a number after it where that exists."""
    for number in itertools.count(2):
        if not path.exists():
            return path
        path = path.with_name(f"{path.name.partition('+')[0]}+{number}")
    raise AssertionError


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files below `folder`, by their names."""
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / CHECKSUMS
    }
