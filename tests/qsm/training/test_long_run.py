"""A long run takes no more memory, files or disk as it goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from qsm.record.tables import read_csv
from tests.counted_task import options
from tests.qsm.training.test_train import Run, run

STEPS = int(os.environ.get("QSM_LONG_RUN_STEPS", "200_000"))
LOOKS = 20

__all__ = ["run"]  # a fixture


class Look(NamedTuple):
    """What the process holds."""

    memory: int  # bytes
    open_files: int
    threads: int


@pytest.mark.slow
def test_memory_files_and_logs_stay_as_they_are(run: Run, tmp_path: Path):
    process = psutil.Process()
    looks: list[Look] = []

    def look(step: int) -> None:
        if step % (STEPS // LOOKS) == 0:
            looks.append(Look(process.memory_info().rss, process.num_fds(), process.num_threads()))

    path = tmp_path / "run"
    sizes = {
        "steps": STEPS,
        "random_steps": 100,
        "replay_ratio": "1/10",
        "log_interval": STEPS // 200,
        "eval_interval": STEPS // 100,
        "checkpoint_interval": STEPS // 40,
    }
    assert run(path, look, **sizes) == "finished"
    assert options(**sizes).steps == STEPS and len(looks) == LOOKS

    # The first quarter compiles, and fills the replay buffer and the caches of the allocator.
    settled, rest = looks[LOOKS // 4], looks[LOOKS // 4 :]
    assert max(seen.memory for seen in rest) < 1.05 * settled.memory, looks
    assert max(seen.open_files for seen in rest) <= settled.open_files + 2, looks
    assert max(seen.threads for seen in rest) <= settled.threads + 2, looks
    slope = np.polyfit(np.arange(len(rest)), [seen.memory for seen in rest], 1)[0]
    assert slope * len(rest) < 0.03 * settled.memory, looks

    assert len(read_csv(path / "train.csv")) == 200
    # Two checkpoints, and as many files of rows as the buffer of 1,000 still needs.
    kept = [file for file in (path / "checkpoints").iterdir() if file.name.isdigit()]
    assert len(kept) == 2
    assert len(list((path / "replay").iterdir())) <= 3 + 1000 // (STEPS // 40)
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 3_000_000
