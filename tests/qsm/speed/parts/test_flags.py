"""Updates by settings of XLA_FLAGS: the processes get them, take turns, and fail alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsm.base.errors import UserError
from qsm.command import script
from qsm.speed import worker
from qsm.speed.parts import flags
from qsm.speed.parts.flags import Case, Options
from scripts.accelerator import xla_flags


class Process:
    """A case of known pace, on a machine that slows down all the time."""

    turns: list[str]

    def __init__(self, case: Case, first: float | None, pace: float, turns: list[str]) -> None:
        self.case, self.first, self.pace, self.turns = case, first, pace, turns
        self.seconds: list[float] = []

    def ready(self, seconds: float) -> bool:
        return self.first is not None

    def block(self, units: int) -> float:
        self.turns.append(self.case.flags)
        return self.pace * 1.1 ** ((len(self.turns) - 1) // 2)


PACES = {"none": 0.002, "a=1": 0.001, "b=1": 0.004}


def with_processes(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...] = ()) -> list[str]:
    """Has cases answered by `Process`es; the order of their blocks."""
    turns: list[str] = []

    @contextlib.contextmanager
    def started(cases: list[Case]) -> Iterator[list[Process]]:
        yield [
            Process(case, None if case.flags in missing else 9.0, PACES[case.flags], turns) for case in cases
        ]

    monkeypatch.setattr(flags, "started", started)
    return turns


def test_blocks_take_turns_and_ratios_are_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = with_processes(monkeypatch)
    rows = flags.compare(Options(("sac",), (4,), ("none", "a=1"), blocks=5))
    assert turns == ["none", "a=1"] * 6  # one of each to learn its pace
    assert [row["ratio"] for row in rows] == [1.0, pytest.approx(2.0 / 1.0)]
    for row in rows:
        assert row["updates_per_second"] == pytest.approx(4e6 / row["microseconds"])
    assert rows[0]["first_update_seconds"] == 9.0


def test_what_is_not_compiled_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_processes(monkeypatch, missing=("none",))
    (row,) = flags.compare(Options(("sac",), (1,), ("none", "a=1"), blocks=3))
    assert row["flags"] == "a=1" and row["ratio"] != row["ratio"]
    assert (
        "not compiled in time, or failed: Case(agent='sac', seeds=1, flags='none')" in capsys.readouterr().out
    )
    with_processes(monkeypatch, missing=("none", "a=1"))
    with pytest.raises(UserError, match=r"within 120 seconds: all failed"):
        flags.compare(Options(("sac",), (1,), ("none", "a=1")))


def answering(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """Has real processes answer with what `lines` print."""
    monkeypatch.setattr(worker, "COMMAND", ["-c", lines])


def test_processes_get_their_flags_and_a_refused_one_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their first answer is the number of their flags."""
    answering(
        monkeypatch,
        "import os, sys; input(); print(float(len(os.environ['XLA_FLAGS'].split())), flush=True)\n"
        "for line in sys.stdin: print(0.5, flush=True)",
    )
    monkeypatch.setattr(
        "sys.argv",
        ["x", str(tmp_path / "t.csv"), "--agents", "td3", "--flags", "none", "a=1+b=2", "--blocks", "2"],
    )
    xla_flags.main()
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "agent,seeds,flags,microseconds,updates_per_second,ratio,first_update_seconds"
    assert lines[1:] == ["td3,1,none,500000,2,1,0", "td3,1,a=1+b=2,500000,2,1,2"]
    answering(monkeypatch, "raise SystemExit(1)")
    with pytest.raises(SystemExit) as ended:
        xla_flags.main()
    assert ended.value.code == script.MISTAKE
    assert "Nothing was compiled" in capfd.readouterr().err
    answering(
        monkeypatch, "input(); print(1.0, flush=True); input()"
    )  # and ends when it is asked for a block
    with pytest.raises(UserError, match=r"Case\(agent='td3', seeds=1, flags='none'\): the process has ended"):
        flags.compare(Options(("td3",), (1,), ("none",)))
    with pytest.raises(UserError, match="there is no agent 'tdd3'; there are: qsm"):
        flags.compare(Options(("tdd3",)))


@pytest.mark.slow
def test_real_updates(tmp_path: Path) -> None:
    rows = flags.compare(Options(("td3",), (1,), ("none", "xla_bogus=1"), blocks=1, wait=300.0))
    assert [row["flags"] for row in rows] == ["none"]
    assert rows[0]["first_update_seconds"] > 0 and rows[0]["microseconds"] > 0
