"""Several processes, one run: what two leave is what one leaves, and all stop, or fail, when one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs import dmc, mjx
from qsm.options.run import Backend
from qsm.record.tables import read_csv
from tests import one_process

ROOT = Path(__file__).parents[3]


def two_processes(backend: Backend, root: Path, stop_step: int = 0) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each of two processes that train together, connected on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(2):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            # One device each.
            "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", ""),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "COLUMNS": "300",
        }
        command = [sys.executable, "-m", "tests.one_process", backend, str(root), str(stop_step)]
        processes.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
            )
        )
    try:
        texts = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(processes, texts, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dm_control", "mjx"])
def test_two_processes_leave_what_one_leaves_also_stopped_in_between(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Only process 1 is told to stop.
    for status, output, errors in two_processes(backend, tmp_path / "two", stop_step=one_process.STEPS // 3):
        assert status == 0 and "outcome preempted" in output, output + errors
    runs = sorted(path.parent for path in (tmp_path / "two").rglob("config.json"))
    assert len(runs) == one_process.NUM_SEEDS[backend]
    reached = {json.loads((run / "status.json").read_text())["step"] for run in runs}
    assert len(reached) == 1 and one_process.STEPS // 3 <= reached.pop() < one_process.STEPS

    first, second = two_processes(backend, tmp_path / "two")
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "outcome finished" in first[1] and "resuming at step" in first[1]
    # One shows the run. (What connects the processes on a CPU may write a line of its own to either output.)
    assert "outcome finished" in second[1] and "resuming" not in second[1] and "memory" not in second[1]

    monkeypatch.setattr(dmc, "make_env", dmc.make_env)  # `run` replaces them
    monkeypatch.setattr(mjx, "make_env", mjx.make_env)
    assert one_process.run(backend, tmp_path / "one") == "finished"
    for run in runs:
        alone = tmp_path / "one" / run.relative_to(tmp_path / "two")
        for file in ("train.csv", "eval.csv"):
            found, expected = numbers(run / file), numbers(alone / file)
            assert [row["step"] for row in found] == [row["step"] for row in expected]
            for row, other in zip(found, expected, strict=True):
                assert set(row) == set(other)
                for name, value in row.items():
                    np.testing.assert_allclose(value, other[name], rtol=1e-3, atol=1e-4, err_msg=name)

    # And once more alone: determinism is bit for bit, on either backend.
    assert one_process.run(backend, tmp_path / "again") == "finished"
    for run in runs:
        for file in ("train.csv", "eval.csv"):
            name = run.relative_to(tmp_path / "two") / file
            assert numbers(tmp_path / "again" / name) == numbers(tmp_path / "one" / name) != []


def numbers(file: Path) -> list[dict[str, float]]:
    """The rows of a CSV without what a clock wrote."""
    return [{name: x for name, x in row.items() if "second" not in name} for row in read_csv(file)]


@pytest.mark.slow
def test_a_mistake_that_one_process_finds_ends_both(tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    first, second = two_processes("dm_control", tmp_path / "file")
    assert first[0] != 0 and second[0] != 0
    assert "is a file" in first[2].strip().splitlines()[-1]
    assert "process 0 of this run cannot go on; its output says why" in second[2]
