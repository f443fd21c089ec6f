"""scripts/paper/figure_9.py: runs are told apart by one option, with returns and speed as their tables have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qsm.base.errors import UserError
from qsm.report.results import gather
from scripts.paper import figure_9
from tests.run_folders import add, line

TRAINING = """step,loop/num_updates,loop/steps_per_second
5000,0,
10000,0,900
20000,5000,{speed}
30000,15000,{speed}
"""


def a_run(root: Path, levels: int, seed: int, slope: float, speed: float, name: str | None = None) -> None:
    """Half an update a step, then one."""
    options = {"denoising_steps": levels, "n_step": 3}
    run = add(root, "qsm", "walker-walk", seed, line(slope), name=name or f"T{levels}", agent_options=options)
    run.train_csv.write_text(TRAINING.format(speed=speed))


def test_runs_are_put_together_by_the_option(tmp_path: Path):
    for levels, speed in ((20, 20.0), (5, 80.0)):
        for seed in (0, 1, 2):
            a_run(tmp_path, levels, seed, 300.0 * (seed + 1), speed * (seed + 1))
    found = figure_9.variants(gather([tmp_path])[0], "denoising_steps")
    assert [one.label for one in found] == ["qsm, T = 5", "qsm, T = 20"]
    for one, speed in zip(found, (80.0, 20.0), strict=True):
        assert (one.task, one.value, one.seeds) == ("walker-walk", int(one.label.split()[-1]), 3)
        np.testing.assert_array_equal(one.steps, [0, 10_000, 20_000, 30_000])
        np.testing.assert_allclose(one.returns, np.outer([1, 2, 3], [0, 100, 200, 300]))
        # Of the seed in the middle: 2 * speed steps a second at half an update a step, and at one.
        assert one.updates_per_second == pytest.approx(2 * speed * 0.75)
    rows = figure_9.rows_of(found, "denoising_steps")
    assert len(rows) == 8
    assert rows[3] == {
        **{"task": "walker-walk", "agent": "qsm", "denoising_steps": 5, "step": 30_000, "seeds": 3},
        **{"return_mean": 600.0, "return_low": 300.0, "return_high": 900.0, "updates_per_second": 120.0},
    }
    figure_9.draw(found, "denoising_steps", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path):
    a_run(tmp_path, 5, 0, 300.0, 80.0)
    a_run(tmp_path, 20, 0, 300.0, 80.0)
    runs = gather([tmp_path])[0]
    with pytest.raises(
        UserError, match="qsm@T20 and qsm@T5 on walker-walk both have n_step 3; give runs that differ"
    ):
        figure_9.variants(runs, "n_step")
    with pytest.raises(UserError, match="qsm@T20 has no option 'levels'"):
        figure_9.variants(runs, "levels")
