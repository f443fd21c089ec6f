"""One owner for a run folder: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError

NAME = ".owner"
"""File in a run folder; who holds the lock on it owns the run, and its content says who that is."""


@contextlib.contextmanager
def owned(path: Path, since: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the run folder `path`.

    Args:
      since: what is told to others of the time at which it was taken.
      warn: told where the file system knows no locks.

    Raises:
      UserError: another process holds it; names that process.
    """
    try:
        file = os.open(path / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"Cannot write in {path}: {error.strerror or error}.") from error
    try:
        try:
            _take(file)
        except BlockingIOError:
            raise UserError(f"{path} is in use: {_describe(path)}. Wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise UserError(f"{path / NAME} cannot be locked: {error.strerror}.") from error
            warn(f"{path} is on a file system without locks: take care that nobody else trains there")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(owner).encode(), 0)
        yield
    finally:
        os.close(file)


def _take(file: int) -> None:
    """Locks `file`; not at once, for `is_owned` of another process holds it for a moment."""
    for _ in range(4):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_owned(path: Path) -> bool:
    """Whether a process holds the run folder `path`; nothing is written."""
    try:
        file = os.open(path / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _describe(path: Path) -> str:
    """Who wrote the owner's file last."""
    try:
        owner: Any = json.loads((path / NAME).read_bytes())
        return f"process {int(owner['pid'])} on {owner['host']} has trained there since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process trains there"
