"""Compiled programs, kept from start to start: whole or not there, and bounded by the least recently used.

JAX has a cache of its own, but neither of its forms serves. With a bound it asks for the name of every file's owner at
every write, and fails where a container runs as a user without a name; without one it writes a program in place, so
that another process can read half of it. Hence `ProgramCache` behind JAX's interface for caches.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from filelock import FileLock
from jax._src import compilation_cache as jax_cache
from jax._src.compilation_cache_interface import CacheInterface

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MIN_SECONDS_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
CACHE_BYTES = 2 << 30
MIN_COMPILE_SECONDS = 0.5
"""Programs that compile faster are not kept, unless MIN_SECONDS_VARIABLE says otherwise."""
SUFFIX, UNFINISHED = ".program", ".part"
FORMER = ("*-cache", "*-atime")
"""What JAX's own bounded cache has left in the same folder."""
OTHERS_WRITE = 0o022
"""Bits of a file's mode: its group, or everybody, may write."""
LOCK_SECONDS = 10.0
"""How long a process waits for another that writes or removes programs."""


def cache_folder() -> Path:
    """Where compiled programs are kept: `qsm/xla` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qsm" / "xla"


def use_cache() -> str | None:
    """Keeps compiled programs across starts, at most `CACHE_BYTES` of them when a start begins.

    Where CACHE_VARIABLE is set the user has chosen, and JAX's own cache and variables rule. To be called before
    anything is compiled.

    Returns:
      A warning, where there is no folder to write to and every start will compile anew.
    """
    if os.environ.get(CACHE_VARIABLE):
        return None
    try:
        folder = cache_folder()
        ProgramCache(folder).clean(CACHE_BYTES)
    except (OSError, RuntimeError) as error:
        return f"compiled programs are not kept ({error}); set {CACHE_VARIABLE} to a folder for them"
    # JAX asks this function for its cache when it compiles for the first time; there is no public way to give it one.
    jax_cache.get_file_cache = open_cache
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if not os.environ.get(MIN_SECONDS_VARIABLE):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return None


_watched = threading.local()


@contextlib.contextmanager
def watch_keys() -> Iterator[set[str]]:
    """Collects the keys of the programs that this thread asks its cache for, or gives to it."""
    _watched.keys = found = set()
    try:
        yield found
    finally:
        del _watched.keys


def open_cache(path: str) -> tuple[CacheInterface, str]:
    """The cache in the folder `path`, and that folder, as JAX wants them."""
    return ProgramCache(Path(path)), path


class ProgramCache(CacheInterface):
    """Programs by JAX's key, one file each; a file's time is that of its last use.

    Args:
      folder: made, with those above it.
      clock: nanoseconds since the epoch.

    Raises:
      OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, clock: Callable[[], int] = time.time_ns) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder
        self._clock = clock
        self._lock = FileLock(folder / ".lockfile", timeout=LOCK_SECONDS)

    def get(self, key: str) -> bytes | None:
        """The program, or None; its last use is now."""
        getattr(_watched, "keys", set()).add(key)
        file = self._file(key)
        try:
            program = file.read_bytes()
        except FileNotFoundError:
            return None
        self._touch(file)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, unless there is one: it appears whole, in one step.

        Raises:
          OSError: it cannot be written, or another process holds the lock for too long.
        """
        file = self._file(key)
        with self._lock:
            if not file.exists():
                self._write(file, value)

    def get_own(self, key: str) -> bytes | None:
        """The program, or None where there is none that this user wrote and nobody else can; its last use is now.

        Raises:
          OSError: it is there and cannot be read.
        """
        try:
            with open(self._file(key), "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.geteuid() or status.st_mode & OTHERS_WRITE:
                    return None
                program = file.read()
        except FileNotFoundError:
            return None
        self._touch(self._file(key))
        return program

    def replace(self, key: str, value: bytes) -> None:
        """Keeps a program in the place of any that is there, as `put` does.

        Raises:
          OSError: it cannot be written, or another process holds the lock for too long.
        """
        with self._lock:
            self._write(self._file(key), value)

    def clean(self, max_bytes: int) -> None:
        """Removes what was never finished, then the least recently used programs until `max_bytes` are not exceeded.

        Raises:
          OSError: the folder cannot be written, or another process holds the lock for too long.
        """
        with self._lock:
            # Whoever writes holds the lock: what is unfinished now was left by a process that was killed.
            for pattern in (f"*{UNFINISHED}", *FORMER):
                for file in self._path.glob(pattern):
                    file.unlink()
            stats = {file: file.stat() for file in self._path.glob(f"*{SUFFIX}")}
            total = sum(stat.st_size for stat in stats.values())
            for file, stat in sorted(stats.items(), key=lambda item: item[1].st_mtime_ns):
                if total <= max_bytes:
                    break
                file.unlink()
                total -= stat.st_size

    def _file(self, key: str) -> Path:
        return self._path / f"{key}{SUFFIX}"

    def _write(self, file: Path, value: bytes) -> None:
        """Under the lock: whole, in one step, and for this user alone."""
        unfinished = file.with_suffix(UNFINISHED)
        unfinished.unlink(missing_ok=True)  # left by a process that was killed, with whatever mode
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(value)
        self._touch(unfinished)
        unfinished.replace(file)

    def _touch(self, file: Path) -> None:
        now = self._clock()
        with contextlib.suppress(OSError):  # removed meanwhile, or another user's: it only counts as older
            os.utime(file, ns=(now, now))
