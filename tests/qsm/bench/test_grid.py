"""A grid is filled by processes, each cell once; what fails is told and tried again, and stopping saves."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import agents
from agents.qsm import QSMConfig
from agents.sac import SACConfig
from qsm.base.errors import UserError
from qsm.bench import fill as filling
from qsm.bench.engines import LocalEngine, Outcome
from qsm.bench.fill import fill
from qsm.bench.grid import (
    AgentSpec,
    Cell,
    Grid,
    Job,
    Progress,
    check_options,
    check_writable,
    make_grid,
    parse_agent,
    progress_of,
)
from qsm.bench.suites import SUITES, tasks_of
from qsm.bench.view import GridView
from qsm.command import cli
from qsm.options.run import RunConfig, run_config_class
from qsm.options.saved import check_saved
from qsm.record.config_file import resolved_config
from qsm.record.find import find_runs, load_run
from qsm.record.run_folder import RunDir

STEPS = 1000
RANDOM_STEPS = 100
ROOT = Path(__file__).parents[3]

TRAIN = """
import json, os, pathlib, signal, sys
path, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
path.mkdir(parents=True, exist_ok=True)
with (path / "starts.txt").open("a") as file:
    print(sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"], file=file)
(path / "memory.txt").write_text(os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "not set"))
(path / "config.json").write_text(sys.argv[3])
def status(state, step, message=""):
    content = {"state": state, "step": step, "steps": 1000, "last_return": 5.0, "message": message}
    (path / "status.json").write_text(json.dumps(content))
if behaviour == "fails":
    print("something first", "qsm: error: the reason", sep="\\n", file=sys.stderr)
    sys.exit(2)
if behaviour.startswith("SIG"):
    print("step 300", flush=True)
    status("running", 300)
    os.kill(os.getpid(), getattr(signal, behaviour))
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
        config = json.dumps(config_of(first))
        return [sys.executable, "-c", TRAIN, str(first.path), behaviour(first.id.seed), config]

    return arguments


def config_of(cell: Cell, steps: int = STEPS) -> dict[str, Any]:
    """Of the run that this file's grids make of `cell`."""
    return cell._replace(run_config=dataclasses.replace(cell.run_config, steps=steps)).resolved()


def leave(cell: Cell, state: Any, step: int, steps: int = STEPS, message: str = "") -> RunDir:
    """A run as a training leaves it."""
    run = RunDir.create_or_open(cell.path, config_of(cell, steps))
    run.write_status(state, step, steps, 7.0, message)
    return run


def grid(
    folder: Path,
    seeds: int = 2,
    agents: tuple[str, ...] = ("sac",),
    tasks: tuple[str, ...] = ("walker-walk",),
) -> Grid:
    specs = [parse_agent(agent) for agent in agents]
    return make_grid(specs, tasks, range(seeds), RunConfig(steps=STEPS, random_steps=RANDOM_STEPS), folder)


def progress_of_all(found: Grid) -> dict[Cell, Progress]:
    return {cell: progress_of(cell, found.steps) for cell in found.cells}


def filled(found: Grid, behaviour: Any, jobs: int = 2) -> tuple[int, str]:
    output = io.StringIO()
    engine = LocalEngine(jobs, command(behaviour))
    status = fill(found, engine, Console(file=output, width=200))
    return status, output.getvalue()


def starts(cell: Cell) -> list[str]:
    return (cell.path / "starts.txt").read_text().splitlines()


def test_a_grid_is_filled_once_and_a_failed_cell_stops_no_other(tmp_path: Path) -> None:
    whole = grid(tmp_path, 3)
    found = whole.cells
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
    assert "3 runs of 1,000 steps, all of them finished" in output and "at a time" not in output


def test_more_steps_or_seeds_train_what_is_missing(tmp_path: Path) -> None:
    found = grid(tmp_path, 1).cells
    assert filled(grid(tmp_path, 1), lambda seed: "finishes")[0] == 0
    assert progress_of(found[0], STEPS).state == "finished"
    assert progress_of(found[0], 2 * STEPS).state == "stopped"
    assert [progress_of(cell, STEPS).state for cell in grid(tmp_path, 2).cells] == ["finished", "missing"]


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
    line = told([*same, "--action-repeat", "2", "--replay-ratio", "4"], capsys)
    assert f"{first.path} (one of 2) holds a run of other options: " in line
    assert 'run_config.replay_ratio is "1" there and "4" here' in line
    assert "run_config.action_repeat is 1 there and 2 here" in line and "--out" in line
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
    assert (
        f"{cell.path} holds a run of other options: agent_config.score_scale is 120.0 there and 130.0" in line
    )
    assert "give the variant another name than 'hot'" in line
    assert cli.main(["bench", "walker-walk", *words, "qsm@hot:score_scale=120", "--dry-run"]) == 0


def test_a_run_may_have_fewer_steps_and_where_it_is_finished_more(tmp_path: Path) -> None:
    finished, extended, shortened = grid(tmp_path, 3).cells
    leave(finished, "finished", 2 * STEPS, 2 * STEPS)
    leave(extended, "finished", STEPS // 2, STEPS // 2)
    check_options(progress_of_all(grid(tmp_path, 3)))
    leave(shortened, "interrupted", 400, 2 * STEPS)  # `qsm train` would not shorten it
    with pytest.raises(UserError, match=r"seed_2 .* run_config\.steps is 2000 there and 1000 here"):
        check_options(progress_of_all(grid(tmp_path, 3)))


@pytest.mark.parametrize("backend", ["dm_control", "mjx"])
def test_a_cell_has_the_configuration_that_qsm_train_gives_it(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def train(agent: str, task: str, runs: Any, launch: Any, _: Any) -> str:
        seen.extend(
            resolved_config(agent, task, launch.backend, one.agent_config, one.config) for one in runs
        )
        return "finished"

    monkeypatch.setattr("qsm.training.train.train", train)
    options = run_config_class(backend)(steps=50_000, wandb="disabled", replay_ratio="1/2", action_repeat=2)
    specs = [parse_agent(text) for text in ("sac", "qsm@hot:score_scale=120:hidden_sizes=64,64")]
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


def test_processes_share_the_cores_without_overlap(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    found = grid(tmp_path, 2)
    filled(found, lambda seed: "finishes", jobs=len(cores))
    assert all(starts(cell)[0] in [f"[{core}] 1" for core in cores] for cell in found.cells)
    # One that shares an accelerator leaves memory to the others.
    expected = "false" if len(cores) > 1 else "not set"
    assert all((cell.path / "memory.txt").read_text() == expected for cell in found.cells)
    found = grid(tmp_path / "one", 1)
    filled(found, lambda seed: "finishes", jobs=1)
    assert starts(found.cells[0]) == [f"{cores} {len(cores)}"]
    assert (found.cells[0].path / "memory.txt").read_text() == "not set"


@pytest.mark.parametrize(
    ("behaviour", "state", "reason"),
    [
        ("SIGKILL", "failed", "killed by SIGKILL (as where memory runs out); the last it said: step 300"),
        ("SIGTERM", "stopped", ""),
    ],
)
def test_a_training_ended_by_a_signal_is_told_and_stops_no_other(
    behaviour: str, state: str, reason: str, tmp_path: Path
) -> None:
    whole = grid(tmp_path, 2)
    first, _ = whole.cells
    status, output = filled(whole, lambda seed: "finishes" if seed else behaviour)
    assert status == 1 and "1 of 2 runs finished" in output
    assert f"{state}: {first.path}" + (f": {reason}" if reason else "") in output.splitlines()
    status, output = filled(whole, lambda seed: "finishes")
    assert status == 0 and len(starts(first)) == 2


def test_a_training_whose_log_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2)
    job, _ = whole.jobs(whole.cells)
    job.log.mkdir(parents=True)
    status, output = filled(whole, lambda seed: "finishes")
    assert status == 1 and "1 of 2 runs finished, 1 failed" in output
    assert f"failed: {job.cells[0].path}: {job.log}: Is a directory" in output


def test_a_second_signal_kills_wherever_the_first_has_come(tmp_path: Path) -> None:
    engine = LocalEngine(1, command(lambda seed: "finishes"))
    killer = threading.Thread(target=lambda: (engine._lock.acquire(), engine.kill(), engine._lock.release()))
    killer.daemon = True
    killer.start()
    killer.join(10)
    assert not killer.is_alive()
    whole = grid(tmp_path, 2)
    outcomes = list(engine.run(whole.jobs(whole.cells), lambda: None, interval=0.01))
    assert [outcome.status for outcome in outcomes] == [143, 143]
    assert not list(tmp_path.iterdir())  # not even logs of what was not begun


def test_a_second_signal_ends_a_training_that_takes_long_to_save(tmp_path: Path) -> None:
    whole = grid(tmp_path, 1)
    (cell,) = whole.cells

    class Engine(LocalEngine):
        def running(self) -> list[Job]:
            if progress_of(cell, STEPS).step == 300:
                signal.raise_signal(signal.SIGINT)
            return super().running()

        def stop(self) -> None:
            if super().running():
                signal.raise_signal(signal.SIGINT)  # while it saves
            super().stop()

    output = io.StringIO()
    engine = Engine(1, command(lambda seed: "waits"))
    assert fill(whole, engine, Console(file=output, width=200)) == 130
    assert "Killed; what was not saved is lost. Go on with the same command." in output.getvalue()
    assert progress_of(cell, STEPS).step == 300


def test_whatever_ends_the_benchmark_stops_the_trainings(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2)
    waiting, _ = whole.cells

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "seed 1 finished" in text:
                raise OSError("no terminal")
            return super().write(text)

    engine = LocalEngine(2, command(lambda seed: "finishes" if seed else "waits"))
    with pytest.raises(OSError, match="no terminal"):
        fill(whole, engine, Console(file=Gone(), width=200))
    assert not engine.running() and progress_of(waiting, STEPS).state != "running"


def test_stopping_saves_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    whole = grid(tmp_path, 3)
    found = whole.cells
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_benchmark_with_its_status(
    tmp_path: Path, number: int, request: pytest.FixtureRequest
) -> None:
    # Whoever started the tests in the background, or by nohup, may have had it ignored.
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, usual)))
    whole, former = grid(tmp_path, 1), usual
    found = whole.cells
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
    found = whole.cells
    leave(found[0], "finished", STEPS)
    leave(found[1], "running", 200)
    view = GridView(found, STEPS, lambda: clock[0])
    jobs = whole.jobs(found[1:])
    view.update(jobs[:1])
    assert view.rate(found[1]) is None and view.seconds_left() is None
    clock[0] = 10.0
    # The last row is being written: of 500, or of 5,000.
    (found[1].path / "train.csv").write_text("step,updates\n100,1\n400,2\n5")
    view.update(jobs[:1])
    assert view.rate(found[1]) == 20.0
    assert view.seconds_left() == (600 + 2 * 1000) / 20
    assert view.summary() == "1 of 4 runs finished, 20 steps/s, about 2 min left"
    console = Console(width=100, file=io.StringIO())
    console.print(view.whole(console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "7" in shown and "40% 20/s" in shown
    view.end(Outcome(jobs[0], 1, "no disk"))
    assert view.progress[found[1]].state == "failed" and view.count("failed") == 1
    assert filling.ended(found[1], view).startswith("walker-walk sac seed 1 failed: no disk")


def test_seeds_in_one_program_are_trained_at_a_time(tmp_path: Path) -> None:
    clock = [0.0]
    whole = grid(tmp_path, 8)
    view = GridView(whole.cells, STEPS, lambda: clock[0])
    jobs = whole.jobs(whole.cells, seeds_together=4)
    for step in (0, 200):
        for cell in jobs[0].cells:
            leave(cell, "running", step)
        view.update(jobs[:1])
        clock[0] += 10.0
    clock[0] = 10.0
    assert view.seconds_left() == 800 / 20 + 1000 / 20
    # The last to end does so alone.
    view = GridView(whole.cells[:2], STEPS, lambda: clock[0])
    for step in (0, 200):
        leave(whole.cells[0], "running", step)
        leave(whole.cells[1], "running", 700 + step)
        view.update(whole.jobs(whole.cells[:2]))
        clock[0] += 10.0
    clock[0] -= 10.0
    assert view.seconds_left() == 800 / 20


def test_what_failed_before_waits_until_it_fails_again(tmp_path: Path) -> None:
    clock = [0.0]
    whole = grid(tmp_path, 3)
    found = whole.cells
    leave(found[0], "running", 0)
    leave(found[2], "failed", 400, message="diverged")
    view = GridView(found, STEPS, lambda: clock[0])
    assert view.summary() == "0 of 3 runs finished, 1 failed"
    jobs = whole.jobs(found)
    view.wait_for(jobs)
    view.update(jobs[:1])
    clock[0] = 10.0
    leave(found[0], "running", 200)
    view.update(jobs[:1])
    assert view.summary() == "0 of 3 runs finished, 20 steps/s, about 2 min left"
    assert view.seconds_left() == (800 + 1000 + 600) / 20
    view.stop()
    assert view.count("failed") == 0
    view.update(jobs[2:])
    view.end(Outcome(jobs[2], 1, ""))
    view.stop()
    assert view.progress[found[2]] == ("failed", 400, 7.0, "diverged")
    _, output = filled(whole, lambda seed: "fails" if seed == 2 else "finishes", jobs=1)
    first, *_ = [line for line in output.splitlines() if "seed 0 finished" in line]
    assert "(1 of 3 runs finished" in first and "failed" not in first
    assert "2 of 3 runs finished, 1 failed" in output


class Seen(Console):
    """A terminal of 80 x 24."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)

    def shows(self, what: Any) -> list[str]:
        """The lines of `what` that are seen while it is live."""
        from rich.live_render import LiveRender

        lines = self.render_lines(LiveRender(what), pad=False)
        return ["".join(segment.text for segment in line).rstrip() for line in lines]


def test_the_summary_and_what_runs_are_seen_on_a_low_terminal(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2, ("sac", "td3"), SUITES["dmc28"].tasks)
    cells = whole.cells
    view, console = GridView(cells, STEPS), Seen()
    running = cells[-1]
    leave(running, "running", 300)
    view.update(whole.jobs([running]))
    shown = console.shows(view.screen(console))
    assert len(shown) <= 24 and shown[0] == "0 of 112 runs finished"
    assert shown[1].split()[0] == "task" and shown[2].split() == ["walker-walk", "td3", "-", "30%"]
    for cell in cells:
        if cell.id.task < "w":
            view.progress[cell] = Progress("finished", STEPS, 7.0)
    shown = console.shows(view.screen(console))
    assert len(shown) == 9 and shown[:2] == [
        "100 of 112 runs finished",
        "50 rows that are finished are left out",
    ]
    assert len(console.shows(view.whole(console))) == 24  # cut off; at the end it is printed whole
    few = GridView(cells[:4], STEPS)
    assert len(console.shows(few.screen(console))) == 6  # nothing is left out


def test_every_cell_is_seen_on_a_narrow_terminal(tmp_path: Path) -> None:
    whole = grid(tmp_path, 16)
    for cell in whole.cells:
        leave(cell, "finished", STEPS)
    view, console = GridView(whole.cells, STEPS), Seen()
    for number, cell in enumerate(whole.cells):
        view.progress[cell] = Progress("finished", STEPS, 900.0 + number)
    shown = console.shows(view.screen(console))
    words = " ".join(shown[2:]).split()
    assert words == ["walker-walk", "sac", *(str(900 + number) for number in range(16))]


def test_the_live_view_begins_with_the_summary(tmp_path: Path) -> None:
    whole = grid(tmp_path, 1, ("sac", "td3"), SUITES["dmc28"].tasks)
    console, frames = Seen(), []

    class Engine(LocalEngine):
        def run(self, jobs: Any, tick: Any, interval: float = 1.0) -> Any:
            tick()
            frames.append(console.file.getvalue())  # type: ignore[attr-defined]
            for job in jobs:
                leave(job.cells[0], "finished", STEPS)
                yield Outcome(job, 0, "")

    assert fill(whole, Engine(1), console) == 0
    assert "0 of 56 runs finished" in frames[0] and frames[0].rstrip().endswith("...")
    last = console.file.getvalue()  # type: ignore[attr-defined]
    assert "56 of 56 runs finished\n" in last and last.count("humanoid-walk") == 1


def test_tables_for_a_file_are_as_wide_as_they_are(tmp_path: Path) -> None:
    whole = grid(tmp_path, 16, ("qsm-clean",), ("cartpole-balance_sparse", "finger-turn_hard"))
    for cell in whole.cells:
        leave(cell, "interrupted", 120)
    output = io.StringIO()
    assert fill(whole, LocalEngine(1), Console(file=output, width=80), dry_run=True) == 0
    _, head, first, second, summary = output.getvalue().splitlines()
    assert head.split() == ["task", "agent", *(word for n in range(16) for word in ("seed", str(n)))]
    assert first.split() == ["cartpole-balance_sparse", "qsm-clean", *["12%"] * 16]
    assert second.split()[0] == "finger-turn_hard" and len(first) == len(second) == len(head)
    assert summary == "0 of 32 runs finished"


def test_variants_are_agents_of_their_own() -> None:
    spec = parse_agent("qsm@hot:score_scale=120:discount=0.9")
    assert spec == AgentSpec("qsm", "hot", QSMConfig(score_scale=120.0, discount=0.9))
    assert parse_agent("sac") == AgentSpec("sac", None, SACConfig())


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


def test_a_new_grid_looks_for_no_runs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", lambda *_: pytest.fail("folders are searched for each cell"))
    assert fill(grid(tmp_path, 2), LocalEngine(1), Console(file=io.StringIO()), dry_run=True) == 0


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


def test_of_several_seeds_in_one_program_only_those_fail_that_did(tmp_path: Path) -> None:
    whole = grid(tmp_path, 2)
    view = GridView(whole.cells, STEPS)
    (job,) = whole.jobs(whole.cells, seeds_together=2)
    for cell, state in zip(job.cells, ("finished", "failed"), strict=True):
        leave(cell, state, STEPS, message="" if state == "finished" else "diverged")
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
