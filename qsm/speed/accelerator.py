"""The steps of `scripts/accelerator/run.py`: each a process with its share of the minutes, whose results are kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
KEPT = ("config.json", "provenance.json", "status.json", "train.csv", "eval.csv")
POLL_SECONDS, GRACE_SECONDS = 1.0, 20.0
TINY = ("--hidden-sizes", "8,8", "--batch-size", "8")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure and train on an accelerator, within so many minutes."""

    minutes: float = 9.5
    """How long all may take, compiling included."""
    small: bool = False
    """Small networks and short runs: to try the command on a CPU."""


class Step(NamedTuple):
    """Processes that run side by side."""

    share: float  # of all minutes
    commands: dict[str, list[str]]  # by their names


COMMAND_BUFFERS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
"""What may be launched as one CUDA graph: by default all but the last, a loop."""
QUICK = "xla_gpu_autotune_level=0+xla_gpu_enable_triton_gemm=false"
"""Nothing is tried out while compiling, and the matrix products are the library's."""


class Training(NamedTuple):
    """Runs of one program."""

    agent: str
    seeds: int
    options: tuple[str, ...] = ()


# Side by side, for most of a start is tracing and compiling, which the host's cores do.
TRAININGS = {
    "sac": Training("sac", 8),
    "qsm-clean": Training(
        "qsm-clean", 4, ("--temperature", "fixed", "--sweep", "inverse_temperature=100,1000,3000")
    ),
    "spread": Training("qsm-clean", 4, ("--temperature", "spread", "--sweep", "target_spread=0.1,0.2,0.3")),
    "qsm": Training("qsm", 4, ("--relative-scale", "--sweep", "score_scale=1,3,10")),
    "diffusion-ql": Training("diffusion-ql", 8),
}


def steps(output: Path, runs: Path, options: Options) -> list[Step]:
    """The host loop's tick, updates by XLA's flags, trainings side by side, and a second start of one of them."""
    small = options.small
    tick = [sys.executable, str(ROOT / "scripts" / "accelerator" / "tick.py"), str(output / "tick.csv")]
    if small:
        tick += ["--agents", "sac", "--seeds", "1", "--ticks", "10", "--hidden-sizes", "8,8"]
    flags = [
        sys.executable,
        str(ROOT / "scripts" / "accelerator" / "xla_flags.py"),
        str(output / "xla_flags.csv"),
        "--flags",
    ]
    if small:
        flags += ["none", "xla_cpu_enable_fast_math=false", "--agents", "td3", "--blocks", "2"]
    else:
        buffers = f"xla_gpu_enable_command_buffer={COMMAND_BUFFERS}"
        flags += ["none", QUICK, buffers, f"{QUICK}+{buffers}", "--wait", "70"]

    def training(name: str, runs: Path, steps: int) -> list[str]:
        agent, seeds, options = TRAININGS[name]
        command = [sys.executable, "-m", "qsm", "train", agent, "cheetah-run", *options, "--name", name]
        command += ["--backend", "mjx", "--preset", "strong", "--num-envs", "4", "--replay-ratio", "1"]
        command += ["--num-seeds", "1" if small else str(seeds), "--wandb", "disabled"]
        lengths = {"steps": steps, "random-steps": 5000, "eval-interval": 25_000, "eval-episodes": 4}
        lengths |= {"replay-capacity": 100_000}
        if small:
            lengths |= {"steps": 120, "random-steps": 40, "eval-interval": 60, "replay-capacity": 1000}
            command += TINY
        command += [f"--{name}={number}" for name, number in lengths.items()]
        return [*command, "--runs", str(runs)]

    trainings = {name: training(name, runs, 50_000) for name in TRAININGS}
    again = {"again": training("sac", runs / "again", 7_000)}
    return [
        Step(0.12, {"tick": tick}),
        Step(0.17, {"flags": flags}),
        Step(0.59, trainings),
        Step(0.12, again),
    ]


def keep(runs: Path, output: Path) -> None:
    """Copies the small files of every run that is there; its checkpoints stay behind."""
    for config in runs.rglob("config.json"):
        folder = output / "runs" / config.parent.relative_to(runs)
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (config.parent / name).exists():
                shutil.copyfile(config.parent / name, folder / name)


def run(
    commands: Mapping[str, Sequence[str]], seconds: float, runs: Path, output: Path
) -> dict[str, tuple[int | None, float]]:
    """Exit status and seconds of processes that are told to stop after so many; None where one had to be killed."""
    began = time.monotonic()
    flags = [os.environ.get("XLA_FLAGS", ""), *(f"--{flag}" for flag in QUICK.split("+"))]
    # Several processes share the device, and none may take most of its memory for itself.
    more = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": " ".join(flags).strip()}
    environment = os.environ | more
    done: dict[str, tuple[int | None, float]] = {}
    with contextlib.ExitStack() as stack:
        processes: dict[str, subprocess.Popen[bytes]] = {}
        for name, command in commands.items():
            log = stack.enter_context((output / f"{name}.log").open("wb"))
            processes[name] = stack.enter_context(
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
            )
            stack.callback(processes[name].kill)

        def wait(until: float) -> None:
            while len(done) < len(processes) and time.monotonic() < until:
                for name, process in processes.items():
                    if name not in done and process.poll() is not None:
                        done[name] = process.returncode, time.monotonic() - began
                keep(runs, output)
                time.sleep(POLL_SECONDS)

        wait(began + seconds)
        for name in processes.keys() - done.keys():
            processes[name].send_signal(signal.SIGTERM)  # a training saves
        wait(time.monotonic() + GRACE_SECONDS)
        keep(runs, output)
    return {name: done.get(name, (None, time.monotonic() - began)) for name in commands}


def run_all(output: Path, options: Options) -> int:
    """Runs all steps, and says what became of each; 1 where one of them failed or was cut off."""
    output.mkdir(parents=True, exist_ok=True)
    began, done, share = time.monotonic(), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for step in steps(output, runs, options):
            share += step.share
            # Up to where its share ends, so that it has what those before it left over.
            allowed = share * 60 * options.minutes - GRACE_SECONDS - (time.monotonic() - began)
            for name, (status, took) in run(step.commands, max(allowed, 1.0), runs, output).items():
                done.append({"step": name, "seconds": round(took, 1), "status": status})
                print(f"{name}: {took:.0f} s, status {status}", flush=True)
            (output / "steps.json").write_text(json.dumps(done, indent=1) + "\n")
    # 143: a training that was told to stop when its time was up, and saved. Whatever else was cut off is not whole.
    return int(any(step["status"] not in (0, 143) for step in done))
