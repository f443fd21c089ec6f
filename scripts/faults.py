"""Injects faults into real trainings and counts how many were survived with nothing lost.

    python scripts/faults.py [--quick] [--only "disk full"] [--kills 4] [--seed 0]

Every case trains through `qsm train` in processes of its own, is disturbed, and is started again with the same command
until it is finished. It has survived where it then holds, bit for bit, what a training that was left alone holds: rows
of metrics (but for seconds), learned state, replay buffer, environment. Exit status 1 where one was not. A fault that
came too late, when its training had ended already, does not count.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console
from rich.table import Table

from qsm.checkpoints.leaves import named_leaves
from qsm.command.script import read_arguments
from qsm.data import segments
from qsm.data.replay import ROW_FIELDS
from qsm.record.tables import read_csv

STEPS, INTERVAL = 1200, 100
TRAINING = (
    f"train sac cartpole-swingup --steps {STEPS} --random-steps 100 --hidden-sizes 16 --batch-size 16 "
    f"--replay-capacity 1000 --eval-episodes 1 --eval-interval 300 --log-interval {INTERVAL} "
    f"--checkpoint-interval {INTERVAL} --wandb disabled"
).split()
GROUP = [*TRAINING, "--num-seeds", "2"]
DEVICE = [*TRAINING, "--backend", "mjx", "--num-envs", "4", "--replay-ratio", "1/2"]
SMALL_FILES = 6_000
"""Bytes that a file may have where the disk is full: rows of metrics can be written, checkpoints cannot."""
PATIENCE = 900.0
"""Seconds after which a training counts as hanging."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Inject faults into real trainings."""

    quick: bool = False
    """Only SIGTERM, and a kill with a bit that is flipped after it, of one training."""
    only: str | None = None
    """One kind of fault, by the name that the table has for it."""
    kills: int = 4
    """Kills at random points of one training."""
    seed: int = 0
    """Of the random points."""
    folder: Path | None = None
    """Where to train; none: a folder that is removed afterwards."""


class Training:
    """The runs of one command, and how they are trained.

    Args:
      root: where their folders are.
      arguments: of `qsm`.
    """

    def __init__(self, root: Path, arguments: Sequence[str] = TRAINING) -> None:
        self.root = root
        self.arguments = arguments
        self.output = ""

    @property
    def folders(self) -> list[Path]:
        """Of the runs, as far as they have been made."""
        return sorted(path.parent for path in self.root.glob("*/*/*/seed_*/config.json"))

    @property
    def folder(self) -> Path:
        """Of the first run."""
        return self.folders[0]

    def start(self, wrapper: str = "", limit: int | None = None) -> subprocess.Popen[str]:
        """Starts `qsm train`.

        Args:
          wrapper: Python that is run before, in the same process.
          limit: bytes that any file may have.
        """
        if limit is not None:
            wrapper = (
                f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{wrapper}"
            )
        program = f"{wrapper}\nimport sys\nfrom qsm.command.cli import main\nsys.exit(main(sys.argv[1:]))\n"
        return subprocess.Popen(
            [sys.executable, "-c", program, *self.arguments, "--runs", str(self.root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    def end(self, process: subprocess.Popen[str]) -> int:
        """Waits for `process` and keeps what it said; its exit status."""
        self.output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode

    def finish(self) -> int:
        return self.end(self.start())

    def step(self) -> int:
        """Where the run is, as far as its files tell."""
        try:
            return int(json.loads((self.folder / "status.json").read_text())["step"])
        except (OSError, ValueError, KeyError, IndexError):
            return 0

    def reach(self, process: subprocess.Popen[str], number: int) -> None:
        """Waits until there are checkpoints from `number` steps on, or the process has ended."""
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < PATIENCE:
            if any(step >= number for folder in self.folders for step in steps_of(folder)):
                return
            time.sleep(0.01)


def steps_of(folder: Path) -> list[int]:
    """Of the checkpoints of a run."""
    there = os.listdir(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
    return [int(name) for name in there if name.isdigit()]


def newest(folder: Path) -> Path:
    """Folder of the newest checkpoint of a run."""
    return folder / "checkpoints" / str(max(steps_of(folder)))


def content(run: Training) -> dict[str, Any]:
    """All that the runs hold but for seconds."""
    return {
        f"{folder.name}/{name}": value for folder in run.folders for name, value in _content(folder).items()
    }


def _content(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("train", "eval"):
        for row in read_csv(run / f"{name}.csv"):
            found |= {f"{name}/{row['step']:.0f}/{key}": row[key] for key in row if "second" not in key}
    folder = newest(run)
    found["step"] = folder.name
    with ocp.StandardCheckpointer() as checkpointer:
        for part in ("agent", "sums", "environment"):
            tree = checkpointer.restore((folder / part).absolute())
            found |= {
                f"{part}/{name}": np.asarray(leaf).tobytes() for name, leaf in named_leaves(tree).items()
            }
    listed = json.loads((folder / "rows" / "metadata").read_text())["segments"]
    parts = [segments.read(run / "replay", segments.Segment.from_json(one)) for one in listed]
    # However the rows are divided over files.
    found |= {name: np.concatenate([getattr(part, name) for part in parts]).tobytes() for name in ROW_FIELDS}
    return found


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
    wrapper = (
        "import os, signal\nfrom qsm.training.session import Session\nsave = Session.save_last\n"
        "def ask(self, *rest):\n    if self.step < self.config.steps: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    save(self, *rest)\nSession.save_last = ask"
    )
    process = run.start(wrapper)
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
    wrapper = (
        "import resource\nfrom qsm.saver import Saver\nwrite, count, free = Saver._write, [0], resource.RLIM_INFINITY\n"
        "def limited(self, *rest):\n    count[0] += 1\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL_FILES} if count[0] in (3, 4) else free, free))\n"
        "    write(self, *rest)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))\nSaver._write = limited"
    )
    assert run.end(run.start(wrapper)) == 0, run.output
    assert "checkpoints are being written again" in " ".join(run.output.split()), run.output
    return 2


def break_wandb(run: Training, draw: random.Random) -> int:
    """wandb raises at every row."""
    wrapper = (
        "from qsm.record.sinks import wandb_sink\n"
        "class Run:\n    def log(self, *rest, **more): raise OSError('no route')\n"
        "wandb_sink.WandbSink._start = lambda self, run, mode: Run()"
    )
    run.arguments = ["offline" if word == "disabled" else word for word in run.arguments]
    assert run.end(run.start(wrapper)) == 0, run.output
    assert "wandb is off for the rest of this run" in " ".join(run.output.split()), run.output
    return 1


def break_sink(run: Training, draw: random.Random) -> int:
    """TensorBoard's files cannot be opened."""
    process = run.start(
        "from qsm.record.sinks import tensorboard\ntensorboard.TensorBoardSink._open = lambda self: 1 / 0"
    )
    assert run.end(process) == 0, run.output
    assert "TensorBoard misses rows" in run.output, run.output
    return 1


def turn_clock_back(run: Training, draw: random.Random) -> int:
    """The clock goes back an hour at every look at it."""
    wrapper = (
        "import itertools, time\ncount = itertools.count()\ntime.time = lambda: 2e9 - 3600 * next(count)"
    )
    assert run.end(run.start(wrapper)) == 0, run.output
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
    wrapper = (
        "from envs import dmc\nfrom envs.api import SimulationError\nstep, count = dmc.DmcEnvironment.step, [0]\n"
        "def fail(self, action):\n    count[0] += 1\n    if count[0] % 97 == 0: raise SimulationError('exploded')\n"
        "    return step(self, action)\ndmc.DmcEnvironment.step = fail"
    )
    status = run.end(run.start(wrapper))
    rates = [row["simulator/failure_rate"] for row in read_csv(run.folder / "train.csv")]
    return (
        status == 0 and max(rates) > 0 and "the simulation of seed 0 failed" in " ".join(run.output.split())
    )


def main() -> None:
    """Runs the cases and prints a table."""
    options = read_arguments(Options, __doc__)["options"]
    cases = {name: (fault, TRAINING) for name, fault in CASES.items()}
    cases |= {f"kill -9 {name}": (CASES["kill -9"], arguments) for name, arguments in OTHERS.items()}
    if options.only is not None and options.only not in cases:
        sys.exit(f"--only is {options.only!r}; it must be one of: {', '.join(cases)}")
    draw = random.Random(options.seed)
    root = options.folder or Path(tempfile.mkdtemp(prefix="qsm-faults-"))
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        names = (options.only,) if options.only else QUICK if options.quick else tuple(cases)
        expected = {}
        for arguments in {id(cases[name][1]): cases[name][1] for name in names}.values():
            reference = Training(root / f"reference_{len(expected)}", arguments)
            if reference.finish() != 0:
                sys.exit(f"the training that was left alone failed:\n{reference.output}")
            expected[id(arguments)] = content(reference)
        table = Table(
            "fault", "injected", "survived", "what differs", title="Faults injected into a training"
        )
        injected = survived = 0
        for name in names:
            case, arguments = cases[name]
            run, left_alone = Training(root / name.replace(" ", "_"), arguments), expected[id(arguments)]
            if case is CASES["kill -9"]:
                case = lambda run, draw: kill(run, draw, options.kills)  # noqa: E731
            try:
                number = case(run, draw)
                status = run.finish()
                found = content(run) if status == 0 else {}
                keys = sorted(left_alone.keys() | found.keys())
                wrong = [key for key in keys if left_alone.get(key) != found.get(key)]
                problem = f"status {status}: {run.output[-300:]}" if status else ", ".join(wrong[:3])
            except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
                number, problem = 1, str(error)[:300]
            injected, survived = injected + number, survived + (0 if problem else number)
            table.add_row(name, str(number), "no" if problem else "yes", problem)
        if not options.quick and not options.only:
            well = explode(root / "exploding")
            injected, survived = injected + 1, survived + well
            table.add_row("simulator explodes", "1", "yes" if well else "no", "")
        console.print(table)
        console.print(f"{injected} faults injected, {survived} survived with nothing lost")
    finally:
        if options.folder is None:
            shutil.rmtree(root, ignore_errors=True)
    sys.exit(survived < injected)


if __name__ == "__main__":
    main()
