"""Langevin dynamics on Q beside a learned score: returns from finished runs, and what an action costs on this machine.

    python scripts/paper/langevin.py results/benchmark results/agents

docs/paper.md has the `qsm bench` command that trains them. A row for each task and agent: mean return over the seeds
at one step, the sample standard deviation, and the milliseconds of one action in evaluation at 17 observations and 6
action components, as `samplers_cost.csv` has them: the fastest of 500, for others may be at work. Written as CSV, and
printed as a Markdown table of tasks by agents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import agents
from qsm.command.script import mistakes_told, read_folders, write_rows
from qsm.report.results import Comparison, Result, finished, gather
from qsm.report.settings import unlike
from qsm.speed.limits import SPEC, action_milliseconds


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, and where the table goes."""

    tasks: tuple[str, ...] = ("cartpole-swingup", "cheetah-run", "walker-walk")
    """Tasks, a row for each."""
    agents: tuple[str, ...] = ("langevin", "qsm", "qsm-clean")
    """Agents, a column for each."""
    steps: int = 50_000
    """Environment step of the evaluations that are compared."""
    output: Path = Path("results/paper/langevin.csv")
    """CSV file to write."""


def cost(runs: Sequence[Result], repeats: int = 500) -> float:
    """Milliseconds of one action of the agent of `runs`, with the options of the first."""
    config = runs[0].config
    options = agents.config_from_dict(config["agent"], config["agent_config"])
    agent = agents.build(config["agent"], options, SPEC.observation_size, SPEC.action_size)
    return action_milliseconds(agent, repeats)


def rows_of(
    found: Mapping[tuple[str, str], Sequence[Result]], step: int, costs: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row for each task and agent; no deviation of a single seed."""
    rows = []
    for (task, agent), runs in found.items():
        returns = np.array([one.returns[step] for one in runs])
        spread = float(returns.std(ddof=1)) if len(returns) > 1 else float("nan")
        row = {"task": task, "agent": agent, "step": step, "seeds": len(runs)}
        row |= {"return_mean": float(returns.mean()), "return_std": spread}
        rows.append(row | {"milliseconds_on_this_machine": costs[agent]})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tasks by agents: mean ± standard deviation (seeds), and a last row of milliseconds."""
    names = list(dict.fromkeys(row["agent"] for row in rows))
    lines = [
        f"| return at {rows[0]['step']:,} steps | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        cells = [
            f"{row['return_mean']:.0f}"
            + (f" ± {row['return_std']:.0f}" if row["seeds"] > 1 else "")
            + f" ({row['seeds']})"
            for row in rows
            if row["task"] == task
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    costs = {row["agent"]: row["milliseconds_on_this_machine"] for row in rows}
    lines.append(f"| ms an action | {' | '.join(f'{costs[name]:.2f}' for name in names)} |")
    return lines


def main() -> None:
    """Reads the runs, measures and writes."""
    options, folders = read_folders(Options, __doc__)
    with mistakes_told():
        runs, problems = gather(folders)
        found = finished(runs, options.tasks, options.agents, options.steps, folders)
    compared = Comparison([one for group in found.values() for one in group], options.steps)
    for line in (*problems, *(f"not like for like: {line}" for line in unlike(compared))):
        print(line)
    costs = {agent: cost(found[options.tasks[0], agent]) for agent in options.agents}
    rows = rows_of(found, options.steps, costs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_rows(options.output, rows, digits=5)
    print(*markdown(rows), sep="\n")


if __name__ == "__main__":
    main()
