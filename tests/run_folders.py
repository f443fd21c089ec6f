"""Run folders for the tests of `qsm report`, with evaluations and speeds as they are given."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import agents
from qsm.options.run import MjxRunConfig, RunConfig
from qsm.record.config_file import resolved_config
from qsm.record.run_folder import RunDir
from qsm.record.run_id import RunId
from qsm.report import intervals

STEPS = 30_000


def add(
    root: Path,
    agent: str,
    task: str,
    seed: int,
    returns: Mapping[int, float],
    backend: str = "dm_control",
    name: str | None = None,
    agent_options: Mapping[str, Any] | None = None,
    processor: str | None = None,
    **options: Any,
) -> RunDir:
    """A run folder with these evaluations, each of 36 seconds."""
    kind = MjxRunConfig if backend == "mjx" else RunConfig
    given: dict[str, Any] = {"seed": seed, "steps": STEPS} | options
    config = kind(**given)
    resolved = resolved_config(
        agent, task, backend, agents.config_class(agent)(**agent_options or {}), config
    )
    run = RunDir.create_or_open(RunId(backend, task, agent, name, seed).path(root), resolved, ["qsm"])
    run.record_start("cpu")
    if processor is not None:
        file = run.path / "provenance.json"
        file.write_text(
            json.dumps([start | {"processor": processor} for start in json.loads(file.read_text())])
        )
    lines = [f"{step},{value},36" for step, value in returns.items()]
    run.eval_csv.write_text("\n".join(["step,return_mean,seconds", *lines, ""]))
    rows = [
        f"{step},{100 + seed if step < 20_000 else 200 + seed}"
        for step in range(10_000, config.steps, 10_000)
    ]
    run.train_csv.write_text(
        "\n".join(["step,loop/steps_per_second", "5000,", *rows, f"{config.steps},", ""])
    )
    finished = config.steps in returns
    run.write_status("finished" if finished else "preempted", max(returns, default=0), config.steps)
    return run


def line(slope: float, steps: int = STEPS) -> dict[int, float]:
    """Evaluations every 10,000 steps that reach `slope` at step `STEPS`."""
    return {step: slope * step / STEPS for step in range(0, steps + 1, 10_000)}


def two_agents(root: Path) -> Path:
    """Two agents on two tasks; td3 misses seed 1 of walker-run, and its seed 0 there stopped early."""
    for seed in (0, 1, 2):
        add(root, "qsm", "cheetah-run", seed, line(300 + seed))
        add(root, "qsm", "walker-run", seed, line(500 + seed))
        add(root, "td3", "cheetah-run", seed, line(100 + seed))
    add(root, "td3", "walker-run", 0, {0: 1.0, 10_000: 9.0})
    add(root, "td3", "walker-run", 2, line(200))
    return root


def table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


def leave_undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has no figure drawn, which takes most of a report's time; their numbers are the same."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"<svg/>"))
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
