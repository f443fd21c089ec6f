"""Updates under several settings of XLA_FLAGS, each in a process of its own, timed in blocks that take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import agents
from qsm.base.errors import UserError
from qsm.speed.worker import Timed, Worker, WorkerError, worker

ROOT = Path(__file__).parents[3]
NO_FLAGS = "none"


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


class Compiling:
    """The process of a case: compiling from its start on."""

    def __init__(self, case: Case, process: Worker) -> None:
        self.case, self._process, self._timed = case, process, Timed(case.agent, seeds=case.seeds)
        self.seconds: list[float] = []  # per update of all seeds, of each block
        self.first: float | None = None
        process.ask(self._timed, 0)
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        self._waiting.start()

    def _wait(self) -> None:
        try:
            self.first = self._process.answer()
        except WorkerError as error:
            print(f"{self.case}: {error}", flush=True)

    def ready(self, seconds: float) -> bool:
        """Whether it is compiled, after so many seconds at most."""
        self._waiting.join(max(seconds, 0.0))
        return self.first is not None

    def block(self, units: int) -> float:
        """Seconds per update.

        Raises:
          UserError: the process has ended.
        """
        try:
            return self._process.run(self._timed, units)
        except WorkerError as error:
            raise UserError(f"{self.case}: {error}") from error


@contextlib.contextmanager
def started(cases: list[Case]) -> Iterator[list[Compiling]]:
    """A process for each case, all at once; killed in the end."""
    with contextlib.ExitStack() as stack:
        compiling = []
        for case in cases:
            flags = "" if case.flags == NO_FLAGS else " ".join(f"--{flag}" for flag in case.flags.split("+"))
            # Several processes share the device, and none may take most of its memory for itself.
            variables = {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
            compiling.append(Compiling(case, stack.enter_context(worker(ROOT, variables))))
        yield compiling


def compare(options: Options) -> list[dict[str, Any]]:
    """A row for each case; the ratio is that of its rate to that of the first flags, the median over rounds.

    Raises:
      UserError: an agent is unknown, or nothing was compiled in time.
    """
    if unknown := [name for name in options.agents if name not in agents.AGENTS]:
        raise UserError(f"there is no agent {unknown[0]!r}; there are: {', '.join(agents.AGENTS)}")
    cases = [Case(*one) for one in itertools.product(options.agents, options.seeds, options.flags)]
    until = time.monotonic() + options.wait
    with started(cases) as all_compiling:
        compiled = [one for one in all_compiling if one.ready(until - time.monotonic())]
        for missing in (one.case for one in all_compiling if one not in compiled):
            print(f"not compiled in time, or failed: {missing}", flush=True)
        if not compiled:
            raise UserError(
                f"Nothing was compiled within {options.wait:g} seconds: all failed (see above), or --wait is too short."
            )
        units = {one.case: max(4, int(options.block_seconds / one.block(16))) for one in compiled}
        for _ in range(options.blocks):
            for one in compiled:
                one.seconds.append(one.block(units[one.case]))
    return [_row(one, compiled, options.flags[0]) for one in compiled]


def _row(one: Compiling, compiled: list[Compiling], base: str) -> dict[str, Any]:
    plain = [other for other in compiled if other.case == one.case._replace(flags=base)]
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
