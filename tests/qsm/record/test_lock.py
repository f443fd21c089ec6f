"""A run folder has one owner, whoever ends how."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsm.base.errors import UserError
from qsm.record import lock

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from qsm.record import lock
with lock.owned(Path(sys.argv[1]), "noon", print):
    print("owned", flush=True)
    sys.stdin.read()
"""


def fail(message: str) -> None:
    raise AssertionError(message)


def test_the_second_is_told_who_holds_the_run(tmp_path: Path):
    assert not lock.is_owned(tmp_path)
    with lock.owned(tmp_path, "noon", fail):
        assert lock.is_owned(tmp_path)
        with (
            pytest.raises(UserError, match=f"is in use: process {os.getpid()} on .+ since noon"),
            lock.owned(tmp_path, "later", fail),
        ):
            raise AssertionError("owned twice")
        assert lock.is_owned(tmp_path)  # a refusal lets go of nothing
    assert not lock.is_owned(tmp_path)
    with lock.owned(tmp_path, "later", fail):
        assert lock.is_owned(tmp_path)


def test_a_killed_owner_holds_nothing(tmp_path: Path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "owned\n"
        assert lock.is_owned(tmp_path)
        with pytest.raises(UserError, match=f"process {holder.pid} on"), lock.owned(tmp_path, "later", fail):
            raise AssertionError("owned twice")
    finally:
        holder.kill()
        holder.communicate()
    assert not lock.is_owned(tmp_path)
    with lock.owned(tmp_path, "later", fail):
        pass


def test_a_damaged_note_is_no_obstacle(tmp_path: Path):
    with lock.owned(tmp_path, "noon", fail):
        (tmp_path / lock.NAME).write_text("{")
        with pytest.raises(UserError, match="another process trains there"), lock.owned(tmp_path, "", fail):
            raise AssertionError("owned twice")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="Cannot write in"), lock.owned(tmp_path / "none", "noon", fail):
        raise AssertionError("owned")
    assert not lock.is_owned(tmp_path / "none")
