"""A configuration is read as it was written, and a damaged or newer one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents.qsm import QSMConfig
from qsm.base.errors import UserError
from qsm.options.run import RunConfig
from qsm.record.config_file import conflicts, resolved_config
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir


def config(**options: Any) -> dict[str, Any]:
    return resolved_config("qsm", "cartpole-swingup", "dm_control", QSMConfig(), RunConfig(**options))


def refusal(action: Any, *arguments: Any) -> str:
    """The one line of the UserError that `action` raises."""
    with pytest.raises(UserError) as raised:
        action(*arguments)
    line = str(raised.value)
    assert "\n" not in line
    return line


def content_of(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{", "damaged"),
        (b"\xff\x00", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "damaged"),
        (b"{}", "'format' is missing"),
        (b'{"format": 2}', "newer qsm (format 2; this one reads 1)"),
        (b'{"format": 1, "agent": 3}', "'agent' is missing"),
    ],
)
def test_damaged_or_newer_configuration_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert part in refusal(load_run, tmp_path)
    assert part in refusal(RunDir.create_or_open, tmp_path, config())
    assert content_of(tmp_path) == {"config.json": content}


def test_configuration_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert "Cannot read" in refusal(load_run, tmp_path)


@pytest.mark.parametrize(
    ("here", "is_finished", "names"),
    [
        ({}, False, []),
        ({"steps": 50_000}, False, []),
        ({"steps": 15_000}, False, ["steps"]),
        ({"steps": 15_000}, True, []),
        ({"wandb": "disabled", "wandb_project": "x"}, False, []),
        ({"wandb": "disabled"}, True, []),
        ({"seed": 1, "wandb": "online"}, True, ["seed"]),
    ],
)
def test_what_keeps_a_run_from_being_another(
    here: dict[str, Any], is_finished: bool, names: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(steps=20_000)))
    found = conflicts(tmp_path, config(**{"steps": 20_000} | here), is_finished)
    assert [text.partition(" ")[0] for text in found] == [f"run_config.{name}" for name in names]


def test_where_no_run_is_nothing_is_in_the_way(tmp_path: Path) -> None:
    assert conflicts(tmp_path, config(), False) == []
    (tmp_path / "config.json").write_text("{")
    assert conflicts(tmp_path, config(), False) == []
