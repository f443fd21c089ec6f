"""Plants small faults in the code, one at a time, and lists those that the tests do not find.

    python -m tests.mutants [--files agents/sac.py] [--sample 30] [--seed 0] [--output survivors.csv]

Each mutant of a file runs, in a copy of the tree, the tests of that file alone (`find_tests` says which). Programs that
were compiled for one mutant serve the others where they are the same. Some survivors are no gap in the tests, but mean
the same as the original: look at each.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.mutants.mutations import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
DEFAULT_FILES = ("agents", "qsm/data/replay.py")
ALL_AGENTS = ("tests/agents/test_contract.py",)
"""Tests that hold every file of `agents/` to what agents promise, where they are there."""
LEFT_OUT = (".git", ".venv", "runs", "results", "__pycache__", "node_modules", ".pytest_cache")
COMPILED = Path(".pytest_cache/xla")
"""Where tests/conftest.py keeps compiled programs."""
SLOWER, AT_LEAST = 5.0, 60.0
"""How much slower than without a fault, and seconds, after which a mutant counts as found: it hangs."""
COLUMNS = ("file", "line", "column", "mutation", "result", "seconds")


class Result(NamedTuple):
    """What the tests said of a mutant."""

    file: str
    line: int
    column: int
    mutation: str
    result: str  # killed, survived or hung
    seconds: float


def files_named(names: Sequence[str], root: Path = ROOT) -> list[Path]:
    """The Python files at and below `names`, relative to `root`.

    Raises:
      SystemExit: there are none.
    """
    found = []
    for name in names:
        path = root / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        sys.exit(f"--files is {' '.join(names)}; no Python file is there")
    return [path.relative_to(root) for path in found]


def find_tests(file: Path, root: Path = ROOT) -> list[str]:
    """The test files that are to find a fault in `file`, relative to `root`.

    Those with its name, wherever they lie above it, and outside of `agents/` all of its folder behind them; where none
    has its name, the tests of its folder, or of the next one above that has some.
    """
    top = root / "tests"
    folders = [top / parent for parent in file.parents if parent != Path()]
    found: list[Path] = []
    for patterns in ((f"test_{file.stem}.py", f"test_{file.stem}_*.py"), ("test_*.py",)):
        for folder in folders:
            found = found or [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if file.parts[0] != "agents":
        found += [path for path in sorted((top / file.parent).glob("test_*.py")) if path not in found]
    names = [str(path.relative_to(root)) for path in found]
    if file.parts[0] == "agents":
        names += [name for name in ALL_AGENTS if (root / name).exists() and name not in names]
    return names


@contextlib.contextmanager
def copied_tree(root: Path = ROOT) -> Iterator[Path]:
    """A copy of what the tests need, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="qsm-mutants-") as temporary:
        copy = Path(temporary) / "tree"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield copy


def run_tests(tests: Sequence[str], tree: Path, timeout: float) -> tuple[str, float]:
    """Runs `tests` in `tree` until one fails: killed, survived or hung; and the seconds that took.

    Raises:
      SystemExit: pytest could not run them, or found none.
    """
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environ = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    began, wall = time.monotonic(), time.time()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        said = None
    finally:
        with contextlib.suppress(ProcessLookupError):  # they have ended
            os.killpg(process.pid, signal.SIGKILL)
    if said is None:
        process.communicate()
        # JAX writes programs in place: one of those may be half there, and would be blamed on the next mutants.
        for program in (tree / COMPILED).rglob("*"):
            if program.is_file() and program.stat().st_mtime >= wall - 1:
                program.unlink()
        return "hung", time.monotonic() - began
    if process.returncode not in (0, 1, 2):  # 2: the mutant could not even be imported
        sys.exit(f"pytest ended with status {process.returncode}:\n{said[-2000:]}")
    return "killed" if process.returncode else "survived", time.monotonic() - began


def judge(
    mutants: Sequence[tuple[Path, Mutant]], tree: Path, timeout: float | None, tests: Sequence[str] = ()
) -> Iterator[Result]:
    """What `tests`, or those of its file, say of each mutant in `tree`; the file is then as it was.

    Raises:
      SystemExit: tests fail without any fault.
    """
    limits: dict[Path, float] = {}
    for file, mutant in mutants:
        found, original = list(tests) or find_tests(file, tree), (tree / file).read_text()
        if file not in limits:
            result, seconds = run_tests(found, tree, timeout or 3600)
            if result != "survived":
                sys.exit(f"{' '.join(found)}: {result} without a fault; mend that first")
            # The second time compiled programs are there, as they are for most of what a mutant computes.
            print(f"{file}: {' '.join(found)} ({seconds:.0f} s without a fault)", flush=True)
            limits[file] = timeout or max(AT_LEAST, SLOWER * seconds)
        (tree / file).write_text(mutant.source)
        try:
            result, seconds = run_tests(found, tree, limits[file])
        finally:
            (tree / file).write_text(original)
        yield Result(str(file), *mutant[:3], result, round(seconds, 1))


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "make mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--files", nargs="+", default=DEFAULT_FILES, help="files and folders to plant faults in"
    )
    parser.add_argument("--lines", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only in these lines")
    parser.add_argument("--tests", nargs="+", default=(), help="run these instead of the tests of each file")
    parser.add_argument("--sample", type=int, help="how many mutants, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--timeout", type=float, help="seconds for a mutant; by default five times as usual")
    parser.add_argument("--output", type=Path, help="CSV file for all results, written as they come")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    return parser.parse_args(arguments)


def choose(
    files: Sequence[Path], options: argparse.Namespace, root: Path = ROOT
) -> list[tuple[Path, Mutant]]:
    """The mutants to be judged, by file and line."""
    first, last = options.lines or (0, sys.maxsize)
    found = [
        (file, mutant)
        for file in files
        for mutant in mutants_of((root / file).read_text())
        if first <= mutant.line <= last
    ]
    if options.sample is not None and options.sample < len(found):
        drawn = random.Random(options.seed).sample(range(len(found)), options.sample)
        found = [found[place] for place in sorted(drawn)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges mutants and lists the survivors; the exit status is 1 where there are some."""
    options = options_of(arguments)
    mutants = choose(files_named(options.files), options)
    if options.list:
        for file, mutant in mutants:
            print(f"{file}:{mutant.line}:{mutant.column}: {mutant.mutation}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no test is left behind
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(copied_tree())
        output = stack.enter_context(options.output.open("w", newline="")) if options.output else None
        writer = csv.writer(output) if output else None
        if writer:
            writer.writerow(COLUMNS)
        for one in judge(mutants, tree, options.timeout, options.tests):
            results.append(one)
            print(
                f"{one.result:9}{one.file}:{one.line}:{one.column}: {one.mutation} ({one.seconds:.0f} s)",
                flush=True,
            )
            if writer and output:
                writer.writerow(one)
                output.flush()
    survivors = [one for one in results if one.result == "survived"]
    print(f"\n{len(results)} mutants, {len(survivors)} survived{':' if survivors else ''}")
    for one in survivors:
        print(f"{one.file}:{one.line}:{one.column}: {one.mutation}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
