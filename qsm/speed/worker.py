"""Times blocks of updates or of the host loop when told to, with the checkout that its folder holds.

Run by `qsm.speed.compare`, one for each checkout, by the path of this file and with the checkout's root as its current
folder: so two versions are timed by the same words. Of a checkout it asks no more than `qsm.speed`'s cases.

Each line of the input is a JSON list [agent, case, units]; the answer is a line with seconds per unit, or an error.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

CAPACITY = 20_000


def make(agent: str, case: str) -> Any:
    """A case of the checkout, started."""
    cases = importlib.import_module("qsm.speed.cases")
    sizes = cases.Sizes(agent, "cheetah-run", CAPACITY, (256, 256), 256)
    if case == "update":
        return cases.LearnCase("update", sizes, 1)
    return importlib.import_module("qsm.speed.loop_cases").HostCase("loop", sizes, 1)


def main() -> None:
    """Answers until the input ends."""
    sys.path[0] = ""  # the checkout in the current folder, not the folder of this file
    import jax

    jax.config.update("jax_default_matmul_precision", "float32")
    made: dict[tuple[str, str], Any] = {}
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    for line in sys.stdin:
        agent, case, units = json.loads(line)
        try:
            if (agent, case) not in made:
                made.clear()  # one at a time: programs and buffers of others only take memory
                made[agent, case] = make(agent, case)
            answer: Any = made[agent, case].run(units)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
