"""`qsm train`: which options reach the training, from the line, presets and sweeps, and what a dry run says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

import agents
from envs import gridworld
from qsm.command import cli, start, train
from qsm.options.run import LaunchOptions, MjxRunConfig, RunConfig

TRAIN = ["train", "qsm", "cheetah-run"]


def test_only_the_command_of_a_process_keeps_programs(
    trained: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who calls `main` with words may have replaced anything in the agents before."""
    kept, words = [], [*TRAIN, "--runs", str(tmp_path)]

    def train(*_: object, keep_programs: bool) -> str:
        kept.append(keep_programs)
        return "finished"

    monkeypatch.setattr(sys.modules["qsm.training.train"], "train", train)
    monkeypatch.setattr(start, "is_own_process", False)
    monkeypatch.setattr(sys, "argv", ["qsm", *words])
    assert cli.main(words) == cli.main() == 0
    assert kept == [False, True]


def test_the_options_reach_training(qsm, trained):
    line = "--seed 3 --steps 1e6 --score_scale 120 --hidden-sizes=64,32 --no-score-layer-norm --critic-layer-norm"
    arguments = [*TRAIN, *line.split(), "--schedule", "cosine", "--name", "wide"]
    assert qsm(*arguments) == (0, "", "")
    [(agent, task, [run], launch, command)] = trained
    agent_config, run_config = run.agent_config, run.config
    assert (agent, task, launch) == ("qsm", "cheetah-run", LaunchOptions())
    assert agent_config == agents.config_class("qsm")(
        score_scale=120.0, hidden_sizes=(64, 32), critic_layer_norm=True, schedule="cosine"
    )
    assert type(agent_config) is agents.config_class("qsm")
    assert run_config == RunConfig(seed=3, steps=1_000_000)
    assert run.path == Path("runs/dm_control/cheetah-run/qsm@wide/seed_3")
    assert command == ["qsm", *arguments]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "runs/dm_control/cheetah-run/qsm/seed_0"),
        (["--runs", "/data"], "/data/dm_control/cheetah-run/qsm/seed_0"),
        (["--run-dir", "here", "--seed", "5"], "here"),
        (["--backend", "mjx", "--name", "wide"], "runs/mjx/cheetah-run/qsm@wide/seed_0"),
        (["--preset", "strong"], "runs/dm_control/cheetah-run/qsm@strong/seed_0"),
        (["--preset", "strong", "--name", "wide"], "runs/dm_control/cheetah-run/qsm@wide/seed_0"),
        (["--preset", "paper"], "runs/dm_control/cheetah-run/qsm/seed_0"),
    ],
)
def test_the_run_has_its_folder(qsm, trained, given: list[str], expected: str):
    assert qsm(*TRAIN, *given)[0] == 0
    assert [run.path for run in trained[0][2]] == [Path(expected)]


@pytest.mark.parametrize("order", [1, -1])
def test_what_stands_on_the_line_wins_over_the_preset(qsm, trained, order: int):
    words = ["--preset=simbav2", "--critic-torso=mlp", "--hidden-sizes=64,64"]
    assert qsm(*TRAIN, *words[::order])[0] == 0
    (run,) = trained[0][2]
    expected = agents.config_of("qsm", "simbav2", critic_torso="mlp", hidden_sizes=(64, 64))
    assert run.agent_config == expected and expected.critic_head == "c51"


def test_a_sweep_of_a_preset_is_labelled_by_both(qsm, trained):
    assert qsm(*TRAIN, "--preset", "strong", "--sweep", "score_scale=1,50")[0] == 0
    labels = [run.path.parent.name for run in trained[0][2]]
    assert labels == ["qsm@strong,score_scale=1", "qsm@strong,score_scale=50"]


def test_several_swept_options_are_every_combination(qsm, trained):
    assert qsm(*TRAIN, "--num-seeds", "2", "--sweep", "score_scale=1,50 --action-noise=0,0.1")[0] == 0
    runs = trained[0][2]
    assert [
        (run.agent_config.score_scale, run.agent_config.action_noise, run.config.seed) for run in runs
    ] == [(scale, noise, seed) for scale in (1, 50) for noise in (0, 0.1) for seed in (0, 1)]
    assert runs[3].path == Path("runs/dm_control/cheetah-run/qsm@score_scale=1,action_noise=0.1/seed_1")
    assert runs[3].label == "score_scale=1,action_noise=0.1 seed 1"


def test_an_option_that_is_swept_is_not_given_besides(qsm, trained):
    status, out, err = qsm(*TRAIN, "--sweep", "score_scale=1,10", "--score-scale", "5")
    assert (status, out, trained) == (2, "", []) and err.count("\n") == 1
    assert "--score-scale is given, and --sweep has values of it too; leave one of them out" in err


def test_an_unknown_preset_is_told_in_one_line(qsm, trained):
    status, out, err = qsm(*TRAIN, "--preset", "stron")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert "--preset is 'stron'" in err and "Did you mean 'strong'" in err


def test_seeds_and_sweeps_are_runs_of_their_own(qsm, trained):
    line = "--num-seeds 2 --seed 7 --sweep score_scale=1,50 --name wide"
    assert qsm(*TRAIN, *line.split()) == (0, "", "")
    runs = trained[0][2]
    assert [str(run.path) for run in runs] == [
        f"runs/dm_control/cheetah-run/qsm@wide,score_scale={value}/seed_{seed}"
        for value in (1, 50)
        for seed in (7, 8)
    ]
    assert [run.agent_config.score_scale for run in runs] == [1, 1, 50, 50]
    assert [run.config.seed for run in runs] == [7, 8, 7, 8]
    assert [run.label for run in runs][::3] == ["score_scale=1 seed 7", "score_scale=50 seed 8"]
    # Each could have been started alone.
    alone = "--seed 8 --score-scale 50 --name wide,score_scale=50"
    assert qsm(*TRAIN, *alone.split())[0] == 0
    assert (trained[1][2][0].path, trained[1][2][0].agent_config) == (runs[3].path, runs[3].agent_config)


def test_mjx_has_defaults_of_its_own(qsm, trained):
    assert qsm(*TRAIN, "--backend=mjx", "--seed", "1")[0] == 0
    assert qsm(*TRAIN, "--backend", "dm_control", "--seed", "1")[0] == 0
    assert trained[0][2][0].config == MjxRunConfig(seed=1)
    assert trained[1][2][0].config == RunConfig(seed=1)
    assert "(default: 128)" in " ".join(qsm(*TRAIN[:2], "--backend", "mjx", "--help")[1].split())


def test_the_last_of_equal_options_counts(qsm, trained):
    assert qsm(*TRAIN, "--seed", "1", "--critic-layer-norm", "--seed=2", "--no-critic-layer-norm")[0] == 0
    (run,) = trained[0][2]
    assert run.config.seed == 2
    assert not run.agent_config.critic_layer_norm


@pytest.mark.parametrize("agent", agents.AGENTS)
def test_dry_run_prints_every_option_so_that_it_reads_back(
    qsm, trained, tmp_path: Path, monkeypatch, agent: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "predicted_memory", lambda *_: ["one", "two"])
    given = ["--steps", "2.5e4", "--discount", "0.9", "--hidden-sizes", "8", "--n-step", "3"]
    status, printed, err = qsm("train", agent, "cheetah-run", *given, "--dry-run")
    assert (status, err) == (0, "")
    assert not trained
    assert not list(tmp_path.iterdir())
    assert "--steps 25_000             # default: 100_000" in re.sub(" +#", "             #", printed)
    assert f"runs/dm_control/cheetah-run/{agent}/seed_0" in printed
    assert printed.endswith("\nmemory, predicted\n  one\n  two\n")
    back = [
        word for line in printed.splitlines() if "--" in line for word in shlex.split(line, comments=True)
    ]
    assert qsm("train", agent, "cheetah-run", *back)[0] == 0
    assert qsm("train", agent, "cheetah-run", *given)[0] == 0
    assert trained[0][2:4] == trained[1][2:4]  # the runs, and how they are launched


def test_dry_run_predicts_the_memory_of_all_seeds(qsm, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["--hidden-sizes", "8", "--replay-capacity", "1e6", "--num-seeds", "2"]
    status, printed, err = qsm("train", "sac", "gridworld-rooms", *given, "--dry-run")
    assert (status, err) == (0, "")
    # A row: observation, action, reward and discount of 4 bytes, and a step type; two seeds.
    spec = gridworld.make_env("gridworld-rooms", seed=0).spec
    row = 4 * (spec.observation_size + spec.action_size + 2) + 1
    assert f"arrays: replay {2e6 * row / 2**20:.1f} MiB, parameters" in printed
    assert "not counted: the interpreter" in printed
    assert "MJX takes many seconds" in qsm(*TRAIN, "--backend", "mjx", "--dry-run")[1]
    # What the training would refuse, too.
    small = ["--batch-size", "2000", "--replay-capacity", "1000", "--dry-run"]
    status, printed, err = qsm("train", "sac", "gridworld-rooms", *small)
    assert (status, printed) == (2, "") and "--batch-size is 2000" in err


def test_options_without_effect_are_told_before_the_training(qsm, trained: list[tuple]):
    start = "qsm: warning: --num-atoms 51 has no effect: read only where --critic-head is c51, two_hot or hl_gauss"
    for more in ([], ["--dry-run"], ["--num-seeds", "3"]):
        _, _, err = qsm(*TRAIN, "--num-atoms", "51", *more)
        assert err == f"{start}; change that, or leave it out\n"
    assert len(trained) == 2
    for words in (["--num-atoms", "101"], ["--num-atoms=51", "--critic-head=c51"], ["--preset", "strong"]):
        assert qsm(*TRAIN, *words)[2] == ""
    swept = ["--target", "weighted", "--sweep", "effective_floor=0.1,0.2"]
    lines = qsm("train", "qsm-clean", "cheetah-run", *swept)[2].splitlines()
    assert [line.split()[2:6] for line in lines] == [
        ["--effective-floor", value, "has", "no"] for value in ("0.1", "0.2")
    ]
