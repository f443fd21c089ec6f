"""What `qsm train` shows: a header, a row for each evaluation and, on a terminal, a live bar below them."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from envs.tasks import SUITE_RETURN
from qsm.base.errors import first_line
from qsm.base.text import clock_time

REDRAW_SECONDS = 0.25
"""The bar is redrawn at most this often; `progress` may be called at every step."""
RATE_SECONDS = 3.0
"""Time over which the steps per second are averaged."""
FIRST_RATE_SECONDS = 1.0
"""Time over which they are averaged at first."""


class Wait(NamedTuple):
    """What a training waits for while programs are compiled."""

    line: str  # what it is, and how long it takes
    until: str  # what has been done then
    bar: str = "compiling"
    is_long: bool = True  # told at once, and not only when it has taken a while


class Display:
    """Progress of one training run, for a person at a terminal or for a file. A context manager.

    Draws without a thread of its own, and only when called. Once its output is closed (`qsm train | head`) it
    falls silent and the training goes on.

    Args:
      total_steps: environment steps at the end of the run.
      header: what is trained, where and on what, by label.
      console: standard output by default.
      log: where every line is written as well.
      first_step: environment step at which a resumed run begins.
      clock: seconds that only ever grow.
      quiet: print nothing: another process shows the run.
      full_return: return at which an evaluation's bar is full.
    """

    def __init__(
        self,
        total_steps: int,
        header: Mapping[str, str],
        console: Console | None = None,
        log: logging.Logger | None = None,
        first_step: int = 0,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool = False,
        full_return: float = SUITE_RETURN,
    ) -> None:
        self._total = total_steps
        self._full_return = full_return
        self._decimals = 1 if full_return >= 100 else 2
        self._header = dict(header)
        self._console = console or Console()
        self._console.quiet = self._console.quiet or quiet
        self._log = log
        self._clock = clock
        self._best = -math.inf
        self._rows = 0
        self._began = self._drawn = clock()
        # Where the stretch began that the rate is taken from; None where it begins with the next step that is shown.
        self._stretch: tuple[float, int] | None = None
        self._rate: float | None = None
        self._wait: Wait | None = None  # for programs that are being compiled
        self._waits_since = self._began
        self._is_told = False
        # rich ends the process when its output is closed; the training is not to end with it.
        self._console.on_broken_pipe = _raise_broken_pipe
        self._unicode = self._console.encoding.lower().startswith("utf")
        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            auto_refresh=False,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=total_steps, completed=first_step, text=self._status(first_step)
        )

    def __enter__(self) -> Display:
        width = max((len(label) for label in self._header), default=0)
        for label, value in self._header.items():
            self._print(Text.assemble((f"{label:<{width}}  ", "dim"), value))
        self._show(self._bar.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(self._bar.stop)

    @contextlib.contextmanager
    def compiling(self, wait: Wait) -> Iterator[None]:
        """Shows what is waited for: until the first step is shown, nothing else would be."""
        self._wait, self._waits_since, self._is_told = wait, self._clock(), False
        if wait.is_long:
            self.waiting()
        try:
            yield
        finally:
            self._wait = None
            self._stretch = None

    def waiting(self) -> None:
        """Shows for how long programs have been compiled; to be called now and then while they are."""
        if self._wait is None:
            return
        if not self._is_told:
            self._print(Text(self._wait.line))
            self._is_told = True
        text = f"{self._wait.bar}{self._dot}{clock_time(self._clock() - self._waits_since)}"
        self._bar.update(self._task, text=text)
        self._show(self._bar.refresh)

    @property
    def stopping(self) -> str:
        """What the first Ctrl-C comes to, in words."""
        if self._wait is None:
            return "stopping after this step and saving; once more ends at once without saving"
        return (
            f"stopping when {self._wait.until}, for a compiler cannot be interrupted, and saving; once more ends at "
            "once, and no learning is lost: there was none since this start"
        )

    def progress(self, step: int) -> None:
        """Moves the bar to `step`."""
        now = self._clock()
        if self._stretch is None:  # what came before was compiled or evaluated, not trained
            self._stretch = (now, step)
        if now - self._drawn < REDRAW_SECONDS and step < self._total:
            return
        self._drawn = now
        since, from_step = self._stretch
        if now - since >= (FIRST_RATE_SECONDS if self._rate is None else RATE_SECONDS):
            self._rate = (step - from_step) / (now - since)
            self._stretch = (now, step)
        self._bar.update(self._task, completed=step, text=self._status(step))
        self._show(self._bar.refresh)

    def begin_at_best(self, best: float) -> None:
        """Has the column `best` begin with the best mean return of what was trained before."""
        self._best = max(self._best, best)

    def evaluation(self, step: int, returns: Sequence[float], are_of_seeds: bool = False) -> None:
        """Prints the row of one evaluation from the returns of its episodes, or the means of several seeds.

        Behind the mean is the standard deviation, of seeds that of a sample, as in the report; of episodes the one in
        `eval.csv`.
        """
        self._stretch = None
        mean, std = float(np.mean(returns)), float(np.std(returns, ddof=are_of_seeds and len(returns) > 1))
        improved = mean > self._best
        self._best = max(self._best, mean) if not math.isnan(mean) else self._best
        if not self._rows:
            self._print(self._row("step", "return", "", "best", "minutes", style="bold"))
        self._rows += 1
        minutes = f"{(self._clock() - self._began) / 60:.1f}"
        sign = "±" if self._unicode else "+-"
        decimals = self._decimals
        scores = f"{mean:.{decimals}f} {sign} {std:5.{decimals}f}"
        best = f"{self._best:.{decimals}f}" if math.isfinite(self._best) else ""
        style = "green" if improved else ""
        self._print(self._row(f"{step:,}", scores, self._gauge(mean), best, minutes, style))

    def warn(self, line: str) -> None:
        """Prints what went wrong and does not end the run."""
        self._print(Text.assemble(("warning: ", "bold yellow"), line), line)

    def info(self, line: str) -> None:
        """Prints one line."""
        self._print(Text(line))

    def finish(self, lines: Sequence[str]) -> None:
        """Takes the bar down and prints what to do next."""
        self._show(self._bar.stop)
        for line in lines:
            self._print(Text(line if self._unicode else line.replace("±", "+-")))

    def _status(self, step: int) -> str:
        """`12,000/50,000 | 231 steps/s | 2:44 left`, less of it where the terminal is narrow or no rate is known."""
        parts = [f"{step:,}/{self._total:,}"]
        if step >= self._total:
            parts.append(f"{clock_time(self._clock() - self._began)} in all")
        elif self._rate:
            parts.append(f"{self._rate:,.0f} steps/s" if self._rate >= 10 else f"{self._rate:.1f} steps/s")
            parts.append(f"{clock_time((self._total - step) / self._rate)} left")
        return self._dot.join(parts)

    @property
    def _dot(self) -> str:
        return " · " if self._unicode else " | "

    def _gauge(self, value: float) -> str:
        """A bar from 0 to the full return, as wide as the terminal leaves room for."""
        width = min(40, self._console.width - 49) if self._wide else max(10, self._console.width - 33)
        share = 0.0 if math.isnan(value) else min(max(value / self._full_return, 0.0), 1.0)
        if not self._unicode:
            return ("#" * round(share * width)).ljust(width, ".")
        eighths = round(share * width * 8)
        part = " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        return ("█" * (eighths // 8) + part).ljust(width, "░")

    @property
    def _wide(self) -> bool:
        return self._console.width >= 76

    def _row(self, step: str, scores: str, gauge: str, best: str, minutes: str, style: str) -> Text:
        """One line of the table; `best` and `minutes` only where there is room."""
        end = f"  {best:>6}  {minutes:>7}" if self._wide else ""
        gauge = gauge or self._scale(len(self._gauge(0.0)))
        return Text.assemble(f"{step:>11}  ", f"{scores:>15}  ", (gauge, style), end)

    def _scale(self, width: int) -> str:
        return "0" + f"{self._full_return:.0f}".rjust(width - 1)

    def detail(self, text: str) -> None:
        """Writes what only the log has room for."""
        if self._log is not None and text:
            self._log.info("%s", text)

    def _print(self, text: Text, warning: str | None = None) -> None:
        if self._log is not None and warning is not None:
            self._log.warning("%s", warning)
        elif self._log is not None:
            self._log.info("%s", text.plain.rstrip())
        # Neither ASCII nor UTF-8 takes all that a path may hold.
        encoding = "utf-8" if self._unicode else "ascii"
        shown = text.plain.encode(encoding, "backslashreplace").decode(encoding)
        if shown != text.plain:
            text = Text(shown)
        # Sentences are wrapped for the terminal; paths and commands are left whole, for copying.
        whole = warning is None or not self._console.is_terminal
        self._show(functools.partial(self._console.print, text, soft_wrap=whole))

    def _show(self, action: Callable[[], None]) -> None:
        """Does one piece of output; falls silent for good when that is closed."""
        try:
            action()
        except OSError as error:
            self._fall_silent()
            if not isinstance(error, BrokenPipeError):  # a reader that leaves knows it
                reason = f"standard output cannot be written ({first_line(error)})"
                print(f"qsm: {reason}; training goes on, and log.txt has every line", file=sys.stderr)
        except ValueError:
            if not self._console.file.closed:
                raise
            self._fall_silent()

    def _fall_silent(self) -> None:
        self._console.quiet = True
        # At exit Python flushes standard output once more and would complain that it is closed.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._console.file.fileno())


def _raise_broken_pipe() -> None:
    raise BrokenPipeError


class _LogFile(logging.Handler):
    """Appends lines to a file that is open only while it is written.

    The lines of a run are few; so nothing is left to close, and a folder that was away is found again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        # The log is the last place to tell of an error, so its own has none; the terminal has the line.
        with (
            contextlib.suppress(OSError),
            open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(self.format(record) + "\n")


def open_log(*paths: Path) -> logging.Logger:
    """A logger, apart from the root logger, that appends each line with its time in UTC to every one of `paths`."""
    logger = logging.Logger("qsm.log")
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    for path in paths:
        handler = _LogFile(path)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger
