"""Updates under several settings of XLA_FLAGS, each in a process of its own, timed in blocks that take turns.

`python -m qsm.speed.parts.flags AGENT SEEDS` is such a process: it answers each line of its input, a number of updates,
with seconds per update of all seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import agents
from qsm.base.errors import UserError

ROOT = Path(__file__).parents[3]
CAPACITY = 20_000
NO_FLAGS = "none"
MODULE = ["-m", "qsm.speed.parts.flags"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared: each agent with each number of seeds under each setting of flags."""

    agents: tuple[str, ...] = ("qsm", "sac")
    """Agents, at their defaults and cheetah-run's sizes."""
    seeds: tuple[int, ...] = (1,)
    """Numbers of seeds in one program."""
    flags: tuple[str, ...] = (NO_FLAGS, "xla_gpu_autotune_level=0")
    """Settings: flags without their dashes, a + between those of one setting; none: no flags."""
    blocks: int = 15
    """Blocks of each case, in turn."""
    block_seconds: float = 0.2
    """How long a block takes, about."""
    wait: float = 120.0
    """Seconds in which a case must be compiled; what is not is left out."""

    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "blocks": (1, 10**6),
        "block_seconds": (0.0, 3600.0),
        "wait": (0.0, 86_400.0),
    }


class Case(NamedTuple):
    """One process."""

    agent: str
    seeds: int
    flags: str


class Timed:
    """The process of a case: compiling from its start on."""

    def __init__(self, case: Case, process: subprocess.Popen[str]) -> None:
        self.case, self._process = case, process
        self.seconds: list[float] = []  # per update of all seeds, of each block
        self.first: float | None = None
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()

    def _wait(self) -> None:
        answer = self._answer()
        self.first = answer if isinstance(answer, float) else None

    def ready(self, seconds: float) -> bool:
        """Whether it is compiled, after so many seconds at most."""
        self._waiting.join(max(seconds, 0.0))
        return self.first is not None

    def block(self, units: int) -> float:
        """Seconds per update.

        Raises:
          UserError: the process has ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(units, file=self._process.stdin, flush=True)
        answer = self._answer()
        if not isinstance(answer, float):
            raise UserError(f"the process of {self.case} has ended (see above)")
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


@contextlib.contextmanager
def started(cases: list[Case]) -> Iterator[list[Timed]]:
    """A process for each case, all at once; killed in the end."""
    processes: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        for case in cases:
            flags = "" if case.flags == NO_FLAGS else " ".join(f"--{flag}" for flag in case.flags.split("+"))
            command = [sys.executable, *MODULE, case.agent, str(case.seeds)]
            # Several processes share the device, and none may take most of its memory for itself.
            environment = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            processes.append(
                stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
            )
            stack.callback(processes[-1].kill)
        yield [Timed(case, process) for case, process in zip(cases, processes, strict=True)]


def compare(options: Options) -> list[dict[str, Any]]:
    """A row for each case; the ratio is that of its rate to that of the first flags, the median over rounds.

    Raises:
      UserError: an agent is unknown, or nothing was compiled in time.
    """
    if unknown := [name for name in options.agents if name not in agents.AGENTS]:
        raise UserError(f"there is no agent {unknown[0]!r}; there are: {', '.join(agents.AGENTS)}")
    cases = [Case(*one) for one in itertools.product(options.agents, options.seeds, options.flags)]
    until = time.monotonic() + options.wait
    with started(cases) as all_timed:
        timed = [one for one in all_timed if one.ready(until - time.monotonic())]
        for missing in (one.case for one in all_timed if one not in timed):
            print(f"not compiled in time, or failed: {missing}", flush=True)
        if not timed:
            raise UserError(
                f"Nothing was compiled within {options.wait:g} seconds: all failed (see above), or --wait is too short."
            )
        units = {one.case: max(4, int(options.block_seconds / one.block(16))) for one in timed}
        for _ in range(options.blocks):
            for one in timed:
                one.seconds.append(one.block(units[one.case]))
    return [_row(one, timed, options.flags[0]) for one in timed]


def _row(one: Timed, timed: list[Timed], base: str) -> dict[str, Any]:
    plain = [other for other in timed if other.case == one.case._replace(flags=base)]
    ratio = float("nan")
    if plain:
        ratio = statistics.median(a / b for a, b in zip(plain[0].seconds, one.seconds, strict=True))
    microseconds = 1e6 * statistics.median(one.seconds)
    rate = 1e6 * one.case.seeds / microseconds
    return one.case._asdict() | {
        "microseconds": microseconds,
        "updates_per_second": rate,
        "ratio": ratio,
        "first_update_seconds": one.first,
    }


def serve(agent: str, seeds: int) -> None:
    """Answers with the seconds to the first update, and then each line of the input until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    from qsm.speed.cases import LearnCase, Sizes

    case = LearnCase("update", Sizes(agent, "cheetah-run", CAPACITY, (256, 256), 256), seeds)
    print(json.dumps(float(case.start.first_step_seconds)), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(float(case.run(int(line)))), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
