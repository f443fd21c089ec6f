"""A tick of the host loop by its parts: each is timed, once a tick, whatever the clock says."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest

from qsm.command import script
from qsm.speed.parts import tick
from scripts.accelerator import tick as command
from tests.probe_environments import ObservationReward

PARTS = {"whole tick", "wait for the action", "environments", "dispatch acting", "dispatch learning"}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each look at the clock, and environments without a simulator."""
    seconds = itertools.count()
    monkeypatch.setattr(tick.time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(tick, "make_host_env", lambda task, seed: ObservationReward(seed=seed))


def test_the_parts_of_a_tick_are_each_timed_once():
    options = tick.Options(ticks=3, hidden_sizes=(8,))
    rows = tick.ticks("sac", 2, options)
    assert [(row["agent"], row["seeds"]) for row in rows] == [("sac", 2)] * len(rows)
    by_phase = {
        phase: {row["part"]: row["milliseconds"] for row in rows if row["phase"] == phase}
        for phase in ("learning", "random")
    }
    for parts in by_phase.values():
        # Two looks at the clock for each of four parts, a second each, in every tick; and two around all of them.
        assert parts == dict.fromkeys(PARTS, 1000.0) | {
            "whole tick": pytest.approx(1000 * (3 * 8 + 1) / 3, abs=1)
        }


def test_what_was_measured_before_a_stop_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "ticks", stop)
    output = tmp_path / "tick.csv"
    monkeypatch.setattr(script.sys, "argv", ["tick.py", str(output), "--ticks", "2"])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        command.main()
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and {row["milliseconds"] for row in rows} == {"1000"}
    assert any("13 small arrays" in row["part"] for row in rows)
