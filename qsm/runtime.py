"""How JAX runs here: compilation cache, precision, processes. Called once, before the first array."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from qsm.config import MatmulPrecision
from qsm.errors import UserError

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def cache_folder() -> Path:
    """Where compiled programs are kept: `qsm/xla` in the user's cache folder, or what CACHE_VARIABLE names."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qsm" / "xla"


def use_cache(warn: Callable[[str], None]) -> None:
    """Keeps compiled programs across starts; without a folder to write to, every start compiles."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        warn(f"compiled programs are not kept ({error}); set {CACHE_VARIABLE} to a folder for them")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def set_precision(precision: MatmulPrecision) -> None:
    """Precision of matrix products; JAX's own default on a GPU rounds their inputs to 10 bits (TF32)."""
    jax.config.update("jax_default_matmul_precision", precision)


def processes_asked(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` if this process was started as one of several, else None.

    Reads JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; under SLURM (srun) and Open MPI (mpirun)
    JAX finds them out itself.

    Raises:
      UserError: the variables contradict or lack one another.
    """
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        try:
            count, index = int(environ["JAX_NUM_PROCESSES"]), int(environ["JAX_PROCESS_ID"])
        except (KeyError, ValueError):
            raise UserError(
                "JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES and JAX_PROCESS_ID are not two whole numbers; "
                "set both, or unset it to run on one host"
            ) from None
        if not 0 <= index < count:
            raise UserError(
                f"JAX_PROCESS_ID is {index}; it must be from 0 to {count - 1} (JAX_NUM_PROCESSES - 1)"
            )
        return {"coordinator_address": address, "num_processes": count, "process_id": index}
    # A shell inside a SLURM job has the job's variables too, but only srun starts a step of several tasks.
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return {}
    return None


def join_processes() -> None:
    """Joins the other processes of the run, where there are any.

    Raises:
      UserError: they cannot be reached.
    """
    arguments = processes_asked(os.environ)
    if arguments is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the other processes of this run cannot be reached: {str(error).splitlines()[0]}"
        ) from error


def is_writer() -> bool:
    """True in the one process that writes the run."""
    return jax.process_index() == 0
