"""What needs no second process. (tests/qsm/training/test_two_processes.py trains in two.)"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from qsm.base.errors import UserError
from qsm.devices import processes
from qsm.devices.processes import processes_asked


@pytest.mark.parametrize(
    ("number", "expected"),
    [(5000, 4096), (3 << 30, 3 << 30), (2 << 40, (2 << 40) - 1024), (1 << 62, (2 << 40) - 1024)],
)
def test_the_smallest_of_any_number_of_bytes(
    number: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may have more than the int32 of kB that processes exchange can hold."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = lambda array: np.stack([array, np.array(2**31 - 1, np.int32)])  # noqa: E731
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    assert processes.global_min(number) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_processes_of_one_host_do_not_listen_beyond_it(host: str) -> None:
    variables = {"JAX_COORDINATOR_ADDRESS": f"{host}:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    asked = processes_asked(variables) or {}
    assert asked["coordinator_bind_address"] == asked["coordinator_address"] == f"{host}:1234"
    chosen = variables | {"JAX_COORDINATOR_BIND_ADDRESS": "[::]:1234"}
    assert "coordinator_bind_address" not in (processes_asked(chosen) or {})


def test_processes_of_several_hosts_listen_for_one_another() -> None:
    for host in ("10.0.0.1", "node-1", "localhost.example.org"):
        variables = {"JAX_COORDINATOR_ADDRESS": f"{host}:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        assert "coordinator_bind_address" not in (processes_asked(variables) or {})


@pytest.mark.parametrize("address", ["host", ":80", "host:", "host:x", "host:0", "host:65536", "host:٣"])
def test_an_address_without_host_or_port_is_told(address: str) -> None:
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    with pytest.raises(UserError, match="it must be HOST:PORT of process 0"):
        processes_asked(variables)


def test_joining_tells_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise AssertionError  # what JAX says of cuda without a GPU

    assert processes.join_processes() is None
    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match=r"^JAX_PLATFORMS is 'cuda', but JAX finds no such device here"):
        processes.join_processes()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell inside a job
        ({"SLURM_STEP_NUM_TASKS": "4"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1},
        ),
    ],
)
def test_processes_are_found_in_the_environment(environ: dict[str, str], expected: object):
    assert processes_asked(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "not two whole numbers"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "not two whole numbers"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "must be from 0 to 1"),
    ],
)
def test_variables_that_lack_one_another_are_told(environ: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        processes_asked(environ | {"JAX_COORDINATOR_ADDRESS": "host:1"})
