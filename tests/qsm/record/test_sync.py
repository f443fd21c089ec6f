"""What was recorded offline is uploaded once, and what is not is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents.config import AgentConfig
from qsm.command import cli
from qsm.options.run import RunConfig
from qsm.record import lock
from qsm.record.config_file import resolved_config
from qsm.record.run_folder import RunDir
from qsm.record.run_id import RunId
from qsm.record.sync import recordings, sync


def recorded(root: Path, seed: int, times: int = 1) -> RunDir:
    """A run that was started so many times."""
    config = resolved_config("sac", "walker-walk", "dm_control", AgentConfig(), RunConfig(seed=seed))
    run = RunDir.create_or_open(RunId("dm_control", "walker-walk", "sac", None, seed).path(root), config)
    for time in range(times):
        folder = run.wandb / f"offline-run-20260101_00000{time}-abc{seed}"
        folder.mkdir(parents=True)
        (folder / f"run-abc{seed}.wandb").write_bytes(b"rows")
    return run


class Wandb:
    """Uploads, marks what it uploaded as wandb does, and fails for what `refuses` names."""

    def __init__(self, refuses: str = "nothing") -> None:
        self.uploaded: list[Path] = []
        self.refuses = refuses

    def __call__(self, folders: Sequence[Path]) -> int:
        for folder in folders:
            self.uploaded.append(folder)
            if self.refuses not in folder.name:
                for file in folder.glob("*.wandb"):
                    file.with_name(file.name + ".synced").touch()
        return 0


def test_every_recording_is_uploaded_once_the_oldest_first(tmp_path: Path) -> None:
    runs = [recorded(tmp_path, seed, times) for seed, times in ((0, 2), (1, 1))]
    wandb, told = Wandb(), []
    assert sync(tmp_path, told.append, wandb) == 0
    assert wandb.uploaded == [
        *sorted(runs[0].wandb.glob("offline-run-*")),
        *runs[1].wandb.glob("offline-run-*"),
    ]
    assert told == ["uploading 3 recordings of 2 runs"]
    assert sync(tmp_path, told.append, wandb) == 0 and len(wandb.uploaded) == 3
    assert told[1] == f"nothing to upload below {tmp_path}"


def test_what_was_not_uploaded_is_told_and_tried_again(tmp_path: Path) -> None:
    first, second = recorded(tmp_path, 0), recorded(tmp_path, 1)
    told: list[str] = []
    assert sync(tmp_path, told.append, Wandb(refuses="abc1")) == 1
    assert told[-1] == "1 of 2 were not uploaded; the same command tries them again"
    assert not recordings(first.path) and recordings(second.path)
    wandb = Wandb()
    assert sync(tmp_path, told.append, wandb) == 0 and wandb.uploaded == [*second.wandb.glob("offline-run-*")]


def test_a_run_that_is_being_trained_is_left_for_later(tmp_path: Path) -> None:
    run, wandb, told = recorded(tmp_path, 0), Wandb(), []
    with lock.owned(run.path, "now", told.append):
        assert sync(tmp_path, told.append, wandb) == 0
    assert told[0] == f"{run.path} is being trained; it is left for later" and not wandb.uploaded
    assert sync(tmp_path, told.append, wandb) == 0 and len(wandb.uploaded) == 1


def test_no_network_is_told_at_once_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    run = recorded(tmp_path, 0)
    address = "http://127.0.0.1:9"  # discards: nothing listens there
    monkeypatch.setattr(wandb, "setup", lambda: Settings(address))
    assert cli.main(["sync", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"wandb's server {address} cannot be reached (Connection refused)" in told
    assert told.count("\n") == 1 and recordings(run.path)


class Settings:
    """As much of wandb's as is asked for."""

    def __init__(self, address: str) -> None:
        self.settings: Any = self
        self.base_url = address


def test_nothing_below_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sync", str(tmp_path)]) == 0
    assert "nothing to upload" in capsys.readouterr().out
    assert cli.main(["sync", str(tmp_path / "none")]) == 2
