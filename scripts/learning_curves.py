"""Learning curves of finished and running runs: one CSV and one figure for each task and simulator.

    python scripts/learning_curves.py runs --output results/learning_curves

The CSV has one row an evaluation and seed, so that anyone can plot again. The figure shows the mean over seeds, its
standard deviation over seeds as a band, and every seed as a faint line. Returns are undiscounted means over the
evaluation's episodes.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import tyro

from qsm.errors import UserError
from qsm.metrics import read_csv
from qsm.rundir import find_runs, load_run

matplotlib.use("Agg")
# Okabe and Ito's palette, told apart by colour-blind readers and in print.
COLOURS = {"qsm": "#0072B2", "qsm-clean": "#D55E00", "sac": "#009E73", "td3": "#CC79A7"}
OTHERS = ["#E69F00", "#56B4E9", "#000000", "#F0E442"]

Curves = dict[str, dict[int, list[dict[str, float]]]]  # agent -> seed -> rows of eval.csv


@dataclasses.dataclass(frozen=True)
class Options:
    """Collect evaluation curves."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with runs below them."""
    output: Path = Path("results/learning_curves")
    """Folder for the CSV and PNG files."""


def collect(folders: tuple[Path, ...]) -> dict[str, Curves]:
    """Evaluations by task (with its simulator, where that is not dm_control), agent (with its label) and seed."""
    tasks: dict[str, Curves] = collections.defaultdict(lambda: collections.defaultdict(dict))
    for folder in folders:
        for path in find_runs(folder):
            run = load_run(path)
            if rows := read_csv(run.eval_csv):
                label = run.config["agent"] + "".join(path.parent.name.partition("@")[1:])
                backend = run.config["backend"]
                task = run.config["task"] + ("" if backend == "dm_control" else f" ({backend})")
                tasks[task][label][run.config["run_config"]["seed"]] = rows
    return tasks


def write_table(path: Path, curves: Curves) -> None:
    """One row an evaluation: agent, seed, step, mean return, then every episode's."""
    episodes = max(len(row) for seeds in curves.values() for rows in seeds.values() for row in rows)
    names = [f"return_{i}" for i in range(episodes)]
    names = [
        n
        for n in names
        if any(n in row for seeds in curves.values() for rows in seeds.values() for row in rows)
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["agent", "seed", "step", "return_mean", *names])
        for agent, seeds in sorted(curves.items()):
            for seed, rows in sorted(seeds.items()):
                for row in rows:
                    values = [f"{row[name]:.6g}" if name in row else "" for name in ("return_mean", *names)]
                    writer.writerow([agent, seed, int(row["step"]), *values])


def draw(path: Path, task: str, curves: Curves) -> None:
    """Mean and standard deviation over seeds, up to the last step that all seeds of an agent reached."""
    figure, axes = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    others = iter(OTHERS)
    for agent, seeds in sorted(curves.items()):
        colour = COLOURS.get(agent) or next(others, "#888888")
        by_step: dict[int, list[float]] = collections.defaultdict(list)
        for rows in seeds.values():
            for row in rows:
                by_step[int(row["step"])].append(row["return_mean"])
            axes.plot(
                [r["step"] for r in rows], [r["return_mean"] for r in rows], color=colour, alpha=0.25, lw=0.8
            )
        steps = sorted(step for step, values in by_step.items() if len(values) == len(seeds))
        mean = np.array([np.mean(by_step[step]) for step in steps])
        count = len(seeds)
        label = f"{agent} ({count} seed{'s' if count > 1 else ''})"
        axes.plot(steps, mean, color=colour, lw=2, label=label)
        if count > 1:
            std = np.array([np.std(by_step[step], ddof=1) for step in steps])
            axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, lw=0)
    axes.set(title=task, xlabel="environment steps", ylabel="return of evaluation episodes")
    axes.set_ylim(0, None)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Collects, writes, draws, and prints the last evaluations."""
    options = tyro.cli(Options, description=__doc__)
    tasks = collect(options.runs)
    if not tasks:
        sys.exit(
            f"no evaluations below {', '.join(map(str, options.runs))}; train something first: qsm train --help"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    for task, curves in sorted(tasks.items()):
        # `cheetah-run (mjx)` is kept in cheetah-run_mjx.csv: scores of two simulators share no file.
        stem = task.replace(" (", "_").rstrip(")")
        table, figure = options.output / f"{stem}.csv", options.output / f"{stem}.png"
        write_table(table, curves)
        draw(figure, task, curves)
        print(f"{task}: {table} and {figure}")
        for agent, seeds in sorted(curves.items()):
            last = [rows[-1]["return_mean"] for rows in seeds.values()]
            spread = f" ± {np.std(last, ddof=1):.0f}" if len(last) > 1 else ""
            step = min(int(rows[-1]["step"]) for rows in seeds.values())
            print(f"  {agent:12s} {np.mean(last):5.0f}{spread} at {step:,} steps over {len(last)} seed(s)")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
