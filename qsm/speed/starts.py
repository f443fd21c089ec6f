"""First and second starts of a job, in one process: with an empty compilation cache, and with what the first left.

Each job has a folder of its own, so that none finds what another compiled. JAX's caches in memory are emptied before
every start. Two things are left of a new process: imports and the device are there already, and on a GPU XLA remembers
for the life of a process which kernel was fastest for a shape, so that a first start may profit from an earlier case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from jax.experimental.compilation_cache import compilation_cache

from qsm.devices.compilation_cache import MIN_COMPILE_SECONDS


@dataclasses.dataclass
class Start:
    """What a start took, from an agent's sizes to the end of the first step."""

    first_step_seconds: float = 0.0
    compile_seconds: float = 0.0
    """In the compiler, or in reading from the cache what it had made."""
    programs_from_cache: int = 0


class Startable(Protocol):
    """A case: it starts as it is made."""

    start: Start


CaseType = TypeVar("CaseType", bound=Startable)


@contextlib.contextmanager
def watch_compiler() -> Iterator[Start]:
    """Collects the seconds of every compilation, and counts what the cache gave."""
    found = Start()

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        # Of the compiler alone: tracing is reported for inner functions too, and would count twice.
        if event == "/jax/core/compile/backend_compile_duration":
            found.compile_seconds += duration_secs

    def on_event(event: str, **_: Any) -> None:
        found.programs_from_cache += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)


class Caches:
    """Folders of compiled programs below `root`, one in use at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = 0

    def use(self, folder: Path) -> None:
        """Programs are read from and kept in `folder` from now on."""
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()  # JAX opens the folder once, at its first compilation

    def start_twice(self, make: Callable[[], CaseType]) -> tuple[CaseType, dict[str, Any], Path]:
        """The case of the second start, what both took, and the folder with its programs."""
        self._made += 1
        folder = self.root / f"{self._made}"
        cold = self._start(make, folder).start  # the case itself goes, and its arrays with it
        case = self._start(make, folder)
        row = {
            "compile_seconds": cold.compile_seconds,
            "first_step_seconds": cold.first_step_seconds,
            "compile_seconds_of_second_start": case.start.compile_seconds,
            "first_step_seconds_of_second_start": case.start.first_step_seconds,
            "programs_from_cache_at_second_start": case.start.programs_from_cache,
        }
        return case, row, folder

    def _start(self, make: Callable[[], CaseType], folder: Path) -> CaseType:
        gc.collect()  # a case refers to itself; the device's memory is to be free of the last one
        jax.clear_caches()
        self.use(folder)
        return make()


@contextlib.contextmanager
def caches() -> Iterator[Caches]:
    """Empty folders, removed at the end; JAX's own settings are then as they were."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    former = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as root:
        made = Caches(Path(root))
        made.use(made.root / "shared")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
        try:
            yield made
        finally:
            for name, value in former.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
