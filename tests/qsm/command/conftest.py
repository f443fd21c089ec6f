"""The command line in this process, and a stand-in for training."""

from __future__ import annotations

import sys
import types

import pytest

from qsm.command import cli


@pytest.fixture
def qsm(capsys: pytest.CaptureFixture[str]):
    """Runs the command and returns its status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(arguments)
        except SystemExit as exit:
            status = int(exit.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Calls that reach the training loop, which a stand-in replaces."""
    calls: list[tuple] = []
    module = types.ModuleType("qsm.training.train")
    module.train = lambda *arguments, **_: calls.append(arguments) or "finished"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "qsm.training.train", module)
    return calls
