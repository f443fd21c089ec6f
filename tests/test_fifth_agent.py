"""A new agent is one file and one registry line: every command knows it, and nothing else lists agents."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import agents
import qsm
from qsm.bench.engines import LocalEngine
from qsm.bench.fill import fill
from qsm.bench.grid import Job, make_grid, parse_agent
from qsm.command import cli
from qsm.options.run import RunConfig
from qsm.policies import numpy_policy
from tests.fifth_agent import ENTRY, NAME

ROOT = Path(__file__).parents[1]
RUN = RunConfig(
    steps=120, random_steps=50, eval_interval=60, eval_episodes=1, replay_capacity=1000, wandb="disabled"
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(agents.AGENTS, NAME, ENTRY)
    # For the trainings of a grid, which are processes of their own.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def command(job: Job) -> list[str]:
    return [sys.executable, "-m", "tests.fifth_agent", *job.arguments()]


def test_every_command_knows_an_agent_of_one_file_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["agents"]) == 0
    assert f"{NAME} {ENTRY.summary}" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        cli.main(["train", NAME, "--help"])
    assert "--actor-learning-rate" in capsys.readouterr().out

    # A grid of two cells, of two variants, whose programs are the same and compiled by the first; then what they have
    # made is evaluated, exported and compared.
    specs = [
        parse_agent(f"{NAME}@{label}:hidden_sizes=8,8:batch_size=8:critic_learning_rate={rate}")
        for label, rate in (("a", 3e-4), ("b", 1e-3))
    ]
    grid = make_grid(specs, ["cartpole-balance"], [0], RUN, tmp_path / "bench")
    assert fill(grid, LocalEngine(1, command), Console(file=io.StringIO())) == 0
    [one, other] = [cell.path for cell in grid.cells]
    assert all((path / "checkpoints" / "120").is_dir() for path in (one, other))

    assert cli.main(["eval", str(one), "--episodes", "1"]) == 0
    assert "return_mean" in capsys.readouterr().out
    policy = tmp_path / "policy.npz"
    assert cli.main(["export", str(one), "--output", str(policy)]) == 0
    observation = np.linspace(-1, 1, 5, dtype=np.float32)
    actions = [load(policy)(observation) for load in (qsm.load_policy, numpy_policy.load_policy)]
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-5)
    assert cli.main(["runs", str(tmp_path / "bench")]) == 0
    assert f"{NAME}@a" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "bench"), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"{NAME}@a" in page and f"{NAME}@b" in page
