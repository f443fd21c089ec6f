"""The cost of checkpoints: of those that a training would write."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsm.speed.checkpoint_cost import measure
from qsm.speed.limits import SPEC
from tests.tally_agent import TallyAgent


def test_only_new_rows_are_written(tmp_path: Path) -> None:
    found = list(measure(TallyAgent(SPEC.action_size), 1000, (10, 500), 2, tmp_path))
    assert [cost.new_rows for cost in found] == [10, 500]
    few, many = found
    # A row of cheetah-run has 17 + 6 + 2 numbers; random ones cannot be packed much. The agent's own state holds
    # none of the 1,000: its files' size changes by a kilobyte with how many threads Orbax wrote them.
    assert max(few.state_bytes, many.state_bytes) < 300 * 100
    assert 490 * 90 < many.row_bytes - few.row_bytes < 490 * 110
    assert all(cost.copied_seconds > 0 and cost.written_seconds > 0 for cost in found)


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "10").mkdir()
    (tmp_path / "10" / "replay").write_text("a file")
    with pytest.raises(OSError, match=r"could not be written|File exists|Not a directory"):
        list(measure(TallyAgent(SPEC.action_size), 100, (10,), 1, tmp_path))
