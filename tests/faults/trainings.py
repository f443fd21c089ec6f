"""Trainings in processes of their own, which can be disturbed and started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STEPS, INTERVAL = 1200, 100
TRAINING = (
    f"train sac cartpole-swingup --steps {STEPS} --random-steps 100 --hidden-sizes 16 --batch-size 16 "
    f"--replay-capacity 1000 --eval-episodes 1 --eval-interval 300 --log-interval {INTERVAL} "
    f"--checkpoint-interval {INTERVAL} --wandb disabled"
).split()
GROUP = [*TRAINING, "--num-seeds", "2"]
DEVICE = [*TRAINING, "--backend", "mjx", "--num-envs", "4", "--replay-ratio", "1/2"]
PATIENCE = 900.0
"""Seconds after which a training counts as hanging."""


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
