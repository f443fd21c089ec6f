"""Files that are replaced whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` in the place of `path`, whole or not at all.

    Raises:
      OSError: the disk is full, or the folder cannot be written; the former file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        remove_quietly(temporary)
        raise


def remove_quietly(path: Path) -> None:
    """Removes `path` if it can: the error that led here is the one to tell."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` with `value` as strict JSON (no NaN); raises OSError as `replace_file` does."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: it cannot be read, or is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (no JSON); restore it or start the run anew.") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal.

    Raises:
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
