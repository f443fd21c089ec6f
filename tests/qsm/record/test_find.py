"""Runs are found once each, behind links too, and a wrong path names those nearby."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.qsm import QSMConfig
from qsm.base.errors import UserError
from qsm.command import cli
from qsm.options.run import RunConfig
from qsm.record.config_file import resolved_config
from qsm.record.find import find_runs, load_run
from qsm.record.run_folder import RunDir
from qsm.record.run_id import RunId


def config(**options: Any) -> dict[str, Any]:
    return resolved_config("qsm", "cartpole-swingup", "dm_control", QSMConfig(), RunConfig(**options))


def refusal(action: Any, *arguments: Any) -> str:
    """The one line of the UserError that `action` raises."""
    with pytest.raises(UserError) as raised:
        action(*arguments)
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_load_names_the_mend(tmp_path: Path) -> None:
    missing = tmp_path / "runs" / "qsm" / "seed_1"
    assert f"There is no folder {missing}" in refusal(load_run, missing)
    assert "qsm train" in refusal(load_run, missing)
    run = tmp_path / "runs" / "qsm" / "seed_0"
    RunDir.create_or_open(run, config())
    assert f"Did you mean '{run}'?" in refusal(load_run, missing)
    assert f"Runs nearby: {run}." in refusal(load_run, tmp_path / "runs")
    (run / "checkpoints").mkdir()
    assert f"give {run}." in refusal(load_run, run / "checkpoints")
    assert f"give {run}." in refusal(load_run, run / "config.json")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(load_run, tmp_path / "file")
    for seed in range(1, 5):
        RunDir.create_or_open(run.with_name(f"seed_{seed}"), config())
    line = refusal(load_run, tmp_path)
    assert "seed_0" in line and "seed_2" in line and "and 2 more" in line


def test_runs_are_found_in_order_and_not_inside_runs(tmp_path: Path) -> None:
    for name in ("b", "a"):
        RunDir.create_or_open(tmp_path / name / "seed_0", config())
    (tmp_path / "a" / "seed_0" / "checkpoints").mkdir()
    (tmp_path / "a" / "seed_0" / "checkpoints" / "config.json").write_text("{}")
    assert list(find_runs(tmp_path)) == [tmp_path / "a" / "seed_0", tmp_path / "b" / "seed_0"]
    assert list(find_runs(tmp_path, limit=1)) == []


def test_links_are_followed_and_each_run_found_once(tmp_path: Path) -> None:
    elsewhere, runs = tmp_path / "elsewhere", tmp_path / "runs"
    far = RunDir.create_or_open(elsewhere / "seed_7", config()).path
    near = RunDir.create_or_open(runs / "z" / "seed_0", config()).path
    (runs / "a").mkdir()
    (runs / "a" / "to_a_run").symlink_to(far)
    (runs / "again").symlink_to(far)
    (runs / "b").symlink_to(runs / "z")  # what is there without a link is found without it
    found = find_runs(runs)
    assert near in found and len(found) == 2
    assert {path.resolve() for path in found} == {far.resolve(), near.resolve()}
    (tmp_path / "link").symlink_to(runs)
    assert len(find_runs(tmp_path / "link")) == 2  # the folder that was named may be one


def test_links_in_circles_end(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    path = RunDir.create_or_open(runs / "a" / "seed_0", config()).path
    RunDir.create_or_open(tmp_path / "outside", config())
    (runs / "up").symlink_to(runs)
    (runs / "above").symlink_to(tmp_path)  # would lead out of the folder that was named
    (runs / "a" / "itself").symlink_to(runs / "a" / "itself")
    (runs / "nowhere").symlink_to(tmp_path / "gone")
    assert find_runs(runs) == [path]


def test_a_link_keeps_the_variant_of_its_run(tmp_path: Path) -> None:
    run_id = RunId("dm_control", "cartpole-swingup", "qsm", "hot", 3)
    run = RunDir.create_or_open(run_id.path(tmp_path / "there"), config(seed=3))
    (tmp_path / "best").symlink_to(run.path)
    assert load_run(tmp_path / "best").id == run_id
    (tmp_path / "plain").mkdir()
    run.path.rename(tmp_path / "plain" / "run")
    named = run_id.path(tmp_path / "here")
    named.parent.mkdir(parents=True)
    named.symlink_to(tmp_path / "plain" / "run")
    assert load_run(named).id == run_id


@pytest.mark.parametrize("command", ["runs", "report", "sync"])
def test_commands_see_a_run_behind_a_link(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir.create_or_open(tmp_path / "there" / "seed_0", config())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run.path)
    status = cli.main([command, "runs"])
    shown = capsys.readouterr()
    assert "No run" not in shown.err and status in ((0, 2) if command == "report" else (0,)), shown.err
    if command == "runs":
        assert "cartpole-swingup" in shown.out
