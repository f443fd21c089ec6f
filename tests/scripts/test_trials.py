"""The table of trials: options told by what differs, rows replaced only by more, everything else left."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from scripts import trials
from tests.run_folders import add

OLD = {"agent": "sac", "task": "cheetah-run", "seed": "10", "options": "--discount=0.9", "step": "0"}


def test_rows_are_added_and_replaced_by_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = tmp_path / "trials.csv"
    longer = [OLD | {"step": step, "return_mean": "1", "return_std": "2"} for step in ("0", "5000", "10000")]
    kept = OLD | {"agent": "td3", "options": "", "return_mean": "7.25", "return_std": "0"}
    trials.write_rows(table, [*longer, kept])
    options = {"discount": 0.9}
    runs = tmp_path / "runs"
    # Has come less far than the table has it: not put in.
    add(runs, "sac", "cheetah-run", 10, {0: 3.0, 5000: 4.0}, agent_options=options)
    add(
        runs,
        "qsm",
        "hopper-hop",
        11,
        {0: 5.0},
        name="x",
        agent_options={"preset": "strong", "num_atoms": 51},
        replay_ratio="2",
        action_repeat=4,
    )
    monkeypatch.setattr(sys, "argv", ["trials.py", str(runs), "--output", str(table)])
    trials.main()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[:3] == longer and rows[3] == kept
    [new] = rows[4:]
    assert (new["agent"], new["task"], new["seed"], new["return_mean"]) == ("qsm", "hopper-hop", "11", "5")
    flags = new["options"].split()
    assert flags == ["--preset=strong", "--num-atoms=51", "--replay-ratio=2", "--action-repeat=4"]

    add(tmp_path / "more", "sac", "cheetah-run", 10, dict.fromkeys(range(4), 9.0), agent_options=options)
    monkeypatch.setattr(sys, "argv", ["trials.py", str(tmp_path / "more"), "--output", str(table)])
    trials.main()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["return_mean"] for row in rows] == ["9"] * 4 + ["7.25", "5"]


def test_a_folder_without_runs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["trials.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        trials.main()
    assert "No run below the folders given" in capsys.readouterr().err
