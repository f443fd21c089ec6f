"""The processes of a run on several hosts: how they find one another, which one writes, and how they agree."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qsm.base.errors import UserError, first_line
from qsm.devices.environment_variables import idle_accelerators
from qsm.devices.runtime import find_devices


def processes_asked(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` if this process was started as one of several, else None.

    Reads JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; under SLURM (srun) and Open MPI (mpirun)
    JAX finds them out itself. Process 0 then listens for the others on every address of its host, but where
    JAX_COORDINATOR_ADDRESS is one of loopback, or JAX_COORDINATOR_BIND_ADDRESS is set, on that address only.

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
        host, _, port = address.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 0 < int(port) < 2**16:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be HOST:PORT of process 0, port 1 to 65535"
            )
        asked = {"coordinator_address": address, "num_processes": count, "process_id": index}
        if _is_loopback(host) and not environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
            # JAX would listen on [::], and take whoever reaches this host for one of the processes.
            asked["coordinator_bind_address"] = address
        return asked
    # A shell inside a SLURM job has the job's variables too, but only srun starts a step of several tasks.
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        try:
            if int(environ.get(name, "1")) > 1:
                return {}
        except ValueError:
            raise UserError(f"{name} is {environ[name]!r}; it must be a whole number, or be unset") from None
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def join_processes() -> str | None:
    """Joins the other processes of the run, where there are any, and finds the devices.

    Returns:
      A warning, where devices of this host stand idle.

    Raises:
      UserError: the processes cannot be reached, or there is no device.
    """
    arguments = processes_asked(os.environ)
    if arguments is not None and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(**arguments)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the other processes of this run cannot be reached: {first_line(error)}"
            ) from error
    find_devices()
    return idle_accelerators(os.environ)


def is_writer() -> bool:
    """True in the one process that writes the run."""
    return jax.process_index() == 0


def broadcast_from_writer(values: np.ndarray) -> np.ndarray:
    """Gives every process the `values` of the one that writes: what is read from disk is decided once."""
    return np.asarray(multihost_utils.broadcast_one_to_all(values)) if jax.process_count() > 1 else values


def global_min(number: int) -> int:
    """Returns the smallest `number` of all processes; where there are several, to the kB and at most 2 TB."""
    if jax.process_count() == 1:
        return number
    # JAX would make an int32 of it: rounded down to kB, that holds up to 2 TB. What has more may be said to have that.
    shortened = np.array(min(number >> 10, 2**31 - 1), np.int32)
    return int(np.min(multihost_utils.process_allgather(shortened))) << 10


@contextmanager
def barrier() -> Iterator[None]:
    """Lets no process leave the block before all have; a `UserError` of one stops all, which would wait in vain.

    Raises:
      UserError: of this process, or else one that points to the output of another.
    """
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and np.any(failed):
            first = int(np.flatnonzero(failed)[0])
            error = UserError(f"process {first} of this run cannot go on; its output says why")
    if error is not None:
        raise error
