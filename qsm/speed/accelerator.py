"""The steps of `scripts/accelerator.py`: each a process with its share of the minutes, whose results are kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
KEPT = ("config.json", "provenance.json", "status.json", "train.csv", "eval.csv")
POLL_SECONDS, GRACE_SECONDS = 5.0, 20.0
TINY = ("--hidden-sizes", "8,8", "--batch-size", "8")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure and train on an accelerator, within so many minutes."""

    minutes: float = 9.5
    """How long all may take, compiling included."""
    small: bool = False
    """Small networks and short runs: to try the command on a CPU."""


class Step(NamedTuple):
    """One process."""

    name: str
    share: float  # of all minutes
    command: list[str]


def steps(output: Path, runs: Path, options: Options) -> list[Step]:
    """What is done, in its order: rates first, for the trainings take all that is left."""
    speed = [sys.executable, str(ROOT / "scripts" / "speed.py"), "--output"]
    tiny = ["--hidden-sizes", "8", "--batch-size", "8", "--blocks", "3", "--capacity", "1000"]
    sizes = [*tiny, "--seeds", "1", "2"] if options.small else ["--seeds", "1", "16", "128", "--blocks", "11"]
    shares = {"speed": 0.25, "device": 0.1, "sac": 0.3, "qsm-clean": 0.35}

    def minutes(name: str) -> list[str]:
        return ["--minutes", f"{shares[name] * options.minutes:g}"]

    def training(agent: str) -> Step:
        length = ["--steps", "120", "--random-steps", "40", "--eval-interval", "60", *TINY]
        if not options.small:
            length = ["--steps", "100_000", "--random-steps", "5_000", "--eval-interval", "10_000"]
        command = [sys.executable, "-m", "qsm", "train", agent, "cheetah-run", "--backend", "mjx"]
        command += ["--num-seeds", "2" if options.small else "8", "--num-envs", "4", "--replay-ratio", "1"]
        command += ["--replay-capacity", "1e3" if options.small else "1e5", "--wandb", "disabled"]
        return Step(agent, shares[agent], [*command, *length, "--runs", str(runs)])

    parts = ["--parts", "seeds", "precision", "agents"]
    environments = ["--num-envs", "4", "8"] if options.small else ["--num-envs", "16", "256", "4096"]
    return [
        Step(
            "speed", shares["speed"], [*speed, str(output / "speed.json"), *sizes, *parts, *minutes("speed")]
        ),
        Step(
            "device",
            shares["device"],
            [
                *speed,
                str(output / "device.json"),
                *sizes,
                "--parts",
                "device",
                *environments,
                *minutes("device"),
            ],
        ),
        training("sac"),
        training("qsm-clean"),
    ]


def keep(runs: Path, output: Path) -> None:
    """Copies the small files of every run that is there; its checkpoints stay behind."""
    for config in runs.rglob("config.json"):
        folder = output / "runs" / config.parent.relative_to(runs)
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (config.parent / name).exists():
                shutil.copyfile(config.parent / name, folder / name)


def run(command: Sequence[str], log: Path, seconds: float, runs: Path, output: Path) -> int | None:
    """Exit status of a process that is told to stop after so many seconds; None where it had to be killed."""
    until = time.monotonic() + seconds
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while process.poll() is None and (left := until - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(POLL_SECONDS, left))
                keep(runs, output)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # a training saves
                process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            keep(runs, output)
    return process.returncode


def run_all(output: Path, options: Options) -> int:
    """Runs all steps, and says what became of each; 1 where one of them failed or was cut off."""
    output.mkdir(parents=True, exist_ok=True)
    began, done, share = time.monotonic(), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for step in steps(output, runs, options):
            here = time.monotonic()
            share += step.share
            # Up to where its share ends, so that it has what those before it left over.
            allowed = share * 60 * options.minutes - GRACE_SECONDS - (here - began)
            status = run(step.command, output / f"{step.name}.log", max(allowed, 1.0), runs, output)
            took = time.monotonic() - here
            done.append({"step": step.name, "seconds": round(took, 1), "status": status})
            print(f"{step.name}: {took:.0f} s, status {status}", flush=True)
            (output / "steps.json").write_text(json.dumps(done, indent=1) + "\n")
    # 143: a training that was told to stop when its time was up, and saved. Whatever else was cut off is not whole.
    return int(any(step["status"] not in (0, 143) for step in done))
