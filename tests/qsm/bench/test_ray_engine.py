"""A grid on a Ray cluster of two machines (of this one): what is lost begins again, and stopping saves."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from qsm.base.errors import UserError
from qsm.bench.engines import PREEMPTED
from qsm.bench.fill import fill
from qsm.bench.grid import Grid, Job, make_grid, parse_agent, progress_of
from qsm.bench.ray_engine import RayEngine
from qsm.command import cli
from qsm.options.run import RunConfig

# Read when Ray is imported: its servers then listen on loopback only.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

# Ray starts its machines by fork and exec in this process, where other tests may have started JAX. Nothing but exec
# happens after the fork, so that what JAX warns of cannot.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

STEPS = 1000
RANDOM_STEPS = 100
LOOPBACK: dict[str, Any] = {"node_ip_address": "127.0.0.1"}
TRAIN = """
import fcntl, json, os, pathlib, signal, sys
path, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
path.mkdir(parents=True, exist_ok=True)
owner = (path / ".owner").open("w")
fcntl.flock(owner, fcntl.LOCK_EX)
(path / "config.json").write_text(sys.argv[3])
def write(name, value):
    (path / (name + ".tmp")).write_text(json.dumps(value))
    (path / (name + ".tmp")).rename(path / name)
def status(state, step, message=""):
    write("status.json", {"state": state, "step": step, "steps": 1000, "last_return": 5.0, "message": message})
starts = json.loads((path / "starts.json").read_text()) if (path / "starts.json").exists() else []
starts.append({"pid": os.getpid(), "parent": os.getppid(), "threads": os.environ["OMP_NUM_THREADS"]})
starts[-1]["preallocate"] = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "not set")
write("starts.json", starts)
if behaviour == "fails":
    print("something first", "qsm: error: the reason", sep="\\n", file=sys.stderr)
    sys.exit(2)
if behaviour == "waits" or behaviour == "waits once" and len(starts) == 1:
    # Not a handler and pause(): a signal between the two would be waited for in vain.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    status("running", 300)
    signal.sigwait({signal.SIGTERM})
    status("preempted", 400)
    sys.exit(143)
status("finished", 1000)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with one core each, which ignore SIGINT: `ray start` in the background of a script."""
    from ray.cluster_utils import Cluster

    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False} | LOOPBACK
    )
    made.add_node(num_cpus=1, **LOOPBACK)
    signal.signal(signal.SIGINT, former)
    ray.init(address=made.address, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def grid(tmp_path: Path) -> Callable[[int], Grid]:
    def make(seeds: int) -> Grid:
        options = RunConfig(steps=STEPS, random_steps=RANDOM_STEPS)
        return make_grid([parse_agent("sac")], ["walker-walk"], range(seeds), options, tmp_path)

    return make


def engine(behaviour: Callable[[int], str], jobs: int | None = None, gpus: float = 0.0) -> RayEngine:
    def command(job: Job) -> list[str]:
        first = job.cells[0]
        config = json.dumps(first.resolved())
        return [sys.executable, "-c", TRAIN, str(first.path), behaviour(first.id.seed), config]

    return RayEngine(jobs=jobs, gpus=gpus, command=command)


def starts(path: Path) -> list[dict[str, Any]]:
    return json.loads((path / "starts.json").read_text())


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or only waits for its parent to take note."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
def test_a_grid_is_filled_and_a_failed_training_stops_no_other(
    cluster: Any, grid: Callable[[int], Grid]
) -> None:
    output = io.StringIO()
    made = engine(lambda seed: "fails" if seed == 1 else "finishes")
    assert made.jobs == 2
    assert fill(grid(3), made, Console(file=output, width=200)) == 1
    assert "walker-walk sac seed 1 failed: qsm: error: the reason" in output.getvalue()
    assert "2 of 3 runs finished, 1 failed" in output.getvalue()
    cells = grid(3).cells
    assert [len(starts(cell.path)) for cell in cells] == [1, 1, 1]
    assert starts(cells[0].path)[0]["threads"] == "1"


@pytest.mark.parametrize(("gpus", "expected"), [(0.25, "false"), (1.0, "not set")])
@pytest.mark.slow
def test_trainings_that_share_a_gpu_leave_memory_to_each_other(
    gpus: float, expected: str, cluster: Any, grid: Callable[[int], Grid]
) -> None:
    made = engine(lambda seed: "finishes", gpus=gpus)
    made._train = made._train.options(num_gpus=0)  # there is none here
    (outcome,) = made.run(grid(1).jobs(grid(1).cells), lambda: None, interval=0.05)
    assert outcome.status == 0
    assert starts(grid(1).cells[0].path)[0]["preallocate"] == expected


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_training_saves_and_goes_on(
    cluster: Any, grid: Callable[[int], Grid]
) -> None:
    cells = grid(2).cells
    killed: list[int] = []

    def tick() -> None:
        if not killed and all(progress_of(cell, STEPS).step == 300 for cell in cells):
            killed.append(starts(cells[0].path)[0]["parent"])
            assert {job.cells[0].id.seed for job in made.running()} == {0, 1}
            os.kill(
                killed[0], signal.SIGKILL
            )  # the first; the second is asked to end, as before a preemption
            os.kill(starts(cells[1].path)[0]["pid"], signal.SIGTERM)

    made = engine(lambda seed: "waits once")
    outcomes = list(made.run(grid(2).jobs(cells), tick, interval=0.05))
    assert [outcome.status for outcome in outcomes] == [0, 0]
    for cell in cells:
        first, second = starts(cell.path)
        assert first["pid"] != second["pid"] and has_ended(first["pid"])
        assert progress_of(cell, STEPS).state == "finished"
    assert has_ended(killed[0])


@pytest.mark.slow
def test_stopping_saves_what_runs_and_starts_nothing_more(cluster: Any, grid: Callable[[int], Grid]) -> None:
    cells = grid(3).cells
    made = engine(lambda seed: "waits", jobs=1)

    def tick() -> None:
        if progress_of(cells[0], STEPS).step == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(made.run(grid(3).jobs(cells), tick, interval=0.05))
    assert progress_of(cells[0], STEPS) == ("stopped", 400, 5.0, "")
    assert has_ended(starts(cells[0].path)[0]["pid"])
    assert [cell.path.exists() for cell in cells] == [True, False, False]


@pytest.mark.slow
def test_a_lost_machine_loses_no_training(cluster: Any, grid: Callable[[int], Grid]) -> None:
    cells = grid(1).cells
    machines = [cluster.add_node(num_cpus=1, resources={"spare": 1}, **LOOPBACK)]

    def tick() -> None:
        if len(machines) == 1 and progress_of(cells[0], STEPS).step == 300:
            machines.append(cluster.add_node(num_cpus=1, resources={"spare": 1}, **LOOPBACK))
            cluster.remove_node(machines[0], allow_graceful=False)

    made = engine(lambda seed: "waits once")
    made._train = made._train.options(resources={"spare": 0.1})  # on those machines only
    outcomes = list(made.run(grid(1).jobs(cells), tick, interval=0.05))
    cluster.remove_node(machines[1])
    assert [outcome.status for outcome in outcomes] == [0]
    first, second = starts(cells[0].path)
    assert first["parent"] != second["parent"] and has_ended(first["pid"])


@pytest.mark.slow
def test_what_goes_wrong_before_the_training_is_told(cluster: Any, grid: Callable[[int], Grid]) -> None:
    (grid(1).folder / "dm_control").write_text("in the way")
    (outcome,) = engine(lambda seed: "finishes").run(grid(1).jobs(grid(1).cells), lambda: None)
    assert outcome.status == 1
    assert outcome.reason == f"{grid(1).folder / 'dm_control' / 'walker-walk' / 'sac'}: Not a directory"


def test_no_cluster_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore of it")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    assert cli.main(["bench", "walker-walk", "--engine", "ray", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "no Ray cluster at 'auto' (Could not find any running Ray instance)" in told
    assert "ray start --head" in told and told.count("\n") == 1


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{port}", "Connection refused"),
        ("ray://127.0.0.1:{port}", "Connection refused"),
        ("nowhere.invalid:6379", ""),
        ("nowhere", "an address is HOST:PORT"),
        ("127.0.0.1:port", "an address is HOST:PORT"),
        ("127.0.0.1:99999", "an address is HOST:PORT"),
        ("RAY_ADDRESS", "Connection refused"),
    ],
)
def test_an_address_where_nothing_answers_is_told_before_ray_tries(
    address: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray tries for minutes"))
    address = address.format(port=closed_port())
    words = ["bench", "walker-walk", "--engine", "ray", "--out", str(tmp_path)]
    if address == "RAY_ADDRESS":
        address = f"127.0.0.1:{closed_port()}"
        monkeypatch.setenv("RAY_ADDRESS", address)
    else:
        words += ["--ray-address", address]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert f"no Ray cluster at '{address}' ({reason}" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "address", ["auto", "local", "127.0.0.1:{port}", "ray://127.0.0.1:{port}", "own://x"]
)
def test_an_address_that_answers_is_left_to_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **_: seen.append(address))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address.format(port=server.getsockname()[1])
        assert RayEngine(address).jobs == 3
    assert seen == [address]


@pytest.mark.slow
def test_a_relative_folder_means_the_same_to_every_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Grid] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qsm.bench.ray_engine.RayEngine", lambda *_: None)
    monkeypatch.setattr("qsm.bench.fill.fill", lambda grid, *_: seen.append(grid) or 0)
    assert cli.main(["bench", "walker-walk", "--engine", "ray", "--out", "there"]) == 0
    (job, *_) = seen[0].jobs(seen[0].cells)
    assert f"--runs={tmp_path / 'there'}" in job.arguments()


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'qsm\[cluster\]'"):
        RayEngine()


def test_a_stopped_task_tells_the_status_of_one_that_saved() -> None:
    assert PREEMPTED == 143
