"""A process that times blocks of updates, or of the host loop, when told to, with the code of a checkout.

`Worker` is who tells it. The process runs this very file, by its path, with the checkout's root as its current folder:
so two versions are timed by the same words. Of a checkout it asks no more than `qsm.speed`'s cases.

Each line of its input is a JSON list [agent, case, seeds, units]; the answer is a line with seconds per unit or, for no
unit, those from the agent's sizes to the end of the first update; or an error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

CAPACITY = 20_000
COMMAND = [__file__]
"""What Python runs as that process."""


class Timed(NamedTuple):
    """What is timed: an agent at its defaults and cheetah-run's sizes."""

    agent: str
    case: str = "update"  # or loop, the whole host loop
    seeds: int = 1  # in one program


class WorkerError(Exception):
    """What the process answers in the place of seconds."""


class Worker:
    """The process of a checkout; asked for one thing after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._requests, self._answers = process, process.stdin, process.stdout

    def ask(self, timed: Timed, units: int) -> None:
        """Has it begin, compiling where that is still to be done; `answer` waits for the end."""
        with contextlib.suppress(BrokenPipeError):  # `answer` says so
            print(json.dumps([*timed, units]), file=self._requests, flush=True)

    def answer(self) -> float:
        """Seconds per unit.

        Raises:
          WorkerError: it cannot be timed, or the process has ended.
        """
        line = self._answers.readline()
        if not line:
            self._process.wait()  # so that whoever asks again always finds it ended
            raise WorkerError("the process has ended")
        answer = json.loads(line)
        if isinstance(answer, str):
            raise WorkerError(answer)
        return answer

    def run(self, timed: Timed, units: int) -> float:
        """Both."""
        self.ask(timed, units)
        return self.answer()


@contextlib.contextmanager
def worker(checkout: Path, variables: Mapping[str, str]) -> Iterator[Worker]:
    """A process that times the code in `checkout`, with those variables in its environment; killed in the end."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | variables
    with subprocess.Popen([sys.executable, *COMMAND], cwd=checkout, env=environment, **pipes) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # a request that a process which had ended never took
                assert process.stdin is not None
                process.stdin.close()


def _make(timed: Timed) -> Any:
    """A case of the checkout, started."""
    cases = importlib.import_module("qsm.speed.cases")
    sizes = cases.Sizes(timed.agent, "cheetah-run", CAPACITY, (256, 256), 256)
    if timed.case == "update":
        return cases.LearnCase("update", sizes, timed.seeds)
    return importlib.import_module("qsm.speed.loop_cases").HostCase("loop", sizes, timed.seeds)


def serve() -> None:
    """Answers until the input ends."""
    sys.path[0] = ""  # the checkout in the current folder, not the folder of this file
    made: dict[Timed, Any] = {}
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    for line in sys.stdin:
        *timed, units = json.loads(line)
        timed = Timed(*timed)
        try:
            if timed not in made:
                made.clear()  # one at a time: programs and buffers of others only take memory
                made[timed] = _make(timed)
            case = made[timed]
            answer: Any = float(case.run(units) if units else case.start.first_step_seconds)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
