"""How fast whole trainings are beside those of other projects, on this machine, in turn.

    python scripts/peers/compare.py --environment FOLDER [--agents sac td3] [--rounds 5] [--output FILE.csv]

Whole processes, one after the other: `qsm train AGENT cheetah-run` and the same algorithm of the peer with the same
widths, batch, replay and updates per step, from an equal number of random steps. A process's rate is the median of
environment steps per second over its log intervals after `--settled` steps, when everything is compiled. FOLDER gets
a virtual environment with the peers, unless it has one; they are no dependency of this project.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PEERS = ("sbx-rl==0.28.0",)
SIMULATOR = ("dm_control", "mujoco")  # as installed here, so that both step the same
HERE = Path(__file__).parent


def interpreter(folder: Path) -> Path:
    """Python of the peers' environment in `folder`, which is made where it is missing.

    Raises:
      SystemExit: it cannot be installed.
    """
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {', '.join(PEERS)} in {folder}", flush=True)
        pins = [f"{name}=={importlib.metadata.version(name)}" for name in SIMULATOR]
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False)
        install = [str(python), "-m", "pip", "install", "-q", *PEERS, *pins]
        if made.returncode or subprocess.run(install, check=False).returncode:
            raise SystemExit("the peers cannot be installed; what pip said stands above")
        (folder / "installed").touch()
    return python


def ours(agent: str, options: argparse.Namespace, folder: Path) -> list[float]:
    """Rates of the log intervals of `qsm train`."""
    command = [sys.executable, "-m", "qsm", "train", agent, options.task, "--overwrite", "--wandb=disabled"]
    command += [f"--steps={options.steps}", f"--random-steps={options.random_steps}"]
    command += [f"--eval-interval={options.steps}", "--eval-episodes=1", f"--log-interval={options.interval}"]
    run = folder / agent
    subprocess.run([*command, f"--run-dir={run}"], check=True, stdout=subprocess.DEVNULL)
    with (run / "train.csv").open() as file:
        return [float(row["loop/steps_per_second"] or "nan") for row in csv.DictReader(file)]


def theirs(agent: str, options: argparse.Namespace, python: Path) -> list[float]:
    """Rates of the log intervals of SBX."""
    numbers = map(str, (options.steps, options.random_steps, options.interval))
    command = [str(python), str(HERE / "sbx_training.py"), agent, options.task, *numbers]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(line) for line in done.stdout.split()]


def settled(rates: Sequence[float], options: argparse.Namespace) -> float:
    """The median rate of the intervals after `--settled` steps."""
    return statistics.median(rates[options.settled // options.interval :])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each pair of processes as it comes; returns the exit status."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--environment", type=Path, required=True, help="folder of the peers' environment")
    parser.add_argument("--agents", nargs="+", default=["sac", "td3"], choices=["sac", "td3"])
    parser.add_argument("--task", default="cheetah-run")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each, in turn")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--random-steps", type=int, default=1000)
    parser.add_argument("--settled", type=int, default=2000, help="steps before which rates are left out")
    parser.add_argument("--interval", type=int, default=500, help="steps of a rate")
    parser.add_argument("--output", type=Path, help="CSV file of every process")
    options = parser.parse_args(arguments)
    python = interpreter(options.environment)
    rows: list[dict[str, str | int | float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = {
            "qsm": lambda agent: ours(agent, options, Path(folder)),
            "sbx": lambda agent: theirs(agent, options, python),
        }
        for agent in options.agents:
            ratios = []
            for number in range(options.rounds):
                order = ("qsm", "sbx") if number % 2 == 0 else ("sbx", "qsm")
                pair = {project: settled(run[project](agent), options) for project in order}
                rows.append({"agent": agent, "round": number, **pair})
                ratios.append(pair["qsm"] / pair["sbx"])
                rates = f"qsm {pair['qsm']:6.1f}  sbx {pair['sbx']:6.1f}"
                print(f"{agent}  {rates}  ratio {ratios[-1]:.2f}", flush=True)
            print(f"{agent}  median ratio {statistics.median(ratios):.2f} of {len(ratios)}", flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["agent", "round", *run])
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
