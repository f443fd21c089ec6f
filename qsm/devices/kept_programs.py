"""Programs kept on disk as they are called, so that a later start neither traces nor lowers them.

JAX's cache of compiled programs is asked by the program's text, which takes Python seconds to make. Here is kept how a
program is called, and under which key JAX has its executable (`qsm.devices.program_file`), by all that the text is made
from (`qsm.devices.program_key`). Both lie in the folder of `qsm.devices.compilation_cache`, within its bound.

Every program is traced as ever unless `use` was called and found no reason against it, and so is each that lies on
several devices, calls back into Python, or is of a class defined outside of this project.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import psutil

from qsm.devices import program_key
from qsm.devices.compilation_cache import CACHE_VARIABLE, ProgramCache, cache_folder, watch_keys
from qsm.devices.program_key import Source, UnknownError

LOG = logging.getLogger(__name__)
WATCHED = (
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_disable_jit",
    "jax_enable_checks",
    "jax_check_tracer_leaks",
)
"""Settings under which JAX does more than to call a program."""
TRIED = ("0.10.", "0.11.")
"""How versions of JAX begin whose inner parts, which no version promises to the next, were tried for this."""


class Store(NamedTuple):
    """Where programs are kept, the code that this process was started with, and when that was."""

    cache: ProgramCache
    source: Source
    began: float


_store: Store | None = None


def use(began: float | None = None) -> str | None:
    """Has the programs that are made from now on kept. For a process whose code is what lies on disk: a command's.

    To be called after `compilation_cache.use_cache`, before any agent is built.

    Args:
      began: when this process was started, in seconds since the epoch: nothing is kept of code that is newer.

    Returns:
      Why they are not kept, where they are not.
    """
    global _store
    _store = None
    try:
        reason = _why_not()
        if reason is None:
            began = psutil.Process().create_time() if began is None else began
            _store = Store(ProgramCache(cache_folder()), program_key.read_source(), began)
    except (OSError, RuntimeError, UnknownError) as error:
        reason = str(error)
    return reason


def _why_not() -> str | None:
    config: Any = jax.config
    if os.environ.get(CACHE_VARIABLE) or not config.jax_enable_compilation_cache:
        return "the compilation cache is not this project's"
    if not hasattr(os, "geteuid"):
        return "the owner of a file cannot be told"
    if jax.process_count() > 1 or config.jax_default_device is not None:
        return "the device is not the first one of a single process"
    if not jax.__version__.startswith(TRIED):
        return f"it was not tried with jax {jax.__version__}"
    switched_on = [name for name in WATCHED if getattr(config, name)]
    return f"{switched_on[0]} is on" if switched_on else None


def jit(function: Callable[..., Any], name: str, value: Any, **options: Any) -> Any:
    """`jax.jit(function, **options)`, or a `KeptProgram` of it where programs are kept.

    Args:
      name: of the program.
      value: all that `function` computes for, but its code and arguments; see `program_key.describe`.
    """
    jitted = jax.jit(function, **options)
    if _store is None:
        return jitted
    try:
        return KeptProgram(jitted, name, program_key.describe(value), options, _store)
    except UnknownError as error:
        LOG.debug("%s is not kept: %s", name, error)
        return jitted


def shapes(program: Any, *arguments: Any) -> Any:
    """Shapes of what `program`, made by `jit`, returns; traced only where it is not kept."""
    if isinstance(program, KeptProgram):
        return program.shapes(*arguments)
    return jax.eval_shape(program, *arguments)


def compile_for(program: Any, *arguments: Any) -> None:
    """Has `program`, made by `jit`, ready to be called with `arguments`, or with what has their shapes."""
    if isinstance(program, KeptProgram):
        program.prepare(*arguments)
    else:
        program.lower(*arguments).compile()


class KeptProgram:
    """A program that is looked for on disk before it is traced; called as what `jax.jit` returns.

    JAX's settings are taken to stay as they are from the first call on.
    """

    def __init__(self, jitted: Any, name: str, value: str, options: Any, store: Store) -> None:
        self._jitted, self._name, self._value, self._options = jitted, name, value, options
        self._store = store
        self._ready: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()
        self._last: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._last is not None:
            # To compare their shapes at every call would cost more. Others are refused before anything is donated; and
            # so is what no program takes, which is told below.
            with contextlib.suppress(TypeError, ValueError):
                return self._last(*arguments)
        self._last = self.prepare(*arguments)
        return self._last(*arguments)

    def prepare(self, *arguments: Any) -> Any:
        """The program for `arguments`, or for what has their shapes."""
        called_with = program_key.signature(arguments)
        with self._lock:
            if called_with not in self._ready:
                found = self._load(called_with)
                self._ready[called_with] = self._make(called_with, arguments) if found is None else found
            return self._ready[called_with]

    def shapes(self, *arguments: Any) -> Any:
        """Shapes of what it returns; it is traced, and not compiled, where it is not there."""
        called_with = program_key.signature(arguments)
        with self._lock:
            found = self._ready.get(called_with) or self._load(called_with)
            if found is None:
                return jax.eval_shape(self._jitted, *arguments)
            self._ready[called_with] = found
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found.out_info)

    def lower(self, *arguments: Any) -> Any:
        """As of `jax.jit`: traced anew, to be looked at."""
        return self._jitted.lower(*arguments)

    def _key(self, called_with: tuple[Any, ...]) -> str:
        return program_key.key_of(self._name, self._value, self._options, called_with, self._store.source)

    def _load(self, called_with: tuple[Any, ...]) -> Any:
        """The program on disk; None where there is none, or it is not this user's, damaged, or of other arguments."""
        try:
            from qsm.devices import program_file  # with parts of JAX that another version may not have

            program = program_file.read(self._store.cache, self._key(called_with))
        except UnknownError as error:
            LOG.debug("%s is not kept: %s", self._name, error)
            return None
        except Exception as error:  # whatever is wrong with a file: it is made anew
            LOG.debug("%s cannot be read: %s", self._name, error)
            return None
        if program is None or program.in_tree != jax.tree.structure(
            (tuple(called_with_shapes(called_with)), {})
        ):
            return None
        return program

    def _make(self, called_with: tuple[Any, ...], arguments: Any) -> Any:
        from jax._src.config import persistent_cache_min_compile_time_secs

        from qsm.devices import program_file

        with watch_keys() as executables, persistent_cache_min_compile_time_secs(0.0):
            lowered = self._jitted.lower(*arguments)
            program = lowered.compile()
        try:
            # Not of code that was changed since this process has, or may have, read it.
            now = program_key.read_source()
            if now.digest == self._store.source.digest and now.newest < self._store.began:
                functions = program_file.called_functions(lowered)
                program_file.write(self._store.cache, self._key(called_with), program, functions, executables)
        except Exception as error:  # a start must not end because the next one will be slower
            LOG.debug("%s is not kept: %s", self._name, error)
        return program


def called_with_shapes(called_with: tuple[Any, ...]) -> Any:
    """Shapes of the arguments that have a signature."""
    structure, leaves = called_with
    return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in leaves])
