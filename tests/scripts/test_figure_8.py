"""scripts/paper/figure_8.py and langevin.py: runs of several agents on several tasks, compared at one step."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from qsm.command import script
from qsm.report.results import gather
from scripts.paper import figure_8, langevin
from tests.run_folders import add, line

TASKS = ("cheetah-run", "walker-walk")
AGENTS = ("qsm", "qsm-clean", "diffusion-ql", "diffusion-pg", "langevin", "sac")
STEPS = 20_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of each agent in two folders; those of qsm went on beyond the step of comparison."""
    top = tmp_path_factory.mktemp("runs")
    for place, agent in enumerate(AGENTS):
        root = top / ("benchmark" if agent in ("qsm", "sac") else "agents")
        for task in TASKS:
            for seed in (0, 1):
                steps = 30_000 if agent == "qsm" else STEPS
                options: dict[str, Any] = {"steps": steps, "random_steps": 10_000 if agent == "qsm" else 5000}
                add(root, agent, task, seed, line(300.0 * (place + 1) + 30 * seed, steps), **options)
    return [top / "benchmark", top / "agents"]


def started(monkeypatch: pytest.MonkeyPatch, main: Any, *words: object) -> None:
    monkeypatch.setattr(
        sys, "argv", ["script.py", *map(str, words), "--tasks", *TASKS, "--steps", str(STEPS)]
    )
    main()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def test_curves_of_all_agents_are_drawn_to_the_step(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "made" / "figure_8.png"
    started(monkeypatch, figure_8.main, *runs, "--output", out)
    assert out.read_bytes().startswith(b"\x89PNG")
    table = rows(out.with_suffix(".csv"))
    assert len(table) == len(TASKS) * 5 * 3 and not any(row["agent"] == "langevin" for row in table)
    assert [row for row in table if row["agent"] == "qsm-clean" and row["task"] == "walker-walk"][-1] == {
        **{"task": "walker-walk", "agent": "qsm-clean", "step": "20000", "seeds": "2"},
        **{"return_mean": "410", "return_low": "400", "return_high": "420"},
    }
    assert max(int(row["step"]) for row in table) == STEPS
    shown = capsys.readouterr().out
    told = "random steps: 5000 (diffusion-pg, diffusion-ql, qsm-clean, sac), 10,000 (qsm)"
    assert shown.splitlines()[0] == f"not like for like: {told}"
    assert "like: steps" not in shown


def test_a_missing_run_is_told_with_the_command_that_makes_it(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        started(monkeypatch, figure_8.main, runs[1])
    assert " ".join(capsys.readouterr().err.split()) == (
        f"qsm: error: no finished run of qsm on cheetah-run (and 3 more) below {runs[1]}: make them with "
        "`qsm bench cheetah-run walker-walk --agents qsm sac --steps 20e3 --seeds 3 --out results/agents "
        "--wandb disabled`"
    )
    with pytest.raises(SystemExit, match="2"):
        started(monkeypatch, langevin.main, runs[1])
    assert "error: no finished run of qsm on cheetah-run (and 1 more) below" in capsys.readouterr().err


def test_returns_stand_beside_the_cost_of_an_action(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    costs = {"langevin": 2.5, "qsm": 0.25, "qsm-clean": 0.5}
    monkeypatch.setattr(langevin, "cost", lambda found: costs[found[0].agent])
    out = tmp_path / "langevin.csv"
    started(monkeypatch, langevin.main, *runs, "--output", out)
    first, *_ = table = rows(out)
    assert first == {
        **{"task": "cheetah-run", "agent": "langevin", "step": "20000", "seeds": "2"},
        # 1500 and 1530 at 30,000 steps, of which two thirds are gone.
        **{"return_mean": "1010", "return_std": "14.142", "milliseconds_on_this_machine": "2.5"},
    }
    assert [(row["task"], row["agent"]) for row in table] == [
        (task, agent) for task in TASKS for agent in costs
    ]
    printed = [one for one in capsys.readouterr().out.splitlines() if one.startswith("|")]
    assert printed == [
        "| return at 20,000 steps | langevin | qsm | qsm-clean |",
        "|---|---|---|---|",
        "| cheetah-run | 1010 ± 14 (2) | 210 ± 14 (2) | 410 ± 14 (2) |",
        "| walker-walk | 1010 ± 14 (2) | 210 ± 14 (2) | 410 ± 14 (2) |",
        "| ms an action | 2.50 | 0.25 | 0.50 |",
    ]


def test_a_single_seed_has_no_spread(runs: list[Path], tmp_path: Path):
    (one,) = (one for one in gather(runs)[0] if one[1:4] == ("walker-walk", "sac", 1))
    table = langevin.rows_of({("walker-walk", "sac"): [one]}, STEPS, {"sac": 1.0})
    script.write_rows(tmp_path / "table.csv", table)
    assert rows(tmp_path / "table.csv")[0]["return_std"] == ""
    assert langevin.markdown(table)[2] == "| walker-walk | 1220 (1) |"


@pytest.mark.slow
def test_an_action_costs_something(runs: list[Path]):
    (one,) = (one for one in gather(runs)[0] if one[1:4] == ("walker-walk", "qsm", 0))
    assert 0.0 < langevin.cost([one], repeats=2) < 1e4
