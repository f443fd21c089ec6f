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
from qsm.benchmark import AgentSpec, Cell, Grid, Job, parse_agent, progress_of
from qsm.engines import LocalEngine, Outcome
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
    """Of a training that behaves as `behaviour` says of its first seed."""

    def arguments(job: Job) -> list[str]:
        first = job.cells[0]
        return [sys.executable, "-c", TRAIN, str(first.path), behaviour(first.seed)]

    return arguments


def grid(folder: Path, seeds: int = 2, agents: tuple[str, ...] = ("sac",)) -> Grid:
    return Grid([parse_agent(agent) for agent in agents], ["walker-walk"], range(seeds), STEPS, folder)


def filled(found: Grid, behaviour: Any, jobs: int = 2) -> tuple[int, str]:
    output = io.StringIO()
    engine = LocalEngine(jobs, command(behaviour))
    status = fill(found, engine, Console(file=output, width=200))
    return status, output.getvalue()


def starts(cell: Cell) -> list[str]:
    return (cell.path / "starts.txt").read_text().splitlines()


def test_a_grid_is_filled_once_and_a_failed_cell_stops_no_other(tmp_path: Path) -> None:
    whole = grid(tmp_path, 3)
    found = whole.cells()
    status, output = filled(whole, lambda seed: "fails" if seed == 1 else "finishes")
    assert status == 1
    assert "walker-walk sac seed 1 failed: qsm: error: the reason" in output
    assert f"failed: {found[1].path}: qsm: error: the reason" in output
    assert "2 of 3 runs finished, 1 failed" in output
    status, output = filled(whole, lambda seed: "finishes")
    assert status == 0 and "3 runs of 1,000 steps, 2 of them finished; 1 at a time" in output
    assert [len(starts(cell)) for cell in found] == [1, 2, 1]
    assert not list(tmp_path.rglob("*.output.txt"))
    status, output = filled(whole, lambda seed: "fails")
    assert status == 0 and [len(starts(cell)) for cell in found] == [1, 2, 1]


def test_more_steps_or_seeds_train_what_is_missing(tmp_path: Path) -> None:
    found = grid(tmp_path, 1).cells()
    assert filled(grid(tmp_path, 1), lambda seed: "finishes")[0] == 0
    assert progress_of(found[0], STEPS).state == "finished"
    assert progress_of(found[0], 2 * STEPS).state == "stopped"
    assert [progress_of(cell, STEPS).state for cell in grid(tmp_path, 2).cells()] == ["finished", "missing"]


def test_processes_share_the_cores_without_overlap(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    found = grid(tmp_path, 2)
    filled(found, lambda seed: "finishes", jobs=len(cores))
    assert all(starts(cell)[0] in [f"[{core}] 1" for core in cores] for cell in found.cells())
    found = grid(tmp_path / "one", 1)
    filled(found, lambda seed: "finishes", jobs=1)
    assert starts(found.cells()[0]) == [f"{cores} {len(cores)}"]


def test_stopping_saves_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    whole = grid(tmp_path, 3)
    found = whole.cells()
    engine = LocalEngine(1, command(lambda seed: "waits"))
    seen: list[Any] = []

    def tick() -> None:
        if not seen and progress_of(found[0], STEPS).step == 300:
            seen.append(engine.running())
            engine.stop()

    outcomes = list(engine.run(whole.jobs(found), tick, interval=0.01))
    assert [[job.cells for job in running] for running in seen] == [[(found[0],)]]
    assert [outcome.status for outcome in outcomes] == [143] * 3
    assert progress_of(found[0], STEPS) == ("stopped", 400, 5.0, "")
    assert not found[1].path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_benchmark_with_its_status(tmp_path: Path, number: int) -> None:
    whole, former = grid(tmp_path, 1), signal.getsignal(number)
    found = whole.cells()
    running = threading.Event()

    class Engine(LocalEngine):
        def running(self) -> list[Job]:
            if progress_of(found[0], STEPS).step == 300 and not running.is_set():
                running.set()
                signal.raise_signal(number)
            return super().running()

    output = io.StringIO()
    engine = Engine(1, command(lambda seed: "waits"))
    status = fill(whole, engine, Console(file=output, width=200))
    assert status == 128 + number and running.is_set()
    assert "40%" in output.getvalue() and "Go on with the same command" in output.getvalue()
    assert signal.getsignal(number) == former


def test_the_view_knows_rates_and_the_time_left(tmp_path: Path) -> None:
    clock = [0.0]
    whole = grid(tmp_path, 4)
    found = whole.cells()
    for cell, step in ((found[0], 1000), (found[1], 200)):
        run = RunDir.create_or_open(cell.path, progress_config())
        run.write_status("finished" if step == STEPS else "running", step, STEPS, 7.0)
    view = GridView(found, STEPS, 2, lambda: clock[0])
    jobs = whole.jobs(found[1:])
    view.update(jobs[:1])
    assert view.rate(found[1]) is None and view.seconds_left() is None
    clock[0] = 10.0
    (found[1].path / "train.csv").write_text("step,updates\n100,1\n400,2\n")
    view.update(jobs[:1])
    assert view.rate(found[1]) == 20.0
    assert view.seconds_left() == (600 + 2 * 1000) / 20
    assert view.summary() == "1 of 4 runs finished, 20 steps/s, about 2 min left"
    console = Console(width=100, file=io.StringIO())
    console.print(view.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7" in shown and "40% 20/s" in shown
    view.end(Outcome(jobs[0], 1, "no disk"))
    assert view.progress[found[1]].state == "failed" and view.count("failed") == 1
    assert bench.ended(found[1], view).startswith("walker-walk sac seed 1 failed: no disk")


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
        grid(tmp_path, agents=("sac", "sac")).cells()


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
    whole = Grid(
        [parse_agent("td3@x:discount=0.9")],
        ["walker-walk"],
        [4, 5],
        20_000,
        tmp_path,
        options=["--wandb=disabled"],
    )
    alone, _ = whole.jobs(whole.cells())
    (both,) = whole.jobs(whole.cells(), together=2)
    assert cli.main([*alone.arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "--discount 0.9" in shown and "--seed 4" in shown and "--steps 20_000" in shown
    assert str(tmp_path / "dm_control" / "walker-walk" / "td3@x" / "seed_4") in shown
    assert "seed_5" not in shown
    assert cli.main([*both.arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(str(cell.path) in shown for cell in whole.cells())


def test_seeds_are_put_together_where_they_are_consecutive_and_equally_far(tmp_path: Path) -> None:
    whole = grid(tmp_path, 6, ("sac", "td3"))
    cells = whole.cells()
    stopped = RunDir.create_or_open(cells[4].path, progress_config())  # sac, seed 2
    stopped.write_status("preempted", 400, STEPS, 7.0)
    waiting = [cell for cell in cells if (cell.spec.agent, cell.seed) != ("td3", 4)]
    jobs = whole.jobs(waiting, together=4)
    found = [(job.cells[0].spec.agent, [cell.seed for cell in job.cells]) for job in jobs]
    assert found == [
        ("sac", [0, 1]),
        ("td3", [0, 1, 2, 3]),
        ("sac", [2]),
        ("sac", [3, 4, 5]),
        ("td3", [5]),
    ]
    assert sorted(cell.path for job in jobs for cell in job.cells) == sorted(cell.path for cell in waiting)


def test_of_several_seeds_in_one_program_only_those_fail_that_did(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2)
    view = GridView(whole.cells(), STEPS, 1)
    (job,) = whole.jobs(whole.cells(), together=2)
    for cell, state in zip(job.cells, ("finished", "failed"), strict=True):
        run = RunDir.create_or_open(cell.path, progress_config())
        run.write_status(state, STEPS, STEPS, 7.0, "" if state == "finished" else "diverged")  # type: ignore[arg-type]
    view.end(Outcome(job, 1, "the last line"))
    assert [view.progress[cell][0] for cell in job.cells] == ["finished", "failed"]
    assert view.progress[job.cells[1]].reason == "diverged"


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
