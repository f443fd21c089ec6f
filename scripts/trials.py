"""Adds the evaluations of trials of settings, finished or not, to the table of all that were tried.

    python scripts/trials.py trials

A row for each evaluation of each run below the folders: agent, task, seed, the options that differ from the agent's
defaults (replay ratio and action repeat too, where they are not one), environment step, mean and std of the return.
What the table has of a run already is replaced if the run has come further; nothing else of it is touched.
results/README.md says what is in the committed one.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import agents
from qsm.base.errors import UserError
from qsm.command.script import mistakes_told, read_folders, write_rows
from qsm.options.arguments import to_arguments
from qsm.record.config_file import read_config
from qsm.record.find import find_runs, load_run
from qsm.record.tables import read_csv

KEY = ("agent", "task", "seed", "options")
OF_THE_LOOP = ("replay_ratio", "action_repeat")
"""What is told of how a run was trained, besides its agent's options, where it is not one."""
COLUMNS = (*KEY, "step", "return_mean", "return_std")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the table is."""

    output: Path = Path("results/learning/trials.csv")
    """CSV file to add to; made where there is none."""


def options_given(config: dict[str, Any]) -> str:
    """The options of a run's `config.json` that differ from the defaults of its agent, as flags."""
    flags = to_arguments(agents.config_from_dict(config["agent"], config["agent_config"]))
    ways = [(name, str(config["run_config"][name])) for name in OF_THE_LOOP]
    return " ".join(
        [*flags, *(f"--{name.replace('_', '-')}={value}" for name, value in ways if value != "1")]
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A row for each evaluation of the run at `path`; none before the first."""
    run = load_run(path)
    config = read_config(run.path)
    trial = {
        "agent": config["agent"],
        "task": config["task"],
        "seed": config["run_config"]["seed"],
        "options": options_given(config),
    }
    evaluations = read_csv(run.eval_csv) if run.eval_csv.exists() else []
    return [trial | {name: row.get(name) for name in COLUMNS[len(KEY) :]} for row in evaluations]


def merge(old: list[dict[str, Any]], new: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """`old` rows, with those of each trial in `new` put in where they are more; trials keep their order."""
    trials: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in old:
        trials.setdefault(_key(row), []).append(row)
    for rows in new:
        if rows and len(rows) > len(trials.get(_key(rows[0]), [])):
            trials[_key(rows[0])] = rows
    return [row for rows in trials.values() for row in rows]


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def _read(table: Path) -> list[dict[str, Any]]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Reads the trials and adds to the table."""
    options, folders = read_folders(Options, __doc__)
    with mistakes_told():
        found = [run for folder in folders for run in find_runs(folder)]
        if not found:
            raise UserError("No run below the folders given; name those that hold the trials")
        rows = merge(_read(options.output), [rows_of(run) for run in found])
    write_rows(options.output, rows, digits=9)


if __name__ == "__main__":
    main()
