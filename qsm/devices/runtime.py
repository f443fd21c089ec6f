"""How JAX runs here: compilation cache, precision, devices. Called once, before the first array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import jax
from filelock import FileLock

from qsm.devices.environment_variables import no_device
from qsm.options.run import MatmulPrecision

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
CACHE_BYTES = 2 << 30


def cache_folder() -> Path:
    """Where compiled programs are kept: `qsm/xla` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qsm" / "xla"


def use_cache() -> str | None:
    """Keeps compiled programs across starts, at most `CACHE_BYTES` of them, the least recently used removed first.

    Where CACHE_VARIABLE is set the user has chosen, and JAX's own variables rule. To be called before anything is
    compiled.

    Returns:
      A warning, where there is no folder to write to and every start will compile anew.
    """
    if os.environ.get(CACHE_VARIABLE):
        return None
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except (OSError, RuntimeError) as error:
        return f"compiled programs are not kept ({error}); set {CACHE_VARIABLE} to a folder for them"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # With a bound JAX locks the folder, so that of two processes neither reads what the other is still writing.
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return None


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that a killed process had half written: JAX's bounded cache could add none beside them.

    JAX writes `KEY-cache`, then `KEY-atime`, which its eviction reads for every program.
    """
    with FileLock(folder / ".lockfile").acquire(timeout=10):  # the lock that JAX holds while it writes
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink()


def set_precision(precision: MatmulPrecision) -> None:
    """Precision of matrix products; JAX's own default on a GPU rounds their inputs to 10 bits (TF32).

    Raises:
      ValueError: `precision`, out of a file, is none of those that a run can have.
    """
    if precision not in get_args(MatmulPrecision):
        raise ValueError(
            f"matmul_precision is {precision!r}; it must be one of {', '.join(get_args(MatmulPrecision))}"
        )
    jax.config.update("jax_default_matmul_precision", precision)


def find_devices() -> None:
    """Starts JAX's backends.

    Raises:
      UserError: those that the environment's variables ask for are not here.
    """
    try:
        jax.devices()
    except (RuntimeError, ValueError, AssertionError) as error:
        raise no_device(os.environ, error) from error
