"""`qsm runs` tells of every run how far it came and why it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agents.config import AgentConfig
from qsm.command.cli import main
from qsm.options.run import RunConfig
from qsm.record import listing, lock
from qsm.record.config_file import resolved_config
from qsm.record.run_folder import RunDir
from qsm.record.run_id import RunId
from qsm.record.status import Status


def make(root: Path, seed: int, name: str | None = None) -> RunDir:
    config = resolved_config(
        "qsm", "walker-walk", "mjx", AgentConfig(), RunConfig(seed=seed, steps=2000, random_steps=100)
    )
    return RunDir.create_or_open(RunId("mjx", "walker-walk", "qsm", name, seed).path(root), config)


def fail(message: str) -> None:
    raise AssertionError(message)


def test_every_state_is_told(tmp_path: Path):
    done, failed, killed, going, new = (make(tmp_path, seed) for seed in range(5))
    hot = make(tmp_path, 0, "hot")
    done.write_status("finished", 2000, 2000, 512.34)
    failed.write_status("diverged", 500, 2000, 3.0, "diverged by step 500: critic/loss is nan")
    killed.write_status("running", 1000, 2000, 7.0)
    going.write_status("running", 1500, 2000)
    hot.write_status("interrupted", 20, 2000)
    (make(tmp_path, 9).path / "config.json").write_text("{")
    with lock.owned(going.path, "noon", fail):
        found = {
            Path(row.path).relative_to(tmp_path / "mjx" / "walker-walk"): row
            for row in listing.rows(tmp_path)
        }
    shown = {str(path): (row.progress, row.last_return, row.state) for path, row in found.items()}
    damaged = shown.pop("qsm/seed_9")
    assert damaged[2].startswith("damaged: ") and "\n" not in damaged[2]
    assert shown == {
        "qsm/seed_0": ("2,000 of 2,000 (100%)", "512.3", "finished"),
        "qsm/seed_1": ("500 of 2,000 (25%)", "3.00", "diverged by step 500: critic/loss is nan"),
        "qsm/seed_2": ("1,000 of 2,000 (50%)", "7.00", "killed"),
        "qsm/seed_3": ("1,500 of 2,000 (75%)", "", "running"),
        "qsm/seed_4": ("", "", "not begun"),
        "qsm@hot/seed_0": ("20 of 2,000 (1%)", "", "interrupted"),
    }
    assert new.status() == Status()
    row = found[Path("qsm@hot/seed_0")]
    assert (row.task, row.agent, row.seed, row.backend) == ("walker-walk", "qsm@hot", "0", "mjx")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"agent": "qsn"}, "unknown agent 'qsn'"),
        ({"task": "walker-wlak"}, "Unknown task 'walker-wlak'"),
        ({"task": "dog-run"}, "Task 'dog-run' exists on dm_control only"),
        ({"backend": "brax"}, "unknown backend 'brax'"),
        ({"agent_config": {"discount": "0.9"}}, "agent_config.discount is '0.9'; it must be a finite number"),
        (
            {"agent_config": {"discuont": 0.9}},
            "agent_config.discuont is no option of qsm. Did you mean 'discount'?",
        ),
        (
            {"run_config": {"matmul_precision": "f8"}},
            "run_config.matmul_precision is 'f8'; it must be one of",
        ),
    ],
)
def test_what_this_version_does_not_know_is_marked(tmp_path: Path, changes: dict[str, Any], reason: str):
    run = make(tmp_path, 0)
    run.write_status("finished", 2000, 2000, 1.0)
    (run.path / "config.json").write_text(json.dumps(run.config | changes))
    (row,) = listing.rows(tmp_path)
    assert row.state.startswith(f"finished; {reason}") and "\n" not in row.state


def test_a_folder_in_place_of_the_status_is_told(tmp_path: Path):
    run = make(tmp_path, 0)
    run.write_status("finished", 2000, 2000, 1.0)
    (run.path / "status.json").unlink()
    (run.path / "status.json").mkdir()
    (row,) = listing.rows(tmp_path)
    assert row.state == f"damaged: Cannot read {run.path / 'status.json'}: Is a directory."


def test_a_name_cannot_break_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make(tmp_path, 0)
    os.rename(run.path, os.fsencode(run.path) + b"\xff\t\n\x1b")
    assert main(["runs", str(tmp_path)]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split("\t")[-1] == str(run.path) + r"\udcff\t\n\x1b"


def test_the_command_prints_a_line_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make(tmp_path, 3).write_status("finished", 2000, 2000, 1.0)
    assert main(["runs", str(tmp_path)]) == 0
    title, row = capsys.readouterr().out.splitlines()
    assert title.split("\t")[:3] == ["task", "agent", "seed"]
    assert row.split("\t")[:4] == ["walker-walk", "qsm", "3", "mjx"]


@pytest.mark.parametrize(("make_it", "message"), [(False, "No folder"), (True, "No run below")])
def test_nothing_to_list_is_told(
    tmp_path: Path, make_it: bool, message: str, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "runs"
    if make_it:
        folder.mkdir()
    assert main(["runs", str(folder)]) == 2
    assert message in capsys.readouterr().err
