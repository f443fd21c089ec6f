"""A grid knows its cells, what each trains with, and refuses runs of other options."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import agents
from agents.qsm import QSMConfig
from agents.sac import SACConfig
from qsm.base.errors import UserError
from qsm.bench import fill as filling
from qsm.bench.engines import LocalEngine
from qsm.bench.fill import fill
from qsm.bench.grid import (
    AgentSpec,
    Cell,
    check_options,
    check_writable,
    make_grid,
    parse_agent,
    progress_of,
)
from qsm.command import cli
from qsm.options.run import RunConfig, run_config_class
from qsm.options.saved import check_saved
from qsm.record.config_file import resolved_config
from qsm.record.find import find_runs, load_run
from tests.benchmarks import (
    ROOT,
    STEPS,
    grid,
    leave,
    progress_of_all,
)


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which `qsm bench` refuses, before anything is trained and in a dry run alike."""
    lines = set()
    for more in ([], ["--dry-run"]):
        assert cli.main(["bench", "walker-walk", *words, *more]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1
        lines.add(shown.err)
    (line,) = lines
    return line


def test_a_run_of_other_options_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEngine, "run", lambda *_: pytest.fail("something is trained"))
    first, second, third = grid(tmp_path, 3).cells
    leave(first, "finished", STEPS)
    leave(second, "finished", STEPS)
    leave(third, "interrupted", 400)
    same = [
        "--agents",
        "sac",
        "--seeds",
        "2",
        "--steps",
        "1000",
        "--random-steps",
        "100",
        "--out",
        str(tmp_path),
    ]
    assert "--eval-episodes is 10 there and 3 here" in told([*same, "--eval-episodes", "3"], capsys)
    line = told([*same, "--action-repeat", "2", "--replay-ratio", "4"], capsys)
    assert f"{first.path} (one of 2) holds a run of other options: " in line
    assert '--replay-ratio is "1" there and "4" here' in line
    assert "--action-repeat is 1 there and 2 here" in line and "--out" in line
    # Where it is recorded too is no matter of its numbers.
    for wandb in ("disabled", "online"):
        for seeds, shown in (("2", "all of them finished"), ("3", "2 of them finished")):
            same[3] = seeds
            assert cli.main(["bench", "walker-walk", *same, "--wandb", wandb, "--dry-run"]) == 0
            assert shown in capsys.readouterr().out
    assert third.path.exists()
    assert cli.main(["bench", "walker-walk", *same, "--dry-run"]) == 0
    assert "2 of them finished" in capsys.readouterr().out


def test_a_variant_of_other_options_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,) = grid(tmp_path, 1, ("qsm@hot:score_scale=120",)).cells
    leave(cell, "finished", STEPS)
    words = ["--seeds", "1", "--steps", "1000", "--random-steps", "100", "--out", str(tmp_path), "--agents"]
    line = told([*words, "qsm", "qsm@hot:score_scale=130"], capsys)
    assert f"{cell.path} holds a run of other options: --score-scale is 120.0 there and 130.0" in line
    assert "give the variant another name than 'hot'" in line
    assert cli.main(["bench", "walker-walk", *words, "qsm@hot:score_scale=120", "--dry-run"]) == 0


def test_a_run_may_have_fewer_steps_and_where_it_is_finished_more(tmp_path: Path) -> None:
    finished, extended, shortened = grid(tmp_path, 3).cells
    leave(finished, "finished", 2 * STEPS, 2 * STEPS)
    leave(extended, "finished", STEPS // 2, STEPS // 2)
    check_options(progress_of_all(grid(tmp_path, 3)))
    leave(shortened, "interrupted", 400, 2 * STEPS)  # `qsm train` would not shorten it
    with pytest.raises(UserError, match=r"seed_2 .* --steps is 2000 there and 1000 here"):
        check_options(progress_of_all(grid(tmp_path, 3)))


def test_a_finished_run_that_is_damaged_is_not_finished(tmp_path: Path) -> None:
    (cell,) = grid(tmp_path, 1).cells
    leave(cell, "finished", STEPS, STEPS)
    assert progress_of(cell, STEPS).state == "finished"
    (cell.path / "config.json").write_text("{")
    found = progress_of(cell, STEPS)
    assert (found.state, found.step) == ("failed", STEPS) and found.reason.startswith("damaged: ")


@pytest.mark.parametrize("backend", ["dm_control", "mjx"])
def test_a_cell_has_the_configuration_that_qsm_train_gives_it(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def train(agent: str, task: str, runs: Any, launch: Any, *_: Any, **__: Any) -> str:
        seen.extend(
            resolved_config(agent, task, launch.backend, one.agent_config, one.config) for one in runs
        )
        return "finished"

    monkeypatch.setattr("qsm.training.train.train", train)
    options = run_config_class(backend)(steps=50_000, wandb="disabled", replay_ratio="1/2", action_repeat=2)
    specs = [
        parse_agent("sac"),
        parse_agent("qsm@hot:score_scale=120:hidden_sizes=64,64"),
        parse_agent("td3", "crossq"),
        parse_agent("td3@plainer:critic_torso=mlp:policy_delay=2", "crossq"),  # back to what is the default
    ]
    whole = make_grid(specs, ["walker-walk"], [3, 4], options, tmp_path, backend)
    for job in whole.jobs(whole.cells, seeds_together=2):
        assert cli.main(job.arguments()) == 0
        assert seen == [cell.resolved() for cell in job.cells]
        seen.clear()


def test_a_folder_that_cannot_be_written_is_told_unless_nothing_is_to_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = told(["--out", str(tmp_path / "file" / "bench")], capsys)
    assert f"Cannot write in --out {tmp_path / 'file' / 'bench'} ({tmp_path / 'file'} is a file)" in line
    if Path("/proc").is_dir():
        assert "Cannot write in --out /proc/bench" in told(["--out", "/proc/bench"], capsys)
    (cell,) = grid(tmp_path, 1).cells
    leave(cell, "finished", STEPS)
    there = sorted(tmp_path.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "check_writable", lambda _: pytest.fail("nothing is to be written"))
        assert fill(grid(tmp_path, 1), LocalEngine(1), Console(file=io.StringIO())) == 0
    check_writable(tmp_path / "new" / "bench")
    assert sorted(tmp_path.rglob("*")) == there


def test_a_preset_is_of_all_agents_and_names_those_without_a_name() -> None:
    assert parse_agent("td3", "strong") == AgentSpec("td3", "strong", agents.config_of("td3", "strong"))
    spec = parse_agent("sac@x:preset=simba:num_critics=3", "strong")  # the agent's own words win
    assert spec == AgentSpec("sac", "x", agents.config_of("sac", "simba", num_critics=3))


def test_variants_are_agents_of_their_own() -> None:
    spec = parse_agent("qsm@hot:score_scale=120:discount=0.9")
    assert spec == AgentSpec("qsm", "hot", QSMConfig(score_scale=120.0, discount=0.9))
    assert parse_agent("sac") == AgentSpec("sac", None, SACConfig())


def test_a_variant_is_told_which_of_its_options_have_no_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = ["qsm", "qsm@atoms:num_atoms=51", "td3@norm:critic_weight_norm:discount=0.9", "sac"]
    words = [
        "bench",
        "walker-walk",
        "--seeds",
        "3",
        "--out",
        str(tmp_path),
        "--dry-run",
        "--preset",
        "strong",
    ]
    assert cli.main([*words, "--agents", *specs]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qsm: warning: td3@norm: --critic-weight-norm has no effect: read only where ")
    assert cli.main([*words[:-2], "--agents", *specs]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("qsn", "no agent. Did you mean 'qsm'?"),
        ("", "no agent"),
        ("qsm@", "needs a name"),
        ("qsm:score_scale=1", "needs a name"),
        (
            "qsm@hot",
            "'qsm@hot', which differs from qsm in nothing; add its options, as in qsm@hot:OPTION=VALUE",
        ),
        ("qsm@a/b", "--name is 'a/b'"),
        ("qsm@a:score_scale=x", "--score-scale is 'x'"),
        ("qsm@a:scale=1", "Unknown option '--scale' of agent 'qsm'"),
        ("sac@a:batch_size=-4", "--batch-size is -4"),
    ],
)
def test_a_wrong_agent_is_told_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint.replace("?", r"\?")):
        parse_agent(text)


def test_two_agents_of_one_label_are_refused(tmp_path: Path) -> None:
    for agent in ("sac", "sac@hot:discount=0.9"):
        with pytest.raises(UserError, match="twice; give one of them another name: sac@NAME:OPTION=VALUE"):
            grid(tmp_path, agents=(agent, agent))


def test_a_dry_run_lists_the_grid_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    words = [
        "bench",
        "easy",
        "cheetah-run",
        "--agents",
        "sac",
        "td3@x:discount=0.9",
        "--seeds",
        "3",
        "--out",
        str(out),
    ]
    assert cli.main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "42 runs of 100,000 steps" in shown and "td3@x" in shown and not out.exists()
    assert cli.main([*words[:2], "chetah-run", "--dry-run"]) == 2
    assert "Did you mean 'cheetah-run'" in capsys.readouterr().err


def test_a_cell_trains_with_the_command_line_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = RunConfig(steps=20_000, wandb="disabled")
    whole = make_grid([parse_agent("td3@x:discount=0.9")], ["walker-walk"], [4, 5], options, tmp_path)
    alone, _ = whole.jobs(whole.cells)
    (both,) = whole.jobs(whole.cells, seeds_together=2)
    assert cli.main([*alone.arguments(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "--discount 0.9" in shown and "--seed 4" in shown and "--steps 20_000" in shown
    assert str(tmp_path / "dm_control" / "walker-walk" / "td3@x" / "seed_4") in shown
    assert "seed_5" not in shown
    assert cli.main([*both.arguments(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(str(cell.path) in shown for cell in whole.cells)


def test_seeds_are_put_together_where_they_are_consecutive_and_equally_far(tmp_path: Path) -> None:
    whole = grid(tmp_path, 6, ("sac", "td3"))
    cells = whole.cells
    leave(cells[4], "preempted", 400)  # sac, seed 2
    waiting = [cell for cell in cells if (cell.id.agent, cell.id.seed) != ("td3", 4)]
    jobs = whole.jobs(waiting, seeds_together=4)
    found = [(job.cells[0].id.agent, [cell.id.seed for cell in job.cells]) for job in jobs]
    assert found == [
        ("sac", [0, 1]),
        ("td3", [0, 1, 2, 3]),
        ("sac", [2]),
        ("sac", [3, 4, 5]),
        ("td3", [5]),
    ]
    assert sorted(cell.path for job in jobs for cell in job.cells) == sorted(cell.path for cell in waiting)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--ray-cpus", "2"], "of --engine ray"),
        (["--seeds-together", "0"], "--seeds-together is 0"),
        (["--replay-ratio", "x"], "--replay-ratio is 'x'"),
        (["--random-steps", "200000"], "--random-steps is 200000"),
        (["--backend", "mjx", "cheetah-fly"], "cheetah-fly"),
    ],
)
def test_a_wrong_benchmark_is_told_in_one_line(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [word for word in words if "-fly" in word] or ["walker-walk"]
    rest = [word for word in words if "-fly" not in word]
    assert cli.main(["bench", *tasks, *rest, "--out", str(tmp_path / "bench")]) == 2
    told = capsys.readouterr().err
    assert complaint in told and told.count("\n") == 1 and not (tmp_path / "bench").exists()


@pytest.mark.parametrize("path", find_runs(ROOT / "results" / "benchmark"), ids=str)
def test_the_runs_of_former_versions_belong_to_the_same_grid(path: Path) -> None:
    """`qsm bench` with the options of `results/README.md` takes what is there for its own."""
    run = load_run(path)
    check_saved(run.config)
    steps = run.config["run_config"]["steps"]
    options = RunConfig(seed=run.id.seed, steps=steps)
    cell = Cell(run.id, path, agents.config_class(run.id.agent)(), options)
    assert progress_of(cell, steps).state == "finished"
    check_options({cell: progress_of(cell, steps)})
