"""Figure 8 of the QSM paper: ways to train a diffusion policy, as learning curves from finished runs.

    python scripts/paper/figure_8.py results/benchmark results/agents

docs/paper.md has the `qsm bench` command that trains them. A panel for each task: the mean return over the seeds of
every agent, its lowest and highest seed as a band, and the mean of another agent as a line without one. Agents look as
in `qsm report`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from qsm.command.script import mistakes_told, read_folders, write_rows
from qsm.report.intervals import common_curve
from qsm.report.results import Comparison, Result, finished, gather, range_of
from qsm.report.settings import unlike
from qsm.report.styles import RC, mean_and_range, step_axis, style_of

matplotlib.use("Agg")

Runs = Mapping[tuple[str, str], Sequence[Result]]
"""By task and agent."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, and where the figure goes."""

    tasks: tuple[str, ...] = ("cartpole-swingup", "cheetah-run", "walker-walk")
    """Tasks, a panel for each."""
    agents: tuple[str, ...] = ("qsm", "qsm-clean", "diffusion-ql", "diffusion-pg")
    """Agents, with their labels where they have some."""
    line: str = "sac"
    """Agent that is drawn as a line, without its seeds."""
    steps: int = 50_000
    """Environment step that runs must have reached, and at which curves end."""
    output: Path = Path("results/paper/figure_8.png")
    """PNG file to write; its numbers go beside it as .csv."""


def curve(runs: Sequence[Result], last: int) -> tuple[Any, Any]:
    """Steps `[K]` up to `last` at which all of `runs` were evaluated, and their returns there, `[n, K]`."""
    return common_curve(
        [{step: value for step, value in one.returns.items() if step <= last} for one in runs]
    )


def rows_of(found: Runs, last: int) -> list[dict[str, Any]]:
    """The numbers of the figure, a row for each evaluation."""
    rows = []
    for (task, agent), runs in found.items():
        steps, returns = curve(runs, last)
        for step, values in zip(steps, returns.T, strict=True):
            row = {"task": task, "agent": agent, "step": int(step), "seeds": len(runs)}
            rows.append(row | range_of(values))
    return rows


def draw(found: Runs, options: Options) -> None:
    """A panel for each task."""
    tasks = options.tasks
    with plt.rc_context(RC):
        figure, panels = plt.subplots(
            1, len(tasks), figsize=(4.2 * len(tasks), 3.9), layout="constrained", squeeze=False
        )
        for task, axes in zip(tasks, panels[0], strict=True):
            for agent in options.agents:
                runs, style = found[task, agent], style_of(agent)
                look = {"color": style.color, "linestyle": style.dashes, "marker": style.marker}
                mean_and_range(axes, *curve(runs, options.steps), f"{agent} (n = {len(runs)})", **look)
            steps, returns = curve(found[task, options.line], options.steps)
            label = f"{options.line} (n = {len(returns)})"
            axes.plot(
                steps, returns.mean(axis=0), color=style_of(options.line).color, linewidth=1, label=label
            )
            axes.set(title=task, ylabel="return" if task == tasks[0] else None)
            axes.set_ylim(0, None)
            step_axis(axes, options.steps)
            axes.legend(fontsize=8, loc="best")
        figure.savefig(options.output, dpi=100)
    plt.close(figure)


def main() -> None:
    """Reads the runs, draws and writes."""
    options, folders = read_folders(Options, __doc__)
    labels = (*options.agents, options.line)
    with mistakes_told():
        runs, problems = gather(folders)
        found = finished(runs, options.tasks, labels, options.steps, folders)
    compared = Comparison([one for group in found.values() for one in group], options.steps)
    for line in (*problems, *(f"not like for like: {line}" for line in unlike(compared))):
        print(line)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_rows(options.output.with_suffix(".csv"), rows_of(found, options.steps), digits=5)
    draw(found, options)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
