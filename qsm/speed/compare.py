"""Compares how fast this checkout trains with another commit of it, on this machine, in blocks that take turns.

    make speed [BASE=COMMIT]
    python scripts/compare_speed.py COMMIT [--agents sac qsm] [--blocks 21] [--at-least 0.95]

For each agent, the update in its loop (from a full replay buffer) and the whole host loop on cheetah-run, with default
sizes. The ratio is that of the times, the commit's to this checkout's, its median over rounds: above 1 this checkout is
faster. The exit status is 1 where one is below `--at-least`, and 2 where there is nothing to compare with.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import agents
from qsm.speed.worker import Timed, WorkerError, worker

ROOT = Path(__file__).parents[2]
CASES = ("update", "loop")
Run = Callable[[str, str, int], float]
"""Seconds per unit of an agent's case, made so many units long."""


class CannotCompareError(Exception):
    """The commit cannot be had, or does not run."""


class Comparison(NamedTuple):
    """What came of one case."""

    agent: str
    case: str
    before: float  # seconds per unit, the median
    now: float
    ratio: float  # median of before/now over rounds


def compare(agent: str, case: str, before: Run, now: Run, blocks: int, block_seconds: float) -> Comparison:
    """Blocks of both in turn, who begins alternating, after one of each that compiles and one that warms up."""
    pace = max(run(agent, case, 8) for run in (before, now) for _ in range(2))
    units = max(8, int(block_seconds / pace))
    rounds: list[tuple[float, float]] = []
    for i in range(blocks):
        first, second = (before, now) if i % 2 == 0 else (now, before)
        one, other = first(agent, case, units), second(agent, case, units)
        rounds.append((one, other) if i % 2 == 0 else (other, one))
    of_before, of_now = zip(*rounds, strict=True)
    ratio = statistics.median(one / other for one, other in rounds)
    return Comparison(agent, case, statistics.median(of_before), statistics.median(of_now), ratio)


@contextlib.contextmanager
def runs_of(checkout: Path) -> Iterator[Run]:
    """Times the code in `checkout`, in a process of its own."""
    # Its own packages, whatever else is on the path; and the same products on accelerators for both.
    variables = {"PYTHONPATH": "", "JAX_DEFAULT_MATMUL_PRECISION": "float32"}
    with worker(checkout, variables) as process:

        def run(agent: str, case: str, units: int) -> float:
            try:
                return process.run(Timed(agent, case), units)
            except WorkerError as error:
                raise CannotCompareError(f"{case} of {agent} in {checkout}: {error}") from error

        yield run


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the files of `commit`, removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkout"
        done = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(path), commit],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotCompareError(f"no commit {commit!r} here: {done.stderr.strip().splitlines()[-1]}")
        try:
            yield path
        finally:
            remove = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(path)]
            subprocess.run(remove, capture_output=True, check=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each case as it comes; returns the exit status."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("commit", help="what to compare with")
    names = list(agents.AGENTS)
    compared = [name for name, entry in agents.AGENTS.items() if entry.is_compared]
    parser.add_argument("--agents", nargs="+", default=compared, choices=names, metavar="AGENT", help="which")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="what of them")
    parser.add_argument("--blocks", type=int, default=21, help="blocks of each")
    parser.add_argument("--block-seconds", type=float, default=0.4, help="how long a block takes, about")
    parser.add_argument("--at-least", type=float, default=0.95, help="the ratio below which it fails")
    options = parser.parse_args(arguments)
    slower: list[str] = []
    try:
        with checked_out(options.commit) as path, runs_of(path) as before, runs_of(ROOT) as now:
            print(f"{'agent':<12} {'case':<8} {'before':>9} {'now':>9}  {'ratio':>6}", flush=True)
            for agent in options.agents:
                for case in options.cases:
                    found = compare(agent, case, before, now, options.blocks, options.block_seconds)
                    times = f"{1e3 * found.before:6.2f} ms {1e3 * found.now:6.2f} ms"
                    print(f"{agent:<12} {case:<8} {times}  {found.ratio:6.3f}", flush=True)
                    if found.ratio < options.at_least:
                        slower.append(f"{case} of {agent}")
    except CannotCompareError as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    if slower:
        print(f"slower than {options.at_least:g} of {options.commit}: {', '.join(slower)}")
    return int(bool(slower))
