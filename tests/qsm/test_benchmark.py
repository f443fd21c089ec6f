"""A grid is filled by processes, each cell once; what fails is told and tried again, and stopping saves."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qsm import bench, cli
from qsm.bench import GridView, duration, fill
from qsm.benchmark import AgentSpec, Cell, LocalEngine, Outcome, grid, parse_agent, progress_of
from qsm.errors import UserError
from qsm.rundir import RunDir
from qsm.suites import SUITES, tasks_of

STEPS = 1000
ROOT = Path(__file__).parents[2]

TRAIN = """
import json, os, pathlib, signal, sys
path, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
path.mkdir(parents=True, exist_ok=True)
with (path / "starts.txt").open("a") as file:
    print(sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], file=file)
parts = {"agent": "sac", "task": "walker-walk", "backend": "dm_control", "agent_config": {}, "run_config": {}}
(path / "config.json").write_text(json.dumps({"format": 1} | parts))
def status(state, step, message=""):
    content = {"state": state, "step": step, "steps": 1000, "last_return": 5.0, "message": message}
    (path / "status.json").write_text(json.dumps(content))
if behaviour == "fails":
    print("something first", "qsm: error: the reason", sep="\\n", file=sys.stderr)
    sys.exit(2)
if behaviour == "waits":
    def stop(number, frame):
        status("preempted", 400)
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    status("running", 300)
    while True:
        signal.pause()
status("finished", 1000)
"""


def command(behaviour: Any) -> Any:
    """Of a training that behaves as `behaviour` says of its seed."""
    return lambda cell: [sys.executable, "-c", TRAIN, str(cell.path), behaviour(cell.seed)]


def cells(folder: Path, seeds: int = 2, agents: tuple[str, ...] = ("sac",)) -> list[Cell]:
    return grid([parse_agent(agent) for agent in agents], ["walker-walk"], range(seeds), STEPS, folder)


def filled(found: list[Cell], behaviour: Any, jobs: int = 2) -> tuple[int, str]:
    output = io.StringIO()
    engine = LocalEngine(jobs, command(behaviour))
    status = fill(found, STEPS, engine, Console(file=output, width=200), Path("bench"))
    return status, output.getvalue()


def starts(cell: Cell) -> list[str]:
    return (cell.path / "starts.txt").read_text().splitlines()


def test_a_grid_is_filled_once_and_a_failed_cell_stops_no_other(tmp_path: Path) -> None:
    found = cells(tmp_path, 3)
    status, output = filled(found, lambda seed: "fails" if seed == 1 else "finishes")
    assert status == 1
    assert "walker-walk sac seed 1 failed: qsm: error: the reason" in output
    assert f"failed: {found[1].path}: qsm: error: the reason" in output
    assert "2 of 3 runs finished, 1 failed" in output
    status, output = filled(found, lambda seed: "finishes")
    assert status == 0 and "3 runs of 1,000 steps, 2 of them finished; 1 at a time" in output
    assert [len(starts(cell)) for cell in found] == [1, 2, 1]
    assert not list(tmp_path.rglob("*.output.txt"))
    status, output = filled(found, lambda seed: "fails")
    assert status == 0 and [len(starts(cell)) for cell in found] == [1, 2, 1]


def test_more_steps_or_seeds_train_what_is_missing(tmp_path: Path) -> None:
    found = cells(tmp_path, 1)
    assert filled(found, lambda seed: "finishes")[0] == 0
    assert progress_of(found[0], STEPS).state == "finished"
    assert progress_of(found[0], 2 * STEPS).state == "stopped"
    assert [progress_of(cell, STEPS).state for cell in cells(tmp_path, 2)] == ["finished", "missing"]


def test_processes_share_the_cores_without_overlap(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    found = cells(tmp_path, 2)
    filled(found, lambda seed: "finishes", jobs=len(cores))
    assert all(starts(cell)[0] in [f"[{core}] 1" for core in cores] for cell in found)
    found = cells(tmp_path / "one", 1)
    filled(found, lambda seed: "finishes", jobs=1)
    assert starts(found[0]) == [f"{cores} {len(cores)}"]


def test_stopping_saves_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    found = cells(tmp_path, 3)
    engine = LocalEngine(1, command(lambda seed: "waits"))
    seen: list[Any] = []

    def tick() -> None:
        if not seen and progress_of(found[0], STEPS).step == 300:
            seen.append(engine.running())
            engine.stop()

    outcomes = list(engine.run(found, tick, interval=0.01))
    assert seen == [[found[0]]]
    assert [outcome.status for outcome in sorted(outcomes, key=lambda one: one.cell.seed)] == [143] * 3
    assert progress_of(found[0], STEPS) == ("stopped", 400, 5.0, "")
    assert not found[1].path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_benchmark_with_its_status(tmp_path: Path, number: int) -> None:
    found, former = cells(tmp_path, 1), signal.getsignal(number)
    running = threading.Event()

    class Engine(LocalEngine):
        def running(self) -> list[Cell]:
            if progress_of(found[0], STEPS).step == 300 and not running.is_set():
                running.set()
                signal.raise_signal(number)
            return super().running()

    output = io.StringIO()
    engine = Engine(1, command(lambda seed: "waits"))
    status = fill(found, STEPS, engine, Console(file=output, width=200), tmp_path)
    assert status == 128 + number and running.is_set()
    assert "40%" in output.getvalue() and "Go on with the same command" in output.getvalue()
    assert signal.getsignal(number) == former


def test_the_view_knows_rates_and_the_time_left(tmp_path: Path) -> None:
    clock = [0.0]
    found = cells(tmp_path, 4)
    for cell, step in ((found[0], 1000), (found[1], 200)):
        run = RunDir.create_or_open(cell.path, progress_config())
        run.write_status("finished" if step == STEPS else "running", step, STEPS, 7.0)
    view = GridView(found, STEPS, 2, lambda: clock[0])
    view.update([found[1]])
    assert view.rate(found[1]) is None and view.seconds_left() is None
    clock[0] = 10.0
    (found[1].path / "train.csv").write_text("step,updates\n100,1\n400,2\n")
    view.update([found[1]])
    assert view.rate(found[1]) == 20.0
    assert view.seconds_left() == (600 + 2 * 1000) / 20
    assert view.summary() == "1 of 4 runs finished, 20 steps/s, about 2 min left"
    console = Console(width=100, file=io.StringIO())
    console.print(view.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7" in shown and "40% 20/s" in shown
    view.end(Outcome(found[1], 1, "no disk"))
    assert view.progress[found[1]].state == "failed" and view.count("failed") == 1
    assert bench.ended(Outcome(found[1], 1, ""), view).startswith("walker-walk sac seed 1 failed: no disk")


def progress_config() -> dict[str, Any]:
    parts: dict[str, Any] = {"agent": "sac", "task": "walker-walk", "backend": "dm_control"}
    return {"format": 1} | parts | {"agent_config": {}, "run_config": {}}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (61, "1 min"), (3600, "1 h 0 min"), (12_000, "3 h 20 min"), (3e5, "3 d 11 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_variants_are_agents_of_their_own() -> None:
    spec = parse_agent("qsm@hot:score_scale=120:discount=0.9")
    assert (
        spec == AgentSpec("qsm", "hot", ("--score_scale=120", "--discount=0.9")) and spec.label == "qsm@hot"
    )
    assert parse_agent("sac") == AgentSpec("sac", None, ())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("qsn", "no agent. Did you mean 'qsm'?"),
        ("", "no agent"),
        ("qsm@", "needs a name"),
        ("qsm:score_scale=1", "needs a name"),
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
    with pytest.raises(UserError, match="names 'sac' twice"):
        cells(tmp_path, agents=("sac", "sac"))


def test_suites_hold_tasks_that_exist() -> None:
    from envs.tasks import check_task

    for suite in SUITES.values():
        assert len(set(suite.tasks)) == len(suite.tasks)
        for task in suite.tasks:
            check_task(task)
    assert len(SUITES["dmc28"].tasks) == 28
    assert tasks_of(("cheetah-run", "paper", "cheetah-run"))[:2] == ("cheetah-run", "cartpole-balance")


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
    [cell] = grid(
        [parse_agent("td3@x:discount=0.9")], ["walker-walk"], [4], 20_000, tmp_path, ["--wandb=disabled"]
    )
    assert cli.main([*cell.arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "--discount 0.9" in shown and "--seed 4" in shown and "--steps 20_000" in shown
    assert str(tmp_path / "dm_control" / "walker-walk" / "td3@x" / "seed_4") in shown
