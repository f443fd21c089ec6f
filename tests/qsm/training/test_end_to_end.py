"""Whole trainings on a real task through the command line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import agents
from envs import dmc
from qsm.checkpoints import checkpoint
from qsm.command.cli import main
from qsm.learning.learner import Learner
from qsm.record.tables import read_csv

ROOT = Path(__file__).parents[3]
TASK = "cartpole-swingup"


def qsm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`qsm` in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qsm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def learned(path: Path) -> tuple[Any, Any, int]:
    """The state of the run's newest checkpoint, the one it began with, and the checkpoint's step."""
    config = json.loads((path / "config.json").read_text())
    spec = dmc.make_env(config["task"], 0).spec
    options = agents.config_from_dict(config["agent"], config["agent_config"])
    agent = agents.build(config["agent"], options, spec.observation_size, spec.action_size)
    learner = Learner(agent, spec, config["run_config"]["seed"], capacity=1)
    state, step = checkpoint.restore_agent(path / "checkpoints", learner)
    start = jax.tree.map(lambda leaf: leaf[0], learner.init_agents())
    return state, start, step


def still(one: Any, other: Any) -> list[str]:
    """Paths of the arrays with an axis, weights and biases, that are equal."""
    pairs = jax.tree.map(np.array_equal, one, other)
    leaves, _ = jax.tree_util.tree_flatten_with_path(pairs)
    return [jax.tree_util.keystr(path) for path, is_equal in leaves if is_equal]


@pytest.mark.slow
def test_two_thousand_steps_from_the_command_line(tmp_path: Path):
    run = tmp_path / "run"
    command = ["train", "sac", TASK, "--steps", "2_000", "--random-steps", "500", "--wandb", "disabled"]
    command += ["--eval-episodes", "2", "--replay-capacity", "1e4", "--run-dir", str(run)]
    command += ["--hidden-sizes", "32,32", "--batch-size", "32"]
    done = qsm(*command)
    assert done.returncode == 0, done.stderr
    assert f"qsm eval {run}" in done.stdout

    rows = read_csv(run / "train.csv")
    assert [(row["step"], row["loop/num_updates"]) for row in rows] == [(1000, 500), (2000, 1500)]
    assert all(np.isfinite(list(row.values())).all() and row["critic/loss"] > 0 for row in rows)
    evaluations = read_csv(run / "eval.csv")
    assert [evaluation["step"] for evaluation in evaluations] == [0, 2000]
    for evaluation in evaluations:
        returns = [evaluation["return_0"], evaluation["return_1"]]
        assert evaluation["return_mean"] == pytest.approx(np.mean(returns), rel=1e-6)
        assert evaluation["length_mean"] == 1000
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("finished", 2000, 2000)

    state, start, step = learned(run)
    assert step == 2000
    assert still(state.actor.params, start.actor.params) == []
    assert still(state.critic.online.params, start.critic.online.params) == []
    assert still(state.critic.target, start.critic.target) == []
    assert int(state.critic.online.optimizer.count) == 1500

    before = contents(run)
    again = qsm(*command)
    assert again.returncode == 0, again.stderr
    assert "is finished (2,000 steps); nothing to do." in again.stdout
    assert contents(run) == before

    played = qsm("eval", run, "--episodes", "2")
    assert played.returncode == 0, played.stderr
    table = dict(line.split(maxsplit=1) for line in played.stdout.splitlines())
    assert (table["run"], table["step"]) == (str(run), "2000")
    assert float(table["return_mean"]) == pytest.approx(
        np.mean([float(table["return_0"]), float(table["return_1"])]), abs=0.11
    )


def test_a_short_run_in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    options = ["--steps", "60", "--random-steps", "20", "--log-interval", "30", "--eval-interval", "60"]
    options += [
        "--eval-episodes",
        "1",
        "--replay-capacity",
        "1000",
        "--batch-size",
        "16",
        "--replay-ratio",
        "1/2",
    ]
    options += [
        "--wandb",
        "disabled",
        "--action-repeat",
        "4",
        "--denoising-steps",
        "3",
        "--hidden-sizes",
        "32,32",
        "--time-hidden-sizes",
        "16",
        "--run-dir",
        str(run),
    ]
    assert main(["train", "qsm", TASK, *options]) == 0
    assert [(row["step"], row["loop/num_updates"]) for row in read_csv(run / "train.csv")] == [
        (32, 6),
        (60, 20),
    ]
    assert [(row["step"], row["length_mean"]) for row in read_csv(run / "eval.csv")] == [
        (0, 1000),
        (60, 1000),
    ]
    state, start, step = learned(run)
    assert step == 60
    assert still(state.score.params, start.score.params) == []
    assert still(state.critic.online.params, start.critic.online.params) == []
    assert int(state.critic.online.optimizer.count) == 20
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_short_run_of_real_environments_on_the_device(tmp_path: Path):
    options = ["--backend", "mjx", "--num-envs", "2", "--steps", "40", "--random-steps", "20"]
    options += ["--replay-ratio", "1/2", "--replay-capacity", "1000", "--eval-episodes", "1"]
    options += ["--log-interval", "20", "--hidden-sizes", "8", "--batch-size", "8", "--wandb", "disabled"]
    assert main(["train", "sac", TASK, *options, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "mjx" / TASK / "sac" / "seed_0"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("finished", 40, 40)
    config = json.loads((run / "config.json").read_text())
    assert (config["backend"], config["task"], config["run_config"]["num_envs"]) == ("mjx", TASK, 2)
    rows = read_csv(run / "train.csv")
    assert [(row["step"], row["loop/num_updates"]) for row in rows] == [(20, 0), (40, 10)]
    assert all(np.isfinite(list(row.values())).all() and row["simulator/failure_rate"] == 0 for row in rows)
    evaluations = read_csv(run / "eval.csv")
    assert [(row["step"], row["length_mean"]) for row in evaluations] == [(0, 1000), (40, 1000)]
    assert all(0 < row["return_mean"] < 1000 for row in evaluations)
    # The same sizes as on dm_control, so the policy can be read there.
    state, start, step = learned(run)
    assert step == 40
    assert still(state.critic.online.params, start.critic.online.params) == []
    assert int(state.critic.online.optimizer.count) == 10
    files = {
        "config.json",
        "provenance.json",
        "status.json",
        "train.csv",
        "eval.csv",
        "checkpoints",
        "replay",
    }
    assert {path.name for path in run.iterdir()} >= files


@pytest.mark.slow
def test_a_file_in_the_way_is_told_in_one_line(tmp_path: Path):
    blocked = tmp_path / "blocked"
    blocked.touch()
    done = qsm("train", "sac", TASK, "--run-dir", blocked / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"{blocked} is a file. Move it away or choose --run-dir." in done.stderr


def test_a_read_only_folder_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # to whom nothing is read-only
        monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["train", "sac", TASK, "--run-dir", str(folder / "run")]) == 2
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)
    assert f"Cannot write in {folder / 'run'}: Permission denied." in captured.err
    assert list(folder.iterdir()) == []


def refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
