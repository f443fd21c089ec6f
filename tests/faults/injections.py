"""Faults, each injected into a real training."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from qsm.record.tables import read_csv
from tests.faults.trainings import DEVICE, GROUP, INTERVAL, Training, newest

SMALL_FILES = 6_000
"""Bytes that a file may have where the disk is full: rows of metrics can be written, checkpoints cannot."""

ENDS_UNSAVED = """
import os, signal
from qsm.training.session import Session
save = Session.save_last
def ask(self, *rest):
    if self.step < self.group.config.steps: os.kill(os.getpid(), signal.SIGTERM)
    save(self, *rest)
Session.save_last = ask
"""
FULL_FOR_A_WHILE = f"""
import resource
from qsm.checkpoints.saver import Saver
write, count, free = Saver._write, [0], resource.RLIM_INFINITY
def limited(self, *rest):
    count[0] += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL_FILES} if count[0] in (3, 4) else free, free))
    write(self, *rest)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))
Saver._write = limited
"""
WANDB_FAILS = """
from qsm.record.sinks.wandb_sink import WandbSink
class Run:
    def log(self, *rest, **more): raise OSError('no route')
WandbSink._start = lambda self, run, mode: Run()
"""
TENSORBOARD_FAILS = """
from qsm.record.sinks.tensorboard import TensorBoardSink
TensorBoardSink._open = lambda self: 1 / 0
"""
CLOCK_GOES_BACK = """
import itertools, time
count = itertools.count()
time.time = lambda: 2e9 - 3600 * next(count)
"""
SIMULATOR_EXPLODES = """
from envs.api import SimulationError
from envs.dmc import DmcEnvironment
step, count = DmcEnvironment.step, [0]
def fail(self, action):
    count[0] += 1
    if count[0] % 97 == 0: raise SimulationError('exploded')
    return step(self, action)
DmcEnvironment.step = fail
"""
WRAPPERS = (
    ENDS_UNSAVED,
    FULL_FOR_A_WHILE,
    WANDB_FAILS,
    TENSORBOARD_FAILS,
    CLOCK_GOES_BACK,
    SIMULATOR_EXPLODES,
)
"""What is run in a training's process before it, each to replace one method by one that fails."""

Fault = Callable[[Training, random.Random], int]
"""Disturbs a training; how many faults were injected. The training is gone on with afterwards."""


def kill(run: Training, draw: random.Random, number: int = 1) -> int:
    """kill -9, between checkpoints or in the middle of one."""
    injected = 0
    for _ in range(number):
        process = run.start()
        before = run.step()
        run.reach(process, before + draw.choice((0, INTERVAL, INTERVAL, 2 * INTERVAL)))
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        injected += run.end(process) == -signal.SIGKILL
    return injected


def preempt(run: Training, draw: random.Random) -> int:
    """SIGTERM; it must save and end with status 143, unless it was done already."""
    process = run.start()
    run.reach(process, draw.choice((INTERVAL, 2 * INTERVAL)))
    process.send_signal(signal.SIGTERM)
    status = run.end(process)
    assert status in (143, 0), f"SIGTERM ended with {status}: {run.output}"
    return int(status == 143)


def preempt_twice(run: Training, draw: random.Random) -> int:
    """SIGTERM, and once more before it has saved: it ends at once."""
    process = run.start(ENDS_UNSAVED)
    run.reach(process, 2 * INTERVAL)
    process.send_signal(signal.SIGTERM)
    status = run.end(process)
    assert status in (143, 0), f"two SIGTERM ended with {status}: {run.output}"
    assert status == 0 or "Ended at once" in run.output, run.output
    return 2 * (status == 143)


def damage(run: Training, draw: random.Random, change: Callable[[bytes], bytes]) -> int:
    """Changes a file of the newest checkpoint, or of the newest rows."""
    process = run.start()
    run.reach(process, 3 * INTERVAL)
    process.kill()
    killed = run.end(process) == -signal.SIGKILL
    folder = newest(run.folder)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    files.append(run.folder / "replay" / f"{folder.name}.npz")
    file = draw.choice(sorted(files))
    file.write_bytes(change(file.read_bytes()))
    return 1 + killed


def flip(data: bytes) -> bytes:
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def tear(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


def tear_rows(run: Training, draw: random.Random) -> int:
    """A row of metrics that was cut off, as by a kill in the middle of a write."""
    injected = kill(run, draw)
    file = run.folder / "train.csv"
    if file.exists():
        with file.open("a") as table:
            table.write("5000,1")
    return injected + 1


def fill_disk(run: Training, draw: random.Random) -> int:
    """No file may grow beyond a few kilobytes; training ends all the same, unsaved, with status 1."""
    status = run.end(run.start(limit=SMALL_FILES))
    assert status in (1, 2), f"a full disk ended with {status}: {run.output}"
    assert "Traceback" not in run.output, run.output
    return 1


def fill_and_free_disk(run: Training, draw: random.Random) -> int:
    """The disk is full for two checkpoints in the middle of the training, and then has room again."""
    assert run.end(run.start(FULL_FOR_A_WHILE)) == 0, run.output
    assert "checkpoints are being written again" in " ".join(run.output.split()), run.output
    return 2


def break_wandb(run: Training, draw: random.Random) -> int:
    """wandb raises at every row."""
    run.arguments = ["offline" if word == "disabled" else word for word in run.arguments]
    assert run.end(run.start(WANDB_FAILS)) == 0, run.output
    assert "wandb is off for the rest of this run" in " ".join(run.output.split()), run.output
    return 1


def break_sink(run: Training, draw: random.Random) -> int:
    """TensorBoard's files cannot be opened."""
    process = run.start(TENSORBOARD_FAILS)
    assert run.end(process) == 0, run.output
    assert "TensorBoard misses rows" in run.output, run.output
    return 1


def turn_clock_back(run: Training, draw: random.Random) -> int:
    """The clock goes back an hour at every look at it."""
    assert run.end(run.start(CLOCK_GOES_BACK)) == 0, run.output
    return 1


CASES: dict[str, Fault] = {
    "kill -9": kill,
    "bit flipped": lambda run, draw: damage(run, draw, flip),
    "file torn": lambda run, draw: damage(run, draw, tear),
    "preemption": preempt,
    "preemption twice": preempt_twice,
    "row of metrics torn": tear_rows,
    "disk full": fill_disk,
    "disk full for a while": fill_and_free_disk,
    "TensorBoard fails": break_sink,
    "wandb fails": break_wandb,
    "clock goes back": turn_clock_back,
}
QUICK = ("preemption", "bit flipped")
OTHERS = {"of two seeds together": GROUP, "of the device loop": DEVICE}
"""What is killed besides, by what its name has after `kill -9`."""


def explode(folder: Path) -> bool:
    """A simulator that fails at some steps: the run ends, and counts and tells them. Not compared: it differs."""
    run = Training(folder)
    status = run.end(run.start(SIMULATOR_EXPLODES))
    rates = [row["simulator/failure_rate"] for row in read_csv(run.folder / "train.csv")]
    return (
        status == 0 and max(rates) > 0 and "the simulation of seed 0 failed" in " ".join(run.output.split())
    )
