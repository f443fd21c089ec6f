"""How JAX computes here: the precision of matrix products."""

from __future__ import annotations

from typing import get_args

import jax

from qsm.devices import processes
from qsm.options.run import MatmulPrecision

# The names of before, for rooms that still use them.
is_writer, join_processes, find_devices = (
    processes.is_writer,
    processes.join_processes,
    processes.find_devices,
)
processes_asked, of_writer = processes.processes_asked, processes.broadcast_from_writer
least, together = processes.global_min, processes.barrier


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
