"""An exported policy acts as the run's own agent does, from a file that holds no more than that takes."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import agents
import qsm
from envs import dmc
from qsm.base.errors import UserError
from qsm.checkpoints import checkpoint
from qsm.checkpoints.best import kept_steps
from qsm.command.cli import main
from qsm.learning.learner import Learner
from qsm.options.run import LaunchOptions, RunConfig
from qsm.policies.export import export
from qsm.policies.numpy_policy import DESCRIPTION
from qsm.policies.numpy_policy import load_policy as numpy_load_policy
from qsm.policies.policy import load_policy
from qsm.record.tables import read_csv
from qsm.training.group import members
from qsm.training.train import train
from tests.probe_environments import ObservationReward

SMALL: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 8}
SMALL_QSM = SMALL | {"denoising_steps": 2, "time_embedding_size": 4, "time_hidden_sizes": (4,)}


def trained(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """A short run of agent `name`."""
    monkeypatch.setattr(dmc, "make_env", lambda task, seed, repeat: ObservationReward(seed))
    config = RunConfig(
        steps=12,
        random_steps=4,
        replay_capacity=1000,
        eval_interval=100,
        eval_episodes=1,
        wandb="disabled",
    )
    (run,) = members(name, "probe", agents.config_class(name)(**options), config, LaunchOptions(), root=root)
    assert train(name, "probe", [run]) == "finished"
    return run.path


@pytest.mark.parametrize(
    ("name", "options"),
    [("sac", SMALL), pytest.param("qsm", SMALL_QSM | {"eval_samples": 3}, marks=pytest.mark.slow)],
)
def test_an_exported_policy_acts_as_the_run_does(
    name: str,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    run = trained(name, tmp_path, monkeypatch, **options)
    capsys.readouterr()
    assert main(["export", str(run)]) == 0
    assert f"qsm.load_policy('{run / 'policy.npz'}')" in capsys.readouterr().out
    policy = qsm.load_policy(run / "policy.npz", seed=3)
    assert policy.description.agent == name and policy.description.step == 12

    agent = agents.make_agent(name, 1, 1, **options)
    spec = ObservationReward(0).spec
    state, _ = checkpoint.restore_agent(run / "checkpoints", Learner(agent, spec, 0, capacity=1))
    act = jax.jit(agent.act, static_argnames="mode")
    observation = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    for call in range(2):
        key = jax.random.fold_in(jax.random.key(3), call)
        expected = act(state, observation, key, mode="evaluate")
        np.testing.assert_allclose(policy(observation), expected, rtol=1e-5, atol=1e-6)
    policy.reset(3)
    assert policy(observation[0]).shape == (1,)
    with pytest.raises(ValueError, match=r"takes \[1\] or \[B, 1\]"):
        policy(np.zeros((2, 3)))

    with np.load(run / "policy.npz", allow_pickle=False) as file:
        kept = len(file.files) - 1
    leaves = len(jax.tree.leaves(state))
    # Optimisers and targets stay behind; qsm's choice among samples takes its critics along.
    assert kept < (leaves / 2 if name == "qsm" else leaves / 3)


def test_the_best_policy_and_earlier_ones_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = trained("sac", tmp_path, monkeypatch, **SMALL)
    returns = {int(row["step"]): row["return_mean"] for row in read_csv(run / "eval.csv")}
    (best,) = kept_steps(run / "best")[-1:]
    assert best == min(step for step in returns if returns[step] == max(returns.values()))
    for options, step in (
        ([], 12),
        (["--best"], best),
        (["--step", "12"], 12),
        (["--step", str(best)], best),
    ):
        capsys.readouterr()
        assert main(["export", str(run), *options]) == 0
        assert load_policy(run / "policy.npz").description.step == step
        assert load_policy(run / "policy.npz").description.return_mean == returns[step]
        assert main(["eval", str(run), "--episodes", "1", *options]) == 0
        told = capsys.readouterr()
        assert re.search(rf"^step +{step}$", told.out, re.MULTILINE)
        assert told.err == f"playing 1 episode on dm_control with the policy of step {step}\n"
    for command in ("eval", "export"):
        for options, message in (
            (["--step", "7"], f"{run} has no policy of step 7; there are checkpoints of step 12"),
            (["--best", "--step", "12"], "leave out --step or --best"),
        ):
            assert main([command, str(run), *options]) == 2
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_policy_acts_down_fewer_levels_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = trained("qsm", tmp_path, monkeypatch, **SMALL_QSM | {"denoising_steps": 4})
    way = ["--acting-sampler", "dpm++", "--acting-steps", "2"]
    for command in (["export"], ["eval", "--episodes", "1"]):
        assert main([command[0], str(run), *command[1:], *way]) == 0
        assert main([command[0], str(run), *command[1:], *way[:-1], "5"]) == 2
        assert "acting_steps is 5; it must be at most denoising_steps, 4" in capsys.readouterr().err
    one, other = load_policy(run / "policy.npz", seed=3), numpy_load_policy(run / "policy.npz", seed=3)
    told = one.description
    assert (told.agent_config["acting_sampler"], told.agent_config["acting_steps"]) == ("dpm++", 2)
    assert told.return_mean is None, "the run was evaluated by its whole chain"
    observation = np.linspace(-1, 1, 6)[:, None]
    fewer = one(observation)
    np.testing.assert_allclose(other(observation), fewer, atol=1e-5)
    assert main(["export", str(run)]) == 0
    whole = load_policy(run / "policy.npz", seed=3)
    assert whole.description.agent_config["acting_steps"] == 0 and whole.description.return_mean is not None
    assert np.abs(whole(observation) - fewer).max() > 1e-3


def test_what_is_no_policy_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = trained("sac", tmp_path, monkeypatch, **SMALL)
    assert main(["export", str(run), "--output", str(tmp_path / "policy.npz")]) == 0
    data = (tmp_path / "policy.npz").read_bytes()
    file = tmp_path / "other.npz"
    flipped = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.compress_size)
    flipped[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 1
    for damaged in (b"", b"text", data[: len(data) // 2], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is no policy, or is damaged"):
            load_policy(file)
    with pytest.raises(UserError, match="Cannot read"):
        load_policy(tmp_path / "none.npz")

    def changed(**arrays: Any) -> Path:
        with np.load(io.BytesIO(data)) as content:
            np.savez(file, **(dict(content) | arrays))
        return file

    text = bytes(np.load(io.BytesIO(data))[DESCRIPTION]).decode()
    for found, message in (
        (3, "by a newer qsm .* update qsm"),
        (1, "by an earlier qsm .*: qsm export RUN. .*5b8e0bd"),
    ):
        other = np.frombuffer(text.replace('"format": 2', f'"format": {found}').encode(), np.uint8)
        with pytest.raises(UserError, match=message):
            load_policy(changed(**{DESCRIPTION: other}))
    wider = np.frombuffer(text.replace("[8]", "[9]").encode(), np.uint8)
    with pytest.raises(
        UserError,
        match=r"does not fit this version of sac: actor\.params\.\S+ is \(.+ there and \(.+ in this agent",
    ):
        load_policy(changed(**{DESCRIPTION: wider}))


@pytest.mark.slow
def test_a_parameter_under_another_name_is_refused_though_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A regrouped state may hold leaves of the same shapes in another order."""
    run = trained("qsm", tmp_path, monkeypatch, **SMALL_QSM, eval_samples=2)
    export(run)
    with np.load(run / "policy.npz") as file:
        arrays = dict(file)
    critic = [name for name in arrays if name.startswith("critic.online.params.")]
    assert critic
    renamed = {name.replace("critic.online.params.", "critic.target."): arrays[name] for name in arrays}
    text = json.loads(arrays[DESCRIPTION].tobytes())

    def load(arrays: dict[str, Any]) -> Any:
        leaves = [name for name in arrays if name != DESCRIPTION and not name.startswith("constant ")]
        described = np.frombuffer(json.dumps(text | {"leaves": leaves}).encode(), np.uint8)
        np.savez(tmp_path / "other.npz", allow_pickle=False, **(arrays | {DESCRIPTION: described}))  # type: ignore[arg-type]
        return load_policy(tmp_path / "other.npz")

    load(arrays)
    with pytest.raises(UserError, match=r"critic\.online\.\S+ is absent there"):
        load(renamed)
    with pytest.raises(UserError, match=r"unknown is .* absent in this agent"):
        load(arrays | {"unknown": np.zeros(3)})


def test_export_overwrites_nothing_but_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = trained("sac", tmp_path / "runs", monkeypatch, **SMALL)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    np.savez(tmp_path / "arrays.npz", mine=np.zeros(3))
    os.mkfifo(tmp_path / "pipe")
    (run / "link.npz").symlink_to(run / "config.json")
    files = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    refused = {
        "notes.txt": "exists and is no policy; remove it first, or name another file with --output",
        "arrays.npz": "exists and is no policy",
        "pipe": "is a device or a pipe and no file; name another file with --output",
        "runs": "is a folder; name a file in it",
        "none/policy.npz": "No such file or directory. Name a file that can be written with --output",
        str(run / "config.json"): "in a place for the run's own files",
        str(run / "new.json"): "in a place for the run's own files",
        str(run / "link.npz"): "in a place for the run's own files",
        str(run / "checkpoints" / "new.npz"): "in a place for the run's own files",
        f"{run.parent}/../{run.parent.name}/{run.name}/eval.csv": "in a place for the run's own files",
    }
    for output, message in refused.items():
        assert main(["export", str(run), "--output", output]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and "--run-dir" not in error, error
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == files
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "pipe").is_fifo()

    (tmp_path / "kept-free").touch()
    for output in ("kept-free", "kept-free", str(run / "other.npz"), str(run / "policy.npz")):
        assert main(["export", str(run), "--output", output]) == 0
        assert load_policy(output).description.step == 12


def test_a_run_of_wrong_options_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = trained("sac", tmp_path, monkeypatch, **SMALL)
    config = json.loads((run / "config.json").read_text())
    for section, name in (("agent_config", "discount"), ("run_config", "seed")):
        changed = config | {section: config[section] | {name: "x"}}
        (run / "config.json").write_text(json.dumps(changed))
        capsys.readouterr()
        assert main(["export", str(run)]) == 2
        assert f"{run}: {section}.{name} is 'x'; it must be a " in capsys.readouterr().err
