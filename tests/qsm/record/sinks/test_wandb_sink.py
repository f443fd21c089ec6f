"""Weights & Biases shows the rows, and whatever befalls it never holds up or ends a run."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from qsm.record.metrics import MetricWriter
from qsm.record.run_folder import RunDir
from qsm.record.sinks import wandb_sink
from qsm.record.sinks.wandb_sink import WandbSink
from qsm.record.tables import read_csv

ROOT = Path(__file__).parents[4]


class BrokenWandb:
    """A wandb whose `start` or later call raises."""

    def __init__(self, broken: str) -> None:
        self.broken = broken
        self.modes: list[str] = []
        self.rows: list[tuple[int, dict[str, float]]] = []

    def start(self, _: RunDir, mode: str) -> BrokenWandb:
        self.modes.append(mode)
        if self.broken in ("start", mode):
            raise RuntimeError("no account\nand much more")
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken == "log":
            raise BrokenPipeError
        self.rows.append((step, values))

    def finish(self, exit_code: int) -> None:
        if self.broken == "finish":
            raise TimeoutError(f"exit code {exit_code} was not delivered")


@pytest.mark.parametrize("broken", ["start", "log", "finish", "online"])
def test_wandb_failure_warns_once(
    run: RunDir, warnings: list[str], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    fake = BrokenWandb(broken)
    monkeypatch.setattr(WandbSink, "_start", lambda _, run, mode: fake.start(run, mode))
    monkeypatch.setattr(WandbSink, "_forget_failed_start", lambda _: None)
    mode = "online" if broken == "online" else "offline"
    with MetricWriter(run, mode, warn=warnings.append) as sink:
        for step in range(3):
            sink.write("train", step, {"a": step})
    assert len(warnings) == 1 and "wandb" in warnings[0] and "\n" not in warnings[0]
    assert len(read_csv(run.train_csv)) == 3
    assert fake.modes == (["online", "offline"] if broken == "online" else ["offline"])
    if broken == "online":
        assert "wandb login" in warnings[0] and len(fake.rows) == 3


def test_wandb_is_sent_no_row_twice(
    run: RunDir, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = BrokenWandb("nothing")
    monkeypatch.setattr(WandbSink, "_start", lambda _, run, mode: fake.start(run, mode))
    for resume_step, steps in ((None, (0, 10, 20)), (10, (20, 30))):
        with MetricWriter(run, "offline", resume_step, warnings.append) as sink:
            for step in steps:
                sink.write("train", step, {"a": step})
    assert [step for step, _ in fake.rows] == [0, 10, 20, 30] and not warnings


def test_wandb_that_does_not_answer_holds_nothing_up(
    run: RunDir, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    ended: list[str] = []

    class Hanging(BrokenWandb):
        def log(self, values: dict[str, float], step: int) -> None:
            answers.wait()
            super().log(values, step)

    fake = Hanging("nothing")
    monkeypatch.setattr(WandbSink, "_start", lambda _, run, mode: fake.start(run, mode))
    monkeypatch.setattr(wandb_sink, "_end_service", lambda: ended.append("service"))
    monkeypatch.setattr(wandb_sink, "ROWS_WAITING", 5)
    monkeypatch.setattr(wandb_sink, "PATIENCE", 0.0)
    with MetricWriter(run, "offline", warn=warnings.append) as sink:
        for step in range(20):
            sink.write("train", step, {"a": step})
        assert len(warnings) == 1 and "wandb does not keep up" in warnings[0]
    assert ended == ["service"]
    assert len(warnings) == 2 and "does not answer" in warnings[1]
    assert len(read_csv(run.train_csv)) == 20 and not fake.rows
    answers.set()


def in_child(
    run: RunDir,
    program: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    terminal: int | None = None,
) -> str:
    """Runs `program` in a process that knows no account of whoever runs the tests; returns its output.

    Args:
      terminal: takes the place of standard input and standard error, as at a person's terminal.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    home = run.path.parent / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", program, str(run.path), *arguments],
        env=clean | {"HOME": str(home), "PYTHONPATH": str(ROOT)} | dict(env or {}),
        cwd=run.path.parent,
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if terminal is None else terminal,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout


FROZEN = """
import sys
import psutil
from qsm.record import metrics
from qsm.record.sinks import wandb_sink
from qsm.record.find import load_run
wandb_sink.PATIENCE = 1.0
warn = lambda line: print("WARN", line)
with metrics.MetricWriter(load_run(sys.argv[1]), "offline", None, warn) as sink:
    [service] = [it for it in psutil.Process().children(recursive=True) if it.name() == wandb_sink.SERVICE]
    service.suspend()
    for step in range(300):
        sink.write("train", step, {f"metric_{i}": 0.5 for i in range(30)})
print("ended")
"""


@pytest.mark.slow
def test_wandbs_service_may_stop_for_good(run: RunDir) -> None:
    *_, warning, last = in_child(run, FROZEN).splitlines()
    assert warning.startswith("WARN wandb is off for the rest of this run") and "does not answer" in warning
    assert last == "ended"
    assert len(read_csv(run.train_csv)) == 300


CHILD = """
import sys
from qsm.record import metrics
from qsm.record.sinks import wandb_sink
from qsm.record.find import load_run
mode, resume = sys.argv[2], None if sys.argv[3] == "None" else int(sys.argv[3])
wandb_sink.ONLINE_TIMEOUT = 1.0
with metrics.MetricWriter(load_run(sys.argv[1]), mode, resume, lambda line: print("WARN", line)) as sink:
    for step, value in ((0, 0.4375), (10, 0.6875)) if resume is None else ((10, 0.71875), (20, 0.90625)):
        sink.write("train", step, {"critic/loss": value})
print("wandb" in sys.modules)
"""


def test_disabled_wandb_is_not_even_imported(run: RunDir) -> None:
    assert in_child(run, CHILD, "disabled", "None") == "False\n"
    assert not run.wandb.exists()


def test_offline_wandb_records_without_account_and_resumes_its_id(run: RunDir) -> None:
    secret = "0123456789abcdef" * 2 + "01234567"  # of the form that wandb's keys have
    assert in_child(run, CHILD, "offline", "None", env={"WANDB_API_KEY": secret}) == "True\n"
    assert in_child(run, CHILD, "offline", "0", env={"WANDB_API_KEY": secret}) == "True\n"
    written = [path for path in run.path.rglob("*") if path.is_file()]
    assert written and not any(secret.encode() in path.read_bytes() for path in written)
    identity = (run.wandb / "id.txt").read_text().strip()
    files = sorted(run.wandb.glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    content = b"".join(file.read_bytes() for file in files)
    assert b"train/critic/loss" in content and b"walker-walk/sac" in content
    assert b"0.4375" in content and b"0.6875" in content and b"0.90625" in content
    assert b"0.71875" not in content, "step 10 was sent a second time"


@pytest.mark.parametrize(
    "variable",
    ["HOME", *(pytest.param(name, marks=pytest.mark.slow) for name in ("XDG_CACHE_HOME", "WANDB_CACHE_DIR"))],
)
def test_wandb_prints_nothing_where_its_cache_cannot_be_written(run: RunDir, variable: str) -> None:
    file = run.path / "a_file"
    file.write_text("")
    environment = {"HOME": str(run.path), "XDG_CACHE_HOME": ""} | {variable: str(file / "below")}
    assert in_child(run, CHILD, "offline", "None", env=environment) == "True\n"
    assert any(b"0.6875" in found.read_bytes() for found in run.wandb.glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize(
    "case", ["no account, at a terminal", pytest.param("no network", marks=pytest.mark.slow)]
)
def test_online_wandb_falls_back_without_asking_or_waiting(run: RunDir, case: str) -> None:
    environment = {"TERM": "xterm"}
    if case == "no network":
        environment |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    ours, theirs = pty.openpty()
    try:
        printed = in_child(run, CHILD, "online", "None", env=environment, terminal=theirs)
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)  # wandb said nothing, and asked for nothing, behind our back
    finally:
        os.close(ours)
        os.close(theirs)
    warning, imported = printed.splitlines()
    assert warning.startswith("WARN wandb cannot go online")
    assert "qsm sync" in warning
    assert imported == "True"
    assert any(b"0.6875" in file.read_bytes() for file in run.wandb.glob("offline-run-*/run-*.wandb"))
    assert not any(b"0" * 40 in file.read_bytes() for file in run.path.rglob("*") if file.is_file())
