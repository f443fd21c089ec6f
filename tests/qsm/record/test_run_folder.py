"""Runs are created whole or not at all, resumed only as they were, and refused in one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from agents.qsm import QSMConfig
from qsm.base.errors import UserError
from qsm.base.files import replace_file
from qsm.options.run import RunConfig
from qsm.record import provenance, run_folder
from qsm.record.config_file import CHANGEABLE, resolved_config
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir
from qsm.record.status import Status


def config(**options: Any) -> dict[str, Any]:
    return resolved_config("qsm", "cartpole-swingup", "dm_control", QSMConfig(), RunConfig(**options))


def refusal(action: Any, *arguments: Any) -> str:
    """The one line of the UserError that `action` raises."""
    with pytest.raises(UserError) as raised:
        action(*arguments)
    line = str(raised.value)
    assert "\n" not in line
    return line


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below `path`, with the content of its files."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


def test_new_run_holds_its_configuration_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "seed_0"
    run = RunDir.create_or_open(path, config(), ["qsm", "train"])
    assert run.created and not run.finished
    stored = json.loads((path / "config.json").read_text())
    assert (
        stored == config() and stored["format"] == 1 and stored["agent_config"]["hidden_sizes"] == [256, 256]
    )
    assert load_run(path).config == stored
    assert load_run(str(path)).checkpoints == path / "checkpoints"


def test_empty_folder_and_one_left_by_a_kill_are_taken(tmp_path: Path) -> None:
    (tmp_path / ".config.json.123.tmp").write_text("{")
    assert RunDir.create_or_open(tmp_path, config()).created


def test_same_configuration_resumes_and_provenance_grows(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = RunDir.create_or_open(path, config(), ["qsm", "train", "first"])
    first.record_start("cpu")
    first.write_status("interrupted", 5, 10, last_return=1.5, message="stopped")
    second = RunDir.create_or_open(path, config(), ["qsm", "train", "second"])
    assert not second.created and not second.finished
    second.record_start("cpu")
    starts = json.loads((path / "provenance.json").read_text())
    assert [start["command"][-1] for start in starts] == ["first", "second"]
    assert starts[0]["device"] == "cpu" and "numpy" in starts[0]["packages"] and starts[0]["started"]
    status = second.status()
    assert status.updated
    assert status == Status("interrupted", 5, None, 10, status.updated, 1.5, "stopped")


def test_finished_run_is_told_apart_and_not_touched(tmp_path: Path) -> None:
    RunDir.create_or_open(tmp_path, config()).write_status(
        "finished", 100_000, 100_000, last_return=float("nan")
    )
    before = tree(tmp_path)
    run = RunDir.create_or_open(tmp_path, config())
    assert run.finished and not run.created and run.status().last_return is None
    assert tree(tmp_path) == before


def test_damaged_status_counts_as_unfinished(tmp_path: Path) -> None:
    run = RunDir.create_or_open(tmp_path, config())
    for content in ("{", "[]", '"finished"'):
        (tmp_path / "status.json").write_text(content)
        assert run.status() == Status() and not run.finished


def test_other_configuration_is_refused_with_fields_and_mend(tmp_path: Path) -> None:
    RunDir.create_or_open(tmp_path, config(steps=100_000, replay_ratio="1"))
    before = tree(tmp_path)
    line = refusal(RunDir.create_or_open, tmp_path, config(steps=200_000, replay_ratio="1/2"))
    assert "--steps is 100000 there and 200000 here" in line
    assert '--replay-ratio is "1" there and "1/2" here' in line
    assert "--name" in line and "--run-dir" in line and str(tmp_path) in line
    assert tree(tmp_path) == before


def test_many_differences_are_counted_and_absent_fields_named(tmp_path: Path) -> None:
    RunDir.create_or_open(tmp_path, config())
    other = config(seed=1, steps=50_000, random_steps=9, eval_interval=9, eval_episodes=9, log_interval=9)
    assert "and 1 more" in refusal(RunDir.create_or_open, tmp_path, other)
    newer = config()
    newer["agent_config"]["of_the_future"] = 50.0
    line = refusal(RunDir.create_or_open, tmp_path, newer)
    assert "--of-the-future is not set there and 50.0 here" in line


def test_of_another_agent_only_the_agent_is_named(tmp_path: Path) -> None:
    RunDir.create_or_open(tmp_path, config())
    other = config()
    other["agent"], other["agent_config"] = "td3", {"delay": 2}
    assert 'other options: agent is "qsm" there and "td3" here. Repeat' in refusal(
        RunDir.create_or_open, tmp_path, other
    )


def test_foreign_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not lose me")
    line = refusal(RunDir.create_or_open, tmp_path, config())
    assert "thesis.tex" in line and "--run-dir" in line
    assert tree(tmp_path) == {"thesis.tex": b"do not lose me"}


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "runs" / "seed_0"):
        line = refusal(RunDir.create_or_open, path, config())
        assert f"{tmp_path / 'file'} is a file" in line and "--run-dir" in line


def test_folder_name_too_long_is_refused(tmp_path: Path) -> None:
    assert "--run-dir" in refusal(RunDir.create_or_open, tmp_path / ("x" * 300), config())
    assert "There is no folder" in refusal(load_run, tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("code", "mend"),
    [(errno.EACCES, "may write to"), (errno.EROFS, "may write to"), (errno.ENOSPC, "Free some")],
)
@pytest.mark.parametrize("call", ["mkdir", "replace"])
def test_unwritable_folder_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, mend: str, call: str
) -> None:
    # chmod does not stop root, who runs the tests in a container; so the system call itself refuses.
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    path = tmp_path / "runs" / "task" / "seed_0"
    line = refusal(RunDir.create_or_open, path, config())
    assert str(path) in line and os.strerror(code) in line and mend in line and "--run-dir" in line
    assert tree(tmp_path) == {}


def test_read_only_unfinished_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDir.create_or_open(tmp_path, config())

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert "Read-only" in refusal(RunDir.create_or_open, tmp_path, config())


def test_failed_replacement_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    replace_file(file, b"former")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match="No space"):
                replace_file(file, b"later")
        assert tree(tmp_path) == {"a.json": b"former"}


def test_status_that_cannot_be_written_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    run = RunDir.create_or_open(tmp_path, config())
    run.record_start("cpu", warn=warnings.append)
    run.write_status("running", 1, 10)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        run.write_status("running", 2, 10)
        run.write_status("running", 3, 10)
    assert run.status().step == 1
    assert len(warnings) == 1 and "Free some space" in warnings[0]
    run.write_status("running", 4, 10)
    assert run.status().step == 4


def test_damaged_provenance_is_replaced_with_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    run = RunDir.create_or_open(tmp_path, config())
    (tmp_path / "provenance.json").write_text("[")
    run.record_start("cpu", warn=warnings.append)
    assert len(json.loads((tmp_path / "provenance.json").read_text())) == 1 and len(warnings) == 1


def test_commit_is_none_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.git_commit() is None


def test_more_steps_are_an_option_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = RunDir.create_or_open(path, config(steps=20_000))
    run.write_status("finished", 20_000, 20_000)
    assert run.finished
    line = refusal(RunDir.create_or_open, path, config(steps=50_000))
    assert "--steps is 20000 there and 50000 here. Add --extend-steps" in line
    before = tree(path)
    for other in (config(steps=50_000, seed=1), config(steps=15_000)):
        assert "Repeat its options" in refusal(RunDir.create_or_open, path, other, (), True)
    assert tree(path) == before
    longer = RunDir.create_or_open(path, config(steps=50_000), extend_steps=True)
    assert not longer.created and not longer.finished
    assert tree(path) == before  # until a training has begun
    longer.record_start("cpu")
    assert load_run(path).config == config(steps=50_000)
    assert RunDir.create_or_open(path, config(steps=50_000), extend_steps=True).config == longer.config
    longer.write_status("finished", 50_000, 50_000)
    assert longer.finished


def test_a_run_is_emptied_but_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunDir.create_or_open(path, config())
    (path / "checkpoints" / "5").mkdir(parents=True)
    (path / "checkpoints" / "5" / "state").write_text("old")
    (path / "elsewhere").symlink_to(tmp_path)
    (path / ".owner").write_text("me")
    run_folder.empty_run(path, keep=".owner")
    assert tree(path) == {".owner": b"me"}
    assert tmp_path.is_dir()  # a link is removed, not what it leads to
    assert "holds no run to overwrite" in refusal(run_folder.empty_run, path, ".owner")
    assert RunDir.create_or_open(path, config(seed=1)).created


def test_what_changes_no_number_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    RunDir.create_or_open(tmp_path, config()).write_status("interrupted", 5, 100_000)
    other = config(wandb="disabled", wandb_project="elsewhere")
    RunDir.create_or_open(tmp_path, other).record_start("cpu")
    assert load_run(tmp_path).config == other
    RunDir.create_or_open(tmp_path, other).write_status("finished", 100_000, 100_000)
    before = tree(tmp_path)
    assert RunDir.create_or_open(tmp_path, config(wandb="online")).finished
    assert tree(tmp_path) == before  # it is recorded no more


def test_every_other_option_is_of_the_run(tmp_path: Path) -> None:
    """Each option that is not named as changeable keeps a run from going on."""
    RunDir.create_or_open(tmp_path, config())
    for place in ("agent_config", "run_config"):
        for name, value in config()[place].items():
            other = config()
            other[place][name] = f"not {value}"
            if name in CHANGEABLE:
                assert RunDir.examine(tmp_path, other) is not None
            else:
                assert f"--{name.replace('_', '-')} is" in refusal(RunDir.examine, tmp_path, other)


def test_a_run_of_a_version_without_an_option_goes_on(tmp_path: Path) -> None:
    """A run that lacks an option had what means the same: its default, or what the class says of former versions."""
    whole = config()
    for place in ("agent_config", "run_config"):
        for name in whole[place]:
            older = {**whole, place: {key: value for key, value in whole[place].items() if key != name}}
            (tmp_path / "config.json").write_text(json.dumps(older))
            run = RunDir.examine(tmp_path, whole)
            assert run is not None and run.config == whole


def test_a_changed_default_does_not_change_a_former_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunConfig, "former", {"eval_episodes": 3})
    older = config()
    del older["run_config"]["eval_episodes"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert load_run(tmp_path).config["run_config"]["eval_episodes"] == 3
    line = refusal(RunDir.create_or_open, tmp_path, config())
    assert "--eval-episodes is 3 there and 10 here" in line
    assert RunDir.create_or_open(tmp_path, config(eval_episodes=3)).config == config(eval_episodes=3)
