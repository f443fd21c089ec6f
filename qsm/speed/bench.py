"""What every part does with its cases: it starts them, times them in turn, and records their rates."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qsm.speed import limits
from qsm.speed.cases import Case
from qsm.speed.options import Options
from qsm.speed.report import Budget, Report
from qsm.speed.starts import Caches

MIN_ROUNDS = 3
"""Made of every comparison, also where time is running out."""


@dataclasses.dataclass
class Timed:
    """A case that has started, and what its blocks took."""

    case: Case
    folder: Path  # with its compiled programs
    what: dict[str, Any]  # tells it from the others
    row: dict[str, Any]  # in the report
    times: list[float] = dataclasses.field(default_factory=list)  # seconds per unit
    units: int = 1  # of a block


@dataclasses.dataclass
class Bench:
    """What every part is given."""

    options: Options
    report: Report
    budget: Budget
    caches: Caches
    matmul: dict[str, float] = dataclasses.field(default_factory=dict)  # GFLOP/s at each precision
    longest: float = 0.0  # seconds that a case of this part took to start twice, at most

    def start(self, what: dict[str, Any], make: Callable[[], Case], add: bool = True) -> Timed | None:
        """The case started twice, its row in the report unless `add` is False; None where that failed."""
        with self.report.guarded(what):
            self.budget.check(self.longest)
            began = self.budget.elapsed()
            case, started, folder = self.caches.start_twice(make)
            self.longest = max(self.longest, self.budget.elapsed() - began)
            peak = limits.peak_bytes_of_process()
            row = what | started | {"peak_bytes_in_use_of_process_so_far": peak}
            if add:
                self.report.add(row)
            return Timed(case, folder, what, row)
        return None

    def compare(self, started: Iterable[Timed | None]) -> list[Timed]:
        """Those that ran to the end: one block of each in turn, after one that is not counted."""
        running = []
        for timed in started:
            if timed is None:
                continue
            with self.report.guarded(timed.what):
                # The start of another has emptied JAX's memory of programs: they are read anew.
                self.caches.use(timed.folder)
                case = timed.case
                case.run(2)
                pace = case.run(4)
                timed.units = max(case.min_units, min(case.max_units, int(self.options.block_seconds / pace)))
                running.append(timed)
        for made in range(self.options.blocks):
            if made >= MIN_ROUNDS and self.budget.left() <= 0:
                break
            for timed in tuple(running):
                before = len(timed.times)
                with self.report.guarded(timed.what):
                    timed.times.append(timed.case.run(timed.units))
                if len(timed.times) == before:
                    running.remove(timed)
        return running

    def record_rates(self, timed: Timed, precision: str = "float32", **more: Any) -> None:
        """Records what a case does in a second, summed over its seeds, what it takes, and `more`."""
        case, times = timed.case, timed.times
        seconds = statistics.median(times)
        updates = case.updates_per_unit / seconds
        rates = {
            "env_steps_per_second": case.env_steps_per_unit / seconds or None,
            "updates_per_second": updates or None,
            "updates_per_second_undisturbed": case.updates_per_unit / fastest_tenth(times) or None,
            "spread": (max(times) - min(times)) / seconds,
            "blocks": len(times),
        }
        self.report.update(timed.row, rates | more)
        with self.report.guarded(timed.what | {"field": "gflop_per_second"}):
            gflops = updates * case.gflop_per_update()
            share = gflops / self.matmul[precision] if precision in self.matmul else None
            found = {"gflop_per_second": gflops or None, "share_of_matmul_rate": share or None}
            self.report.update(timed.row, found)
        with self.report.guarded(timed.what | {"field": "program_bytes"}):
            self.caches.use(timed.folder)
            self.report.update(timed.row, {"program_bytes": case.program_bytes()})


def fastest_tenth(times: list[float]) -> float:
    """The time that a tenth of the blocks stay below: what others on the machine did not slow down."""
    return statistics.quantiles(times, n=10, method="inclusive")[0] if len(times) > 1 else times[0]


def ratio(numerator: Timed, denominator: Timed | None) -> float | None:
    """Median of the ratios within a round; None where there is nothing to compare with."""
    if denominator is None:
        return None
    return statistics.median(a / b for a, b in zip(numerator.times, denominator.times, strict=True))


def find(done: list[Timed], name: str) -> Timed | None:
    """The case of this name."""
    return next((timed for timed in done if timed.case.name == name), None)
