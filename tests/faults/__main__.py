"""Injects faults into real trainings and counts how many were survived with nothing lost.

    python -m tests.faults [--quick] [--only "disk full"] [--kills 4] [--seed 0]

Every case trains through `qsm train` in processes of its own, is disturbed, and is started again with the same command
until it is finished. It has survived where it then holds, bit for bit, what a training that was left alone holds: rows
of metrics (but for seconds), learned state, replay buffer, environment. Exit status 1 where one was not. A fault that
came too late, when its training had ended already, does not count.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from tests.faults.contents import content, differences
from tests.faults.injections import CASES, OTHERS, QUICK, Fault, explode, kill
from tests.faults.trainings import TRAINING, Training


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


class Verdict(NamedTuple):
    """What became of one training."""

    fault: str
    injected: int
    problem: str  # empty where it has survived with nothing lost


def judge(name: str, run: Training, fault: Fault, expected: dict[str, Any], draw: random.Random) -> Verdict:
    """Disturbs `run`, has it finish, and compares what it holds with `expected`."""
    try:
        number = fault(run, draw)
        status = run.finish()
        if status:
            return Verdict(name, number, f"status {status}: {run.output[-300:]}")
        return Verdict(name, number, ", ".join(differences(expected, content(run.folders))[:3]))
    except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        return Verdict(name, 1, str(error)[:300] or type(error).__name__)


def verdicts(
    cases: dict[str, tuple[Fault, Sequence[str]]], names: Sequence[str], root: Path, seed: int
) -> Iterator[Verdict]:
    """The verdict on each of `names`, beside one training that is left alone for every command."""
    draw = random.Random(seed)
    expected: dict[tuple[str, ...], dict[str, Any]] = {}
    for name in names:
        fault, arguments = cases[name]
        if tuple(arguments) not in expected:
            reference = Training(root / f"reference_{len(expected)}", arguments)
            if reference.finish() != 0:
                sys.exit(f"the training that was left alone failed:\n{reference.output}")
            expected[tuple(arguments)] = content(reference.folders)
        run = Training(root / name.replace(" ", "_"), arguments)
        yield judge(name, run, fault, expected[tuple(arguments)], draw)


def main() -> None:
    """Runs the cases and prints a table."""
    options = tyro.cli(Options, description=__doc__)
    cases: dict[str, tuple[Fault, Sequence[str]]] = {name: (fault, TRAINING) for name, fault in CASES.items()}
    cases |= {f"kill -9 {name}": (kill, arguments) for name, arguments in OTHERS.items()}
    for name, (fault, arguments) in cases.items():
        if fault is kill:
            cases[name] = (lambda run, draw: kill(run, draw, options.kills), arguments)
    if options.only is not None and options.only not in cases:
        sys.exit(f"--only is {options.only!r}; it must be one of: {', '.join(cases)}")
    root = options.folder or Path(tempfile.mkdtemp(prefix="qsm-faults-"))
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        names = (options.only,) if options.only else QUICK if options.quick else tuple(cases)
        found = list(verdicts(cases, names, root, options.seed))
        if not options.quick and not options.only:
            found.append(
                Verdict(
                    "simulator explodes", 1, "" if explode(root / "exploding") else "not counted or not said"
                )
            )
    finally:
        if options.folder is None:
            shutil.rmtree(root, ignore_errors=True)
    table = Table("fault", "injected", "survived", "what differs", title="Faults injected into a training")
    for one in found:
        table.add_row(one.fault, str(one.injected), "no" if one.problem else "yes", one.problem)
    console.print(table)
    injected = sum(one.injected for one in found)
    survived = sum(one.injected for one in found if not one.problem)
    console.print(f"{injected} faults injected, {survived} survived with nothing lost")
    sys.exit(any(one.problem for one in found))


if __name__ == "__main__":
    main()
