"""Figure 9 of the QSM paper: learning curves and cost of a policy at several numbers of levels, from finished runs.

    python scripts/paper/figure_9.py bench/figure_9

docs/paper.md has the `qsm bench` command that trains them. Runs are told apart by one option of their agent, by default
`denoising_steps`, the levels T; `--option n_step` draws those of N-step returns. A row for each task: to the left the
mean return over the seeds, its lowest and highest as a band; to the right the updates a second of the whole loop,
acting and simulation among them, on the machine that trained the run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from qsm.base.errors import UserError
from qsm.command.script import mistakes_told, read_folders, write_rows
from qsm.record.find import load_run
from qsm.record.tables import read_csv
from qsm.report.intervals import common_curve
from qsm.report.results import Result, gather, range_of
from qsm.report.styles import RC, mean_and_range, step_axis

matplotlib.use("Agg")

SYMBOLS = {"denoising_steps": "T", "n_step": "N"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


@dataclasses.dataclass(frozen=True)
class Options:
    """What tells the runs apart, and where the figure goes."""

    option: str = "denoising_steps"
    """Option of the agent that is compared, such as denoising_steps or n_step."""
    output: Path = Path("results/paper/figure_9.png")
    """PNG file to write; its numbers go beside it as .csv."""


class Variant(NamedTuple):
    """The runs of one agent on one task with one value of the option."""

    task: str
    agent: str  # without its label
    value: Any
    seeds: int
    steps: np.ndarray  # [K], of the evaluations that all seeds have
    returns: np.ndarray  # [seeds, K]
    updates_per_second: float  # median over the seeds
    label: str


def updates_per_second(run: Path) -> float:
    """Median over the logging intervals of a run that made updates; NaN where there is none."""
    found, before = [], None
    for row in read_csv(load_run(run).train_csv):
        rate, updates = row.get("loop/steps_per_second"), row.get("loop/num_updates")
        if before is not None and rate and updates is not None and updates > before[1]:
            found.append(rate * (updates - before[1]) / (row["step"] - before[0]))
        if updates is not None:
            before = row["step"], updates
    return float(np.median(found)) if found else float("nan")


def variants(runs: list[Result], option: str) -> list[Variant]:
    """The runs by task, agent and value of `option`.

    Raises:
      UserError: a run whose agent has no such option, or one value in runs of two labels.
    """
    groups: dict[tuple[str, str, Any], list[Result]] = {}
    for run in runs:
        options = run.config["agent_config"]
        if option not in options:
            raise UserError(
                f"{run.path}: {run.agent} has no option '{option}'; give runs of agents that have it"
            )
        groups.setdefault((run.task, run.agent.partition("@")[0], options[option]), []).append(run)
    found = []
    for (task, agent, value), group in sorted(groups.items()):
        labels = sorted({run.agent for run in group})
        if len(labels) > 1:
            raise UserError(
                f"{' and '.join(labels)} on {task} both have {option} {value}; give runs that differ in it alone"
            )
        steps, returns = common_curve([run.returns for run in group])
        speed = float(np.median([updates_per_second(run.path) for run in group]))
        symbol = SYMBOLS.get(option, option)
        found.append(
            Variant(task, agent, value, len(group), steps, returns, speed, f"{agent}, {symbol} = {value}")
        )
    return found


def draw_curves(axes: Axes, found: list[Variant], colors: dict[Any, Any]) -> None:
    """Mean return over the seeds with the band of its lowest and highest."""
    for place, one in enumerate(found):
        look = {"color": colors[one.value], "marker": MARKERS[place % len(MARKERS)]}
        mean_and_range(axes, one.steps, one.returns, f"{one.label} (n = {one.seeds})", **look)
    axes.set(title=found[0].task, ylabel="return")
    axes.set_ylim(0, None)
    step_axis(axes, max((one.steps[-1] for one in found if len(one.steps)), default=1))


def draw_cost(axes: Axes, found: list[Variant], colors: dict[Any, Any], symbol: str) -> None:
    """Updates a second, a bar for each value."""
    for place, one in enumerate(found):
        if np.isfinite(one.updates_per_second):
            axes.bar(place, one.updates_per_second, color=colors[one.value], width=0.7)
            axes.text(
                place,
                one.updates_per_second,
                f"{one.updates_per_second:.3g}",
                ha="center",
                va="bottom",
                fontsize=9,
            )
    several = len({one.agent for one in found}) > 1
    axes.set_xticks(
        range(len(found)), [f"{one.agent}\n{one.value}" if several else str(one.value) for one in found]
    )
    axes.set(xlabel=symbol, ylabel="updates a second", title="cost")
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    axes.margins(y=0.12)


def draw(found: list[Variant], option: str, path: Path) -> None:
    """A row of two panels for each task."""
    tasks, values = sorted({one.task for one in found}), sorted({one.value for one in found})
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(values)))
    colors = dict(zip(values, shades, strict=True))
    with plt.rc_context(RC):
        figure, panels = plt.subplots(
            len(tasks),
            2,
            figsize=(9.6, 3.6 * len(tasks)),
            layout="constrained",
            squeeze=False,
            width_ratios=(1.6, 1),
        )
        for task, (left, right) in zip(tasks, panels, strict=True):
            here = [one for one in found if one.task == task]
            draw_curves(left, here, colors)
            draw_cost(right, here, colors, SYMBOLS.get(option, option))
            left.legend(fontsize=9, loc="best")
        figure.savefig(path, dpi=100)
    plt.close(figure)


def rows_of(found: list[Variant], option: str) -> list[dict[str, Any]]:
    """The numbers of the figure, a row for each evaluation."""
    rows = []
    for one in found:
        for step, returns in zip(one.steps, one.returns.T, strict=True):
            row = {
                "task": one.task,
                "agent": one.agent,
                option: one.value,
                "step": int(step),
                "seeds": one.seeds,
            }
            rows.append(row | range_of(returns) | {"updates_per_second": one.updates_per_second})
    return rows


def main() -> None:
    """Reads the runs, draws and writes."""
    options, folders = read_folders(Options, __doc__)
    with mistakes_told():
        runs, problems = gather(folders)
        found = variants([run for run in runs if run.returns], options.option)
    for problem in problems:
        print(problem)
    if not found:
        raise SystemExit("no evaluated run there; docs/paper.md has the command that trains them")
    rows, table = rows_of(found, options.option), options.output.with_suffix(".csv")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_rows(table, rows, digits=5)
    draw(found, options.option, options.output)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
